//! What a provider registers: `verbs_device_ops` with its match table, and the `verbs_device` it
//! allocates. The ops struct has two forms; a release picks one ([`super::Layout::device_ops`]).

use crate::verbs::ibv_device;
use core::ffi::{c_char, c_int, c_void};

/// Only its address is used; its size is a run-time value, see [`super::Layout::context_offset`].
#[repr(C)]
pub struct verbs_context {
    _opaque: [u8; 0],
}

/// Only its address is used.
#[repr(C)]
pub struct verbs_sysfs_dev {
    _opaque: [u8; 0],
}

/// `struct verbs_device`: the provider allocates it zeroed, libibverbs fills it.
#[repr(C)]
pub struct verbs_device {
    /// The part applications see, at the front.
    pub device: ibv_device,
    _private: [u64; 6],
}

/// End of the match table.
pub const VERBS_MATCH_SENTINEL: u8 = 0;
/// Compare PCI vendor and device.
pub const VERBS_MATCH_PCI: u8 = 1;
/// Compare the kernel's driver id.
pub const VERBS_MATCH_DRIVER_ID: u8 = 3;

/// One row of a match table.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct verbs_match_ent {
    /// For the provider; unused here.
    pub driver_data: *const c_void,
    /// Union of a modalias pattern and a driver id.
    pub driver_id: u64,
    /// PCI vendor.
    pub vendor: u16,
    /// PCI device.
    pub device: u16,
    /// One of `VERBS_MATCH_*`.
    pub kind: u8,
}

/// `match_device` op.
pub type MatchDevice = unsafe extern "C" fn(*mut verbs_sysfs_dev) -> bool;
/// `alloc_context` op.
pub type AllocContext = unsafe extern "C" fn(*mut ibv_device, c_int, *mut c_void) -> *mut verbs_context;
/// `import_context` op.
pub type ImportContext = unsafe extern "C" fn(*mut ibv_device, c_int) -> *mut verbs_context;
/// `alloc_device` op.
pub type AllocDevice = unsafe extern "C" fn(*mut verbs_sysfs_dev) -> *mut verbs_device;
/// `uninit_device` op.
pub type UninitDevice = unsafe extern "C" fn(*mut verbs_device);

/// `struct verbs_device_ops` of v28..v30.
#[repr(C)]
#[allow(missing_docs, reason = "fields carry the C names")]
pub struct verbs_device_ops_v28 {
    pub name: *const c_char,
    pub match_min_abi_version: u32,
    pub match_max_abi_version: u32,
    pub match_table: *const verbs_match_ent,
    /// For static builds of libibverbs; NULL in a plugin.
    pub static_providers: *const c_void,
    pub match_device: Option<MatchDevice>,
    pub alloc_context: Option<AllocContext>,
    pub alloc_device: Option<AllocDevice>,
    pub uninit_device: Option<UninitDevice>,
}

/// `struct verbs_device_ops` from v31 on.
#[repr(C)]
#[allow(missing_docs, reason = "fields carry the C names")]
pub struct verbs_device_ops_v31 {
    pub name: *const c_char,
    pub match_min_abi_version: u32,
    pub match_max_abi_version: u32,
    pub match_table: *const verbs_match_ent,
    /// For static builds of libibverbs; NULL in a plugin.
    pub static_providers: *const c_void,
    pub match_device: Option<MatchDevice>,
    pub alloc_context: Option<AllocContext>,
    pub import_context: Option<ImportContext>,
    pub alloc_device: Option<AllocDevice>,
    pub uninit_device: Option<UninitDevice>,
}

/// Which form of `verbs_device_ops` a release takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceOpsForm {
    /// 64 bytes, [`verbs_device_ops_v28`].
    V28,
    /// 72 bytes, [`verbs_device_ops_v31`].
    V31,
}

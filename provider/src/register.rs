//! What happens when the plugin is loaded: its constructor examines the loaded libibverbs and
//! registers the match table and the device functions. The only load-time side effect.
//!
//! The constructor and the device functions run with libibverbs's device-list lock held: they must
//! not call back into anything that lists devices.

use crate::boundary;
use crate::ops::OPS;
use crate::support::devices;
use crate::support::error::Errno;
use crate::support::loaded::Loaded;
use crate::support::threads::Threads;
use crate::verbs::context;
use core::ffi::{CStr, c_int, c_void};
use core::ptr;
use pvrdma_ffi::pabi::device_ops::*;
use pvrdma_ffi::pabi::{Layout, Libibverbs};
use pvrdma_ffi::uapi::ib_user_ioctl::RDMA_DRIVER_VMW_PVRDMA;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::ibv_device;

/// Shown by tools; the stock provider has the same.
const NAME: &CStr = c"vmw_pvrdma";

#[cfg(feature = "plugin")]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = register;

/// The constructor. Does nothing in a process without libibverbs.
pub extern "C" fn register() {
    boundary::nothing(|| match Libibverbs::find() {
        None => {}
        Some(Err(why)) => {
            // Once per process, at load: without this line an admin sees only that no driver
            // claims the device.
            eprintln!("{}: not registering with the loaded libibverbs: {why}", NAME.to_string_lossy());
        }
        Some(Ok(libibverbs)) => {
            Threads::find();
            let loaded = Loaded::set(libibverbs, &OPS);
            let ops = device_ops(&loaded.libibverbs.layout);
            // SAFETY: the struct has the form this libibverbs expects and is never freed, nor is
            // the match table it points to.
            unsafe { (loaded.libibverbs.functions.register_driver)(ops) };
        }
    });
}

/// Both ways a device can be recognised. The driver id alone would not match where the kernel
/// does not tell it; the PCI id alone would lose to a provider that lists the driver id.
fn match_table() -> &'static [verbs_match_ent; 3] {
    let row =
        verbs_match_ent { driver_data: ptr::null(), driver_id: 0, vendor: 0, device: 0, kind: VERBS_MATCH_SENTINEL };
    Box::leak(Box::new([
        verbs_match_ent { driver_id: RDMA_DRIVER_VMW_PVRDMA.into(), kind: VERBS_MATCH_DRIVER_ID, ..row },
        verbs_match_ent {
            vendor: PCI_VENDOR_ID_VMWARE,
            device: PCI_DEVICE_ID_VMWARE_PVRDMA,
            kind: VERBS_MATCH_PCI,
            ..row
        },
        row,
    ]))
}

/// In the form `layout` asks for; kept for the life of the process.
fn device_ops(layout: &Layout) -> *const c_void {
    let match_table = match_table().as_ptr();
    match layout.device_ops {
        DeviceOpsForm::V28 => ptr::from_ref(Box::leak(Box::new(verbs_device_ops_v28 {
            name: NAME.as_ptr(),
            match_min_abi_version: PVRDMA_UVERBS_ABI_VERSION,
            match_max_abi_version: PVRDMA_UVERBS_ABI_VERSION,
            match_table,
            static_providers: ptr::null(),
            match_device: None,
            alloc_context: Some(alloc_context),
            alloc_device: Some(alloc_device),
            uninit_device: Some(uninit_device),
        })))
        .cast(),
        DeviceOpsForm::V31 => ptr::from_ref(Box::leak(Box::new(verbs_device_ops_v31 {
            name: NAME.as_ptr(),
            match_min_abi_version: PVRDMA_UVERBS_ABI_VERSION,
            match_max_abi_version: PVRDMA_UVERBS_ABI_VERSION,
            match_table,
            static_providers: ptr::null(),
            match_device: None,
            alloc_context: Some(alloc_context),
            import_context: None,
            alloc_device: Some(alloc_device),
            uninit_device: Some(uninit_device),
        })))
        .cast(),
    }
}

unsafe extern "C" fn alloc_device(_sysfs: *mut verbs_sysfs_dev) -> *mut verbs_device {
    boundary::pointer(|| {
        // SAFETY: no preconditions. libibverbs wants zeroed memory and fills it; NULL means failure.
        let device: *mut verbs_device = unsafe { libc::calloc(1, size_of::<verbs_device>()).cast() };
        if device.is_null() {
            return Err(Errno::ENOMEM);
        }
        devices::enter(device.cast());
        Ok(device)
    })
}

unsafe extern "C" fn uninit_device(device: *mut verbs_device) {
    boundary::nothing(|| devices::leave(device.cast()));
    // SAFETY: `device` came from `alloc_device` and is not used any more.
    unsafe { libc::free(device.cast()) };
}

unsafe extern "C" fn alloc_context(
    device: *mut ibv_device,
    cmd_fd: c_int,
    _private_data: *mut c_void,
) -> *mut verbs_context {
    // SAFETY: called by libibverbs with a device that our `alloc_device` made.
    boundary::pointer(|| unsafe { context::open(device, cmd_fd) })
}

//! An open device: `alloc_context` and `free_context`, the device queries, and what all objects of
//! a context share.
//!
//! The context is one block that libibverbs allocates: our [`Context`] first, then libibverbs's
//! `verbs_context`, whose size is known at run time only, with the `ibv_context` the application
//! holds inside. [`Context::of`] walks back from the last to the first.

use crate::ring::counters::Size;
use crate::ring::uar::Uar;
use crate::support::error::Errno;
use crate::support::loaded::{Loaded, libibverbs};
use crate::support::qp_nums::QpNums;
use crate::support::switches::Switches;
use crate::verbs::neighbour::Neighbours;
use core::ffi::{c_char, c_int, c_void};
use core::ptr;
use pvrdma_ffi::pabi::{Cmd, Functions, IBV_CONTEXT_SIZE, Resp, verbs_context};
use pvrdma_ffi::uapi::ib_user_ioctl::RDMA_DRIVER_VMW_PVRDMA;
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::sync::{Arc, OnceLock};

/// Limits of the device, queried once when the context is opened. Queue lengths are powers of two:
/// rings are, so a limit in between could be asked for but never be had.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest send or receive queue.
    pub max_qp_wr: u32,
    /// Longest SGL of a work request.
    pub max_sge: u32,
    /// Longest completion queue.
    pub max_cqe: u32,
    /// Longest shared receive queue; 0: the device has none.
    pub max_srq_wr: u32,
    /// Longest SGL of a request in one.
    pub max_srq_sge: u32,
}

impl Limits {
    fn of(attr: &ibv_device_attr) -> Self {
        Self {
            max_qp_wr: power_of_two_below(attr.max_qp_wr),
            max_sge: u32::try_from(attr.max_sge).map_or(0, |n| n.min(MAX_SGE)),
            max_cqe: power_of_two_below(attr.max_cqe),
            max_srq_wr: if attr.max_srq > 0 { power_of_two_below(attr.max_srq_wr) } else { 0 },
            max_srq_sge: u32::try_from(attr.max_srq_sge).map_or(0, |n| n.min(MAX_SGE)),
        }
    }

    /// What the application is told.
    fn apply_to(self, attr: &mut ibv_device_attr) {
        attr.max_qp_wr = self.max_qp_wr as c_int;
        attr.max_sge = self.max_sge as c_int;
        attr.max_sge_rd = attr.max_sge_rd.min(attr.max_sge);
        attr.max_cqe = self.max_cqe as c_int;
        attr.max_srq_wr = self.max_srq_wr as c_int;
        attr.max_srq_sge = self.max_srq_sge as c_int;
    }
}

/// A send WQE of more entries would not fit a page; the device assumes that it does.
const MAX_SGE: u32 = 251;
const _: () = assert!(size_of::<pvrdma_sq_wqe_hdr>() + MAX_SGE as usize * size_of::<pvrdma_sge>() == PVRDMA_PAGE_SIZE);

fn power_of_two_below(limit: c_int) -> u32 {
    match u32::try_from(limit) {
        Ok(limit @ 1..) => (1 << limit.ilog2()).min(Size::MAX),
        _ => 0,
    }
}

/// What the objects of one open device share.
#[derive(Debug)]
pub struct Context {
    /// The doorbell page.
    pub uar: Uar,
    /// The device's limits.
    pub limits: Limits,
    /// Translates completions.
    pub qp_nums: Arc<QpNums>,
    /// What the environment switched on when the context was opened.
    pub switches: Switches,
    /// Destinations of address handles.
    pub neighbours: Neighbours,
    /// By port number less one; filled when first asked for.
    ports: Box<[OnceLock<Port>]>,
}

/// What [`crate::verbs::ah`] needs to know of a port. The kernel driver sets both for good when it finds
/// the device, so one look is enough for the life of a context.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Length of the GID table.
    pub gid_tbl_len: c_int,
    /// GIDs are IP addresses, to be resolved by the neighbour table.
    pub ip_based_gids: bool,
}

/// Bytes before the `verbs_context`, keeping its alignment.
const OWN_SIZE: usize = size_of::<Context>().next_multiple_of(16);

impl Context {
    /// The context behind an `ibv_context`.
    ///
    /// # Safety
    /// `context` must be one that [`open`] made and [`close`] has not freed. The reference must
    /// not outlive it.
    pub unsafe fn of<'a>(context: *mut ibv_context) -> Result<&'a Self, Errno> {
        let back = Loaded::get()?.libibverbs.layout.context_offset + OWN_SIZE;
        // SAFETY: `open` laid the block out so; the caller says this is such a block.
        Ok(unsafe { &*context.byte_sub(back).cast::<Self>() })
    }

    /// A context without a device file, for [`crate::testing::mock`].
    #[cfg(any(test, feature = "test-utils"))]
    pub fn by_hand(uar: Uar, limits: Limits) -> Result<*mut ibv_context, Errno> {
        let context_at = OWN_SIZE + Loaded::get()?.libibverbs.layout.context_offset;
        let own = Self {
            uar,
            limits,
            qp_nums: Arc::new(QpNums::new()?),
            switches: Switches::default(),
            neighbours: Neighbours::default(),
            ports: Box::default(),
        };
        // SAFETY: zeroed memory, long enough and aligned for both; all-zero bytes are an
        // ibv_context.
        unsafe {
            let block = libc::calloc(1, context_at + IBV_CONTEXT_SIZE);
            if block.is_null() {
                return Err(Errno::ENOMEM);
            }
            block.cast::<Self>().write(own);
            Ok(block.byte_add(context_at).cast())
        }
    }

    /// Free what [`Context::by_hand`] made.
    ///
    /// # Safety
    /// Nothing may use it or its objects afterwards.
    #[cfg(any(test, feature = "test-utils"))]
    pub unsafe fn free_by_hand(context: *mut ibv_context) {
        // SAFETY: the context is at the front of its block, and read out before that is freed.
        unsafe {
            if let Ok(own) = Self::of(context) {
                let block = ptr::from_ref(own).cast_mut();
                drop(block.read());
                libc::free(block.cast());
            }
        }
    }

    /// Facts about a port; EINVAL if there is none of that number.
    ///
    /// # Safety
    /// `context` must be the `ibv_context` this one belongs to.
    pub unsafe fn port(&self, context: *mut ibv_context, number: u8) -> Result<Port, Errno> {
        let place = number.checked_sub(1).and_then(|index| self.ports.get(usize::from(index))).ok_or(Errno::EINVAL)?;
        if let Some(port) = place.get() {
            return Ok(*port);
        }
        let mut room = ibv_port_attr_room::default();
        // SAFETY: as long as any libibverbs has it; the rest is the caller's promise.
        unsafe { query_port(context, number, (&raw mut room).cast()) }?;
        let port = Port {
            gid_tbl_len: room.attr.gid_tbl_len,
            ip_based_gids: room.attr.port_cap_flags & IBV_PORT_IP_BASED_GIDS != 0,
        };
        // Another thread may have been faster, with the same answer.
        Ok(*place.get_or_init(|| port))
    }
}

/// A block of libibverbs that is not yet, or no longer, a context.
struct Block {
    start: *mut c_void,
    functions: &'static Functions,
}

impl Block {
    fn verbs_context(&self) -> *mut verbs_context {
        // SAFETY: inside the block, which is longer than OWN_SIZE.
        unsafe { self.start.byte_add(OWN_SIZE).cast() }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the block came from init_and_alloc_context, which used libc's calloc; nobody
        // uses it any more. uninit closes its fds and must come first.
        unsafe {
            (self.functions.uninit_context)(self.verbs_context());
            libc::free(self.start);
        }
    }
}

/// `alloc_context`: open the device. Takes over `cmd_fd` whatever the result.
///
/// # Safety
/// To be called by libibverbs only, with a device of ours.
pub unsafe fn open(device: *mut ibv_device, cmd_fd: c_int) -> Result<*mut verbs_context, Errno> {
    let loaded = Loaded::get()?;
    let functions = &loaded.libibverbs.functions;
    let context_offset = loaded.libibverbs.layout.context_offset;
    let total = OWN_SIZE + context_offset + IBV_CONTEXT_SIZE;
    // SAFETY: the fourth argument is a byte offset in a pointer's clothes; it and the
    // verbs_context after it fit into `total`.
    let start = unsafe {
        (functions.init_and_alloc_context)(
            device,
            cmd_fd,
            total,
            ptr::without_provenance_mut(OWN_SIZE),
            RDMA_DRIVER_VMW_PVRDMA,
        )
    };
    if start.is_null() {
        return Err(Errno::last());
    }
    let block = Block { start, functions };
    let verbs = block.verbs_context();
    // SAFETY: inside the block.
    let context = unsafe { verbs.byte_add(context_offset).cast::<ibv_context>() };

    let mut resp = Resp::<ib_uverbs_get_context_resp, pvrdma_alloc_ucontext_resp>::default();
    // SAFETY: the context was initialised above.
    Errno::check(unsafe { functions.get_context(verbs, &mut resp) })?;
    // SAFETY: as above; the kernel now knows the context.
    let attr = unsafe { query(functions, context) }?;
    let qp_nums = Arc::new(QpNums::new()?);
    let own = Context {
        uar: Uar::map(cmd_fd)?,
        limits: Limits::of(&attr),
        qp_nums,
        switches: Switches::of_environment(),
        neighbours: Neighbours::default(),
        ports: (0..attr.phys_port_cnt).map(|_| OnceLock::new()).collect(),
    };
    // SAFETY: the block starts with OWN_SIZE bytes for this, aligned by calloc; the table has as
    // many members as this libibverbs reads.
    unsafe {
        block.start.cast::<Context>().write(own);
        (functions.set_ops)(verbs, loaded.ops.as_ptr());
    }
    core::mem::forget(block);
    Ok(verbs)
}

/// `free_context`.
///
/// # Safety
/// `context` must come from [`open`]; nothing may use it or its objects afterwards.
pub unsafe fn close(context: *mut ibv_context) -> Result<(), Errno> {
    let loaded = Loaded::get()?;
    // SAFETY: `open` laid the block out so.
    let start = unsafe { context.byte_sub(loaded.libibverbs.layout.context_offset + OWN_SIZE) };
    let block = Block { start: start.cast(), functions: &loaded.libibverbs.functions };
    // SAFETY: `open` wrote it; read out once, then the block is freed.
    let own = unsafe { block.start.cast::<Context>().read() };
    // SAFETY: no object is left that could ring (rule of ibv_close_device).
    unsafe { own.uar.unmap() };
    drop(block);
    Ok(())
}

/// The device's attributes as the kernel has them.
///
/// # Safety
/// `context` must have been through GET_CONTEXT.
unsafe fn query(functions: &Functions, context: *mut ibv_context) -> Result<ibv_device_attr, Errno> {
    // SAFETY: integers only.
    let mut attr: ibv_device_attr_ex = unsafe { core::mem::zeroed() };
    // SAFETY: the length is that of the part that is to be filled.
    let (ret, _) = unsafe { functions.query_device(context, ptr::null(), &mut attr, size_of::<ibv_device_attr>()) };
    Errno::check(ret)?;
    Ok(attr.orig_attr)
}

/// Does the device see no memory but what a confidential guest shares with it? The kernel then refuses to register any
/// other.
///
/// # Safety
/// `context` must be an open context of ours.
pub unsafe fn needs_shared_memory(context: *mut ibv_context) -> Result<bool, Errno> {
    // SAFETY: integers only.
    let mut attr: ibv_device_attr_ex = unsafe { core::mem::zeroed() };
    // SAFETY: room for so many bytes; the context is the caller's promise.
    let (ret, _) =
        unsafe { libibverbs()?.query_device(context, ptr::null(), &mut attr, size_of::<ibv_device_attr_ex>()) };
    Errno::check(ret)?;
    Ok(attr.device_cap_flags_ex & IBV_DEVICE_CC_DMA_BOUNCE != 0)
}

/// `query_device_ex` and `query_device`: as the kernel has it, with our limits and the firmware
/// version in words. Writes nothing on failure.
///
/// # Safety
/// `attr` must be valid for `attr_len` bytes, at least those of an `ibv_device_attr`.
pub unsafe fn query_device(
    context: *mut ibv_context,
    input: *const ibv_query_device_ex_input,
    attr: *mut ibv_device_attr_ex,
    attr_len: usize,
) -> Result<(), Errno> {
    if attr_len < size_of::<ibv_device_attr>() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: an open context of ours.
    let own = unsafe { Context::of(context) }?;
    // A newer application's struct may be longer than ours, hence a buffer of its length.
    let mut local = vec![0u64; attr_len.div_ceil(8)];
    let local_attr: *mut ibv_device_attr_ex = local.as_mut_ptr().cast();
    // SAFETY: the buffer has that many bytes, aligned to 8.
    let (ret, fw_ver) = unsafe { libibverbs()?.query_device(context, input, local_attr, attr_len) };
    Errno::check(ret)?;
    // SAFETY: the buffer begins with one; all bit patterns are valid.
    let orig = unsafe { &mut *local_attr.cast::<ibv_device_attr>() };
    own.limits.apply_to(orig);
    if !own.switches.has(Switches::SEND_WITH_INV) {
        // Applications take this bit as leave to post SEND_WITH_INV.
        orig.device_cap_flags &= !IBV_DEVICE_MEM_MGT_EXTENSIONS;
        if attr_len >= size_of::<ibv_device_attr_ex>() {
            // SAFETY: the buffer holds a whole one; all bit patterns are valid.
            let whole = unsafe { &mut *local_attr };
            whole.device_cap_flags_ex &= !u64::from(IBV_DEVICE_MEM_MGT_EXTENSIONS);
        }
    }
    // SAFETY: the buffer begins with one; all bit patterns are valid.
    let orig = unsafe { &mut *local_attr.cast::<ibv_device_attr>() };
    write_fw_ver(&mut orig.fw_ver, fw_ver);
    // SAFETY: both hold `attr_len` bytes and do not overlap.
    unsafe { ptr::copy_nonoverlapping(local_attr.cast::<u8>(), attr.cast(), attr_len) };
    Ok(())
}

/// The kernel packs three numbers into the firmware version.
fn write_fw_ver(to: &mut [c_char; 64], fw_ver: u64) {
    let text = format!("{}.{}.{:03}", (fw_ver >> 32) & 0xffff, (fw_ver >> 16) & 0xffff, fw_ver & 0xffff);
    to.fill(0);
    for (to, from) in to.iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
}

/// `query_port`.
///
/// # Safety
/// `attr` must be an `ibv_port_attr` of the libibverbs that calls.
pub unsafe fn query_port(context: *mut ibv_context, port: u8, attr: *mut ibv_port_attr) -> Result<(), Errno> {
    let mut cmd = Cmd::<ib_uverbs_query_port>::new(());
    // SAFETY: a complete request; `attr` is the caller's promise.
    Errno::check(unsafe { (libibverbs()?.query_port)(context, port, attr, (&raw mut cmd).cast(), size_of_val(&cmd)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_the_powers_of_two_that_can_be_had() {
        for (limit, expected) in [(-1, 0), (0, 0), (1, 1), (10467, 8192), (16384, 16384)] {
            assert_eq!(power_of_two_below(limit), expected, "{limit}");
        }
        assert_eq!(power_of_two_below(c_int::MAX), Size::MAX);
    }

    #[test]
    fn firmware_version_reads_as_three_numbers() {
        let mut text = [-1; 64];
        write_fw_ver(&mut text, 0x0001_0002_0003);
        let expected: Vec<c_char> = b"1.2.003\0".iter().map(|b| *b as c_char).collect();
        assert_eq!(text.get(..8), Some(expected.as_slice()));
        assert_eq!(text.last(), Some(&0));
    }
}

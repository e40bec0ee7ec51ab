//! Memory regions.

use crate::support::error::Errno;
use crate::support::loaded::libibverbs;
use crate::support::log::refuse;
use crate::verbs::pd::{DomainRef, Pd};
use core::ffi::{c_int, c_void};
use pvrdma_ffi::dev_api::PVRDMA_PAGE_DIR_MAX_PAGES;
use pvrdma_ffi::pabi::{Cmd, Resp, verbs_mr};
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::PVRDMA_PAGE_SIZE;
use pvrdma_ffi::verbs::*;

/// A memory region; the `verbs_mr` in front is what libibverbs holds, the `ibv_mr` in front of that
/// what applications hold.
#[repr(C)]
struct Mr {
    verbs: verbs_mr,
    _domain_ref: DomainRef,
}

/// Bytes in a region, at most: what a page directory can name. The kernel driver refuses more.
const LONGEST: usize = PVRDMA_PAGE_DIR_MAX_PAGES as usize * PVRDMA_PAGE_SIZE;

/// `reg_mr`. The device addresses a region by its virtual address only: the kernel driver never
/// tells it another one, so registering with a different iova or zero-based would succeed and then
/// fault at first use. Refuse instead.
///
/// # Safety
/// `pd` must be a live PD of ours.
pub unsafe fn reg_mr(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_int,
) -> Result<*mut ibv_mr, Errno> {
    if iova != addr as u64 || access as u32 & IBV_ACCESS_ZERO_BASED != 0 {
        return Err(refuse(
            Errno::EOPNOTSUPP,
            format_args!("reg_mr: {addr:?} at iova {iova:#x}: the kernel driver drops the iova"),
        ));
    }
    // SAFETY: passed on from the caller.
    let mr = unsafe { register(pd, addr, length, iova, access) }.map_err(|errno| {
        let most = if length >= LONGEST { ", at most 1 GiB can be registered at once" } else { "" };
        refuse(errno, format_args!("reg_mr: {length} bytes, access {access:#x}: errno {}{most}", errno.0))
    })?;
    Ok(mr.cast())
}

/// Register without judging.
///
/// # Safety
/// As [`reg_mr`].
pub unsafe fn register(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_int,
) -> Result<*mut verbs_mr, Errno> {
    // SAFETY: integers and pointers only; libibverbs fills it. The PD is the caller's promise.
    let mut mr = unsafe { Box::new(Mr { verbs: core::mem::zeroed(), _domain_ref: DomainRef::of(Pd::of(pd)) }) };
    let mut cmd = Cmd::<ib_uverbs_reg_mr>::new(());
    let mut resp = Resp::<ib_uverbs_reg_mr_resp>::default();
    let (cmd_len, resp_len) = (size_of_val(&cmd), size_of_val(&resp));
    // SAFETY: complete request and answer structs. `addr` is only passed to the kernel, which
    // checks it.
    Errno::check(unsafe {
        (libibverbs()?.reg_mr)(
            pd,
            addr,
            length,
            iova,
            access,
            &mut mr.verbs,
            (&raw mut cmd).cast(),
            cmd_len,
            (&raw mut resp).cast(),
            resp_len,
        )
    })?;
    Ok(Box::into_raw(mr).cast())
}

/// `dereg_mr`.
///
/// # Safety
/// `mr` must come from [`reg_mr`] or [`register`]; on success it is gone.
pub unsafe fn dereg_mr(mr: *mut verbs_mr) -> Result<(), Errno> {
    // SAFETY: a live MR; after success nobody else has it.
    unsafe {
        Errno::check((libibverbs()?.dereg_mr)(mr))?;
        drop(Box::from_raw(mr.cast::<Mr>()));
    }
    Ok(())
}

//! Protection domains.

use crate::context::libibverbs;
use crate::error::Errno;
use core::ptr;
use pvrdma_ffi::pabi::{Cmd, Resp};
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;

/// A protection domain; the `ibv_pd` in front is what libibverbs and applications hold.
#[repr(C)]
pub struct Pd {
    verbs: ibv_pd,
    /// The device's number, for address vectors.
    pub pdn: u32,
}

impl Pd {
    /// # Safety
    /// `pd` must be a live PD of ours. The reference must not outlive it.
    pub unsafe fn of<'a>(pd: *mut ibv_pd) -> &'a Self {
        // SAFETY: the ibv_pd is at the front of the Pd.
        unsafe { &*pd.cast() }
    }
}

/// `alloc_pd`.
///
/// # Safety
/// `context` must be an open context of ours.
pub unsafe fn alloc_pd(context: *mut ibv_context) -> Result<*mut ibv_pd, Errno> {
    let mut pd = Box::new(Pd { verbs: ibv_pd { context: ptr::null_mut(), handle: 0 }, pdn: 0 });
    let mut cmd = Cmd::<ib_uverbs_alloc_pd>::new(());
    let mut resp = Resp::<ib_uverbs_alloc_pd_resp, pvrdma_alloc_pd_resp>::default();
    let (cmd_len, resp_len) = (size_of_val(&cmd), size_of_val(&resp));
    // SAFETY: complete request and answer structs.
    Errno::check(unsafe {
        (libibverbs()?.alloc_pd)(
            context,
            &mut pd.verbs,
            (&raw mut cmd).cast(),
            cmd_len,
            (&raw mut resp).cast(),
            resp_len,
        )
    })?;
    pd.pdn = resp.driver.pdn;
    Ok(Box::into_raw(pd).cast())
}

/// `dealloc_pd`.
///
/// # Safety
/// `pd` must come from [`alloc_pd`]; on success it is gone.
pub unsafe fn dealloc_pd(pd: *mut ibv_pd) -> Result<(), Errno> {
    // SAFETY: a live PD; after success nobody else has it.
    unsafe {
        Errno::check((libibverbs()?.dealloc_pd)(pd))?;
        drop(Box::from_raw(pd.cast::<Pd>()));
    }
    Ok(())
}

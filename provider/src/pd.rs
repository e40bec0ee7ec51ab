//! Protection domains. What makes one a parent domain is in [`crate::domain`].

use crate::buf::Source;
use crate::context::libibverbs;
use crate::domain::{Parent, Users};
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
    /// Parent domains that stand for this PD, or objects made in this parent domain.
    pub users: Users,
    /// What makes it a parent domain.
    pub parent: Option<Parent>,
}

impl Pd {
    /// # Safety
    /// `pd` must be a live PD of ours. The reference must not outlive it.
    pub unsafe fn of<'a>(pd: *mut ibv_pd) -> &'a Self {
        // SAFETY: the ibv_pd is at the front of the Pd.
        unsafe { &*pd.cast() }
    }

    /// A parent domain that stands for `real`.
    pub fn parent(context: *mut ibv_context, real: &Self, parent: Parent) -> Box<Self> {
        let verbs = ibv_pd { context, handle: real.verbs.handle };
        Box::new(Self { verbs, pdn: real.pdn, users: Users::default(), parent: Some(parent) })
    }

    /// Where the queues of its objects have their memory from.
    pub fn source(&self) -> Result<Source, Errno> {
        Ok(Source { libibverbs: libibverbs()?, allocator: self.parent.as_ref().and_then(|parent| parent.allocator) })
    }

    /// Are its objects used by one thread at a time?
    pub fn alone(&self) -> bool {
        self.parent.as_ref().is_some_and(Parent::alone)
    }
}

/// `alloc_pd`.
///
/// # Safety
/// `context` must be an open context of ours.
pub unsafe fn alloc_pd(context: *mut ibv_context) -> Result<*mut ibv_pd, Errno> {
    let verbs = ibv_pd { context: ptr::null_mut(), handle: 0 };
    let mut pd = Box::new(Pd { verbs, pdn: 0, users: Users::default(), parent: None });
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

/// `dealloc_pd`, also for parent domains.
///
/// # Safety
/// `pd` must come from [`alloc_pd`] or [`crate::domain::alloc_parent_domain`]; on success it is
/// gone.
pub unsafe fn dealloc_pd(pd: *mut ibv_pd) -> Result<(), Errno> {
    let own = pd.cast::<Pd>();
    // SAFETY: a live PD; after success nobody else has it.
    unsafe {
        (*own).users.none()?;
        if (*own).parent.is_none() {
            Errno::check((libibverbs()?.dealloc_pd)(pd))?;
        }
        drop(Box::from_raw(own));
    }
    Ok(())
}

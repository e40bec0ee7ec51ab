//! Protection domains, thread domains, parent domains. The last two exist in user space alone.
//!
//! A parent domain is a protection domain with something added: a thread domain (objects made in it
//! are used by one thread at a time, so they take no locks) or the application's own allocator for
//! queue memory. Its `ibv_pd` carries the number and handle of the real one, so every verb and
//! libibverbs itself can use it in the real one's place.

use crate::support::buf::{Allocator, Source};
use crate::support::error::Errno;
use crate::support::loaded::libibverbs;
use crate::support::log::refuse;
use crate::verbs::context::needs_shared_memory;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering};
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
    pub fn single_threaded(&self) -> bool {
        self.parent.as_ref().is_some_and(Parent::single_threaded)
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
/// `pd` must come from [`alloc_pd`] or [`alloc_parent_domain`]; on success it is
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

/// Who uses an object that the kernel does not count: it cannot go while there are any.
#[derive(Debug, Default)]
pub struct Users(AtomicU32);

impl Users {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn remove(&self) {
        // Release: what that user did comes before the object's end, see `none`.
        self.0.fetch_sub(1, Ordering::Release);
    }

    /// EBUSY while there are any.
    pub fn none(&self) -> Result<(), Errno> {
        match self.0.load(Ordering::Acquire) {
            0 => Ok(()),
            _ => Err(Errno::EBUSY),
        }
    }
}

/// A thread domain; the `ibv_td` in front is what applications hold.
#[repr(C)]
pub struct Td {
    verbs: ibv_td,
    users: Users,
}

/// `alloc_td`.
///
/// # Safety
/// `context` must be an open context of ours, `attr` valid.
pub unsafe fn alloc_td(context: *mut ibv_context, attr: *mut ibv_td_init_attr) -> Result<*mut ibv_td, Errno> {
    // SAFETY: promise of the caller.
    if unsafe { (*attr).comp_mask } != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Box::into_raw(Box::new(Td { verbs: ibv_td { context }, users: Users::default() })).cast())
}

/// `dealloc_td`.
///
/// # Safety
/// `td` must come from [`alloc_td`]; on success it is gone.
pub unsafe fn dealloc_td(td: *mut ibv_td) -> Result<(), Errno> {
    let td = td.cast::<Td>();
    // SAFETY: a live TD; without users nobody else has it.
    unsafe {
        (*td).users.none()?;
        drop(Box::from_raw(td));
    }
    Ok(())
}

/// What makes a PD a parent domain.
#[derive(Debug)]
pub struct Parent {
    /// The protection domain it stands for.
    real: NonNull<Pd>,
    td: Option<NonNull<Td>>,
    /// The application's memory.
    pub allocator: Option<Allocator>,
}

impl core::fmt::Debug for Td {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Td").finish_non_exhaustive()
    }
}

impl Parent {
    /// Are its objects used by one thread at a time?
    pub fn single_threaded(&self) -> bool {
        self.td.is_some()
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // SAFETY: both live as long as they have users, and this was one.
        unsafe {
            self.real.as_ref().users.remove();
            if let Some(td) = self.td {
                td.as_ref().users.remove();
            }
        }
    }
}

/// `alloc_parent_domain`.
///
/// # Safety
/// `context` must be an open context of ours, `attr` valid with a live PD and TD of that context.
pub unsafe fn alloc_parent_domain(
    context: *mut ibv_context,
    attr: *mut ibv_parent_domain_init_attr,
) -> Result<*mut ibv_pd, Errno> {
    // SAFETY: promise of the caller.
    let attr = unsafe { attr.read() };
    const KNOWN: u32 = IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS
        | IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT
        | IBV_PARENT_DOMAIN_INIT_ATTR_ALLOW_CC_UNPROTECTED_ALLOC;
    if attr.comp_mask & !KNOWN != 0 {
        return Err(refuse(Errno::EINVAL, format_args!("alloc_parent_domain: comp_mask {:#x}", attr.comp_mask)));
    }
    // That is leave to take shared memory where the device needs it, and no demand: where it does not, plain memory
    // is right. Shared memory we have none.
    if attr.comp_mask & IBV_PARENT_DOMAIN_INIT_ATTR_ALLOW_CC_UNPROTECTED_ALLOC != 0 {
        // SAFETY: promise of the caller.
        if unsafe { needs_shared_memory(context) }? {
            return Err(refuse(Errno::EOPNOTSUPP, format_args!("alloc_parent_domain: the device needs shared memory")));
        }
    }
    let real = NonNull::new(attr.pd.cast::<Pd>())
        .ok_or_else(|| refuse(Errno::EINVAL, format_args!("alloc_parent_domain: no PD")))?;
    // SAFETY: promise of the caller.
    let real_pd = unsafe { real.as_ref() };
    // A domain of a domain: whose allocator would it be?
    if real_pd.parent.is_some() {
        return Err(refuse(Errno::EINVAL, format_args!("alloc_parent_domain: the PD is a parent domain itself")));
    }
    let allocator = match attr.comp_mask & IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS {
        0 => None,
        _ => Some(attr.alloc.zip(attr.free).ok_or_else(|| {
            refuse(Errno::EINVAL, format_args!("alloc_parent_domain: an allocator needs both functions"))
        })?),
    };
    let pd_context = match attr.comp_mask & IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT {
        0 => ptr::null_mut(),
        _ => attr.pd_context,
    };
    let td = NonNull::new(attr.td.cast::<Td>());
    real_pd.users.add();
    if let Some(td) = td {
        // SAFETY: promise of the caller.
        unsafe { td.as_ref() }.users.add();
    }
    let mut pd = Pd::parent(context, real_pd, Parent { real, td, allocator: None });
    let itself: *mut ibv_pd = ptr::from_mut(&mut *pd).cast();
    if let Some(parent) = &mut pd.parent {
        parent.allocator = allocator.map(|(alloc, free)| Allocator { alloc, free, pd: itself, pd_context });
    }
    Ok(Box::into_raw(pd).cast())
}

/// An object's reference to the parent domain it was made in, if it was made in one. (The kernel counts
/// for real PDs.)
#[derive(Debug)]
pub struct DomainRef(Option<NonNull<Pd>>);

impl DomainRef {
    /// To none.
    pub const NONE: Self = Self(None);

    /// In `pd`.
    pub fn of(pd: &Pd) -> Self {
        if pd.parent.is_none() {
            return Self::NONE;
        }
        pd.users.add();
        Self(Some(NonNull::from(pd)))
    }
}

impl Drop for DomainRef {
    fn drop(&mut self) {
        if let Some(pd) = self.0 {
            // SAFETY: it lives as long as it has users, and this was one.
            unsafe { pd.as_ref() }.users.remove();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::testing::kernel::World;

    #[test]
    fn leave_to_take_shared_memory_is_refused_only_where_shared_memory_is_needed() {
        let world = World::new();
        let mut attr = world.guarded(world.real_pd, ptr::null_mut());
        attr.comp_mask |= IBV_PARENT_DOMAIN_INIT_ATTR_ALLOW_CC_UNPROTECTED_ALLOC;
        for (flags, expected) in
            [(0, Ok(())), (IBV_DEVICE_CC_DMA_BOUNCE, Err(Errno::EOPNOTSUPP)), (!0, Err(Errno::EOPNOTSUPP))]
        {
            world.state().cap_flags_ex = flags;
            // SAFETY: an open context, a live PD.
            let made = unsafe { alloc_parent_domain(world.context, &mut attr) };
            assert_eq!(made.map(|_| ()), expected, "{flags:#x}");
            if let Ok(pd) = made {
                // SAFETY: just made.
                unsafe { dealloc_pd(pd) }.unwrap();
            }
        }
        world.close();
    }
}

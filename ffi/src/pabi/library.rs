//! The libibverbs that is loaded in this process, found without any link-time reference to it.
//!
//! A link-time reference would tie the plugin to one release (private symbols are versioned) or
//! silently bind to the version 1.0 compatibility functions (unversioned references do), so all
//! goes through `dlsym` on the handle of the loaded library, which yields the current versions.

use super::cmd::Functions;
use super::context_ops::VerbsSetOps;
use super::layout::{Layout, Unsupported};
use super::measure::{Measured, QpToQpEx};
use core::ffi::{CStr, c_void};
use core::ptr::NonNull;

/// A loaded libibverbs: its layout and the functions a provider calls.
#[derive(Debug)]
pub struct Libibverbs {
    /// Its private layout, measured.
    pub layout: Layout,
    /// Its functions.
    pub functions: Functions,
    /// Bytes from a QP object to `verbs_qp.comp_mask`; what `ibv_qp_ex` has grown by lies before it.
    pub qp_comp_mask: usize,
}

/// Handle of a loaded shared object.
#[derive(Clone, Copy)]
pub struct Handle(NonNull<c_void>);

impl Handle {
    /// The libibverbs of this process; `None` when none is loaded. Loads nothing.
    pub fn of_loaded_libibverbs() -> Option<Self> {
        // SAFETY: NOLOAD only looks the name up and runs no code of the library. The reference it
        // takes is kept: libibverbs never unloads a provider, so it outlives this one.
        let handle = unsafe { libc::dlopen(c"libibverbs.so.1".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        NonNull::new(handle).map(Self)
    }

    /// Address of an exported symbol.
    pub fn symbol(self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: the handle came from dlopen and is never closed; `name` is NUL-terminated.
        NonNull::new(unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) })
    }

    /// Address of a symbol that every supported release has.
    pub fn require(self, name: &'static CStr) -> Result<NonNull<c_void>, Unsupported> {
        self.symbol(name).ok_or(Unsupported::Missing(name))
    }
}

impl Libibverbs {
    /// Look at the loaded libibverbs, pick its layout, measure it. `None`: none is loaded.
    pub fn find() -> Option<Result<Self, Unsupported>> {
        Handle::of_loaded_libibverbs().map(Self::examine)
    }

    fn examine(handle: Handle) -> Result<Self, Unsupported> {
        let layout = Layout::select(|name| handle.symbol(name).is_some())?;
        let functions = Functions::resolve(handle, &layout)?;
        let qp_to_qp_ex = handle.require(c"ibv_qp_to_qp_ex")?;
        let set_ops: VerbsSetOps = functions.set_ops;
        // SAFETY: the symbol is the function of that type in all releases v28..v65.
        let qp_to_qp_ex: QpToQpEx = unsafe { core::mem::transmute(qp_to_qp_ex) };
        // SAFETY: both functions come from the same loaded libibverbs.
        let measured = unsafe { Measured::take(set_ops, qp_to_qp_ex) };
        layout.verify(&measured)?;
        let qp_comp_mask = measured.qp_comp_mask.ok_or(Unsupported::Missing(c"ibv_qp_to_qp_ex"))?;
        Ok(Self { layout, functions, qp_comp_mask })
    }
}

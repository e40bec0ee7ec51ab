//! The libibverbs that is loaded in this process, found without any link-time reference to it.
//!
//! A link-time reference would tie the plugin to one release (private symbols are versioned) or
//! silently bind to the version 1.0 compatibility functions (unversioned references do), so all
//! goes through `dlsym` on the handle of the loaded library, which yields the current versions.
//!
//! A process may have more than one: Python wheels bring a copy of their own, with a name of its own. The one that
//! counts is the one that is loading this plugin, which stands on the stack of the plugin's constructor.

use super::cmd::Functions;
use super::context_ops::VerbsSetOps;
use super::layout::{Layout, Unsupported};
use super::measure::{Measured, QpToQpEx};
use core::ffi::{CStr, c_int, c_void};
use core::ptr::{self, NonNull};

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
    /// The libibverbs that calls, whatever its name; else the one of this process that has the usual name. `None` when
    /// there is none. Loads nothing.
    pub fn of_loaded_libibverbs() -> Option<Self> {
        Self::of_calling_libibverbs().or_else(|| Self::loaded(c"libibverbs.so.1"))
    }

    /// A loaded object, by its name.
    fn loaded(name: &CStr) -> Option<Self> {
        // SAFETY: NOLOAD only looks the name up and runs no code of the library. The reference it
        // takes is kept: libibverbs never unloads a provider, so it outlives this one.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        NonNull::new(handle).map(Self)
    }

    /// The libibverbs that has a function on the stack: it loads providers from one.
    fn of_calling_libibverbs() -> Option<Self> {
        let mut found: Option<Self> = None;
        // SAFETY: `look` is called on this stack, with the pointer given here, before this returns.
        unsafe { _Unwind_Backtrace(look, (&raw mut found).cast()) };
        found
    }

    /// The object that has this address in it, if it is a libibverbs.
    fn of_libibverbs_around(address: usize) -> Option<Self> {
        /// Exported by every libibverbs, and by nothing that merely uses or wraps one.
        const FOR_PROVIDERS: &CStr = c"ibv_cmd_get_context";
        let object = object_around(address)?;
        if object.dli_fname.is_null() {
            return None;
        }
        // SAFETY: dladdr gives the name that the loader keeps for the object; the object is in use.
        let handle = Self::loaded(unsafe { CStr::from_ptr(object.dli_fname) })?;
        // A handle finds symbols of what the object depends on too, so: is it in this very one?
        let own = handle.symbol(FOR_PROVIDERS).and_then(|symbol| object_around(symbol.addr().get()));
        if own.is_some_and(|own| own.dli_fbase == object.dli_fbase) {
            return Some(handle);
        }
        // SAFETY: the reference that `loaded` took; the object has others, for it is running.
        unsafe { libc::dlclose(handle.0.as_ptr()) };
        None
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

/// Which loaded object an address is in.
fn object_around(address: usize) -> Option<libc::Dl_info> {
    let mut info = libc::Dl_info {
        dli_fname: ptr::null(),
        dli_fbase: ptr::null_mut(),
        dli_sname: ptr::null(),
        dli_saddr: ptr::null_mut(),
    };
    // SAFETY: valid for a write; the address is only compared.
    let found = unsafe { libc::dladdr(ptr::without_provenance(address), &mut info) };
    (found != 0).then_some(info)
}

// The stack walk of the C++ ABI, in libgcc_s, which Rust's library links for its panics.
unsafe extern "C" {
    fn _Unwind_Backtrace(each: unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int, argument: *mut c_void)
    -> c_int;
    fn _Unwind_GetIP(frame: *mut c_void) -> usize;
}

/// `_URC_NO_REASON`: go on; any other number ends the walk.
const GO_ON: c_int = 0;
/// `_URC_END_OF_STACK`.
const ENOUGH: c_int = 5;

/// One frame.
///
/// # Safety
/// To be called by `_Unwind_Backtrace` only, with an `Option<Handle>`.
unsafe extern "C" fn look(frame: *mut c_void, found: *mut c_void) -> c_int {
    // SAFETY: promise of the caller.
    unsafe {
        let found = found.cast::<Option<Handle>>();
        // The address behind the call may be the first of another function, but of no other object.
        *found = Handle::of_libibverbs_around(_Unwind_GetIP(frame));
        if (*found).is_some() { ENOUGH } else { GO_ON }
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

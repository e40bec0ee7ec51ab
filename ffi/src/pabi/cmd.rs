//! libibverbs's functions for providers: device and context life, and the `ibv_cmd_*` helpers that
//! issue uverbs commands by ioctl or write, whichever the kernel knows.
//!
//! The helpers take a request laid out as "header, core part, driver part" and write the first two
//! themselves, into the memory directly before the driver part, so the caller passes the complete
//! struct ([`Cmd`]); answers are "core part, driver part" ([`Resp`]). Sizes never changed.

use super::context_ops::verbs_mr;
use super::device_ops::verbs_context;
use super::layout::{Layout, Unsupported};
use super::library::Handle;
use crate::uapi::ib_user_verbs::*;
use crate::verbs::*;
use core::ffi::{c_char, c_int, c_void};

/// A request: `struct ibv_<verb>` of libibverbs's `kern-abi.h` plus the driver part `D`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Cmd<C, D = ()> {
    hdr: ib_uverbs_cmd_hdr,
    core: C,
    /// What the provider fills.
    pub driver: D,
}

impl<C: Default, D> Cmd<C, D> {
    /// A request with this driver part; libibverbs fills the rest.
    pub fn new(driver: D) -> Self {
        // No padding, that is no bytes that nobody wrote.
        const { assert!(size_of::<Self>() == size_of::<ib_uverbs_cmd_hdr>() + size_of::<C>() + size_of::<D>()) };
        Self { hdr: ib_uverbs_cmd_hdr::default(), core: C::default(), driver }
    }
}

/// An answer: core part, then driver part.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Resp<C, D = ()> {
    /// Generic part.
    pub core: C,
    /// The kernel driver's part. Zero where the kernel wrote nothing.
    pub driver: D,
}

/// `struct ibv_query_device_ex`, the only extended command used here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ExCmd<C> {
    hdr: ib_uverbs_cmd_hdr,
    ex_hdr: ib_uverbs_ex_cmd_hdr,
    core: C,
}

/// `ibv_cmd_get_context` before PABI 57.
pub type GetContext =
    unsafe extern "C" fn(*mut verbs_context, *mut c_void, usize, *mut ib_uverbs_get_context_resp, usize) -> c_int;
/// `ibv_cmd_get_context` from PABI 57 on: an array of fds, NULL allowed, in the middle.
pub type GetContext57 = unsafe extern "C" fn(
    *mut verbs_context,
    *mut c_void,
    usize,
    *mut c_void,
    *mut ib_uverbs_get_context_resp,
    usize,
) -> c_int;
/// `ibv_cmd_query_device_any` (v33 on).
pub type QueryDeviceAny = unsafe extern "C" fn(
    *mut ibv_context,
    *const ibv_query_device_ex_input,
    *mut ibv_device_attr_ex,
    usize,
    *mut ib_uverbs_ex_query_device_resp,
    *mut usize,
) -> c_int;
/// `ibv_cmd_query_device` (up to v32).
pub type QueryDevice =
    unsafe extern "C" fn(*mut ibv_context, *mut ibv_device_attr, *mut u64, *mut c_void, usize) -> c_int;
/// `ibv_cmd_query_device_ex` (up to v32).
pub type QueryDeviceEx = unsafe extern "C" fn(
    *mut ibv_context,
    *const ibv_query_device_ex_input,
    *mut ibv_device_attr_ex,
    usize,
    *mut u64,
    *mut c_void,
    usize,
    *mut ib_uverbs_ex_query_device_resp,
    usize,
) -> c_int;

/// `__verbs_log` (v37 on): context, level, printf format, arguments. Prints nothing unless the
/// user asks with `VERBS_LOG_LEVEL`.
pub type VerbsLog = unsafe extern "C" fn(*mut verbs_context, u32, *const c_char, ...);
/// Levels of `__verbs_log`.
pub const VERBS_LOG_ERR: u32 = 1;
/// As above.
pub const VERBS_LOG_WARN: u32 = 2;

#[derive(Clone, Copy, Debug)]
enum GetContextForm {
    Plain(GetContext),
    WithFds(GetContext57),
}

#[derive(Clone, Copy, Debug)]
enum QueryDeviceForm {
    Any(QueryDeviceAny),
    Two(QueryDevice, QueryDeviceEx),
}

macro_rules! functions {
    ($($(#[$doc:meta])* $field:ident = $symbol:literal: fn($($arg:ty),* $(,)?) $(-> $ret:ty)?,)*) => {
        /// The functions, each with the type it has in all releases v28..v65.
        #[derive(Clone, Copy, Debug)]
        pub struct Functions {
            $($(#[$doc])* pub $field: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
            /// `verbs_register_driver_<PABI>`.
            pub register_driver: unsafe extern "C" fn(*const c_void),
            /// `__verbs_log` (v37 on).
            pub verbs_log: Option<VerbsLog>,
            get_context: GetContextForm,
            query_device: QueryDeviceForm,
        }

        impl Functions {
            /// Look all of them up.
            pub(super) fn resolve(lib: Handle, layout: &Layout) -> Result<Self, Unsupported> {
                Ok(Self {
                    $($field: {
                        let symbol = lib.require($symbol)?;
                        // SAFETY: this symbol is a function of exactly this type in every
                        // release that `Layout::select` accepts.
                        unsafe { core::mem::transmute::<core::ptr::NonNull<c_void>, unsafe extern "C" fn($($arg),*) $(-> $ret)?>(symbol) }
                    },)*
                    register_driver: {
                        let symbol = lib.require(layout.register)?;
                        // SAFETY: as above; the number in the name is the only difference.
                        unsafe { core::mem::transmute::<core::ptr::NonNull<c_void>, unsafe extern "C" fn(*const c_void)>(symbol) }
                    },
                    verbs_log: lib.symbol(c"__verbs_log").map(|symbol| {
                        // SAFETY: the symbol has this type in every release that exports it.
                        unsafe { core::mem::transmute::<core::ptr::NonNull<c_void>, VerbsLog>(symbol) }
                    }),
                    get_context: GetContextForm::resolve(lib, layout)?,
                    query_device: QueryDeviceForm::resolve(lib)?,
                })
            }

            /// A table for tests without libibverbs: what they call they put in, every other entry ends the process.
            #[cfg(feature = "test-utils")]
            pub fn by_hand() -> Self {
                $(unsafe extern "C" fn $field($(_: $arg),*) $(-> $ret)? {
                    panic!(concat!("a test calls ", stringify!($field)))
                })*
                unsafe extern "C" fn register_driver(_: *const c_void) {}
                unsafe extern "C" fn get_context(
                    _: *mut verbs_context, _: *mut c_void, _: usize, _: *mut ib_uverbs_get_context_resp, _: usize,
                ) -> c_int {
                    panic!("a test calls get_context")
                }
                unsafe extern "C" fn query_device(
                    _: *mut ibv_context, _: *const ibv_query_device_ex_input, _: *mut ibv_device_attr_ex, _: usize,
                    _: *mut ib_uverbs_ex_query_device_resp, _: *mut usize,
                ) -> c_int {
                    panic!("a test calls query_device")
                }
                Self {
                    $($field,)*
                    register_driver,
                    verbs_log: None,
                    get_context: GetContextForm::Plain(get_context),
                    query_device: QueryDeviceForm::Any(query_device),
                }
            }
        }
    };
}

functions! {
    /// Allocates the context block: `total` bytes, the `verbs_context` at the offset that is
    /// passed as a pointer. Takes over the fd, also on failure.
    init_and_alloc_context = c"_verbs_init_and_alloc_context":
        fn(*mut ibv_device, c_int, usize, *mut verbs_context, u32) -> *mut c_void,
    /// Closes the fds and drops the device; the block remains the provider's to `free`.
    uninit_context = c"verbs_uninit_context": fn(*mut verbs_context),
    /// Installs the verbs of a context.
    set_ops = c"verbs_set_ops": fn(*mut verbs_context, *const *const c_void),
    /// QUERY_PORT.
    query_port = c"ibv_cmd_query_port":
        fn(*mut ibv_context, u8, *mut ibv_port_attr, *mut c_void, usize) -> c_int,
    /// ALLOC_PD.
    alloc_pd = c"ibv_cmd_alloc_pd":
        fn(*mut ibv_context, *mut ibv_pd, *mut c_void, usize, *mut ib_uverbs_alloc_pd_resp, usize) -> c_int,
    /// DEALLOC_PD.
    dealloc_pd = c"ibv_cmd_dealloc_pd": fn(*mut ibv_pd) -> c_int,
    /// REG_MR.
    reg_mr = c"ibv_cmd_reg_mr":
        fn(*mut ibv_pd, *mut c_void, usize, u64, c_int, *mut verbs_mr, *mut c_void, usize,
           *mut ib_uverbs_reg_mr_resp, usize) -> c_int,
    /// DEREG_MR.
    dereg_mr = c"ibv_cmd_dereg_mr": fn(*mut verbs_mr) -> c_int,
    /// CREATE_CQ.
    create_cq = c"ibv_cmd_create_cq":
        fn(*mut ibv_context, c_int, *mut ibv_comp_channel, c_int, *mut ibv_cq, *mut c_void, usize,
           *mut ib_uverbs_create_cq_resp, usize) -> c_int,
    /// DESTROY_CQ; waits until the application has acknowledged all events.
    destroy_cq = c"ibv_cmd_destroy_cq": fn(*mut ibv_cq) -> c_int,
    /// CREATE_QP.
    create_qp = c"ibv_cmd_create_qp":
        fn(*mut ibv_pd, *mut ibv_qp, *mut ibv_qp_init_attr, *mut c_void, usize,
           *mut ib_uverbs_create_qp_resp, usize) -> c_int,
    /// QUERY_QP.
    query_qp = c"ibv_cmd_query_qp":
        fn(*mut ibv_qp, *mut ibv_qp_attr, c_int, *mut ibv_qp_init_attr, *mut c_void, usize) -> c_int,
    /// MODIFY_QP.
    modify_qp = c"ibv_cmd_modify_qp":
        fn(*mut ibv_qp, *mut ibv_qp_attr, c_int, *mut c_void, usize) -> c_int,
    /// DESTROY_QP; waits until the application has acknowledged all events.
    destroy_qp = c"ibv_cmd_destroy_qp": fn(*mut ibv_qp) -> c_int,
    /// CREATE_SRQ.
    create_srq = c"ibv_cmd_create_srq":
        fn(*mut ibv_pd, *mut ibv_srq, *mut ibv_srq_init_attr, *mut c_void, usize,
           *mut ib_uverbs_create_srq_resp, usize) -> c_int,
    /// MODIFY_SRQ.
    modify_srq = c"ibv_cmd_modify_srq":
        fn(*mut ibv_srq, *mut ibv_srq_attr, c_int, *mut c_void, usize) -> c_int,
    /// QUERY_SRQ.
    query_srq = c"ibv_cmd_query_srq": fn(*mut ibv_srq, *mut ibv_srq_attr, *mut c_void, usize) -> c_int,
    /// DESTROY_SRQ; waits until the application has acknowledged all events.
    destroy_srq = c"ibv_cmd_destroy_srq": fn(*mut ibv_srq) -> c_int,
    /// Destination MAC and VLAN of an address, from the kernel's neighbour table. May wait for
    /// seconds. 0, an errno, or -1 with errno set.
    resolve_eth_l2_from_gid = c"ibv_resolve_eth_l2_from_gid":
        fn(*mut ibv_context, *mut ibv_ah_attr, *mut u8, *mut u16) -> c_int,
    /// Keeps a range out of forked children once `ibv_fork_init` was called.
    dontfork_range = c"ibv_dontfork_range": fn(*mut c_void, usize) -> c_int,
    /// Undoes `dontfork_range`.
    dofork_range = c"ibv_dofork_range": fn(*mut c_void, usize) -> c_int,
}

impl GetContextForm {
    fn resolve(lib: Handle, layout: &Layout) -> Result<Self, Unsupported> {
        let symbol = lib.require(c"ibv_cmd_get_context")?;
        // SAFETY: the fd array entered the argument list with PABI 57; below it the symbol has
        // the plain type, from it on the other.
        Ok(unsafe {
            if layout.pabi >= 57 {
                Self::WithFds(core::mem::transmute::<core::ptr::NonNull<c_void>, GetContext57>(symbol))
            } else {
                Self::Plain(core::mem::transmute::<core::ptr::NonNull<c_void>, GetContext>(symbol))
            }
        })
    }
}

impl QueryDeviceForm {
    fn resolve(lib: Handle) -> Result<Self, Unsupported> {
        // SAFETY: the symbols have these types in every release that exports them.
        Ok(unsafe {
            match lib.symbol(c"ibv_cmd_query_device_any") {
                Some(any) => Self::Any(core::mem::transmute::<core::ptr::NonNull<c_void>, QueryDeviceAny>(any)),
                None => Self::Two(
                    core::mem::transmute::<core::ptr::NonNull<c_void>, QueryDevice>(
                        lib.require(c"ibv_cmd_query_device")?,
                    ),
                    core::mem::transmute::<core::ptr::NonNull<c_void>, QueryDeviceEx>(
                        lib.require(c"ibv_cmd_query_device_ex")?,
                    ),
                ),
            }
        })
    }
}

impl Functions {
    /// What answers QUERY_DEVICE in a table of [`Functions::by_hand`].
    #[cfg(feature = "test-utils")]
    pub fn set_query_device(&mut self, query_device: QueryDeviceAny) {
        self.query_device = QueryDeviceForm::Any(query_device);
    }

    /// GET_CONTEXT. Returns 0 or an errno.
    ///
    /// # Safety
    /// `context` must come from [`Functions::init_and_alloc_context`].
    pub unsafe fn get_context<D>(
        &self,
        context: *mut verbs_context,
        resp: &mut Resp<ib_uverbs_get_context_resp, D>,
    ) -> c_int {
        let mut cmd = Cmd::<ib_uverbs_get_context>::new(());
        let cmd_len = size_of_val(&cmd);
        let cmd = (&raw mut cmd).cast();
        let resp_len = size_of_val(resp);
        let resp = (&raw mut *resp).cast();
        // SAFETY: request and answer are complete structs of the stated lengths that outlive the
        // call; the context is the caller's promise.
        unsafe {
            match self.get_context {
                GetContextForm::Plain(f) => f(context, cmd, cmd_len, resp, resp_len),
                GetContextForm::WithFds(f) => f(context, cmd, cmd_len, core::ptr::null_mut(), resp, resp_len),
            }
        }
    }

    /// QUERY_DEVICE in whichever form this libibverbs has. Fills `attr_len` bytes of `attr`;
    /// returns 0 or an errno, and the firmware version as the kernel reports it.
    ///
    /// # Safety
    /// `context` must be an open context, `attr` valid for `attr_len` bytes, `input` NULL or valid.
    pub unsafe fn query_device(
        &self,
        context: *mut ibv_context,
        input: *const ibv_query_device_ex_input,
        attr: *mut ibv_device_attr_ex,
        attr_len: usize,
    ) -> (c_int, u64) {
        let mut resp = ib_uverbs_ex_query_device_resp::default();
        let mut resp_len = size_of_val(&resp);
        match self.query_device {
            QueryDeviceForm::Any(f) => {
                // SAFETY: the answer struct has the stated length; the rest is the caller's promise.
                let err = unsafe { f(context, input, attr, attr_len, &mut resp, &mut resp_len) };
                (err, resp.base.fw_ver)
            }
            QueryDeviceForm::Two(plain, _) if attr_len == size_of::<ibv_device_attr>() => {
                let mut fw_ver = 0;
                let mut cmd = Cmd::<ib_uverbs_query_device>::new(());
                let cmd_len = size_of_val(&cmd);
                // SAFETY: as above; `attr` begins with an ibv_device_attr and holds one.
                let err = unsafe { plain(context, attr.cast(), &mut fw_ver, (&raw mut cmd).cast(), cmd_len) };
                (err, fw_ver)
            }
            QueryDeviceForm::Two(_, ex) => {
                let mut fw_ver = 0;
                let mut cmd = ExCmd::<ib_uverbs_ex_query_device>::default();
                let cmd_len = size_of_val(&cmd);
                // SAFETY: as above.
                let err = unsafe {
                    ex(context, input, attr, attr_len, &mut fw_ver, (&raw mut cmd).cast(), cmd_len, &mut resp, resp_len)
                };
                (err, fw_ver)
            }
        }
    }
}

//! As much of libibverbs as an adapter and the self-test of `pvrdma doctor` call, loaded when they do: `pvrdma` links
//! none, so that it starts where there is none and can say so.
//!
//! Layouts are those of `pvrdma-ffi`, seen from the application's side.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;

use pvrdma_ffi::verbs::*;

/// `struct ibv_async_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "names of the header")]
pub struct ibv_async_event {
    /// A union of pointers, and of a number of 32 bits.
    pub element: *mut c_void,
    pub event_type: c_int,
}

/// Declares the functions and how they are looked up.
macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions, by their names in the manual.
        #[allow(non_snake_case, missing_docs, reason = "names of C; the manual pages document them")]
        pub struct Verbs {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Verbs {
            /// Loads the library, and with it no provider yet.
            pub fn load() -> Result<Verbs, String> {
                // SAFETY: the name ends with a 0. Constructors of libibverbs expect nothing of their caller.
                let library = unsafe { libc::dlopen(c"libibverbs.so.1".as_ptr(), libc::RTLD_NOW) };
                if library.is_null() {
                    return Err(last_error());
                }
                Ok(Verbs {
                    $($name: {
                        let name = CString::new(stringify!($name)).expect("a name has no 0");
                        // SAFETY: the library is loaded and stays so; the name ends with a 0.
                        let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
                        if symbol.is_null() {
                            return Err(last_error());
                        }
                        // SAFETY: libibverbs exports this name as a function of this type, in every release since the
                        // first one with the private ABI 25.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(symbol)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut ibv_device;
    ibv_free_device_list: fn(*mut *mut ibv_device);
    ibv_get_device_name: fn(*mut ibv_device) -> *const c_char;
    ibv_open_device: fn(*mut ibv_device) -> *mut ibv_context;
    ibv_close_device: fn(*mut ibv_context) -> c_int;
    ibv_query_device: fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    ibv_query_port: fn(*mut ibv_context, u8, *mut ibv_port_attr_room) -> c_int;
    ibv_query_gid: fn(*mut ibv_context, u8, c_int, *mut [u64; 2]) -> c_int;
    ibv_alloc_pd: fn(*mut ibv_context) -> *mut ibv_pd;
    ibv_dealloc_pd: fn(*mut ibv_pd) -> c_int;
    ibv_reg_mr: fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    ibv_dereg_mr: fn(*mut ibv_mr) -> c_int;
    ibv_create_comp_channel: fn(*mut ibv_context) -> *mut ibv_comp_channel;
    ibv_destroy_comp_channel: fn(*mut ibv_comp_channel) -> c_int;
    ibv_create_cq: fn(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
    ibv_destroy_cq: fn(*mut ibv_cq) -> c_int;
    ibv_get_cq_event: fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut ibv_cq, c_uint);
    ibv_create_qp: fn(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    ibv_modify_qp: fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    ibv_destroy_qp: fn(*mut ibv_qp) -> c_int;
    ibv_get_async_event: fn(*mut ibv_context, *mut ibv_async_event) -> c_int;
    ibv_ack_async_event: fn(*mut ibv_async_event);
    ibv_event_type_str: fn(c_int) -> *const c_char;
    ibv_wc_status_str: fn(u32) -> *const c_char;
}

/// Places of the hot verbs in `struct ibv_context_ops`; the functions of the header go through it.
const POLL_CQ: usize = 11;
const REQ_NOTIFY_CQ: usize = 12;
const POST_SEND: usize = 25;
const POST_RECV: usize = 26;

type PollCq = unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int;
type ReqNotifyCq = unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int;
type PostSend = unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int;
type PostRecv = unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int;

/// Why the loader refused.
fn last_error() -> String {
    // SAFETY: no preconditions; the text is this thread's until its next call of the loader.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the loader gives no reason".to_owned();
    }
    // SAFETY: the loader's texts end with a 0.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// `context` must be an open device's.
unsafe fn op(context: *mut ibv_context, place: usize) -> *const c_void {
    // SAFETY: promise of the caller; the field lies where it has lain in every release.
    unsafe { (*context).ops[place] }
}

/// The file whose code polls, which is the provider that got the device.
///
/// # Safety
/// `context` must be an open device's.
pub unsafe fn provider(context: *mut ibv_context) -> Option<PathBuf> {
    // SAFETY: all zero is a valid value of this struct of pointers.
    let mut found: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: promise of the caller; dladdr takes any address, and writes to a local variable.
    let known = unsafe { libc::dladdr(op(context, POLL_CQ), &raw mut found) };
    if known == 0 || found.dli_fname.is_null() {
        return None;
    }
    // SAFETY: a name of the loader's, which lives as long as the file is loaded.
    let name = unsafe { CStr::from_ptr(found.dli_fname) };
    Some(PathBuf::from(name.to_string_lossy().into_owned()))
}

/// Polls for one completion: how many there were, or less than 0.
///
/// # Safety
/// As `ibv_poll_cq`: a valid CQ.
pub unsafe fn poll_cq(cq: *mut ibv_cq, wc: &mut ibv_wc) -> c_int {
    // SAFETY: a valid CQ has its device's context, whose entry has this type; `wc` is room for one.
    unsafe {
        let poll = std::mem::transmute::<*const c_void, PollCq>(op((*cq).context, POLL_CQ));
        poll(cq, 1, wc)
    }
}

/// Asks for an event of the next completion.
///
/// # Safety
/// As `ibv_req_notify_cq`: a valid CQ.
pub unsafe fn req_notify_cq(cq: *mut ibv_cq) -> c_int {
    // SAFETY: as above.
    unsafe {
        let notify = std::mem::transmute::<*const c_void, ReqNotifyCq>(op((*cq).context, REQ_NOTIFY_CQ));
        notify(cq, 0)
    }
}

/// Posts to the send queue; 0, or an errno.
///
/// # Safety
/// As `ibv_post_send`: a valid QP, and a list of work requests that is.
pub unsafe fn post_send(qp: *mut ibv_qp, wr: &mut ibv_send_wr) -> c_int {
    let mut bad = std::ptr::null_mut();
    // SAFETY: as above.
    unsafe {
        let post = std::mem::transmute::<*const c_void, PostSend>(op((*qp).context, POST_SEND));
        post(qp, wr, &raw mut bad)
    }
}

/// Posts to the receive queue; 0, or an errno.
///
/// # Safety
/// As `ibv_post_recv`: a valid QP, and a list of work requests that is.
pub unsafe fn post_recv(qp: *mut ibv_qp, wr: &mut ibv_recv_wr) -> c_int {
    let mut bad = std::ptr::null_mut();
    // SAFETY: as above.
    unsafe {
        let post = std::mem::transmute::<*const c_void, PostRecv>(op((*qp).context, POST_RECV));
        post(qp, wr, &raw mut bad)
    }
}

//! The table of verbs: start reading here. Each row names the C function below it, a thin shim
//! that goes through the wall ([`crate::boundary`]) into the module of that verb. The hot verbs have no
//! shim: what is in the table is what runs, and cannot panic.
//!
//! What the shims rely on is what libibverbs and the manual pages promise: objects are alive, were
//! made by this provider, and are not destroyed while another call uses them; lists and attributes
//! are valid, output parameters can be written. Each shim passes exactly that on, to a function that
//! asks for it.

use crate::boundary;
use crate::fast::{cq_ex, poll_cq, post_recv, post_send, qp_ex};
use crate::verbs::{ah, context, cq, mr, pd, port, qp, srq};
use core::ffi::{c_int, c_void};
use pvrdma_ffi::pabi::{verbs_context_ops, verbs_mr};
use pvrdma_ffi::verbs::*;

/// Every verb this provider serves. libibverbs answers the others with EOPNOTSUPP.
pub static OPS: verbs_context_ops = verbs_context_ops {
    alloc_parent_domain: Some(alloc_parent_domain),
    alloc_pd: Some(alloc_pd),
    alloc_td: Some(alloc_td),
    create_ah: Some(create_ah),
    create_cq: Some(create_cq),
    create_cq_ex: Some(create_cq_ex),
    create_qp: Some(create_qp),
    create_qp_ex: Some(create_qp_ex),
    create_srq: Some(create_srq),
    dealloc_pd: Some(dealloc_pd),
    dealloc_td: Some(dealloc_td),
    dereg_mr: Some(dereg_mr),
    destroy_ah: Some(destroy_ah),
    destroy_cq: Some(destroy_cq),
    destroy_qp: Some(destroy_qp),
    destroy_srq: Some(destroy_srq),
    free_context: Some(free_context),
    modify_qp: Some(modify_qp),
    modify_srq: Some(modify_srq),
    poll_cq: Some(poll_cq::poll_cq),
    post_recv: Some(post_recv::post_recv),
    post_send: Some(post_send::post_send),
    post_srq_recv: Some(post_recv::post_srq_recv),
    query_device: Some(query_device),
    query_device_ex: Some(query_device_ex),
    query_port: Some(query_port),
    query_port_speed: Some(query_port_speed),
    query_qp: Some(query_qp),
    query_srq: Some(query_srq),
    reg_mr: Some(reg_mr),
    req_notify_cq: Some(req_notify_cq),
};

unsafe extern "C" fn free_context(context: *mut ibv_context) {
    boundary::nothing(|| {
        // SAFETY: the promise at the top of this file.
        let _ = unsafe { context::close(context) };
    });
}

unsafe extern "C" fn query_device(context: *mut ibv_context, attr: *mut ibv_device_attr) -> c_int {
    let len = size_of::<ibv_device_attr>();
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { context::query_device(context, core::ptr::null(), attr.cast(), len) })
}

unsafe extern "C" fn query_device_ex(
    context: *mut ibv_context,
    input: *const ibv_query_device_ex_input,
    attr: *mut ibv_device_attr_ex,
    attr_len: usize,
) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { context::query_device(context, input, attr, attr_len) })
}

unsafe extern "C" fn query_port(context: *mut ibv_context, port: u8, attr: *mut ibv_port_attr) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { context::query_port(context, port, attr) })
}

unsafe extern "C" fn query_port_speed(context: *mut ibv_context, port: u32, speed: *mut u64) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { port::query_port_speed(context, port, speed) })
}

unsafe extern "C" fn alloc_pd(context: *mut ibv_context) -> *mut ibv_pd {
    // SAFETY: the promise at the top of this file.
    boundary::pointer(|| unsafe { pd::alloc_pd(context) })
}

unsafe extern "C" fn dealloc_pd(pd: *mut ibv_pd) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { pd::dealloc_pd(pd) })
}

unsafe extern "C" fn alloc_td(context: *mut ibv_context, attr: *mut ibv_td_init_attr) -> *mut ibv_td {
    // SAFETY: the promise at the top of this file.
    boundary::pointer(|| unsafe { pd::alloc_td(context, attr) })
}

unsafe extern "C" fn dealloc_td(td: *mut ibv_td) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { pd::dealloc_td(td) })
}

unsafe extern "C" fn alloc_parent_domain(
    context: *mut ibv_context,
    attr: *mut ibv_parent_domain_init_attr,
) -> *mut ibv_pd {
    // SAFETY: the promise at the top of this file.
    boundary::pointer(|| unsafe { pd::alloc_parent_domain(context, attr) })
}

unsafe extern "C" fn reg_mr(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_int,
) -> *mut ibv_mr {
    // SAFETY: the promise at the top of this file.
    boundary::pointer(|| unsafe { mr::reg_mr(pd, addr, length, iova, access) })
}

unsafe extern "C" fn dereg_mr(mr: *mut verbs_mr) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { mr::dereg_mr(mr) })
}

unsafe extern "C" fn create_cq(
    context: *mut ibv_context,
    cqe: c_int,
    channel: *mut ibv_comp_channel,
    comp_vector: c_int,
) -> *mut ibv_cq {
    // SAFETY: the promise at the top of this file.
    boundary::pointer(|| unsafe { cq::create_cq(context, cqe, channel, comp_vector) })
}

unsafe extern "C" fn create_cq_ex(context: *mut ibv_context, attr: *mut ibv_cq_init_attr_ex) -> *mut ibv_cq_ex {
    // SAFETY: the promise at the top of this file.
    boundary::pointer(|| unsafe { cq_ex::create_cq_ex(context, attr) })
}

unsafe extern "C" fn destroy_cq(cq: *mut ibv_cq) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { cq::destroy_cq(cq) })
}

unsafe extern "C" fn req_notify_cq(cq: *mut ibv_cq, solicited_only: c_int) -> c_int {
    boundary::errno(|| {
        // SAFETY: the promise at the top of this file.
        cq::req_notify_cq(unsafe { cq::Cq::of(cq) }, solicited_only != 0);
        Ok(())
    })
}

unsafe extern "C" fn create_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr) -> *mut ibv_qp {
    // SAFETY: the promise at the top of this file.
    boundary::pointer(|| unsafe { qp::create_qp(pd, attr) })
}

unsafe extern "C" fn create_qp_ex(context: *mut ibv_context, attr: *mut ibv_qp_init_attr_ex) -> *mut ibv_qp {
    // SAFETY: the promise at the top of this file.
    boundary::pointer(|| unsafe { qp_ex::create_qp_ex(context, attr) })
}

unsafe extern "C" fn modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, attr_mask: c_int) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { qp::modify_qp(qp, attr, attr_mask) })
}

unsafe extern "C" fn query_qp(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    attr_mask: c_int,
    init_attr: *mut ibv_qp_init_attr,
) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { qp::query_qp(qp, attr, attr_mask, init_attr) })
}

unsafe extern "C" fn destroy_qp(qp: *mut ibv_qp) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { qp::destroy_qp(qp) })
}

unsafe extern "C" fn create_srq(pd: *mut ibv_pd, attr: *mut ibv_srq_init_attr) -> *mut ibv_srq {
    // SAFETY: the promise at the top of this file.
    boundary::pointer(|| unsafe { srq::create_srq(pd, attr) })
}

unsafe extern "C" fn modify_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr, attr_mask: c_int) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { srq::modify_srq(srq, attr, attr_mask) })
}

unsafe extern "C" fn query_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { srq::query_srq(srq, attr) })
}

unsafe extern "C" fn destroy_srq(srq: *mut ibv_srq) -> c_int {
    // SAFETY: the promise at the top of this file.
    boundary::errno(|| unsafe { srq::destroy_srq(srq) })
}

unsafe extern "C" fn create_ah(pd: *mut ibv_pd, attr: *mut ibv_ah_attr) -> *mut ibv_ah {
    // SAFETY: the promise at the top of this file.
    boundary::pointer(|| unsafe { ah::create_ah(pd, attr) })
}

unsafe extern "C" fn destroy_ah(ah: *mut ibv_ah) -> c_int {
    boundary::errno(|| {
        // SAFETY: the promise at the top of this file.
        unsafe { ah::destroy_ah(ah) };
        Ok(())
    })
}

//! `struct verbs_context_ops`: the table of verbs a provider hands to `verbs_set_ops`.
//!
//! Its members are sorted by name in every release and only ever come and go; no member changed its
//! type. So one list with, per op, the exported symbol that arrived in the same commit
//! ([`OPS`]) gives the table of any release: keep the present ones, and an op's index is the number
//! of present ops with a smaller name. A release that adds ops needs rows here and nothing else.

use super::device_ops::verbs_context;
use crate::verbs::*;
use core::ffi::{CStr, c_int, c_void};

/// When a libibverbs has an op.
#[derive(Clone, Copy, Debug)]
pub enum Present {
    /// In every release from v28 on.
    Always,
    /// When libibverbs exports this symbol.
    With(&'static CStr),
    /// When libibverbs does not export this symbol.
    Without(&'static CStr),
}

/// One member of `verbs_context_ops`.
#[derive(Debug)]
pub struct Op {
    /// Member name.
    pub name: &'static str,
    /// Which releases have it.
    pub present: Present,
    /// Where `verbs_set_ops` leaves a copy of the pointer, in bytes from the `ibv_context`; this is
    /// what makes the op measurable. `None`: kept in libibverbs's private table only.
    pub slot: Option<isize>,
}

const fn op(name: &'static str, present: Present, slot: Option<isize>) -> Op {
    Op { name, present, slot }
}

use Present::{Always, With, Without};

/// All ops of v28..v65, sorted by name.
pub static OPS: [Op; 94] = [
    op("advise_mr", Always, Some(-312)),
    op("alloc_buf", With(c"ibv_alloc_buf"), Some(-360)),
    op("alloc_dm", Always, Some(-256)),
    op("alloc_dmah", With(c"ibv_alloc_dmah"), Some(-328)),
    op("alloc_mw", Always, Some(64)),
    op("alloc_null_mr", Always, Some(-304)),
    op("alloc_parent_domain", Always, Some(-208)),
    op("alloc_pd", Always, Some(24)),
    op("alloc_td", Always, Some(-192)),
    op("async_event", Always, Some(256)),
    op("attach_counters_point_flow", Always, Some(-288)),
    op("attach_mcast", Always, Some(240)),
    op("bind_mw", Always, Some(72)),
    op("close_xrcd", Always, Some(-24)),
    op("cq_event", Always, Some(112)),
    op("create_ah", Always, Some(224)),
    op("create_comp_cntr", With(c"ibv_create_comp_cntr"), None),
    op("create_counters", Always, Some(-280)),
    op("create_cq", Always, Some(88)),
    op("create_cq_ex", Always, None),
    op("create_flow", Always, Some(-80)),
    op("create_flow_action_esp", Always, Some(-224)),
    op("create_qp", Always, Some(176)),
    op("create_qp_ex", Always, Some(-56)),
    op("create_rwq_ind_table", Always, Some(-160)),
    op("create_srq", Always, Some(136)),
    op("create_srq_ex", Always, Some(-40)),
    op("create_wq", Always, Some(-136)),
    op("dealloc_dmah", With(c"ibv_dealloc_dmah"), Some(-336)),
    op("dealloc_mw", Always, Some(80)),
    op("dealloc_pd", Always, Some(32)),
    op("dealloc_td", Always, Some(-200)),
    op("dereg_mr", Always, Some(56)),
    op("destroy_ah", Always, Some(232)),
    op("destroy_comp_cntr", With(c"ibv_destroy_comp_cntr"), None),
    op("destroy_counters", Always, Some(-272)),
    op("destroy_cq", Always, Some(128)),
    op("destroy_flow", Always, Some(-96)),
    op("destroy_flow_action", Always, Some(-232)),
    op("destroy_qp", Always, Some(200)),
    op("destroy_rwq_ind_table", Always, Some(-168)),
    op("destroy_srq", Always, Some(160)),
    op("destroy_wq", Always, Some(-152)),
    op("detach_mcast", Always, Some(248)),
    op("dm_export_dmabuf_fd", With(c"ibv_dm_export_dmabuf_fd"), Some(-352)),
    op("free_buf", With(c"ibv_free_buf"), Some(-368)),
    op("free_context", Always, None),
    op("free_dm", Always, Some(-248)),
    op("get_srq_num", Always, Some(-48)),
    op("import_dm", With(c"ibv_import_dm"), None),
    op("import_mr", With(c"ibv_import_mr"), None),
    op("import_pd", With(c"ibv_import_pd"), None),
    op("inc_comp_cntr", With(c"ibv_inc_comp_cntr"), None),
    op("inc_err_comp_cntr", With(c"ibv_inc_err_comp_cntr"), None),
    op("modify_cq", Always, Some(-184)),
    op("modify_flow_action_esp", Always, Some(-240)),
    op("modify_qp", Always, Some(192)),
    op("modify_qp_rate_limit", Always, Some(-216)),
    op("modify_srq", Always, Some(144)),
    op("modify_wq", Always, Some(-144)),
    op("open_qp", Always, Some(-64)),
    op("open_xrcd", Always, Some(-32)),
    op("poll_cq", Always, Some(96)),
    op("post_recv", Always, Some(216)),
    op("post_send", Always, Some(208)),
    op("post_srq_ops", Always, Some(-176)),
    op("post_srq_recv", Always, Some(168)),
    op("qp_attach_comp_cntr", With(c"ibv_qp_attach_comp_cntr"), None),
    op("query_comp_cntr_caps", With(c"_ibv_query_comp_cntr_caps"), None),
    op("query_device", Without(c"ibv_cmd_query_device_any"), Some(8)),
    op("query_device_ex", Always, Some(-104)),
    op("query_ece", With(c"ibv_query_ece"), None),
    op("query_port", Always, None),
    op("query_port_speed", With(c"ibv_query_port_speed"), None),
    op("query_qp", Always, Some(184)),
    op("query_qp_data_in_order", With(c"ibv_query_qp_data_in_order"), None),
    op("query_rt_values", Always, Some(-128)),
    op("query_srq", Always, Some(152)),
    op("read_comp_cntr", With(c"ibv_read_comp_cntr"), None),
    op("read_counters", Always, Some(-296)),
    op("read_err_comp_cntr", With(c"ibv_read_err_comp_cntr"), None),
    op("reg_dm_mr", Always, Some(-264)),
    op("reg_dmabuf_mr", With(c"ibv_reg_dmabuf_mr"), None),
    op("reg_mr", Always, Some(40)),
    op("reg_mr_ex", With(c"ibv_reg_mr_ex"), Some(-344)),
    op("req_notify_cq", Always, Some(104)),
    op("rereg_mr", Always, Some(48)),
    op("resize_cq", Always, Some(120)),
    op("set_comp_cntr", With(c"ibv_set_comp_cntr"), None),
    op("set_ece", With(c"ibv_set_ece"), None),
    op("set_err_comp_cntr", With(c"ibv_set_err_comp_cntr"), None),
    op("unimport_dm", With(c"ibv_unimport_dm"), None),
    op("unimport_mr", With(c"ibv_unimport_mr"), None),
    op("unimport_pd", With(c"ibv_unimport_pd"), None),
];

macro_rules! typed_ops {
    ($($name:ident: fn($($arg:ty),*) $(-> $ret:ty)?,)*) => {
        /// The ops a PVRDMA provider may supply, with their C types. Leave the others `None`:
        /// libibverbs then answers EOPNOTSUPP.
        #[derive(Clone, Copy, Default)]
        #[allow(missing_docs, reason = "each field is the verb of that name; see its manual page")]
        pub struct verbs_context_ops {
            $(pub $name: Option<unsafe extern "C" fn($($arg),*) $(-> $ret)?>,)*
        }

        impl verbs_context_ops {
            /// Name and pointer of every op that is set.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, *const c_void)> {
                [$((stringify!($name), self.$name.map(|f| f as *const c_void)),)*]
                    .into_iter()
                    .filter_map(|(name, f)| f.map(|f| (name, f)))
            }
        }
    };
}

typed_ops! {
    alloc_parent_domain: fn(*mut ibv_context, *mut ibv_parent_domain_init_attr) -> *mut ibv_pd,
    alloc_pd: fn(*mut ibv_context) -> *mut ibv_pd,
    alloc_td: fn(*mut ibv_context, *mut ibv_td_init_attr) -> *mut ibv_td,
    create_ah: fn(*mut ibv_pd, *mut ibv_ah_attr) -> *mut ibv_ah,
    create_cq: fn(*mut ibv_context, c_int, *mut ibv_comp_channel, c_int) -> *mut ibv_cq,
    create_cq_ex: fn(*mut ibv_context, *mut ibv_cq_init_attr_ex) -> *mut ibv_cq_ex,
    create_qp: fn(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp,
    create_qp_ex: fn(*mut ibv_context, *mut ibv_qp_init_attr_ex) -> *mut ibv_qp,
    create_srq: fn(*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq,
    dealloc_pd: fn(*mut ibv_pd) -> c_int,
    dealloc_td: fn(*mut ibv_td) -> c_int,
    dereg_mr: fn(*mut verbs_mr) -> c_int,
    destroy_ah: fn(*mut ibv_ah) -> c_int,
    destroy_cq: fn(*mut ibv_cq) -> c_int,
    destroy_qp: fn(*mut ibv_qp) -> c_int,
    destroy_srq: fn(*mut ibv_srq) -> c_int,
    free_context: fn(*mut ibv_context),
    modify_qp: fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int,
    modify_srq: fn(*mut ibv_srq, *mut ibv_srq_attr, c_int) -> c_int,
    poll_cq: fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int,
    post_recv: fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int,
    post_send: fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int,
    post_srq_recv: fn(*mut ibv_srq, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int,
    query_device: fn(*mut ibv_context, *mut ibv_device_attr) -> c_int,
    query_device_ex: fn(*mut ibv_context, *const ibv_query_device_ex_input, *mut ibv_device_attr_ex, usize) -> c_int,
    query_port: fn(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int,
    query_port_speed: fn(*mut ibv_context, u32, *mut u64) -> c_int,
    query_qp: fn(*mut ibv_qp, *mut ibv_qp_attr, c_int, *mut ibv_qp_init_attr) -> c_int,
    query_srq: fn(*mut ibv_srq, *mut ibv_srq_attr) -> c_int,
    reg_mr: fn(*mut ibv_pd, *mut c_void, usize, u64, c_int) -> *mut ibv_mr,
    req_notify_cq: fn(*mut ibv_cq, c_int) -> c_int,
}

/// `verbs_mr`: what `ibv_mr` pointers of a provider really point to.
#[repr(C)]
pub struct verbs_mr {
    /// The part applications see.
    pub ibv_mr: ibv_mr,
    /// `enum ibv_mr_type`; 0 for a normal region. Filled by `ibv_cmd_reg_mr`.
    pub mr_type: u32,
    /// Access flags of the registration; padding in the oldest releases. Filled by `ibv_cmd_reg_mr`.
    pub access: c_int,
}

/// `void verbs_set_ops(struct verbs_context *, const struct verbs_context_ops *)`.
pub type VerbsSetOps = unsafe extern "C" fn(*mut verbs_context, *const *const c_void);

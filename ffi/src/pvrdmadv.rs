//! `infiniband/pvrdmadv.h`: what the provider tells a program that posts and polls by itself. The functions are in
//! `provider/src/direct.rs`; `cargo xtask headers` makes the header of both.
//!
//! Each struct that a function fills begins with `comp_mask`, and may grow at its end: the caller says how long the
//! one is that it knows. [`pvrdmadv_wq`], which is a part of others, never grows.
#![allow(missing_docs, reason = "C types: all that is to say of a field stands in the manual page")]

use core::ffi::c_void;

/// Of `pvrdmadv_qp.flags`: the QP was made with sq_sig_all. Every request must have PVRDMA_SEND_SIGNALED.
pub const PVRDMADV_QP_SIG_ALL: u32 = 1 << 0;
/// Of `pvrdmadv_qp.flags`: requests that go by verbs have a wr_id of the provider's own (there is room for inline
/// data). Poll their completions by verbs.
pub const PVRDMADV_QP_OWN_WR_ID: u32 = 1 << 1;
/// What of `pvrdma_cqe.qp` is to be compared with the same bits of `pvrdmadv_qp.qp_handle`.
pub const PVRDMADV_CQE_QP_MASK: u32 = 0xffff;

/// A queue of work requests: the program's end. All zero: the QP takes its receives from an SRQ.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvrdmadv_wq {
    /// The entries, each of entry_size bytes.
    pub buf: *mut c_void,
    /// Moved by the program, modulo 2 * num_entries.
    pub prod_tail: *mut u32,
    /// Moved by the device, modulo 2 * num_entries.
    pub cons_head: *mut u32,
    /// Where doorbell_value is stored when prod_tail was moved.
    pub doorbell: *mut u32,
    pub doorbell_value: u32,
    /// A power of two.
    pub num_entries: u32,
    /// A power of two.
    pub entry_size: u32,
    /// The most that an entry may have.
    pub max_sge: u32,
}

impl pvrdmadv_wq {
    /// Of a queue that there is not.
    pub const NONE: Self = Self {
        buf: core::ptr::null_mut(),
        prod_tail: core::ptr::null_mut(),
        cons_head: core::ptr::null_mut(),
        doorbell: core::ptr::null_mut(),
        doorbell_value: 0,
        num_entries: 0,
        entry_size: 0,
        max_sge: 0,
    };
}

/// Of an open device.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvrdmadv_context {
    /// 0: no optional field is there.
    pub comp_mask: u64,
    /// The doorbell page. It can only be written, by stores of 32 bits.
    pub uar: *mut c_void,
    /// Its length in bytes.
    pub uar_size: u32,
    /// Offsets of its registers.
    pub qp_offset: u32,
    pub cq_offset: u32,
    pub srq_offset: u32,
}

/// Of a queue pair.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvrdmadv_qp {
    /// 0: no optional field is there.
    pub comp_mask: u64,
    /// Entries: struct pvrdma_sq_wqe_hdr, then struct pvrdma_sge.
    pub sq: pvrdmadv_wq,
    /// Entries: struct pvrdma_rq_wqe_hdr, then struct pvrdma_sge.
    pub rq: pvrdmadv_wq,
    /// What doorbells and completions call it. It need not be the QP's number.
    pub qp_handle: u32,
    /// PVRDMADV_QP_*.
    pub flags: u32,
}

/// Of a completion queue.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvrdmadv_cq {
    /// 0: no optional field is there.
    pub comp_mask: u64,
    /// The entries: struct pvrdma_cqe.
    pub buf: *mut c_void,
    /// Moved by the device, modulo 2 * num_entries.
    pub prod_tail: *mut u32,
    /// Moved by the program, modulo 2 * num_entries.
    pub cons_head: *mut u32,
    /// Where one of the three values below is stored.
    pub doorbell: *mut u32,
    /// Put what you hold back.
    pub poll_value: u32,
    /// Notify me of the next completion.
    pub arm_value: u32,
    /// Notify me of the next one that is solicited or an error.
    pub arm_solicited_value: u32,
    /// A power of two.
    pub num_entries: u32,
    pub entry_size: u32,
    /// What doorbells call it.
    pub cq_handle: u32,
}

/// Of a shared receive queue.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvrdmadv_srq {
    /// 0: no optional field is there.
    pub comp_mask: u64,
    /// Entries: struct pvrdma_rq_wqe_hdr, then struct pvrdma_sge.
    pub wq: pvrdmadv_wq,
    /// What doorbells call it.
    pub srq_handle: u32,
    pub reserved: u32,
}

/// Of an address handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvrdmadv_ah {
    /// 0: no optional field is there.
    pub comp_mask: u64,
    /// A struct pvrdma_av, for `wr.ud.av` of a request.
    pub av: [u8; 40],
}

// Without padding, which a caller could take for something.
const _: () = {
    assert!(size_of::<pvrdmadv_wq>() == 48);
    assert!(size_of::<pvrdmadv_context>() == 32);
    assert!(size_of::<pvrdmadv_qp>() == 112);
    assert!(size_of::<pvrdmadv_cq>() == 64);
    assert!(size_of::<pvrdmadv_srq>() == 64);
    assert!(size_of::<pvrdmadv_ah>() == 8 + size_of::<crate::uapi::vmw_pvrdma::pvrdma_av>());
};

//! `rdma/vmw_pvrdma-abi.h`: doorbell page, work queue entries, completion queue entries, and the
//! driver part of uverbs commands. Also the two counters at the head of every ring
//! (`pvrdma_ring.h`) and the send and access flags of a WQE (`pvrdma_verbs.h`): the header leaves
//! them out although user space and device must agree on them.
//!
//! Used by the provider (writes WQEs, reads CQEs) and by the device (the reverse). Everything here
//! sits in memory the other side may write at any time: copy it out, never keep a reference to it.
#![allow(missing_docs, reason = "fields and values carry the header's names; the header documents them")]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// ---- uverbs ------------------------------------------------------------------------------------

/// `uverbs` driver ABI: the only value in use since the first release.
pub const PVRDMA_UVERBS_ABI_VERSION: u32 = 3;
/// PCI vendor of the function.
pub const PCI_VENDOR_ID_VMWARE: u16 = 0x15ad;
/// PCI device of the function.
pub const PCI_DEVICE_ID_VMWARE_PVRDMA: u16 = 0x0820;

// ---- doorbell (UAR) page -----------------------------------------------------------------------

/// Length of a UAR page, of the ring state area, and of every page the device is told about.
pub const PVRDMA_PAGE_SIZE: usize = 4096;

/// Low 24 bits of every doorbell: the QP, CQ or SRQ handle.
pub const PVRDMA_UAR_HANDLE_MASK: u32 = 0x00ff_ffff;
/// Byte offset of the QP doorbell.
pub const PVRDMA_UAR_QP_OFFSET: usize = 0;
pub const PVRDMA_UAR_QP_SEND: u32 = 1 << 30;
pub const PVRDMA_UAR_QP_RECV: u32 = 1 << 31;
/// Byte offset of the CQ doorbell.
pub const PVRDMA_UAR_CQ_OFFSET: usize = 4;
pub const PVRDMA_UAR_CQ_ARM_SOL: u32 = 1 << 29;
pub const PVRDMA_UAR_CQ_ARM: u32 = 1 << 30;
pub const PVRDMA_UAR_CQ_POLL: u32 = 1 << 31;
/// Byte offset of the SRQ doorbell.
pub const PVRDMA_UAR_SRQ_OFFSET: usize = 8;
pub const PVRDMA_UAR_SRQ_RECV: u32 = 1 << 30;

// ---- enum pvrdma_wr_opcode ---------------------------------------------------------------------

pub const PVRDMA_WR_RDMA_WRITE: u32 = 0;
pub const PVRDMA_WR_RDMA_WRITE_WITH_IMM: u32 = 1;
pub const PVRDMA_WR_SEND: u32 = 2;
pub const PVRDMA_WR_SEND_WITH_IMM: u32 = 3;
pub const PVRDMA_WR_RDMA_READ: u32 = 4;
pub const PVRDMA_WR_ATOMIC_CMP_AND_SWP: u32 = 5;
pub const PVRDMA_WR_ATOMIC_FETCH_AND_ADD: u32 = 6;
pub const PVRDMA_WR_LSO: u32 = 7;
pub const PVRDMA_WR_SEND_WITH_INV: u32 = 8;
pub const PVRDMA_WR_RDMA_READ_WITH_INV: u32 = 9;
pub const PVRDMA_WR_LOCAL_INV: u32 = 10;
pub const PVRDMA_WR_FAST_REG_MR: u32 = 11;
pub const PVRDMA_WR_MASKED_ATOMIC_CMP_AND_SWP: u32 = 12;
pub const PVRDMA_WR_MASKED_ATOMIC_FETCH_AND_ADD: u32 = 13;
pub const PVRDMA_WR_BIND_MW: u32 = 14;
pub const PVRDMA_WR_REG_SIG_MR: u32 = 15;
pub const PVRDMA_WR_ERROR: u32 = 16;

// ---- enum pvrdma_wc_status ---------------------------------------------------------------------

pub const PVRDMA_WC_SUCCESS: u32 = 0;
pub const PVRDMA_WC_LOC_LEN_ERR: u32 = 1;
pub const PVRDMA_WC_LOC_QP_OP_ERR: u32 = 2;
pub const PVRDMA_WC_LOC_EEC_OP_ERR: u32 = 3;
pub const PVRDMA_WC_LOC_PROT_ERR: u32 = 4;
pub const PVRDMA_WC_WR_FLUSH_ERR: u32 = 5;
pub const PVRDMA_WC_MW_BIND_ERR: u32 = 6;
pub const PVRDMA_WC_BAD_RESP_ERR: u32 = 7;
pub const PVRDMA_WC_LOC_ACCESS_ERR: u32 = 8;
pub const PVRDMA_WC_REM_INV_REQ_ERR: u32 = 9;
pub const PVRDMA_WC_REM_ACCESS_ERR: u32 = 10;
pub const PVRDMA_WC_REM_OP_ERR: u32 = 11;
pub const PVRDMA_WC_RETRY_EXC_ERR: u32 = 12;
pub const PVRDMA_WC_RNR_RETRY_EXC_ERR: u32 = 13;
pub const PVRDMA_WC_LOC_RDD_VIOL_ERR: u32 = 14;
pub const PVRDMA_WC_REM_INV_RD_REQ_ERR: u32 = 15;
pub const PVRDMA_WC_REM_ABORT_ERR: u32 = 16;
pub const PVRDMA_WC_INV_EECN_ERR: u32 = 17;
pub const PVRDMA_WC_INV_EEC_STATE_ERR: u32 = 18;
pub const PVRDMA_WC_FATAL_ERR: u32 = 19;
pub const PVRDMA_WC_RESP_TIMEOUT_ERR: u32 = 20;
pub const PVRDMA_WC_GENERAL_ERR: u32 = 21;

// ---- enum pvrdma_wc_opcode ---------------------------------------------------------------------

pub const PVRDMA_WC_SEND: u32 = 0;
pub const PVRDMA_WC_RDMA_WRITE: u32 = 1;
pub const PVRDMA_WC_RDMA_READ: u32 = 2;
pub const PVRDMA_WC_COMP_SWAP: u32 = 3;
pub const PVRDMA_WC_FETCH_ADD: u32 = 4;
pub const PVRDMA_WC_BIND_MW: u32 = 5;
pub const PVRDMA_WC_LSO: u32 = 6;
pub const PVRDMA_WC_LOCAL_INV: u32 = 7;
pub const PVRDMA_WC_FAST_REG_MR: u32 = 8;
pub const PVRDMA_WC_MASKED_COMP_SWAP: u32 = 9;
pub const PVRDMA_WC_MASKED_FETCH_ADD: u32 = 10;
pub const PVRDMA_WC_RECV: u32 = 1 << 7;
pub const PVRDMA_WC_RECV_RDMA_WITH_IMM: u32 = PVRDMA_WC_RECV + 1;

// ---- enum pvrdma_wc_flags ----------------------------------------------------------------------

pub const PVRDMA_WC_GRH: u32 = 1 << 0;
pub const PVRDMA_WC_WITH_IMM: u32 = 1 << 1;
pub const PVRDMA_WC_WITH_INVALIDATE: u32 = 1 << 2;
pub const PVRDMA_WC_IP_CSUM_OK: u32 = 1 << 3;
pub const PVRDMA_WC_WITH_SMAC: u32 = 1 << 4;
pub const PVRDMA_WC_WITH_VLAN: u32 = 1 << 5;
pub const PVRDMA_WC_WITH_NETWORK_HDR_TYPE: u32 = 1 << 6;

// ---- enum pvrdma_network_type ------------------------------------------------------------------

pub const PVRDMA_NETWORK_IB: u8 = 0;
pub const PVRDMA_NETWORK_ROCE_V1: u8 = PVRDMA_NETWORK_IB;
pub const PVRDMA_NETWORK_IPV4: u8 = 1;
pub const PVRDMA_NETWORK_IPV6: u8 = 2;

// ---- enum pvrdma_send_flags, enum pvrdma_access_flags (pvrdma_verbs.h) -------------------------

pub const PVRDMA_SEND_FENCE: u32 = 1 << 0;
pub const PVRDMA_SEND_SIGNALED: u32 = 1 << 1;
pub const PVRDMA_SEND_SOLICITED: u32 = 1 << 2;
pub const PVRDMA_SEND_INLINE: u32 = 1 << 3;
pub const PVRDMA_SEND_IP_CSUM: u32 = 1 << 4;
/// Bits a WQE may carry; the kernel driver masks with the same value.
pub const PVRDMA_SEND_FLAGS_MASK: u32 = 0x1f;

pub const PVRDMA_ACCESS_LOCAL_WRITE: u32 = 1 << 0;
pub const PVRDMA_ACCESS_REMOTE_WRITE: u32 = 1 << 1;
pub const PVRDMA_ACCESS_REMOTE_READ: u32 = 1 << 2;
pub const PVRDMA_ACCESS_REMOTE_ATOMIC: u32 = 1 << 3;
pub const PVRDMA_ACCESS_MW_BIND: u32 = 1 << 4;
pub const PVRDMA_ZERO_BASED: u32 = 1 << 5;
pub const PVRDMA_ACCESS_ON_DEMAND: u32 = 1 << 6;

// ---- driver part of uverbs commands ------------------------------------------------------------

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_alloc_ucontext_resp {
    pub qp_tab_size: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_alloc_pd_resp {
    pub pdn: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_create_cq {
    pub buf_addr: u64,
    pub buf_size: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_create_cq_resp {
    pub cqn: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_resize_cq {
    pub buf_addr: u64,
    pub buf_size: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_create_srq {
    pub buf_addr: u64,
    pub buf_size: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_create_srq_resp {
    pub srqn: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_create_qp {
    pub rbuf_addr: u64,
    pub sbuf_addr: u64,
    pub rbuf_size: u32,
    pub sbuf_size: u32,
    pub qp_addr: u64,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_create_qp_resp {
    pub qpn: u32,
    pub qp_handle: u32,
}

// ---- rings -------------------------------------------------------------------------------------

/// `pvrdma_ring.h`: one producer and consumer counter pair. Aligned u32 words; each has one writer.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_ring {
    pub prod_tail: u32,
    pub cons_head: u32,
}

/// `pvrdma_ring.h`: head of the first page of every ring object. Send rings use `tx`; receive
/// rings, completion rings and the two event rings use `rx`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_ring_state {
    pub tx: pvrdma_ring,
    pub rx: pvrdma_ring,
}

// ---- work queue entries ------------------------------------------------------------------------

/// Parameters of the masked compare-and-swap, the tail of [`pvrdma_wr_masked_atomics`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_ex_cmp_swap {
    pub swap_val: u64,
    pub compare_val: u64,
    pub swap_mask: u64,
    pub compare_mask: u64,
}

/// Parameters of the masked fetch-and-add, at the place of [`pvrdma_ex_cmp_swap`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_ex_fetch_add {
    pub add_val: u64,
    pub field_boundary: u64,
}

/// Address vector inside a UD WQE.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_av {
    /// PD handle, port number in the top byte.
    pub port_pd: u32,
    pub sl_tclass_flowlabel: u32,
    pub dgid: [u8; 16],
    pub src_path_bits: u8,
    pub gid_index: u8,
    pub stat_rate: u8,
    pub hop_limit: u8,
    pub dmac: [u8; 6],
    pub reserved: [u8; 6],
}

/// Scatter/gather entry, in send and receive WQEs alike.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_sge {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

/// Head of a receive WQE (RQ and SRQ); `num_sge` entries of [`pvrdma_sge`] follow.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_rq_wqe_hdr {
    pub wr_id: u64,
    pub num_sge: u32,
    pub total_len: u32,
}

/// Head of a send WQE; `num_sge` entries of [`pvrdma_sge`] follow.
///
/// `wr` is a union in C. Its forms are [`pvrdma_wr_rdma`], [`pvrdma_wr_atomic`],
/// [`pvrdma_wr_masked_atomics`], [`pvrdma_wr_fast_reg`] and [`pvrdma_wr_ud`], each from byte 0 of
/// `wr`; read one with `read_from_prefix(&hdr.wr)`. Bytes the opcode does not define may be stale.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
pub struct pvrdma_sq_wqe_hdr {
    pub wr_id: u64,
    pub num_sge: u32,
    pub total_len: u32,
    pub opcode: u32,
    pub send_flags: u32,
    /// `imm_data` (big-endian) or `invalidate_rkey` (native).
    pub ex: u32,
    pub reserved: u32,
    pub wr: [u8; PVRDMA_SQ_WQE_WR_LEN],
}

/// Length of [`pvrdma_sq_wqe_hdr::wr`].
pub const PVRDMA_SQ_WQE_WR_LEN: usize = 48;

impl Default for pvrdma_sq_wqe_hdr {
    fn default() -> Self {
        Self {
            wr_id: 0,
            num_sge: 0,
            total_len: 0,
            opcode: 0,
            send_flags: 0,
            ex: 0,
            reserved: 0,
            wr: [0; PVRDMA_SQ_WQE_WR_LEN],
        }
    }
}

/// `pvrdma_sq_wqe_hdr.wr.rdma`: RDMA WRITE and READ.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_wr_rdma {
    pub remote_addr: u64,
    pub rkey: u32,
    pub reserved: [u8; 4],
}

/// `pvrdma_sq_wqe_hdr.wr.atomic`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_wr_atomic {
    pub remote_addr: u64,
    pub compare_add: u64,
    pub swap: u64,
    pub rkey: u32,
    pub reserved: u32,
}

/// `pvrdma_sq_wqe_hdr.wr.masked_atomics`; `wr_data` is a union of [`pvrdma_ex_cmp_swap`] and
/// [`pvrdma_ex_fetch_add`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_wr_masked_atomics {
    pub remote_addr: u64,
    pub log_arg_sz: u32,
    pub rkey: u32,
    pub wr_data: [u64; 4],
}

/// `pvrdma_sq_wqe_hdr.wr.fast_reg`: kernel users only.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_wr_fast_reg {
    pub iova_start: u64,
    pub pl_pdir_dma: u64,
    pub page_shift: u32,
    pub page_list_len: u32,
    pub length: u32,
    pub access_flags: u32,
    pub rkey: u32,
    pub reserved: u32,
}

/// `pvrdma_sq_wqe_hdr.wr.ud`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_wr_ud {
    pub remote_qpn: u32,
    pub remote_qkey: u32,
    pub av: pvrdma_av,
}

// ---- completion queue entry --------------------------------------------------------------------

/// Completion queue entry. It has no valid bit: the ring counters say who owns it.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cqe {
    pub wr_id: u64,
    /// Local QP handle, not the QP number.
    pub qp: u64,
    pub opcode: u32,
    pub status: u32,
    pub byte_len: u32,
    /// Big-endian immediate data, or the invalidated rkey in native order.
    pub imm_data: u32,
    pub src_qp: u32,
    pub wc_flags: u32,
    pub vendor_err: u32,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
    pub port_num: u8,
    pub smac: [u8; 6],
    pub network_hdr_type: u8,
    pub reserved2: [u8; 6],
}

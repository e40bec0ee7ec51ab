//! What the kernel driver and the PCI function agree on: registers, device shared region, command
//! slot, event rings (`pvrdma_dev_api.h`) and the attributes that travel in commands
//! (`pvrdma_verbs.h`). Both headers are private to the driver, yet they are the device's contract.
//!
//! Used by the device: the vfio-user front decodes these bytes, the kernel stand-in builds the same
//! commands. User space never sees them. Offsets are checked in `tests/layout.rs`.
#![allow(missing_docs, reason = "fields and values carry the driver's names")]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// ---- PCI function ------------------------------------------------------------------------------

pub const PVRDMA_PCI_RESOURCE_MSIX: usize = 0;
pub const PVRDMA_PCI_RESOURCE_REG: usize = 1;
pub const PVRDMA_PCI_RESOURCE_UAR: usize = 2;

/// Function 0 of the same slot must be this device, with a driver bound to it.
pub const PCI_DEVICE_ID_VMWARE_VMXNET3: u16 = 0x07b0;

/// Interface versions the VERSION register may hold.
pub const PVRDMA_ROCEV1_VERSION: u32 = 17;
pub const PVRDMA_ROCEV2_VERSION: u32 = 18;
pub const PVRDMA_PPN64_VERSION: u32 = 19;
pub const PVRDMA_QPHANDLE_VERSION: u32 = 20;
pub const PVRDMA_VERSION: u32 = PVRDMA_QPHANDLE_VERSION;

pub const PVRDMA_BOARD_ID: u32 = 1;
pub const PVRDMA_REV_ID: u32 = 1;

// ---- registers (BAR 1) -------------------------------------------------------------------------

pub const PVRDMA_REG_VERSION: u32 = 0x00;
pub const PVRDMA_REG_DSRLOW: u32 = 0x04;
pub const PVRDMA_REG_DSRHIGH: u32 = 0x08;
pub const PVRDMA_REG_CTL: u32 = 0x0c;
pub const PVRDMA_REG_REQUEST: u32 = 0x10;
pub const PVRDMA_REG_ERR: u32 = 0x14;
pub const PVRDMA_REG_ICR: u32 = 0x18;
pub const PVRDMA_REG_IMR: u32 = 0x1c;
pub const PVRDMA_REG_MACL: u32 = 0x20;
pub const PVRDMA_REG_MACH: u32 = 0x24;

pub const PVRDMA_DEVICE_CTL_ACTIVATE: u32 = 0;
pub const PVRDMA_DEVICE_CTL_UNQUIESCE: u32 = 1;
pub const PVRDMA_DEVICE_CTL_RESET: u32 = 2;

pub const PVRDMA_INTR_VECTOR_RESPONSE: u32 = 0;
pub const PVRDMA_INTR_VECTOR_ASYNC: u32 = 1;
pub const PVRDMA_INTR_VECTOR_CQ: u32 = 2;
pub const PVRDMA_MAX_INTERRUPTS: u32 = 3;

pub const PVRDMA_INTR_CAUSE_RESPONSE: u32 = 1 << PVRDMA_INTR_VECTOR_RESPONSE;
pub const PVRDMA_INTR_CAUSE_ASYNC: u32 = 1 << PVRDMA_INTR_VECTOR_ASYNC;
pub const PVRDMA_INTR_CAUSE_CQ: u32 = 1 << PVRDMA_INTR_VECTOR_CQ;

// ---- page directories --------------------------------------------------------------------------

/// Entries of a directory page and of a table page.
pub const PVRDMA_PAGE_DIR_ENTRIES: u32 = 512;
/// Pages one directory can describe: 1 GiB.
pub const PVRDMA_PAGE_DIR_MAX_PAGES: u32 = PVRDMA_PAGE_DIR_ENTRIES * PVRDMA_PAGE_DIR_ENTRIES;
/// Longest page list of a fast-register work request.
pub const PVRDMA_MAX_FAST_REG_PAGES: u32 = 128;

// ---- device shared region ----------------------------------------------------------------------

pub const PVRDMA_GOS_BITS_UNK: u32 = 0;
pub const PVRDMA_GOS_BITS_32: u32 = 1;
pub const PVRDMA_GOS_BITS_64: u32 = 2;
pub const PVRDMA_GOS_TYPE_UNK: u32 = 0;
pub const PVRDMA_GOS_TYPE_LINUX: u32 = 1;

pub const PVRDMA_DEVICE_MODE_ROCE: u8 = 0;
pub const PVRDMA_DEVICE_MODE_IWARP: u8 = 1;
pub const PVRDMA_DEVICE_MODE_IB: u8 = 2;

pub const PVRDMA_GID_TYPE_FLAG_ROCE_V1: u8 = 1 << 0;
pub const PVRDMA_GID_TYPE_FLAG_ROCE_V2: u8 = 1 << 1;

pub const PVRDMA_ATOMIC_OP_COMP_SWAP: u8 = 1 << 0;
pub const PVRDMA_ATOMIC_OP_FETCH_ADD: u8 = 1 << 1;
pub const PVRDMA_ATOMIC_OP_MASK_COMP_SWAP: u8 = 1 << 2;
pub const PVRDMA_ATOMIC_OP_MASK_FETCH_ADD: u8 = 1 << 3;

pub const PVRDMA_BMME_FLAG_LOCAL_INV: u8 = 1 << 0;
pub const PVRDMA_BMME_FLAG_REMOTE_INV: u8 = 1 << 1;
pub const PVRDMA_BMME_FLAG_FAST_REG_WR: u8 = 1 << 2;

/// Pages of each event ring, the ring state page included.
pub const PVRDMA_NUM_RING_PAGES: u32 = 4;
/// Ring state pages at the head of a QP buffer.
pub const PVRDMA_QP_NUM_HEADER_PAGES: u32 = 1;

/// Guest operating system, packed: bits 1:0 width, 5:2 type, 21:6 version, 31:22 misc.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_gos_info {
    pub gos: u32,
    pub pad: u32,
}

/// Where an event ring lives; `num_pages` counts the ring state page.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_ring_page_info {
    pub num_pages: u32,
    pub reserved: u32,
    pub pdir_dma: u64,
}

/// Capabilities, filled by the device before the write of DSRHIGH completes, constant afterwards.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_device_caps {
    pub fw_ver: u64,
    /// Big-endian.
    pub node_guid: u64,
    /// Big-endian.
    pub sys_image_guid: u64,
    pub max_mr_size: u64,
    pub page_size_cap: u64,
    pub atomic_arg_sizes: u64,
    pub ex_comp_mask: u32,
    pub device_cap_flags2: u32,
    pub max_fa_bit_boundary: u32,
    pub log_max_atomic_inline_arg: u32,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub hw_ver: u32,
    pub max_qp: u32,
    pub max_qp_wr: u32,
    pub device_cap_flags: u32,
    pub max_sge: u32,
    pub max_sge_rd: u32,
    pub max_cq: u32,
    pub max_cqe: u32,
    pub max_mr: u32,
    pub max_pd: u32,
    pub max_qp_rd_atom: u32,
    pub max_ee_rd_atom: u32,
    pub max_res_rd_atom: u32,
    pub max_qp_init_rd_atom: u32,
    pub max_ee_init_rd_atom: u32,
    pub max_ee: u32,
    pub max_rdd: u32,
    pub max_mw: u32,
    pub max_raw_ipv6_qp: u32,
    pub max_raw_ethy_qp: u32,
    pub max_mcast_grp: u32,
    pub max_mcast_qp_attach: u32,
    pub max_total_mcast_qp_attach: u32,
    pub max_ah: u32,
    pub max_fmr: u32,
    pub max_map_per_fmr: u32,
    pub max_srq: u32,
    pub max_srq_wr: u32,
    pub max_srq_sge: u32,
    pub max_uar: u32,
    pub gid_tbl_len: u32,
    pub max_pkeys: u16,
    pub local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
    pub mode: u8,
    pub atomic_ops: u8,
    pub bmme_flags: u8,
    pub gid_types: u8,
    pub max_fast_reg_page_list_len: u32,
}

/// The device shared region ("DSR"). The driver fills everything but `caps`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_device_shared_region {
    pub driver_version: u32,
    pub pad: u32,
    pub gos_info: pvrdma_gos_info,
    pub cmd_slot_dma: u64,
    pub resp_slot_dma: u64,
    pub async_ring_pages: pvrdma_ring_page_info,
    pub cq_ring_pages: pvrdma_ring_page_info,
    /// Page frame of UAR page 0. Only the low 32 bits are valid below [`PVRDMA_PPN64_VERSION`].
    pub uar_pfn64: u64,
    pub caps: pvrdma_device_caps,
}

// ---- event rings -------------------------------------------------------------------------------

/// Async event ring entry. What `info` holds depends on the event type.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_eqe {
    /// `type` in C: one of `PVRDMA_EVENT_*`.
    pub type_: u32,
    pub info: u32,
}

/// CQ notification ring entry.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cqne {
    /// CQ handle.
    pub info: u32,
}

pub const PVRDMA_EVENT_CQ_ERR: u32 = 0;
pub const PVRDMA_EVENT_QP_FATAL: u32 = 1;
pub const PVRDMA_EVENT_QP_REQ_ERR: u32 = 2;
pub const PVRDMA_EVENT_QP_ACCESS_ERR: u32 = 3;
pub const PVRDMA_EVENT_COMM_EST: u32 = 4;
pub const PVRDMA_EVENT_SQ_DRAINED: u32 = 5;
pub const PVRDMA_EVENT_PATH_MIG: u32 = 6;
pub const PVRDMA_EVENT_PATH_MIG_ERR: u32 = 7;
pub const PVRDMA_EVENT_DEVICE_FATAL: u32 = 8;
pub const PVRDMA_EVENT_PORT_ACTIVE: u32 = 9;
pub const PVRDMA_EVENT_PORT_ERR: u32 = 10;
pub const PVRDMA_EVENT_LID_CHANGE: u32 = 11;
pub const PVRDMA_EVENT_PKEY_CHANGE: u32 = 12;
pub const PVRDMA_EVENT_SM_CHANGE: u32 = 13;
pub const PVRDMA_EVENT_SRQ_ERR: u32 = 14;
pub const PVRDMA_EVENT_SRQ_LIMIT_REACHED: u32 = 15;
pub const PVRDMA_EVENT_QP_LAST_WQE_REACHED: u32 = 16;
pub const PVRDMA_EVENT_CLIENT_REREGISTER: u32 = 17;
pub const PVRDMA_EVENT_GID_CHANGE: u32 = 18;

// ---- commands ----------------------------------------------------------------------------------

pub const PVRDMA_CMD_QUERY_PORT: u32 = 0;
pub const PVRDMA_CMD_QUERY_PKEY: u32 = 1;
pub const PVRDMA_CMD_CREATE_PD: u32 = 2;
pub const PVRDMA_CMD_DESTROY_PD: u32 = 3;
pub const PVRDMA_CMD_CREATE_MR: u32 = 4;
pub const PVRDMA_CMD_DESTROY_MR: u32 = 5;
pub const PVRDMA_CMD_CREATE_CQ: u32 = 6;
pub const PVRDMA_CMD_RESIZE_CQ: u32 = 7;
pub const PVRDMA_CMD_DESTROY_CQ: u32 = 8;
pub const PVRDMA_CMD_CREATE_QP: u32 = 9;
pub const PVRDMA_CMD_MODIFY_QP: u32 = 10;
pub const PVRDMA_CMD_QUERY_QP: u32 = 11;
pub const PVRDMA_CMD_DESTROY_QP: u32 = 12;
pub const PVRDMA_CMD_CREATE_UC: u32 = 13;
pub const PVRDMA_CMD_DESTROY_UC: u32 = 14;
pub const PVRDMA_CMD_CREATE_BIND: u32 = 15;
pub const PVRDMA_CMD_DESTROY_BIND: u32 = 16;
pub const PVRDMA_CMD_CREATE_SRQ: u32 = 17;
pub const PVRDMA_CMD_MODIFY_SRQ: u32 = 18;
pub const PVRDMA_CMD_QUERY_SRQ: u32 = 19;
pub const PVRDMA_CMD_DESTROY_SRQ: u32 = 20;
/// One past the last command.
pub const PVRDMA_CMD_MAX: u32 = 21;
/// `ack` of a response is this plus the command number.
pub const PVRDMA_CMD_FIRST_RESP: u32 = 1 << 31;

/// Bytes the driver copies into the command slot, whatever the command.
pub const PVRDMA_CMD_REQ_LEN: usize = 184;
/// Bytes the driver copies out of the response slot.
pub const PVRDMA_CMD_RESP_LEN: usize = 176;

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_hdr {
    /// Opaque to the device; echoed in the response.
    pub response: u64,
    pub cmd: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_resp_hdr {
    pub response: u64,
    pub ack: u32,
    pub err: u8,
    pub reserved: [u8; 3],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_query_port {
    pub hdr: pvrdma_cmd_hdr,
    pub port_num: u8,
    pub reserved: [u8; 7],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_query_port_resp {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub attrs: pvrdma_port_attr,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_query_pkey {
    pub hdr: pvrdma_cmd_hdr,
    pub port_num: u8,
    pub index: u8,
    pub reserved: [u8; 6],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_query_pkey_resp {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub pkey: u16,
    pub reserved: [u8; 6],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_uc {
    pub hdr: pvrdma_cmd_hdr,
    /// Page frame of the UAR page. Only the low 32 bits below [`PVRDMA_PPN64_VERSION`].
    pub pfn64: u64,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_uc_resp {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub ctx_handle: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_destroy_uc {
    pub hdr: pvrdma_cmd_hdr,
    pub ctx_handle: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_pd {
    pub hdr: pvrdma_cmd_hdr,
    pub ctx_handle: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_pd_resp {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub pd_handle: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_destroy_pd {
    pub hdr: pvrdma_cmd_hdr,
    pub pd_handle: u32,
    pub reserved: [u8; 4],
}

/// `start` is the user virtual address; the device never learns another iova.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_mr {
    pub hdr: pvrdma_cmd_hdr,
    pub start: u64,
    pub length: u64,
    pub pdir_dma: u64,
    pub pd_handle: u32,
    pub access_flags: u32,
    pub flags: u32,
    pub nchunks: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_mr_resp {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub mr_handle: u32,
    pub lkey: u32,
    pub rkey: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_destroy_mr {
    pub hdr: pvrdma_cmd_hdr,
    pub mr_handle: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_cq {
    pub hdr: pvrdma_cmd_hdr,
    pub pdir_dma: u64,
    pub ctx_handle: u32,
    pub cqe: u32,
    pub nchunks: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_cq_resp {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub cq_handle: u32,
    pub cqe: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_resize_cq {
    pub hdr: pvrdma_cmd_hdr,
    pub cq_handle: u32,
    pub cqe: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_resize_cq_resp {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub cqe: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_destroy_cq {
    pub hdr: pvrdma_cmd_hdr,
    pub cq_handle: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_srq {
    pub hdr: pvrdma_cmd_hdr,
    pub pdir_dma: u64,
    pub pd_handle: u32,
    pub nchunks: u32,
    pub attrs: pvrdma_srq_attr,
    pub srq_type: u8,
    pub reserved: [u8; 7],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_srq_resp {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub srqn: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_modify_srq {
    pub hdr: pvrdma_cmd_hdr,
    pub srq_handle: u32,
    pub attr_mask: u32,
    pub attrs: pvrdma_srq_attr,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_query_srq {
    pub hdr: pvrdma_cmd_hdr,
    pub srq_handle: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_query_srq_resp {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub attrs: pvrdma_srq_attr,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_destroy_srq {
    pub hdr: pvrdma_cmd_hdr,
    pub srq_handle: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_qp {
    pub hdr: pvrdma_cmd_hdr,
    pub pdir_dma: u64,
    pub pd_handle: u32,
    pub send_cq_handle: u32,
    pub recv_cq_handle: u32,
    pub srq_handle: u32,
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
    pub lkey: u32,
    pub access_flags: u32,
    /// All pages of the ring: one state page, the SQ's, the RQ's.
    pub total_chunks: u16,
    /// Pages of the SQ, without the state page.
    pub send_chunks: u16,
    pub max_atomic_arg: u16,
    pub sq_sig_all: u8,
    pub qp_type: u8,
    pub is_srq: u8,
    pub reserved: [u8; 3],
}

/// Answer of a device below [`PVRDMA_QPHANDLE_VERSION`]: the handle is the QP number.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_qp_resp {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub qpn: u32,
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

/// Answer of a device at [`PVRDMA_QPHANDLE_VERSION`] or above.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_qp_resp_v2 {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub qpn: u32,
    pub qp_handle: u32,
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_modify_qp {
    pub hdr: pvrdma_cmd_hdr,
    pub qp_handle: u32,
    pub attr_mask: u32,
    pub attrs: pvrdma_qp_attr,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_query_qp {
    pub hdr: pvrdma_cmd_hdr,
    pub qp_handle: u32,
    pub attr_mask: u32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_query_qp_resp {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub attrs: pvrdma_qp_attr,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_destroy_qp {
    pub hdr: pvrdma_cmd_hdr,
    pub qp_handle: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_destroy_qp_resp {
    pub hdr: pvrdma_cmd_resp_hdr,
    pub events_reported: u32,
    pub reserved: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_create_bind {
    pub hdr: pvrdma_cmd_hdr,
    /// Bytes, not the MTU enumeration.
    pub mtu: u32,
    /// 0xfff: none.
    pub vlan: u32,
    pub index: u32,
    pub new_gid: [u8; 16],
    pub gid_type: u8,
    pub reserved: [u8; 3],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_cmd_destroy_bind {
    pub hdr: pvrdma_cmd_hdr,
    pub index: u32,
    pub dest_gid: [u8; 16],
    pub reserved: [u8; 4],
}

// ---- attributes (pvrdma_verbs.h) ---------------------------------------------------------------

pub const PVRDMA_MR_FLAG_DMA: u32 = 1 << 0;
pub const PVRDMA_MR_FLAG_FRMR: u32 = 1 << 1;

pub const PVRDMA_CQ_FLAG_ARMED_SOL: u32 = 1 << 0;
pub const PVRDMA_CQ_FLAG_ARMED: u32 = 1 << 1;

pub const PVRDMA_MTU_256: u32 = 1;
pub const PVRDMA_MTU_512: u32 = 2;
pub const PVRDMA_MTU_1024: u32 = 3;
pub const PVRDMA_MTU_2048: u32 = 4;
pub const PVRDMA_MTU_4096: u32 = 5;

pub const PVRDMA_PORT_NOP: u32 = 0;
pub const PVRDMA_PORT_DOWN: u32 = 1;
pub const PVRDMA_PORT_INIT: u32 = 2;
pub const PVRDMA_PORT_ARMED: u32 = 3;
pub const PVRDMA_PORT_ACTIVE: u32 = 4;
pub const PVRDMA_PORT_ACTIVE_DEFER: u32 = 5;

pub const PVRDMA_PORT_PHYS_DISABLED: u8 = 3;
pub const PVRDMA_PORT_PHYS_LINK_UP: u8 = 5;

pub const PVRDMA_WIDTH_1X: u8 = 1;
pub const PVRDMA_WIDTH_4X: u8 = 2;
pub const PVRDMA_WIDTH_8X: u8 = 4;
pub const PVRDMA_WIDTH_12X: u8 = 8;

pub const PVRDMA_SPEED_SDR: u8 = 1;
pub const PVRDMA_SPEED_DDR: u8 = 2;
pub const PVRDMA_SPEED_QDR: u8 = 4;
pub const PVRDMA_SPEED_FDR10: u8 = 8;
pub const PVRDMA_SPEED_FDR: u8 = 16;
pub const PVRDMA_SPEED_EDR: u8 = 32;

/// Communication management is supported: the driver sets it in what it reports upwards.
pub const PVRDMA_PORT_CM_SUP: u32 = 1 << 16;
/// GIDs are IP addresses.
pub const PVRDMA_PORT_IP_BASED_GIDS: u32 = 1 << 26;

pub const PVRDMA_QPT_SMI: u8 = 0;
pub const PVRDMA_QPT_GSI: u8 = 1;
pub const PVRDMA_QPT_RC: u8 = 2;
pub const PVRDMA_QPT_UC: u8 = 3;
pub const PVRDMA_QPT_UD: u8 = 4;

pub const PVRDMA_QPS_RESET: u32 = 0;
pub const PVRDMA_QPS_INIT: u32 = 1;
pub const PVRDMA_QPS_RTR: u32 = 2;
pub const PVRDMA_QPS_RTS: u32 = 3;
pub const PVRDMA_QPS_SQD: u32 = 4;
pub const PVRDMA_QPS_SQE: u32 = 5;
pub const PVRDMA_QPS_ERR: u32 = 6;

pub const PVRDMA_MIG_MIGRATED: u32 = 0;
pub const PVRDMA_MIG_REARM: u32 = 1;
pub const PVRDMA_MIG_ARMED: u32 = 2;

pub const PVRDMA_QP_STATE: u32 = 1 << 0;
pub const PVRDMA_QP_CUR_STATE: u32 = 1 << 1;
pub const PVRDMA_QP_EN_SQD_ASYNC_NOTIFY: u32 = 1 << 2;
pub const PVRDMA_QP_ACCESS_FLAGS: u32 = 1 << 3;
pub const PVRDMA_QP_PKEY_INDEX: u32 = 1 << 4;
pub const PVRDMA_QP_PORT: u32 = 1 << 5;
pub const PVRDMA_QP_QKEY: u32 = 1 << 6;
pub const PVRDMA_QP_AV: u32 = 1 << 7;
pub const PVRDMA_QP_PATH_MTU: u32 = 1 << 8;
pub const PVRDMA_QP_TIMEOUT: u32 = 1 << 9;
pub const PVRDMA_QP_RETRY_CNT: u32 = 1 << 10;
pub const PVRDMA_QP_RNR_RETRY: u32 = 1 << 11;
pub const PVRDMA_QP_RQ_PSN: u32 = 1 << 12;
pub const PVRDMA_QP_MAX_QP_RD_ATOMIC: u32 = 1 << 13;
pub const PVRDMA_QP_ALT_PATH: u32 = 1 << 14;
pub const PVRDMA_QP_MIN_RNR_TIMER: u32 = 1 << 15;
pub const PVRDMA_QP_SQ_PSN: u32 = 1 << 16;
pub const PVRDMA_QP_MAX_DEST_RD_ATOMIC: u32 = 1 << 17;
pub const PVRDMA_QP_PATH_MIG_STATE: u32 = 1 << 18;
pub const PVRDMA_QP_CAP: u32 = 1 << 19;
pub const PVRDMA_QP_DEST_QPN: u32 = 1 << 20;
pub const PVRDMA_QP_ATTR_MASK: u32 = (1 << 21) - 1;

pub const PVRDMA_SRQ_MAX_WR: u32 = 1 << 0;
pub const PVRDMA_SRQ_LIMIT: u32 = 1 << 1;

pub const PVRDMA_SRQT_BASIC: u8 = 0;

pub const PVRDMA_AH_GRH: u8 = 1 << 0;

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_port_attr {
    pub state: u32,
    pub max_mtu: u32,
    pub active_mtu: u32,
    pub gid_tbl_len: u32,
    pub port_cap_flags: u32,
    pub max_msg_sz: u32,
    pub bad_pkey_cntr: u32,
    pub qkey_viol_cntr: u32,
    pub pkey_tbl_len: u16,
    pub lid: u16,
    pub sm_lid: u16,
    pub lmc: u8,
    pub max_vl_num: u8,
    pub sm_sl: u8,
    pub subnet_timeout: u8,
    pub init_type_reply: u8,
    pub active_width: u8,
    pub active_speed: u8,
    pub phys_state: u8,
    pub reserved: [u8; 2],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_global_route {
    pub dgid: [u8; 16],
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
    pub reserved: u8,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_ah_attr {
    pub grh: pvrdma_global_route,
    pub dlid: u16,
    /// Never filled by the kernel driver.
    pub vlan_id: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub ah_flags: u8,
    pub port_num: u8,
    pub dmac: [u8; 6],
    pub reserved: u8,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_qp_cap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
    pub reserved: u32,
}

/// Only the fields whose bit is in the command's `attr_mask` are valid.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_qp_attr {
    pub qp_state: u32,
    pub cur_qp_state: u32,
    pub path_mtu: u32,
    pub path_mig_state: u32,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: u32,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub reserved: [u8; 5],
    pub cap: pvrdma_qp_cap,
    pub ah_attr: pvrdma_ah_attr,
    pub alt_ah_attr: pvrdma_ah_attr,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug, Default)]
pub struct pvrdma_srq_attr {
    pub max_wr: u32,
    pub max_sge: u32,
    pub srq_limit: u32,
    pub reserved: u32,
}

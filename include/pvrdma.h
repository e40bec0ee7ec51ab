/* Layouts of VMware's PVRDMA device. Made from ffi/ by `cargo xtask headers`: do not edit. */

#ifndef PVRDMA_H
#define PVRDMA_H

#include <stdint.h>

/*
 * What <rdma/vmw_pvrdma-abi.h> of Linux has too: taken from there if that was included before, and not again from there
 * after this.
 */
#ifndef __VMW_PVRDMA_ABI_H__
#define __VMW_PVRDMA_ABI_H__
#define PVRDMA_H_HAS_ABI

/*
 `uverbs` driver ABI: the only value in use since the first release.
 */
#define PVRDMA_UVERBS_ABI_VERSION 3

/*
 Low 24 bits of every doorbell: the QP, CQ or SRQ handle.
 */
#define PVRDMA_UAR_HANDLE_MASK 16777215

/*
 Byte offset of the QP doorbell.
 */
#define PVRDMA_UAR_QP_OFFSET 0

#define PVRDMA_UAR_QP_SEND (1u << 30)

#define PVRDMA_UAR_QP_RECV (1u << 31)

/*
 Byte offset of the CQ doorbell.
 */
#define PVRDMA_UAR_CQ_OFFSET 4

#define PVRDMA_UAR_CQ_ARM_SOL (1u << 29)

#define PVRDMA_UAR_CQ_ARM (1u << 30)

#define PVRDMA_UAR_CQ_POLL (1u << 31)

/*
 Byte offset of the SRQ doorbell.
 */
#define PVRDMA_UAR_SRQ_OFFSET 8

#define PVRDMA_UAR_SRQ_RECV (1u << 30)

enum pvrdma_wr_opcode {
    PVRDMA_WR_RDMA_WRITE = 0,
    PVRDMA_WR_RDMA_WRITE_WITH_IMM = 1,
    PVRDMA_WR_SEND = 2,
    PVRDMA_WR_SEND_WITH_IMM = 3,
    PVRDMA_WR_RDMA_READ = 4,
    PVRDMA_WR_ATOMIC_CMP_AND_SWP = 5,
    PVRDMA_WR_ATOMIC_FETCH_AND_ADD = 6,
    PVRDMA_WR_LSO = 7,
    PVRDMA_WR_SEND_WITH_INV = 8,
    PVRDMA_WR_RDMA_READ_WITH_INV = 9,
    PVRDMA_WR_LOCAL_INV = 10,
    PVRDMA_WR_FAST_REG_MR = 11,
    PVRDMA_WR_MASKED_ATOMIC_CMP_AND_SWP = 12,
    PVRDMA_WR_MASKED_ATOMIC_FETCH_AND_ADD = 13,
    PVRDMA_WR_BIND_MW = 14,
    PVRDMA_WR_REG_SIG_MR = 15,
    PVRDMA_WR_ERROR = 16
};

enum pvrdma_wc_status {
    PVRDMA_WC_SUCCESS = 0,
    PVRDMA_WC_LOC_LEN_ERR = 1,
    PVRDMA_WC_LOC_QP_OP_ERR = 2,
    PVRDMA_WC_LOC_EEC_OP_ERR = 3,
    PVRDMA_WC_LOC_PROT_ERR = 4,
    PVRDMA_WC_WR_FLUSH_ERR = 5,
    PVRDMA_WC_MW_BIND_ERR = 6,
    PVRDMA_WC_BAD_RESP_ERR = 7,
    PVRDMA_WC_LOC_ACCESS_ERR = 8,
    PVRDMA_WC_REM_INV_REQ_ERR = 9,
    PVRDMA_WC_REM_ACCESS_ERR = 10,
    PVRDMA_WC_REM_OP_ERR = 11,
    PVRDMA_WC_RETRY_EXC_ERR = 12,
    PVRDMA_WC_RNR_RETRY_EXC_ERR = 13,
    PVRDMA_WC_LOC_RDD_VIOL_ERR = 14,
    PVRDMA_WC_REM_INV_RD_REQ_ERR = 15,
    PVRDMA_WC_REM_ABORT_ERR = 16,
    PVRDMA_WC_INV_EECN_ERR = 17,
    PVRDMA_WC_INV_EEC_STATE_ERR = 18,
    PVRDMA_WC_FATAL_ERR = 19,
    PVRDMA_WC_RESP_TIMEOUT_ERR = 20,
    PVRDMA_WC_GENERAL_ERR = 21
};

enum pvrdma_wc_opcode {
    PVRDMA_WC_SEND = 0,
    PVRDMA_WC_RDMA_WRITE = 1,
    PVRDMA_WC_RDMA_READ = 2,
    PVRDMA_WC_COMP_SWAP = 3,
    PVRDMA_WC_FETCH_ADD = 4,
    PVRDMA_WC_BIND_MW = 5,
    PVRDMA_WC_LSO = 6,
    PVRDMA_WC_LOCAL_INV = 7,
    PVRDMA_WC_FAST_REG_MR = 8,
    PVRDMA_WC_MASKED_COMP_SWAP = 9,
    PVRDMA_WC_MASKED_FETCH_ADD = 10,
    PVRDMA_WC_RECV = (1u << 7),
    PVRDMA_WC_RECV_RDMA_WITH_IMM = (PVRDMA_WC_RECV + 1)
};

enum pvrdma_wc_flags {
    PVRDMA_WC_GRH = (1u << 0),
    PVRDMA_WC_WITH_IMM = (1u << 1),
    PVRDMA_WC_WITH_INVALIDATE = (1u << 2),
    PVRDMA_WC_IP_CSUM_OK = (1u << 3),
    PVRDMA_WC_WITH_SMAC = (1u << 4),
    PVRDMA_WC_WITH_VLAN = (1u << 5),
    PVRDMA_WC_WITH_NETWORK_HDR_TYPE = (1u << 6)
};

enum pvrdma_network_type {
    PVRDMA_NETWORK_IB = 0,
    PVRDMA_NETWORK_ROCE_V1 = PVRDMA_NETWORK_IB,
    PVRDMA_NETWORK_IPV4 = 1,
    PVRDMA_NETWORK_IPV6 = 2
};

struct pvrdma_alloc_ucontext_resp {
    uint32_t qp_tab_size;
    uint32_t reserved;
};

struct pvrdma_alloc_pd_resp {
    uint32_t pdn;
    uint32_t reserved;
};

struct pvrdma_create_cq {
    uint64_t buf_addr;
    uint32_t buf_size;
    uint32_t reserved;
};

struct pvrdma_create_cq_resp {
    uint32_t cqn;
    uint32_t reserved;
};

struct pvrdma_resize_cq {
    uint64_t buf_addr;
    uint32_t buf_size;
    uint32_t reserved;
};

struct pvrdma_create_srq {
    uint64_t buf_addr;
    uint32_t buf_size;
    uint32_t reserved;
};

struct pvrdma_create_srq_resp {
    uint32_t srqn;
    uint32_t reserved;
};

struct pvrdma_create_qp {
    uint64_t rbuf_addr;
    uint64_t sbuf_addr;
    uint32_t rbuf_size;
    uint32_t sbuf_size;
    uint64_t qp_addr;
};

struct pvrdma_create_qp_resp {
    uint32_t qpn;
    uint32_t qp_handle;
};

/*
 Parameters of the masked compare-and-swap, the tail of [`pvrdma_wr_masked_atomics`].
 */
struct pvrdma_ex_cmp_swap {
    uint64_t swap_val;
    uint64_t compare_val;
    uint64_t swap_mask;
    uint64_t compare_mask;
};

/*
 Parameters of the masked fetch-and-add, at the place of [`pvrdma_ex_cmp_swap`].
 */
struct pvrdma_ex_fetch_add {
    uint64_t add_val;
    uint64_t field_boundary;
};

/*
 Address vector inside a UD WQE.
 */
struct pvrdma_av {
    /*
     PD handle, port number in the top byte.
     */
    uint32_t port_pd;
    uint32_t sl_tclass_flowlabel;
    uint8_t dgid[16];
    uint8_t src_path_bits;
    uint8_t gid_index;
    uint8_t stat_rate;
    uint8_t hop_limit;
    uint8_t dmac[6];
    uint8_t reserved[6];
};

/*
 Scatter/gather entry, in send and receive WQEs alike.
 */
struct pvrdma_sge {
    uint64_t addr;
    uint32_t length;
    uint32_t lkey;
};

/*
 Head of a receive WQE (RQ and SRQ); `num_sge` entries of [`pvrdma_sge`] follow.
 */
struct pvrdma_rq_wqe_hdr {
    uint64_t wr_id;
    uint32_t num_sge;
    uint32_t total_len;
};

/*
 Completion queue entry. It has no valid bit: the ring counters say who owns it.
 */
struct pvrdma_cqe {
    uint64_t wr_id;
    /*
     Local QP handle, not the QP number.
     */
    uint64_t qp;
    uint32_t opcode;
    uint32_t status;
    uint32_t byte_len;
    /*
     Big-endian immediate data, or the invalidated rkey in native order.
     */
    uint32_t imm_data;
    uint32_t src_qp;
    uint32_t wc_flags;
    uint32_t vendor_err;
    uint16_t pkey_index;
    uint16_t slid;
    uint8_t sl;
    uint8_t dlid_path_bits;
    uint8_t port_num;
    uint8_t smac[6];
    uint8_t network_hdr_type;
    uint8_t reserved2[6];
};

#endif /* __VMW_PVRDMA_ABI_H__ */

/*
 PCI vendor of the function.
 */
#define PCI_VENDOR_ID_VMWARE 5549

/*
 PCI device of the function.
 */
#define PCI_DEVICE_ID_VMWARE_PVRDMA 2080

/*
 Length of a UAR page, of the ring state area, and of every page the device is told about.
 */
#define PVRDMA_PAGE_SIZE 4096

#define PVRDMA_SEND_FENCE (1u << 0)

#define PVRDMA_SEND_SIGNALED (1u << 1)

#define PVRDMA_SEND_SOLICITED (1u << 2)

#define PVRDMA_SEND_INLINE (1u << 3)

#define PVRDMA_SEND_IP_CSUM (1u << 4)

/*
 Bits a WQE may carry; the kernel driver masks with the same value.
 */
#define PVRDMA_SEND_FLAGS_MASK 31

#define PVRDMA_ACCESS_LOCAL_WRITE (1u << 0)

#define PVRDMA_ACCESS_REMOTE_WRITE (1u << 1)

#define PVRDMA_ACCESS_REMOTE_READ (1u << 2)

#define PVRDMA_ACCESS_REMOTE_ATOMIC (1u << 3)

#define PVRDMA_ACCESS_MW_BIND (1u << 4)

#define PVRDMA_ZERO_BASED (1u << 5)

#define PVRDMA_ACCESS_ON_DEMAND (1u << 6)

/*
 Length of [`pvrdma_sq_wqe_hdr::wr`].
 */
#define PVRDMA_SQ_WQE_WR_LEN 48

#define PVRDMA_PCI_RESOURCE_MSIX 0

#define PVRDMA_PCI_RESOURCE_REG 1

#define PVRDMA_PCI_RESOURCE_UAR 2

/*
 Function 0 of the same slot must be this device, with a driver bound to it.
 */
#define PCI_DEVICE_ID_VMWARE_VMXNET3 1968

/*
 Interface versions the VERSION register may hold.
 */
#define PVRDMA_ROCEV1_VERSION 17

#define PVRDMA_ROCEV2_VERSION 18

#define PVRDMA_PPN64_VERSION 19

#define PVRDMA_QPHANDLE_VERSION 20

#define PVRDMA_VERSION PVRDMA_QPHANDLE_VERSION

#define PVRDMA_BOARD_ID 1

#define PVRDMA_REV_ID 1

#define PVRDMA_REG_VERSION 0

#define PVRDMA_REG_DSRLOW 4

#define PVRDMA_REG_DSRHIGH 8

#define PVRDMA_REG_CTL 12

#define PVRDMA_REG_REQUEST 16

#define PVRDMA_REG_ERR 20

#define PVRDMA_REG_ICR 24

#define PVRDMA_REG_IMR 28

#define PVRDMA_REG_MACL 32

#define PVRDMA_REG_MACH 36

#define PVRDMA_DEVICE_CTL_ACTIVATE 0

#define PVRDMA_DEVICE_CTL_UNQUIESCE 1

#define PVRDMA_DEVICE_CTL_RESET 2

#define PVRDMA_INTR_VECTOR_RESPONSE 0

#define PVRDMA_INTR_VECTOR_ASYNC 1

#define PVRDMA_INTR_VECTOR_CQ 2

#define PVRDMA_MAX_INTERRUPTS 3

#define PVRDMA_INTR_CAUSE_RESPONSE (1u << PVRDMA_INTR_VECTOR_RESPONSE)

#define PVRDMA_INTR_CAUSE_ASYNC (1u << PVRDMA_INTR_VECTOR_ASYNC)

#define PVRDMA_INTR_CAUSE_CQ (1u << PVRDMA_INTR_VECTOR_CQ)

/*
 Entries of a directory page and of a table page.
 */
#define PVRDMA_PAGE_DIR_ENTRIES 512

/*
 Pages one directory can describe: 1 GiB.
 */
#define PVRDMA_PAGE_DIR_MAX_PAGES (PVRDMA_PAGE_DIR_ENTRIES * PVRDMA_PAGE_DIR_ENTRIES)

/*
 Longest page list of a fast-register work request.
 */
#define PVRDMA_MAX_FAST_REG_PAGES 128

#define PVRDMA_GOS_BITS_UNK 0

#define PVRDMA_GOS_BITS_32 1

#define PVRDMA_GOS_BITS_64 2

#define PVRDMA_GOS_TYPE_UNK 0

#define PVRDMA_GOS_TYPE_LINUX 1

#define PVRDMA_DEVICE_MODE_ROCE 0

#define PVRDMA_DEVICE_MODE_IWARP 1

#define PVRDMA_DEVICE_MODE_IB 2

#define PVRDMA_GID_TYPE_FLAG_ROCE_V1 (1u << 0)

#define PVRDMA_GID_TYPE_FLAG_ROCE_V2 (1u << 1)

#define PVRDMA_ATOMIC_OP_COMP_SWAP (1u << 0)

#define PVRDMA_ATOMIC_OP_FETCH_ADD (1u << 1)

#define PVRDMA_ATOMIC_OP_MASK_COMP_SWAP (1u << 2)

#define PVRDMA_ATOMIC_OP_MASK_FETCH_ADD (1u << 3)

#define PVRDMA_BMME_FLAG_LOCAL_INV (1u << 0)

#define PVRDMA_BMME_FLAG_REMOTE_INV (1u << 1)

#define PVRDMA_BMME_FLAG_FAST_REG_WR (1u << 2)

/*
 Pages of each event ring, the ring state page included.
 */
#define PVRDMA_NUM_RING_PAGES 4

/*
 Ring state pages at the head of a QP buffer.
 */
#define PVRDMA_QP_NUM_HEADER_PAGES 1

#define PVRDMA_EVENT_CQ_ERR 0

#define PVRDMA_EVENT_QP_FATAL 1

#define PVRDMA_EVENT_QP_REQ_ERR 2

#define PVRDMA_EVENT_QP_ACCESS_ERR 3

#define PVRDMA_EVENT_COMM_EST 4

#define PVRDMA_EVENT_SQ_DRAINED 5

#define PVRDMA_EVENT_PATH_MIG 6

#define PVRDMA_EVENT_PATH_MIG_ERR 7

#define PVRDMA_EVENT_DEVICE_FATAL 8

#define PVRDMA_EVENT_PORT_ACTIVE 9

#define PVRDMA_EVENT_PORT_ERR 10

#define PVRDMA_EVENT_LID_CHANGE 11

#define PVRDMA_EVENT_PKEY_CHANGE 12

#define PVRDMA_EVENT_SM_CHANGE 13

#define PVRDMA_EVENT_SRQ_ERR 14

#define PVRDMA_EVENT_SRQ_LIMIT_REACHED 15

#define PVRDMA_EVENT_QP_LAST_WQE_REACHED 16

#define PVRDMA_EVENT_CLIENT_REREGISTER 17

#define PVRDMA_EVENT_GID_CHANGE 18

#define PVRDMA_CMD_QUERY_PORT 0

#define PVRDMA_CMD_QUERY_PKEY 1

#define PVRDMA_CMD_CREATE_PD 2

#define PVRDMA_CMD_DESTROY_PD 3

#define PVRDMA_CMD_CREATE_MR 4

#define PVRDMA_CMD_DESTROY_MR 5

#define PVRDMA_CMD_CREATE_CQ 6

#define PVRDMA_CMD_RESIZE_CQ 7

#define PVRDMA_CMD_DESTROY_CQ 8

#define PVRDMA_CMD_CREATE_QP 9

#define PVRDMA_CMD_MODIFY_QP 10

#define PVRDMA_CMD_QUERY_QP 11

#define PVRDMA_CMD_DESTROY_QP 12

#define PVRDMA_CMD_CREATE_UC 13

#define PVRDMA_CMD_DESTROY_UC 14

#define PVRDMA_CMD_CREATE_BIND 15

#define PVRDMA_CMD_DESTROY_BIND 16

#define PVRDMA_CMD_CREATE_SRQ 17

#define PVRDMA_CMD_MODIFY_SRQ 18

#define PVRDMA_CMD_QUERY_SRQ 19

#define PVRDMA_CMD_DESTROY_SRQ 20

/*
 One past the last command.
 */
#define PVRDMA_CMD_MAX 21

/*
 `ack` of a response is this plus the command number.
 */
#define PVRDMA_CMD_FIRST_RESP (1u << 31)

/*
 Bytes the driver copies into the command slot, whatever the command.
 */
#define PVRDMA_CMD_REQ_LEN 184

/*
 Bytes the driver copies out of the response slot.
 */
#define PVRDMA_CMD_RESP_LEN 176

#define PVRDMA_MR_FLAG_DMA (1u << 0)

#define PVRDMA_MR_FLAG_FRMR (1u << 1)

#define PVRDMA_CQ_FLAG_ARMED_SOL (1u << 0)

#define PVRDMA_CQ_FLAG_ARMED (1u << 1)

#define PVRDMA_MTU_256 1

#define PVRDMA_MTU_512 2

#define PVRDMA_MTU_1024 3

#define PVRDMA_MTU_2048 4

#define PVRDMA_MTU_4096 5

#define PVRDMA_PORT_NOP 0

#define PVRDMA_PORT_DOWN 1

#define PVRDMA_PORT_INIT 2

#define PVRDMA_PORT_ARMED 3

#define PVRDMA_PORT_ACTIVE 4

#define PVRDMA_PORT_ACTIVE_DEFER 5

#define PVRDMA_PORT_PHYS_DISABLED 3

#define PVRDMA_PORT_PHYS_LINK_UP 5

#define PVRDMA_WIDTH_1X 1

#define PVRDMA_WIDTH_4X 2

#define PVRDMA_WIDTH_8X 4

#define PVRDMA_WIDTH_12X 8

#define PVRDMA_SPEED_SDR 1

#define PVRDMA_SPEED_DDR 2

#define PVRDMA_SPEED_QDR 4

#define PVRDMA_SPEED_FDR10 8

#define PVRDMA_SPEED_FDR 16

#define PVRDMA_SPEED_EDR 32

/*
 Communication management is supported: the driver sets it in what it reports upwards.
 */
#define PVRDMA_PORT_CM_SUP (1u << 16)

/*
 GIDs are IP addresses.
 */
#define PVRDMA_PORT_IP_BASED_GIDS (1u << 26)

#define PVRDMA_QPT_SMI 0

#define PVRDMA_QPT_GSI 1

#define PVRDMA_QPT_RC 2

#define PVRDMA_QPT_UC 3

#define PVRDMA_QPT_UD 4

#define PVRDMA_QPS_RESET 0

#define PVRDMA_QPS_INIT 1

#define PVRDMA_QPS_RTR 2

#define PVRDMA_QPS_RTS 3

#define PVRDMA_QPS_SQD 4

#define PVRDMA_QPS_SQE 5

#define PVRDMA_QPS_ERR 6

#define PVRDMA_MIG_MIGRATED 0

#define PVRDMA_MIG_REARM 1

#define PVRDMA_MIG_ARMED 2

#define PVRDMA_QP_STATE (1u << 0)

#define PVRDMA_QP_CUR_STATE (1u << 1)

#define PVRDMA_QP_EN_SQD_ASYNC_NOTIFY (1u << 2)

#define PVRDMA_QP_ACCESS_FLAGS (1u << 3)

#define PVRDMA_QP_PKEY_INDEX (1u << 4)

#define PVRDMA_QP_PORT (1u << 5)

#define PVRDMA_QP_QKEY (1u << 6)

#define PVRDMA_QP_AV (1u << 7)

#define PVRDMA_QP_PATH_MTU (1u << 8)

#define PVRDMA_QP_TIMEOUT (1u << 9)

#define PVRDMA_QP_RETRY_CNT (1u << 10)

#define PVRDMA_QP_RNR_RETRY (1u << 11)

#define PVRDMA_QP_RQ_PSN (1u << 12)

#define PVRDMA_QP_MAX_QP_RD_ATOMIC (1u << 13)

#define PVRDMA_QP_ALT_PATH (1u << 14)

#define PVRDMA_QP_MIN_RNR_TIMER (1u << 15)

#define PVRDMA_QP_SQ_PSN (1u << 16)

#define PVRDMA_QP_MAX_DEST_RD_ATOMIC (1u << 17)

#define PVRDMA_QP_PATH_MIG_STATE (1u << 18)

#define PVRDMA_QP_CAP (1u << 19)

#define PVRDMA_QP_DEST_QPN (1u << 20)

#define PVRDMA_QP_ATTR_MASK ((1u << 21) - 1)

#define PVRDMA_SRQ_MAX_WR (1u << 0)

#define PVRDMA_SRQ_LIMIT (1u << 1)

#define PVRDMA_SRQT_BASIC 0

#define PVRDMA_AH_GRH (1u << 0)

/*
 `pvrdma_ring.h`: one producer and consumer counter pair. Aligned u32 words; each has one writer.
 */
struct pvrdma_ring {
    uint32_t prod_tail;
    uint32_t cons_head;
};

/*
 `pvrdma_ring.h`: head of the first page of every ring object. Send rings use `tx`; receive
 rings, completion rings and the two event rings use `rx`.
 */
struct pvrdma_ring_state {
    struct pvrdma_ring tx;
    struct pvrdma_ring rx;
};

/*
 `pvrdma_sq_wqe_hdr.wr.rdma`: RDMA WRITE and READ.
 */
struct pvrdma_wr_rdma {
    uint64_t remote_addr;
    uint32_t rkey;
    uint8_t reserved[4];
};

/*
 `pvrdma_sq_wqe_hdr.wr.atomic`.
 */
struct pvrdma_wr_atomic {
    uint64_t remote_addr;
    uint64_t compare_add;
    uint64_t swap;
    uint32_t rkey;
    uint32_t reserved;
};

/*
 `pvrdma_sq_wqe_hdr.wr.masked_atomics`; `wr_data` is a union of [`pvrdma_ex_cmp_swap`] and
 [`pvrdma_ex_fetch_add`].
 */
struct pvrdma_wr_masked_atomics {
    uint64_t remote_addr;
    uint32_t log_arg_sz;
    uint32_t rkey;
    union {
        struct pvrdma_ex_cmp_swap cmp_swap;
        struct pvrdma_ex_fetch_add fetch_add;
    } wr_data;
};

/*
 `pvrdma_sq_wqe_hdr.wr.fast_reg`: kernel users only.
 */
struct pvrdma_wr_fast_reg {
    uint64_t iova_start;
    uint64_t pl_pdir_dma;
    uint32_t page_shift;
    uint32_t page_list_len;
    uint32_t length;
    uint32_t access_flags;
    uint32_t rkey;
    uint32_t reserved;
};

/*
 `pvrdma_sq_wqe_hdr.wr.ud`.
 */
struct pvrdma_wr_ud {
    uint32_t remote_qpn;
    uint32_t remote_qkey;
    struct pvrdma_av av;
};

/*
 Guest operating system, packed: bits 1:0 width, 5:2 type, 21:6 version, 31:22 misc.
 */
struct pvrdma_gos_info {
    uint32_t gos;
    uint32_t pad;
};

/*
 Where an event ring lives; `num_pages` counts the ring state page.
 */
struct pvrdma_ring_page_info {
    uint32_t num_pages;
    uint32_t reserved;
    uint64_t pdir_dma;
};

/*
 Capabilities, filled by the device before the write of DSRHIGH completes, constant afterwards.
 */
struct pvrdma_device_caps {
    uint64_t fw_ver;
    /*
     Big-endian.
     */
    uint64_t node_guid;
    /*
     Big-endian.
     */
    uint64_t sys_image_guid;
    uint64_t max_mr_size;
    uint64_t page_size_cap;
    uint64_t atomic_arg_sizes;
    uint32_t ex_comp_mask;
    uint32_t device_cap_flags2;
    uint32_t max_fa_bit_boundary;
    uint32_t log_max_atomic_inline_arg;
    uint32_t vendor_id;
    uint32_t vendor_part_id;
    uint32_t hw_ver;
    uint32_t max_qp;
    uint32_t max_qp_wr;
    uint32_t device_cap_flags;
    uint32_t max_sge;
    uint32_t max_sge_rd;
    uint32_t max_cq;
    uint32_t max_cqe;
    uint32_t max_mr;
    uint32_t max_pd;
    uint32_t max_qp_rd_atom;
    uint32_t max_ee_rd_atom;
    uint32_t max_res_rd_atom;
    uint32_t max_qp_init_rd_atom;
    uint32_t max_ee_init_rd_atom;
    uint32_t max_ee;
    uint32_t max_rdd;
    uint32_t max_mw;
    uint32_t max_raw_ipv6_qp;
    uint32_t max_raw_ethy_qp;
    uint32_t max_mcast_grp;
    uint32_t max_mcast_qp_attach;
    uint32_t max_total_mcast_qp_attach;
    uint32_t max_ah;
    uint32_t max_fmr;
    uint32_t max_map_per_fmr;
    uint32_t max_srq;
    uint32_t max_srq_wr;
    uint32_t max_srq_sge;
    uint32_t max_uar;
    uint32_t gid_tbl_len;
    uint16_t max_pkeys;
    uint8_t local_ca_ack_delay;
    uint8_t phys_port_cnt;
    uint8_t mode;
    uint8_t atomic_ops;
    uint8_t bmme_flags;
    uint8_t gid_types;
    uint32_t max_fast_reg_page_list_len;
};

/*
 The device shared region ("DSR"). The driver fills everything but `caps`.
 */
struct pvrdma_device_shared_region {
    uint32_t driver_version;
    uint32_t pad;
    struct pvrdma_gos_info gos_info;
    uint64_t cmd_slot_dma;
    uint64_t resp_slot_dma;
    struct pvrdma_ring_page_info async_ring_pages;
    struct pvrdma_ring_page_info cq_ring_pages;
    /*
     Page frame of UAR page 0. Only the low 32 bits are valid below [`PVRDMA_PPN64_VERSION`].
     */
    uint64_t uar_pfn64;
    struct pvrdma_device_caps caps;
};

/*
 Async event ring entry. What `info` holds depends on the event type.
 */
struct pvrdma_eqe {
    /*
     `type` in C: one of `PVRDMA_EVENT_*`.
     */
    uint32_t type_;
    uint32_t info;
};

/*
 CQ notification ring entry.
 */
struct pvrdma_cqne {
    /*
     CQ handle.
     */
    uint32_t info;
};

struct pvrdma_cmd_hdr {
    /*
     Opaque to the device; echoed in the response.
     */
    uint64_t response;
    uint32_t cmd;
    uint32_t reserved;
};

struct pvrdma_cmd_resp_hdr {
    uint64_t response;
    uint32_t ack;
    uint8_t err;
    uint8_t reserved[3];
};

struct pvrdma_cmd_query_port {
    struct pvrdma_cmd_hdr hdr;
    uint8_t port_num;
    uint8_t reserved[7];
};

struct pvrdma_port_attr {
    uint32_t state;
    uint32_t max_mtu;
    uint32_t active_mtu;
    uint32_t gid_tbl_len;
    uint32_t port_cap_flags;
    uint32_t max_msg_sz;
    uint32_t bad_pkey_cntr;
    uint32_t qkey_viol_cntr;
    uint16_t pkey_tbl_len;
    uint16_t lid;
    uint16_t sm_lid;
    uint8_t lmc;
    uint8_t max_vl_num;
    uint8_t sm_sl;
    uint8_t subnet_timeout;
    uint8_t init_type_reply;
    uint8_t active_width;
    uint8_t active_speed;
    uint8_t phys_state;
    uint8_t reserved[2];
};

struct pvrdma_cmd_query_port_resp {
    struct pvrdma_cmd_resp_hdr hdr;
    struct pvrdma_port_attr attrs;
};

struct pvrdma_cmd_query_pkey {
    struct pvrdma_cmd_hdr hdr;
    uint8_t port_num;
    uint8_t index;
    uint8_t reserved[6];
};

struct pvrdma_cmd_query_pkey_resp {
    struct pvrdma_cmd_resp_hdr hdr;
    uint16_t pkey;
    uint8_t reserved[6];
};

struct pvrdma_cmd_create_uc {
    struct pvrdma_cmd_hdr hdr;
    /*
     Page frame of the UAR page. Only the low 32 bits below [`PVRDMA_PPN64_VERSION`].
     */
    uint64_t pfn64;
};

struct pvrdma_cmd_create_uc_resp {
    struct pvrdma_cmd_resp_hdr hdr;
    uint32_t ctx_handle;
    uint8_t reserved[4];
};

struct pvrdma_cmd_destroy_uc {
    struct pvrdma_cmd_hdr hdr;
    uint32_t ctx_handle;
    uint8_t reserved[4];
};

struct pvrdma_cmd_create_pd {
    struct pvrdma_cmd_hdr hdr;
    uint32_t ctx_handle;
    uint8_t reserved[4];
};

struct pvrdma_cmd_create_pd_resp {
    struct pvrdma_cmd_resp_hdr hdr;
    uint32_t pd_handle;
    uint8_t reserved[4];
};

struct pvrdma_cmd_destroy_pd {
    struct pvrdma_cmd_hdr hdr;
    uint32_t pd_handle;
    uint8_t reserved[4];
};

/*
 `start` is the user virtual address; the device never learns another iova.
 */
struct pvrdma_cmd_create_mr {
    struct pvrdma_cmd_hdr hdr;
    uint64_t start;
    uint64_t length;
    uint64_t pdir_dma;
    uint32_t pd_handle;
    uint32_t access_flags;
    uint32_t flags;
    uint32_t nchunks;
};

struct pvrdma_cmd_create_mr_resp {
    struct pvrdma_cmd_resp_hdr hdr;
    uint32_t mr_handle;
    uint32_t lkey;
    uint32_t rkey;
    uint8_t reserved[4];
};

struct pvrdma_cmd_destroy_mr {
    struct pvrdma_cmd_hdr hdr;
    uint32_t mr_handle;
    uint8_t reserved[4];
};

struct pvrdma_cmd_create_cq {
    struct pvrdma_cmd_hdr hdr;
    uint64_t pdir_dma;
    uint32_t ctx_handle;
    uint32_t cqe;
    uint32_t nchunks;
    uint8_t reserved[4];
};

struct pvrdma_cmd_create_cq_resp {
    struct pvrdma_cmd_resp_hdr hdr;
    uint32_t cq_handle;
    uint32_t cqe;
};

struct pvrdma_cmd_resize_cq {
    struct pvrdma_cmd_hdr hdr;
    uint32_t cq_handle;
    uint32_t cqe;
};

struct pvrdma_cmd_resize_cq_resp {
    struct pvrdma_cmd_resp_hdr hdr;
    uint32_t cqe;
    uint8_t reserved[4];
};

struct pvrdma_cmd_destroy_cq {
    struct pvrdma_cmd_hdr hdr;
    uint32_t cq_handle;
    uint8_t reserved[4];
};

struct pvrdma_srq_attr {
    uint32_t max_wr;
    uint32_t max_sge;
    uint32_t srq_limit;
    uint32_t reserved;
};

struct pvrdma_cmd_create_srq {
    struct pvrdma_cmd_hdr hdr;
    uint64_t pdir_dma;
    uint32_t pd_handle;
    uint32_t nchunks;
    struct pvrdma_srq_attr attrs;
    uint8_t srq_type;
    uint8_t reserved[7];
};

struct pvrdma_cmd_create_srq_resp {
    struct pvrdma_cmd_resp_hdr hdr;
    uint32_t srqn;
    uint8_t reserved[4];
};

struct pvrdma_cmd_modify_srq {
    struct pvrdma_cmd_hdr hdr;
    uint32_t srq_handle;
    uint32_t attr_mask;
    struct pvrdma_srq_attr attrs;
};

struct pvrdma_cmd_query_srq {
    struct pvrdma_cmd_hdr hdr;
    uint32_t srq_handle;
    uint8_t reserved[4];
};

struct pvrdma_cmd_query_srq_resp {
    struct pvrdma_cmd_resp_hdr hdr;
    struct pvrdma_srq_attr attrs;
};

struct pvrdma_cmd_destroy_srq {
    struct pvrdma_cmd_hdr hdr;
    uint32_t srq_handle;
    uint8_t reserved[4];
};

struct pvrdma_cmd_create_qp {
    struct pvrdma_cmd_hdr hdr;
    uint64_t pdir_dma;
    uint32_t pd_handle;
    uint32_t send_cq_handle;
    uint32_t recv_cq_handle;
    uint32_t srq_handle;
    uint32_t max_send_wr;
    uint32_t max_recv_wr;
    uint32_t max_send_sge;
    uint32_t max_recv_sge;
    uint32_t max_inline_data;
    uint32_t lkey;
    uint32_t access_flags;
    /*
     All pages of the ring: one state page, the SQ's, the RQ's.
     */
    uint16_t total_chunks;
    /*
     Pages of the SQ, without the state page.
     */
    uint16_t send_chunks;
    uint16_t max_atomic_arg;
    uint8_t sq_sig_all;
    uint8_t qp_type;
    uint8_t is_srq;
    uint8_t reserved[3];
};

/*
 Answer of a device below [`PVRDMA_QPHANDLE_VERSION`]: the handle is the QP number.
 */
struct pvrdma_cmd_create_qp_resp {
    struct pvrdma_cmd_resp_hdr hdr;
    uint32_t qpn;
    uint32_t max_send_wr;
    uint32_t max_recv_wr;
    uint32_t max_send_sge;
    uint32_t max_recv_sge;
    uint32_t max_inline_data;
};

/*
 Answer of a device at [`PVRDMA_QPHANDLE_VERSION`] or above.
 */
struct pvrdma_cmd_create_qp_resp_v2 {
    struct pvrdma_cmd_resp_hdr hdr;
    uint32_t qpn;
    uint32_t qp_handle;
    uint32_t max_send_wr;
    uint32_t max_recv_wr;
    uint32_t max_send_sge;
    uint32_t max_recv_sge;
    uint32_t max_inline_data;
    uint8_t reserved[4];
};

struct pvrdma_qp_cap {
    uint32_t max_send_wr;
    uint32_t max_recv_wr;
    uint32_t max_send_sge;
    uint32_t max_recv_sge;
    uint32_t max_inline_data;
    uint32_t reserved;
};

struct pvrdma_global_route {
    uint8_t dgid[16];
    uint32_t flow_label;
    uint8_t sgid_index;
    uint8_t hop_limit;
    uint8_t traffic_class;
    uint8_t reserved;
};

struct pvrdma_ah_attr {
    struct pvrdma_global_route grh;
    uint16_t dlid;
    /*
     Never filled by the kernel driver.
     */
    uint16_t vlan_id;
    uint8_t sl;
    uint8_t src_path_bits;
    uint8_t static_rate;
    uint8_t ah_flags;
    uint8_t port_num;
    uint8_t dmac[6];
    uint8_t reserved;
};

/*
 Only the fields whose bit is in the command's `attr_mask` are valid.
 */
struct pvrdma_qp_attr {
    uint32_t qp_state;
    uint32_t cur_qp_state;
    uint32_t path_mtu;
    uint32_t path_mig_state;
    uint32_t qkey;
    uint32_t rq_psn;
    uint32_t sq_psn;
    uint32_t dest_qp_num;
    uint32_t qp_access_flags;
    uint16_t pkey_index;
    uint16_t alt_pkey_index;
    uint8_t en_sqd_async_notify;
    uint8_t sq_draining;
    uint8_t max_rd_atomic;
    uint8_t max_dest_rd_atomic;
    uint8_t min_rnr_timer;
    uint8_t port_num;
    uint8_t timeout;
    uint8_t retry_cnt;
    uint8_t rnr_retry;
    uint8_t alt_port_num;
    uint8_t alt_timeout;
    uint8_t reserved[5];
    struct pvrdma_qp_cap cap;
    struct pvrdma_ah_attr ah_attr;
    struct pvrdma_ah_attr alt_ah_attr;
};

struct pvrdma_cmd_modify_qp {
    struct pvrdma_cmd_hdr hdr;
    uint32_t qp_handle;
    uint32_t attr_mask;
    struct pvrdma_qp_attr attrs;
};

struct pvrdma_cmd_query_qp {
    struct pvrdma_cmd_hdr hdr;
    uint32_t qp_handle;
    uint32_t attr_mask;
};

struct pvrdma_cmd_query_qp_resp {
    struct pvrdma_cmd_resp_hdr hdr;
    struct pvrdma_qp_attr attrs;
};

struct pvrdma_cmd_destroy_qp {
    struct pvrdma_cmd_hdr hdr;
    uint32_t qp_handle;
    uint8_t reserved[4];
};

struct pvrdma_cmd_destroy_qp_resp {
    struct pvrdma_cmd_resp_hdr hdr;
    uint32_t events_reported;
    uint8_t reserved[4];
};

struct pvrdma_cmd_create_bind {
    struct pvrdma_cmd_hdr hdr;
    /*
     Bytes, not the MTU enumeration.
     */
    uint32_t mtu;
    /*
     0xfff: none.
     */
    uint32_t vlan;
    uint32_t index;
    uint8_t new_gid[16];
    uint8_t gid_type;
    uint8_t reserved[3];
};

struct pvrdma_cmd_destroy_bind {
    struct pvrdma_cmd_hdr hdr;
    uint32_t index;
    uint8_t dest_gid[16];
    uint8_t reserved[4];
};

#ifdef PVRDMA_H_HAS_ABI

/*
 Head of a send WQE; `num_sge` entries of [`pvrdma_sge`] follow.

 `wr` is a union in C. Its forms are [`pvrdma_wr_rdma`], [`pvrdma_wr_atomic`],
 [`pvrdma_wr_masked_atomics`], [`pvrdma_wr_fast_reg`] and [`pvrdma_wr_ud`], each from byte 0 of
 `wr`; read one with `read_from_prefix(&hdr.wr)`. Bytes the opcode does not define may be stale.
 */
struct pvrdma_sq_wqe_hdr {
    uint64_t wr_id;
    uint32_t num_sge;
    uint32_t total_len;
    uint32_t opcode;
    uint32_t send_flags;
    /*
     `imm_data` (big-endian) or `invalidate_rkey` (native).
     */
    union {
        uint32_t imm_data;
        uint32_t invalidate_rkey;
    } ex;
    uint32_t reserved;
    union {
        struct pvrdma_wr_rdma rdma;
        struct pvrdma_wr_atomic atomic;
        struct pvrdma_wr_masked_atomics masked_atomics;
        struct pvrdma_wr_fast_reg fast_reg;
        struct pvrdma_wr_ud ud;
    } wr;
};

#endif /* PVRDMA_H_HAS_ABI */

#endif  /* PVRDMA_H */

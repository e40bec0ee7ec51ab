/*
 * Direct verbs of the provider for VMware's PVRDMA device: programs that post and poll by themselves. See
 * pvrdmadv(7). Link with -lpvrdmadv -libverbs.
 *
 * Made from ffi/ and provider/ by `cargo xtask headers`: do not edit.
 */

#ifndef INFINIBAND_PVRDMADV_H
#define INFINIBAND_PVRDMADV_H

#include <stdbool.h>
#include <stdint.h>

struct ibv_device;
struct ibv_context;
struct ibv_qp;
struct ibv_cq;
struct ibv_srq;
struct ibv_ah;

/*
 Of `pvrdmadv_qp.flags`: the QP was made with sq_sig_all. Every request must have PVRDMA_SEND_SIGNALED.
 */
#define PVRDMADV_QP_SIG_ALL (1u << 0)

/*
 Of `pvrdmadv_qp.flags`: requests that go by verbs have a wr_id of the provider's own (there is room for inline
 data). Poll their completions by verbs.
 */
#define PVRDMADV_QP_OWN_WR_ID (1u << 1)

/*
 What of `pvrdma_cqe.qp` is to be compared with the same bits of `pvrdmadv_qp.qp_handle`.
 */
#define PVRDMADV_CQE_QP_MASK 65535

/*
 Of an open device.
 */
struct pvrdmadv_context {
    /*
     0: no optional field is there.
     */
    uint64_t comp_mask;
    /*
     The doorbell page. It can only be written, by stores of 32 bits.
     */
    void *uar;
    /*
     Its length in bytes.
     */
    uint32_t uar_size;
    /*
     Offsets of its registers.
     */
    uint32_t qp_offset;
    uint32_t cq_offset;
    uint32_t srq_offset;
};

/*
 A queue of work requests: the program's end. All zero: the QP takes its receives from an SRQ.
 */
struct pvrdmadv_wq {
    /*
     The entries, each of entry_size bytes.
     */
    void *buf;
    /*
     Moved by the program, modulo 2 * num_entries.
     */
    uint32_t *prod_tail;
    /*
     Moved by the device, modulo 2 * num_entries.
     */
    uint32_t *cons_head;
    /*
     Where doorbell_value is stored when prod_tail was moved.
     */
    uint32_t *doorbell;
    uint32_t doorbell_value;
    /*
     A power of two.
     */
    uint32_t num_entries;
    /*
     A power of two.
     */
    uint32_t entry_size;
    /*
     The most that an entry may have.
     */
    uint32_t max_sge;
};

/*
 Of a queue pair.
 */
struct pvrdmadv_qp {
    /*
     0: no optional field is there.
     */
    uint64_t comp_mask;
    /*
     Entries: struct pvrdma_sq_wqe_hdr, then struct pvrdma_sge.
     */
    struct pvrdmadv_wq sq;
    /*
     Entries: struct pvrdma_rq_wqe_hdr, then struct pvrdma_sge.
     */
    struct pvrdmadv_wq rq;
    /*
     What doorbells and completions call it. It need not be the QP's number.
     */
    uint32_t qp_handle;
    /*
     PVRDMADV_QP_*.
     */
    uint32_t flags;
};

/*
 Of a completion queue.
 */
struct pvrdmadv_cq {
    /*
     0: no optional field is there.
     */
    uint64_t comp_mask;
    /*
     The entries: struct pvrdma_cqe.
     */
    void *buf;
    /*
     Moved by the device, modulo 2 * num_entries.
     */
    uint32_t *prod_tail;
    /*
     Moved by the program, modulo 2 * num_entries.
     */
    uint32_t *cons_head;
    /*
     Where one of the three values below is stored.
     */
    uint32_t *doorbell;
    /*
     Put what you hold back.
     */
    uint32_t poll_value;
    /*
     Notify me of the next completion.
     */
    uint32_t arm_value;
    /*
     Notify me of the next one that is solicited or an error.
     */
    uint32_t arm_solicited_value;
    /*
     A power of two.
     */
    uint32_t num_entries;
    uint32_t entry_size;
    /*
     What doorbells call it.
     */
    uint32_t cq_handle;
};

/*
 Of a shared receive queue.
 */
struct pvrdmadv_srq {
    /*
     0: no optional field is there.
     */
    uint64_t comp_mask;
    /*
     Entries: struct pvrdma_rq_wqe_hdr, then struct pvrdma_sge.
     */
    struct pvrdmadv_wq wq;
    /*
     What doorbells call it.
     */
    uint32_t srq_handle;
    uint32_t reserved;
};

/*
 Of an address handle.
 */
struct pvrdmadv_ah {
    /*
     0: no optional field is there.
     */
    uint64_t comp_mask;
    /*
     A struct pvrdma_av, for `wr.ud.av` of a request.
     */
    uint8_t av[40];
};

#ifdef __cplusplus
extern "C" {
#endif /* __cplusplus */

/*
 Does the device belong to this provider?
 */
bool pvrdmadv_is_supported(struct ibv_device *device);

/*
 Where the doorbells of an open device are. 0, or an errno.
 attr has room for inlen bytes: sizeof(*attr).
 */
int pvrdmadv_query_context(struct ibv_context *context,
                           struct pvrdmadv_context *attr,
                           uint32_t inlen);

/*
 Where the two queues of a QP are. 0, or an errno.
 attr has room for inlen bytes: sizeof(*attr).
 */
int pvrdmadv_query_qp(struct ibv_qp *qp, struct pvrdmadv_qp *attr, uint32_t inlen);

/*
 Where a CQ is. 0, or an errno.
 attr has room for inlen bytes: sizeof(*attr).
 */
int pvrdmadv_query_cq(struct ibv_cq *cq, struct pvrdmadv_cq *attr, uint32_t inlen);

/*
 Where an SRQ is. 0, or an errno.
 attr has room for inlen bytes: sizeof(*attr).
 */
int pvrdmadv_query_srq(struct ibv_srq *srq, struct pvrdmadv_srq *attr, uint32_t inlen);

/*
 What a datagram to an AH has in its request. 0, or an errno.
 attr has room for inlen bytes: sizeof(*attr).
 */
int pvrdmadv_query_ah(struct ibv_ah *ah, struct pvrdmadv_ah *attr, uint32_t inlen);

#ifdef __cplusplus
}  /* extern "C" */
#endif  /* __cplusplus */

#endif  /* INFINIBAND_PVRDMADV_H */

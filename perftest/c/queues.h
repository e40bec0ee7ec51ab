/*
 * The queues of frozen.c and what the device sees of them: an RC and a UD QP, an SRQ and some CQs, and what only some
 * providers have.
 */
#ifndef QUEUES_H
#define QUEUES_H

#include "../../tests/c/ud.h"
#include "still.h"
#include "../../tests/c/direct.h"

#define DEPTH 256
#define INLINE 64
/* Few, as the counters of all lie at the front of a page, and so in one set of the cache. */
#define CQS 4

static struct device device;
static struct ibv_pd *pd;
static struct end rc, far, ud, wr, inliner, direct;
static struct pvrdmadv_qp direct_qp;
static struct pvrdmadv_cq direct_cq;
static struct ibv_srq *srq;
static struct ibv_cq_ex *cq_ex;
static struct ibv_qp_ex *qp_ex;
static struct ibv_cq *fresh_cq[CQS];

static struct ring rc_sq, rc_rq, rc_cq, ud_sq, srq_ring, wr_sq, inline_sq, inline_cq, cq_ex_ring, fresh_ring[CQS];
static struct ring direct_sq, direct_cq_ring;
static long rc_handle, inline_handle;
static size_t inline_stride;

/* What the threads of a domain have all their queues in; the device's own where the provider has none. */
static inline struct ibv_pd *open_domain(void)
{
    struct ibv_td *td = ibv_alloc_td(device.context, &(struct ibv_td_init_attr){0});
    struct ibv_parent_domain_init_attr attr = {.pd = device.pd, .td = td};
    struct ibv_pd *domain = td ? ibv_alloc_parent_domain(device.context, &attr) : NULL;
    CHECK(!td || domain);
    return domain ? domain : device.pd;
}

/* NULL where the provider has no extended CQs. */
static inline struct ibv_cq_ex *open_cq_ex(void)
{
    struct ibv_cq_init_attr_ex attr = {.cqe = DEPTH, .wc_flags = IBV_WC_STANDARD_FLAGS};
    if (pd != device.pd) {
        attr.comp_mask = IBV_CQ_INIT_ATTR_MASK_PD;
        attr.parent_domain = pd;
    }
    return ibv_create_cq_ex(device.context, &attr);
}

/* Only an extended create can say that a CQ is of a domain. */
static inline struct ibv_cq *open_cq(void)
{
    struct ibv_cq *cq = NULL;
    if (pd == device.pd) {
        cq = ibv_create_cq(device.context, DEPTH, NULL, NULL, 0);
    } else {
        struct ibv_cq_ex *ex = open_cq_ex();
        cq = ex ? ibv_cq_ex_to_cq(ex) : NULL;
    }
    CHECK(cq && cq->cqe == DEPTH);
    return cq;
}

/* Without a QP where the provider does not have what is asked for. */
static inline struct end open_queue(enum ibv_qp_type type, uint64_t ops, uint32_t inline_data)
{
    struct end end = {.cq = open_cq(), .length = 65536};
    end.buffer = mmap(NULL, end.length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(end.buffer != MAP_FAILED);
    end.mr = ibv_reg_mr(pd, end.buffer, end.length, ALL_ACCESS);
    CHECK(end.mr);
    struct ibv_qp_init_attr_ex init = {
        .send_cq = end.cq,
        .recv_cq = end.cq,
        .qp_type = type,
        .cap = {.max_send_wr = DEPTH, .max_recv_wr = DEPTH, .max_send_sge = 4, .max_recv_sge = 1,
                .max_inline_data = inline_data},
        .comp_mask = IBV_QP_INIT_ATTR_PD | (ops ? IBV_QP_INIT_ATTR_SEND_OPS_FLAGS : 0),
        .pd = pd,
        .send_ops_flags = ops,
    };
    struct ibv_qp_init_attr plain = {.send_cq = end.cq, .recv_cq = end.cq, .qp_type = type, .cap = init.cap};
    end.qp = ops ? ibv_create_qp_ex(device.context, &init) : ibv_create_qp(pd, &plain);
    if (end.qp && plain.cap.max_inline_data < inline_data)
        end.qp = NULL;
    return end;
}

static inline void connect_to(struct end *end, struct end *to)
{
    to_init(end);
    to_rtr(end, to->qp->qp_num, device.gid);
    to_rts(end, USUAL);
}

/* By direct verbs, where the provider has such. */
static inline void open_direct(void)
{
    void *library = dlopen("libpvrdmadv.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (!library)
        return;
    __typeof__(pvrdmadv_query_qp) *query_qp = (__typeof__(query_qp))dlsym(library, "pvrdmadv_query_qp");
    __typeof__(pvrdmadv_query_cq) *query_cq = (__typeof__(query_cq))dlsym(library, "pvrdmadv_query_cq");
    CHECK(query_qp && query_cq);
    direct = open_queue(IBV_QPT_RC, 0, 0);
    connect_to(&direct, &far);
    CHECK(!query_qp(direct.qp, &direct_qp, sizeof(direct_qp)));
    CHECK(!query_cq(direct.cq, &direct_cq, sizeof(direct_cq)));
    direct_sq = send_ring(direct.qp, DEPTH);
    direct_cq_ring = recv_ring(direct.cq->handle, DEPTH);
    CHECK(direct_sq.count == direct_qp.sq.num_entries && direct_cq_ring.count == direct_cq.num_entries);
}

static inline void open_all(int in_domain)
{
    device = open_device();
    pd = in_domain ? open_domain() : device.pd;
    rc = open_queue(IBV_QPT_RC, 0, 0);
    far = open_queue(IBV_QPT_RC, 0, 0);
    ud = open_queue(IBV_QPT_UD, 0, 0);
    CHECK(rc.qp && far.qp && ud.qp);
    connect_ends(&device, &rc, &far, USUAL);
    ud_to_rts(&ud);
    struct ibv_srq_init_attr init = {.attr = {.max_wr = DEPTH, .max_sge = 1}};
    srq = ibv_create_srq(pd, &init);
    CHECK(srq && init.attr.max_wr == DEPTH);
    for (int i = 0; i < CQS; i++) {
        fresh_cq[i] = open_cq();
        fresh_ring[i] = recv_ring(fresh_cq[i]->handle, DEPTH);
    }
    rc_handle = handle_of(rc.qp->handle);
    rc_sq = send_ring(rc.qp, DEPTH);
    rc_rq = recv_ring(rc.qp->handle, DEPTH);
    rc_cq = recv_ring(rc.cq->handle, DEPTH);
    ud_sq = send_ring(ud.qp, DEPTH);
    srq_ring = recv_ring(srq->handle, DEPTH);

    wr = open_queue(IBV_QPT_RC, IBV_QP_EX_WITH_RDMA_WRITE, 0);
    if (wr.qp) {
        connect_to(&wr, &far);
        qp_ex = ibv_qp_to_qp_ex(wr.qp);
        wr_sq = send_ring(wr.qp, DEPTH);
    }
    inliner = open_queue(IBV_QPT_RC, 0, INLINE);
    if (inliner.qp) {
        size_t length;
        connect_to(&inliner, &far);
        inline_handle = handle_of(inliner.qp->handle);
        inline_sq = send_ring(inliner.qp, DEPTH);
        inline_cq = recv_ring(inliner.cq->handle, DEPTH);
        ring_of(inliner.qp->handle, 0, &length);
        /* A power of two, and pages are filled up. */
        for (inline_stride = 64; 2 * inline_stride * DEPTH <= length - PVRDMA_PAGE_SIZE;)
            inline_stride *= 2;
    }
    open_direct();
    cq_ex = open_cq_ex();
    if (cq_ex)
        cq_ex_ring = recv_ring(ibv_cq_ex_to_cq(cq_ex)->handle, DEPTH);
}

#endif

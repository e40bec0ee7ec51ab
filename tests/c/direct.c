/*
 * Direct verbs: a program that is linked to them posts and polls by the rings, beside verbs and instead of them.
 */
#include "ud.h"
#include "direct.h"

#define COUNT(array) (sizeof(array) / sizeof(*(array)))
#define DEPTH 8

static struct device device;
static struct end a, b;
static struct pvrdmadv_qp qp_a, qp_b;
static struct pvrdmadv_cq cq_a, cq_b;

static void query_end(struct end *end, struct pvrdmadv_qp *qp, struct pvrdmadv_cq *cq)
{
    CHECK(!pvrdmadv_query_qp(end->qp, qp, sizeof(*qp)));
    CHECK(!pvrdmadv_query_cq(end->cq, cq, sizeof(*cq)));
}

static void query_both(void)
{
    query_end(&a, &qp_a, &cq_a);
    query_end(&b, &qp_b, &cq_b);
}

static void open_direct(struct shape shape)
{
    open_both(&device, &a, &b, shape, USUAL);
    query_both();
}

/* 0, or -1: the queue is full. */
static int send_one(const struct pvrdmadv_wq *sq, uint32_t opcode, uint64_t wr_id, struct ibv_sge sge, struct end *to)
{
    struct pvrdma_sq_wqe_hdr *wqe = direct_slot(sq);
    if (!wqe)
        return -1;
    memset(wqe, 0, sizeof(*wqe));
    wqe->wr_id = wr_id;
    wqe->num_sge = 1;
    wqe->opcode = opcode;
    wqe->send_flags = PVRDMA_SEND_SIGNALED;
    wqe->ex.imm_data = htobe32(wr_id);
    if (to) {
        wqe->wr.rdma.remote_addr = (uintptr_t)to->buffer;
        wqe->wr.rdma.rkey = to->mr->rkey;
    }
    memcpy(wqe + 1, &sge, sizeof(sge));
    direct_publish(sq);
    return 0;
}

static int receive_one(const struct pvrdmadv_wq *rq, uint64_t wr_id, struct ibv_sge sge)
{
    struct pvrdma_rq_wqe_hdr *wqe = direct_slot(rq);
    if (!wqe)
        return -1;
    wqe->wr_id = wr_id;
    wqe->num_sge = 1;
    wqe->total_len = 0;
    memcpy(wqe + 1, &sge, sizeof(sge));
    direct_publish(rq);
    return 0;
}

/* Waits for one completion, at most ten seconds. */
static struct pvrdma_cqe wait_cqe(const struct pvrdmadv_cq *cq)
{
    double limit = now_ms() + 10000;
    struct pvrdma_cqe *there, cqe;
    while (!(there = direct_peek(cq))) {
        direct_ring(cq->doorbell, cq->poll_value);
        CHECK(now_ms() < limit, "no completion");
    }
    cqe = *there;
    direct_done(cq);
    return cqe;
}

static struct pvrdma_cqe expect_cqe(const struct pvrdmadv_cq *cq, const struct pvrdmadv_qp *qp, uint64_t wr_id,
                                    uint32_t status)
{
    struct pvrdma_cqe cqe = wait_cqe(cq);
    CHECK(cqe.wr_id == wr_id && cqe.status == status, "wr_id %llu, status %u instead of %llu, %u",
          (unsigned long long)cqe.wr_id, cqe.status, (unsigned long long)wr_id, status);
    CHECK(((cqe.qp ^ qp->qp_handle) & PVRDMADV_CQE_QP_MASK) == 0);
    return cqe;
}

/* What is told is what is there. */
static void shapes(void)
{
    struct pvrdmadv_context context;
    open_direct((struct shape){.depth = DEPTH, .sge = 3, .all_signaled = 1});
    CHECK(pvrdmadv_is_supported(device.context->device));
    CHECK(!pvrdmadv_query_context(device.context, &context, sizeof(context)));
    CHECK(context.uar && context.uar_size == 4096 && context.comp_mask == 0);
    CHECK(context.qp_offset == PVRDMA_UAR_QP_OFFSET && context.cq_offset == PVRDMA_UAR_CQ_OFFSET &&
          context.srq_offset == PVRDMA_UAR_SRQ_OFFSET);
    CHECK((char *)qp_a.sq.doorbell == (char *)context.uar + context.qp_offset);
    CHECK((char *)qp_a.rq.doorbell == (char *)context.uar + context.qp_offset);
    CHECK((char *)cq_a.doorbell == (char *)context.uar + context.cq_offset);
    CHECK(qp_a.sq.doorbell_value == ((uint32_t)PVRDMA_UAR_QP_SEND | qp_a.qp_handle));
    CHECK(qp_a.rq.doorbell_value == ((uint32_t)PVRDMA_UAR_QP_RECV | qp_a.qp_handle));
    CHECK(cq_a.poll_value == ((uint32_t)PVRDMA_UAR_CQ_POLL | cq_a.cq_handle));
    CHECK(cq_a.arm_value == ((uint32_t)PVRDMA_UAR_CQ_ARM | cq_a.cq_handle));
    CHECK(cq_a.arm_solicited_value == ((uint32_t)PVRDMA_UAR_CQ_ARM_SOL | cq_a.cq_handle));
    CHECK(qp_a.sq.num_entries == DEPTH && qp_a.rq.num_entries == DEPTH && cq_a.num_entries == 2 * DEPTH);
    CHECK(qp_a.sq.max_sge == 3 && qp_a.sq.entry_size == 128 && qp_a.rq.entry_size == 64);
    CHECK(cq_a.entry_size == sizeof(struct pvrdma_cqe));
    CHECK(qp_a.flags == PVRDMADV_QP_SIG_ALL && qp_a.comp_mask == 0);
    CHECK(qp_a.qp_handle != qp_b.qp_handle && qp_a.sq.buf != qp_b.sq.buf);
    close_both(&device, &a, &b);
}

/* Laps and laps of all three rings: SEND, RDMA WRITE, RDMA WRITE with immediate data. */
static void laps(void)
{
    open_direct((struct shape){.depth = DEPTH});
    for (uint32_t i = 0; i < 5 * 2 * DEPTH; i++) {
        fill(a.buffer, 3000, i);
        CHECK(!receive_one(&qp_b.rq, i, sge_of(&b, 8192, 4096)));
        CHECK(!send_one(&qp_a.sq, PVRDMA_WR_SEND, i, sge_of(&a, 0, 3000), NULL));
        CHECK(expect_cqe(&cq_a, &qp_a, i, PVRDMA_WC_SUCCESS).opcode == PVRDMA_WC_SEND);
        struct pvrdma_cqe cqe = expect_cqe(&cq_b, &qp_b, i, PVRDMA_WC_SUCCESS);
        CHECK(cqe.opcode == PVRDMA_WC_RECV && cqe.byte_len == 3000);
        expect_bytes(b.buffer + 8192, 3000, i);

        fill(a.buffer, 5000, ~i);
        CHECK(!send_one(&qp_a.sq, PVRDMA_WR_RDMA_WRITE, i, sge_of(&a, 0, 5000), &b));
        CHECK(expect_cqe(&cq_a, &qp_a, i, PVRDMA_WC_SUCCESS).opcode == PVRDMA_WC_RDMA_WRITE);
        expect_bytes(b.buffer, 5000, ~i);

        CHECK(!receive_one(&qp_b.rq, i, sge_of(&b, 8192, 4096)));
        CHECK(!send_one(&qp_a.sq, PVRDMA_WR_RDMA_WRITE_WITH_IMM, i, sge_of(&a, 0, 8), &b));
        expect_cqe(&cq_a, &qp_a, i, PVRDMA_WC_SUCCESS);
        cqe = expect_cqe(&cq_b, &qp_b, i, PVRDMA_WC_SUCCESS);
        CHECK(cqe.opcode == PVRDMA_WC_RECV_RDMA_WITH_IMM && (cqe.wc_flags & PVRDMA_WC_WITH_IMM) &&
              be32toh(cqe.imm_data) == i);
    }
    close_both(&device, &a, &b);
}

/* A ring takes as many as it has entries, and has room again when the device took one. */
static void full(void)
{
    open_direct((struct shape){.depth = DEPTH});
    for (int lap = 0; lap < 5; lap++) {
        for (int i = 0; i < DEPTH; i++)
            CHECK(!receive_one(&qp_b.rq, i, sge_of(&b, 0, 64)));
        CHECK(receive_one(&qp_b.rq, 99, sge_of(&b, 0, 64)) == -1);
        /* Not a multiple of the ring, so that each lap begins elsewhere. */
        for (int i = 0; i < DEPTH; i++) {
            CHECK(!send_one(&qp_a.sq, PVRDMA_WR_SEND, i, sge_of(&a, 0, 64), NULL));
            expect_cqe(&cq_a, &qp_a, i, PVRDMA_WC_SUCCESS);
            expect_cqe(&cq_b, &qp_b, i, PVRDMA_WC_SUCCESS);
        }
        CHECK(!receive_one(&qp_b.rq, 1, sge_of(&b, 0, 64)));
        CHECK(!send_one(&qp_a.sq, PVRDMA_WR_SEND, 1, sge_of(&a, 0, 64), NULL));
        expect_cqe(&cq_a, &qp_a, 1, PVRDMA_WC_SUCCESS);
        expect_cqe(&cq_b, &qp_b, 1, PVRDMA_WC_SUCCESS);
    }
    close_both(&device, &a, &b);
}

/* What is wrong with a request is a completion, and those behind it are flushed. */
static void failures(void)
{
    open_direct((struct shape){.depth = DEPTH});
    struct ibv_mr wrong = *b.mr;
    struct end nowhere = b;
    wrong.rkey ^= 0xf00;
    nowhere.mr = &wrong;
    CHECK(!send_one(&qp_a.sq, PVRDMA_WR_RDMA_WRITE, 1, sge_of(&a, 0, 64), &nowhere));
    expect_cqe(&cq_a, &qp_a, 1, PVRDMA_WC_REM_ACCESS_ERR);
    CHECK(!send_one(&qp_a.sq, PVRDMA_WR_SEND, 2, sge_of(&a, 0, 64), NULL));
    expect_cqe(&cq_a, &qp_a, 2, PVRDMA_WC_WR_FLUSH_ERR);
    CHECK(state_of(&a) == IBV_QPS_ERR);
    close_both(&device, &a, &b);
}

static void by_verbs(uint64_t wr_id)
{
    struct ibv_sge sge = sge_of(&a, 0, 64);
    struct ibv_send_wr wr = work_to(&b, IBV_WR_SEND, wr_id, &sge);
    post_recv(&b, wr_id, 0, 64);
    post_send(&a, &wr);
    expect_wc(&a, wr_id, IBV_WC_SUCCESS);
    expect_wc(&b, wr_id, IBV_WC_SUCCESS);
}

static void by_rings(uint64_t wr_id)
{
    CHECK(!receive_one(&qp_b.rq, wr_id, sge_of(&b, 0, 64)));
    CHECK(!send_one(&qp_a.sq, PVRDMA_WR_SEND, wr_id, sge_of(&a, 0, 64), NULL));
    expect_cqe(&cq_a, &qp_a, wr_id, PVRDMA_WC_SUCCESS);
    expect_cqe(&cq_b, &qp_b, wr_id, PVRDMA_WC_SUCCESS);
}

/* From verbs to rings at any time, and back by asking again. */
static void turns(void)
{
    open_direct((struct shape){.depth = DEPTH});
    for (uint64_t i = 0; i < 200; i++) {
        if (i % 7 < 3) {
            by_verbs(i);
        } else {
            by_rings(i);
            if (i % 7 == 6)
                query_both();
        }
    }
    close_both(&device, &a, &b);
}

/* RESET begins both queues anew. */
static void reset(void)
{
    open_direct((struct shape){.depth = DEPTH});
    for (uint64_t i = 0; i < 11; i++)
        by_rings(i);
    CHECK(!receive_one(&qp_b.rq, 77, sge_of(&b, 0, 64)));
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RESET};
    CHECK(!ibv_modify_qp(a.qp, &attr, IBV_QP_STATE) && !ibv_modify_qp(b.qp, &attr, IBV_QP_STATE));
    CHECK(*qp_a.sq.prod_tail == 0 && *qp_b.rq.prod_tail == 0 && *qp_b.rq.cons_head == 0);
    connect_ends(&device, &a, &b, USUAL);
    for (uint64_t i = 0; i < 11; i++)
        by_rings(i);
    close_both(&device, &a, &b);
}

/* A QP goes, with completions that nobody has polled; those of its neighbours in a CQ that is polled directly stay. */
static void one_goes(void)
{
    open_direct((struct shape){.depth = DEPTH});
    struct ibv_qp_init_attr init = {
        .send_cq = a.cq,
        .recv_cq = a.cq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = DEPTH, .max_recv_wr = DEPTH, .max_send_sge = 1, .max_recv_sge = 1},
    };
    for (int round = 0; round < 9; round++) {
        struct end other = a, far = open_end(&device, (struct shape){.depth = DEPTH});
        struct pvrdmadv_qp qp;
        other.qp = ibv_create_qp(device.pd, &init);
        CHECK(other.qp && !pvrdmadv_query_qp(other.qp, &qp, sizeof(qp)));
        connect_ends(&device, &other, &far, USUAL);
        /* The ring is somewhere, and the provider has not seen it go there. */
        for (int i = 0; i < 5; i++)
            by_rings(i);
        CHECK(!send_one(&qp.sq, PVRDMA_WR_RDMA_WRITE, 90, sge_of(&a, 0, 64), &far));
        CHECK(!send_one(&qp_a.sq, PVRDMA_WR_RDMA_WRITE, 91, sge_of(&a, 0, 64), &b));
        CHECK(!send_one(&qp.sq, PVRDMA_WR_RDMA_WRITE, 92, sge_of(&a, 0, 64), &far));
        CHECK(!send_one(&qp_a.sq, PVRDMA_WR_RDMA_WRITE, 93, sge_of(&a, 0, 64), &b));
        double limit = now_ms() + 10000;
        while (direct_used(direct_load(cq_a.prod_tail), *cq_a.cons_head, cq_a.num_entries) < 4)
            CHECK(now_ms() < limit);
        CHECK(!ibv_destroy_qp(other.qp));
        expect_cqe(&cq_a, &qp_a, 91, PVRDMA_WC_SUCCESS);
        expect_cqe(&cq_a, &qp_a, 93, PVRDMA_WC_SUCCESS);
        CHECK(!direct_peek(&cq_a));
        close_end(&far);
    }
    close_both(&device, &a, &b);
}

/* A shared receive queue. */
static void shared(void)
{
    struct ibv_srq_init_attr attr = {.attr = {.max_wr = DEPTH, .max_sge = 1}};
    struct pvrdmadv_srq srq;
    struct pvrdmadv_context context;
    device = open_device();
    struct ibv_srq *queue = ibv_create_srq(device.pd, &attr);
    CHECK(queue && !pvrdmadv_query_srq(queue, &srq, sizeof(srq)));
    CHECK(!pvrdmadv_query_context(device.context, &context, sizeof(context)));
    CHECK((char *)srq.wq.doorbell == (char *)context.uar + context.srq_offset);
    CHECK(srq.wq.doorbell_value == ((uint32_t)PVRDMA_UAR_SRQ_RECV | srq.srq_handle) && srq.wq.num_entries == DEPTH);
    a = open_end(&device, (struct shape){.depth = DEPTH});
    b = open_end(&device, (struct shape){.depth = DEPTH});
    CHECK(!ibv_destroy_qp(b.qp));
    struct ibv_qp_init_attr init = {.send_cq = b.cq, .recv_cq = b.cq, .srq = queue, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 1, .max_send_sge = 1}};
    b.qp = ibv_create_qp(device.pd, &init);
    CHECK(b.qp);
    connect_ends(&device, &a, &b, USUAL);
    query_both();
    static const struct pvrdmadv_wq none;
    CHECK(!memcmp(&qp_b.rq, &none, sizeof(none)));
    for (uint32_t i = 0; i < 5 * DEPTH; i++) {
        fill(a.buffer, 64, i);
        CHECK(!receive_one(&srq.wq, i, sge_of(&b, 0, 64)));
        CHECK(!send_one(&qp_a.sq, PVRDMA_WR_SEND, i, sge_of(&a, 0, 64), NULL));
        expect_cqe(&cq_a, &qp_a, i, PVRDMA_WC_SUCCESS);
        expect_cqe(&cq_b, &qp_b, i, PVRDMA_WC_SUCCESS);
        expect_bytes(b.buffer, 64, i);
    }
    close_end(&a);
    close_end(&b);
    CHECK(!ibv_destroy_srq(queue));
    close_device(&device);
}

/* Datagrams: the address vector comes from the address handle. */
static void datagrams(void)
{
    struct pvrdmadv_ah to;
    device = open_device();
    a = open_ud_end(&device, DEPTH, NULL);
    b = open_ud_end(&device, DEPTH, NULL);
    ud_to_rts(&a);
    ud_to_rts(&b);
    struct ibv_ah *ah = ah_to(&device);
    CHECK(!pvrdmadv_query_ah(ah, &to, sizeof(to)));
    query_both();
    for (uint32_t i = 0; i < 3 * DEPTH; i++) {
        fill(a.buffer, 64, i);
        CHECK(!receive_one(&qp_b.rq, i, sge_of(&b, 0, 256)));
        struct pvrdma_sq_wqe_hdr *wqe = direct_slot(&qp_a.sq);
        struct ibv_sge sge = sge_of(&a, 0, 64);
        CHECK(wqe);
        memset(wqe, 0, sizeof(*wqe));
        wqe->wr_id = i;
        wqe->num_sge = 1;
        wqe->opcode = PVRDMA_WR_SEND;
        wqe->send_flags = PVRDMA_SEND_SIGNALED;
        wqe->wr.ud.remote_qpn = b.qp->qp_num;
        wqe->wr.ud.remote_qkey = QKEY;
        memcpy(&wqe->wr.ud.av, to.av, sizeof(to.av));
        memcpy(wqe + 1, &sge, sizeof(sge));
        direct_publish(&qp_a.sq);
        expect_cqe(&cq_a, &qp_a, i, PVRDMA_WC_SUCCESS);
        struct pvrdma_cqe cqe = expect_cqe(&cq_b, &qp_b, i, PVRDMA_WC_SUCCESS);
        CHECK(cqe.byte_len == GRH + 64 && cqe.src_qp == a.qp->qp_num);
        expect_bytes(b.buffer + GRH, 64, i);
    }
    CHECK(!ibv_destroy_ah(ah));
    close_both(&device, &a, &b);
}

/* A CQ that was armed by its doorbell wakes who sleeps. */
static void armed(void)
{
    struct ibv_cq *cq;
    void *context;
    open_direct((struct shape){.depth = DEPTH, .events = 1});
    for (int i = 0; i < 5; i++) {
        direct_ring(cq_a.doorbell, cq_a.arm_value);
        CHECK(!direct_peek(&cq_a));
        CHECK(!send_one(&qp_a.sq, PVRDMA_WR_RDMA_WRITE, i, sge_of(&a, 0, 64), &b));
        CHECK(!ibv_get_cq_event(a.channel, &cq, &context) && cq == a.cq);
        ibv_ack_cq_events(cq, 1);
        expect_cqe(&cq_a, &qp_a, i, PVRDMA_WC_SUCCESS);
    }
    close_both(&device, &a, &b);
}

/* A QP with inline data says so; what is posted by its ring keeps its wr_id, whoever polls. */
static void beside_inline_data(void)
{
    open_direct((struct shape){.depth = DEPTH});
    struct ibv_qp_init_attr init = {
        .send_cq = a.cq,
        .recv_cq = a.cq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = DEPTH, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = 64},
    };
    struct ibv_qp_attr to_reset = {.qp_state = IBV_QPS_RESET};
    CHECK(!ibv_destroy_qp(a.qp) && !ibv_modify_qp(b.qp, &to_reset, IBV_QP_STATE));
    a.qp = ibv_create_qp(device.pd, &init);
    CHECK(a.qp);
    connect_ends(&device, &a, &b, USUAL);
    query_end(&a, &qp_a, &cq_a);
    CHECK(qp_a.flags == PVRDMADV_QP_OWN_WR_ID);
    for (uint64_t i = 0; i < 3 * DEPTH; i++) {
        struct ibv_sge sge = sge_of(&a, 0, 64);
        struct ibv_send_wr wr = work_to(&b, IBV_WR_RDMA_WRITE, i, &sge);
        wr.send_flags |= IBV_SEND_INLINE;
        post_send(&a, &wr);
        expect_wc(&a, i, IBV_WC_SUCCESS);
        CHECK(!send_one(&qp_a.sq, PVRDMA_WR_RDMA_WRITE, 1000 + i, sge_of(&a, 0, 64), &b));
        expect_wc(&a, 1000 + i, IBV_WC_SUCCESS);
        query_end(&a, &qp_a, &cq_a);
    }
    close_both(&device, &a, &b);
}

#define SIZES(query, object, type)                                                                                     \
    do {                                                                                                               \
        struct {                                                                                                       \
            type attr;                                                                                                 \
            uint8_t later[16], guard;                                                                                  \
        } room, before;                                                                                                \
        memset(&room, 0xaa, sizeof(room));                                                                             \
        before = room;                                                                                                 \
        CHECK(query(object, &room.attr, sizeof(type) - 1) == EINVAL);                                                  \
        CHECK(query(object, &room.attr, 0) == EINVAL);                                                                 \
        CHECK(query(object, &room.attr, 0xffffffff) == EINVAL);                                                        \
        CHECK(query(object, NULL, sizeof(type)) == EINVAL);                                                            \
        CHECK(query(NULL, &room.attr, sizeof(type)) == EINVAL);                                                        \
        CHECK(!memcmp(&room, &before, sizeof(room)));                                                                  \
        /* A program that was built with a longer struct finds zeros in what it knows and the library does not. */     \
        CHECK(query(object, &room.attr, sizeof(type) + 16) == 0);                                                      \
        expect_value(room.later, 16, 0);                                                                               \
        CHECK(room.guard == 0xaa && room.attr.comp_mask == 0);                                                         \
    } while (0)

/* Lengths that are none; nothing is written then. */
static void lengths(void)
{
    open_direct((struct shape){.depth = DEPTH});
    struct ibv_srq_init_attr attr = {.attr = {.max_wr = 1, .max_sge = 1}};
    struct ibv_srq *srq = ibv_create_srq(device.pd, &attr);
    struct ibv_ah *ah = ah_to(&device);
    CHECK(srq);
    SIZES(pvrdmadv_query_context, device.context, struct pvrdmadv_context);
    SIZES(pvrdmadv_query_qp, a.qp, struct pvrdmadv_qp);
    SIZES(pvrdmadv_query_cq, a.cq, struct pvrdmadv_cq);
    SIZES(pvrdmadv_query_srq, srq, struct pvrdmadv_srq);
    SIZES(pvrdmadv_query_ah, ah, struct pvrdmadv_ah);
    CHECK(!ibv_destroy_ah(ah) && !ibv_destroy_srq(srq));
    close_both(&device, &a, &b);
}

/* Counters that the program spoils are told, and the object can still be destroyed. */
static void spoiled(void)
{
    open_direct((struct shape){.depth = DEPTH});
    *qp_a.sq.prod_tail = DEPTH + 1;
    CHECK(pvrdmadv_query_qp(a.qp, &qp_a, sizeof(qp_a)) == EIO);
    *cq_a.cons_head = 4 * DEPTH;
    CHECK(pvrdmadv_query_cq(a.cq, &cq_a, sizeof(cq_a)) == EIO);
    close_both(&device, &a, &b);
}

/* Objects of another provider, and what is none, are not looked into. */
static void others(void)
{
    struct ibv_device no_device;
    struct ibv_context context = {.device = &no_device};
    struct ibv_qp qp = {.context = &context};
    struct ibv_cq cq = {.context = &context};
    struct ibv_srq srq = {.context = &context};
    struct ibv_ah ah = {.context = &context};
    union {
        struct pvrdmadv_context context;
        struct pvrdmadv_qp qp;
        struct pvrdmadv_cq cq;
        struct pvrdmadv_srq srq;
        struct pvrdmadv_ah ah;
    } attr;
    CHECK(!pvrdmadv_is_supported(NULL) && !pvrdmadv_is_supported(&no_device));
    CHECK(pvrdmadv_query_context(&context, &attr.context, sizeof(attr)) == EOPNOTSUPP);
    CHECK(pvrdmadv_query_qp(&qp, &attr.qp, sizeof(attr)) == EOPNOTSUPP);
    CHECK(pvrdmadv_query_cq(&cq, &attr.cq, sizeof(attr)) == EOPNOTSUPP);
    CHECK(pvrdmadv_query_srq(&srq, &attr.srq, sizeof(attr)) == EOPNOTSUPP);
    CHECK(pvrdmadv_query_ah(&ah, &attr.ah, sizeof(attr)) == EOPNOTSUPP);
    context.device = NULL;
    CHECK(pvrdmadv_query_qp(&qp, &attr.qp, sizeof(attr)) == EOPNOTSUPP);
}

/* libibverbs loads the file by another name; it is in the process once. */
static void loaded_once(void)
{
    unsigned long inode, found = 0;
    char line[4096], path[4096];
    device = open_device();
    CHECK(pvrdmadv_is_supported(device.context->device));
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    while (fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "%*s %*s %*s %*s %lu %4095s", &inode, path) != 2 || !strstr(path, "libvmw_pvrdma"))
            continue;
        CHECK(!found || found == inode, "another file too: %s", line);
        found = inode;
    }
    CHECK(found);
    fclose(maps);
    close_device(&device);
}

static const struct test_case CASES[] = {
    {"shapes", shapes},
    {"laps", laps},
    {"full", full},
    {"failures", failures},
    {"turns", turns},
    {"reset", reset},
    {"one_goes", one_goes},
    {"shared", shared},
    {"datagrams", datagrams},
    {"armed", armed},
    {"beside_inline_data", beside_inline_data},
    {"lengths", lengths},
    {"spoiled", spoiled},
    {"others", others},
    {"loaded_once", loaded_once},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, COUNT(CASES), argc, argv);
}

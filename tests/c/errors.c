/*
 * The table of errors (device/ERRORS.md), row by row: how a program provokes a completion status or an async event, and
 * what both sides see. The cases have the names of the rows.
 *
 * `a` asks, `b` answers; both are QPs of this process. Each case opens and closes everything it uses, so that any one
 * can be run alone.
 */
#include "ud.h"

static struct device device;
static struct end a, b;
static struct ibv_srq *srq;
static struct ibv_ah *ah;

static const struct patience SHORT = {.timeout = 8, .retry_cnt = 1, .rnr_retry = 1};

/* ---- ends of all kinds ---- */

static void open_pair_as(struct shape shape_a, struct shape shape_b)
{
    device = open_device();
    a = open_end(&device, shape_a);
    b = open_end(&device, shape_b);
    connect_ends(&device, &a, &b, SHORT);
}

static void open_pair(void)
{
    open_pair_as((struct shape){0}, (struct shape){0});
}

/* `b` takes its receives from an SRQ of 8 that tells when fewer than `limit` are left. */
static void open_srq_pair(uint32_t limit)
{
    device = open_device();
    struct ibv_srq_init_attr srq_init = {.attr = {.max_wr = 8, .max_sge = 1}};
    srq = ibv_create_srq(device.pd, &srq_init);
    CHECK(srq);
    if (limit) {
        struct ibv_srq_attr attr = {.srq_limit = limit};
        CHECK(!ibv_modify_srq(srq, &attr, IBV_SRQ_LIMIT));
    }
    a = open_end(&device, (struct shape){0});
    b = open_end(&device, (struct shape){0});
    CHECK(!ibv_destroy_qp(b.qp));
    struct ibv_qp_init_attr init = {.send_cq = b.cq,
                                    .recv_cq = b.cq,
                                    .srq = srq,
                                    .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 4, .max_send_sge = 1}};
    b.qp = ibv_create_qp(device.pd, &init);
    CHECK(b.qp);
    connect_ends(&device, &a, &b, SHORT);
}

static void post_srq_recv(uint64_t wr_id, uint32_t length)
{
    struct ibv_sge sge = sge_of(&b, 0, length);
    struct ibv_recv_wr wr = {.wr_id = wr_id, .sg_list = &sge, .num_sge = 1}, *bad;
    CHECK(!ibv_post_srq_recv(srq, &wr, &bad));
}

static void open_ud_pair(void)
{
    device = open_device();
    a = open_ud_end(&device, 8, NULL);
    b = open_ud_end(&device, 8, NULL);
    ud_to_rts(&a);
    ud_to_rts(&b);
    ah = ah_to(&device);
}

static void close_pair(void)
{
    if (ah)
        CHECK(!ibv_destroy_ah(ah));
    ah = NULL;
    close_end(&a);
    close_end(&b);
    if (srq)
        CHECK(!ibv_destroy_srq(srq));
    srq = NULL;
    close_device(&device);
}

/* ---- what is posted and what is seen ---- */

static struct ibv_send_wr work(enum ibv_wr_opcode opcode, uint64_t wr_id, struct ibv_sge *sge)
{
    return work_to(&b, opcode, wr_id, sge);
}

static struct ibv_send_wr fetch_and_add(uint64_t wr_id, struct ibv_sge *sge, size_t offset)
{
    struct ibv_send_wr wr = work(IBV_WR_ATOMIC_FETCH_AND_ADD, wr_id, sge);
    wr.wr.atomic.remote_addr = (uintptr_t)b.buffer + offset;
    wr.wr.atomic.rkey = b.mr->rkey;
    wr.wr.atomic.compare_add = 1;
    return wr;
}

/* Posts `wr` and a WRITE behind it: the first ends with `status`, the second is flushed, the QP is in ERR. */
static void fails(struct ibv_send_wr wr, enum ibv_wc_status status)
{
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr behind = work(IBV_WR_RDMA_WRITE, 99, &sge);
    /* What fails completes whether it asks to or not. */
    wr.send_flags = 0;
    behind.send_flags = 0;
    wr.next = &behind;
    post_send(&a, &wr);
    expect_wc(&a, wr.wr_id, status);
    expect_wc(&a, 99, IBV_WC_WR_FLUSH_ERR);
    CHECK(state_of(&a) == IBV_QPS_ERR, "state %d", state_of(&a));
}

static int event_within(int ms)
{
    struct pollfd fd = {.fd = device.context->async_fd, .events = POLLIN};
    int n = poll(&fd, 1, ms);
    CHECK(n >= 0);
    return n;
}

/* Waits for one async event, which must be this one, of this object. */
static void expect_event(enum ibv_event_type type, const void *object)
{
    struct ibv_async_event event;
    CHECK(event_within(10000) == 1, "no event, not %s", ibv_event_type_str(type));
    CHECK(!ibv_get_async_event(device.context, &event));
    CHECK(event.event_type == type, "%s, not %s", ibv_event_type_str(event.event_type), ibv_event_type_str(type));
    CHECK((const void *)event.element.qp == object, "of another object");
    ibv_ack_async_event(&event);
}

static void expect_no_event(void)
{
    if (event_within(20)) {
        struct ibv_async_event event;
        CHECK(!ibv_get_async_event(device.context, &event));
        CHECK(0, "%s", ibv_event_type_str(event.event_type));
    }
}

/* The responder's QP is in ERR too, and what it had posted comes back. */
static void answerer_is_dead(uint64_t flushed)
{
    expect_wc(&b, flushed, IBV_WC_WR_FLUSH_ERR);
    CHECK(state_of(&b) == IBV_QPS_ERR, "state %d", state_of(&b));
}

static void answerer_lives(void)
{
    CHECK(state_of(&b) == IBV_QPS_RTS, "state %d", state_of(&b));
    expect_nothing(&b);
}

/* ---- completion statuses ---- */

/* A receive shorter than the message. */
static void loc_len_err_recv(void)
{
    open_pair();
    post_recv(&b, 70, 0, 7);
    post_recv(&b, 71, 0, 64);
    struct ibv_sge sge = sge_of(&a, 0, 8);
    fails(work(IBV_WR_SEND, 1, &sge), IBV_WC_REM_INV_REQ_ERR);
    expect_wc(&b, 70, IBV_WC_LOC_LEN_ERR);
    answerer_is_dead(71);
    expect_no_event();
    close_pair();
}

/* A message longer than the port takes. */
static void loc_len_err_send(void)
{
    open_pair();
    struct ibv_sge sges[2] = {sge_of(&a, 0, 1u << 30), sge_of(&a, 0, 1)};
    CHECK(device.port.max_msg_sz == 1u << 30, "max_msg_sz %u", device.port.max_msg_sz);
    struct ibv_send_wr wr = work(IBV_WR_RDMA_WRITE, 1, sges);
    wr.num_sge = 2;
    fails(wr, IBV_WC_LOC_LEN_ERR);
    answerer_lives();
    close_pair();
}

/* An atomic operation on more or less than eight bytes. */
static void loc_len_err_atomic(void)
{
    static const uint32_t lengths[] = {0, 4, 16};
    for (size_t i = 0; i < 3; i++) {
        open_pair();
        struct ibv_sge sge = sge_of(&a, 0, lengths[i]);
        fails(fetch_and_add(1, &sge, 0), IBV_WC_LOC_LEN_ERR);
        answerer_lives();
        close_pair();
    }
}

/* A datagram longer than a packet stops the sends of its QP, and nothing else: SQE, out of which RTS leads. */
static void loc_len_err_datagram(void)
{
    open_ud_pair();
    post_recv(&a, 60, 0, 4096);
    struct ibv_sge sge = sge_of(&a, 0, 4097), small = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = datagram(1, &sge, ah, &b), behind = datagram(2, &small, ah, &b);
    wr.next = &behind;
    post_send(&a, &wr);
    expect_wc(&a, 1, IBV_WC_LOC_LEN_ERR);
    expect_wc(&a, 2, IBV_WC_WR_FLUSH_ERR);
    CHECK(state_of(&a) == IBV_QPS_SQE, "state %d", state_of(&a));
    expect_nothing(&a);
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTS};
    CHECK(!ibv_modify_qp(a.qp, &attr, IBV_QP_STATE));
    post_recv(&b, 70, 0, 4096);
    wr = datagram(3, &small, ah, &b);
    post_send(&a, &wr);
    expect_wc(&a, 3, IBV_WC_SUCCESS);
    CHECK(expect_wc(&b, 70, IBV_WC_SUCCESS).byte_len == 8 + GRH);
    expect_no_event();
    close_pair();
}

/* A READ on a QP that may have none on their way. */
static void loc_qp_op_err(void)
{
    device = open_device();
    a = open_end(&device, (struct shape){0});
    b = open_end(&device, (struct shape){0});
    to_init(&a);
    to_init(&b);
    to_rtr(&a, b.qp->qp_num, device.gid);
    to_rtr(&b, a.qp->qp_num, device.gid);
    to_rts(&b, SHORT);
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTS, .timeout = 8, .retry_cnt = 1, .rnr_retry = 1, .sq_psn = 7, .max_rd_atomic = 0};
    CHECK(!ibv_modify_qp(a.qp, &attr,
                         IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                             IBV_QP_MAX_QP_RD_ATOMIC));
    struct ibv_sge sge = sge_of(&a, 0, 8);
    fails(work(IBV_WR_RDMA_READ, 1, &sge), IBV_WC_LOC_QP_OP_ERR);
    answerer_lives();
    expect_no_event();
    close_pair();
}

/* An lkey that is none. */
static void loc_prot_err_send(void)
{
    open_pair();
    post_recv(&b, 70, 0, 64);
    struct ibv_sge sge = sge_of(&a, 0, 8);
    sge.lkey ^= 0x5500;
    fails(work(IBV_WR_SEND, 1, &sge), IBV_WC_LOC_PROT_ERR);
    answerer_lives();
    expect_no_event();
    close_pair();
}

/* A receive with an lkey that is none. */
static void loc_prot_err_recv(void)
{
    open_pair();
    struct ibv_sge sge = sge_of(&b, 0, 64);
    sge.lkey ^= 0x5500;
    struct ibv_recv_wr wr = {.wr_id = 70, .sg_list = &sge, .num_sge = 1}, *bad;
    CHECK(!ibv_post_recv(b.qp, &wr, &bad));
    post_recv(&b, 71, 0, 64);
    sge = sge_of(&a, 0, 8);
    fails(work(IBV_WR_SEND, 1, &sge), IBV_WC_REM_OP_ERR);
    expect_wc(&b, 70, IBV_WC_LOC_PROT_ERR);
    answerer_is_dead(71);
    expect_no_event();
    close_pair();
}

/* ERR by ibv_modify_qp: everything posted comes back, in order. */
static void wr_flush_err(void)
{
    open_pair();
    for (uint64_t i = 70; i < 74; i++)
        post_recv(&b, i, 0, 64);
    to_error(&b);
    for (uint64_t i = 70; i < 74; i++)
        expect_wc(&b, i, IBV_WC_WR_FLUSH_ERR);
    struct ibv_sge sge = sge_of(&b, 0, 8);
    struct ibv_send_wr wr = work(IBV_WR_SEND, 5, &sge);
    wr.send_flags = 0;
    post_send(&b, &wr);
    expect_wc(&b, 5, IBV_WC_WR_FLUSH_ERR);
    expect_no_event();
    close_pair();
}

/* An atomic operation that is not aligned. */
static void rem_inv_req_err(void)
{
    open_pair_as((struct shape){0}, (struct shape){.access = ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC});
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTS, .qp_access_flags = ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC};
    CHECK(!ibv_modify_qp(b.qp, &attr, IBV_QP_STATE | IBV_QP_ACCESS_FLAGS));
    post_recv(&b, 70, 0, 64);
    memset(b.buffer, 0x11, 64);
    struct ibv_sge sge = sge_of(&a, 0, 8);
    fails(fetch_and_add(1, &sge, 4), IBV_WC_REM_INV_REQ_ERR);
    answerer_is_dead(70);
    expect_event(IBV_EVENT_QP_REQ_ERR, b.qp);
    expect_value(b.buffer, 64, 0x11);
    expect_no_event();
    close_pair();
}

/* An rkey that is none, and one that does not allow it: the target is told too. */
static void rem_access_err(void)
{
    static const enum ibv_wr_opcode opcodes[] = {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_ATOMIC_FETCH_AND_ADD};
    for (size_t i = 0; i < 6; i++) {
        open_pair_as((struct shape){0}, (struct shape){.access = IBV_ACCESS_LOCAL_WRITE});
        post_recv(&b, 70, 0, 64);
        memset(b.buffer, 0x11, 64);
        struct ibv_sge sge = sge_of(&a, 0, 8);
        struct ibv_send_wr wr = work(opcodes[i / 2], 1, &sge);
        if (opcodes[i / 2] == IBV_WR_ATOMIC_FETCH_AND_ADD)
            wr = fetch_and_add(1, &sge, 0);
        if (i % 2) {
            wr.wr.rdma.rkey ^= 0x5500;
            if (opcodes[i / 2] == IBV_WR_ATOMIC_FETCH_AND_ADD)
                wr.wr.atomic.rkey ^= 0x5500;
        }
        fails(wr, IBV_WC_REM_ACCESS_ERR);
        answerer_is_dead(70);
        expect_event(IBV_EVENT_QP_ACCESS_ERR, b.qp);
        expect_value(b.buffer, 64, 0x11);
        expect_no_event();
        close_pair();
    }
}

/* See loc_prot_err_recv for what the other side sees. */
static void rem_op_err(void)
{
    open_srq_pair(0);
    struct ibv_sge sge = sge_of(&b, 0, 64);
    sge.lkey ^= 0x5500;
    struct ibv_recv_wr wr = {.wr_id = 70, .sg_list = &sge, .num_sge = 1}, *bad;
    CHECK(!ibv_post_srq_recv(srq, &wr, &bad));
    sge = sge_of(&a, 0, 8);
    fails(work(IBV_WR_SEND, 1, &sge), IBV_WC_REM_OP_ERR);
    expect_wc(&b, 70, IBV_WC_LOC_PROT_ERR);
    CHECK(state_of(&b) == IBV_QPS_ERR);
    expect_event(IBV_EVENT_QP_LAST_WQE_REACHED, b.qp);
    expect_no_event();
    close_pair();
}

/* Nobody answers: the peer is in RESET, and another time a number that nobody has. */
static void retry_exc_err(void)
{
    open_pair();
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RESET};
    CHECK(!ibv_modify_qp(b.qp, &attr, IBV_QP_STATE));
    struct ibv_sge sge = sge_of(&a, 0, 8);
    fails(work(IBV_WR_RDMA_WRITE, 1, &sge), IBV_WC_RETRY_EXC_ERR);
    CHECK(state_of(&b) == IBV_QPS_RESET);
    expect_no_event();
    close_pair();

    device = open_device();
    a = open_end(&device, (struct shape){0});
    b = open_end(&device, (struct shape){0});
    to_init(&a);
    to_rtr(&a, b.qp->qp_num ^ 0x4000, device.gid);
    to_rts(&a, SHORT);
    fails(work(IBV_WR_RDMA_WRITE, 1, &(struct ibv_sge){(uintptr_t)a.buffer, 8, a.mr->lkey}), IBV_WC_RETRY_EXC_ERR);
    expect_no_event();
    close_pair();
}

/* No receive is posted, and the patience is at its end. */
static void rnr_retry_exc_err(void)
{
    open_pair();
    struct ibv_sge sge = sge_of(&a, 0, 8);
    fails(work(IBV_WR_SEND, 1, &sge), IBV_WC_RNR_RETRY_EXC_ERR);
    answerer_lives();
    expect_no_event();
    close_pair();
}

/* ---- async events ---- */

/* More completions than a CQ holds: the CQ is dead, and so are its QPs. What it held can still be had. */
static void cq_err(void)
{
    open_pair_as((struct shape){.depth = 64, .cqe = 4}, (struct shape){0});
    struct ibv_sge sge = sge_of(&a, 0, 8);
    int held = a.cq->cqe;
    CHECK(held < 60, "cqe %d", held);
    for (int i = 0; i <= held; i++) {
        struct ibv_send_wr wr = work(IBV_WR_RDMA_WRITE, i, &sge);
        post_send(&a, &wr);
    }
    expect_event(IBV_EVENT_CQ_ERR, a.cq);
    CHECK(state_of(&a) == IBV_QPS_ERR, "state %d", state_of(&a));
    for (int i = 0; i < held; i++)
        expect_wc(&a, i, IBV_WC_SUCCESS);
    expect_nothing(&a);
    answerer_lives();
    expect_no_event();
    close_pair();
}

/* The first message in RTR, once. */
static void comm_est(void)
{
    device = open_device();
    a = open_end(&device, (struct shape){0});
    b = open_end(&device, (struct shape){0});
    to_init(&a);
    to_init(&b);
    to_rtr(&b, a.qp->qp_num, device.gid);
    to_rtr(&a, b.qp->qp_num, device.gid);
    to_rts(&a, SHORT);
    for (uint64_t i = 0; i < 3; i++) {
        post_recv(&b, 70 + i, 0, 64);
        struct ibv_sge sge = sge_of(&a, 0, 8);
        struct ibv_send_wr wr = work(IBV_WR_SEND, i, &sge);
        post_send(&a, &wr);
        expect_wc(&a, i, IBV_WC_SUCCESS);
        expect_wc(&b, 70 + i, IBV_WC_SUCCESS);
        if (i == 0)
            expect_event(IBV_EVENT_COMM_EST, b.qp);
        expect_no_event();
    }
    CHECK(state_of(&b) == IBV_QPS_RTR);
    close_pair();
}

/* RTS -> SQD, if it was asked for: as soon as nothing is on its way. */
static void sq_drained(void)
{
    open_pair();
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_SQD, .en_sqd_async_notify = 1};
    struct ibv_qp_attr rts = {.qp_state = IBV_QPS_RTS};
    CHECK(!ibv_modify_qp(a.qp, &attr, IBV_QP_STATE));
    expect_no_event();
    CHECK(!ibv_modify_qp(a.qp, &rts, IBV_QP_STATE));
    CHECK(!ibv_modify_qp(a.qp, &attr, IBV_QP_STATE | IBV_QP_EN_SQD_ASYNC_NOTIFY));
    expect_event(IBV_EVENT_SQ_DRAINED, a.qp);
    expect_no_event();
    CHECK(state_of(&a) == IBV_QPS_SQD);
    /* What is posted in SQD waits for RTS. */
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work(IBV_WR_RDMA_WRITE, 1, &sge);
    post_send(&a, &wr);
    expect_nothing(&a);
    CHECK(!ibv_modify_qp(a.qp, &rts, IBV_QP_STATE));
    expect_wc(&a, 1, IBV_WC_SUCCESS);
    close_pair();
}

/* Fewer receives than the limit are left: one event for each time the limit is set. */
static void srq_limit_reached(void)
{
    open_srq_pair(0);
    for (uint64_t i = 0; i < 6; i++)
        post_srq_recv(70 + i, 64);
    for (int round = 0; round < 2; round++) {
        struct ibv_srq_attr attr = {.srq_limit = 5 - 3 * round};
        CHECK(!ibv_modify_srq(srq, &attr, IBV_SRQ_LIMIT));
        expect_no_event();
        for (int i = 0; i < 3; i++) {
            struct ibv_sge sge = sge_of(&a, 0, 8);
            struct ibv_send_wr wr = work(IBV_WR_SEND, i, &sge);
            post_send(&a, &wr);
            expect_wc(&a, i, IBV_WC_SUCCESS);
            expect_wc(&b, 70 + 3 * round + i, IBV_WC_SUCCESS);
            /* Six are there; the second message leaves four, and one in the second round. */
            if (i == 1)
                expect_event(IBV_EVENT_SRQ_LIMIT_REACHED, srq);
            expect_no_event();
        }
        CHECK(!ibv_query_srq(srq, &attr));
        CHECK(attr.srq_limit == 0, "limit %u", attr.srq_limit);
    }
    close_pair();
}

/* A QP in ERR takes no more receives from its SRQ; they stay there for others. */
static void qp_last_wqe_reached(void)
{
    open_srq_pair(0);
    post_srq_recv(70, 64);
    to_error(&b);
    expect_event(IBV_EVENT_QP_LAST_WQE_REACHED, b.qp);
    expect_no_event();
    expect_nothing(&b);
    close_pair();
}

/* Datagrams that nobody takes: no receive, another Q_Key, a receive too short. The sender's work is done all the same. */
static void dropped_datagram(void)
{
    open_ud_pair();
    struct ibv_sge sge = sge_of(&a, 0, 64);
    struct ibv_send_wr wr = datagram(1, &sge, ah, &b);
    post_send(&a, &wr);
    expect_wc(&a, 1, IBV_WC_SUCCESS);
    post_recv(&b, 70, 0, GRH + 63);
    wr = datagram(2, &sge, ah, &b);
    post_send(&a, &wr);
    expect_wc(&a, 2, IBV_WC_SUCCESS);
    wr = datagram(3, &sge, ah, &b);
    wr.num_sge = 0;
    wr.wr.ud.remote_qkey ^= 1;
    post_send(&a, &wr);
    expect_wc(&a, 3, IBV_WC_SUCCESS);
    expect_nothing(&b);
    /* The receive was spent by none of them. */
    wr = datagram(4, &sge, ah, &b);
    sge.length = 63;
    post_send(&a, &wr);
    expect_wc(&a, 4, IBV_WC_SUCCESS);
    CHECK(expect_wc(&b, 70, IBV_WC_SUCCESS).byte_len == GRH + 63);
    expect_no_event();
    close_pair();
}

int main(int argc, char **argv)
{
    static const struct test_case cases[] = {
        {"loc_len_err_recv", loc_len_err_recv},
        {"loc_len_err_send", loc_len_err_send},
        {"loc_len_err_atomic", loc_len_err_atomic},
        {"loc_len_err_datagram", loc_len_err_datagram},
        {"loc_qp_op_err", loc_qp_op_err},
        {"loc_prot_err_send", loc_prot_err_send},
        {"loc_prot_err_recv", loc_prot_err_recv},
        {"wr_flush_err", wr_flush_err},
        {"rem_inv_req_err", rem_inv_req_err},
        {"rem_access_err", rem_access_err},
        {"rem_op_err", rem_op_err},
        {"retry_exc_err", retry_exc_err},
        {"rnr_retry_exc_err", rnr_retry_exc_err},
        {"cq_err", cq_err},
        {"comm_est", comm_est},
        {"sq_drained", sq_drained},
        {"srq_limit_reached", srq_limit_reached},
        {"qp_last_wqe_reached", qp_last_wqe_reached},
        {"dropped_datagram", dropped_datagram},
    };
    return run_cases(cases, sizeof(cases) / sizeof(cases[0]), argc, argv);
}

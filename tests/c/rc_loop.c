/*
 * RC connections between two QPs of one process: what each verb must do, with nothing left to timing.
 *
 * Each case opens and closes everything it uses, so that any one can be run alone.
 */
#include "holdings.h"

static const uint32_t LENGTHS[] = {0, 1, 7, 8, 63, 64, 65, 4095, 4096, 4097, 65536, 1 << 20};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct device device;
static struct end a, b;

static void open_pair_as(struct shape shape_a, struct shape shape_b, struct patience patience)
{
    device = open_device();
    a = open_end(&device, shape_a);
    b = open_end(&device, shape_b);
    connect_ends(&device, &a, &b, patience);
}

static void open_pair(void)
{
    open_pair_as((struct shape){0}, (struct shape){0}, USUAL);
}

static void close_pair(void)
{
    close_both(&device, &a, &b);
}

static struct ibv_send_wr work(enum ibv_wr_opcode opcode, uint64_t wr_id, struct ibv_sge *sge)
{
    return work_to(&b, opcode, wr_id, sge);
}

/* ---- data ---- */

/* Moves every length with `opcode`; an opcode that takes a receive finds one posted. */
static void moves(enum ibv_wr_opcode opcode, int takes_receive, enum ibv_wc_opcode done, enum ibv_wc_opcode received)
{
    open_pair();
    for (size_t i = 0; i < COUNT(LENGTHS); i++) {
        uint32_t length = LENGTHS[i];
        uint8_t *source = opcode == IBV_WR_RDMA_READ ? b.buffer : a.buffer;
        uint8_t *target = opcode == IBV_WR_RDMA_READ ? a.buffer : b.buffer;
        fill(source, length, i);
        memset(target, 0xee, a.length);
        if (takes_receive)
            post_recv(&b, 100 + i, 0, opcode == IBV_WR_RDMA_WRITE_WITH_IMM ? 0 : a.length);

        struct ibv_sge sge = sge_of(&a, 0, length);
        struct ibv_send_wr wr = work(opcode, i, &sge);
        int has_imm = opcode == IBV_WR_SEND_WITH_IMM || opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
        if (has_imm)
            wr.imm_data = htobe32(0x12345678);
        post_send(&a, &wr);

        struct ibv_wc wc = expect_wc(&a, i, IBV_WC_SUCCESS);
        CHECK(wc.opcode == done, "opcode %d", wc.opcode);
        if (takes_receive) {
            wc = expect_wc(&b, 100 + i, IBV_WC_SUCCESS);
            CHECK(wc.opcode == received, "opcode %d", wc.opcode);
            CHECK(wc.byte_len == length, "byte_len %u, not %u", wc.byte_len, length);
            CHECK(!!(wc.wc_flags & IBV_WC_WITH_IMM) == has_imm, "flags %x", wc.wc_flags);
            CHECK(!has_imm || wc.imm_data == htobe32(0x12345678));
            CHECK(wc.src_qp == a.qp->qp_num || wc.src_qp == 0, "src_qp %x", wc.src_qp);
        }
        expect_bytes(target, length, i);
        expect_value(target + length, a.length - length, 0xee);
    }
    expect_nothing(&a);
    expect_nothing(&b);
    close_pair();
}

static void send_moves(void)
{
    moves(IBV_WR_SEND, 1, IBV_WC_SEND, IBV_WC_RECV);
}

static void send_imm_moves(void)
{
    moves(IBV_WR_SEND_WITH_IMM, 1, IBV_WC_SEND, IBV_WC_RECV);
}

static void write_moves(void)
{
    moves(IBV_WR_RDMA_WRITE, 0, IBV_WC_RDMA_WRITE, 0);
}

static void write_imm_moves(void)
{
    moves(IBV_WR_RDMA_WRITE_WITH_IMM, 1, IBV_WC_RDMA_WRITE, IBV_WC_RECV_RDMA_WITH_IMM);
}

static void read_moves(void)
{
    moves(IBV_WR_RDMA_READ, 0, IBV_WC_RDMA_READ, 0);
}

/* Gather of four pieces into scatter of three, with different cuts. */
static void pieces(void)
{
    open_pair();
    static const uint32_t from[] = {1, 4096, 0, 903}, to[] = {2500, 1, 2499};
    struct ibv_sge gather[COUNT(from)], scatter[COUNT(to)];
    fill(a.buffer, 5000, 3);
    size_t offset = 0;
    for (size_t i = 0; i < COUNT(from); i++) {
        gather[i] = sge_of(&a, offset, from[i]);
        offset += from[i];
    }
    /* The receive's pieces lie in reverse order, a page apart. */
    for (size_t i = 0; i < COUNT(to); i++)
        scatter[i] = sge_of(&b, (COUNT(to) - i) * 8192, to[i]);
    struct ibv_recv_wr recv = {.wr_id = 2, .sg_list = scatter, .num_sge = COUNT(to)}, *bad_recv;
    CHECK(!ibv_post_recv(b.qp, &recv, &bad_recv));
    struct ibv_send_wr wr = work(IBV_WR_SEND, 1, gather);
    wr.num_sge = COUNT(from);
    post_send(&a, &wr);
    expect_wc(&a, 1, IBV_WC_SUCCESS);
    CHECK(expect_wc(&b, 2, IBV_WC_SUCCESS).byte_len == 5000);
    uint8_t joined[5000];
    offset = 0;
    for (size_t i = 0; i < COUNT(to); i++) {
        memcpy(joined + offset, (void *)(uintptr_t)scatter[i].addr, to[i]);
        offset += to[i];
    }
    expect_bytes(joined, sizeof(joined), 3);
    close_pair();
}

/* Messages of one QP arrive in the order they were posted in, through a ring that wraps many times. */
static void order(void)
{
    open_pair_as((struct shape){.depth = 8}, (struct shape){.depth = 8}, USUAL);
    for (uint32_t i = 0; i < 1000; i++) {
        post_recv(&b, i, 8 * (i % 8), 8);
        uint64_t value = i * 0x100000001ull;
        memcpy(a.buffer, &value, 8);
        struct ibv_sge sge = sge_of(&a, 0, 8);
        struct ibv_send_wr wr = work(IBV_WR_SEND, i, &sge);
        post_send(&a, &wr);
        expect_wc(&a, i, IBV_WC_SUCCESS);
        expect_wc(&b, i, IBV_WC_SUCCESS);
        CHECK(!memcmp(b.buffer + 8 * (i % 8), &value, 8), "message %u", i);
    }
    close_pair();
}

/* Lists of eight through a ring of eight: the whole ring in one call, again and again. */
static void lists(void)
{
    open_pair_as((struct shape){.depth = 8, .cqe = 8}, (struct shape){.depth = 8, .cqe = 8}, USUAL);
    for (uint32_t round = 0; round < 200; round++) {
        struct ibv_sge sges[8];
        struct ibv_send_wr wrs[8];
        struct ibv_recv_wr recvs[8], *bad_recv;
        struct ibv_sge places[8];
        for (uint32_t i = 0; i < 8; i++) {
            places[i] = sge_of(&b, 64 * i, 64);
            recvs[i] = (struct ibv_recv_wr){
                .wr_id = i, .sg_list = &places[i], .num_sge = 1, .next = i < 7 ? &recvs[i + 1] : NULL};
            fill(a.buffer + 64 * i, 64, 8 * round + i);
            sges[i] = sge_of(&a, 64 * i, 64);
            wrs[i] = work(IBV_WR_SEND, i, &sges[i]);
            wrs[i].next = i < 7 ? &wrs[i + 1] : NULL;
        }
        CHECK(!ibv_post_recv(b.qp, recvs, &bad_recv));
        post_send(&a, wrs);
        for (uint32_t i = 0; i < 8; i++) {
            expect_wc(&a, i, IBV_WC_SUCCESS);
            expect_wc(&b, i, IBV_WC_SUCCESS);
            expect_bytes(b.buffer + 64 * i, 64, 8 * round + i);
        }
    }
    close_pair();
}

/* Only the WRs that ask for a completion get one, unless the QP asks for all. */
static void signaled(void)
{
    for (int all = 0; all < 2; all++) {
        open_pair_as((struct shape){.all_signaled = all}, (struct shape){0}, USUAL);
        for (uint32_t i = 0; i < 8; i++) {
            struct ibv_sge sge = sge_of(&a, 0, 8);
            struct ibv_send_wr wr = work(IBV_WR_RDMA_WRITE, i, &sge);
            if (i % 4 != 3)
                wr.send_flags = 0;
            post_send(&a, &wr);
        }
        for (uint32_t i = all ? 0 : 3; i < 8; i += all ? 1 : 4)
            expect_wc(&a, i, IBV_WC_SUCCESS);
        expect_nothing(&a);
        close_pair();
    }
}

/* ---- errors that end a connection ---- */

/* After an error completion the QP is in ERR and gives back everything else as flushed. */
static void expect_dead(struct end *end)
{
    CHECK(state_of(end) == IBV_QPS_ERR, "state %d", state_of(end));
    struct ibv_sge sge = sge_of(end, 0, 8);
    struct ibv_send_wr wr = {
        .wr_id = 900, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .sg_list = &sge, .num_sge = 1};
    post_send(end, &wr);
    expect_wc(end, 900, IBV_WC_WR_FLUSH_ERR);
    post_recv(end, 901, 0, 8);
    expect_wc(end, 901, IBV_WC_WR_FLUSH_ERR);
}

/* One WRITE that must end with `status` on both an empty and a busy queue; the second WR is flushed. */
static void write_fails(struct ibv_sge sge, uint64_t remote_addr, uint32_t rkey, enum ibv_wc_status status)
{
    struct ibv_send_wr second = work(IBV_WR_RDMA_WRITE, 2, &sge);
    struct ibv_send_wr first = work(IBV_WR_RDMA_WRITE, 1, &sge);
    /* Flushed and failed WRs complete whether they ask to or not. */
    second.send_flags = 0;
    first.send_flags = 0;
    first.next = &second;
    first.wr.rdma.remote_addr = remote_addr;
    first.wr.rdma.rkey = rkey;
    post_send(&a, &first);
    expect_wc(&a, 1, status);
    expect_wc(&a, 2, IBV_WC_WR_FLUSH_ERR);
    expect_dead(&a);
}

static void bad_rkey(void)
{
    open_pair();
    memset(b.buffer, 0x11, 64);
    write_fails(sge_of(&a, 0, 8), (uintptr_t)b.buffer, b.mr->rkey ^ 0x55, IBV_WC_REM_ACCESS_ERR);
    expect_value(b.buffer, 64, 0x11);
    close_pair();
}

/* One byte beyond either edge of the region. */
static void outside_region(void)
{
    open_pair();
    write_fails(sge_of(&a, 0, 8), (uintptr_t)b.buffer + b.length - 7, b.mr->rkey, IBV_WC_REM_ACCESS_ERR);
    close_pair();
    open_pair();
    write_fails(sge_of(&a, 0, 8), (uintptr_t)b.buffer - 1, b.mr->rkey, IBV_WC_REM_ACCESS_ERR);
    close_pair();
    open_pair();
    struct ibv_sge sge = sge_of(&a, a.length - 7, 8);
    write_fails(sge, (uintptr_t)b.buffer, b.mr->rkey, IBV_WC_LOC_PROT_ERR);
    close_pair();
    /* The last eight bytes are inside. */
    open_pair();
    sge = sge_of(&a, a.length - 8, 8);
    struct ibv_send_wr wr = work(IBV_WR_RDMA_WRITE, 1, &sge);
    wr.wr.rdma.remote_addr += b.length - 8;
    post_send(&a, &wr);
    expect_wc(&a, 1, IBV_WC_SUCCESS);
    close_pair();
}

static void bad_lkey(void)
{
    open_pair();
    struct ibv_sge sge = sge_of(&a, 0, 8);
    sge.lkey ^= 0x55;
    write_fails(sge, (uintptr_t)b.buffer, b.mr->rkey, IBV_WC_LOC_PROT_ERR);
    close_pair();
}

/* A region without REMOTE_WRITE can be read; without REMOTE_READ it cannot. */
static void access_rights(void)
{
    open_pair_as((struct shape){0}, (struct shape){.access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ}, USUAL);
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work(IBV_WR_RDMA_READ, 1, &sge);
    post_send(&a, &wr);
    expect_wc(&a, 1, IBV_WC_SUCCESS);
    write_fails(sge, (uintptr_t)b.buffer, b.mr->rkey, IBV_WC_REM_ACCESS_ERR);
    close_pair();

    open_pair_as((struct shape){0}, (struct shape){.access = IBV_ACCESS_LOCAL_WRITE}, USUAL);
    sge = sge_of(&a, 0, 8);
    wr = work(IBV_WR_RDMA_READ, 1, &sge);
    post_send(&a, &wr);
    expect_wc(&a, 1, IBV_WC_REM_ACCESS_ERR);
    expect_dead(&a);
    close_pair();
}

/* A receive that is too small: a length error there, an invalid request here. */
static void local_length(void)
{
    open_pair();
    memset(b.buffer, 0x22, 64);
    post_recv(&b, 5, 0, 7);
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work(IBV_WR_SEND, 1, &sge);
    post_send(&a, &wr);
    expect_wc(&a, 1, IBV_WC_REM_INV_REQ_ERR);
    expect_wc(&b, 5, IBV_WC_LOC_LEN_ERR);
    expect_value(b.buffer + 7, 57, 0x22);
    expect_dead(&a);
    close_pair();
}

/* A key of a region that has been taken back is a bad key. */
static void deregistered(void)
{
    open_pair();
    struct ibv_mr *old = b.mr;
    uint32_t rkey = old->rkey;
    b.mr = ibv_reg_mr(device.pd, b.buffer, b.length, ALL_ACCESS);
    CHECK(b.mr && b.mr->rkey != rkey);
    CHECK(!ibv_dereg_mr(old));
    write_fails(sge_of(&a, 0, 8), (uintptr_t)b.buffer, rkey, IBV_WC_REM_ACCESS_ERR);
    close_pair();
}

/* Memory that is registered but gone: an error completion, not a fault. Either side. */
static void unmapped(void)
{
    open_pair();
    CHECK(!munmap(a.buffer, a.length));
    write_fails(sge_of(&a, 0, 8), (uintptr_t)b.buffer, b.mr->rkey, IBV_WC_LOC_PROT_ERR);
    close_pair();

    open_pair();
    CHECK(!munmap(b.buffer, b.length));
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work(IBV_WR_RDMA_WRITE, 1, &sge);
    post_send(&a, &wr);
    struct ibv_wc wc = wait_wc(&a);
    CHECK(wc.wr_id == 1 && (wc.status == IBV_WC_REM_ACCESS_ERR || wc.status == IBV_WC_REM_OP_ERR), "%s",
          ibv_wc_status_str(wc.status));
    CHECK(state_of(&a) == IBV_QPS_ERR);
    close_pair();
}

/* ibv_modify_qp to ERR gives back what was posted, in order, on both queues. */
static void flush(void)
{
    open_pair();
    for (uint32_t i = 0; i < 5; i++)
        post_recv(&b, 10 + i, 0, 64);
    to_error(&b);
    for (uint32_t i = 0; i < 5; i++)
        expect_wc(&b, 10 + i, IBV_WC_WR_FLUSH_ERR);
    expect_dead(&b);
    expect_nothing(&b);
    close_pair();
}

/* A QP that comes back from ERR through RESET works like a new one. */
static void reset(void)
{
    open_pair();
    for (int round = 0; round < 20; round++) {
        post_recv(&b, 1, 0, 64);
        to_error(&a);
        to_error(&b);
        expect_wc(&b, 1, IBV_WC_WR_FLUSH_ERR);
        struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RESET};
        CHECK(!ibv_modify_qp(a.qp, &attr, IBV_QP_STATE));
        CHECK(!ibv_modify_qp(b.qp, &attr, IBV_QP_STATE));
        connect_ends(&device, &a, &b, USUAL);
        fill(a.buffer, 64, round);
        post_recv(&b, 2, 0, 64);
        struct ibv_sge sge = sge_of(&a, 0, 64);
        struct ibv_send_wr wr = work(IBV_WR_SEND, 3, &sge);
        post_send(&a, &wr);
        expect_wc(&a, 3, IBV_WC_SUCCESS);
        expect_wc(&b, 2, IBV_WC_SUCCESS);
        expect_bytes(b.buffer, 64, round);
    }
    close_pair();
}

/* No receive posted and no patience: the sender is told. */
static void receiver_not_ready(void)
{
    open_pair_as((struct shape){0}, (struct shape){0}, (struct patience){.timeout = 14, .retry_cnt = 7, .rnr_retry = 0});
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work(IBV_WR_SEND, 1, &sge);
    post_send(&a, &wr);
    expect_wc(&a, 1, IBV_WC_RNR_RETRY_EXC_ERR);
    expect_dead(&a);
    close_pair();
}

/* No receive posted, and all the patience there is: the message arrives when the receive does. */
static void receiver_late(void)
{
    open_pair();
    fill(a.buffer, 64, 1);
    struct ibv_sge sge = sge_of(&a, 0, 64);
    struct ibv_send_wr wr = work(IBV_WR_SEND, 1, &sge);
    post_send(&a, &wr);
    expect_nothing(&a);
    post_recv(&b, 2, 0, 64);
    expect_wc(&a, 1, IBV_WC_SUCCESS);
    expect_wc(&b, 2, IBV_WC_SUCCESS);
    expect_bytes(b.buffer, 64, 1);
    close_pair();
}

/* ---- what the verb itself refuses ---- */

/* A full queue gives ENOMEM and names the WR that did not fit; those before it are carried out. */
static void full_ring(void)
{
    open_pair_as((struct shape){.depth = 4}, (struct shape){.depth = 4}, USUAL);
    uint32_t posted = 0;
    struct ibv_recv_wr *bad_recv = NULL;
    int error;
    for (;;) {
        struct ibv_sge sge = sge_of(&b, 0, 64);
        struct ibv_recv_wr wr = {.wr_id = posted, .sg_list = &sge, .num_sge = 1};
        error = ibv_post_recv(b.qp, &wr, &bad_recv);
        if (error) {
            CHECK(error == ENOMEM, "post_recv gives %d", error);
            CHECK(bad_recv == &wr);
            break;
        }
        CHECK(++posted <= 1024, "the ring never fills");
    }
    CHECK(posted >= 4, "room for %u", posted);

    /* The same for sends. The receiver is not ready once its receives are used up, so the sends stay. */
    struct ibv_sge sge = sge_of(&a, 0, 64);
    struct ibv_send_wr wrs[64], *bad = NULL;
    for (uint32_t i = 0; i < COUNT(wrs); i++) {
        wrs[i] = work(IBV_WR_SEND, i, &sge);
        wrs[i].next = i + 1 < COUNT(wrs) ? &wrs[i + 1] : NULL;
    }
    error = ibv_post_send(a.qp, wrs, &bad);
    CHECK(error == ENOMEM, "post_send gives %d", error);
    uint32_t sent = (uint32_t)(bad - wrs);
    CHECK(sent >= 4 && sent < COUNT(wrs), "bad_wr is %u", sent);
    for (uint32_t i = 0; i < sent && i < posted; i++) {
        expect_wc(&b, i, IBV_WC_SUCCESS);
        expect_wc(&a, i, IBV_WC_SUCCESS);
    }
    close_pair();
}

/* An impossible WR in a list: EINVAL, bad_wr is that one, the ones before it are carried out, none after it. */
static void bad_wr(void)
{
    open_pair();
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wrs[3], *bad = NULL;
    for (uint32_t i = 0; i < 3; i++) {
        wrs[i] = work(IBV_WR_RDMA_WRITE, i, &sge);
        wrs[i].next = i < 2 ? &wrs[i + 1] : NULL;
    }
    wrs[1].num_sge = 10000;
    int error = ibv_post_send(a.qp, wrs, &bad);
    CHECK(error == EINVAL, "post_send gives %d", error);
    CHECK(bad == &wrs[1]);
    expect_wc(&a, 0, IBV_WC_SUCCESS);
    expect_nothing(&a);

    struct ibv_sge place = sge_of(&b, 0, 8);
    struct ibv_recv_wr recvs[2], *bad_recv = NULL;
    recvs[0] = (struct ibv_recv_wr){.wr_id = 1, .sg_list = &place, .num_sge = 1, .next = &recvs[1]};
    recvs[1] = (struct ibv_recv_wr){.wr_id = 2, .sg_list = &place, .num_sge = 10000};
    error = ibv_post_recv(b.qp, recvs, &bad_recv);
    CHECK(error == EINVAL, "post_recv gives %d", error);
    CHECK(bad_recv == &recvs[1]);
    close_pair();
}

/* A queue that is not ready to send takes no sends; one in RESET takes no receives. */
static void wrong_state(void)
{
    device = open_device();
    a = open_end(&device, (struct shape){0});
    b = open_end(&device, (struct shape){0});
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work(IBV_WR_SEND, 1, &sge), *bad = NULL;
    struct ibv_recv_wr recv = {.wr_id = 1, .sg_list = &sge, .num_sge = 1}, *bad_recv = NULL;
    CHECK(ibv_post_recv(a.qp, &recv, &bad_recv) == EINVAL && bad_recv == &recv);
    CHECK(ibv_post_send(a.qp, &wr, &bad) == EINVAL && bad == &wr);
    to_init(&a);
    bad = NULL;
    CHECK(ibv_post_send(a.qp, &wr, &bad) == EINVAL && bad == &wr);
    CHECK(!ibv_post_recv(a.qp, &recv, &bad_recv));
    close_pair();
}

/* ---- completion queues ---- */

/* A CQ of four entries carries a thousand completions. */
static void cq_wrap(void)
{
    open_pair_as((struct shape){.depth = 4, .cqe = 4}, (struct shape){0}, USUAL);
    struct ibv_wc wc[4];
    uint64_t next = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        struct ibv_sge sge = sge_of(&a, 0, 8);
        struct ibv_send_wr wr = work(IBV_WR_RDMA_WRITE, i, &sge);
        post_send(&a, &wr);
        if (i % 4 != 3)
            continue;
        double limit = now_ms() + 10000;
        while (next <= i) {
            int n = ibv_poll_cq(a.cq, 4, wc);
            CHECK(n >= 0 && now_ms() < limit);
            for (int k = 0; k < n; k++) {
                CHECK(wc[k].status == IBV_WC_SUCCESS && wc[k].wr_id == next, "wr_id %llu", (unsigned long long)wc[k].wr_id);
                next++;
            }
        }
    }
    close_pair();
}

/* Destroying a QP takes its completions out of a CQ that others share. */
static void cq_clean(void)
{
    device = open_device();
    a = open_end(&device, (struct shape){0});
    b = open_end(&device, (struct shape){0});
    connect_ends(&device, &a, &b, USUAL);
    struct end c = open_end(&device, (struct shape){0}), d;
    struct ibv_qp_init_attr init = {.send_cq = a.cq,
                                    .recv_cq = a.cq,
                                    .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1}};
    d = a;
    d.qp = ibv_create_qp(device.pd, &init);
    CHECK(d.qp);
    connect_ends(&device, &c, &d, USUAL);
    for (uint32_t i = 0; i < 4; i++) {
        struct ibv_sge sge = sge_of(&a, 0, 8);
        struct ibv_send_wr wr = work(IBV_WR_RDMA_WRITE, 50 + i, &sge);
        post_send(i % 2 ? &a : &d, &wr);
    }
    usleep(20000);
    CHECK(!ibv_destroy_qp(d.qp));
    expect_wc(&a, 51, IBV_WC_SUCCESS);
    expect_wc(&a, 53, IBV_WC_SUCCESS);
    expect_nothing(&a);
    close_end(&c);
    close_pair();
}

static int events_within(struct end *end, int ms)
{
    struct pollfd fd = {.fd = end->channel->fd, .events = POLLIN};
    int n = poll(&fd, 1, ms);
    CHECK(n >= 0);
    return n;
}

static void take_event(struct end *end)
{
    struct ibv_cq *cq;
    void *cq_context;
    CHECK(events_within(end, 5000) == 1, "no event");
    CHECK(!ibv_get_cq_event(end->channel, &cq, &cq_context));
    CHECK(cq == end->cq);
    ibv_ack_cq_events(cq, 1);
}

static void send_one(uint64_t wr_id, int flags)
{
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work(IBV_WR_SEND, wr_id, &sge);
    wr.send_flags |= flags;
    post_recv(&b, wr_id, 0, 8);
    post_send(&a, &wr);
    expect_wc(&a, wr_id, IBV_WC_SUCCESS);
}

/* An armed CQ gives one event, then none until it is armed again. */
static void arm(void)
{
    open_pair_as((struct shape){0}, (struct shape){.events = 1}, USUAL);
    send_one(1, 0);
    CHECK(events_within(&b, 20) == 0, "an event of a CQ that is not armed");
    expect_wc(&b, 1, IBV_WC_SUCCESS);

    CHECK(!ibv_req_notify_cq(b.cq, 0));
    CHECK(events_within(&b, 20) == 0, "an event without a completion");
    send_one(2, 0);
    send_one(3, 0);
    take_event(&b);
    CHECK(events_within(&b, 20) == 0, "two events of one arming");
    expect_wc(&b, 2, IBV_WC_SUCCESS);
    expect_wc(&b, 3, IBV_WC_SUCCESS);

    /* Armed twice is armed once. */
    CHECK(!ibv_req_notify_cq(b.cq, 0));
    CHECK(!ibv_req_notify_cq(b.cq, 0));
    send_one(4, 0);
    take_event(&b);
    CHECK(events_within(&b, 20) == 0, "two events of one completion");
    expect_wc(&b, 4, IBV_WC_SUCCESS);
    close_pair();
}

/* The order every event loop uses: arm, poll once more, sleep. Never a lost wake-up. */
static void arm_then_poll(void)
{
    open_pair_as((struct shape){0}, (struct shape){.events = 1}, USUAL);
    for (uint32_t i = 0; i < 300; i++) {
        struct ibv_wc wc;
        CHECK(!ibv_req_notify_cq(b.cq, 0));
        CHECK(ibv_poll_cq(b.cq, 1, &wc) == 0);
        send_one(i, 0);
        take_event(&b);
        expect_wc(&b, i, IBV_WC_SUCCESS);
    }
    close_pair();
}

/* Armed for solicited completions only: sends that ask for it, and errors. */
static void arm_solicited(void)
{
    open_pair_as((struct shape){0}, (struct shape){.events = 1}, USUAL);
    CHECK(!ibv_req_notify_cq(b.cq, 1));
    send_one(1, 0);
    CHECK(events_within(&b, 20) == 0, "an event of an unsolicited completion");
    send_one(2, IBV_SEND_SOLICITED);
    take_event(&b);
    expect_wc(&b, 1, IBV_WC_SUCCESS);
    expect_wc(&b, 2, IBV_WC_SUCCESS);

    /* Any beats solicited, whichever came first. */
    CHECK(!ibv_req_notify_cq(b.cq, 0));
    CHECK(!ibv_req_notify_cq(b.cq, 1));
    send_one(3, 0);
    take_event(&b);
    expect_wc(&b, 3, IBV_WC_SUCCESS);

    post_recv(&b, 4, 0, 8);
    CHECK(!ibv_req_notify_cq(b.cq, 1));
    to_error(&b);
    take_event(&b);
    expect_wc(&b, 4, IBV_WC_WR_FLUSH_ERR);
    close_pair();
}

/* An event that nobody has read dies with its CQ, and does not keep it from dying. */
static void unread_event(void)
{
    open_pair_as((struct shape){0}, (struct shape){.events = 1}, USUAL);
    CHECK(!ibv_req_notify_cq(b.cq, 0));
    send_one(1, 0);
    CHECK(events_within(&b, 5000) == 1);
    close_pair();
}

/* ---- objects ---- */

static void round_trip(uint32_t i)
{
    open_pair_as((struct shape){.length = 65536, .events = i % 2}, (struct shape){.length = 65536}, USUAL);
    fill(a.buffer, 64, i);
    struct ibv_sge sge = sge_of(&a, 0, 64);
    struct ibv_send_wr wr = work(IBV_WR_RDMA_WRITE, i, &sge);
    post_send(&a, &wr);
    expect_wc(&a, i, IBV_WC_SUCCESS);
    expect_bytes(b.buffer, 64, i);
    close_pair();
}

/* Two hundred times open, connect, use, close: no descriptor and no mapping stays. */
static void rounds(void)
{
    for (uint32_t i = 0; i < 5; i++)
        round_trip(i);
    size_t descriptors = descriptors_open(), mappings = lines_of_maps();
    for (uint32_t i = 0; i < 200; i++)
        round_trip(i);
    CHECK(descriptors_open() == descriptors, "%zu descriptors, now %zu", descriptors, descriptors_open());
    /* The allocator may split or join a few. */
    CHECK(lines_of_maps() <= mappings + 4, "%zu mappings, now %zu", mappings, lines_of_maps());
}

/* Objects of one open device come and go; numbers of live ones never meet. */
static void create_destroy(void)
{
    device = open_device();
    struct end ends[24];
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < COUNT(ends); i++)
            ends[i] = open_end(&device, (struct shape){.length = 8192, .depth = 4});
        for (size_t i = 0; i < COUNT(ends); i++)
            for (size_t j = 0; j < i; j++) {
                CHECK(ends[i].qp->qp_num != ends[j].qp->qp_num);
                CHECK(ends[i].mr->rkey != ends[j].mr->rkey);
            }
        for (size_t i = 0; i < COUNT(ends); i++)
            close_end(&ends[round % 2 ? i : COUNT(ends) - 1 - i]);
    }
    close_device(&device);
}

/* Objects in use cannot be destroyed. */
static void busy_objects(void)
{
    open_pair();
    CHECK(ibv_destroy_cq(a.cq) == EBUSY);
    CHECK(ibv_dealloc_pd(device.pd) == EBUSY);
    close_pair();
}

/* What was set can be asked for. */
static void query_qp(void)
{
    open_pair();
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;
    CHECK(!ibv_query_qp(a.qp, &attr, IBV_QP_STATE | IBV_QP_DEST_QPN | IBV_QP_TIMEOUT | IBV_QP_CAP, &init));
    CHECK(attr.qp_state == IBV_QPS_RTS);
    CHECK(attr.dest_qp_num == b.qp->qp_num);
    CHECK(attr.path_mtu == IBV_MTU_1024, "path_mtu %d", attr.path_mtu);
    CHECK(attr.rq_psn == 7 && attr.sq_psn == 7, "psn %x %x", attr.rq_psn, attr.sq_psn);
    CHECK(attr.timeout == USUAL.timeout && attr.retry_cnt == USUAL.retry_cnt && attr.rnr_retry == USUAL.rnr_retry);
    CHECK(attr.port_num == 1);
    CHECK(attr.cap.max_send_wr >= 16 && attr.cap.max_recv_wr >= 16);
    CHECK(!memcmp(&attr.ah_attr.grh.dgid, &device.gid, sizeof(device.gid)));
    close_pair();
}

static const struct test_case CASES[] = {
    {"send", send_moves},
    {"send_imm", send_imm_moves},
    {"write", write_moves},
    {"write_imm", write_imm_moves},
    {"read", read_moves},
    {"pieces", pieces},
    {"order", order},
    {"lists", lists},
    {"signaled", signaled},
    {"bad_rkey", bad_rkey},
    {"outside_region", outside_region},
    {"bad_lkey", bad_lkey},
    {"access_rights", access_rights},
    {"local_length", local_length},
    {"deregistered", deregistered},
    {"unmapped", unmapped},
    {"flush", flush},
    {"reset", reset},
    {"receiver_not_ready", receiver_not_ready},
    {"receiver_late", receiver_late},
    {"full_ring", full_ring},
    {"bad_wr", bad_wr},
    {"wrong_state", wrong_state},
    {"cq_wrap", cq_wrap},
    {"cq_clean", cq_clean},
    {"arm", arm},
    {"arm_then_poll", arm_then_poll},
    {"arm_solicited", arm_solicited},
    {"unread_event", unread_event},
    {"rounds", rounds},
    {"create_destroy", create_destroy},
    {"busy_objects", busy_objects},
    {"query_qp", query_qp},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, COUNT(CASES), argc, argv);
}

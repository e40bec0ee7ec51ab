/*
 * What programs do, and what they take for granted beyond what the manual pages say: corners that other providers and
 * devices once got wrong. A case for each.
 *
 * Each case opens and closes everything it uses, so that any one can be run alone.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/wait.h>

#include "ud.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct device device;
static struct end a, b;

static void open_pair_as(struct shape shape)
{
    open_both(&device, &a, &b, shape, USUAL);
}

static void open_pair(void)
{
    open_pair_as((struct shape){0});
}

static void close_pair(void)
{
    close_both(&device, &a, &b);
}

/* ---- lengths ---- */

/* No byte is touched, so no key is looked at. */
static void zero_length(void)
{
    static const enum ibv_wr_opcode OPCODES[] = {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_RDMA_WRITE_WITH_IMM};
    open_pair();
    for (size_t i = 0; i < COUNT(OPCODES); i++) {
        for (int pieces = 0; pieces < 3; pieces++) {
            post_recv(&b, 50, 0, 0);
            struct ibv_sge sges[2] = {sge_of(&a, 0, 0), sge_of(&a, 8, 0)};
            struct ibv_send_wr wr = work_to(&b, OPCODES[i], i, sges);
            wr.num_sge = pieces;
            wr.wr.rdma.rkey = 0xdeadbeef;
            wr.wr.rdma.remote_addr = 0x1234567;
            post_send(&a, &wr);
            struct ibv_wc wc = expect_wc(&a, i, IBV_WC_SUCCESS);
            CHECK(OPCODES[i] != IBV_WR_RDMA_READ || wc.byte_len == 0);
            if (OPCODES[i] == IBV_WR_RDMA_WRITE_WITH_IMM) {
                wc = expect_wc(&b, 50, IBV_WC_SUCCESS);
                CHECK(wc.byte_len == 0, "%u", wc.byte_len);
                continue;
            }
            /* Nobody took the receive; it serves the next message. */
            struct ibv_send_wr send = work_to(&b, IBV_WR_SEND, 9, sges);
            post_send(&a, &send);
            expect_wc(&a, 9, IBV_WC_SUCCESS);
            expect_wc(&b, 50, IBV_WC_SUCCESS);
        }
    }
    close_pair();
}

/* Each of four pieces is empty or not, on both sides; an empty one may have any key. */
static void empty_pieces(void)
{
    enum { PIECE = 100 };
    open_pair();
    for (unsigned from = 0; from < 16; from++) {
        for (unsigned to = 0; to < 16; to++) {
            struct ibv_sge sends[4], recvs[4];
            uint32_t length = 0, room = 0;
            fill(a.buffer, 4 * PIECE, from);
            memset(b.buffer, 0xee, 4096);
            for (int i = 0; i < 4; i++) {
                sends[i] = from >> i & 1 ? sge_of(&a, length, PIECE) : (struct ibv_sge){.addr = 0xbad, .lkey = 0xbadbad};
                recvs[i] = to >> i & 1 ? sge_of(&b, room, PIECE) : (struct ibv_sge){.addr = 0xbad, .lkey = 0xbadbad};
                length += sends[i].length;
                room += recvs[i].length;
            }
            /* One that fits in any case follows the four. */
            if (room < length) {
                recvs[3] = sge_of(&b, to >> 3 & 1 ? room - PIECE : room, 4 * PIECE);
            }
            struct ibv_recv_wr recv = {.wr_id = to, .sg_list = recvs, .num_sge = 4}, *bad_recv;
            CHECK(!ibv_post_recv(b.qp, &recv, &bad_recv));
            struct ibv_send_wr wr = {.wr_id = from, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED,
                                     .sg_list = sends, .num_sge = 4};
            post_send(&a, &wr);
            expect_wc(&a, from, IBV_WC_SUCCESS);
            struct ibv_wc wc = expect_wc(&b, to, IBV_WC_SUCCESS);
            CHECK(wc.byte_len == length, "%u instead of %u", wc.byte_len, length);
            expect_bytes(b.buffer, length, from);
            expect_value(b.buffer + length, 4096 - length, 0xee);
        }
    }
    close_pair();
}

/* Lengths whose sum is small in 32 bits and large in truth. */
static void sums_beyond_32_bits(void)
{
    static const uint32_t LENGTHS[][4] = {
        {0x80000000, 0x80000000, 16, 0}, {0xffffffff, 1, 16, 0}, {0xfffffff0, 0xfffffff0, 0x20, 16}};
    static const enum ibv_wr_opcode OPCODES[] = {IBV_WR_SEND, IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ};
    for (size_t i = 0; i < COUNT(LENGTHS); i++) {
        for (size_t op = 0; op < COUNT(OPCODES); op++) {
            open_pair();
            memset(a.buffer, 0x11, a.length);
            memset(b.buffer, 0xee, b.length);
            post_recv(&b, 7, 0, 4096);
            struct ibv_sge sges[4];
            for (int n = 0; n < 4; n++)
                sges[n] = sge_of(&a, 0, LENGTHS[i][n]);
            struct ibv_send_wr wr = work_to(&b, OPCODES[op], 1, sges), *bad;
            wr.num_sge = 4;
            if (!ibv_post_send(a.qp, &wr, &bad)) {
                struct ibv_wc wc = wait_wc(&a);
                CHECK(wc.wr_id == 1 && (wc.status == IBV_WC_LOC_LEN_ERR || wc.status == IBV_WC_LOC_PROT_ERR), "%s",
                      ibv_wc_status_str(wc.status));
            }
            expect_nothing(&b);
            expect_value(a.buffer, a.length, 0x11);
            expect_value(b.buffer, b.length, 0xee);
            close_pair();
        }
        /* A receive of such pieces is one of more room than any message needs. */
        open_pair();
        fill(a.buffer, 64, i);
        struct ibv_sge sges[4];
        for (int n = 0; n < 4; n++)
            sges[n] = sge_of(&b, 0, LENGTHS[i][n]);
        sges[0] = sge_of(&b, 0, 64);
        sges[1].length = LENGTHS[i][0];
        struct ibv_recv_wr recv = {.wr_id = 2, .sg_list = sges, .num_sge = 4}, *bad_recv;
        CHECK(!ibv_post_recv(b.qp, &recv, &bad_recv));
        struct ibv_sge sge = sge_of(&a, 0, 64);
        struct ibv_send_wr wr = work_to(&b, IBV_WR_SEND, 3, &sge);
        post_send(&a, &wr);
        expect_wc(&a, 3, IBV_WC_SUCCESS);
        CHECK(expect_wc(&b, 2, IBV_WC_SUCCESS).byte_len == 64);
        expect_bytes(b.buffer, 64, i);
        close_pair();
    }
}

/* An inline list's length is the sum of its pieces, and no piece is read before that is known to fit. */
static void inline_sums(void)
{
    static const size_t LENGTHS[][2] = {{65, 64}, {0xffffffff, 2}, {0x100000000, 1}, {SIZE_MAX, 2}, {SIZE_MAX, SIZE_MAX}};
    device = open_device();
    struct ibv_cq *cq = ibv_create_cq(device.context, 16, NULL, NULL, 0);
    struct ibv_qp_init_attr_ex init = {
        .send_cq = cq,
        .recv_cq = cq,
        .qp_type = IBV_QPT_RC,
        .pd = device.pd,
        .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
        .send_ops_flags = IBV_QP_EX_WITH_SEND,
        .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 2, .max_recv_sge = 1, .max_inline_data = 128},
    };
    a = b = open_end(&device, (struct shape){0});
    b.cq = cq;
    b.qp = ibv_create_qp_ex(device.context, &init);
    CHECK(b.qp, "no extended QP");
    connect_ends(&device, &a, &b, USUAL);
    struct ibv_qp_ex *ex = ibv_qp_to_qp_ex(b.qp);
    for (size_t i = 0; i < COUNT(LENGTHS); i++) {
        /* Nothing is mapped at the second. */
        struct ibv_data_buf pieces[] = {{.addr = b.buffer, .length = LENGTHS[i][0]}, {.addr = (void *)8, .length = LENGTHS[i][1]}};
        ibv_wr_start(ex);
        ex->wr_id = 1;
        ex->wr_flags = IBV_SEND_SIGNALED;
        ibv_wr_send(ex);
        ibv_wr_set_inline_data_list(ex, 2, pieces);
        int error = ibv_wr_complete(ex);
        CHECK(error == EINVAL, "%zx and %zx: %d", LENGTHS[i][0], LENGTHS[i][1], error);
        if (LENGTHS[i][0] > 0xffffffff || LENGTHS[i][1] > 0xffffffff)
            continue;
        struct ibv_sge sges[] = {{.addr = (uintptr_t)b.buffer, .length = LENGTHS[i][0]}, {.addr = 8, .length = LENGTHS[i][1]}};
        struct ibv_send_wr wr = {.opcode = IBV_WR_SEND, .send_flags = IBV_SEND_INLINE, .sg_list = sges, .num_sge = 2}, *bad;
        error = ibv_post_send(b.qp, &wr, &bad);
        CHECK(error == EINVAL && bad == &wr, "%d", error);
    }
    /* The QP is as good as before. */
    post_recv(&a, 2, 4096, 64);
    fill(a.buffer, 64, 5);
    ibv_wr_start(ex);
    ex->wr_id = 3;
    ex->wr_flags = IBV_SEND_SIGNALED;
    ibv_wr_send(ex);
    ibv_wr_set_inline_data_list(ex, 2, (struct ibv_data_buf[]){{a.buffer, 60}, {a.buffer + 60, 4}});
    CHECK(!ibv_wr_complete(ex));
    expect_wc(&b, 3, IBV_WC_SUCCESS);
    expect_wc(&a, 2, IBV_WC_SUCCESS);
    expect_bytes(a.buffer + 4096, 64, 5);
    CHECK(!ibv_destroy_qp(b.qp) && !ibv_destroy_cq(cq));
    close_end(&a);
    close_device(&device);
}

/* ---- completions ---- */

#define POISON 0xa5

/* Waits for one completion in memory that is full of another. */
static struct ibv_wc poisoned(struct end *end)
{
    struct ibv_wc wc;
    double limit = now_ms() + 10000;
    for (;;) {
        memset(&wc, POISON, sizeof(wc));
        int n = ibv_poll_cq(end->cq, 1, &wc);
        CHECK(n >= 0);
        if (n)
            return wc;
        CHECK(now_ms() < limit, "no completion");
    }
}

static void no_poison(const struct ibv_wc *wc)
{
    struct ibv_wc poison;
    memset(&poison, POISON, sizeof(poison));
#define WRITTEN(field) CHECK(wc->field != poison.field, #field " is not written")
    WRITTEN(wr_id);
    WRITTEN(status);
    WRITTEN(opcode);
    WRITTEN(vendor_err);
    WRITTEN(byte_len);
    WRITTEN(imm_data);
    WRITTEN(qp_num);
    WRITTEN(src_qp);
    WRITTEN(wc_flags);
    WRITTEN(pkey_index);
    WRITTEN(slid);
    WRITTEN(sl);
    WRITTEN(dlid_path_bits);
#undef WRITTEN
}

/* Every field of a completion is written; a flushed one has nothing to say of a fault. */
static void all_fields(void)
{
    static const enum ibv_wr_opcode OPCODES[] = {IBV_WR_SEND, IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_SEND_WITH_IMM};
    open_pair();
    for (size_t i = 0; i < COUNT(OPCODES); i++) {
        post_recv(&b, 1, 0, 64);
        struct ibv_sge sge = sge_of(&a, 0, 8);
        struct ibv_send_wr wr = work_to(&b, OPCODES[i], 2, &sge);
        post_send(&a, &wr);
        struct ibv_wc wc = poisoned(&a);
        no_poison(&wc);
        CHECK(wc.status == IBV_WC_SUCCESS && !wc.vendor_err && !wc.wc_flags);
        if (OPCODES[i] == IBV_WR_SEND || OPCODES[i] == IBV_WR_SEND_WITH_IMM) {
            wc = poisoned(&b);
            no_poison(&wc);
            CHECK(wc.status == IBV_WC_SUCCESS && !wc.vendor_err);
        }
    }
    /* Left are receives, and sends that cannot end well. */
    to_error(&b);
    to_error(&a);
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work_to(&b, IBV_WR_SEND, 3, &sge);
    post_send(&a, &wr);
    for (int i = 0; i < 3; i++) {
        struct end *end = i ? &b : &a;
        struct ibv_wc wc = poisoned(end);
        no_poison(&wc);
        CHECK(wc.status == IBV_WC_WR_FLUSH_ERR && wc.vendor_err == 0, "%s, vendor_err %u", ibv_wc_status_str(wc.status),
              wc.vendor_err);
    }
    close_pair();
}

/* Completions of two CQs come through one channel, and each event says which. */
static void two_cqs_of_a_channel(void)
{
    device = open_device();
    struct ibv_comp_channel *channel = ibv_create_comp_channel(device.context);
    CHECK(channel);
    a = open_end(&device, (struct shape){0});
    b = open_end(&device, (struct shape){0});
    struct ibv_cq *cqs[2];
    int marks[2];
    struct end *ends[] = {&a, &b};
    for (int i = 0; i < 2; i++) {
        CHECK(!ibv_destroy_qp(ends[i]->qp) && !ibv_destroy_cq(ends[i]->cq));
        cqs[i] = ends[i]->cq = ibv_create_cq(device.context, 16, &marks[i], channel, 0);
        CHECK(cqs[i]);
        struct ibv_qp_init_attr init = {.send_cq = cqs[i], .recv_cq = cqs[i], .qp_type = IBV_QPT_RC,
                                        .cap = {.max_send_wr = 8, .max_recv_wr = 8, .max_send_sge = 1, .max_recv_sge = 1}};
        ends[i]->qp = ibv_create_qp(device.pd, &init);
        CHECK(ends[i]->qp);
    }
    connect_ends(&device, &a, &b, USUAL);
    for (int round = 0; round < 20; round++) {
        CHECK(!ibv_req_notify_cq(cqs[0], 0) && !ibv_req_notify_cq(cqs[1], 0));
        post_recv(&b, 1, 0, 64);
        struct ibv_sge sge = sge_of(&a, 0, 8);
        struct ibv_send_wr wr = work_to(&b, IBV_WR_SEND, 2, &sge);
        post_send(&a, &wr);
        int seen = 0;
        for (int i = 0; i < 2; i++) {
            struct ibv_cq *cq;
            void *mark;
            CHECK(!ibv_get_cq_event(channel, &cq, &mark));
            int which = cq == cqs[1];
            CHECK(cq == cqs[which] && mark == &marks[which]);
            seen |= 1 << which;
            ibv_ack_cq_events(cq, 1);
        }
        CHECK(seen == 3, "%x", seen);
        expect_wc(&a, 2, IBV_WC_SUCCESS);
        expect_wc(&b, 1, IBV_WC_SUCCESS);
    }
    close_end(&a);
    close_end(&b);
    CHECK(!ibv_destroy_comp_channel(channel));
    close_device(&device);
}

/* ---- connections ---- */

static int is_refused(struct ibv_qp *qp, struct ibv_qp_attr attr, int mask)
{
    int error = ibv_modify_qp(qp, &attr, mask);
    CHECK(!error || error == EINVAL, "mask %#x: %d", mask, error);
    return error;
}

enum {
    TO_INIT = IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS,
    TO_RTR = IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER,
    TO_RTS = IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC,
    ANY = IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER,
    IN_SQD = IBV_QP_AV | TO_RTS | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_PORT | IBV_QP_PKEY_INDEX | ANY,
};

/* What a step of an RC QP needs, and what it may have besides (IBA vol. 1, 11.2.5.2). All other bits are refused. */
static const struct step {
    enum ibv_qp_state from, to;
    int needs, may;
} STEPS[] = {
    {IBV_QPS_RESET, IBV_QPS_INIT, TO_INIT, 0},
    {IBV_QPS_INIT, IBV_QPS_INIT, 0, TO_INIT},
    {IBV_QPS_INIT, IBV_QPS_RTR, TO_RTR, IBV_QP_ACCESS_FLAGS | IBV_QP_PKEY_INDEX},
    {IBV_QPS_RTR, IBV_QPS_RTS, TO_RTS, IBV_QP_CUR_STATE | ANY},
    {IBV_QPS_RTS, IBV_QPS_RTS, 0, IBV_QP_CUR_STATE | ANY},
    {IBV_QPS_RTS, IBV_QPS_SQD, 0, IBV_QP_EN_SQD_ASYNC_NOTIFY},
    {IBV_QPS_SQD, IBV_QPS_SQD, 0, IN_SQD & ~IBV_QP_SQ_PSN},
    {IBV_QPS_SQD, IBV_QPS_RTS, 0, IBV_QP_CUR_STATE | ANY},
    {IBV_QPS_RTS, IBV_QPS_ERR, 0, 0},
    {IBV_QPS_ERR, IBV_QPS_RESET, 0, 0},
};

static void modify_masks(void)
{
    device = open_device();
    a = open_end(&device, (struct shape){0});
    for (size_t i = 0; i < COUNT(STEPS); i++) {
        const struct step *step = &STEPS[i];
        struct ibv_qp_attr attr = {
            .qp_state = step->to,
            .cur_qp_state = step->from,
            .port_num = 1,
            .path_mtu = IBV_MTU_1024,
            .dest_qp_num = a.qp->qp_num,
            .max_dest_rd_atomic = 1,
            .max_rd_atomic = 1,
            .min_rnr_timer = 12,
            .timeout = 14,
            .qkey = 1,
            .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = device.gid, .hop_limit = 1}},
        };
        int mask = IBV_QP_STATE | step->needs;
        for (int bit = 1; bit <= IBV_QP_DEST_QPN; bit <<= 1) {
            /* Paths to migrate to, and sizes, are another matter. */
            if (bit & (IBV_QP_STATE | IBV_QP_ALT_PATH | IBV_QP_PATH_MIG_STATE | IBV_QP_CAP))
                continue;
            if (step->needs & bit)
                CHECK(is_refused(a.qp, attr, mask & ~bit), "step %zu without %#x", i, bit);
            else if (!(step->may & bit))
                CHECK(is_refused(a.qp, attr, mask | bit), "step %zu with %#x", i, bit);
        }
        CHECK(state_of(&a) == step->from, "step %zu: a refusal moved it to %d", i, state_of(&a));
        /* To ERR and RESET every time: a step back is one of the steps. */
        CHECK(!is_refused(a.qp, attr, mask), "step %zu", i);
        CHECK(state_of(&a) == step->to, "step %zu", i);
        for (int bit = 1; bit <= IBV_QP_DEST_QPN && step->from == step->to; bit <<= 1)
            if (step->may & bit)
                CHECK(!is_refused(a.qp, attr, mask | bit), "step %zu with %#x", i, bit);
        /* Without the state too, where it stays. */
        if (step->from == step->to && step->from == IBV_QPS_RTS)
            CHECK(!is_refused(a.qp, attr, IBV_QP_MIN_RNR_TIMER) && !is_refused(a.qp, attr, IBV_QP_ACCESS_FLAGS));
    }
    close_end(&a);
    close_device(&device);
}

/* The way from RESET to RTS with everything on it that may be. */
static void all_optional(void)
{
    open_pair();
    for (int i = 0; i < 2; i++) {
        struct end *end = i ? &b : &a;
        struct ibv_qp_attr attr = {.qp_state = IBV_QPS_SQD, .en_sqd_async_notify = 0};
        CHECK(!ibv_modify_qp(end->qp, &attr, IBV_QP_STATE | IBV_QP_EN_SQD_ASYNC_NOTIFY));
        /* A new path while nothing is on its way: the same one, with other timers. */
        attr = (struct ibv_qp_attr){
            .timeout = 15,
            .retry_cnt = 3,
            .rnr_retry = 4,
            .max_rd_atomic = 2,
            .max_dest_rd_atomic = 2,
            .min_rnr_timer = 5,
            .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = device.gid, .sgid_index = (uint8_t)gid_index, .hop_limit = 9}},
        };
        CHECK(!ibv_modify_qp(end->qp, &attr,
                             IBV_QP_AV | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC |
                                 IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
        attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .cur_qp_state = IBV_QPS_SQD};
        CHECK(!ibv_modify_qp(end->qp, &attr, IBV_QP_STATE | IBV_QP_CUR_STATE));
        struct ibv_qp_init_attr init;
        CHECK(!ibv_query_qp(end->qp, &attr, IBV_QP_TIMEOUT | IBV_QP_AV, &init));
        CHECK(attr.timeout == 15 && attr.retry_cnt == 3 && attr.rnr_retry == 4 && attr.min_rnr_timer == 5);
        CHECK(attr.max_rd_atomic == 2 && attr.max_dest_rd_atomic == 2 && attr.ah_attr.grh.hop_limit == 9);
    }
    move_between(&a, &b, 3, 1);
    move_between(&b, &a, 3, 2);
    close_pair();
}

/* The kernel cuts packet sequence numbers to their 24 bits, and RoCE has no second path. */
static void refined_by_the_kernel(void)
{
    device = open_device();
    a = open_end(&device, (struct shape){0});
    to_init(&a);
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = IBV_MTU_1024,
        .dest_qp_num = a.qp->qp_num,
        .rq_psn = 0x3000007,
        .max_dest_rd_atomic = 4,
        .min_rnr_timer = 1,
        .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = device.gid, .hop_limit = 1}},
        .alt_port_num = 1,
        .alt_timeout = 14,
    };
    attr.alt_ah_attr = attr.ah_attr;
    CHECK(ibv_modify_qp(a.qp, &attr, IBV_QP_STATE | TO_RTR | IBV_QP_ALT_PATH) == EINVAL);
    CHECK(!ibv_modify_qp(a.qp, &attr, IBV_QP_STATE | TO_RTR));
    attr.qp_state = IBV_QPS_RTS;
    attr.timeout = 14;
    attr.max_rd_atomic = 1;
    attr.sq_psn = 0xff000007;
    CHECK(!ibv_modify_qp(a.qp, &attr, IBV_QP_STATE | TO_RTS));
    struct ibv_qp_init_attr init;
    CHECK(!ibv_query_qp(a.qp, &attr, IBV_QP_RQ_PSN | IBV_QP_SQ_PSN, &init));
    CHECK(attr.rq_psn == 7 && attr.sq_psn == 7, "%#x, %#x", attr.rq_psn, attr.sq_psn);
    move_between(&a, &a, 0, 0);
    post_recv(&a, 1, 0, 64);
    struct ibv_sge sge = sge_of(&a, 64, 64);
    struct ibv_send_wr wr = work_to(&a, IBV_WR_SEND, 2, &sge);
    post_send(&a, &wr);
    CHECK(wait_wc(&a).status == IBV_WC_SUCCESS && wait_wc(&a).status == IBV_WC_SUCCESS);
    close_end(&a);
    close_device(&device);
}

/* The longest wait of a receiver that is not ready has the number 0: 655.36 ms. */
static void longest_rnr_wait(void)
{
    open_pair();
    struct ibv_qp_attr attr = {.min_rnr_timer = 0};
    CHECK(!ibv_modify_qp(b.qp, &attr, IBV_QP_MIN_RNR_TIMER));
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work_to(&b, IBV_WR_SEND, 1, &sge);
    double start = now_ms();
    post_send(&a, &wr);
    /* It was turned away before this is there. */
    post_recv(&b, 2, 0, 64);
    expect_wc(&a, 1, IBV_WC_SUCCESS);
    /* No load can make it come too early. */
    CHECK(now_ms() - start > 600, "after %.0f ms", now_ms() - start);
    expect_wc(&b, 2, IBV_WC_SUCCESS);
    close_pair();
}

/* A timeout of 0 is none: who gets no answer waits for ever, however few retries there are. */
static void no_timeout(void)
{
    open_both(&device, &a, &b, (struct shape){0}, (struct patience){.timeout = 0, .retry_cnt = 0, .rnr_retry = 0});
    struct ibv_qp_attr reset = {.qp_state = IBV_QPS_RESET};
    CHECK(!ibv_modify_qp(b.qp, &reset, IBV_QP_STATE));
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work_to(&b, IBV_WR_RDMA_WRITE, 1, &sge);
    post_send(&a, &wr);
    for (int i = 0; i < 20; i++)
        expect_nothing(&a);
    CHECK(state_of(&a) == IBV_QPS_RTS);
    to_error(&a);
    expect_wc(&a, 1, IBV_WC_WR_FLUSH_ERR);
    close_pair();
}

/* Packets are counted in 24 bits: all the way round, and over the edge within a message. */
static void sequence_numbers_wrap(void)
{
    enum { MTU = 256, LENGTH = 1 << 24 };
    device = open_device();
    a = open_end(&device, (struct shape){.length = LENGTH});
    b = open_end(&device, (struct shape){.length = LENGTH});
    struct end *ends[] = {&a, &b};
    for (int i = 0; i < 2; i++) {
        to_init(ends[i]);
        struct ibv_qp_attr attr = {
            .qp_state = IBV_QPS_RTR,
            .path_mtu = IBV_MTU_256,
            .dest_qp_num = ends[1 - i]->qp->qp_num,
            .rq_psn = 0xfffffe,
            .max_dest_rd_atomic = 4,
            .min_rnr_timer = 1,
            .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = device.gid, .hop_limit = 1}},
        };
        CHECK(!ibv_modify_qp(ends[i]->qp, &attr, IBV_QP_STATE | TO_RTR));
        attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7,
                                    .sq_psn = 0xfffffe, .max_rd_atomic = 4};
        CHECK(!ibv_modify_qp(ends[i]->qp, &attr, IBV_QP_STATE | TO_RTS));
    }
    /* Packets in a message; 256 of them and some are more than there are numbers. */
    CHECK((uint64_t)LENGTH / MTU * 257 > 1 << 24);
    move_between(&a, &b, 3, 1);
    for (uint32_t i = 0; i < 257; i++) {
        struct ibv_sge sge = sge_of(&a, 0, LENGTH);
        struct ibv_send_wr wr = work_to(&b, IBV_WR_RDMA_WRITE, i, &sge);
        post_send(&a, &wr);
        expect_wc(&a, i, IBV_WC_SUCCESS);
    }
    move_between(&a, &b, 3, 5);
    /* The way back has not come so far. */
    move_between(&b, &a, 3, 9);
    close_pair();
}

/* ---- events ---- */

static void *destroy_in_thread(void *done)
{
    CHECK(!ibv_destroy_qp(b.qp));
    __atomic_store_n((int *)done, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static int another_event(struct ibv_async_event *event)
{
    errno = 0;
    return ibv_get_async_event(device.context, event);
}

/* An event that was taken holds its QP until it is acknowledged; one that nobody took goes with it. */
static void async_events(void)
{
    open_pair();
    int fd = device.context->async_fd;
    CHECK(!fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK));
    struct ibv_async_event event;
    CHECK(another_event(&event) == -1 && errno == EAGAIN);
    for (int taken = 0; taken < 2; taken++) {
        /* A key that is none kills both, and the target is told. */
        struct ibv_sge sge = sge_of(&a, 0, 8);
        struct ibv_send_wr wr = work_to(&b, IBV_WR_RDMA_WRITE, 1, &sge);
        wr.wr.rdma.rkey = 0xdeadbeef;
        post_send(&a, &wr);
        expect_wc(&a, 1, IBV_WC_REM_ACCESS_ERR);
        CHECK(poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 10000) == 1, "no event");
        if (taken) {
            CHECK(!another_event(&event) && event.event_type == IBV_EVENT_QP_ACCESS_ERR && event.element.qp == b.qp);
            int done = 0;
            pthread_t thread;
            CHECK(!pthread_create(&thread, NULL, destroy_in_thread, &done));
            usleep(50000);
            CHECK(!__atomic_load_n(&done, __ATOMIC_SEQ_CST), "destroyed under an event that is in use");
            ibv_ack_async_event(&event);
            CHECK(!pthread_join(thread, NULL) && done);
        } else {
            CHECK(!ibv_destroy_qp(b.qp));
        }
        CHECK(another_event(&event) == -1 && errno == EAGAIN, "an event of a QP that is gone");
        struct ibv_qp_init_attr init = {.send_cq = b.cq, .recv_cq = b.cq, .qp_type = IBV_QPT_RC,
                                        .cap = {.max_send_wr = 8, .max_recv_wr = 8, .max_send_sge = 1, .max_recv_sge = 1}};
        b.qp = ibv_create_qp(device.pd, &init);
        CHECK(b.qp);
        struct ibv_qp_attr reset = {.qp_state = IBV_QPS_RESET};
        CHECK(!ibv_modify_qp(a.qp, &reset, IBV_QP_STATE));
        connect_ends(&device, &a, &b, USUAL);
    }
    close_pair();
}

/* ---- keys and memory ---- */

static void other_pd(void)
{
    open_pair();
    struct ibv_pd *other = ibv_alloc_pd(device.context);
    CHECK(other);
    struct ibv_mr *mr = ibv_reg_mr(other, b.buffer, b.length, ALL_ACCESS);
    CHECK(mr);
    memset(b.buffer, 0xee, 64);
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work_to(&b, IBV_WR_RDMA_WRITE, 1, &sge);
    wr.wr.rdma.rkey = mr->rkey;
    post_send(&a, &wr);
    expect_wc(&a, 1, IBV_WC_REM_ACCESS_ERR);
    expect_value(b.buffer, 64, 0xee);
    CHECK(!ibv_dereg_mr(mr) && !ibv_dealloc_pd(other));
    close_pair();
}

/* Whoever still has the key of a region that is gone must not write into the next one. */
static void keys_rest(void)
{
    enum { TIMES = 200 };
    device = open_device();
    uint8_t *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t keys[TIMES];
    for (int i = 0; i < TIMES; i++) {
        struct ibv_mr *mr = ibv_reg_mr(device.pd, memory, 4096, ALL_ACCESS);
        CHECK(mr);
        keys[i] = mr->rkey;
        for (int before = 0; before < i; before++)
            CHECK(keys[before] != keys[i], "the key of %d regions ago", i - before);
        CHECK(!ibv_dereg_mr(mr));
    }
    munmap(memory, 4096);
    close_device(&device);
}

/* The old value of an atomic operation, in two halves. */
static void split_atomic(void)
{
    open_pair_as((struct shape){.access = ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC});
    struct ibv_qp_attr attr = {.qp_access_flags = ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC};
    CHECK(!ibv_modify_qp(b.qp, &attr, IBV_QP_ACCESS_FLAGS));
    uint64_t old = 0x1122334455667788, new = 0x99aabbccddeeff00;
    memcpy(b.buffer, &old, 8);
    memset(a.buffer, 0xee, 128);
    struct ibv_sge sges[] = {sge_of(&a, 0, 4), sge_of(&a, 100, 4)};
    struct ibv_send_wr wr = {.wr_id = 1, .opcode = IBV_WR_ATOMIC_CMP_AND_SWP, .send_flags = IBV_SEND_SIGNALED,
                             .sg_list = sges, .num_sge = 2,
                             .wr.atomic = {.remote_addr = (uintptr_t)b.buffer, .rkey = b.mr->rkey, .compare_add = old, .swap = new}};
    post_send(&a, &wr);
    struct ibv_wc wc = expect_wc(&a, 1, IBV_WC_SUCCESS);
    CHECK(wc.opcode == IBV_WC_COMP_SWAP && wc.byte_len == 8);
    CHECK(!memcmp(a.buffer, &old, 4) && !memcmp(a.buffer + 100, (uint8_t *)&old + 4, 4));
    expect_value(a.buffer + 4, 96, 0xee);
    CHECK(!memcmp(b.buffer, &new, 8));
    close_pair();
}

/* A region of shared memory is the memory and not this mapping of it. */
static void shared_memory(void)
{
    open_pair();
    int fd = memfd_create("habits", 0);
    CHECK(fd >= 0 && !ftruncate(fd, 8192));
    uint8_t *here = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint8_t *there = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(here != MAP_FAILED && there != MAP_FAILED);
    struct ibv_mr *mr = ibv_reg_mr(device.pd, here, 8192, ALL_ACCESS);
    CHECK(mr);
    fill(a.buffer, 6000, 3);
    struct ibv_sge sge = sge_of(&a, 0, 6000);
    struct ibv_send_wr wr = work_to(&b, IBV_WR_RDMA_WRITE, 1, &sge);
    wr.wr.rdma.remote_addr = (uintptr_t)here + 1000;
    wr.wr.rdma.rkey = mr->rkey;
    post_send(&a, &wr);
    expect_wc(&a, 1, IBV_WC_SUCCESS);
    expect_bytes(there + 1000, 6000, 3);
    CHECK(!ibv_dereg_mr(mr) && !munmap(here, 8192) && !munmap(there, 8192) && !close(fd));
    close_pair();
}

/* KiB of mappings that a child does not get. Not their number: neighbours may be one mapping. */
static int kept_from_children(void)
{
    FILE *file = fopen("/proc/self/smaps", "r");
    CHECK(file);
    char line[512];
    int size = 0, sum = 0;
    while (fgets(line, sizeof(line), file)) {
        sscanf(line, "Size: %d kB", &size);
        if (!strncmp(line, "VmFlags:", 8) && strstr(line, " dc"))
            sum += size;
    }
    fclose(file);
    return sum;
}

/* What was kept from children while it was in use is theirs again, and is their own. */
static void fork_init(void)
{
    CHECK(!ibv_fork_init());
    open_both(&device, &a, &b, (struct shape){0}, USUAL);
    move_between(&a, &b, 1, 1);
    close_both(&device, &a, &b);
    /* What is there for good is there now. */
    device = open_device();
    int before = kept_from_children();
    /* Memory of objects that are gone is used again by others, which must be kept back as those were. */
    int used = 0;
    for (int round = 0; round < 3; round++) {
        if (round) {
            close_end(&a);
            close_end(&b);
            CHECK(kept_from_children() == before, "%d KiB stay kept back", kept_from_children() - before);
        }
        a = open_end(&device, (struct shape){0});
        b = open_end(&device, (struct shape){0});
        connect_ends(&device, &a, &b, USUAL);
        int now = kept_from_children();
        CHECK(now > before && (!round || now == used), "%d KiB kept back, before %d, then %d", now, before, used);
        used = now;
    }
    move_between(&a, &b, 3, 1);
    uint8_t *heap = malloc(64);
    memset(heap, 1, 64);
    memset(a.buffer, 1, 64);

    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        memset(heap, 2, 64);
        _exit(0);
    }
    /* Meanwhile the parent writes first, as it does with rings that it goes on using. */
    move_between(&b, &a, 3, 7);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status));
    expect_value(heap, 64, 1);

    uint8_t *buffer = a.buffer;
    size_t length = a.length;
    CHECK(!ibv_destroy_qp(a.qp) && !ibv_dereg_mr(a.mr) && !ibv_destroy_cq(a.cq));
    close_end(&b);
    CHECK(kept_from_children() == before, "%d KiB stay kept back", kept_from_children() - before);
    memset(buffer, 1, length);
    child = fork();
    CHECK(child >= 0);
    if (!child) {
        memset(buffer, 2, length);
        _exit(buffer[0] != 2);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status), "status %x", status);
    expect_value(buffer, length, 1);
    munmap(buffer, length);
    free(heap);
    close_device(&device);
}

static int descriptors(void)
{
    DIR *folder = opendir("/proc/self/fd");
    CHECK(folder);
    int count = 0;
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

static void opens_leave_nothing(void)
{
    device = open_device();
    close_device(&device);
    int before = descriptors();
    for (int i = 0; i < 50; i++) {
        device = open_device();
        a = open_end(&device, (struct shape){.events = 1});
        close_end(&a);
        close_device(&device);
    }
    CHECK(descriptors() == before, "%d descriptors more", descriptors() - before);
}

/* ---- sizes ---- */

/* What a device says it can do it does: whoever asks for the most gets it. */
static void limits(void)
{
    device = open_device();
    struct ibv_device_attr most;
    CHECK(!ibv_query_device(device.context, &most));
    struct ibv_cq *cq = ibv_create_cq(device.context, most.max_cqe, NULL, NULL, 0);
    CHECK(cq && cq->cqe >= most.max_cqe, "a CQ of %d", most.max_cqe);
    struct ibv_qp_init_attr init = {
        .send_cq = cq,
        .recv_cq = cq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = most.max_qp_wr, .max_recv_wr = most.max_qp_wr, .max_send_sge = most.max_sge, .max_recv_sge = most.max_sge},
    };
    struct ibv_qp *qp = ibv_create_qp(device.pd, &init);
    CHECK(qp, "a QP for %d requests of %d pieces", most.max_qp_wr, most.max_sge);
    struct ibv_srq_init_attr srq_init = {.attr = {.max_wr = most.max_srq_wr, .max_sge = most.max_srq_sge}};
    struct ibv_srq *srq = ibv_create_srq(device.pd, &srq_init);
    CHECK(srq, "an SRQ for %d receives", most.max_srq_wr);
    CHECK(!ibv_destroy_srq(srq) && !ibv_destroy_qp(qp) && !ibv_destroy_cq(cq));
    close_device(&device);
}

/* A queue that nothing is to be posted to may be of any length. */
static void queues_of_zero(void)
{
    device = open_device();
    struct ibv_cq *cq = ibv_create_cq(device.context, 1, NULL, NULL, 0);
    CHECK(cq && cq->cqe >= 1);
    static const struct ibv_qp_cap CAPS[] = {
        {0}, {.max_send_wr = 1, .max_send_sge = 1}, {.max_recv_wr = 1, .max_recv_sge = 1}, {.max_send_wr = 1, .max_recv_wr = 1}};
    for (size_t i = 0; i < COUNT(CAPS); i++) {
        for (int type = IBV_QPT_RC; type <= IBV_QPT_UD; type += IBV_QPT_UD - IBV_QPT_RC) {
            struct ibv_qp_init_attr init = {.send_cq = cq, .recv_cq = cq, .qp_type = type, .cap = CAPS[i]};
            struct ibv_qp *qp = ibv_create_qp(device.pd, &init);
            CHECK(qp, "caps %zu", i);
            CHECK(init.cap.max_send_wr >= CAPS[i].max_send_wr && init.cap.max_recv_wr >= CAPS[i].max_recv_wr);
            CHECK(!ibv_destroy_qp(qp));
        }
    }
    CHECK(!ibv_destroy_cq(cq));
    close_device(&device);
}

/* The extended form of what the plain one does. */
static void extended_srq(void)
{
    device = open_device();
    struct ibv_srq_init_attr_ex init = {.attr = {.max_wr = 4, .max_sge = 1},
                                        .comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD,
                                        .srq_type = IBV_SRQT_BASIC,
                                        .pd = device.pd};
    struct ibv_srq *srq = ibv_create_srq_ex(device.context, &init);
    CHECK(srq && init.attr.max_wr >= 4);
    struct ibv_srq_attr attr = {.srq_limit = 2};
    CHECK(!ibv_modify_srq(srq, &attr, IBV_SRQ_LIMIT));
    memset(&attr, 0xee, sizeof(attr));
    CHECK(!ibv_query_srq(srq, &attr) && attr.srq_limit == 2 && attr.max_wr >= 4);
    CHECK(!ibv_destroy_srq(srq));
    close_device(&device);
}

/* A list of GIDs is whole, or there is none. */
static void gid_table(void)
{
    device = open_device();
    struct ibv_gid_entry gids[64];
    ssize_t all = ibv_query_gid_table(device.context, gids, COUNT(gids), 0);
    CHECK(all >= 2, "%zd GIDs", all);
    CHECK(ibv_query_gid_table(device.context, gids, all, 0) == all);
    /* By the old ways libibverbs itself looks into sysfs, and takes what fits. */
    const char *way = getenv("PVRDMA_UVERBS");
    if (!way || !strcmp(way, "ioctl"))
        CHECK(ibv_query_gid_table(device.context, gids, all - 1, 0) == -EINVAL);
    for (int i = 0; i < all; i++) {
        struct ibv_gid_entry one;
        CHECK(!ibv_query_gid_ex(device.context, 1, gids[i].gid_index, &one, 0));
        CHECK(!memcmp(&one.gid, &gids[i].gid, sizeof(one.gid)) && one.gid_type == gids[i].gid_type);
    }
    close_device(&device);
}

static const struct test_case CASES[] = {
    /* The first: libibverbs wants to know before it has registered anything. */
    {"fork_init", fork_init},
    {"zero_length", zero_length},
    {"empty_pieces", empty_pieces},
    {"sums_beyond_32_bits", sums_beyond_32_bits},
    {"inline_sums", inline_sums},
    {"all_fields", all_fields},
    {"two_cqs_of_a_channel", two_cqs_of_a_channel},
    {"modify_masks", modify_masks},
    {"all_optional", all_optional},
    {"refined_by_the_kernel", refined_by_the_kernel},
    {"longest_rnr_wait", longest_rnr_wait},
    {"no_timeout", no_timeout},
    {"sequence_numbers_wrap", sequence_numbers_wrap},
    {"async_events", async_events},
    {"other_pd", other_pd},
    {"keys_rest", keys_rest},
    {"split_atomic", split_atomic},
    {"shared_memory", shared_memory},
    {"opens_leave_nothing", opens_leave_nothing},
    {"limits", limits},
    {"queues_of_zero", queues_of_zero},
    {"extended_srq", extended_srq},
    {"gid_table", gid_table},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, COUNT(CASES), argc, argv);
}

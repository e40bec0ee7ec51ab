/*
 * The extended verbs between QPs of one process: ibv_wr_*, extended CQs, inline data, thread and parent domains.
 *
 * Each case opens and closes everything it uses, so that any one can be run alone. With AS_OF_33 it asks for no symbol
 * that libibverbs 33 did not have.
 */
#include "ud.h"

#include <pthread.h>
#include <sched.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define INLINE 256

static struct device device;
static struct end a, b;
static struct ibv_qp_ex *ex;

/* How the ends of a case are made. */
struct way {
    struct ibv_pd *pd;      /* the device's */
    int ud;                 /* RC */
    uint64_t ops;           /* plain ibv_create_qp */
    uint32_t inline_data;   /* none */
    int cq_ex;              /* plain ibv_create_cq */
    uint32_t cq_flags;      /* none */
    uint32_t depth;         /* 16 */
};

static struct end open_way(struct way way)
{
    struct end end = {.length = 1 << 20};
    struct ibv_pd *pd = way.pd ? way.pd : device.pd;
    uint32_t depth = way.depth ? way.depth : 16;
    if (way.cq_ex) {
        struct ibv_cq_init_attr_ex attr = {
            .cqe = 2 * depth,
            .wc_flags = IBV_WC_STANDARD_FLAGS,
            .comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS | (way.pd ? IBV_CQ_INIT_ATTR_MASK_PD : 0),
            .flags = way.cq_flags,
            .parent_domain = way.pd,
        };
        struct ibv_cq_ex *cq = ibv_create_cq_ex(device.context, &attr);
        CHECK(cq);
        end.cq = ibv_cq_ex_to_cq(cq);
    } else {
        end.cq = ibv_create_cq(device.context, 2 * depth, NULL, NULL, 0);
    }
    CHECK(end.cq);
    struct ibv_qp_init_attr_ex init = {
        .send_cq = end.cq,
        .recv_cq = end.cq,
        .qp_type = way.ud ? IBV_QPT_UD : IBV_QPT_RC,
        .cap = {.max_send_wr = depth, .max_recv_wr = depth, .max_send_sge = 4, .max_recv_sge = 4,
                .max_inline_data = way.inline_data},
        .comp_mask = IBV_QP_INIT_ATTR_PD | (way.ops ? IBV_QP_INIT_ATTR_SEND_OPS_FLAGS : 0),
        .pd = pd,
        .send_ops_flags = way.ops,
    };
    end.qp = ibv_create_qp_ex(device.context, &init);
    CHECK(end.qp);
    CHECK(init.cap.max_inline_data >= way.inline_data && !!init.cap.max_inline_data == !!way.inline_data, "%u",
          init.cap.max_inline_data);
    end.buffer = mmap(NULL, end.length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(end.buffer != MAP_FAILED);
    end.mr = ibv_reg_mr(pd, end.buffer, end.length, ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC);
    CHECK(end.mr);
    return end;
}

static void open_pair(struct way way)
{
    device = device.context ? device : open_device();
    a = open_way(way);
    b = open_way(way);
    if (way.ud) {
        ud_to_rts(&a);
        ud_to_rts(&b);
    } else {
        connect_ends(&device, &a, &b, USUAL);
        struct ibv_qp_attr attr = {.qp_access_flags = ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC};
        CHECK(!ibv_modify_qp(b.qp, &attr, IBV_QP_ACCESS_FLAGS));
    }
    ex = way.ops ? ibv_qp_to_qp_ex(a.qp) : NULL;
    CHECK(!way.ops == !ex);
}

static void close_pair(void)
{
    close_end(&a);
    close_end(&b);
}

static void close_all(void)
{
    close_device(&device);
    device = (struct device){0};
}

#define RC_OPS                                                                                                         \
    (IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM | IBV_QP_EX_WITH_RDMA_WRITE |                                  \
     IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM | IBV_QP_EX_WITH_RDMA_READ | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP |               \
     IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD)
#define UD_OPS (IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM)

/* ---- ibv_wr_* ---- */

/* All operations in one batch. */
static void wr_all(void)
{
    open_pair((struct way){.ops = RC_OPS});
    uint64_t *numbers = (uint64_t *)(b.buffer + 65536);
    numbers[0] = 5;
    numbers[1] = 7;
    fill(a.buffer, 4096, 1);
    fill(b.buffer + 8192, 1000, 2);
    post_recv(&b, 100, 0, 1000);
    post_recv(&b, 101, 1000, 1000);
    post_recv(&b, 102, 0, 0);
    uint64_t remote = (uintptr_t)b.buffer;
    ibv_wr_start(ex);
    ex->wr_flags = IBV_SEND_SIGNALED;
    ex->wr_id = 1;
    ibv_wr_send(ex);
    ibv_wr_set_sge(ex, a.mr->lkey, (uintptr_t)a.buffer, 1000);
    ex->wr_id = 2;
    ibv_wr_send_imm(ex, htobe32(77));
    struct ibv_sge pieces[] = {sge_of(&a, 1000, 400), sge_of(&a, 1400, 600)};
    ibv_wr_set_sge_list(ex, 2, pieces);
    ex->wr_id = 3;
    ibv_wr_rdma_write(ex, b.mr->rkey, remote + 2000);
    ibv_wr_set_sge(ex, a.mr->lkey, (uintptr_t)a.buffer + 2000, 1000);
    ex->wr_id = 4;
    ibv_wr_rdma_write_imm(ex, b.mr->rkey, remote + 3000, htobe32(78));
    ibv_wr_set_sge(ex, a.mr->lkey, (uintptr_t)a.buffer + 3000, 1096);
    ex->wr_id = 5;
    ibv_wr_rdma_read(ex, b.mr->rkey, remote + 8192);
    ibv_wr_set_sge(ex, a.mr->lkey, (uintptr_t)a.buffer + 8192, 1000);
    ex->wr_id = 6;
    ibv_wr_atomic_cmp_swp(ex, b.mr->rkey, (uintptr_t)&numbers[0], 5, 50);
    ibv_wr_set_sge(ex, a.mr->lkey, (uintptr_t)a.buffer + 16384, 8);
    ex->wr_id = 7;
    ibv_wr_atomic_fetch_add(ex, b.mr->rkey, (uintptr_t)&numbers[1], 70);
    ibv_wr_set_sge(ex, a.mr->lkey, (uintptr_t)a.buffer + 16392, 8);
    /* Nothing asked of the last one: no completion, no data. */
    ex->wr_flags = 0;
    ex->wr_id = 8;
    ibv_wr_rdma_write(ex, b.mr->rkey, remote);
    CHECK(!ibv_wr_complete(ex));
    static const enum ibv_wc_opcode done[] = {IBV_WC_SEND,      IBV_WC_SEND,      IBV_WC_RDMA_WRITE, IBV_WC_RDMA_WRITE,
                                              IBV_WC_RDMA_READ, IBV_WC_COMP_SWAP, IBV_WC_FETCH_ADD};
    for (uint32_t i = 0; i < COUNT(done); i++)
        CHECK(expect_wc(&a, i + 1, IBV_WC_SUCCESS).opcode == done[i]);
    expect_nothing(&a);
    CHECK(expect_wc(&b, 100, IBV_WC_SUCCESS).byte_len == 1000);
    CHECK(expect_wc(&b, 101, IBV_WC_SUCCESS).imm_data == htobe32(77));
    CHECK(expect_wc(&b, 102, IBV_WC_SUCCESS).imm_data == htobe32(78));
    expect_bytes(b.buffer, 4096, 1);
    expect_bytes(a.buffer + 8192, 1000, 2);
    CHECK(numbers[0] == 50 && numbers[1] == 77, "%llu %llu", (unsigned long long)numbers[0],
          (unsigned long long)numbers[1]);
    uint64_t before[2];
    memcpy(before, a.buffer + 16384, 16);
    CHECK(before[0] == 5 && before[1] == 7);
    close_pair();
    close_all();
}

static void wr_datagrams(void)
{
    open_pair((struct way){.ud = 1, .ops = UD_OPS, .inline_data = INLINE});
    struct ibv_ah *ah = ah_to(&device);
    for (uint32_t i = 0; i < 50; i++) {
        uint8_t unregistered[100];
        fill(unregistered, sizeof(unregistered), i);
        fill(a.buffer, 100, i + 1);
        post_recv(&b, 1, 0, 256);
        post_recv(&b, 2, 256, 256);
        ibv_wr_start(ex);
        ex->wr_flags = 0;
        ibv_wr_send(ex);
        ibv_wr_set_ud_addr(ex, ah, b.qp->qp_num, QKEY);
        ibv_wr_set_inline_data(ex, unregistered, sizeof(unregistered));
        ex->wr_flags = IBV_SEND_SIGNALED;
        ex->wr_id = i;
        ibv_wr_send_imm(ex, i);
        ibv_wr_set_ud_addr(ex, ah, b.qp->qp_num, QKEY);
        ibv_wr_set_sge(ex, a.mr->lkey, (uintptr_t)a.buffer, 100);
        CHECK(!ibv_wr_complete(ex));
        memset(unregistered, 0, sizeof(unregistered));
        expect_wc(&a, i, IBV_WC_SUCCESS);
        expect_wc(&b, 1, IBV_WC_SUCCESS);
        CHECK(expect_wc(&b, 2, IBV_WC_SUCCESS).imm_data == i);
        expect_bytes(b.buffer + GRH, 100, i);
        expect_bytes(b.buffer + 256 + GRH, 100, i + 1);
    }
    /* Nowhere to go. */
    ibv_wr_start(ex);
    ibv_wr_send(ex);
    CHECK(ibv_wr_complete(ex) == EINVAL);
    CHECK(!ibv_destroy_ah(ah));
    close_pair();
    close_all();
}

/* What is aborted or wrong in any place never happens, and leaves no trace. */
static void wr_all_or_nothing(void)
{
    open_pair((struct way){.ops = RC_OPS, .inline_data = INLINE, .depth = 4});
    for (int round = 0; round < 100; round++) {
        ibv_wr_start(ex);
        for (int i = 0; i < 4; i++) {
            ibv_wr_rdma_write(ex, b.mr->rkey, (uintptr_t)b.buffer);
            ibv_wr_set_inline_data(ex, "wrong", 5);
        }
        if (round % 2)
            ibv_wr_abort(ex);
        else {
            ibv_wr_rdma_write(ex, b.mr->rkey, (uintptr_t)b.buffer);
            CHECK(ibv_wr_complete(ex) == ENOMEM);
        }
        uint8_t big[INLINE + 64];
        ibv_wr_start(ex);
        ibv_wr_rdma_write(ex, b.mr->rkey, (uintptr_t)b.buffer);
        ibv_wr_set_inline_data(ex, big, sizeof(big));
        ibv_wr_rdma_write(ex, b.mr->rkey, (uintptr_t)b.buffer);
        CHECK(ibv_wr_complete(ex) == EINVAL);
    }
    expect_nothing(&a);
    expect_value(b.buffer, 64, 0);
    ibv_wr_start(ex);
    ex->wr_flags = IBV_SEND_SIGNALED;
    ex->wr_id = 9;
    ibv_wr_rdma_write(ex, b.mr->rkey, (uintptr_t)b.buffer);
    ibv_wr_set_inline_data(ex, "right", 5);
    CHECK(!ibv_wr_complete(ex));
    expect_wc(&a, 9, IBV_WC_SUCCESS);
    CHECK(!memcmp(b.buffer, "right", 5));
    close_pair();
    close_all();
}

/* sq_sig_all holds for this interface too. */
static void wr_all_signaled(void)
{
    device = open_device();
    a = open_way((struct way){0});
    b = open_way((struct way){0});
    CHECK(!ibv_destroy_qp(a.qp));
    struct ibv_qp_init_attr_ex init = {
        .send_cq = a.cq, .recv_cq = a.cq, .qp_type = IBV_QPT_RC, .sq_sig_all = 1,
        .cap = {.max_send_wr = 8, .max_recv_wr = 8, .max_send_sge = 1, .max_recv_sge = 1},
        .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
        .pd = device.pd, .send_ops_flags = RC_OPS,
    };
    a.qp = ibv_create_qp_ex(device.context, &init);
    CHECK(a.qp);
    connect_ends(&device, &a, &b, USUAL);
    ex = ibv_qp_to_qp_ex(a.qp);
    CHECK(ex);
    ibv_wr_start(ex);
    ex->wr_flags = 0;
    for (int i = 0; i < 4; i++) {
        ex->wr_id = i;
        ibv_wr_rdma_write(ex, b.mr->rkey, (uintptr_t)b.buffer);
        ibv_wr_set_sge(ex, a.mr->lkey, (uintptr_t)a.buffer, 8);
    }
    CHECK(!ibv_wr_complete(ex));
    for (int i = 0; i < 4; i++)
        expect_wc(&a, i, IBV_WC_SUCCESS);
    close_pair();
    close_all();
}

static void no_qp(struct ibv_qp_init_attr_ex init, int error)
{
    struct ibv_qp_init_attr_ex before = init;
    errno = 0;
    CHECK(!ibv_create_qp_ex(device.context, &init) && errno == error, "instead of %d", error);
    CHECK(!memcmp(&init.cap, &before.cap, sizeof(init.cap)));
}

static void qp_refused(void)
{
    device = open_device();
    a = open_way((struct way){0});
    struct ibv_qp_init_attr_ex good = {
        .send_cq = a.cq, .recv_cq = a.cq, .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = 5, .max_recv_wr = 5, .max_send_sge = 1, .max_recv_sge = 1},
        .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
        .pd = device.pd, .send_ops_flags = RC_OPS,
    }, init = good;
    init.send_ops_flags |= IBV_QP_EX_WITH_BIND_MW;
    no_qp(init, EOPNOTSUPP);
    init.send_ops_flags = IBV_QP_EX_WITH_TSO;
    no_qp(init, EOPNOTSUPP);
    init.send_ops_flags = 1ull << 40;
    no_qp(init, EOPNOTSUPP);
    /* Not tried on VMware's device: off unless switched on. */
    init.send_ops_flags = IBV_QP_EX_WITH_SEND_WITH_INV;
    no_qp(init, EOPNOTSUPP);
    init = good;
    init.qp_type = IBV_QPT_UD;
    no_qp(init, EOPNOTSUPP);
    init = good;
    init.qp_type = IBV_QPT_UC;
    init.comp_mask = IBV_QP_INIT_ATTR_PD;
    no_qp(init, EOPNOTSUPP);
    init = good;
    init.comp_mask |= IBV_QP_INIT_ATTR_CREATE_FLAGS;
    init.create_flags = IBV_QP_CREATE_BLOCK_SELF_MCAST_LB;
    no_qp(init, EOPNOTSUPP);
    init = good;
    init.comp_mask |= IBV_QP_INIT_ATTR_MAX_TSO_HEADER;
    no_qp(init, EOPNOTSUPP);
    init = good;
    init.comp_mask = IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
    no_qp(init, EINVAL);
    struct ibv_device_attr attr;
    CHECK(!ibv_query_device(device.context, &attr));
    init = good;
    init.cap.max_send_wr = attr.max_qp_wr + 1;
    no_qp(init, EINVAL);
    init.cap.max_send_wr = 0xffffffff;
    no_qp(init, EINVAL);
    init.cap.max_send_wr = 0x7fffffff;
    no_qp(init, EINVAL);
    init = good;
    init.cap.max_send_sge = attr.max_sge + 1;
    no_qp(init, EINVAL);
    init = good;
    init.cap.max_inline_data = 1 << 20;
    no_qp(init, EINVAL);
    close_end(&a);
    close_all();
}

/* Switched on, the invalidating requests go out as what they are. No key that user space has can be invalidated (the
 * device has no memory windows), so both fail, and at the right end. Everything else works as before. */
static void invalidating(void)
{
    CHECK(!setenv("PVRDMA_ENABLE", "send_with_inv,local_inv", 1));
    struct way way = {.ops = RC_OPS | IBV_QP_EX_WITH_SEND_WITH_INV | IBV_QP_EX_WITH_LOCAL_INV, .inline_data = 64};
    for (int by_ex = 0; by_ex < 2; by_ex++) {
        for (int local = 0; local < 2; local++) {
            open_pair(way);
            post_recv(&b, 1, 0, 64);
            post_recv(&b, 2, 64, 64);
            struct ibv_sge sge = sge_of(&a, 0, 8);
            struct ibv_send_wr good = {.wr_id = 3, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .sg_list = &sge,
                                       .num_sge = 1};
            post_send(&a, &good);
            expect_wc(&a, 3, IBV_WC_SUCCESS);
            CHECK(expect_wc(&b, 1, IBV_WC_SUCCESS).wc_flags == 0);
            struct ibv_send_wr wr = {.wr_id = 4, .opcode = local ? IBV_WR_LOCAL_INV : IBV_WR_SEND_WITH_INV,
                                     .send_flags = IBV_SEND_SIGNALED, .sg_list = &sge, .num_sge = !local,
                                     .invalidate_rkey = local ? a.mr->rkey : b.mr->rkey};
            if (!by_ex) {
                post_send(&a, &wr);
            } else {
                ibv_wr_start(ex);
                ex->wr_id = 4;
                ex->wr_flags = IBV_SEND_SIGNALED;
                if (local) {
                    ibv_wr_local_inv(ex, wr.invalidate_rkey);
                } else {
                    ibv_wr_send_inv(ex, wr.invalidate_rkey);
                    ibv_wr_set_sge(ex, sge.lkey, sge.addr, sge.length);
                }
                CHECK(!ibv_wr_complete(ex));
            }
            struct ibv_wc wc = wait_wc(&a);
            CHECK(wc.wr_id == 4 && wc.status != IBV_WC_SUCCESS && wc.status != IBV_WC_WR_FLUSH_ERR, "%s",
                  ibv_wc_status_str(wc.status));
            /* The region is as good as before. */
            close_pair();
        }
    }
    close_all();
    CHECK(!unsetenv("PVRDMA_ENABLE"));
    open_pair((struct way){0});
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = {.opcode = IBV_WR_SEND_WITH_INV, .sg_list = &sge, .num_sge = 1}, *bad = NULL;
    CHECK(ibv_post_send(a.qp, &wr, &bad) == EINVAL && bad == &wr);
    close_pair();
    close_all();
}

/* ---- inline data ---- */

static void inline_rc(void)
{
    open_pair((struct way){.inline_data = INLINE, .depth = 8});
    /* From memory nobody registered, which changes at once; many times around the ring, one in four signaled. */
    for (uint32_t i = 0; i < 1000; i++) {
        uint8_t *source = malloc(INLINE);
        uint32_t length = i % (INLINE + 1);
        fill(source, length, i);
        struct ibv_sge sges[2] = {{.addr = (uintptr_t)source, .length = length / 3},
                                  {.addr = (uintptr_t)source + length / 3, .length = length - length / 3}};
        struct ibv_send_wr wr = {.wr_id = i,
                                 .opcode = i % 2 ? IBV_WR_SEND : IBV_WR_RDMA_WRITE_WITH_IMM,
                                 .send_flags = IBV_SEND_INLINE | (i % 4 == 3 ? IBV_SEND_SIGNALED : 0),
                                 .sg_list = sges,
                                 .num_sge = 2,
                                 .wr.rdma = {.remote_addr = (uintptr_t)b.buffer, .rkey = b.mr->rkey}};
        post_recv(&b, i, 0, INLINE);
        post_send(&a, &wr);
        memset(source, 0xff, INLINE);
        free(source);
        CHECK(expect_wc(&b, i, IBV_WC_SUCCESS).byte_len == length);
        expect_bytes(b.buffer, length, i);
        if (i % 4 == 3)
            CHECK(expect_wc(&a, i, IBV_WC_SUCCESS).opcode == IBV_WC_SEND);
    }
    expect_nothing(&a);
    close_pair();
    close_all();
}

/* A receiver that is late: what was posted inline is what arrives, although the source has long changed. */
static void inline_waits(void)
{
    open_pair((struct way){.inline_data = 64, .depth = 4});
    uint8_t source[64];
    struct ibv_sge sge = {.addr = (uintptr_t)source, .length = 64};
    struct ibv_send_wr wr = {.opcode = IBV_WR_SEND, .sg_list = &sge, .num_sge = 1}, *bad;
    for (uint32_t i = 0; i < 4; i++) {
        fill(source, 64, i);
        wr.wr_id = i;
        wr.send_flags = IBV_SEND_INLINE | (i == 3 ? IBV_SEND_SIGNALED : 0);
        post_send(&a, &wr);
    }
    CHECK(ibv_post_send(a.qp, &wr, &bad) == ENOMEM && bad == &wr);
    for (uint32_t i = 0; i < 4; i++)
        post_recv(&b, i, 64 * i, 64);
    for (uint32_t i = 0; i < 4; i++) {
        expect_wc(&b, i, IBV_WC_SUCCESS);
        expect_bytes(b.buffer + 64 * i, 64, i);
    }
    expect_wc(&a, 3, IBV_WC_SUCCESS);
    post_recv(&b, 5, 0, 64);
    post_send(&a, &wr);
    expect_wc(&a, 3, IBV_WC_SUCCESS);
    close_pair();
    close_all();
}

/* Flushed inline sends give their places back, and RESET gives all back. */
static void inline_flush(void)
{
    open_pair((struct way){.inline_data = 64, .depth = 4});
    uint8_t source[64];
    struct ibv_sge sge = {.addr = (uintptr_t)source, .length = 64};
    struct ibv_send_wr wr = {.opcode = IBV_WR_SEND, .sg_list = &sge, .num_sge = 1, .send_flags = IBV_SEND_INLINE};
    to_error(&a);
    for (uint32_t i = 0; i < 40; i++) {
        wr.wr_id = i;
        post_send(&a, &wr);
        /* Flushed: told although unsignaled. */
        expect_wc(&a, i, IBV_WC_WR_FLUSH_ERR);
        post_recv(&a, 1000 + i, 0, 8);
        expect_wc(&a, 1000 + i, IBV_WC_WR_FLUSH_ERR);
    }
    for (int round = 0; round < 10; round++) {
        for (uint32_t i = 0; i < 4; i++)
            post_send(&a, &wr);
        to_error(&a);
        to_error(&b);
        struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RESET};
        CHECK(!ibv_modify_qp(a.qp, &attr, IBV_QP_STATE));
        CHECK(!ibv_modify_qp(b.qp, &attr, IBV_QP_STATE));
        expect_nothing(&a);
        connect_ends(&device, &a, &b, USUAL);
    }
    close_pair();
    close_all();
}

static void inline_refused(void)
{
    open_pair((struct way){.inline_data = 1});
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;
    CHECK(!ibv_query_qp(a.qp, &attr, IBV_QP_CAP, &init));
    uint32_t most = init.cap.max_inline_data;
    CHECK(most >= 1 && attr.cap.max_inline_data == most);
    uint8_t *source = calloc(1, most + 1);
    struct ibv_sge sge = {.addr = (uintptr_t)source, .length = most + 1};
    struct ibv_send_wr wr = {.opcode = IBV_WR_SEND, .sg_list = &sge, .num_sge = 1, .send_flags = IBV_SEND_INLINE},
                       *bad = NULL;
    CHECK(ibv_post_send(a.qp, &wr, &bad) == EINVAL && bad == &wr);
    wr.opcode = IBV_WR_RDMA_READ;
    sge.length = 1;
    CHECK(ibv_post_send(a.qp, &wr, &bad) == EINVAL && bad == &wr);
    close_pair();
    open_pair((struct way){0});
    wr.opcode = IBV_WR_SEND;
    CHECK(ibv_post_send(a.qp, &wr, &bad) == EINVAL && bad == &wr);
    free(source);
    close_pair();
    close_all();
}

/* Two threads that poll one CQ and two that post to one QP lose nothing, with inline data and without. */
static uint32_t taken;

static void *take(void *failed)
{
    struct ibv_wc wc[4];
    while (__atomic_load_n(&taken, __ATOMIC_RELAXED) < 4000) {
        int n = ibv_poll_cq(a.cq, 4, wc);
        if (n < 0)
            *(int *)failed = 1;
        for (int i = 0; i < n; i++)
            if (wc[i].status != IBV_WC_SUCCESS || wc[i].wr_id >> 32 != 0x5eed || wc[i].qp_num != a.qp->qp_num)
                *(int *)failed = 1;
        __atomic_add_fetch(&taken, n > 0 ? n : 0, __ATOMIC_RELAXED);
        if (!n)
            sched_yield();
    }
    return NULL;
}

static void *give(void *failed)
{
    uint8_t byte = 7;
    for (uint64_t i = 0; i < 2000;) {
        struct ibv_sge sge = {.addr = (uintptr_t)&byte, .length = 1};
        struct ibv_send_wr wr = {.wr_id = 0x5eedull << 32 | i, .opcode = IBV_WR_RDMA_WRITE, .sg_list = &sge, .num_sge = 1,
                                 .send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE,
                                 .wr.rdma = {.remote_addr = (uintptr_t)b.buffer, .rkey = b.mr->rkey}},
                           *bad;
        int error = ibv_post_send(a.qp, &wr, &bad);
        if (error && error != ENOMEM)
            *(int *)failed = 1;
        if (error)
            sched_yield();
        else
            i++;
    }
    return NULL;
}

static void inline_threads(void)
{
    open_pair((struct way){.inline_data = 64, .depth = 8});
    pthread_t threads[4];
    int failed = 0;
    taken = 0;
    for (int i = 0; i < 4; i++)
        CHECK(!pthread_create(&threads[i], NULL, i % 2 ? take : give, &failed));
    for (int i = 0; i < 4; i++)
        CHECK(!pthread_join(threads[i], NULL));
    CHECK(!failed && taken == 4000, "%u", taken);
    close_pair();
    close_all();
}

/* ---- extended CQs ---- */

static void cq_ex(void)
{
    for (uint32_t flags = 0; flags < 2; flags++) {
        open_pair((struct way){.cq_ex = 1, .cq_flags = flags ? IBV_CREATE_CQ_ATTR_SINGLE_THREADED : 0});
        struct ibv_cq_ex *cq = (struct ibv_cq_ex *)b.cq;
        struct ibv_poll_cq_attr none = {0};
        CHECK(ibv_start_poll(cq, &none) == ENOENT);
        CHECK(ibv_start_poll(cq, &none) == ENOENT);
        for (uint32_t round = 0; round < 40; round++) {
            fill(a.buffer, 64, round);
            for (uint32_t i = 0; i < 5; i++) {
                post_recv(&b, i, 64 * i, 64);
                struct ibv_sge sge = sge_of(&a, 0, 64);
                struct ibv_send_wr wr = {.wr_id = i, .opcode = IBV_WR_SEND_WITH_IMM, .send_flags = IBV_SEND_SIGNALED,
                                         .sg_list = &sge, .num_sge = 1, .imm_data = htobe32(i)};
                post_send(&a, &wr);
                expect_wc(&a, i, IBV_WC_SUCCESS);
            }
            double limit = now_ms() + 10000;
            for (uint32_t i = 0; i < 5;) {
                CHECK(now_ms() < limit, "no completion");
                int ret = ibv_start_poll(cq, &none);
                if (ret == ENOENT)
                    continue;
                for (; !ret; i++) {
                    CHECK(cq->wr_id == i && cq->status == IBV_WC_SUCCESS);
                    CHECK(ibv_wc_read_opcode(cq) == IBV_WC_RECV && ibv_wc_read_byte_len(cq) == 64);
                    CHECK(ibv_wc_read_qp_num(cq) == b.qp->qp_num && ibv_wc_read_imm_data(cq) == htobe32(i));
                    CHECK(ibv_wc_read_wc_flags(cq) == IBV_WC_WITH_IMM && ibv_wc_read_vendor_err(cq) == 0);
                    CHECK(ibv_wc_read_slid(cq) == 0 && ibv_wc_read_sl(cq) == 0 && ibv_wc_read_dlid_path_bits(cq) == 0);
                    uint32_t src = ibv_wc_read_src_qp(cq);
                    CHECK(src == a.qp->qp_num || !src);
                    ret = ibv_next_poll(cq);
                }
                CHECK(ret == ENOENT, "%d", ret);
                ibv_end_poll(cq);
            }
        }
        /* The same CQ the plain way. */
        CHECK(!ibv_poll_cq(b.cq, 1, &(struct ibv_wc){0}));
        close_pair();
    }
    close_all();
}

/* What a completion says of a datagram, asked field by field. */
static void cq_ex_datagrams(void)
{
    open_pair((struct way){.cq_ex = 1, .ud = 1});
    struct ibv_cq_ex *cq = (struct ibv_cq_ex *)b.cq;
    struct ibv_ah *ah = ah_to(&device);
    union ibv_gid dgid;
    struct ibv_gid_entry gid;
    CHECK(!ibv_query_gid_ex(device.context, 1, ud_gid(&device, &dgid), &gid, 0));
    post_recv(&b, 1, 0, 4096);
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = datagram(2, &sge, ah, &b);
    post_send(&a, &wr);
    expect_wc(&a, 2, IBV_WC_SUCCESS);
    struct ibv_poll_cq_attr none = {0};
    double limit = now_ms() + 10000;
    while (ibv_start_poll(cq, &none))
        CHECK(now_ms() < limit, "no completion");
    CHECK(cq->wr_id == 1 && cq->status == IBV_WC_SUCCESS && ibv_wc_read_byte_len(cq) == GRH + 8);
    CHECK(ibv_wc_read_src_qp(cq) == a.qp->qp_num && ibv_wc_read_wc_flags(cq) == IBV_WC_GRH);
    CHECK((ibv_wc_read_sl(cq) & 7) == packet_type(&gid), "sl %u instead of %d", ibv_wc_read_sl(cq), packet_type(&gid));
    ibv_end_poll(cq);
    CHECK(!ibv_destroy_ah(ah));
    close_pair();
    close_all();
}

static void no_cq(struct ibv_cq_init_attr_ex attr, int error)
{
    errno = 0;
    CHECK(!ibv_create_cq_ex(device.context, &attr) && errno == error, "instead of %d", error);
}

static void cq_refused(void)
{
    device = open_device();
    struct ibv_cq_init_attr_ex good = {.cqe = 8, .wc_flags = IBV_WC_STANDARD_FLAGS}, attr = good;
    for (int bit = 0; bit < 64; bit++) {
        attr.wc_flags = 1ull << bit;
        if (attr.wc_flags & ~(uint64_t)IBV_WC_STANDARD_FLAGS) {
            no_cq(attr, EOPNOTSUPP);
            continue;
        }
        struct ibv_cq_ex *cq = ibv_create_cq_ex(device.context, &attr);
        CHECK(cq);
        CHECK(!ibv_destroy_cq(ibv_cq_ex_to_cq(cq)));
    }
    struct ibv_device_attr limits;
    CHECK(!ibv_query_device(device.context, &limits));
    attr = good;
    attr.cqe = 0;
    no_cq(attr, EINVAL);
    attr.cqe = limits.max_cqe + 1;
    no_cq(attr, EINVAL);
    attr.cqe = 0x40000001;
    no_cq(attr, EINVAL);
    attr.cqe = 0xffffffff;
    no_cq(attr, EINVAL);
    attr = good;
    attr.comp_vector = device.context->num_comp_vectors;
    no_cq(attr, EINVAL);
    attr = good;
    attr.comp_mask = 1u << 20;
    no_cq(attr, EINVAL);
    attr.comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS;
    attr.flags = IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN;
    no_cq(attr, EOPNOTSUPP);
    attr.comp_mask = IBV_CQ_INIT_ATTR_MASK_PD;
    attr.parent_domain = device.pd;
    no_cq(attr, EINVAL);
    CHECK(!ibv_create_cq(device.context, 0, NULL, NULL, 0) && errno == EINVAL);
    CHECK(!ibv_create_cq(device.context, -1, NULL, NULL, 0) && errno == EINVAL);
    close_all();
}

/* ---- domains ---- */

static int allocated, asked;

static void *own_alloc(struct ibv_pd *pd, void *context, size_t size, size_t alignment, uint64_t type)
{
    CHECK(context == &allocated && pd && type >> 32 == 10 && size % 4096 == 0 && alignment == 4096);
    asked++;
    if (asked % 3 == 0)
        return IBV_ALLOCATOR_USE_DEFAULT;
    void *memory;
    CHECK(!posix_memalign(&memory, alignment, size));
    /* As dirty as memory can be. */
    memset(memory, 0xff, size);
    allocated++;
    return memory;
}

static void own_free(struct ibv_pd *pd, void *context, void *memory, uint64_t type)
{
    CHECK(context == &allocated && pd && type >> 32 == 10);
    allocated--;
    free(memory);
}

static void *no_alloc(struct ibv_pd *pd, void *context, size_t size, size_t alignment, uint64_t type)
{
    (void)pd, (void)context, (void)size, (void)alignment, (void)type;
    return NULL;
}

static void domains(void)
{
    device = open_device();
    struct ibv_td *td = ibv_alloc_td(device.context, &(struct ibv_td_init_attr){0});
    CHECK(td);
    struct ibv_parent_domain_init_attr attr = {
        .pd = device.pd, .td = td,
        .comp_mask = IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS | IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT,
        .alloc = own_alloc, .free = own_free, .pd_context = &allocated,
    };
    struct ibv_pd *domain = ibv_alloc_parent_domain(device.context, &attr);
    CHECK(domain);
    CHECK(ibv_dealloc_td(td) == EBUSY && ibv_dealloc_pd(device.pd) == EBUSY);
    for (int round = 0; round < 4; round++) {
        open_pair((struct way){.pd = domain, .ops = RC_OPS, .inline_data = 64, .cq_ex = 1});
        CHECK(asked >= 8, "%d", asked);
        CHECK(ibv_dealloc_pd(domain) == EBUSY);
        for (uint32_t i = 0; i < 100; i++) {
            post_recv(&b, i, 0, 64);
            fill(a.buffer, 64, i);
            struct ibv_sge sge = sge_of(&a, 0, 64);
            struct ibv_send_wr wr = {
                .wr_id = i, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .sg_list = &sge, .num_sge = 1};
            post_send(&a, &wr);
            expect_wc(&a, i, IBV_WC_SUCCESS);
            expect_wc(&b, i, IBV_WC_SUCCESS);
            expect_bytes(b.buffer, 64, i);
        }
        close_pair();
        CHECK(allocated == 0, "%d", allocated);
    }
    struct ibv_srq_init_attr srq_init = {.attr = {.max_wr = 4, .max_sge = 1}};
    struct ibv_srq *srq = ibv_create_srq(domain, &srq_init);
    CHECK(srq && ibv_dealloc_pd(domain) == EBUSY);
    CHECK(!ibv_destroy_srq(srq));
    struct ibv_ah *ah = ibv_create_ah(domain, &(struct ibv_ah_attr){.is_global = 1, .port_num = 1,
                                                                   .grh.dgid = device.gid});
    CHECK(ah && ibv_dealloc_pd(domain) == EBUSY);
    CHECK(!ibv_destroy_ah(ah));
    CHECK(allocated == 0);
    CHECK(!ibv_dealloc_pd(domain));
    CHECK(!ibv_dealloc_td(td));
    close_all();
}

static void domains_refused(void)
{
    device = open_device();
    struct ibv_parent_domain_init_attr good = {.pd = device.pd}, attr = good;
    attr.pd = NULL;
    CHECK(!ibv_alloc_parent_domain(device.context, &attr) && errno == EINVAL);
    attr = good;
    /* ALLOW_CC_UNPROTECTED_ALLOC of rdma-core 65: this device needs no such memory, so it may be asked for. */
    attr.comp_mask = 1 << 2;
    struct ibv_pd *open = ibv_alloc_parent_domain(device.context, &attr);
    CHECK(open);
    CHECK(!ibv_dealloc_pd(open));
    attr.comp_mask = 1 << 10;
    CHECK(!ibv_alloc_parent_domain(device.context, &attr) && errno == EINVAL);
    attr.comp_mask = IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS;
    CHECK(!ibv_alloc_parent_domain(device.context, &attr) && errno == EINVAL);
    CHECK(!ibv_alloc_td(device.context, &(struct ibv_td_init_attr){.comp_mask = 1}) && errno == EINVAL);
    /* An allocator that has nothing. */
    attr.alloc = no_alloc;
    attr.free = own_free;
    struct ibv_pd *domain = ibv_alloc_parent_domain(device.context, &attr);
    CHECK(domain);
    struct ibv_cq *cq = ibv_create_cq(device.context, 4, NULL, NULL, 0);
    struct ibv_qp_init_attr init = {.send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 1, .max_recv_wr = 1}};
    CHECK(!ibv_create_qp(domain, &init) && errno == ENOMEM);
    attr = good;
    attr.pd = domain;
    CHECK(!ibv_alloc_parent_domain(device.context, &attr) && errno == EINVAL);
    CHECK(!ibv_destroy_cq(cq));
    CHECK(!ibv_dealloc_pd(domain));
    close_all();
}

/* ---- what this device does not do says so, and in no other way ---- */

static void mr_refused(void)
{
    device = open_device();
    size_t length = (1ul << 30) + 4096;
    void *much = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(much != MAP_FAILED);
    errno = 0;
    CHECK(!ibv_reg_mr(device.pd, much, length, IBV_ACCESS_LOCAL_WRITE) && errno == EINVAL);
    errno = 0;
    CHECK(!ibv_reg_mr(device.pd, much, 4096, IBV_ACCESS_REMOTE_WRITE) && errno == EINVAL, "to write needs LOCAL_WRITE");
    errno = 0;
    CHECK(!ibv_reg_mr_iova(device.pd, much, 4096, 0x1000, IBV_ACCESS_LOCAL_WRITE) && errno == EOPNOTSUPP);
    struct ibv_device_attr limits;
    CHECK(!ibv_query_device(device.context, &limits) && limits.max_mr_size < length);
    struct ibv_mr *most = ibv_reg_mr(device.pd, much, limits.max_mr_size, IBV_ACCESS_LOCAL_WRITE);
    CHECK(most && !ibv_dereg_mr(most));
    CHECK(!munmap(much, length));
    close_all();
}

static void not_supported(void)
{
    open_pair((struct way){0});
    CHECK(ibv_resize_cq(a.cq, 64) == EOPNOTSUPP);
    CHECK(!ibv_alloc_mw(device.pd, IBV_MW_TYPE_1) && errno == EOPNOTSUPP);
    CHECK(!ibv_open_xrcd(device.context, &(struct ibv_xrcd_init_attr){.comp_mask = 3, .fd = -1, .oflags = 0100}) &&
          errno == EOPNOTSUPP);
    CHECK(!ibv_alloc_dm(device.context, &(struct ibv_alloc_dm_attr){.length = 64}) && errno == EOPNOTSUPP);
#ifndef AS_OF_33
    CHECK(!ibv_reg_dmabuf_mr(device.pd, 0, 4096, 0, -1, 0) && errno == EOPNOTSUPP);
#endif
    errno = 0;
    CHECK(!ibv_reg_mr_iova(device.pd, a.buffer, 4096, 0x1000, 0) && errno == EOPNOTSUPP);
    struct ibv_mr *same = ibv_reg_mr_iova(device.pd, a.buffer, 4096, (uintptr_t)a.buffer, 0);
    CHECK(same && !ibv_dereg_mr(same));
    struct ibv_mr *relaxed = ibv_reg_mr(device.pd, a.buffer, 4096, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_RELAXED_ORDERING);
    CHECK(relaxed && !ibv_dereg_mr(relaxed));
    struct ibv_mr *atomic = ibv_reg_mr(device.pd, a.buffer, 4096, ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC);
    CHECK(atomic && !ibv_dereg_mr(atomic));
    errno = 0;
    CHECK(ibv_rereg_mr(a.mr, IBV_REREG_MR_CHANGE_ACCESS, NULL, NULL, 0, 0) && errno == EOPNOTSUPP);
    CHECK(!ibv_alloc_null_mr(device.pd) && errno == EOPNOTSUPP);
    struct ibv_ece ece = {0};
    int error = ibv_query_ece(a.qp, &ece);
    CHECK(error == EOPNOTSUPP, "query_ece gives %d", error);
    error = ibv_set_ece(a.qp, &(struct ibv_ece){.vendor_id = 1});
    CHECK(error == EOPNOTSUPP, "set_ece gives %d", error);
#ifndef AS_OF_33
    CHECK(ibv_query_qp_data_in_order(a.qp, IBV_WR_RDMA_WRITE, 0) == 0);
#endif
    struct ibv_modify_cq_attr moderate = {.attr_mask = IBV_CQ_ATTR_MODERATE, .moderate = {1, 1}};
    CHECK(ibv_modify_cq(a.cq, &moderate) == EOPNOTSUPP);
    struct ibv_qp_rate_limit_attr rate = {.rate_limit = 1};
    CHECK(ibv_modify_qp_rate_limit(a.qp, &rate) == EOPNOTSUPP);
    struct ibv_qp_open_attr open = {.comp_mask = IBV_QP_OPEN_ATTR_NUM, .qp_num = a.qp->qp_num};
    CHECK(!ibv_open_qp(device.context, &open) && errno == EOPNOTSUPP);
    errno = 0;
    struct ibv_srq_init_attr_ex srq = {
        .attr = {.max_wr = 1, .max_sge = 1}, .comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD, .srq_type = IBV_SRQT_XRC,
        .pd = device.pd};
    CHECK(!ibv_create_srq_ex(device.context, &srq) && errno == EOPNOTSUPP);
    errno = 0;
    struct ibv_wq_init_attr wq = {.wq_type = IBV_WQT_RQ, .max_wr = 1, .max_sge = 1, .pd = device.pd, .cq = a.cq};
    CHECK(!ibv_create_wq(device.context, &wq) && errno == EOPNOTSUPP);
    errno = 0;
    struct ibv_wq *no_wq = NULL;
    struct ibv_rwq_ind_table_init_attr table = {.ind_tbl = &no_wq};
    CHECK(!ibv_create_rwq_ind_table(device.context, &table) && errno == EOPNOTSUPP);
    errno = 0;
    struct ibv_flow_attr flow = {.size = sizeof(flow), .port = 1};
    CHECK(!ibv_create_flow(a.qp, &flow) && errno == EOPNOTSUPP);
    errno = 0;
    CHECK(!ibv_create_flow_action_esp(device.context, &(struct ibv_flow_action_esp_attr){0}) && errno == EOPNOTSUPP);
    errno = 0;
    CHECK(!ibv_create_counters(device.context, &(struct ibv_counters_init_attr){0}) && errno == EOPNOTSUPP);
    struct ibv_sge advised = sge_of(&a, 0, 4096);
    CHECK(ibv_advise_mr(device.pd, IBV_ADVISE_MR_ADVICE_PREFETCH, 0, &advised, 1) == EOPNOTSUPP);
    /* The kernel driver has no method that would tell an importer what it needs. */
    errno = 0;
    CHECK(!ibv_import_device(device.context->cmd_fd) && errno == EOPNOTSUPP);
    errno = 0;
    CHECK(!ibv_import_pd(device.context, device.pd->handle) && errno == EOPNOTSUPP);
    errno = 0;
    CHECK(!ibv_import_mr(device.pd, a.mr->handle) && errno == EOPNOTSUPP);
    struct ibv_values_ex values = {.comp_mask = IBV_VALUES_MASK_RAW_CLOCK};
    CHECK(ibv_query_rt_values_ex(device.context, &values) == EOPNOTSUPP);
    struct ibv_device_attr_ex device_attr;
    CHECK(!ibv_query_device_ex(device.context, NULL, &device_attr));
    struct ibv_device_attr plain;
    CHECK(!ibv_query_device(device.context, &plain));
    CHECK(!memcmp(&plain, &device_attr.orig_attr, sizeof(plain)));
    /* Nobody is told of SEND_WITH_INV that does not go out. */
    CHECK(!(plain.device_cap_flags & IBV_DEVICE_MEM_MGT_EXTENSIONS));
    CHECK(!(device_attr.device_cap_flags_ex & IBV_DEVICE_MEM_MGT_EXTENSIONS));
    close_pair();
    close_all();
}

static const struct test_case CASES[] = {
    {"wr_all", wr_all},
    {"wr_datagrams", wr_datagrams},
    {"wr_all_or_nothing", wr_all_or_nothing},
    {"wr_all_signaled", wr_all_signaled},
    {"qp_refused", qp_refused},
    {"invalidating", invalidating},
    {"inline_rc", inline_rc},
    {"inline_waits", inline_waits},
    {"inline_flush", inline_flush},
    {"inline_refused", inline_refused},
    {"inline_threads", inline_threads},
    {"cq_ex", cq_ex},
    {"cq_ex_datagrams", cq_ex_datagrams},
    {"cq_refused", cq_refused},
    {"domains", domains},
    {"domains_refused", domains_refused},
    {"mr_refused", mr_refused},
    {"not_supported", not_supported},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, COUNT(CASES), argc, argv);
}

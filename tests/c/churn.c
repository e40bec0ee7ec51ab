/*
 * Objects come and go, many times, and nothing stays: no descriptor, no mapping, no memory, no handle.
 *
 *   churn            lists the kinds of objects
 *   churn ROUNDS KIND...
 *
 * ROUNDS may be `all`: a few more than the device has room for, so that a lost handle means a refusal at the end.
 */
#include <malloc.h>

#include "holdings.h"

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static struct device device;
static struct ibv_device_attr limits;
static struct ibv_cq *shared_cq;
/* The GID of this guest that the kernel can resolve to a MAC address. */
static union ibv_gid routable;
static uint8_t page[4096] __attribute__((aligned(4096)));

/* ---- what is there ---- */

struct holdings {
    size_t descriptors, mappings, heap;
};

static struct holdings holdings(void)
{
    struct mallinfo2 heap = mallinfo2();
    return (struct holdings){descriptors_open(), lines_of_maps(), heap.uordblks + heap.hblkhd};
}

/* ---- one round of each kind ---- */

static void pd(uint32_t i)
{
    (void)i;
    struct ibv_pd *pd = ibv_alloc_pd(device.context);
    CHECK(pd);
    CHECK(!ibv_dealloc_pd(pd));
#ifdef LOSE_MEMORY
    /* For the test of the tests. */
    static void *volatile last __attribute__((unused));
    last = malloc(100);
#endif
}

static void mr(uint32_t i)
{
    struct ibv_mr *mr = ibv_reg_mr(device.pd, page + i % 1000, 1 + i % 3000, i % 2 ? ALL_ACCESS : 0);
    CHECK(mr, "round %u", i);
    CHECK(!ibv_dereg_mr(mr));
}

static void cq(uint32_t i)
{
    struct ibv_cq *cq = ibv_create_cq(device.context, 1 + (int)(i % 500), NULL, NULL, 0);
    CHECK(cq, "round %u", i);
    CHECK(!ibv_destroy_cq(cq));
}

static void channel(uint32_t i)
{
    struct ibv_comp_channel *channel = ibv_create_comp_channel(device.context);
    CHECK(channel, "round %u", i);
    struct ibv_cq *cq = ibv_create_cq(device.context, 4, NULL, channel, 0);
    CHECK(cq);
    CHECK(!ibv_req_notify_cq(cq, 0));
    CHECK(!ibv_destroy_cq(cq));
    CHECK(!ibv_destroy_comp_channel(channel));
}

static struct ibv_qp *new_qp(enum ibv_qp_type type, uint32_t depth)
{
    struct ibv_qp_init_attr init = {
        .send_cq = shared_cq,
        .recv_cq = shared_cq,
        .qp_type = type,
        .cap = {.max_send_wr = depth, .max_recv_wr = depth, .max_send_sge = 1, .max_recv_sge = 1}};
    return ibv_create_qp(device.pd, &init);
}

static void rc_qp(uint32_t i)
{
    struct ibv_qp *qp = new_qp(IBV_QPT_RC, 1 + i % 40);
    CHECK(qp, "round %u", i);
    CHECK(!ibv_destroy_qp(qp));
}

static void ud_qp(uint32_t i)
{
    struct ibv_qp *qp = new_qp(IBV_QPT_UD, 1 + i % 40);
    CHECK(qp, "round %u", i);
    CHECK(!ibv_destroy_qp(qp));
}

static void srq(uint32_t i)
{
    struct ibv_srq_init_attr init = {.attr = {.max_wr = 1 + i % 40, .max_sge = 1}};
    struct ibv_srq *srq = ibv_create_srq(device.pd, &init);
    CHECK(srq, "round %u", i);
    CHECK(!ibv_destroy_srq(srq));
}

static void ah(uint32_t i)
{
    struct ibv_ah_attr attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = routable, .sgid_index = 1}};
    struct ibv_ah *ah = ibv_create_ah(device.pd, &attr);
    CHECK(ah, "round %u", i);
    CHECK(!ibv_destroy_ah(ah));
}

/* A whole connection with a message in flight in one way, one unread in the other, and receives that nobody uses. */
static void pair(uint32_t i)
{
    struct shape shape = {.length = 4096, .depth = 4, .events = (int)(i % 2)};
    struct end a = open_end(&device, shape), b = open_end(&device, shape);
    connect_ends(&device, &a, &b, USUAL);
    fill(a.buffer, 64, i);
    post_recv(&b, 1, 0, 64);
    post_recv(&b, 2, 64, 64);
    if (b.channel)
        CHECK(!ibv_req_notify_cq(b.cq, 0));
    struct ibv_sge sge = sge_of(&a, 0, 64);
    struct ibv_send_wr wr = {
        .wr_id = 3, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .sg_list = &sge, .num_sge = 1};
    post_send(&a, &wr);
    expect_wc(&a, 3, IBV_WC_SUCCESS);
    expect_bytes(b.buffer, 64, i);
    /* No receive for this one. */
    post_send(&b, &wr);
    close_end(i % 3 ? &a : &b);
    close_end(i % 3 ? &b : &a);
}

/* A context with one object of each basic kind that it has to end by itself is the application's mistake; closed in
 * order it leaves nothing. */
static void context(uint32_t i)
{
    struct device second = open_device();
    if (i % 2) {
        struct end end = open_end(&second, (struct shape){.length = 4096, .depth = 2, .events = 1});
        to_init(&end);
        post_recv(&end, 1, 0, 64);
        close_end(&end);
    }
    close_device(&second);
}

/* ---- */

struct churned {
    const char *name;
    void (*round)(uint32_t i);
    /* How many the device has room for. */
    int *limit, context_limit;
};

static struct churned KINDS[] = {
    {"pd", pd, &limits.max_pd, 0},      {"mr", mr, &limits.max_mr, 0},       {"cq", cq, &limits.max_cq, 0},
    {"channel", channel, NULL, 2000},   {"rc_qp", rc_qp, &limits.max_qp, 0}, {"ud_qp", ud_qp, &limits.max_qp, 0},
    {"srq", srq, &limits.max_srq, 0},   {"ah", ah, &limits.max_ah, 0},       {"pair", pair, &limits.max_qp, 0},
    {"context", context, NULL, 1024},
};

static void churn(const struct churned *kind, const char *wanted)
{
    uint32_t limit = (uint32_t)(kind->limit ? *kind->limit : kind->context_limit);
    uint32_t rounds = strcmp(wanted, "all") ? (uint32_t)atoi(wanted) : limit + 100;
    CHECK(rounds > 0);
    /* What is made once and kept, such as room in tables, is made now. A few rounds are for valgrind, which is slow. */
    uint32_t warm = rounds < 1000 ? rounds : 2100;
    for (uint32_t i = 0; i < warm; i++)
        kind->round(i);
    struct holdings before = holdings();
    for (uint32_t i = 0; i < rounds; i++)
        kind->round(i);
    struct holdings after = holdings();
    CHECK(after.descriptors == before.descriptors, "%s: %zu descriptors, now %zu", kind->name, before.descriptors,
          after.descriptors);
    /* The C library may split or join a few. */
    CHECK(after.mappings <= before.mappings + 4, "%s: %zu mappings, now %zu", kind->name, before.mappings,
          after.mappings);
    /* Three bytes a round at most: lists that found their size late, but nothing that was forgotten. */
    CHECK(after.heap <= before.heap + 3 * (size_t)rounds + 32768, "%s: %zu bytes of memory, now %zu", kind->name, before.heap, after.heap);
    printf("ok %s %u\n", kind->name, rounds);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    device = open_device();
    CHECK(!ibv_query_device(device.context, &limits));
    CHECK(!ibv_query_gid(device.context, 1, 1, &routable));
    shared_cq = ibv_create_cq(device.context, 16, NULL, NULL, 0);
    CHECK(shared_cq);
    if (argc == 1)
        for (size_t i = 0; i < COUNT(KINDS); i++)
            if (KINDS[i].round != srq || limits.max_srq)
                puts(KINDS[i].name);
    for (int arg = 2; arg < argc; arg++) {
        size_t i = 0;
        while (i < COUNT(KINDS) && strcmp(KINDS[i].name, argv[arg]))
            i++;
        CHECK(i < COUNT(KINDS), "no kind is called %s", argv[arg]);
        churn(&KINDS[i], argv[1]);
    }
    CHECK(!ibv_destroy_cq(shared_cq));
    close_device(&device);
    return 0;
}

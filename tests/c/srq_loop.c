/*
 * Shared receive queues: two connections and a UD QP of one process take their receives from one queue.
 *
 * Each case opens and closes everything it uses, so that any one can be run alone.
 */
#include "ud.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define ENDS 2

static struct device device;
static struct ibv_srq *srq;
/* from[i] is connected with to[i]; to[] take their receives from the SRQ. */
static struct end from[ENDS], to[ENDS];

static struct ibv_srq *open_srq(uint32_t depth)
{
    struct ibv_srq_init_attr init = {.attr = {.max_wr = depth, .max_sge = 2}};
    struct ibv_srq *made = ibv_create_srq(device.pd, &init);
    CHECK(made);
    CHECK(init.attr.max_wr >= depth && init.attr.max_sge >= 2, "%u of %u", init.attr.max_wr, init.attr.max_sge);
    return made;
}

/* An RC end without a receive queue of its own. */
static struct end open_srq_end(void)
{
    struct end end = open_end(&device, (struct shape){.depth = 64});
    CHECK(!ibv_destroy_qp(end.qp));
    struct ibv_qp_init_attr init = {
        .send_cq = end.cq,
        .recv_cq = end.cq,
        .srq = srq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = 8, .max_recv_wr = 77, .max_send_sge = 1, .max_recv_sge = 7},
    };
    end.qp = ibv_create_qp(device.pd, &init);
    CHECK(end.qp);
    CHECK(init.cap.max_recv_wr == 0 && init.cap.max_recv_sge == 0, "%u %u", init.cap.max_recv_wr,
          init.cap.max_recv_sge);
    return end;
}

static void open_all(uint32_t depth)
{
    device = open_device();
    srq = open_srq(depth);
    for (int i = 0; i < ENDS; i++) {
        from[i] = open_end(&device, (struct shape){.depth = 64});
        to[i] = open_srq_end();
        connect_ends(&device, &from[i], &to[i], USUAL);
    }
}

static void close_all(void)
{
    for (int i = 0; i < ENDS; i++) {
        close_end(&from[i]);
        close_end(&to[i]);
    }
    CHECK(!ibv_destroy_srq(srq));
    close_device(&device);
}

/* A receive into the buffer of to[0], whoever gets it. */
static int post_srq(uint64_t wr_id, size_t offset, uint32_t length)
{
    struct ibv_sge sge = sge_of(&to[0], offset, length);
    struct ibv_recv_wr wr = {.wr_id = wr_id, .sg_list = &sge, .num_sge = 1}, *bad = NULL;
    int error = ibv_post_srq_recv(srq, &wr, &bad);
    CHECK(!error == !bad);
    return error;
}

static void send_from(int i, uint64_t wr_id, uint32_t seed)
{
    fill(from[i].buffer, 64, seed);
    struct ibv_sge sge = sge_of(&from[i], 0, 64);
    struct ibv_send_wr wr = {
        .wr_id = wr_id, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .sg_list = &sge, .num_sge = 1};
    post_send(&from[i], &wr);
    expect_wc(&from[i], wr_id, IBV_WC_SUCCESS);
}

/* Receives are used in the order they were posted in, by whichever QP a message comes to; the ring wraps. */
static void shared(void)
{
    open_all(4);
    for (uint32_t i = 0; i < 500; i++) {
        CHECK(!post_srq(i, 64 * (i % 4), 64));
        send_from(i % ENDS, i, i);
        struct ibv_wc wc = expect_wc(&to[i % ENDS], i, IBV_WC_SUCCESS);
        CHECK(wc.opcode == IBV_WC_RECV && wc.byte_len == 64);
        expect_bytes(to[0].buffer + 64 * (i % 4), 64, i);
    }
    close_all();
}

/* A full queue gives ENOMEM and names the one that did not fit; all before it are used. */
static void full(void)
{
    open_all(4);
    struct ibv_srq_attr attr;
    CHECK(!ibv_query_srq(srq, &attr));
    struct ibv_sge sge = sge_of(&to[0], 0, 64);
    struct ibv_recv_wr wrs[65], *bad = NULL;
    CHECK(attr.max_wr < COUNT(wrs));
    for (uint32_t i = 0; i < COUNT(wrs); i++)
        wrs[i] = (struct ibv_recv_wr){
            .wr_id = i, .sg_list = &sge, .num_sge = 1, .next = i + 1 < COUNT(wrs) ? &wrs[i + 1] : NULL};
    CHECK(ibv_post_srq_recv(srq, wrs, &bad) == ENOMEM);
    CHECK(bad == &wrs[attr.max_wr], "room for %td", bad - wrs);
    for (uint32_t i = 0; i < attr.max_wr; i++) {
        send_from(0, i, i);
        expect_wc(&to[0], i, IBV_WC_SUCCESS);
    }
    CHECK(!post_srq(1, 0, 64));
    close_all();
}

/* What cannot be is refused, what was before it is posted. */
static void bad_wr(void)
{
    open_all(8);
    struct ibv_sge sges[64], sge = sge_of(&to[0], 0, 64);
    for (size_t i = 0; i < COUNT(sges); i++)
        sges[i] = sge;
    struct ibv_recv_wr wrs[3], *bad = NULL;
    for (int i = 0; i < 3; i++)
        wrs[i] = (struct ibv_recv_wr){.wr_id = i, .sg_list = sges, .num_sge = 1, .next = i < 2 ? &wrs[i + 1] : NULL};
    wrs[1].num_sge = COUNT(sges);
    CHECK(ibv_post_srq_recv(srq, wrs, &bad) == EINVAL && bad == &wrs[1]);
    send_from(1, 5, 5);
    expect_wc(&to[1], 0, IBV_WC_SUCCESS);
    close_all();
}

static void negative_sge_count(void)
{
    open_all(8);
    struct ibv_sge sge = sge_of(&to[0], 0, 64);
    struct ibv_recv_wr wr = {.sg_list = &sge, .num_sge = -1}, *bad = NULL;
    CHECK(ibv_post_srq_recv(srq, &wr, &bad) == EINVAL && bad == &wr);
    close_all();
}

/* The QP has no receive queue of its own. */
static void no_own_queue(void)
{
    open_all(4);
    struct ibv_sge sge = sge_of(&to[0], 0, 64);
    struct ibv_recv_wr wr = {.sg_list = &sge, .num_sge = 1}, *bad = NULL;
    CHECK(ibv_post_recv(to[0].qp, &wr, &bad) == EINVAL && bad == &wr);
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;
    CHECK(!ibv_query_qp(to[0].qp, &attr, IBV_QP_CAP, &init));
    CHECK(init.cap.max_recv_wr == 0 && init.cap.max_recv_sge == 0 && init.srq == srq);
    CHECK(init.cap.max_send_wr == 8, "%u", init.cap.max_send_wr);
    close_all();
}

/* An empty queue: the sender waits until there is something. */
static void late(void)
{
    open_all(4);
    fill(from[0].buffer, 64, 3);
    struct ibv_sge sge = sge_of(&from[0], 0, 64);
    struct ibv_send_wr wr = {
        .wr_id = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .sg_list = &sge, .num_sge = 1};
    post_send(&from[0], &wr);
    expect_nothing(&from[0]);
    CHECK(!post_srq(2, 0, 64));
    expect_wc(&from[0], 1, IBV_WC_SUCCESS);
    expect_wc(&to[0], 2, IBV_WC_SUCCESS);
    expect_bytes(to[0].buffer, 64, 3);
    close_all();
}

/* A QP that goes takes none of the others' receives with it. */
static void one_goes(void)
{
    open_all(8);
    for (uint32_t i = 0; i < 6; i++)
        CHECK(!post_srq(i, 64 * i, 64));
    send_from(0, 100, 1);
    send_from(0, 101, 2);
    /* Its two completions are never polled. */
    close_end(&from[0]);
    CHECK(!ibv_destroy_qp(to[0].qp));
    for (uint32_t i = 2; i < 6; i++) {
        send_from(1, i, i);
        expect_wc(&to[1], i, IBV_WC_SUCCESS);
        expect_bytes(to[0].buffer + 64 * i, 64, i);
    }
    expect_nothing(&to[0]);
    from[0] = open_end(&device, (struct shape){0});
    struct ibv_cq *old = to[0].cq;
    struct ibv_mr *mr = to[0].mr;
    uint8_t *buffer = to[0].buffer;
    size_t length = to[0].length;
    to[0] = open_srq_end();
    CHECK(!ibv_destroy_cq(old) && !ibv_dereg_mr(mr) && !munmap(buffer, length));
    close_all();
}

static struct ibv_async_event wait_event(enum ibv_event_type type)
{
    struct ibv_async_event event;
    for (;;) {
        struct pollfd fd = {.fd = device.context->async_fd, .events = POLLIN};
        CHECK(poll(&fd, 1, 10000) == 1, "no event");
        CHECK(!ibv_get_async_event(device.context, &event));
        if (event.event_type == type)
            return event;
        /* COMM_EST and such. */
        ibv_ack_async_event(&event);
    }
}

/* The limit raises one event when fewer are left, and is then 0. */
static void limit(void)
{
    open_all(8);
    for (int round = 0; round < 3; round++) {
        struct ibv_srq_attr attr = {.srq_limit = 3}, found;
        for (int i = 0; i < 4; i++)
            CHECK(!post_srq(i, 0, 64));
        CHECK(!ibv_modify_srq(srq, &attr, IBV_SRQ_LIMIT));
        CHECK(!ibv_query_srq(srq, &found));
        CHECK(found.srq_limit == 3 && found.max_wr == 8 && found.max_sge == 2, "%u %u %u", found.srq_limit,
              found.max_wr, found.max_sge);
        for (int i = 0; i < 4; i++) {
            send_from(i % ENDS, i, i);
            expect_wc(&to[i % ENDS], i, IBV_WC_SUCCESS);
        }
        struct ibv_async_event event = wait_event(IBV_EVENT_SRQ_LIMIT_REACHED);
        CHECK(event.element.srq == srq);
        ibv_ack_async_event(&event);
        CHECK(!ibv_query_srq(srq, &found));
        CHECK(found.srq_limit == 0, "%u", found.srq_limit);
    }
    close_all();
}

static void modify_refused(void)
{
    open_all(8);
    struct ibv_srq_attr attr = {.srq_limit = 9, .max_wr = 16};
    CHECK(ibv_modify_srq(srq, &attr, IBV_SRQ_LIMIT) == EINVAL);
    CHECK(ibv_modify_srq(srq, &attr, 1 << 5) == EINVAL);
    attr.srq_limit = 0;
    CHECK(ibv_modify_srq(srq, &attr, IBV_SRQ_MAX_WR) == EOPNOTSUPP);
    CHECK(ibv_modify_srq(srq, &attr, IBV_SRQ_MAX_WR | IBV_SRQ_LIMIT) == EOPNOTSUPP);
    close_all();
}

/* Receives of an SRQ are not flushed; the event says that the QP will take no more of them. */
static void last_wqe(void)
{
    open_all(8);
    CHECK(!post_srq(1, 0, 64));
    to_error(&to[0]);
    struct ibv_async_event event = wait_event(IBV_EVENT_QP_LAST_WQE_REACHED);
    CHECK(event.element.qp == to[0].qp);
    ibv_ack_async_event(&event);
    expect_nothing(&to[0]);
    send_from(1, 2, 2);
    expect_wc(&to[1], 1, IBV_WC_SUCCESS);
    close_all();
}

static void busy(void)
{
    open_all(8);
    CHECK(ibv_destroy_srq(srq) == EBUSY);
    CHECK(!post_srq(1, 0, 64));
    send_from(0, 2, 2);
    expect_wc(&to[0], 1, IBV_WC_SUCCESS);
    close_all();
}

/* The limits themselves can be had, nothing above, and the caller's struct stays as it was. */
static void limits(void)
{
    device = open_device();
    struct ibv_device_attr attr;
    CHECK(!ibv_query_device(device.context, &attr));
    struct ibv_srq_init_attr most = {.attr = {.max_wr = attr.max_srq_wr, .max_sge = attr.max_srq_sge}};
    srq = ibv_create_srq(device.pd, &most);
    CHECK(srq);
    CHECK(!ibv_destroy_srq(srq));
    static const struct ibv_srq_attr above[] = {{1, 0, 0}, {0, 1, 0}, {0x7fffffff, 0, 0}, {0x40000001, 0, 0}};
    for (size_t i = 0; i < COUNT(above); i++) {
        struct ibv_srq_init_attr asked = {.attr = {.max_wr = above[i].max_wr ? attr.max_srq_wr + above[i].max_wr : 1,
                                                   .max_sge = above[i].max_sge ? attr.max_srq_sge + 1 : 1}};
        struct ibv_srq_init_attr before = asked;
        errno = 0;
        CHECK(!ibv_create_srq(device.pd, &asked) && errno == EINVAL, "case %zu", i);
        CHECK(!memcmp(&asked.attr, &before.attr, sizeof(asked.attr)));
    }
    close_device(&device);
}

/* Datagrams may come to a shared queue too. */
static void datagrams(void)
{
    device = open_device();
    srq = open_srq(8);
    from[0] = open_ud_end(&device, 8, NULL);
    to[0] = open_ud_end(&device, 8, srq);
    ud_to_rts(&from[0]);
    ud_to_rts(&to[0]);
    struct ibv_ah *ah = ah_to(&device);
    for (uint32_t i = 0; i < 20; i++) {
        CHECK(!post_srq(i, 0, 256));
        fill(from[0].buffer, 64, i);
        struct ibv_sge sge = sge_of(&from[0], 0, 64);
        struct ibv_send_wr wr = datagram(i, &sge, ah, &to[0]);
        post_send(&from[0], &wr);
        expect_wc(&from[0], i, IBV_WC_SUCCESS);
        CHECK(expect_wc(&to[0], i, IBV_WC_SUCCESS).byte_len == GRH + 64);
        expect_bytes(to[0].buffer + GRH, 64, i);
    }
    CHECK(!ibv_destroy_ah(ah));
    close_end(&from[0]);
    close_end(&to[0]);
    CHECK(!ibv_destroy_srq(srq));
    close_device(&device);
}

static const struct test_case CASES[] = {
    {"shared", shared},
    {"full", full},
    {"bad_wr", bad_wr},
    {"negative_sge_count", negative_sge_count},
    {"no_own_queue", no_own_queue},
    {"late", late},
    {"one_goes", one_goes},
    {"limit", limit},
    {"modify_refused", modify_refused},
    {"last_wqe", last_wqe},
    {"busy", busy},
    {"limits", limits},
    {"datagrams", datagrams},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, COUNT(CASES), argc, argv);
}

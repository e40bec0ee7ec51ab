/*
 * What the C programs here share: one device, and ends of RC connections. Public verbs only.
 *
 * A check that fails says where and ends the program with status 1; nothing is cleaned up then, the process's end does.
 */
#ifndef RC_H
#define RC_H

#include <dirent.h>
#include <errno.h>
#include <infiniband/verbs.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s", __FILE__, __LINE__, #condition);                                              \
            fprintf(stderr, ": " __VA_ARGS__);                                                                         \
            fprintf(stderr, " (errno %d)\n", errno);                                                                   \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Whose address packets have: the link-local one, unless the program says otherwise. */
static int gid_index;
#define ALL_ACCESS (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE)

struct device {
    struct ibv_context *context;
    struct ibv_pd *pd;
    union ibv_gid gid;
    struct ibv_port_attr port;
};

/* One end: a QP with its own CQ for both directions and one registered buffer. */
struct end {
    struct ibv_cq *cq;
    struct ibv_comp_channel *channel;
    struct ibv_qp *qp;
    struct ibv_mr *mr;
    uint8_t *buffer;
    size_t length;
};

/* How an end is made; zero means the default written beside it. */
struct shape {
    size_t length;     /* 1 MiB */
    int access;        /* ALL_ACCESS */
    uint32_t depth;    /* 16 work requests each way */
    uint32_t sge;      /* 4 */
    int cqe;           /* 2 * depth */
    int events;        /* no completion channel */
    int all_signaled;  /* sq_sig_all 0 */
};

/* Timers of a connection as ibv_modify_qp takes them. */
struct patience {
    uint8_t timeout, retry_cnt, rnr_retry;
};

static const struct patience USUAL = {.timeout = 14, .retry_cnt = 7, .rnr_retry = 7};

static inline double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

/* The first device, or the one that PVRDMA_DEVICE names: machines may have others. */
static inline struct device open_device(void)
{
    struct device device = {0};
    const char *name = getenv("PVRDMA_DEVICE");
    struct ibv_device **list = ibv_get_device_list(NULL), **it = list;
    while (it && *it && name && strcmp((*it)->name, name))
        it++;
    CHECK(it && *it, "no RDMA device");
    device.context = ibv_open_device(*it);
    CHECK(device.context);
    ibv_free_device_list(list);
    device.pd = ibv_alloc_pd(device.context);
    CHECK(device.pd);
    CHECK(!ibv_query_gid(device.context, 1, gid_index, &device.gid));
    CHECK(!ibv_query_port(device.context, 1, &device.port));
    return device;
}

static inline void close_device(struct device *device)
{
    CHECK(!ibv_dealloc_pd(device->pd));
    CHECK(!ibv_close_device(device->context));
}

static inline struct end open_end(struct device *device, struct shape shape)
{
    struct end end = {0};
    uint32_t depth = shape.depth ? shape.depth : 16;
    uint32_t sge = shape.sge ? shape.sge : 4;

    if (shape.events) {
        end.channel = ibv_create_comp_channel(device->context);
        CHECK(end.channel);
    }
    end.cq = ibv_create_cq(device->context, shape.cqe ? shape.cqe : (int)(2 * depth), NULL, end.channel, 0);
    CHECK(end.cq);
    struct ibv_qp_init_attr init = {
        .send_cq = end.cq,
        .recv_cq = end.cq,
        .qp_type = IBV_QPT_RC,
        .sq_sig_all = shape.all_signaled,
        .cap = {.max_send_wr = depth, .max_recv_wr = depth, .max_send_sge = sge, .max_recv_sge = sge},
    };
    end.qp = ibv_create_qp(device->pd, &init);
    CHECK(end.qp);
    CHECK(init.cap.max_send_wr >= depth && init.cap.max_recv_wr >= depth);
    end.length = shape.length ? shape.length : 1 << 20;
    end.buffer = mmap(NULL, end.length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(end.buffer != MAP_FAILED);
    end.mr = ibv_reg_mr(device->pd, end.buffer, end.length, shape.access ? shape.access : ALL_ACCESS);
    CHECK(end.mr);
    return end;
}

static inline void close_end(struct end *end)
{
    CHECK(!ibv_destroy_qp(end->qp));
    CHECK(!ibv_dereg_mr(end->mr));
    CHECK(!ibv_destroy_cq(end->cq));
    if (end->channel)
        CHECK(!ibv_destroy_comp_channel(end->channel));
    /* A test may have unmapped the buffer already; unmapping nothing is no error. */
    CHECK(!munmap(end->buffer, end->length));
}

static inline void to_init(struct end *end)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL_ACCESS};
    CHECK(!ibv_modify_qp(end->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
}

static inline void to_rtr(struct end *end, uint32_t dest_qp_num, union ibv_gid dgid)
{
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = IBV_MTU_1024,
        .dest_qp_num = dest_qp_num,
        .rq_psn = 7,
        .max_dest_rd_atomic = 4,
        .min_rnr_timer = 1,
        .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = dgid, .sgid_index = (uint8_t)gid_index, .hop_limit = 1}},
    };
    CHECK(!ibv_modify_qp(end->qp, &attr,
                         IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                             IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
}

static inline void to_rts(struct end *end, struct patience patience)
{
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTS,
        .timeout = patience.timeout,
        .retry_cnt = patience.retry_cnt,
        .rnr_retry = patience.rnr_retry,
        .sq_psn = 7,
        .max_rd_atomic = 4,
    };
    CHECK(!ibv_modify_qp(end->qp, &attr,
                         IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                             IBV_QP_MAX_QP_RD_ATOMIC));
}

static inline void to_error(struct end *end)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
    CHECK(!ibv_modify_qp(end->qp, &attr, IBV_QP_STATE));
}

/* Connects two ends of this process. */
static inline void connect_ends(struct device *device, struct end *a, struct end *b, struct patience patience)
{
    to_init(a);
    to_init(b);
    to_rtr(a, b->qp->qp_num, device->gid);
    to_rtr(b, a->qp->qp_num, device->gid);
    to_rts(a, patience);
    to_rts(b, patience);
}

static inline enum ibv_qp_state state_of(struct end *end)
{
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;
    CHECK(!ibv_query_qp(end->qp, &attr, IBV_QP_STATE, &init));
    return attr.qp_state;
}

static inline struct ibv_sge sge_of(struct end *end, size_t offset, uint32_t length)
{
    return (struct ibv_sge){.addr = (uintptr_t)end->buffer + offset, .length = length, .lkey = end->mr->lkey};
}

static inline void post_send(struct end *end, struct ibv_send_wr *wr)
{
    struct ibv_send_wr *bad = NULL;
    int error = ibv_post_send(end->qp, wr, &bad);
    CHECK(!error, "post_send gives %d", error);
}

/* Posts one receive of `length` bytes at `offset`. */
static inline void post_recv(struct end *end, uint64_t wr_id, size_t offset, uint32_t length)
{
    struct ibv_sge sge = sge_of(end, offset, length);
    struct ibv_recv_wr wr = {.wr_id = wr_id, .sg_list = &sge, .num_sge = length ? 1 : 0}, *bad = NULL;
    int error = ibv_post_recv(end->qp, &wr, &bad);
    CHECK(!error, "post_recv gives %d", error);
}

/* Waits for one completion, at most ten seconds. */
static inline struct ibv_wc wait_wc(struct end *end)
{
    struct ibv_wc wc;
    double limit = now_ms() + 10000;
    for (;;) {
        int n = ibv_poll_cq(end->cq, 1, &wc);
        CHECK(n >= 0, "poll_cq gives %d", n);
        if (n == 1)
            return wc;
        CHECK(now_ms() < limit, "no completion");
    }
}

/* Waits for one completion, which must have this wr_id and status. */
static inline struct ibv_wc expect_wc(struct end *end, uint64_t wr_id, enum ibv_wc_status status)
{
    struct ibv_wc wc = wait_wc(end);
    CHECK(wc.wr_id == wr_id && wc.status == status, "wr_id %llu, %s instead of %llu, %s", (unsigned long long)wc.wr_id,
          ibv_wc_status_str(wc.status), (unsigned long long)wr_id, ibv_wc_status_str(status));
    CHECK(wc.qp_num == end->qp->qp_num);
    return wc;
}

/* Nothing may complete for a while. */
static inline void expect_nothing(struct end *end)
{
    struct ibv_wc wc;
    double limit = now_ms() + 20;
    do {
        int n = ibv_poll_cq(end->cq, 1, &wc);
        CHECK(n == 0, "poll_cq gives %d", n);
    } while (now_ms() < limit);
}

/* Bytes that tell their place: a copy from the wrong one is seen. */
static inline void fill(uint8_t *bytes, size_t length, uint32_t seed)
{
    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)((i * 2654435761u + seed * 40503u) >> 13);
}

static inline void expect_bytes(const uint8_t *bytes, size_t length, uint32_t seed)
{
    for (size_t i = 0; i < length; i++) {
        uint8_t expected = (uint8_t)((i * 2654435761u + seed * 40503u) >> 13);
        CHECK(bytes[i] == expected, "byte %zu is %u, not %u", i, bytes[i], expected);
    }
}

/* All `length` bytes must have this one value. */
static inline void expect_value(const uint8_t *bytes, size_t length, uint8_t value)
{
    for (size_t i = 0; i < length; i++)
        CHECK(bytes[i] == value, "byte %zu is %u, not %u", i, bytes[i], value);
}

/* A signaled request of one SGE, or of none if that is empty; one-sided ones go to the start of the buffer of `to`. */
static inline struct ibv_send_wr work_to(struct end *to, enum ibv_wr_opcode opcode, uint64_t wr_id, struct ibv_sge *sge)
{
    return (struct ibv_send_wr){
        .wr_id = wr_id,
        .opcode = opcode,
        .send_flags = IBV_SEND_SIGNALED,
        .sg_list = sge,
        .num_sge = sge->length ? 1 : 0,
        .wr.rdma = {.remote_addr = (uintptr_t)to->buffer, .rkey = to->mr->rkey},
    };
}

/* A device with two ends of the same kind that are connected. */
static inline void open_both(struct device *device, struct end *a, struct end *b, struct shape shape,
                             struct patience patience)
{
    *device = open_device();
    *a = open_end(device, shape);
    *b = open_end(device, shape);
    connect_ends(device, a, b, patience);
}

static inline void close_both(struct device *device, struct end *a, struct end *b)
{
    close_end(a);
    close_end(b);
    close_device(device);
}

/* Messages of a page, one after the other, with bytes that differ. */
static inline void move_between(struct end *from, struct end *to, int count, uint32_t seed)
{
    for (int i = 0; i < count; i++) {
        fill(from->buffer, 4096, seed + i);
        post_recv(to, i, 0, 4096);
        struct ibv_sge sge = sge_of(from, 0, 4096);
        struct ibv_send_wr wr = work_to(to, IBV_WR_SEND, i, &sge);
        post_send(from, &wr);
        expect_wc(from, i, IBV_WC_SUCCESS);
        expect_wc(to, i, IBV_WC_SUCCESS);
        expect_bytes(to->buffer, 4096, seed + i);
    }
}

/* A program with named cases: `program` lists them, `program NAME...` runs them and says "ok NAME". */
struct test_case {
    const char *name;
    void (*run)(void);
};

static inline int run_cases(const struct test_case *cases, size_t count, int argc, char **argv)
{
    if (argc == 1) {
        for (size_t i = 0; i < count; i++)
            puts(cases[i].name);
        return 0;
    }
    for (int arg = 1; arg < argc; arg++) {
        size_t i = 0;
        while (i < count && strcmp(cases[i].name, argv[arg]))
            i++;
        CHECK(i < count, "no case is called %s", argv[arg]);
        cases[i].run();
        printf("ok %s\n", argv[arg]);
        fflush(stdout);
    }
    return 0;
}

#endif

/*
 * What races.c and fair.c are made of: threads, work requests with tickets, and QPs that send to themselves.
 *
 * Every work request has a ticket of its own in its wr_id, beside the number of its QP: a completion that is lost, comes
 * twice, or goes to another QP is seen. What the threads here tell each other they tell by relaxed atomics, which order
 * nothing: so ThreadSanitizer (`cargo xtask races`) knows of no order but what the provider itself makes. The checks
 * need no more, since x86-64 keeps loads and stores in order.
 */
#ifndef TICKETS_H
#define TICKETS_H

#include <pthread.h>
#include <sched.h>

#include "rc.h"

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))
#define THREADS 4
#define TICKETS (1u << 25)
#define DEPTH 128

#define LOAD(place) __atomic_load_n(place, __ATOMIC_RELAXED)
#define STORE(place, value) __atomic_store_n(place, value, __ATOMIC_RELAXED)
#define ADD(place, value) __atomic_fetch_add(place, value, __ATOMIC_RELAXED)

static struct device device;
static uint8_t page[4096] __attribute__((aligned(4096)));
static struct ibv_mr *mr;

static inline uint32_t steps(uint32_t otherwise)
{
    const char *wanted = getenv("PVRDMA_STEPS");
    return wanted ? (uint32_t)atoi(wanted) : otherwise;
}

/* Numbers that look random, of one thread. */
static inline uint32_t below(uint32_t *seed, uint32_t limit)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)(*seed >> 8) * limit) >> 24);
}

static inline void open_all(void)
{
    device = open_device();
    mr = ibv_reg_mr(device.pd, page, sizeof(page), ALL_ACCESS);
    CHECK(mr);
}

static inline void close_all(void)
{
    CHECK(!ibv_dereg_mr(mr));
    close_device(&device);
}

/* ---- threads ---- */

struct task {
    void (*body)(uint32_t number);
    uint32_t number;
    pthread_t thread;
};

static inline void *run_task(void *task)
{
    struct task *own = task;
    own->body(own->number);
    return NULL;
}

static inline void start(struct task *task, void (*body)(uint32_t), uint32_t number)
{
    *task = (struct task){.body = body, .number = number};
    CHECK(!pthread_create(&task->thread, NULL, run_task, task));
}

static inline void join(struct task *task)
{
    CHECK(!pthread_join(task->thread, NULL));
}

static inline void run_threads(void (*body)(uint32_t))
{
    struct task tasks[THREADS];
    for (uint32_t i = 0; i < THREADS; i++)
        start(&tasks[i], body, i);
    for (uint32_t i = 0; i < THREADS; i++)
        join(&tasks[i]);
}

/* ---- tickets ---- */

static uint32_t issued, taken;
static uint8_t seen[TICKETS];
/* Of tickets whose QP is gone or started over: the number of that ending. */
static uint32_t ended[TICKETS], endings;

/* qp_num 0: whichever QP takes it. */
static inline uint64_t ticket(uint32_t qp_num)
{
    uint32_t number = ADD(&issued, 1);
    CHECK(number < TICKETS, "ask for fewer rounds");
    return (uint64_t)qp_num << 32 | number;
}

static inline int was_seen(uint64_t wr_id)
{
    return LOAD(&seen[(uint32_t)wr_id]);
}

/* None of these may come out of a poll that begins from now on. */
static inline void end_tickets(const uint64_t *wr_ids, uint32_t count)
{
    uint32_t now = ADD(&endings, 1) + 1;
    for (uint32_t i = 0; i < count; i++)
        STORE(&ended[(uint32_t)wr_ids[i]], now);
}

static inline void took(uint64_t wr_id, uint32_t qp_num, enum ibv_wc_status status, uint32_t began)
{
    uint32_t number = (uint32_t)wr_id, of = wr_id >> 32;
    CHECK(number < LOAD(&issued), "nobody posted %#llx", (unsigned long long)wr_id);
    CHECK(!of || of == qp_num, "a completion of QP %#x for QP %#x", of, qp_num);
    CHECK(!ADD(&seen[number], 1), "ticket %u completes twice", number);
    CHECK(!LOAD(&ended[number]) || LOAD(&ended[number]) > began, "ticket %u of a QP that is gone", number);
    CHECK(status == IBV_WC_SUCCESS, "%s", ibv_wc_status_str(status));
    ADD(&taken, 1);
}

static inline int take(struct ibv_cq *cq)
{
    uint32_t began = LOAD(&endings);
    struct ibv_wc wc[4];
    int n = ibv_poll_cq(cq, COUNT(wc), wc);
    CHECK(n >= 0, "poll_cq gives %d", n);
    for (int i = 0; i < n; i++)
        took(wc[i].wr_id, wc[i].qp_num, wc[i].status, began);
    return n;
}

static inline int take_ex(struct ibv_cq_ex *cq)
{
    struct ibv_poll_cq_attr attr = {0};
    uint32_t began = LOAD(&endings);
    int n = 0, error = ibv_start_poll(cq, &attr);
    if (!error) {
        do {
            took(cq->wr_id, ibv_wc_read_qp_num(cq), cq->status, began);
            error = ++n < 4 ? ibv_next_poll(cq) : ENOENT;
        } while (!error);
        ibv_end_poll(cq);
    }
    CHECK(error == ENOENT, "start_poll or next_poll gives %d", error);
    return n;
}

/* A turn of a loop that waits for others. They may have no core, or be under valgrind. */
static inline void patience(double *limit)
{
    if (!*limit)
        *limit = now_ms() + 60000;
    CHECK(now_ms() < *limit, "a completion is lost: %u of %u", LOAD(&taken), LOAD(&issued));
    sched_yield();
}

/* ---- QPs that send to themselves ---- */

struct way {
    struct ibv_cq *send_cq, *recv_cq;
    struct ibv_srq *srq;
    struct ibv_pd *pd;
    uint32_t inline_data;
    uint64_t ops;
};

static inline struct ibv_cq *new_cq(int cqe)
{
    struct ibv_cq *cq = ibv_create_cq(device.context, cqe, NULL, NULL, 0);
    CHECK(cq);
    return cq;
}

static inline void move_to(struct ibv_qp *qp, enum ibv_qp_state state)
{
    struct ibv_qp_attr attr = {.qp_state = state};
    CHECK(!ibv_modify_qp(qp, &attr, IBV_QP_STATE));
}

static inline void loop_back(struct ibv_qp *qp)
{
    struct end end = {.qp = qp};
    to_init(&end);
    to_rtr(&end, qp->qp_num, device.gid);
    to_rts(&end, USUAL);
}

static inline struct ibv_qp *unconnected_qp(struct way way)
{
    struct ibv_qp_init_attr_ex init = {
        .send_cq = way.send_cq,
        .recv_cq = way.recv_cq ? way.recv_cq : way.send_cq,
        .srq = way.srq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = DEPTH, .max_recv_wr = DEPTH, .max_send_sge = 1, .max_recv_sge = 1,
                .max_inline_data = way.inline_data},
        .comp_mask = IBV_QP_INIT_ATTR_PD | (way.ops ? IBV_QP_INIT_ATTR_SEND_OPS_FLAGS : 0),
        .pd = way.pd ? way.pd : device.pd,
        .send_ops_flags = way.ops,
    };
    struct ibv_qp *qp = ibv_create_qp_ex(device.context, &init);
    CHECK(qp);
    /* Does it take inline data? The C provider's does not. */
    qp->qp_context = init.cap.max_inline_data ? qp : NULL;
    return qp;
}

static inline struct ibv_qp *new_qp(struct way way)
{
    struct ibv_qp *qp = unconnected_qp(way);
    loop_back(qp);
    return qp;
}

static inline struct ibv_send_wr request(struct ibv_qp *qp, enum ibv_wr_opcode opcode, uint64_t wr_id, struct ibv_sge *sge)
{
    *sge = (struct ibv_sge){.addr = (uintptr_t)page, .length = 8, .lkey = mr->lkey};
    return (struct ibv_send_wr){
        .wr_id = wr_id,
        .opcode = opcode,
        .send_flags = IBV_SEND_SIGNALED | (qp->qp_context ? IBV_SEND_INLINE : 0),
        .sg_list = sge,
        .num_sge = 1,
        .wr.rdma = {.remote_addr = (uintptr_t)page + 1024, .rkey = mr->rkey},
    };
}

static inline int post(struct ibv_qp *qp, enum ibv_wr_opcode opcode, uint64_t wr_id)
{
    struct ibv_sge sge;
    struct ibv_send_wr wr = request(qp, opcode, wr_id, &sge), *bad = NULL;
    int error = ibv_post_send(qp, &wr, &bad);
    CHECK(error ? bad == &wr : !bad);
    return error;
}

/* As many as the queue takes, with one doorbell. */
static inline void post_all(struct ibv_qp *qp, uint64_t wr_ids[DEPTH])
{
    struct ibv_sge sge;
    struct ibv_send_wr wrs[DEPTH], *bad;
    for (uint32_t i = 0; i < DEPTH; i++) {
        wr_ids[i] = ticket(qp->qp_num);
        wrs[i] = request(qp, IBV_WR_RDMA_WRITE, wr_ids[i], &sge);
        wrs[i].next = i + 1 < DEPTH ? &wrs[i + 1] : NULL;
    }
    CHECK(!ibv_post_send(qp, wrs, &bad));
}

static inline void wait_for(const uint64_t *wr_ids, uint32_t count)
{
    double limit = 0;
    for (uint32_t i = 0; i < count; i++)
        while (!was_seen(wr_ids[i]))
            patience(&limit);
}

/* To a QP, or to a shared queue. */
static inline int receive(struct ibv_qp *qp, struct ibv_srq *srq, uint64_t wr_id)
{
    struct ibv_sge sge = {.addr = (uintptr_t)page + 2048, .length = 8, .lkey = mr->lkey};
    struct ibv_recv_wr *bad = NULL, wr = {.wr_id = wr_id, .sg_list = &sge, .num_sge = 1};
    return srq ? ibv_post_srq_recv(srq, &wr, &bad) : ibv_post_recv(qp, &wr, &bad);
}

#endif

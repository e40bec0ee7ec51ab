/*
 * Each hot verb a known way, on a device that stands still: this program plays its part on the rings, and a doorbell is
 * a store to plain memory. So what is counted or timed is the provider and nothing else.
 *
 *     frozen count SITUATION     a few calls of each, for callgrind
 *     frozen time SITUATION N    the median of N batches of each
 *     frozen doorbell N          the verb that does little but ring, with the doorbell as the device has it
 *
 * SITUATION: `one` (a program with one thread), `two` (another one sleeps), `domain` (so, and all queues are of a
 * thread domain, where the provider has such). Every line of the output is the name of an operation and a number: how
 * often it was done, or the nanoseconds it took. An operation that the provider does not have is left out.
 *
 * Each operation is a function, and callgrind tells by it whose calls are whose. noipa: functions of one body must not
 * become one. Nothing is closed at the end, the process's end does it.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <x86intrin.h>

#include "queues.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define LIST 16

/* ---- operations ---- */

static struct ibv_sge send_sge[4], recv_sge;
static struct ibv_send_wr send_1, send_16[LIST], send_sge_2, send_sge_4, send_ud, send_inline;
static struct ibv_recv_wr recv_1, recv_16[LIST];
static struct ibv_send_wr *bad_send;
static struct ibv_recv_wr *bad_recv;
static struct ibv_wc wc[LIST];

static void write_requests(void)
{
    for (size_t i = 0; i < COUNT(send_sge); i++)
        send_sge[i] = sge_of(&rc, 64 * i, 8);
    recv_sge = sge_of(&rc, 0, 8);
    send_1 = work_to(&far, IBV_WR_RDMA_WRITE, 1, send_sge);
    send_sge_2 = send_sge_4 = send_inline = send_1;
    send_sge_2.num_sge = 2;
    send_sge_4.num_sge = 4;
    static struct ibv_sge inline_sge;
    inline_sge = sge_of(&inliner, 0, INLINE);
    send_inline.sg_list = &inline_sge;
    send_inline.send_flags |= IBV_SEND_INLINE;
    send_ud = datagram(1, send_sge, ah_to(&device), &ud);
    recv_1 = (struct ibv_recv_wr){.wr_id = 1, .sg_list = &recv_sge, .num_sge = 1};
    for (int i = 0; i < LIST; i++) {
        send_16[i] = send_1;
        send_16[i].wr_id = i;
        recv_16[i] = recv_1;
        recv_16[i].wr_id = i;
        if (i) {
            send_16[i - 1].next = &send_16[i];
            recv_16[i - 1].next = &recv_16[i];
        }
    }
}

/* `call` n times; it gives 0 when all is well. */
#define OPERATION(name, call)                                                                                          \
    static __attribute__((noipa)) int name(unsigned n)                                                                 \
    {                                                                                                                  \
        int wrong = 0;                                                                                                 \
        for (unsigned i = 0; i < n; i++)                                                                               \
            wrong |= call;                                                                                             \
        return wrong;                                                                                                  \
    }

OPERATION(post_send_1, ibv_post_send(rc.qp, &send_1, &bad_send))
OPERATION(post_send_16, ibv_post_send(rc.qp, send_16, &bad_send))
OPERATION(post_send_sge_2, ibv_post_send(rc.qp, &send_sge_2, &bad_send))
OPERATION(post_send_sge_4, ibv_post_send(rc.qp, &send_sge_4, &bad_send))
OPERATION(post_send_ud, ibv_post_send(ud.qp, &send_ud, &bad_send))
OPERATION(post_send_inline, ibv_post_send(inliner.qp, &send_inline, &bad_send))
OPERATION(post_recv_1, ibv_post_recv(rc.qp, &recv_1, &bad_recv))
OPERATION(post_recv_16, ibv_post_recv(rc.qp, recv_16, &bad_recv))
OPERATION(post_srq_recv_1, ibv_post_srq_recv(srq, &recv_1, &bad_recv))
OPERATION(post_srq_recv_16, ibv_post_srq_recv(srq, recv_16, &bad_recv))
OPERATION(poll_cq_of_many, ibv_poll_cq(rc.cq, 1, wc) != 1)
OPERATION(poll_cq_16, ibv_poll_cq(rc.cq, LIST, wc) != LIST)
OPERATION(poll_cq_rung, ibv_poll_cq(fresh_cq[i % CQS], 1, wc))
OPERATION(poll_cq_rationed, ibv_poll_cq(rc.cq, 1, wc))
OPERATION(req_notify_cq, ibv_req_notify_cq(rc.cq, 0))

/* A request that the application has just written: the provider reads what may still be on its way to the cache. */
static __attribute__((noipa)) int post_send_fresh(unsigned n)
{
    int wrong = 0;
    struct ibv_sge sge;
    struct ibv_send_wr request = {0};
    for (unsigned i = 0; i < n; i++) {
        sge.addr = (uintptr_t)rc.buffer + i;
        sge.length = 8;
        sge.lkey = rc.mr->lkey;
        request.wr_id = i;
        request.next = NULL;
        request.sg_list = &sge;
        request.num_sge = 1;
        request.opcode = IBV_WR_RDMA_WRITE;
        request.send_flags = IBV_SEND_SIGNALED;
        request.wr.rdma.remote_addr = (uintptr_t)far.buffer + i;
        request.wr.rdma.rkey = far.mr->rkey;
        wrong |= ibv_post_send(rc.qp, &request, &bad_send);
    }
    return wrong;
}

/* Exactly one is there at each poll. */
static __attribute__((noipa)) int poll_cq_1(unsigned n)
{
    int wrong = 0;
    uint32_t tail = rc_cq.counters->prod_tail;
    for (unsigned i = 0; i < n; i++) {
        show(&rc_cq, ++tail);
        wrong |= ibv_poll_cq(rc.cq, 1, wc) != 1;
    }
    return wrong;
}

static inline __attribute__((always_inline)) int wr_batch(unsigned n)
{
    ibv_wr_start(qp_ex);
    for (unsigned i = 0; i < n; i++) {
        qp_ex->wr_id = i;
        qp_ex->wr_flags = IBV_SEND_SIGNALED;
        ibv_wr_rdma_write(qp_ex, far.mr->rkey, (uintptr_t)far.buffer);
        ibv_wr_set_sge(qp_ex, wr.mr->lkey, (uintptr_t)wr.buffer, 8);
    }
    return ibv_wr_complete(qp_ex);
}

OPERATION(wr_1, wr_batch(1))
OPERATION(wr_16, wr_batch(LIST))

static inline __attribute__((always_inline)) int poll_ex_batch(void)
{
    uint64_t sum = 0;
    struct ibv_poll_cq_attr attr = {0};
    int wrong = ibv_start_poll(cq_ex, &attr);
    for (int i = 0; i < LIST; i++) {
        if (i)
            wrong |= ibv_next_poll(cq_ex);
        wrong |= cq_ex->status;
        sum += cq_ex->wr_id;
    }
    ibv_end_poll(cq_ex);
    return wrong | (sum != LIST * (LIST - 1) / 2);
}

OPERATION(cq_ex_16, poll_ex_batch())

/* What a program does that posts and polls by itself: functions, so that their instructions are counted as those of a
 * verb are. Addresses and sizes are looked up each time, as in a program with many queues. */
static __attribute__((noipa)) int direct_write(const struct pvrdmadv_wq *sq, unsigned n)
{
    uint32_t mask = 2 * sq->num_entries - 1, tail = *sq->prod_tail;
    if (((tail - direct_load(sq->cons_head)) & mask) + n > sq->num_entries)
        return ENOMEM;
    for (unsigned i = 0; i < n; i++, tail++) {
        struct pvrdma_sq_wqe_hdr *wqe = (void *)((char *)sq->buf + (tail & (mask >> 1)) * (size_t)sq->entry_size);
        struct pvrdma_sge *sge = (void *)(wqe + 1);
        wqe->wr_id = i;
        wqe->num_sge = 1;
        wqe->total_len = 0;
        wqe->opcode = PVRDMA_WR_RDMA_WRITE;
        wqe->send_flags = PVRDMA_SEND_SIGNALED;
        wqe->ex.imm_data = 0;
        wqe->wr.rdma.remote_addr = send_1.wr.rdma.remote_addr;
        wqe->wr.rdma.rkey = send_1.wr.rdma.rkey;
        sge->addr = send_sge[0].addr;
        sge->length = send_sge[0].length;
        sge->lkey = send_sge[0].lkey;
    }
    __atomic_store_n(sq->prod_tail, tail & mask, __ATOMIC_RELEASE);
    direct_ring(sq->doorbell, sq->doorbell_value);
    return 0;
}

static __attribute__((noipa)) int direct_poll(const struct pvrdmadv_cq *cq, unsigned n, struct pvrdma_cqe *into)
{
    uint32_t mask = 2 * cq->num_entries - 1, head = *cq->cons_head;
    uint32_t there = (direct_load(cq->prod_tail) - head) & mask;
    n = there < n ? there : n;
    for (unsigned i = 0; i < n; i++)
        into[i] = ((struct pvrdma_cqe *)cq->buf)[(head + i) & (mask >> 1)];
    __atomic_store_n(cq->cons_head, (head + n) & mask, __ATOMIC_RELEASE);
    return n;
}

static struct pvrdma_cqe cqes[LIST];

OPERATION(direct_1, direct_write(&direct_qp.sq, 1))
OPERATION(direct_16, direct_write(&direct_qp.sq, LIST))
OPERATION(direct_poll_16, direct_poll(&direct_cq, LIST, cqes) != LIST)

/* ---- what comes before and after ---- */

static void put(const struct ring *cq, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        write_cqe(cq, i, rc_handle, i % LIST);
    show(cq, cq->counters->prod_tail + count);
}

static void put_n(unsigned n)
{
    put(&rc_cq, n);
}

static void put_16n(unsigned n)
{
    put(&rc_cq, n * LIST);
}

static void put_direct_16n(unsigned n)
{
    put(&direct_cq_ring, n * LIST);
}

static void put_ex_16n(unsigned n)
{
    put(&cq_ex_ring, n * LIST);
}

/* Not shown: that is for the operation. */
static void write_n(unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        write_cqe(&rc_cq, i, rc_handle, i);
}

/* Each CQ has just had a completion. */
static void hit_all(unsigned n)
{
    CHECK(n == CQS);
    for (int i = 0; i < CQS; i++) {
        put(&fresh_ring[i], 1);
        CHECK(ibv_poll_cq(fresh_cq[i], 1, wc) == 1 && wc[0].qp_num == rc.qp->qp_num);
    }
}

/* The last completion is long ago. */
static void miss_many(unsigned n)
{
    (void)n;
    for (int i = 0; i < 64; i++)
        CHECK(ibv_poll_cq(rc.cq, 1, wc) == 0);
}

/* Inline data has its place back when the completion was polled; what stands in the request tells which. */
static void complete_inline(unsigned n)
{
    uint32_t head = inline_sq.counters->cons_head;
    CHECK(filled(&inline_sq) == n);
    for (uint32_t i = 0; i < n; i++) {
        struct pvrdma_sq_wqe_hdr wqe;
        memcpy(&wqe, inline_sq.entries + ((head + i) & (DEPTH - 1)) * inline_stride, sizeof(wqe));
        write_cqe(&inline_cq, i, inline_handle, wqe.wr_id);
    }
    take_all(&inline_sq);
    show(&inline_cq, inline_cq.counters->prod_tail + n);
    for (uint32_t i = 0; i < n; i++)
        CHECK(ibv_poll_cq(inliner.cq, 1, wc) == 1 && wc[0].wr_id == send_inline.wr_id);
}

/* ---- measuring ---- */

static const struct operation {
    const char *name;
    int (*run)(unsigned n);
    void (*before)(unsigned n);
    /* What is posted to or polled from, and how much each time; polled is nothing where a poll finds nothing. */
    const struct ring *ring;
    unsigned posted, polled;
    /* Calls of a batch. */
    unsigned n;
    void (*after)(unsigned n);
    /* Whether the batch must ring: what is posted does, what finds a completion does not. */
    enum { RINGS, SILENT, EITHER } doorbell;
} OPERATIONS[] = {
    {"post_send_1", post_send_1, NULL, &rc_sq, 1, 0, 32, NULL, RINGS},
    {"post_send_fresh", post_send_fresh, NULL, &rc_sq, 1, 0, 32, NULL, RINGS},
    {"post_send_16", post_send_16, NULL, &rc_sq, LIST, 0, 4, NULL, RINGS},
    {"post_send_sge_2", post_send_sge_2, NULL, &rc_sq, 1, 0, 32, NULL, RINGS},
    {"post_send_sge_4", post_send_sge_4, NULL, &rc_sq, 1, 0, 32, NULL, RINGS},
    {"post_send_ud", post_send_ud, NULL, &ud_sq, 1, 0, 32, NULL, RINGS},
    {"post_send_inline", post_send_inline, NULL, &inline_sq, 1, 0, 32, complete_inline, RINGS},
    {"post_recv_1", post_recv_1, NULL, &rc_rq, 1, 0, 32, NULL, RINGS},
    {"post_recv_16", post_recv_16, NULL, &rc_rq, LIST, 0, 4, NULL, RINGS},
    {"post_srq_recv_1", post_srq_recv_1, NULL, &srq_ring, 1, 0, 32, NULL, RINGS},
    {"post_srq_recv_16", post_srq_recv_16, NULL, &srq_ring, LIST, 0, 4, NULL, RINGS},
    {"poll_cq_1", poll_cq_1, write_n, &rc_cq, 0, 1, 32, NULL, SILENT},
    {"poll_cq_of_many", poll_cq_of_many, put_n, &rc_cq, 0, 1, 32, NULL, SILENT},
    {"poll_cq_16", poll_cq_16, put_16n, &rc_cq, 0, LIST, 4, NULL, SILENT},
    {"poll_cq_rung", poll_cq_rung, hit_all, &fresh_ring[0], 0, 0, CQS, NULL, RINGS},
    {"poll_cq_rationed", poll_cq_rationed, miss_many, &rc_cq, 0, 0, 64, NULL, EITHER},
    {"wr_1", wr_1, NULL, &wr_sq, 1, 0, 32, NULL, RINGS},
    {"wr_16", wr_16, NULL, &wr_sq, LIST, 0, 4, NULL, RINGS},
    {"cq_ex_16", cq_ex_16, put_ex_16n, &cq_ex_ring, 0, LIST, 4, NULL, SILENT},
    {"direct_1", direct_1, NULL, &direct_sq, 1, 0, 32, NULL, RINGS},
    {"direct_16", direct_16, NULL, &direct_sq, LIST, 0, 4, NULL, RINGS},
    {"direct_poll_16", direct_poll_16, put_direct_16n, &direct_cq_ring, 0, LIST, 4, NULL, SILENT},
};

static const struct operation DOORBELL = {"doorbell", req_notify_cq, NULL, &rc_cq, 0, 0, 8, NULL, RINGS};

/* Nothing before or after it in the program's order happens on the other side of it. */
static inline uint64_t ticks(void)
{
    _mm_lfence();
    uint64_t now = __rdtsc();
    _mm_lfence();
    return now;
}

/* Ticks of one batch. */
static uint64_t batch(const struct operation *op)
{
    if (op->before)
        op->before(op->n);
    if (doorbell_page)
        rang();
    uint64_t start = ticks();
    int wrong = op->run(op->n);
    uint64_t end = ticks();
    CHECK(!wrong, "%s gives %d", op->name, wrong);
    CHECK(filled(op->ring) == op->n * op->posted, "%s leaves %u", op->name, filled(op->ring));
    CHECK(!doorbell_page || op->doorbell == EITHER || rang() == (op->doorbell == RINGS), "%s", op->name);
    if (op->after)
        op->after(op->n);
    else if (op->posted)
        take_all(op->ring);
    return end - start;
}

static int by_value(const void *one, const void *other)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return a < b ? -1 : a > b;
}

static uint64_t median(uint64_t *samples, size_t count)
{
    qsort(samples, count, sizeof(*samples), by_value);
    return samples[count / 2];
}

/* Ticks of a millisecond. Several times, as somebody may come between the two clocks. */
static double ticks_per_ms(void)
{
    static uint64_t found;
    uint64_t samples[5];
    for (size_t i = 0; !found && i < COUNT(samples); i++) {
        double start = now_ms();
        uint64_t from = ticks();
        while (now_ms() < start + 4)
            ;
        samples[i] = (ticks() - from) / (now_ms() - start);
    }
    return found = found ? found : median(samples, COUNT(samples));
}

/* Prints the nanoseconds of one request or completion. */
static void time_operation(const struct operation *op, size_t batches)
{
    uint64_t *samples = calloc(batches, sizeof(*samples));
    CHECK(samples);
    for (size_t i = 0; i < batches; i++) {
        uint64_t start = ticks();
        samples[i] = ticks() - start;
    }
    double clock = median(samples, batches);
    for (size_t i = 0; i < batches; i++)
        samples[i] = batch(op);
    unsigned each = op->n * (op->posted + op->polled > 1 ? op->posted + op->polled : 1);
    printf("%s %.3f\n", op->name, (median(samples, batches) - clock) / ticks_per_ms() * 1e6 / each);
    free(samples);
}

/* Prints how often the operation was done. */
static void count_operation(const struct operation *op)
{
    const unsigned batches = 8;
    for (unsigned i = 0; i < batches; i++)
        batch(op);
    printf("%s %u\n", op->name, batches * op->n);
}

static void *sleep_on(void *nothing)
{
    pause();
    return nothing;
}

/* One core for all that is timed, always the same. */
static void stay_put(void)
{
    cpu_set_t all, one;
    CHECK(!sched_getaffinity(0, sizeof(all), &all));
    for (int cpu = CPU_SETSIZE - 1; cpu >= 0; cpu--)
        if (CPU_ISSET(cpu, &all)) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            CHECK(!sched_setaffinity(0, sizeof(one), &one));
            return;
        }
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "", *situation = argc > 2 ? argv[2] : "one";
    int doorbell = !strcmp(what, "doorbell"), timed = !strcmp(what, "time");
    const char *number = doorbell ? argv[2] : timed && argc > 3 ? argv[3] : NULL;
    size_t batches = number ? strtoul(number, NULL, 10) : 0;
    CHECK(timed || doorbell ? batches : !strcmp(what, "count"), "usage: frozen count|time|doorbell SITUATION N");
    int one = doorbell || !strcmp(situation, "one"), domain = !strcmp(situation, "domain");
    CHECK(one || domain || !strcmp(situation, "two"), "no such situation: %s", situation);
    pthread_t sleeper;
    if (!one)
        CHECK(!pthread_create(&sleeper, NULL, sleep_on, NULL));
    stay_put();

    find_hooks();
    open_all(domain);
    CHECK(!freeze(1));
    write_requests();
    if (doorbell) {
        time_operation(&DOORBELL, batches);
        fflush(stdout);
        _exit(0);
    }
    calm_doorbells();
    /* The stand-in has a thread of its own, which a real device has not. It sleeps while the device stands still and
     * calls no verb, so nobody is deceived. */
    char *single_threaded = find("__libc_single_threaded");
    *single_threaded = one;

    long heard = all_doorbells();
    for (size_t i = 0; i < COUNT(OPERATIONS); i++) {
        const struct operation *op = &OPERATIONS[i];
        /* What is not there has no ring. */
        if (!op->ring->counters)
            continue;
        if (timed)
            time_operation(op, batches);
        else
            count_operation(op);
    }
    CHECK(all_doorbells() == heard, "doorbells reach the device past their page");
    fflush(stdout);
    _exit(0);
}

/*
 * Who wants a CQ has it soon: beside threads that poll it and never stop, and beside another CQ that stays empty.
 *
 *   fair         lists the cases
 *   fair CASE    runs it
 *
 * One thread makes, arms, resets and destroys a QP on the CQ that others poll. How long it waits is counted in polls of
 * the others that go by during a verb, since time is the scheduler's; and in the mean of all rounds, since beside more
 * threads than cores some verb loses its core, and then they are thousands. PVRDMA_STEPS is the number of rounds.
 */
#define _GNU_SOURCE
#include <sys/resource.h>

#include "tickets.h"

static struct ibv_cq *cq;
/* The same, if the case asks for one. */
static struct ibv_cq_ex *cq_ex;
static uint32_t over;

/* ---- what goes by ---- */

/* The verb that is under way. */
static const char *verb;
static uint32_t polls, went_by, limit_of_all;

static void polled(void)
{
    const char *waits = LOAD(&verb);
    ADD(&polls, 1);
    if (waits) {
        uint32_t before = ADD(&went_by, 1);
        CHECK(before < limit_of_all, "%u polls went by, and somebody waits in %s", before, waits);
    }
}

static void begin(const char *name)
{
    double limit = 0;
    /* They are all at it. */
    for (uint32_t before = LOAD(&polls); LOAD(&polls) - before < 2;)
        patience(&limit);
    STORE(&verb, name);
}

static void end(void)
{
    STORE(&verb, NULL);
}

/* ---- who is in the way ---- */

static void poll_until_over(uint32_t number)
{
    struct ibv_wc wc[16];
    (void)number;
    while (!LOAD(&over)) {
        CHECK(ibv_poll_cq(cq, COUNT(wc), wc) >= 0);
        polled();
    }
}

static void start_poll_until_over(uint32_t number)
{
    struct ibv_poll_cq_attr attr = {0};
    (void)number;
    while (!LOAD(&over)) {
        int error = ibv_start_poll(cq_ex, &attr);
        CHECK(!error || error == ENOENT);
        if (!error)
            ibv_end_poll(cq_ex);
        polled();
    }
}

/* Has the CQ from start_poll to end_poll, and wants it back at once: the next completion has come meanwhile. */
static void hold_until_over(uint32_t number)
{
    struct ibv_poll_cq_attr attr = {0};
    struct ibv_qp *qp = new_qp((struct way){.send_cq = cq});
    (void)number;
    CHECK(!post(qp, IBV_WR_RDMA_WRITE, 1));
    while (!LOAD(&over)) {
        if (!ibv_start_poll(cq_ex, &attr)) {
            CHECK(!post(qp, IBV_WR_RDMA_WRITE, 1));
            ibv_end_poll(cq_ex);
        }
        polled();
    }
    CHECK(!ibv_destroy_qp(qp));
}

static void be_busy_until_over(uint32_t number)
{
    (void)number;
    while (!LOAD(&over))
        continue;
}

/* ---- who wants the CQ ---- */

static void one_round(uint32_t inline_data)
{
    begin("create");
    struct ibv_qp *qp = unconnected_qp((struct way){.send_cq = cq, .inline_data = inline_data});
    end();
    loop_back(qp);
    /* Not counted: while the CQ is armed no poll waits in the device, and whoever loses its core here misses many. */
    CHECK(!ibv_req_notify_cq(cq, 0));
    /* What it was armed for. */
    CHECK(!post(qp, IBV_WR_RDMA_WRITE, 1));
    begin("reset");
    move_to(qp, IBV_QPS_RESET);
    end();
    begin("destroy");
    CHECK(!ibv_destroy_qp(qp));
    end();
}

/* Beside `count` others; the rest of the threads only use up the cores. */
static void beside(void (*others)(uint32_t), uint32_t count, uint32_t polls_a_round)
{
    struct task tasks[THREADS];
    uint32_t rounds = steps(100);
    limit_of_all = rounds * polls_a_round;
    for (uint32_t i = 0; i < THREADS; i++)
        start(&tasks[i], i < count ? others : be_busy_until_over, i);
    for (uint32_t round = 0; round < rounds; round++)
        one_round(32 * (round % 2));
    STORE(&over, 1);
    for (uint32_t i = 0; i < THREADS; i++)
        join(&tasks[i]);
    fprintf(stderr, "%u polls in %u rounds, %u during a verb\n", polls, rounds, went_by);
    CHECK(!ibv_destroy_cq(cq));
    close_all();
}

/* Of a lock that no one holds while the device sits on a POLL, and no one else wants for long, even an unfair one would
 * do here. */
static void poll_cq(void)
{
    open_all();
    cq = new_cq(2 * DEPTH);
    beside(poll_until_over, 2, 100);
}

static void open_ex(void)
{
    struct ibv_cq_init_attr_ex attr = {.cqe = 2 * DEPTH, .wc_flags = IBV_WC_STANDARD_FLAGS};
    open_all();
    cq_ex = ibv_create_cq_ex(device.context, &attr);
    CHECK(cq_ex);
    cq = ibv_cq_ex_to_cq(cq_ex);
}

static void start_poll(void)
{
    open_ex();
    beside(start_poll_until_over, 2, 100);
}

/* Here not: the lock is open for some nanoseconds at a time. */
static void held(void)
{
    open_ex();
    beside(hold_until_over, 1, 5000);
}

/* ---- two CQs ---- */

static long sleeps(void)
{
    struct rusage usage;
    CHECK(!getrusage(RUSAGE_THREAD, &usage));
    return usage.ru_nvcsw;
}

/* Polled in turn, the one that stays empty first: the completion is in the other, and nobody need wait for it. A thread
 * that loses its core has not slept. */
static void two_cqs(void)
{
    open_all();
    struct ibv_cq *send_cq = new_cq(DEPTH), *recv_cq = new_cq(DEPTH);
    struct ibv_qp *qp = new_qp((struct way){.send_cq = send_cq, .recv_cq = recv_cq});
    uint32_t rounds = steps(1000);
    long before = sleeps();
    for (uint32_t round = 0; round < rounds; round++) {
        struct ibv_wc wc;
        double limit = 0;
        CHECK(!post(qp, IBV_WR_RDMA_WRITE, 1));
        while (ibv_poll_cq(recv_cq, 1, &wc) + ibv_poll_cq(send_cq, 1, &wc) != 1)
            patience(&limit);
    }
    long slept = sleeps() - before;
    CHECK(slept <= rounds / 10, "slept %ld times in %u writes", slept, rounds);
    CHECK(!ibv_destroy_qp(qp) && !ibv_destroy_cq(send_cq) && !ibv_destroy_cq(recv_cq));
    close_all();
}

static const struct test_case CASES[] = {
    {"poll_cq", poll_cq},
    {"start_poll", start_poll},
    {"held", held},
    {"two_cqs", two_cqs},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, COUNT(CASES), argc, argv);
}

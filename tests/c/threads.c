/* Many threads in one program, which open, make, use, end and close side by side. */
#include <pthread.h>

#include "rc.h"

#define THREADS 12

static struct device shared;

static void use(struct device *device, int seed)
{
    struct end a = open_end(device, (struct shape){.length = 65536, .events = seed % 2});
    struct end b = open_end(device, (struct shape){.length = 65536});
    connect_ends(device, &a, &b, USUAL);
    move_between(&a, &b, 10, seed);
    close_end(&a);
    close_end(&b);
}

static void run_all(void *(*body)(void *))
{
    pthread_t threads[THREADS];
    for (intptr_t i = 0; i < THREADS; i++)
        CHECK(!pthread_create(&threads[i], NULL, body, (void *)i));
    for (int i = 0; i < THREADS; i++)
        CHECK(!pthread_join(threads[i], NULL));
}

/* Each thread opens the device for itself, again and again. */
static void *own_device(void *number)
{
    for (int round = 0; round < 8; round++) {
        struct device device = open_device();
        use(&device, (int)(intptr_t)number * 100 + round);
        close_device(&device);
    }
    return NULL;
}

static void open_and_close(void)
{
    run_all(own_device);
}

/* All make and end objects of one context. */
static void *shared_device(void *number)
{
    for (int round = 0; round < 8; round++)
        use(&shared, (int)(intptr_t)number * 100 + round);
    return NULL;
}

static void one_context(void)
{
    shared = open_device();
    run_all(shared_device);
    close_device(&shared);
}

/* All post to one QP and poll one CQ; each completion reaches one of them. */
static struct end from, to;
static uint32_t posted, polled;
#define MESSAGES 3000

static void *post_and_poll(void *number)
{
    (void)number;
    while (__atomic_load_n(&polled, __ATOMIC_RELAXED) < MESSAGES) {
        uint32_t done = __atomic_load_n(&polled, __ATOMIC_RELAXED);
        if (posted - done < 8) {
            uint32_t mine = __atomic_fetch_add(&posted, 1, __ATOMIC_RELAXED);
            if (mine < MESSAGES) {
                struct ibv_sge sge = sge_of(&from, 8 * (mine % 512), 8);
                struct ibv_send_wr wr = {.wr_id = mine,
                                         .opcode = IBV_WR_RDMA_WRITE,
                                         .send_flags = IBV_SEND_SIGNALED,
                                         .sg_list = &sge,
                                         .num_sge = 1,
                                         .wr.rdma = {(uintptr_t)to.buffer + 8 * (mine % 512), to.mr->rkey}};
                post_send(&from, &wr);
            }
        }
        struct ibv_wc wc[4];
        int n = ibv_poll_cq(from.cq, 4, wc);
        CHECK(n >= 0);
        for (int i = 0; i < n; i++)
            CHECK(wc[i].status == IBV_WC_SUCCESS, "%s", ibv_wc_status_str(wc[i].status));
        __atomic_fetch_add(&polled, n, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void one_queue(void)
{
    shared = open_device();
    from = open_end(&shared, (struct shape){.length = 65536, .depth = 64});
    to = open_end(&shared, (struct shape){.length = 65536});
    connect_ends(&shared, &from, &to, USUAL);
    fill(from.buffer, 4096, 9);
    run_all(post_and_poll);
    CHECK(polled == MESSAGES, "%u completions", polled);
    expect_bytes(to.buffer, 4096, 9);
    close_end(&from);
    close_end(&to);
    close_device(&shared);
}

static const struct test_case CASES[] = {
    {"open_and_close", open_and_close},
    {"one_context", one_context},
    {"one_queue", one_queue},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, sizeof(CASES) / sizeof(CASES[0]), argc, argv);
}

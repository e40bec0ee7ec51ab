/*
 * One side of an RC connection between two processes, to be killed or to see the other one die.
 *
 *   peer MODE -p PORT            waits for the other side
 *   peer MODE -p PORT ADDRESS    goes to it
 *
 * sit          says "ready" and does nothing: no doorbell, no system call
 * write, read  one RDMA operation after the other until one fails, polling; says "running" when they flow
 * sleep        the same with writes, asleep in ibv_get_cq_event between them
 * once         a hundred writes, then ends well
 */
#include "meet.h"

/* 4.096 us * 2^14 = 67 ms, and four tries. */
static const struct patience PATIENCE = {.timeout = 14, .retry_cnt = 3, .rnr_retry = 7};

struct address {
    uint32_t qp_num, rkey;
    uint64_t buffer;
    union ibv_gid gid;
};

static void say(const char *text)
{
    puts(text);
    fflush(stdout);
}

static struct ibv_wc sleep_for_wc(struct end *end)
{
    struct ibv_wc wc;
    for (;;) {
        CHECK(!ibv_req_notify_cq(end->cq, 0));
        int n = ibv_poll_cq(end->cq, 1, &wc);
        CHECK(n >= 0);
        if (n == 1)
            return wc;
        struct ibv_cq *cq;
        void *context;
        CHECK(!ibv_get_cq_event(end->channel, &cq, &context));
        ibv_ack_cq_events(cq, 1);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 4 || argc == 5, "usage: peer MODE -p PORT [ADDRESS]");
    const char *mode = argv[1];
    int asleep = !strcmp(mode, "sleep"), once = !strcmp(mode, "once");
    struct device device = open_device();
    struct end end = open_end(&device, (struct shape){.length = 65536, .events = asleep});
    struct address mine = {end.qp->qp_num, end.mr->rkey, (uintptr_t)end.buffer, device.gid}, theirs;

    int fd = meet(argv[3], argv[4], 60);
    CHECK(fd >= 0, "nobody is there");
    CHECK(write(fd, &mine, sizeof(mine)) == sizeof(mine));
    CHECK(recv(fd, &theirs, sizeof(theirs), MSG_WAITALL) == sizeof(theirs));
    to_init(&end);
    to_rtr(&end, theirs.qp_num, theirs.gid);
    to_rts(&end, PATIENCE);
    char ready = 1;
    CHECK(write(fd, &ready, 1) == 1);
    CHECK(recv(fd, &ready, 1, MSG_WAITALL) == 1);

    if (!strcmp(mode, "sit")) {
        say("ready");
        for (;;)
            pause();
    }
    struct ibv_sge sge = sge_of(&end, 0, 4096);
    struct ibv_send_wr wr = {
        .opcode = !strcmp(mode, "read") ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE,
        .send_flags = IBV_SEND_SIGNALED,
        .sg_list = &sge,
        .num_sge = 1,
        .wr.rdma = {.remote_addr = theirs.buffer, .rkey = theirs.rkey},
    };
    struct ibv_wc wc;
    double start;
    uint64_t count = 0;
    do {
        wr.wr_id = count;
        start = now_ms();
        post_send(&end, &wr);
        wc = asleep ? sleep_for_wc(&end) : wait_wc(&end);
        CHECK(wc.wr_id == count);
        if (++count == 100)
            say("running");
    } while (wc.status == IBV_WC_SUCCESS && !(once && count == 100));
    double took = now_ms() - start;

    if (once) {
        CHECK(wc.status == IBV_WC_SUCCESS, "%s", ibv_wc_status_str(wc.status));
        /* The other side may still be writing to us: leave together. */
        CHECK(write(fd, &ready, 1) == 1);
        CHECK(recv(fd, &ready, 1, MSG_WAITALL) == 1);
        close_end(&end);
        close_device(&device);
        return 0;
    }
    CHECK(wc.status == IBV_WC_RETRY_EXC_ERR, "%s", ibv_wc_status_str(wc.status));
    CHECK(state_of(&end) == IBV_QPS_ERR);
    for (uint32_t i = 0; i < 4; i++) {
        wr.wr_id = i;
        post_send(&end, &wr);
        expect_wc(&end, i, IBV_WC_WR_FLUSH_ERR);
        post_recv(&end, 10 + i, 0, 64);
        expect_wc(&end, 10 + i, IBV_WC_WR_FLUSH_ERR);
    }
    double patience = 0.004096 * (1 << PATIENCE.timeout) * (PATIENCE.retry_cnt + 1);
    printf("retries exceeded after %.0f ms of %.0f ms\n", took, patience);
    close_end(&end);
    close_device(&device);
    return 0;
}

/*
 * Two processes that send each other messages over a connection that forgives nothing: retry_cnt 0. However slow the
 * other one is, it lives, so no request may end with an error.
 *
 *   strict TIMEOUT MILLISECONDS
 *
 * TIMEOUT is that of ibv_modify_qp: 14 is 67 ms; with 1, 8 us, nearly every answer comes later than it.
 */
#include <sys/wait.h>

#include "meet.h"

#define LENGTH 4096
#define DEPTH 8
#define PATIENCE_MS 60000

struct card {
    uint32_t qp_num;
    union ibv_gid gid;
};

static void play(int other, uint8_t timeout, double duration)
{
    struct device device = open_device();
    struct end end = open_end(&device, (struct shape){.length = 2 * LENGTH});
    struct card mine = {end.qp->qp_num, device.gid}, there;
    CHECK(tell(other, &mine, sizeof(mine)) && hear(other, &there, sizeof(there)));
    to_init(&end);
    to_rtr(&end, there.qp_num, there.gid);
    for (int i = 0; i < DEPTH; i++)
        post_recv(&end, 1, LENGTH, LENGTH);
    to_rts(&end, (struct patience){.timeout = timeout, .retry_cnt = 0, .rnr_retry = 7});
    char both = 1;
    CHECK(tell(other, &both, 1) && hear(other, &both, 1));

    struct ibv_sge sge = sge_of(&end, 0, LENGTH);
    struct ibv_send_wr wr = {.opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .sg_list = &sge, .num_sge = 1};
    double now = now_ms(), stop = now + duration, limit = stop + PATIENCE_MS;
    unsigned long sent = 0;
    int under_way = 0, told = 0, heard = 0;
    while (!told || !heard) {
        for (; under_way < DEPTH && now_ms() < stop; under_way++)
            post_send(&end, &wr);
        struct ibv_wc wc;
        int n = ibv_poll_cq(end.cq, 1, &wc);
        CHECK(n >= 0);
        if (n) {
            CHECK(wc.status == IBV_WC_SUCCESS, "after %lu messages: %s", sent, ibv_wc_status_str(wc.status));
            if (wc.wr_id) {
                post_recv(&end, 1, LENGTH, LENGTH);
            } else {
                under_way--;
                sent++;
            }
        }
        now = now_ms();
        CHECK(now < limit, "%d sends hang", under_way);
        if (!told && !under_way && now >= stop)
            told = tell(other, &both, 1);
        struct pollfd fd = {.fd = other, .events = POLLIN};
        if (!heard && poll(&fd, 1, 0))
            heard = hear(other, &both, 1);
    }
    CHECK(sent > 0);
    close_end(&end);
    close_device(&device);
    _exit(0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3, "usage: strict TIMEOUT MILLISECONDS");
    int fds[2], status;
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
    for (int side = 0; side < 2; side++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (!pid) {
            close(fds[!side]);
            play(fds[side], (uint8_t)atoi(argv[1]), atof(argv[2]));
        }
    }
    close(fds[0]);
    close(fds[1]);
    for (int side = 0; side < 2; side++)
        CHECK(wait(&status) > 0 && !status);
    puts("nothing was lost");
    return 0;
}

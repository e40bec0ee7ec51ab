/*
 * A process is killed and its process id goes to a stranger, who happens to have memory at the same address. A peer
 * that still has a connection to the dead one must not write into the stranger.
 *
 *   reused_pid
 *
 * Exit status 77: the kernel does not let this user choose process ids, so it cannot be tried.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include "rc.h"

#define PLACE ((void *)0x600000000000)
#define BYTES 4096

struct address {
    uint32_t qp_num, rkey;
    union ibv_gid gid;
};

static uint8_t *memory_at_the_place(uint8_t value)
{
    uint8_t *at = mmap(PLACE, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(at == PLACE);
    memset(at, value, BYTES);
    return at;
}

static void swap(int to, const struct address *mine, int from, struct address *theirs)
{
    CHECK(write(to, mine, sizeof(*mine)) == sizeof(*mine));
    CHECK(read(from, theirs, sizeof(*theirs)) == sizeof(*theirs));
}

static void victim(int to, int from)
{
    struct device device = open_device();
    struct end end = open_end(&device, (struct shape){0});
    uint8_t *buffer = memory_at_the_place(0);
    struct ibv_mr *mr = ibv_reg_mr(device.pd, buffer, BYTES, ALL_ACCESS);
    CHECK(mr);
    struct address mine = {end.qp->qp_num, mr->rkey, device.gid}, theirs;
    swap(to, &mine, from, &theirs);
    to_init(&end);
    to_rtr(&end, theirs.qp_num, theirs.gid);
    to_rts(&end, USUAL);
    CHECK(write(to, "r", 1) == 1);
    for (;;)
        pause();
}

/* Forks until the child has this process id. */
static pid_t fork_as(pid_t wanted)
{
    for (int i = 0; i < 1000; i++) {
        char number[16];
        int file = open("/proc/sys/kernel/ns_last_pid", O_WRONLY);
        int length = snprintf(number, sizeof(number), "%d", wanted - 1);
        if (file < 0 || write(file, number, length) != length)
            exit(77);
        close(file);
        pid_t child = fork();
        if (child <= 0 || child == wanted)
            return child;
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    CHECK(0, "pid %d is never given out", wanted);
}

int main(void)
{
    int up[2], down[2];
    CHECK(!pipe(up) && !pipe(down));
    pid_t first = fork();
    CHECK(first >= 0);
    if (!first)
        victim(up[1], down[0]);

    struct device device = open_device();
    struct end end = open_end(&device, (struct shape){0});
    struct address mine = {.qp_num = end.qp->qp_num, .gid = device.gid}, theirs;
    swap(down[1], &mine, up[0], &theirs);
    to_init(&end);
    to_rtr(&end, theirs.qp_num, theirs.gid);
    to_rts(&end, (struct patience){.timeout = 10, .retry_cnt = 2, .rnr_retry = 7});
    char ready;
    CHECK(read(up[0], &ready, 1) == 1);
    struct ibv_sge sge = sge_of(&end, 0, 64);
    struct ibv_send_wr wr = {.wr_id = 1,
                             .opcode = IBV_WR_RDMA_WRITE,
                             .send_flags = IBV_SEND_SIGNALED,
                             .sg_list = &sge,
                             .num_sge = 1,
                             .wr.rdma = {.remote_addr = (uintptr_t)PLACE, .rkey = theirs.rkey}};
    memset(end.buffer, 0xaa, 64);
    post_send(&end, &wr);
    expect_wc(&end, 1, IBV_WC_SUCCESS);

    CHECK(!kill(first, SIGKILL) && waitpid(first, NULL, 0) == first);
    /* Left to itself the kernel gives out all other numbers first, which takes far longer. */
    usleep(100000);
    pid_t parent = getpid(), stranger = fork_as(first);
    if (!stranger) {
        /* Every descriptor but these belongs to the parent. */
        uint8_t *buffer = memory_at_the_place(0x55);
        CHECK(getpid() == first && getppid() == parent);
        CHECK(write(up[1], "r", 1) == 1);
        CHECK(read(down[0], &ready, 1) == 1);
        expect_value(buffer, BYTES, 0x55);
        _exit(0);
    }
    CHECK(read(up[0], &ready, 1) == 1);
    wr.wr_id = 2;
    post_send(&end, &wr);
    struct ibv_wc wc = wait_wc(&end);
    int status;
    CHECK(write(down[1], "g", 1) == 1);
    CHECK(waitpid(stranger, &status, 0) == stranger && status == 0, "the stranger's memory was written to");
    CHECK(wc.wr_id == 2 && wc.status == IBV_WC_RETRY_EXC_ERR, "%s", ibv_wc_status_str(wc.status));
    close_end(&end);
    close_device(&device);
    return 0;
}

/*
 * A process that is not what it was: its program is replaced by exec, or its first thread has ended. Peers must not
 * reach the new program's memory, and must reach that of threads that go on.
 *
 * `exec PORT [HOST]`: two processes; the one without HOST becomes another program, the other writes to where it was.
 * `first_thread`: one process.
 */
#define _GNU_SOURCE
#include <pthread.h>

#include "meet.h"

/* Where both programs have a page. */
#define PLACE ((void *)0x200000000ul)

static uint8_t *page_at_place(void)
{
    uint8_t *page = mmap(PLACE, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(page == PLACE);
    return page;
}

struct card {
    uint32_t qp_num, rkey;
    uint64_t buffer;
    union ibv_gid gid;
};

/* Opens no device. */
static int new_program(int fd)
{
    uint8_t *page = page_at_place();
    memset(page, 0x11, 4096);
    char go = 1, over;
    CHECK(tell(fd, &go, 1));
    /* Until the other side has seen the end of it. */
    CHECK(hear(fd, &over, 1));
    expect_value(page, 4096, 0x11);
    puts("the page is the new program's");
    return 0;
}

static int replaced(char **argv, const char *port, const char *host)
{
    int fd = meet(port, host, 10);
    CHECK(fd >= 0);
    struct device device = open_device();
    struct end end = open_end(&device, (struct shape){.length = 4096});
    if (!host) {
        CHECK(!ibv_dereg_mr(end.mr));
        end.buffer = page_at_place();
        end.mr = ibv_reg_mr(device.pd, end.buffer, 4096, ALL_ACCESS);
        CHECK(end.mr);
    }
    struct card mine = {end.qp->qp_num, end.mr->rkey, (uintptr_t)end.buffer, device.gid}, theirs;
    CHECK(tell(fd, &mine, sizeof(mine)) && hear(fd, &theirs, sizeof(theirs)));
    to_init(&end);
    to_rtr(&end, theirs.qp_num, theirs.gid);
    to_rts(&end, (struct patience){.timeout = 10, .retry_cnt = 3, .rnr_retry = 7});
    char go = 1;
    CHECK(tell(fd, &go, 1) && hear(fd, &go, 1));
    if (!host) {
        char number[16];
        snprintf(number, sizeof(number), "%d", dup(fd));
        execl("/proc/self/exe", argv[0], "new", number, (char *)NULL);
        CHECK(0, "exec");
    }
    memset(end.buffer, 0x5a, 4096);
    CHECK(hear(fd, &go, 1));
    struct ibv_sge sge = sge_of(&end, 0, 4096);
    struct ibv_send_wr wr = {
        .wr_id = 1,
        .opcode = IBV_WR_RDMA_WRITE,
        .send_flags = IBV_SEND_SIGNALED,
        .sg_list = &sge,
        .num_sge = 1,
        .wr.rdma = {.remote_addr = theirs.buffer, .rkey = theirs.rkey},
    };
    post_send(&end, &wr);
    expect_wc(&end, 1, IBV_WC_RETRY_EXC_ERR);
    CHECK(tell(fd, &go, 1));
    return 0;
}

/* All of it in a thread that outlives the first. */
static void *goes_on(void *argument)
{
    CHECK(!pthread_join(*(pthread_t *)argument, NULL));
    for (int round = 0; round < 3; round++) {
        struct device device;
        struct end a, b;
        open_both(&device, &a, &b, (struct shape){.length = 4096}, USUAL);
        move_between(&a, &b, 10, round);
        close_both(&device, &a, &b);
    }
    puts("the others go on");
    exit(0);
}

int main(int argc, char **argv)
{
    if (argc > 2 && !strcmp(argv[1], "new"))
        return new_program(atoi(argv[2]));
    if (argc > 2 && !strcmp(argv[1], "exec"))
        return replaced(argv, argv[2], argc > 3 ? argv[3] : NULL);
    CHECK(argc == 2 && !strcmp(argv[1], "first_thread"));
    static pthread_t first;
    pthread_t thread;
    struct device device = open_device();
    close_device(&device);
    first = pthread_self();
    CHECK(!pthread_create(&thread, NULL, goes_on, &first));
    pthread_exit(NULL);
}

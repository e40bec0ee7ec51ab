/*
 * A process is stopped by SIGSTOP while it copies from or into the memory of another one, which takes its memory back
 * meanwhile.
 *
 *   stopped CASE...     CASE is TRAFFIC-VERB, or none for a list
 *
 * TRAFFIC is what goes on between the two, VERB what the other one does. Each verb must return whoever is stopped, and
 * what the other one writes to its memory after that must still be there when the stopped one has gone on.
 * PVRDMA_ROUNDS says how often, PVRDMA_SEED begins the moments.
 */
#include <signal.h>
#include <sys/wait.h>

#include "meet.h"

#define LENGTH (4 << 20)
/* No verb takes so long by itself; who waits for a stopped process takes until somebody has it go on. */
#define BOUND_MS 2000
#define PATIENCE_MS 20000
#define DEPTH 4

enum traffic { WRITES, READS, SENDS, COUNTS };
enum verb { DEREG, DESTROY, RESET, ERROR };

struct card {
    uint32_t qp_num, rkey;
    uint64_t buffer;
    union ibv_gid gid;
};

/* One of the two: what it has to do with the other one, and with whoever directs both. */
struct role {
    enum traffic traffic;
    int stays, posts, other, director;
};

/* What the director says. */
enum { TAKE_BACK = 't', LOOK = 'l', LEAVE = 'x' };

static double slowest;
static const char *slowest_verb;

#define TIMED(call)                                                                                                    \
    do {                                                                                                               \
        double begin = now_ms();                                                                                       \
        CHECK(!(call));                                                                                                \
        if (now_ms() - begin > slowest) {                                                                              \
            slowest = now_ms() - begin;                                                                                \
            slowest_verb = #call;                                                                                      \
        }                                                                                                              \
    } while (0)

static int drain(struct end *end)
{
    struct ibv_wc wc;
    int n;
    while ((n = ibv_poll_cq(end->cq, 1, &wc)) == 1)
        ;
    return n;
}

static void take_back(struct end *end, enum verb verb)
{
    struct ibv_qp_attr attr = {.qp_state = verb == RESET ? IBV_QPS_RESET : IBV_QPS_ERR};
    if (verb == RESET || verb == ERROR)
        TIMED(ibv_modify_qp(end->qp, &attr, IBV_QP_STATE));
    if (verb == ERROR)
        TIMED(drain(end));
    if (verb == DEREG)
        TIMED(ibv_dereg_mr(end->mr));
    TIMED(drain(end));
    TIMED(ibv_destroy_qp(end->qp));
    if (verb != DEREG)
        TIMED(ibv_dereg_mr(end->mr));
    fill(end->buffer, LENGTH, 1);
}

/* More work while there is room for it; the connection may have ended. */
static void post_more(struct end *end, const struct role *role, const struct card *there, int *under_way)
{
    static const enum ibv_wr_opcode opcodes[] = {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_SEND,
                                                 IBV_WR_ATOMIC_FETCH_AND_ADD};
    struct ibv_sge sge = sge_of(end, 0, role->traffic == COUNTS ? 8 : LENGTH);
    struct ibv_send_wr wr = {.opcode = opcodes[role->traffic],
                             .send_flags = IBV_SEND_SIGNALED,
                             .sg_list = &sge,
                             .num_sge = 1,
                             .wr.rdma = {.remote_addr = there->buffer, .rkey = there->rkey}},
                       *bad;
    if (role->traffic == COUNTS) {
        wr.wr.atomic.remote_addr = there->buffer;
        wr.wr.atomic.rkey = there->rkey;
        wr.wr.atomic.compare_add = 1;
    }
    while (*under_way < DEPTH && !ibv_post_send(end->qp, &wr, &bad))
        ++*under_way;
}

static void play(struct role role, enum verb verb)
{
    struct device device = open_device();
    struct end end = open_end(&device, (struct shape){.length = LENGTH, .access = ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC});
    struct card mine = {end.qp->qp_num, end.mr->rkey, (uintptr_t)end.buffer, device.gid}, there;
    CHECK(tell(role.other, &mine, sizeof(mine)) && hear(role.other, &there, sizeof(there)));
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC};
    CHECK(!ibv_modify_qp(end.qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
    to_rtr(&end, there.qp_num, there.gid);
    for (int i = 0; i < DEPTH; i++)
        post_recv(&end, 1, 0, LENGTH);
    to_rts(&end, USUAL);
    char ready = 1, order = 0;
    CHECK(tell(role.other, &ready, 1) && hear(role.other, &ready, 1) && tell(role.director, &ready, 1));

    for (int under_way = 0; !order;) {
        if (role.posts)
            post_more(&end, &role, &there, &under_way);
        struct ibv_wc wc;
        int n = ibv_poll_cq(end.cq, 1, &wc);
        CHECK(n >= 0);
        if (n && wc.status == IBV_WC_SUCCESS) {
            if (wc.wr_id == 1)
                post_recv(&end, 1, 0, LENGTH);
            else
                under_way--;
        }
        struct pollfd fd = {.fd = role.director, .events = POLLIN};
        if (poll(&fd, 1, 0))
            CHECK(hear(role.director, &order, 1));
    }
    if (role.stays) {
        CHECK(order == TAKE_BACK);
        take_back(&end, verb);
        CHECK(tell(role.director, &slowest, sizeof(slowest)) && hear(role.director, &order, 1) && order == LOOK);
        CHECK(slowest < BOUND_MS, "%s takes %.0f ms", slowest_verb, slowest);
        expect_bytes(end.buffer, LENGTH, 1);
    }
    CHECK(tell(role.director, &ready, 1));
    _exit(0);
}

static pid_t start(enum traffic traffic, enum verb verb, int stays, const int others[2], int *director)
{
    int fds[2];
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
    /* Who posts: the other one's hands must be in the memory of the one that stays. */
    int posts = stays == (traffic == SENDS || traffic == COUNTS);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (!pid)
        play((struct role){traffic, stays, posts, others[!stays], fds[1]}, verb);
    close(fds[1]);
    *director = fds[0];
    return pid;
}

static void hear_in_time(int fd, void *bytes, size_t length, const char *what)
{
    struct pollfd in = {.fd = fd, .events = POLLIN};
    CHECK(poll(&in, 1, PATIENCE_MS) == 1 && hear(fd, bytes, length), "%s", what);
}

static void round_of(enum traffic traffic, enum verb verb)
{
    int others[2], stays, goes, status;
    char ready;
    double took;
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, others));
    pid_t one = start(traffic, verb, 1, others, &stays), other = start(traffic, verb, 0, others, &goes);
    hear_in_time(stays, &ready, 1, "it begins");
    hear_in_time(goes, &ready, 1, "it begins");
    usleep(rand() % 8000);
    CHECK(!kill(other, SIGSTOP) && waitpid(other, &status, WUNTRACED) == other && WIFSTOPPED(status));
    CHECK(tell(stays, (char[]){TAKE_BACK}, 1));
    hear_in_time(stays, &took, sizeof(took), "the verbs do not wait for a stopped process");
    CHECK(!kill(other, SIGCONT));
    /* When it says so it is past whatever it was stopped in. */
    CHECK(tell(goes, (char[]){LEAVE}, 1));
    hear_in_time(goes, &ready, 1, "it goes on");
    CHECK(tell(stays, (char[]){LOOK}, 1));
    hear_in_time(stays, &ready, 1, "its memory is its own");
    CHECK(waitpid(one, &status, 0) == one && !status && waitpid(other, &status, 0) == other && !status);
    close(others[0]);
    close(others[1]);
    close(stays);
    close(goes);
}

static void rounds_of(enum traffic traffic, enum verb verb)
{
    const char *seed = getenv("PVRDMA_SEED"), *rounds = getenv("PVRDMA_ROUNDS");
    srand(seed ? (unsigned)atol(seed) : 1);
    for (int i = 0; i < (rounds ? atoi(rounds) : 1); i++)
        round_of(traffic, verb);
}

#define CASE(traffic, verb)                                                                                            \
    static void traffic##_##verb(void)                                                                                 \
    {                                                                                                                  \
        rounds_of(traffic, verb);                                                                                      \
    }
#define EACH_VERB(traffic) CASE(traffic, DEREG) CASE(traffic, DESTROY) CASE(traffic, RESET) CASE(traffic, ERROR)

EACH_VERB(WRITES)
EACH_VERB(READS)
EACH_VERB(SENDS)
EACH_VERB(COUNTS)

#define ROW(name, traffic, verb) {name, traffic##_##verb}
#define ROWS(name, traffic)                                                                                            \
    ROW(name "-dereg", traffic, DEREG), ROW(name "-destroy", traffic, DESTROY), ROW(name "-reset", traffic, RESET),    \
        ROW(name "-error", traffic, ERROR)

static const struct test_case CASES[] = {ROWS("writes", WRITES), ROWS("reads", READS), ROWS("sends", SENDS),
                                         ROWS("counts", COUNTS)};

int main(int argc, char **argv)
{
    return run_cases(CASES, sizeof(CASES) / sizeof(*CASES), argc, argv);
}

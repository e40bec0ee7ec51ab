/*
 * Programs that make children while the device is open, in every way there is, and children that open it themselves.
 *
 * A child cannot use what it inherits of the device, as with real hardware; the parent must not notice what it does
 * with it. `fork WAYS...` runs cases; `fork child` is what the cases start by exec: it opens the device and moves data.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "rc.h"

extern char **environ;

struct pair {
    struct device device;
    struct end a, b;
};

static struct pair open_pair(void)
{
    struct pair pair = {.device = open_device()};
    pair.a = open_end(&pair.device, (struct shape){.length = 65536});
    pair.b = open_end(&pair.device, (struct shape){.length = 65536});
    connect_ends(&pair.device, &pair.a, &pair.b, USUAL);
    return pair;
}

static void close_pair(struct pair *pair)
{
    close_end(&pair->a);
    close_end(&pair->b);
    close_device(&pair->device);
}

static void move(struct pair *pair)
{
    static _Thread_local uint32_t round;
    for (int i = 0; i < 20; i++, round++) {
        fill(pair->a.buffer, 4096, round);
        post_recv(&pair->b, i, 0, 4096);
        struct ibv_sge sge = sge_of(&pair->a, 0, 4096);
        struct ibv_send_wr wr = {
            .wr_id = i, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .sg_list = &sge, .num_sge = 1};
        post_send(&pair->a, &wr);
        expect_wc(&pair->a, i, IBV_WC_SUCCESS);
        expect_wc(&pair->b, i, IBV_WC_SUCCESS);
        expect_bytes(pair->b.buffer, 4096, round);
    }
}

/* What a child with a device of its own does. */
static void open_and_move(void)
{
    struct pair pair = open_pair();
    move(&pair);
    close_pair(&pair);
}

static int status_of(pid_t child)
{
    int status;
    CHECK(child > 0);
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

static void expect_good(pid_t child)
{
    int status = status_of(child);
    CHECK(status == 0, "the child ended with %x", status);
}

/* Runs `body` in a child of fork, which ends by exit and so runs what is registered for it. */
static pid_t in_child(void (*body)(void))
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        body();
        exit(0);
    }
    return child;
}

static void nothing(void) {}

/* ---- children with a device of their own ---- */

static void child_opens(void)
{
    struct pair pair = open_pair();
    move(&pair);
    for (int i = 0; i < 5; i++) {
        pid_t child = in_child(open_and_move);
        move(&pair);
        expect_good(child);
        move(&pair);
    }
    close_pair(&pair);
}

static void child_forks_and_opens(void)
{
    struct pair pair = open_pair();
    move(&pair);
    expect_good(in_child(open_and_move));
    expect_good(in_child(nothing));
    move(&pair);
    close_pair(&pair);
}

/* The device goes down through the generations. */
static void grandchild_opens(void)
{
    struct pair pair = open_pair();
    pid_t child = in_child(child_forks_and_opens);
    move(&pair);
    expect_good(child);
    move(&pair);
    close_pair(&pair);
}

static void many_children(void)
{
    pid_t children[12];
    struct pair pair = open_pair();
    for (int i = 0; i < 12; i++)
        children[i] = in_child(open_and_move);
    move(&pair);
    for (int i = 0; i < 12; i++)
        expect_good(children[i]);
    move(&pair);
    close_pair(&pair);
}

static void fork_before_open(void)
{
    pid_t child = in_child(open_and_move);
    open_and_move();
    expect_good(child);
}

/* Made by the bare system call: no handler of the C library runs. */
static void bare_fork(void)
{
    struct pair pair = open_pair();
    move(&pair);
    pid_t child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    CHECK(child >= 0);
    if (!child) {
        open_and_move();
        exit(0);
    }
    move(&pair);
    expect_good(child);
    move(&pair);
    close_pair(&pair);
}

/* Parent and child move data between them, each on its own device. */
static void parent_and_child_talk(void)
{
    struct address {
        uint32_t qp_num;
        union ibv_gid gid;
    } mine, theirs;
    int down[2], up[2];
    char done = 1;
    struct pair before = open_pair();
    CHECK(!pipe(down) && !pipe(up));
    pid_t child = fork();
    CHECK(child >= 0);
    int in = child ? up[0] : down[0], out = child ? down[1] : up[1];
    close(child ? up[1] : down[1]);
    close(child ? down[0] : up[0]);

    struct device device = open_device();
    struct end end = open_end(&device, (struct shape){.length = 65536, .events = 1});
    mine = (struct address){end.qp->qp_num, device.gid};
    CHECK(write(out, &mine, sizeof(mine)) == sizeof(mine));
    CHECK(read(in, &theirs, sizeof(theirs)) == sizeof(theirs));
    CHECK(mine.qp_num != theirs.qp_num);
    to_init(&end);
    for (int i = 0; i < 10; i++)
        post_recv(&end, 100 + i, 4096, 4096);
    to_rtr(&end, theirs.qp_num, theirs.gid);
    to_rts(&end, USUAL);
    CHECK(write(out, &done, 1) == 1 && read(in, &done, 1) == 1);
    for (int i = 0; i < 10; i++) {
        /* Asleep on the channel: the child has a side thread of its own. */
        struct ibv_wc wc;
        struct ibv_cq *cq;
        void *context;
        int n = 0;
        fill(end.buffer, 4096, i + (child ? 0 : 1000));
        struct ibv_sge sge = sge_of(&end, 0, 4096);
        struct ibv_send_wr wr = {
            .wr_id = i, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .sg_list = &sge, .num_sge = 1};
        post_send(&end, &wr);
        while (n < 2) {
            CHECK(!ibv_req_notify_cq(end.cq, 0));
            int got = ibv_poll_cq(end.cq, 1, &wc);
            CHECK(got >= 0);
            if (got) {
                CHECK(wc.status == IBV_WC_SUCCESS, "%s", ibv_wc_status_str(wc.status));
                n++;
                continue;
            }
            CHECK(!ibv_get_cq_event(end.channel, &cq, &context));
            ibv_ack_cq_events(cq, 1);
        }
        expect_bytes(end.buffer + 4096, 4096, i + (child ? 1000 : 0));
        CHECK(write(out, &done, 1) == 1 && read(in, &done, 1) == 1);
    }
    close_end(&end);
    close_device(&device);
    if (!child)
        exit(0);
    expect_good(child);
    move(&before);
    close_pair(&before);
    CHECK(!close(in) && !close(out));
}

static volatile int stop;
static struct ibv_device *known;

/* As open_and_move, but without ibv_get_device_list: libibverbs has a lock of its own around that one, and a child that
 * is made while another thread holds it would wait for ever, with any device. */
static void open_known_and_move(void)
{
    struct pair pair = {0};
    pair.device.context = ibv_open_device(known);
    CHECK(pair.device.context);
    pair.device.pd = ibv_alloc_pd(pair.device.context);
    CHECK(pair.device.pd);
    CHECK(!ibv_query_gid(pair.device.context, 1, gid_index, &pair.device.gid));
    pair.a = open_end(&pair.device, (struct shape){.length = 65536});
    pair.b = open_end(&pair.device, (struct shape){.length = 65536});
    connect_ends(&pair.device, &pair.a, &pair.b, USUAL);
    move(&pair);
    close_pair(&pair);
}

static void *move_in_thread(void *argument)
{
    (void)argument;
    while (!stop)
        open_known_and_move();
    return NULL;
}

/* Children of a program whose other threads open, use and close the device at that moment, whatever locks they hold. */
static void fork_among_threads(void)
{
    pthread_t threads[4];
    stop = 0;
    struct pair pair = open_pair();
    known = pair.device.context->device;
    for (int i = 0; i < 4; i++)
        CHECK(!pthread_create(&threads[i], NULL, move_in_thread, NULL));
    for (int i = 0; i < 25; i++) {
        pid_t child = in_child(i % 2 ? nothing : open_known_and_move);
        move(&pair);
        expect_good(child);
    }
    stop = 1;
    for (int i = 0; i < 4; i++)
        CHECK(!pthread_join(threads[i], NULL));
    close_pair(&pair);
}

/* ---- what a child does with what it inherits ---- */

static struct pair inherited;

static void use_commands(void)
{
    CHECK(!ibv_alloc_pd(inherited.device.context));
    CHECK(!ibv_create_cq(inherited.device.context, 8, NULL, NULL, 0));
    CHECK(!ibv_create_comp_channel(inherited.device.context));
    static char bytes[4096];
    CHECK(!ibv_reg_mr(inherited.device.pd, bytes, sizeof(bytes), 0));
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
    CHECK(ibv_modify_qp(inherited.a.qp, &attr, IBV_QP_STATE));
    CHECK(ibv_dereg_mr(inherited.a.mr));
    CHECK(ibv_dealloc_pd(inherited.device.pd));
}

/* Commands on an inherited context fail; none of them reaches the parent's objects. */
static void inherited_commands(void)
{
    inherited = open_pair();
    move(&inherited);
    expect_good(in_child(use_commands));
    move(&inherited);
    close_pair(&inherited);
}

static void ring(void)
{
    struct ibv_sge sge = sge_of(&inherited.a, 0, 8);
    struct ibv_send_wr wr = {.opcode = IBV_WR_SEND, .sg_list = &sge, .num_sge = 1}, *bad;
    ibv_post_send(inherited.a.qp, &wr, &bad);
}

static void open_and_ring(void)
{
    open_and_move();
    ring();
}

/* The kernel does not give the doorbell page to a child: a store to it is a fault. */
static void inherited_doorbell(void)
{
    inherited = open_pair();
    move(&inherited);
    int status = status_of(in_child(ring));
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "the child ended with %x", status);
    status = status_of(in_child(open_and_ring));
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "the child ended with %x", status);
    move(&inherited);
    close_pair(&inherited);
}

static void close_everything(void)
{
    for (int fd = 3; fd < 1024; fd++)
        close(fd);
    closefrom(3);
}

static void close_and_open(void)
{
    close_everything();
    open_and_move();
}

static void close_device_only(void)
{
    /* munmap of a page that is not there, and three closes. */
    CHECK(!ibv_close_device(inherited.device.context));
}

static void closed_by_child(void)
{
    inherited = open_pair();
    move(&inherited);
    expect_good(in_child(close_everything));
    move(&inherited);
    expect_good(in_child(close_and_open));
    move(&inherited);
    expect_good(in_child(close_device_only));
    move(&inherited);
    close_pair(&inherited);
}

/* A child of vfork runs in the parent's memory, with descriptors of its own. */
static void vforked(void)
{
    struct pair pair = open_pair();
    move(&pair);
    for (int i = 0; i < 5; i++) {
        pid_t child = vfork();
        CHECK(child >= 0);
        if (!child) {
            for (int fd = 3; fd < 64; fd++)
                close(fd);
            closefrom(3);
            dup2(1, 20);
            _exit(0);
        }
        expect_good(child);
        move(&pair);
    }
    close_pair(&pair);
}

/* ---- other programs ---- */

static char *const CHILD[] = {"/proc/self/exe", "child", NULL};

static void exec_child(void)
{
    execv(CHILD[0], CHILD);
}

static void programs(void)
{
    struct pair pair = open_pair();
    char self[4096] = {0}, text[16] = {0}, line[8192];
    CHECK(readlink("/proc/self/exe", self, sizeof(self) - 1) > 0);
    move(&pair);

    expect_good(in_child(exec_child));
    move(&pair);

    pid_t child = vfork();
    CHECK(child >= 0);
    if (!child) {
        execv(self, CHILD);
        _exit(9);
    }
    expect_good(child);
    move(&pair);

    posix_spawn_file_actions_t actions;
    CHECK(!posix_spawn_file_actions_init(&actions));
    CHECK(!posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0));
    CHECK(!posix_spawn_file_actions_adddup2(&actions, 2, 30));
    CHECK(!posix_spawn_file_actions_addclosefrom_np(&actions, 31));
    CHECK(!posix_spawn(&child, self, &actions, NULL, CHILD, environ));
    expect_good(child);
    CHECK(!posix_spawn_file_actions_destroy(&actions));
    move(&pair);

    snprintf(line, sizeof(line), "'%s' child", self);
    CHECK(system(line) == 0);
    move(&pair);

    snprintf(line, sizeof(line), "'%s' child && echo good", self);
    FILE *stream = popen(line, "r");
    CHECK(stream && fgets(text, sizeof(text), stream) && !strcmp(text, "good\n"), "%s", text);
    CHECK(!pclose(stream));
    move(&pair);
    close_pair(&pair);
}

/* A program that becomes another one: its region goes to its successor. */
static void exec_with_open_device(void)
{
    struct pair pair = open_pair();
    move(&pair);
    /* Some programs clear it so that a successor inherits; it can do nothing with the descriptor. */
    CHECK(!fcntl(pair.device.context->cmd_fd, F_SETFD, 0));
    exec_child();
    CHECK(0, "exec came back");
}

static void exec_in_child(void)
{
    struct pair pair = open_pair();
    expect_good(in_child(exec_with_open_device));
    move(&pair);
    close_pair(&pair);
}

static const struct test_case CASES[] = {
    {"child_opens", child_opens},
    {"grandchild_opens", grandchild_opens},
    {"many_children", many_children},
    {"fork_before_open", fork_before_open},
    {"bare_fork", bare_fork},
    {"parent_and_child_talk", parent_and_child_talk},
    {"fork_among_threads", fork_among_threads},
    {"inherited_commands", inherited_commands},
    {"inherited_doorbell", inherited_doorbell},
    {"closed_by_child", closed_by_child},
    {"vforked", vforked},
    {"programs", programs},
    {"exec_in_child", exec_in_child},
};

static void say(const char *folder, const char *name)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    CHECK(fd >= 0 && !close(fd));
}

static void wait_for(const char *folder, const char *name)
{
    char path[4096];
    double limit = now_ms() + 30000;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    while (access(path, F_OK)) {
        CHECK(now_ms() < limit, "nobody made %s", path);
        usleep(1000);
    }
}

/* fork daemon FOLDER: as daemons begin, the parent ends and the child closes what it inherited. It waits for the file
 * "start", opens the device, makes the file "open", waits for the file "go", moves data and makes the file "moved". */
static int daemon_mode(const char *folder)
{
    struct pair pair = open_pair();
    move(&pair);
    pid_t parent = getpid();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child) {
        /* Whoever started this one may end its session. */
        wait_for(folder, "alone");
        exit(0);
    }
    CHECK(setsid() > 0);
    say(folder, "alone");
    while (getppid() == parent)
        usleep(1000);
    close_everything();
    wait_for(folder, "start");
    struct pair own = open_pair();
    move(&own);
    say(folder, "open");
    wait_for(folder, "go");
    move(&own);
    open_and_move();
    close_pair(&own);
    say(folder, "moved");
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "child")) {
        open_and_move();
        return 0;
    }
    if (argc == 3 && !strcmp(argv[1], "daemon"))
        return daemon_mode(argv[2]);
    return run_cases(CASES, sizeof(CASES) / sizeof(CASES[0]), argc, argv);
}

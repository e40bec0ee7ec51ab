/*
 * Doorbells at declared sites, which the stand-in may take without a trap. Our provider has some, and so have
 * libraries: OWN_LIBRARY (tests/c/site_own.c) is there all the time, SITE_LIBRARY, OTHER_LIBRARY and MANY_LIBRARY
 * (tests/c/site_lib.c) come and go.
 *
 * The stand-in's hooks tell by which way doorbells came.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <execinfo.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "rc.h"
#include "site.h"

static struct device device;
static struct end a, b;
static const struct own_sites *own;

/* Opens a library that the environment names. */
static void *open_library(const char *variable)
{
    const char *path = getenv(variable);
    CHECK(path, "%s names no library", variable);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    CHECK(library, "%s", dlerror());
    return library;
}

static void open_pair(void)
{
    open_both(&device, &a, &b, (struct shape){.length = 65536}, USUAL);
}

static void close_pair(void)
{
    close_both(&device, &a, &b);
}

/* One more doorbell page of the context. Sites that were not taken before are taken now. */
static uint32_t *new_page(void)
{
    uint32_t *page = mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, device.context->cmd_fd, 0);
    CHECK(page != MAP_FAILED);
    return page;
}

static void *hook(const char *name)
{
    void *function = dlsym(RTLD_DEFAULT, name);
    CHECK(function, "%s is not there", name);
    return function;
}

static long count(const char *kind)
{
    long (*doorbells)(const char *) = (long (*)(const char *))hook("pvrdma_hook_doorbells");
    long found = doorbells(kind);
    CHECK(found >= 0, "hooks are refused");
    return found;
}

/* From inside the device, at the next doorbell of that kind. */
static void call_at(const char *kind, void (*function)(void *))
{
    int (*call)(const char *, void (*)(void *), void *) =
        (int (*)(const char *, void (*)(void *), void *))hook("pvrdma_hook_call");
    CHECK(!call(kind, function, NULL));
}

/* What came since `begin_count`, which must be this much. */
static long sites_before, traps_before;

static void begin_count(void)
{
    sites_before = count("site");
    traps_before = count("trap");
}

static void expect_ways(long by_site, long by_trap)
{
    long sites = count("site") - sites_before, traps = count("trap") - traps_before;
    CHECK(sites == by_site && traps == by_trap, "%ld by a site and %ld by the trap, not %ld and %ld", sites, traps,
          by_site, by_trap);
    begin_count();
}

/* ---- what a doorbell leaves as it was ---- */

#define ROUNDS 2000

/* Carry, parity, auxiliary carry, zero, sign, direction, overflow; bit 1 and the interrupt flag are always set. */
#define FLAGS 0xcd5u

static void ring_and_compare(const struct through *through, uint32_t *page, uint32_t round, int with_vectors)
{
    struct state *before = own->before, *after = own->after;
    uint8_t *bytes = (uint8_t *)before;
    for (size_t i = 0; i < sizeof *before; i++)
        bytes[i] = (uint8_t)((i + 1) * 2654435761u * (round + 1) >> 11);
    before->flags = 0x202 | (0x9e3779b1u * (round + 1) >> 7 & FLAGS);
    before->registers[through->page] = (uintptr_t)page;
    before->registers[through->value] = before->registers[through->value] << 32 | through->rung;
    /* Other roundings, flush to zero, some exception flags, every exception masked. */
    before->mxcsr = 0x1f80 | (round & 3) << 13 | (round & 4 ? 0x8000 : 0) | (round & 0x3f);
    before->control = 0x007f | (round & 3) << 10;
    long heard = count(through->kind);
    through->ring();
    CHECK(count(through->kind) == heard + 1, "no %s was heard", through->kind);
    for (int n = 0; n < 16; n++)
        CHECK(n == 4 || after->registers[n] == before->registers[n], "register %d", n);
    CHECK((after->flags & FLAGS) == (before->flags & FLAGS), "flags %#lx, not %#lx", after->flags, before->flags);
    CHECK(!memcmp(after->red_zone, before->red_zone, sizeof after->red_zone), "the red zone");
    CHECK(after->mxcsr == before->mxcsr, "mxcsr %#x, not %#x", after->mxcsr, before->mxcsr);
    CHECK((after->control & 0xf7f) == (before->control & 0xf7f), "x87 control %#x", after->control);
    CHECK(!with_vectors || !memcmp(after->vectors, before->vectors, sizeof after->vectors), "vectors");
}

static void registers(void)
{
    device = open_device();
    uint32_t *page = new_page();
    begin_count();
    for (uint32_t round = 0; round < ROUNDS; round++)
        for (size_t n = 0; n < own->through_cnt; n++)
            ring_and_compare(&own->throughs[n], page, round, 0);
    expect_ways(ROUNDS * own->through_cnt, 0);
    close_device(&device);
}

/* The same by the trap, which keeps all there is. */
static void registers_trapped(void)
{
    device = open_device();
    uint32_t *page = new_page();
    begin_count();
    for (uint32_t round = 0; round < ROUNDS; round++)
        for (size_t n = 0; n < own->through_cnt; n++)
            ring_and_compare(&own->throughs[n], page, round, 1);
    expect_ways(0, ROUNDS * own->through_cnt);
    close_device(&device);
}

/* Who does not say that vectors may change has them kept. */
static void undeclared_vectors(void)
{
    device = open_device();
    uint32_t *page = new_page();
    begin_count();
    for (uint32_t round = 0; round < ROUNDS; round++)
        ring_and_compare(&own->undeclared, page, round, 1);
    expect_ways(0, ROUNDS);
    close_device(&device);
}

/* Where the program is, seen from inside the device. */
static uintptr_t seen_from_inside[64];
static int seen;

static void look_out(void *argument)
{
    (void)argument;
    void *found[64];
    seen = backtrace(found, 64);
    for (int n = 0; n < seen; n++)
        seen_from_inside[n] = (uintptr_t)found[n];
}

static void backtrace_leads_out(void)
{
    device = open_device();
    uint32_t *page = new_page();
    void *warm[2];
    backtrace(warm, 2);
    call_at("send", look_out);
    own->ring(page, SEND_NOBODY);
    int inside = -1;
    for (int n = 0; n < seen; n++)
        if (seen_from_inside[n] - (uintptr_t)own->ring < 64)
            inside = n;
    CHECK(inside >= 0, "%d frames, none of them the one that rang", seen);
    CHECK(inside + 2 < seen, "the callers of the one that rang are missing");
    close_device(&device);
}

/* The device computes as usual, however the program rounds. */
static unsigned mxcsr_inside;

static void look_at_mxcsr(void *argument)
{
    (void)argument;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr_inside));
}

static void rounding_inside(void)
{
    unsigned usual, downwards = 0x3f80, found;
    device = open_device();
    uint32_t *page = new_page();
    call_at("send", look_at_mxcsr);
    __asm__ volatile("stmxcsr %0" : "=m"(usual));
    __asm__ volatile("ldmxcsr %0" ::"m"(downwards));
    own->ring(page, SEND_NOBODY);
    __asm__ volatile("stmxcsr %0" : "=m"(found));
    __asm__ volatile("ldmxcsr %0" ::"m"(usual));
    CHECK(found == downwards && mxcsr_inside == usual, "%#x, inside %#x", found, mxcsr_inside);
    close_device(&device);
}

/* Room that no frame of a signal and no small stack has. */
static __attribute__((noinline)) void use_stack(void *argument)
{
    volatile uint8_t room[24 << 10];
    (void)argument;
    for (size_t i = 0; i < sizeof room; i++)
        room[i] = 0xaa;
}

/* The device finds no memory for a stack of its own at the first doorbell, and takes what there is. */
static void no_memory(void)
{
    struct rlimit all, none;
    device = open_device();
    uint32_t *page = new_page();
    call_at("send", use_stack);
    begin_count();
    CHECK(!getrlimit(RLIMIT_AS, &all));
    none = (struct rlimit){.rlim_cur = 0, .rlim_max = all.rlim_max};
    CHECK(!setrlimit(RLIMIT_AS, &none));
    own->ring(page, SEND_NOBODY);
    CHECK(!setrlimit(RLIMIT_AS, &all));
    CHECK(count("site") + count("trap") == sites_before + traps_before + 1);
    close_device(&device);
}

/* The same in a program with the least signal stack, which is the last place to take. */
static void no_memory_small_signal_stack(void)
{
    long page = sysconf(_SC_PAGESIZE), least = sysconf(_SC_MINSIGSTKSZ);
    size_t room = (least + page - 1) / page * page;
    uint8_t *place = mmap(NULL, page + room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(place != MAP_FAILED);
    CHECK(!mprotect(place + page, room, PROT_READ | PROT_WRITE));
    stack_t stack = {.ss_sp = place + page, .ss_size = least};
    CHECK(!sigaltstack(&stack, NULL));
    no_memory();
}

/* ---- which way ---- */

/* Our provider's doorbells, all of them, and in every thread. */
static void *move_some(void *argument)
{
    move_between(&a, &b, 50, (uint32_t)(uintptr_t)argument);
    return NULL;
}

static void provider_by_site(void)
{
    pthread_t thread;
    open_pair();
    begin_count();
    move_some(NULL);
    CHECK(!pthread_create(&thread, NULL, move_some, (void *)50));
    CHECK(!pthread_join(thread, NULL));
    CHECK(count("trap") == traps_before, "%ld doorbells were trapped", count("trap") - traps_before);
    CHECK(count("site") >= sites_before + 200, "%ld doorbells in all", count("site") - sites_before);
    close_pair();
}

static void provider_by_trap(void)
{
    open_pair();
    begin_count();
    move_some(NULL);
    CHECK(count("site") == sites_before, "%ld doorbells were not trapped", count("site") - sites_before);
    CHECK(count("trap") >= traps_before + 100, "%ld doorbells in all", count("trap") - traps_before);
    close_pair();
}

/* A store to memory that is no doorbell page is a store. */
static void plain_memory(void)
{
    uint32_t words[2] = {1, 2};
    device = open_device();
    uint32_t *page = new_page();
    begin_count();
    own->ring(&words[0], 77);
    expect_ways(0, 0);
    CHECK(words[0] == 77 && words[1] == 2, "%u %u", words[0], words[1]);
    own->ring(page, SEND_NOBODY);
    expect_ways(1, 0);
    /* What was a doorbell page. */
    CHECK(!munmap(page, 4096));
    CHECK(mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page);
    own->ring(page, 78);
    expect_ways(0, 0);
    CHECK(page[0] == 78);
    close_device(&device);
}

/* A site in the program itself, 2 GiB and more from the stand-in. */
static void out_of_reach(void)
{
    device = open_device();
    uint32_t *page = new_page();
    begin_count();
    __asm__ volatile(DOORBELL("%%ecx", "%%rax", "0")::"a"(page), "c"(SEND_NOBODY) : CLOBBERED);
    expect_ways(0, 1);
    close_device(&device);
}

/* ---- text that must not become writable ---- */

/* Has mprotect fail if its protection has all the bits of `denied`. */
static void deny_mprotect(unsigned denied)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, denied),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, denied, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EACCES),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static void denied_write_and_execute(void)
{
    deny_mprotect(PROT_WRITE | PROT_EXEC);
    provider_by_trap();
}

/* As systemd's MemoryDenyWriteExecute: the way back would be denied too. */
static void denied_execute(void)
{
    deny_mprotect(PROT_EXEC);
    provider_by_trap();
}

static void denied_by_prctl(void)
{
    const int set_mdwe = 65, refuse_exec_gain = 1;
    if (prctl(set_mdwe, refuse_exec_gain, 0, 0, 0)) {
        CHECK(errno == EINVAL);
        puts("NOT RUN: no PR_SET_MDWE before Linux 6.3");
        return;
    }
    provider_by_trap();
}

/* ---- others who write to the place ---- */

/* The nop of `own->ring`: its first byte, and the five behind it, are known. */
static uint8_t *nop_of_ring(void)
{
    static const uint8_t NOP[] = {0x48, 0x0f, 0x1f, 0x44, 0x00, 0x00};
    uint8_t *found = memmem((void *)own->ring, 64, NOP, sizeof NOP);
    CHECK(found, "no nop");
    return found;
}

static void put_byte(uint8_t *at, uint8_t byte)
{
    uint8_t *page = (uint8_t *)((uintptr_t)at & ~4095ul);
    CHECK(!mprotect(page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC));
    *at = byte;
    CHECK(!mprotect(page, 4096, PROT_READ | PROT_EXEC));
}

/* A debugger's breakpoint, there before the device is opened: left alone. */
static void breakpoint_before(void)
{
    uint8_t *nop = nop_of_ring(), with[6];
    put_byte(nop, 0xcc);
    memcpy(with, nop, 6);
    device = open_device();
    uint32_t *page = new_page();
    CHECK(!memcmp(with, nop, 6), "somebody's bytes were changed");
    put_byte(nop, 0x48);
    begin_count();
    own->ring(page, SEND_NOBODY);
    expect_ways(0, 1);
    /* The next page that is mapped finds the nop. */
    new_page();
    own->ring(page, SEND_NOBODY);
    expect_ways(1, 0);
    close_device(&device);
}

/* One on a taken site, and pages are mapped meanwhile. */
static void breakpoint_after(void)
{
    uint8_t *nop = nop_of_ring(), jump[6];
    device = open_device();
    uint32_t *page = new_page();
    memcpy(jump, nop, 6);
    CHECK(jump[0] == 0x48 && jump[1] == 0xe9, "no jump: %02x %02x", jump[0], jump[1]);
    put_byte(nop, 0xcc);
    new_page();
    CHECK(nop[0] == 0xcc && !memcmp(nop + 1, jump + 1, 5), "somebody's bytes were changed");
    /* Its owner puts back what was there, or what is in the file: the same byte. */
    put_byte(nop, 0x48);
    begin_count();
    own->ring(page, SEND_NOBODY);
    new_page();
    own->ring(page, SEND_NOBODY);
    expect_ways(2, 0);
    close_device(&device);
}

/* ---- objects that come and go ---- */

struct library {
    void *handle;
    void (*ring_all)(uint32_t *, uint32_t);
    int sites;
};

static struct library load(const char *variable)
{
    struct library library = {.handle = open_library(variable)};
    library.ring_all = (void (*)(uint32_t *, uint32_t))dlsym(library.handle, "ring_all");
    int (*sites)(void) = (int (*)(void))dlsym(library.handle, "sites");
    CHECK(library.ring_all && sites);
    library.sites = sites();
    return library;
}

static void reloaded(void)
{
    device = open_device();
    uint32_t *page = new_page();
    begin_count();
    /* Many more than there are stubs. */
    for (int round = 0; round < 100; round++) {
        struct library library = load("SITE_LIBRARY");
        /* Not seen yet. */
        library.ring_all(page, SEND_NOBODY);
        expect_ways(0, library.sites);
        uint32_t *other = new_page();
        library.ring_all(page, SEND_NOBODY);
        library.ring_all(other, SEND_NOBODY);
        expect_ways(2 * library.sites, 0);
        CHECK(!munmap(other, 4096));
        CHECK(!dlclose(library.handle));
        /* The next one comes to the same place, or, with that occupied, to another. */
        void *place = (void *)((uintptr_t)library.ring_all & ~4095ul);
        if (round % 2)
            CHECK(mmap(place, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == place);
        if (round % 3 == 0)
            CHECK(!munmap(new_page(), 4096));
    }
    close_device(&device);
}

/* Another library where one was, and both at once. */
static void several_libraries(void)
{
    device = open_device();
    uint32_t *page = new_page();
    for (int round = 0; round < 10; round++) {
        struct library one = load(round % 2 ? "SITE_LIBRARY" : "OTHER_LIBRARY");
        CHECK(!munmap(new_page(), 4096));
        begin_count();
        one.ring_all(page, SEND_NOBODY);
        expect_ways(one.sites, 0);
        struct library two = load(round % 2 ? "OTHER_LIBRARY" : "SITE_LIBRARY");
        CHECK(!munmap(new_page(), 4096));
        two.ring_all(page, SEND_NOBODY);
        one.ring_all(page, SEND_NOBODY);
        own->ring(page, SEND_NOBODY);
        expect_ways(one.sites + two.sites + 1, 0);
        CHECK(!dlclose(one.handle));
        CHECK(!dlclose(two.handle));
    }
    close_device(&device);
}

/* More sites than stubs: all ring, each one once, and those that were taken first stay. */
static void too_many(void)
{
    device = open_device();
    struct library library = load("MANY_LIBRARY");
    uint32_t *page = new_page();
    begin_count();
    own->ring(page, SEND_NOBODY);
    expect_ways(1, 0);
    library.ring_all(page, SEND_NOBODY);
    long sites = count("site") - sites_before, traps = count("trap") - traps_before;
    CHECK(sites > 0 && traps > 0 && sites + traps == library.sites, "%ld + %ld", sites, traps);
    CHECK(sites < 64);
    close_device(&device);
}

/* ---- threads ---- */

static struct library under_way;
static uint32_t *early_page;
static volatile int stop;
static _Atomic long rung;

static void *ring_until_stopped(void *argument)
{
    (void)argument;
    while (!stop) {
        under_way.ring_all(early_page, SEND_NOBODY);
        rung += under_way.sites;
    }
    return NULL;
}

/* Sites are taken while threads run through them: no doorbell is lost, none comes twice. */
static void taken_under_way(void)
{
    pthread_t threads[2];
    device = open_device();
    early_page = new_page();
    for (int round = 0; round < 30; round++) {
        under_way = load("SITE_LIBRARY");
        begin_count();
        stop = 0;
        rung = 0;
        for (int n = 0; n < 2; n++)
            CHECK(!pthread_create(&threads[n], NULL, ring_until_stopped, NULL));
        while (rung < 10 * under_way.sites)
            sched_yield();
        CHECK(count("site") == sites_before);
        CHECK(!munmap(new_page(), 4096));
        while (count("site") < sites_before + 20 * under_way.sites)
            sched_yield();
        stop = 1;
        for (int n = 0; n < 2; n++)
            CHECK(!pthread_join(threads[n], NULL));
        long came = count("site") - sites_before + count("trap") - traps_before;
        CHECK(came == rung, "%ld came, %ld were rung", came, rung);
        CHECK(!dlclose(under_way.handle));
    }
    close_device(&device);
}

/* ---- signals ---- */

static struct end c, d;
static volatile sig_atomic_t fired, moved;

/* One write between two ends that the rest of the program leaves alone. */
static void post_in_handler(int signal)
{
    (void)signal;
    struct ibv_sge sge = sge_of(&c, 0, 8);
    struct ibv_send_wr wr = work_to(&d, IBV_WR_RDMA_WRITE, 7, &sge), *bad;
    struct ibv_wc wc;
    fired++;
    if (!ibv_post_send(c.qp, &wr, &bad))
        while (!ibv_poll_cq(c.cq, 1, &wc))
            ;
    moved += wc.status == IBV_WC_SUCCESS;
}

static void set_raw(void (*handler)(int))
{
    struct {
        void (*handler)(int);
        unsigned long flags;
        void *restorer;
        unsigned long mask;
    } action, none;
    struct sigaction usual = {.sa_handler = handler};
    /* The C library's restorer, which a raw call needs too. */
    CHECK(!sigaction(SIGALRM, &usual, NULL));
    CHECK(!syscall(SYS_rt_sigaction, SIGALRM, NULL, &action, 8));
    CHECK(!sigaction(SIGALRM, &(struct sigaction){.sa_handler = SIG_DFL}, NULL));
    CHECK(!syscall(SYS_rt_sigaction, SIGALRM, &action, &none, 8));
}

enum when { BEFORE, AFTER, RAW };

/* A handler that rings, at any moment of a program that rings, also inside its doorbells. */
static void handler_that_posts(enum when when)
{
    struct sigaction action = {.sa_handler = post_in_handler};
    if (when == BEFORE)
        CHECK(!sigaction(SIGALRM, &action, NULL));
    open_pair();
    c = open_end(&device, (struct shape){.length = 65536});
    d = open_end(&device, (struct shape){.length = 65536});
    connect_ends(&device, &c, &d, USUAL);
    if (when == AFTER)
        CHECK(!sigaction(SIGALRM, &action, NULL));
    if (when == RAW)
        set_raw(post_in_handler);
    begin_count();
    struct itimerval timer = {{0, 173}, {0, 173}};
    CHECK(!setitimer(ITIMER_REAL, &timer, NULL));
    while (fired < 2000)
        move_between(&a, &b, 10, fired);
    timer = (struct itimerval){0};
    CHECK(!setitimer(ITIMER_REAL, &timer, NULL));
    CHECK(fired == moved, "%d of %d writes of the handler", moved, fired);
    CHECK(count("trap") == traps_before && count("site") > sites_before + fired);
    close_end(&c);
    close_end(&d);
    close_pair();
}

static void handler_before(void)
{
    handler_that_posts(BEFORE);
}

static void handler_after(void)
{
    handler_that_posts(AFTER);
}

static void handler_raw(void)
{
    handler_that_posts(RAW);
}

static void set_errno(void *argument)
{
    (void)argument;
    errno = 5;
}

/* No signal is blocked behind a doorbell that was not before, and none is open that was blocked. */
static void masks_stay(void)
{
    sigset_t some, before_it, after_it;
    device = open_device();
    uint32_t *page = new_page();
    sigemptyset(&some);
    sigaddset(&some, SIGUSR1);
    sigaddset(&some, SIGTERM);
    CHECK(!sigprocmask(SIG_SETMASK, &some, &before_it));
    begin_count();
    call_at("send", set_errno);
    errno = 4711;
    own->ring(page, SEND_NOBODY);
    CHECK(errno == 4711, "errno");
    expect_ways(1, 0);
    CHECK(!sigprocmask(SIG_SETMASK, &before_it, &after_it));
    for (int signal = 1; signal < 65; signal++)
        CHECK(sigismember(&some, signal) == sigismember(&after_it, signal), "signal %d", signal);
    close_device(&device);
}

/* ---- children ---- */

static void forked(void)
{
    int status;
    open_pair();
    uint32_t *page = new_page();
    begin_count();
    pid_t child = fork();
    if (!child) {
        own->ring(page, SEND_NOBODY);
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "status %#x", status);
    expect_ways(0, 0);
    child = fork();
    if (!child) {
        provider_by_site();
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && !WEXITSTATUS(status), "status %#x", status);
    own->ring(page, SEND_NOBODY);
    expect_ways(1, 0);
    close_pair();
}

static const struct test_case CASES[] = {
    {"registers", registers},
    {"registers_trapped", registers_trapped},
    {"undeclared_vectors", undeclared_vectors},
    {"backtrace_leads_out", backtrace_leads_out},
    {"rounding_inside", rounding_inside},
    {"no_memory", no_memory},
    {"no_memory_small_signal_stack", no_memory_small_signal_stack},
    {"provider_by_site", provider_by_site},
    {"provider_by_trap", provider_by_trap},
    {"plain_memory", plain_memory},
    {"out_of_reach", out_of_reach},
    {"denied_write_and_execute", denied_write_and_execute},
    {"denied_execute", denied_execute},
    {"denied_by_prctl", denied_by_prctl},
    {"breakpoint_before", breakpoint_before},
    {"breakpoint_after", breakpoint_after},
    {"reloaded", reloaded},
    {"several_libraries", several_libraries},
    {"too_many", too_many},
    {"taken_under_way", taken_under_way},
    {"handler_before", handler_before},
    {"handler_after", handler_after},
    {"handler_raw", handler_raw},
    {"masks_stay", masks_stay},
    {"forked", forked},
};

int main(int argc, char **argv)
{
    if (argc > 1)
        own = dlsym(open_library("OWN_LIBRARY"), "own_sites");
    CHECK(argc == 1 || own);
    return run_cases(CASES, sizeof CASES / sizeof *CASES, argc, argv);
}

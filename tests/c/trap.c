/*
 * Programs that treat SIGSEGV as their own, on a device whose doorbells may be trapped by it.
 *
 * Each case must move data before and after what it does to the signal.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "rc.h"

static struct device device;
static struct end a, b;
static uint32_t rounds_done;

static void open_pair(void)
{
    open_both(&device, &a, &b, (struct shape){.length = 65536}, USUAL);
}

static void close_pair(void)
{
    close_both(&device, &a, &b);
}

static void move(void)
{
    move_between(&a, &b, 50, rounds_done);
    rounds_done += 50;
}

/* ---- stacks ---- */

/* A signal stack of the least size, with nothing below it. */
static void small_signal_stack(void)
{
    long page = sysconf(_SC_PAGESIZE), least = sysconf(_SC_MINSIGSTKSZ);
    size_t room = (least + page - 1) / page * page;
    char *place = mmap(NULL, page + room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(place != MAP_FAILED);
    CHECK(!mprotect(place + page, room, PROT_READ | PROT_WRITE));
    stack_t stack = {.ss_sp = place + page, .ss_size = least};
    CHECK(!sigaltstack(&stack, NULL));
    open_pair();
    move();
    close_pair();
}

static void *move_in_thread(void *argument)
{
    (void)argument;
    move();
    return NULL;
}

/* A thread with the least stack. */
static void small_thread_stack(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    open_pair();
    CHECK(!pthread_attr_init(&attr));
    CHECK(!pthread_attr_setstacksize(&attr, sysconf(_SC_THREAD_STACK_MIN)));
    CHECK(!pthread_create(&thread, &attr, move_in_thread, NULL));
    CHECK(!pthread_join(thread, NULL));
    close_pair();
}

/* ---- blocked ---- */

static void blocked(void)
{
    sigset_t set;
    open_pair();
    move();
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    CHECK(!sigprocmask(SIG_BLOCK, &set, NULL));
    move();
    sigfillset(&set);
    CHECK(!sigprocmask(SIG_SETMASK, &set, NULL));
    move();
    close_pair();
}

/* The same by number, as runtimes do that have no C library's function for it. */
static void blocked_by_number(void)
{
    uint64_t all = ~0ull, before = 1, now;
    open_pair();
    CHECK(!syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, 8) && !(before & 1ull << (SIGSEGV - 1)));
    move();
    CHECK(!syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &now, 8));
    CHECK(now & 1ull << (SIGTERM - 1), "the rest of the mask is lost: %#llx", (unsigned long long)now);
    CHECK(syscall(SYS_rt_sigprocmask, SIG_SETMASK, (void *)8, NULL, 8) == -1 && errno == EFAULT);
    CHECK(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 16) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_rt_sigprocmask, 77, &all, NULL, 8) == -1 && errno == EINVAL);
    move();
    close_pair();
}

/* A thread that is started with all blocked. */
static void blocked_by_attribute(void)
{
#if __GLIBC_PREREQ(2, 32)
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t set;
    sigfillset(&set);
    open_pair();
    CHECK(!pthread_attr_init(&attr) && !pthread_attr_setsigmask_np(&attr, &set));
    CHECK(!pthread_create(&thread, &attr, move_in_thread, NULL));
    CHECK(!pthread_join(thread, NULL));
    close_pair();
#endif
}

static void *move_all_blocked(void *argument)
{
    sigset_t set;
    sigfillset(&set);
    CHECK(!pthread_sigmask(SIG_SETMASK, &set, NULL));
    return move_in_thread(argument);
}

static void blocked_in_thread(void)
{
    pthread_t thread;
    open_pair();
    CHECK(!pthread_create(&thread, NULL, move_all_blocked, NULL));
    CHECK(!pthread_join(thread, NULL));
    close_pair();
}

/* Blocked before the device is opened. */
static void blocked_before(void)
{
    sigset_t set;
    sigfillset(&set);
    CHECK(!sigprocmask(SIG_SETMASK, &set, NULL));
    open_pair();
    move();
    close_pair();
}

/* ---- handlers of the program ---- */

static sigjmp_buf back;
static volatile sig_atomic_t own_faults;

static void on_fault(int signal)
{
    CHECK(signal == SIGSEGV);
    own_faults++;
    siglongjmp(back, 1);
}

static void fault(void)
{
    static volatile int *volatile nowhere;
    if (!sigsetjmp(back, 1)) {
        *nowhere = 1;
        CHECK(0, "a store to address 0 came back");
    }
}

static void install(void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler}, old;
    CHECK(!sigaction(SIGSEGV, &action, NULL));
    CHECK(!sigaction(SIGSEGV, NULL, &old));
    CHECK(old.sa_handler == handler, "the handler that was set is not the one that is told");
}

/* Own faults reach the own handler, doorbells do not. Installed after the device was opened. */
static void handler_after(void)
{
    open_pair();
    install(on_fault);
    move();
    CHECK(own_faults == 0);
    fault();
    move();
    fault();
    CHECK(own_faults == 2, "%d own faults", (int)own_faults);
    close_pair();
    fault();
    CHECK(own_faults == 3);
}

static void handler_before(void)
{
    install(on_fault);
    open_pair();
    move();
    fault();
    move();
    CHECK(own_faults == 1, "%d own faults", (int)own_faults);
    close_pair();
}

/* The same by signal(), with the default and with "ignore" in between. */
static void signal_function(void)
{
    open_pair();
    CHECK(signal(SIGSEGV, on_fault) == SIG_DFL);
    move();
    fault();
    move();
    CHECK(signal(SIGSEGV, SIG_DFL) == on_fault);
    move();
    CHECK(signal(SIGSEGV, SIG_IGN) == SIG_DFL);
    move();
    CHECK(own_faults == 1);
    close_pair();
}

/* The kernel's struct sigaction. */
struct kernel_action {
    void (*handler)(int);
    unsigned long flags, restorer, mask;
};

/* The action by number: what is told is what was set, and the doorbells go on. */
static void action_by_number(void)
{
    struct kernel_action action = {.handler = on_fault, .flags = SA_NODEFER, .mask = ~0ul}, old;
    struct kernel_action none = {.handler = SIG_DFL};
    open_pair();
    CHECK(!syscall(SYS_rt_sigaction, SIGSEGV, &action, &old, 8) && old.handler == SIG_DFL);
    move();
    fault();
    move();
    CHECK(own_faults == 1);
    CHECK(!syscall(SYS_rt_sigaction, SIGSEGV, &none, &old, 8) && old.handler == on_fault);
    CHECK(syscall(SYS_rt_sigaction, SIGSEGV, (void *)8, NULL, 8) == -1 && errno == EFAULT);
    CHECK(syscall(SYS_rt_sigaction, SIGSEGV, &action, NULL, 16) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_rt_sigaction, 65, &action, NULL, 8) == -1 && errno == EINVAL);
    move();
    close_pair();
}

static void on_fault_info(int signal, siginfo_t *info, void *context)
{
    CHECK(signal == SIGSEGV && context);
    CHECK(info->si_addr == NULL, "the handler is told of address %p", info->si_addr);
    own_faults++;
    siglongjmp(back, 1);
}

/* A handler that asks for the address is told the right one. */
static void handler_with_info(void)
{
    open_pair();
    struct sigaction action = {.sa_sigaction = on_fault_info, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    CHECK(!sigaction(SIGSEGV, &action, NULL));
    move();
    fault();
    move();
    CHECK(own_faults == 1);
    close_pair();
}

/* A program without a handler dies of its own fault as ever. The parent looks how. */
static void fault_kills(void)
{
    open_pair();
    move();
    volatile int *volatile nowhere = NULL;
    *nowhere = 1;
}

/* A signal that somebody sends is no fault: it kills, or reaches the handler. */
static void sent_signal(void)
{
    open_pair();
    install(on_fault);
    move();
    if (!sigsetjmp(back, 1))
        raise(SIGSEGV);
    CHECK(own_faults == 1, "%d signals arrived", (int)own_faults);
    move();
    close_pair();
}

/* ---- processes and threads ---- */

/* A child has no device; the parent's goes on. */
static void forked(void)
{
    open_pair();
    move();
    for (int i = 0; i < 10; i++) {
        int status;
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child)
            exit(0);
        move();
        CHECK(waitpid(child, &status, 0) == child && status == 0, "status %x", status);
        CHECK(system("true") == 0);
        move();
    }
    close_pair();
}

static void *own_pair(void *argument)
{
    (void)argument;
    struct end from = open_end(&device, (struct shape){.length = 65536});
    struct end to = open_end(&device, (struct shape){.length = 65536});
    connect_ends(&device, &from, &to, USUAL);
    for (int i = 0; i < 20; i++)
        for (int k = 0; k < 20; k++) {
            memset(from.buffer, i + k, 4096);
            struct ibv_sge sge = sge_of(&from, 0, 4096);
            struct ibv_send_wr wr = {.wr_id = k,
                                     .opcode = IBV_WR_RDMA_WRITE,
                                     .send_flags = IBV_SEND_SIGNALED,
                                     .sg_list = &sge,
                                     .num_sge = 1,
                                     .wr.rdma = {.remote_addr = (uintptr_t)to.buffer, .rkey = to.mr->rkey}};
            post_send(&from, &wr);
            expect_wc(&from, k, IBV_WC_SUCCESS);
            expect_value(to.buffer, 4096, i + k);
        }
    close_end(&from);
    close_end(&to);
    return NULL;
}

/* Doorbells of many threads at once on the one page they share. */
static void threads(void)
{
    pthread_t threads[8];
    device = open_device();
    for (int i = 0; i < 8; i++)
        CHECK(!pthread_create(&threads[i], NULL, own_pair, NULL));
    for (int i = 0; i < 8; i++)
        CHECK(!pthread_join(threads[i], NULL));
    close_device(&device);
}

static const struct test_case CASES[] = {
    {"small_signal_stack", small_signal_stack},
    {"small_thread_stack", small_thread_stack},
    {"blocked", blocked},
    {"blocked_in_thread", blocked_in_thread},
    {"blocked_before", blocked_before},
    {"blocked_by_number", blocked_by_number},
    {"blocked_by_attribute", blocked_by_attribute},
    {"handler_after", handler_after},
    {"handler_before", handler_before},
    {"signal_function", signal_function},
    {"action_by_number", action_by_number},
    {"handler_with_info", handler_with_info},
    {"fault_kills", fault_kills},
    {"sent_signal", sent_signal},
    {"forked", forked},
    {"threads", threads},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, sizeof(CASES) / sizeof(CASES[0]), argc, argv);
}

/* For a JVM that calls into this file: the same as main with one case that needs nothing of the signal. */
int Java_Room_move(void *env, void *class);
int Java_Room_move(void *env, void *class)
{
    (void)env, (void)class;
    open_pair();
    move();
    close_pair();
    return (int)rounds_done;
}

/*
 * A program whose memory hooks have replaced functions of the C library, as UCX, Open MPI and libfabric do: the first
 * bytes of the function jump to a hook, and that makes the system call by itself. The device must open, work, close and
 * open again all the same, whoever makes the call, and the hooks must see what the program maps.
 */
#define _GNU_SOURCE
#include "rc.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* The system call as an instruction of the program's own: nobody can stand in front of it. */
static long instruction(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    if (result < 0 && result >= -4095) {
        errno = -result;
        return -1;
    }
    return result;
}

/* Volatile: to the compiler no function of the C library comes back into this file. */
static volatile int maps_seen, unmaps_seen;

/* Hooks that go on by number. */
static void *map_by_number(void *at, size_t length, int prot, int flags, int fd, off_t offset)
{
    maps_seen++;
    return (void *)syscall(SYS_mmap, at, length, prot, flags, fd, offset);
}

static int unmap_by_number(void *at, size_t length)
{
    unmaps_seen++;
    return syscall(SYS_munmap, at, length);
}

static int open_by_number(const char *path, int flags, int mode)
{
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

static int close_by_number(int fd)
{
    return syscall(SYS_close, fd);
}

static ssize_t write_by_number(int fd, const void *from, size_t length)
{
    return syscall(SYS_write, fd, from, length);
}

static int ioctl_by_number(int fd, unsigned long request, void *arg)
{
    return syscall(SYS_ioctl, fd, request, arg);
}

/* Hooks that go on by instructions of their own. */
static void *map_by_instruction(void *at, size_t length, int prot, int flags, int fd, off_t offset)
{
    maps_seen++;
    return (void *)instruction(SYS_mmap, (long)at, length, prot, flags, fd, offset);
}

static int unmap_by_instruction(void *at, size_t length)
{
    unmaps_seen++;
    return instruction(SYS_munmap, (long)at, length, 0, 0, 0, 0);
}

/* The function that `library` has under that name, or whoever is first, jumps to `hook`. */
static void replace(void *library, const char *name, void *hook)
{
    uint8_t jump[] = {0x49, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x41, 0xff, 0xe3}; /* movabs r11, hook; jmp *r11 */
    memcpy(jump + 2, &hook, sizeof(hook));
    uint8_t *function = dlsym(library, name);
    CHECK(function, "no %s", name);
    void *page = (void *)((uintptr_t)function & ~4095ul);
    CHECK(!instruction(SYS_mprotect, (long)page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, 0, 0, 0), "%s", name);
    memcpy(function, jump, sizeof(jump));
}

static void use_device(int rounds)
{
    for (int i = 0; i < rounds; i++) {
        struct device device;
        struct end a, b;
        open_both(&device, &a, &b, (struct shape){.length = 65536}, USUAL);
        move_between(&a, &b, 10, i);
        close_both(&device, &a, &b);
    }
}

/* Everything that leads to the device, by number. */
static void by_number(void)
{
    replace(RTLD_DEFAULT, "mmap", map_by_number);
    replace(RTLD_DEFAULT, "munmap", unmap_by_number);
    replace(RTLD_DEFAULT, "open", open_by_number);
    replace(RTLD_DEFAULT, "open64", open_by_number);
    replace(RTLD_DEFAULT, "close", close_by_number);
    replace(RTLD_DEFAULT, "write", write_by_number);
    replace(RTLD_DEFAULT, "ioctl", ioctl_by_number);
    use_device(5);
    CHECK(maps_seen && unmaps_seen, "a hook that is not called shows nothing");
}

static void by_instruction(void)
{
    replace(RTLD_DEFAULT, "mmap", map_by_instruction);
    replace(RTLD_DEFAULT, "munmap", unmap_by_instruction);
    use_device(5);
    CHECK(maps_seen && unmaps_seen, "a hook that is not called shows nothing");
}

/* Hooks that come while the device is open, and stay while it is opened again: nobody tells us of the munmap. */
static void reopened(void)
{
    struct device device;
    struct end a, b;
    open_both(&device, &a, &b, (struct shape){.length = 65536}, USUAL);
    replace(RTLD_DEFAULT, "munmap", unmap_by_instruction);
    close_both(&device, &a, &b);
    use_device(5);
}

/* More often than the stand-in can remember pages. */
static void reopened_often(void)
{
    replace(RTLD_DEFAULT, "munmap", unmap_by_instruction);
    /* Each at an address of its own. */
    static void *taken[1200];
    for (size_t i = 0; i < COUNT(taken); i++) {
        struct device device = open_device();
        close_device(&device);
        taken[i] = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(taken[i] != MAP_FAILED);
    }
    use_device(2);
}

/* A library that is loaded later finds the C library's own functions; it wants to see what the program maps. */
static void hooks_see_the_program(void)
{
    void *libc = dlopen("libc.so.6", RTLD_NOW);
    CHECK(libc, "%s", dlerror());
    replace(libc, "mmap", map_by_number);
    replace(libc, "munmap", unmap_by_number);
    void *at = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED && maps_seen == 1, "%d calls seen", maps_seen);
    CHECK(!munmap(at, 8192) && unmaps_seen == 1, "%d calls seen", unmaps_seen);
    at = mmap64(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED && maps_seen == 2, "%d calls seen", maps_seen);
    CHECK(!munmap(at, 8192));
    use_device(2);
}

/* The command fd by every name that opens it, and by number. */
static void other_names(void)
{
    int (*open_again)(const char *, int, ...) = dlsym(RTLD_DEFAULT, "__open");
    int (*close_again)(int) = dlsym(RTLD_DEFAULT, "__close");
    ssize_t (*write_again)(int, const void *, size_t) = dlsym(RTLD_DEFAULT, "__write");
    int (*fcntl_again)(int, int, ...) = dlsym(RTLD_DEFAULT, "__fcntl");
    CHECK(open_again && close_again && write_again && fcntl_again);
    struct ibv_device **list = ibv_get_device_list(NULL);
    CHECK(list && list[0]);
    char node[128];
    snprintf(node, sizeof(node), "/dev/infiniband/%s", list[0]->dev_name);
    for (int way = 0; way < 2; way++) {
        int fd = way ? open_again(node, O_RDWR | O_CLOEXEC) : (int)syscall(SYS_openat, AT_FDCWD, node, O_RDWR, 0);
        CHECK(fd >= 0);
        int copy = way ? fcntl_again(fd, F_DUPFD_CLOEXEC, 0) : (int)syscall(SYS_dup, fd);
        CHECK(copy >= 0);
        CHECK(!(way ? close_again(fd) : (int)syscall(SYS_close, fd)));
        /* Too short for a command: the device says so, a file would say EPERM, or take it. */
        ssize_t written = way ? write_again(copy, "x", 1) : syscall(SYS_write, copy, "x", 1);
        CHECK(written == -1 && errno == EINVAL, "%zd", written);
        CHECK(!(way ? close_again(copy) : (int)syscall(SYS_close, copy)));
        CHECK(write(copy, "x", 1) == -1 && errno == EBADF);
    }
    ibv_free_device_list(list);
}

/* To a child the command fd is a file that takes nothing: no command is lost without a word. */
static void a_child_writes(void)
{
    struct device device = open_device();
    int fd = device.context->cmd_fd;
    pid_t child = fork();
    if (!child) {
        uint8_t command[64] = {0};
        _exit(instruction(SYS_write, fd, (long)command, sizeof(command), 0, 0, 0) == -1 && errno == EPERM ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "status %x", status);
    close_device(&device);
}

static const struct test_case CASES[] = {
    {"by_number", by_number},
    {"by_instruction", by_instruction},
    {"reopened", reopened},
    {"reopened_often", reopened_often},
    {"hooks_see_the_program", hooks_see_the_program},
    {"other_names", other_names},
    {"a_child_writes", a_child_writes},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, COUNT(CASES), argc, argv);
}

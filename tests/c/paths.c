/*
 * Programs that know /sys/class/infiniband by heart: each function of the C library that can look there, and the rest
 * of the machine, which must be as it is.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "rc.h"

#define CLASS "/sys/class/infiniband"
#define DEVICE CLASS "/vmw_pvrdma0"
#define GID DEVICE "/ports/1/gids/1"
#define NODE "/dev/infiniband/uverbs0"

static void expect_line(const char *text, const char *wanted)
{
    CHECK(!strcmp(text, wanted), "\"%s\" instead of \"%s\"", text, wanted);
}

static void descriptors(void)
{
    char text[64] = {0};
    int fd = open(DEVICE "/node_type", O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, sizeof(text)) == 6);
    expect_line(text, "1: CA\n");
    CHECK(!close(fd));
    fd = openat(AT_FDCWD, DEVICE, O_RDONLY | O_DIRECTORY);
    CHECK(fd >= 0);
    int inner = openat(fd, "ports/1/state", O_RDONLY);
    CHECK(inner >= 0 && read(inner, text, sizeof(text)) == 10);
    expect_line(text, "4: ACTIVE\n");
    CHECK(!close(fd) && !close(inner));
    CHECK(open(CLASS "/nobody", O_RDONLY) == -1 && errno == ENOENT);
}

static void streams(void)
{
    char text[64];
    FILE *file = fopen(GID, "r");
    CHECK(file && fgets(text, sizeof(text), file));
    CHECK(!strncmp(text, "0000:0000:0000:0000:0000:ffff:", 30), "%s", text);
    file = freopen(DEVICE "/ports/1/gid_attrs/types/1", "r", file);
    CHECK(file && fgets(text, sizeof(text), file));
    expect_line(text, "RoCE v2\n");
    CHECK(!fclose(file));
    CHECK(!fopen(CLASS "x", "r") && errno == ENOENT);
}

static int visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static void directories(void)
{
    int found = 0;
    DIR *folder = opendir(CLASS);
    CHECK(folder);
    for (struct dirent *entry; (entry = readdir(folder));)
        found += !strcmp(entry->d_name, "vmw_pvrdma0");
    CHECK(found == 1 && !closedir(folder));

    struct dirent **names;
    int count = scandir(DEVICE "/ports/1/gids", &names, visible, alphasort);
    CHECK(count == 16, "%d GIDs", count);
    expect_line(names[0]->d_name, "0");
    while (count--)
        free(names[count]);
    free(names);

    glob_t result;
    CHECK(!glob(CLASS "/*/ports/*/gids/1", 0, NULL, &result));
    CHECK(result.gl_pathc == 1, "%zu paths", result.gl_pathc);
    expect_line(result.gl_pathv[0], GID);
    globfree(&result);
    CHECK(glob(CLASS "/mlx*", 0, NULL, &result) == GLOB_NOMATCH);
    CHECK(!glob("/proc/self/stat*", GLOB_MARK, NULL, &result) && result.gl_pathc >= 2);
    globfree(&result);
}

/* Device plugins and transfer engines list the nodes, and ask the PCI function for its RDMA device. */
static void nodes(void)
{
    int found = 0;
    DIR *folder = opendir("/dev/infiniband");
    CHECK(folder);
    for (struct dirent *entry; (entry = readdir(folder));)
        found += !strcmp(entry->d_name, strrchr(NODE, '/') + 1);
    CHECK(found == 1 && !closedir(folder));
    struct stat status;
    for (const char *const *name = (const char *[]){"", "/", "/.", "/..", NULL}; *name; name++) {
        char path[64];
        snprintf(path, sizeof(path), "/dev/infiniband%s", *name);
        CHECK(!lstat(path, &status) && S_ISDIR(status.st_mode), "%s", path);
    }
    glob_t result;
    CHECK(!glob("/dev/infiniband/uverbs*", 0, NULL, &result));
    CHECK(result.gl_pathc == 1 && !stat(result.gl_pathv[0], &status) && S_ISCHR(status.st_mode));
    expect_line(result.gl_pathv[0], NODE);
    globfree(&result);

    folder = opendir(DEVICE "/device/infiniband");
    CHECK(folder);
    for (struct dirent *entry; (entry = readdir(folder));)
        found += !strcmp(entry->d_name, strrchr(DEVICE, '/') + 1);
    CHECK(found == 2 && !closedir(folder));
    FILE *file = fopen(DEVICE "/device/infiniband_verbs/uverbs0/ibdev", "r");
    char line[64];
    CHECK(file && fgets(line, sizeof(line), file) && !fclose(file));
    expect_line(line, "vmw_pvrdma0\n");
}

/* A guest is a machine: by its boot id UCX and NCCL see whether shared memory leads to a peer. */
static void boot_id(void)
{
    char first[64] = "", second[64] = "", machine[64] = "";
    for (int i = 0; i < 2; i++) {
        FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
        CHECK(file && fgets(i ? second : first, 64, file) && !fclose(file));
    }
    expect_line(first, second);
    /* By a path that is not looked at. */
    FILE *file = fopen("/proc/self/../sys/kernel/random/boot_id", "r");
    CHECK(file && fgets(machine, 64, file) && !fclose(file));
    CHECK(strlen(first) == strlen(machine) && strcmp(first, machine), "%s", first);
}

static int seen;

static int visit(const char *path, const struct stat *stat, int kind, struct FTW *where)
{
    (void)stat, (void)where;
    seen += kind == FTW_F && strstr(path, "/ports/1/gids/");
    return 0;
}

static void walks(void)
{
    CHECK(!nftw(DEVICE, visit, 16, FTW_PHYS));
    CHECK(seen == 16, "%d GIDs", seen);
}

static void links(void)
{
    char path[PATH_MAX], target[PATH_MAX] = {0};
    CHECK(realpath(DEVICE "/device", path));
    /* NCCL takes the last part for a PCI address and what is above for the bridges. */
    const char *slot = strrchr(path, '/');
    unsigned domain, bus, device, function;
    CHECK(sscanf(slot, "/%x:%x:%x.%x", &domain, &bus, &device, &function) == 4, "%s", path);
    CHECK(strstr(path, "/devices/pci0000:00/"), "%s", path);
    char *same = canonicalize_file_name(DEVICE "/device");
    CHECK(same);
    expect_line(same, path);
    free(same);
    CHECK(readlink(DEVICE "/device", target, sizeof(target)) > 0);
    CHECK(strstr(target, slot), "%s", target);
    CHECK(readlink(NODE, target, sizeof(target)) == -1 && errno == EINVAL);
    /* The path that was told works as well. */
    strcat(path, "/vendor");
    FILE *file = fopen(path, "r");
    CHECK(file && fgets(target, sizeof(target), file) && !fclose(file));
    expect_line(target, "0x15ad\n");
}

static void attributes(void)
{
    struct stat status;
    struct statx extended;
    CHECK(!stat(CLASS, &status) && S_ISDIR(status.st_mode));
    CHECK(!lstat(DEVICE "/device", &status) && S_ISLNK(status.st_mode));
    CHECK(!fstatat(AT_FDCWD, DEVICE "/board_id", &status, 0) && S_ISREG(status.st_mode));
    CHECK(!statx(AT_FDCWD, DEVICE "/device", 0, STATX_TYPE, &extended) && S_ISDIR(extended.stx_mode));
    CHECK(!access(DEVICE, X_OK) && !access(GID, R_OK) && access(CLASS "/nobody", F_OK));
    CHECK(!faccessat(AT_FDCWD, GID, R_OK, AT_EACCESS) && !euidaccess(GID, R_OK));
    CHECK(lgetxattr(GID, "user.none", NULL, 0) == -1 && (errno == ENODATA || errno == ENOTSUP));
    CHECK(getxattr(NODE, "user.none", NULL, 0) == -1 && (errno == ENODATA || errno == ENOTSUP || errno == EPERM));

    CHECK(!access(NODE, R_OK | W_OK) && access(NODE, X_OK));
    CHECK(!stat(NODE, &status) && S_ISCHR(status.st_mode) && status.st_rdev == makedev(231, 192));
    CHECK(!statx(AT_FDCWD, NODE, 0, STATX_BASIC_STATS, &extended) && S_ISCHR(extended.stx_mode));
    CHECK(extended.stx_rdev_major == 231 && extended.stx_rdev_minor == 192);
    int fd = open(NODE, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0 && !fstat(fd, &status) && S_ISCHR(status.st_mode) && status.st_rdev == makedev(231, 192));
    CHECK(!close(fd));
}

static void working_directory(void)
{
    char before[PATH_MAX];
    CHECK(getcwd(before, sizeof(before)));
    CHECK(!chdir(DEVICE) && !access("node_guid", R_OK) && !chdir(before));
}

/* What is not ours is the machine's: the same as the plain system calls give. */
static void the_rest(void)
{
    struct stat status;
    DIR *folder = opendir("/sys/class/net");
    CHECK(folder && !closedir(folder));
    CHECK(!stat("/sys/class/net/lo", &status) && S_ISDIR(status.st_mode));
    CHECK(stat("/sys/class/infinibandx", &status) && errno == ENOENT);
    CHECK(!chdir("/") && !chdir("/proc/self"));
    CHECK(!opendir("/no/such/folder") && errno == ENOENT);
}

static const struct test_case CASES[] = {
    {"descriptors", descriptors}, {"streams", streams},       {"directories", directories},
    {"walks", walks},             {"links", links},           {"attributes", attributes},
    {"working_directory", working_directory}, {"the_rest", the_rest}, {"nodes", nodes},
    {"boot_id", boot_id},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, sizeof(CASES) / sizeof(CASES[0]), argc, argv);
}

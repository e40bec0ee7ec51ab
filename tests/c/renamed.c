/*
 * The libibverbs that its arguments name, each loaded by dlopen and not linked. The last one lists the devices, opens
 * the first and has a protection domain of it. Says what the device is called.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>

static void *library;

static void *function(const char *name)
{
    void *address = dlsym(library, name);
    if (!address) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return address;
}

#define CALL(result, name, ...) ((result(*)())function(name))(__VA_ARGS__)

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        library = dlopen(argv[i], RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
    }
    int count = 0;
    struct ibv_device **list = CALL(struct ibv_device **, "ibv_get_device_list", &count);
    if (!list || !count) {
        puts("no device");
        return 1;
    }
    struct ibv_context *context = CALL(struct ibv_context *, "ibv_open_device", list[0]);
    struct ibv_pd *pd = context ? CALL(struct ibv_pd *, "ibv_alloc_pd", context) : NULL;
    if (!pd || CALL(int, "ibv_dealloc_pd", pd) || CALL(int, "ibv_close_device", context)) {
        puts("cannot be opened");
        return 1;
    }
    puts(CALL(const char *, "ibv_get_device_name", list[0]));
    CALL(void, "ibv_free_device_list", list);
    return 0;
}

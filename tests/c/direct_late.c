/*
 * Direct verbs that are found while the program runs: it is not linked to them. `direct_late` takes them from the
 * provider that serves the device; with FILE, it loads that when the device is open: it is another provider's, and
 * direct verbs of this file have nothing to say of it.
 */
#include "rc.h"

#include <dlfcn.h>
#include <infiniband/pvrdmadv.h>

#define FIND(name) __typeof__(name) *name##_found = (__typeof__(name) *)dlsym(library, #name)

int main(int argc, char **argv)
{
    struct device device;
    struct end a, b;
    struct pvrdmadv_context context;
    struct pvrdmadv_qp qp;
    struct pvrdmadv_cq cq;
    open_both(&device, &a, &b, (struct shape){.depth = 8}, USUAL);
    move_between(&a, &b, 3, 1);
    void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : dlopen("libpvrdmadv.so.1", RTLD_NOW | RTLD_NOLOAD);
    CHECK(library, "%s", dlerror());
    FIND(pvrdmadv_is_supported);
    FIND(pvrdmadv_query_context);
    FIND(pvrdmadv_query_qp);
    FIND(pvrdmadv_query_cq);
    CHECK(pvrdmadv_is_supported_found && pvrdmadv_query_context_found && pvrdmadv_query_qp_found &&
          pvrdmadv_query_cq_found);
    int expected = argc > 1 ? EOPNOTSUPP : 0;
    CHECK(pvrdmadv_is_supported_found(device.context->device) == !expected);
    CHECK(pvrdmadv_query_context_found(device.context, &context, sizeof(context)) == expected);
    CHECK(pvrdmadv_query_qp_found(a.qp, &qp, sizeof(qp)) == expected);
    CHECK(pvrdmadv_query_cq_found(a.cq, &cq, sizeof(cq)) == expected);
    move_between(&a, &b, 3, 2);
    close_both(&device, &a, &b);
    puts("ok");
    return 0;
}

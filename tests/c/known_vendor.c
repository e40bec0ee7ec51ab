/*
 * A library to preload into perftest: ibv_query_device names a device that perftest knows.
 *
 * perftest switches inline data and ibv_wr_* off unless it knows the part number (ib_dev_name in its sources). 4126, a virtual
 * function of ConnectX, stands in its lists for these two things only; the vendor stays VMware, so what it does for Mellanox's
 * devices it does not do. Used by `cargo xtask matrix`: LD_PRELOAD=... pvrdma run ib_send_lat -I 200.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <infiniband/verbs.h>

#define KNOWN_PART 4126

int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
    int (*next)(struct ibv_context *, struct ibv_device_attr *);
    *(void **)&next = dlsym(RTLD_NEXT, "ibv_query_device");
    if (!next)
        return ENOSYS;

    int error = next(context, attr);
    if (!error)
        attr->vendor_part_id = KNOWN_PART;
    return error;
}

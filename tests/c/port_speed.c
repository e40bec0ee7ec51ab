/*
 * The speed of a port by ibv_query_port_speed, which the libibverbs this is compiled with need not have.
 */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "rc.h"

int main(void)
{
    struct device device = open_device();
    int (*query)(struct ibv_context *, uint32_t, uint64_t *) = dlsym(RTLD_DEFAULT, "ibv_query_port_speed");
    uint64_t speed = 0;
    CHECK(query, "this libibverbs has no ibv_query_port_speed");
    int error = query(device.context, 1, &speed);
    CHECK(!error, "ibv_query_port_speed gives %d", error);
    error = query(device.context, 2, &speed);
    CHECK(error == EINVAL, "a port that is not there gives %d", error);
    error = query(device.context, 257, &speed);
    CHECK(error == EINVAL, "a port beyond all numbers gives %d", error);
    printf("%llu\n", (unsigned long long)speed);
    close_device(&device);
}

/*
 * libibverbs as NCCL and others load it: by dlopen with RTLD_LOCAL, each function by dlvsym, not linked in; and again
 * after dlclose.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <infiniband/verbs.h>
#include <link.h>

/* The functions that this program and rc.h use. */
#define FUNCTIONS(F)                                                                                                   \
    F(get_device_list) F(free_device_list) F(open_device) F(close_device) F(alloc_pd) F(dealloc_pd) F(query_gid)       \
    F(query_port) F(create_comp_channel) F(destroy_comp_channel) F(create_cq) F(destroy_cq) F(create_qp)               \
    F(destroy_qp) F(modify_qp) F(query_qp) F(reg_mr) F(dereg_mr) F(wc_status_str)

/* Macros and inline functions of verbs.h stand in the way of some names. */
#undef ibv_query_port
#undef ibv_reg_mr
#define DECLARE(name) static typeof(&ibv_##name) p_##name;
FUNCTIONS(DECLARE)

#define ibv_get_device_list p_get_device_list
#define ibv_free_device_list p_free_device_list
#define ibv_open_device p_open_device
#define ibv_close_device p_close_device
#define ibv_alloc_pd p_alloc_pd
#define ibv_dealloc_pd p_dealloc_pd
#define ibv_query_gid p_query_gid
#define ibv_query_port(context, port, attr) p_query_port(context, port, (struct _compat_ibv_port_attr *)(attr))
#define ibv_create_comp_channel p_create_comp_channel
#define ibv_destroy_comp_channel p_destroy_comp_channel
#define ibv_create_cq p_create_cq
#define ibv_destroy_cq p_destroy_cq
#define ibv_create_qp p_create_qp
#define ibv_destroy_qp p_destroy_qp
#define ibv_modify_qp p_modify_qp
#define ibv_query_qp p_query_qp
#define ibv_reg_mr p_reg_mr
#define ibv_dereg_mr p_dereg_mr
#define ibv_wc_status_str p_wc_status_str

#include "rc.h"

static int count_libibverbs(struct dl_phdr_info *info, size_t size, void *count)
{
    (void)size;
    *(int *)count += strstr(info->dlpi_name, "libibverbs.so") != NULL;
    return 0;
}

static void *load(void)
{
    void *library = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
    CHECK(library, "%s", dlerror());
    /* Those that never changed have the first version still. */
#define LOOK_UP(name)                                                                                                  \
    p_##name = dlvsym(library, "ibv_" #name, "IBVERBS_1.1");                                                           \
    if (!p_##name)                                                                                                     \
        p_##name = dlvsym(library, "ibv_" #name, "IBVERBS_1.0");                                                       \
    CHECK(p_##name, "%s", dlerror());
    FUNCTIONS(LOOK_UP)
    return library;
}

static void move(void)
{
    struct device device = open_device();
    struct end a = open_end(&device, (struct shape){.length = 65536, .events = 1});
    struct end b = open_end(&device, (struct shape){.length = 65536});
    connect_ends(&device, &a, &b, USUAL);
    for (int i = 0; i < 50; i++) {
        fill(a.buffer, 4096, i);
        post_recv(&b, i, 0, 4096);
        struct ibv_sge sge = sge_of(&a, 0, 4096);
        struct ibv_send_wr wr = {
            .wr_id = i, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .sg_list = &sge, .num_sge = 1};
        post_send(&a, &wr);
        expect_wc(&a, i, IBV_WC_SUCCESS);
        expect_wc(&b, i, IBV_WC_SUCCESS);
        expect_bytes(b.buffer, 4096, i);
    }
    close_end(&a);
    close_end(&b);
    close_device(&device);
}

int main(void)
{
    int loaded = 0;
    dl_iterate_phdr(count_libibverbs, &loaded);
    CHECK(loaded == 0, "libibverbs is linked in: this would prove nothing");
    for (int round = 0; round < 4; round++) {
        void *library = load();
        move();
        move();
        CHECK(!dlclose(library), "%s", dlerror());
    }
    puts("ok");
    return 0;
}

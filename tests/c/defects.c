/*
 * The known defects of rdma-core's C provider (provider/DEFECTS.md), one case each: what an application, or a device,
 * sees of it. A case fails where the defect is.
 *
 * With the stand-in's hooks (device/standin/src/support/hooks.rs) this program is the device where traffic alone would
 * not show the defect: it reads requests out of the rings, writes completions into them, and has the kernel answer
 * otherwise.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "../../include/pvrdma.h"
#include "ud.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct device device;
static struct end a, b;

/* ---- hooks ---- */

static struct {
    int (*freeze)(int on);
    long (*doorbells)(const char *kind);
    long (*commands)(const char *name);
    long (*handle)(uint32_t number);
    void *(*ring)(uint32_t number, unsigned nth, size_t *len);
    int (*answer)(const char *field, uint64_t value);
    int (*call)(const char *when, void (*function)(void *), void *argument);
} hook;

static void *find_hook(const char *name)
{
    void *found = dlsym(RTLD_DEFAULT, name);
    CHECK(found, "%s is missing: not on the stand-in", name);
    return found;
}

static void find_hooks(void)
{
    hook.freeze = find_hook("pvrdma_hook_freeze");
    hook.doorbells = find_hook("pvrdma_hook_doorbells");
    hook.commands = find_hook("pvrdma_hook_commands");
    hook.handle = find_hook("pvrdma_hook_handle");
    hook.ring = find_hook("pvrdma_hook_ring");
    hook.answer = find_hook("pvrdma_hook_answer");
    hook.call = find_hook("pvrdma_hook_call");
    CHECK(!hook.freeze(0), "PVRDMA_HOOKS=1 is not set");
}

/* The page of counters at the front of a ring, and what comes behind it. */
static struct pvrdma_ring_state *state_page(uint32_t number)
{
    struct pvrdma_ring_state *state = hook.ring(number, 0, NULL);
    CHECK(state);
    return state;
}

static void *entry(uint32_t number, size_t at)
{
    return (uint8_t *)state_page(number) + PVRDMA_PAGE_SIZE + at;
}

/* As the device does it: the entry first, then the counter. */
static void put_cqe(struct ibv_cq *cq, struct pvrdma_cqe cqe)
{
    uint32_t *tail = &state_page(cq->handle)->rx.prod_tail, at = *tail, entries = cq->cqe;
    memcpy(entry(cq->handle, (at & (entries - 1)) * sizeof(cqe)), &cqe, sizeof(cqe));
    __atomic_store_n(tail, (at + 1) & (2 * entries - 1), __ATOMIC_RELEASE);
}

/* The request in the first slot of a send queue. */
static struct pvrdma_sq_wqe_hdr first_request(struct ibv_qp *qp)
{
    struct pvrdma_sq_wqe_hdr wqe;
    memcpy(&wqe, entry(qp->handle, 0), sizeof(wqe));
    return wqe;
}

/* The device has taken all requests. */
static void take_requests(struct ibv_qp *qp)
{
    struct pvrdma_ring *tx = &state_page(qp->handle)->tx;
    __atomic_store_n(&tx->cons_head, __atomic_load_n(&tx->prod_tail, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
}

static struct pvrdma_cqe cqe_of(struct ibv_qp *qp, uint64_t wr_id)
{
    long handle = hook.handle(qp->handle);
    CHECK(handle >= 0);
    return (struct pvrdma_cqe){.wr_id = wr_id, .qp = handle};
}

/* ---- helpers ---- */

/* A connected pair that the device no longer hears. */
static void open_frozen_pair(struct shape shape)
{
    device = open_device();
    a = open_end(&device, shape);
    b = open_end(&device, shape);
    connect_ends(&device, &a, &b, USUAL);
    CHECK(!hook.freeze(1));
}

static struct ibv_send_wr work(enum ibv_wr_opcode opcode, struct ibv_sge *sge)
{
    return (struct ibv_send_wr){.wr_id = 1, .opcode = opcode, .send_flags = IBV_SEND_SIGNALED, .sg_list = sge, .num_sge = 1};
}

/* Refused with an errno, and the request named. */
static void refused(struct ibv_qp *qp, struct ibv_send_wr wr)
{
    struct ibv_send_wr *bad = NULL;
    int error = ibv_post_send(qp, &wr, &bad);
    CHECK(error == EINVAL || error == EOPNOTSUPP, "post_send of opcode %d gives %d", wr.opcode, error);
    CHECK(bad == &wr);
}

/* The one completion that is there. */
static struct ibv_wc poll_one(struct ibv_cq *cq)
{
    struct ibv_wc wc;
    int n = ibv_poll_cq(cq, 1, &wc);
    CHECK(n == 1, "poll_cq gives %d", n);
    return wc;
}

static struct ibv_qp_init_attr plain_qp(struct ibv_cq *cq, enum ibv_qp_type type)
{
    return (struct ibv_qp_init_attr){
        .send_cq = cq, .recv_cq = cq, .qp_type = type,
        .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1}};
}

static struct ibv_cq *plain_cq(void)
{
    struct ibv_cq *cq = ibv_create_cq(device.context, 8, NULL, NULL, 0);
    CHECK(cq);
    return cq;
}

/* ---- requests ---- */

/* From 7 on libibverbs and the device number the opcodes differently. */
static void opcodes(void)
{
    static const enum ibv_wr_opcode others[] = {IBV_WR_LOCAL_INV, IBV_WR_BIND_MW, IBV_WR_SEND_WITH_INV, IBV_WR_TSO};
    open_frozen_pair((struct shape){0});
    struct ibv_sge sge = sge_of(&a, 0, 8);
    for (size_t i = 0; i < COUNT(others); i++)
        refused(a.qp, work(others[i], &sge));
    CHECK(hook.doorbells("send") == 0);
}

static void invalidate_key(void)
{
    CHECK(!setenv("PVRDMA_ENABLE", "send_with_inv", 1));
    open_frozen_pair((struct shape){0});
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work(IBV_WR_SEND_WITH_INV, &sge);
    wr.invalidate_rkey = 0x12345678;
    post_send(&a, &wr);
    struct pvrdma_sq_wqe_hdr wqe = first_request(a.qp);
    CHECK(wqe.ex.invalidate_rkey == 0x12345678, "the key to invalidate is %x", wqe.ex.invalidate_rkey);
    CHECK(wqe.opcode == PVRDMA_WR_SEND_WITH_INV, "opcode %u", wqe.opcode);
}

/* Payload from memory that is not registered, on a QP that never asked for inline data. */
static void inline_not_asked_for(void)
{
    open_frozen_pair((struct shape){0});
    char payload[] = "inline";
    struct ibv_sge sge = {.addr = (uintptr_t)payload, .length = sizeof(payload)};
    struct ibv_send_wr wr = work(IBV_WR_SEND, &sge);
    wr.send_flags |= IBV_SEND_INLINE;
    refused(a.qp, wr);
}

/* A datagram queue, and a request for it that lacks nothing but an address handle. */
static struct ibv_send_wr open_datagrams(uint32_t depth)
{
    static struct ibv_sge sge;
    device = open_device();
    a = open_ud_end(&device, depth, NULL);
    ud_to_rts(&a);
    CHECK(!hook.freeze(1));
    sge = sge_of(&a, 0, 8);
    return datagram(1, &sge, NULL, &a);
}

static void no_address(void)
{
    struct ibv_send_wr wr = open_datagrams(4);
    refused(a.qp, wr);
}

static void datagram_opcode(void)
{
    struct ibv_send_wr wr = open_datagrams(4);
    wr.wr.ud.ah = ah_to(&device);
    wr.opcode = IBV_WR_RDMA_WRITE;
    refused(a.qp, wr);
}

static void negative_send(void)
{
    open_frozen_pair((struct shape){0});
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work(IBV_WR_SEND, &sge);
    wr.num_sge = -1;
    refused(a.qp, wr);
}

static void negative_recv(void)
{
    open_frozen_pair((struct shape){0});
    struct ibv_recv_wr wr = {.num_sge = -1}, *bad = NULL;
    CHECK(ibv_post_recv(a.qp, &wr, &bad) == EINVAL && bad == &wr, "a receive of -1 SGEs is posted");
}

static struct ibv_srq *plain_srq(void)
{
    struct ibv_srq_init_attr attr = {.attr = {.max_wr = 4, .max_sge = 1}};
    struct ibv_srq *srq = ibv_create_srq(device.pd, &attr);
    CHECK(srq);
    return srq;
}

static void negative_srq_recv(void)
{
    device = open_device();
    CHECK(!hook.freeze(1));
    struct ibv_recv_wr wr = {.num_sge = -1}, *bad = NULL;
    CHECK(ibv_post_srq_recv(plain_srq(), &wr, &bad) == EINVAL && bad == &wr, "a receive of -1 SGEs is posted");
}

/* What a slot held before is not for the device to see in the next request. */
static void stale_header(void)
{
    open_frozen_pair((struct shape){.depth = 1});
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work(IBV_WR_ATOMIC_CMP_AND_SWP, &sge);
    wr.wr.atomic.remote_addr = 0x1111111111111111;
    wr.wr.atomic.compare_add = 0x2222222222222222;
    wr.wr.atomic.swap = 0x3333333333333333;
    wr.wr.atomic.rkey = 0x44444444;
    post_send(&a, &wr);
    take_requests(a.qp);
    wr = work(IBV_WR_SEND, &sge);
    post_send(&a, &wr);
    struct pvrdma_sq_wqe_hdr wqe = first_request(a.qp);
    CHECK(wqe.opcode == PVRDMA_WR_SEND && wqe.num_sge == 1);
    expect_value((uint8_t *)&wqe.wr, sizeof(wqe.wr), 0);
    CHECK(!wqe.ex.imm_data && !wqe.reserved && !wqe.total_len);
}

static void unnamed_request(void)
{
    device = open_device();
    struct ibv_qp_init_attr init = plain_qp(plain_cq(), IBV_QPT_RC);
    init.srq = plain_srq();
    struct end end = {.qp = ibv_create_qp(device.pd, &init)};
    CHECK(end.qp);
    to_init(&end);
    struct ibv_recv_wr wr = {.wr_id = 1}, none, *bad = &none;
    CHECK(ibv_post_recv(end.qp, &wr, &bad) == EINVAL);
    CHECK(bad == &wr, "the bad request is not named");
}

static void null_list(void)
{
    open_frozen_pair((struct shape){0});
    struct ibv_recv_wr none, *bad = &none;
    CHECK(ibv_post_recv(a.qp, NULL, &bad) == EINVAL && !bad, "bad_wr is left as it was");
    bad = &none;
    CHECK(ibv_post_srq_recv(plain_srq(), NULL, &bad) == EINVAL && !bad, "bad_wr is left as it was");
}

/* ---- completions ---- */

/* What becomes of a completion of the device. */
static struct ibv_wc translated(uint32_t opcode, uint32_t flags)
{
    struct pvrdma_cqe cqe = cqe_of(a.qp, 1);
    cqe.opcode = opcode;
    cqe.wc_flags = flags;
    put_cqe(a.cq, cqe);
    return poll_one(a.cq);
}

static void completion_opcodes(void)
{
    static const struct {
        uint32_t device;
        enum ibv_wc_opcode expected;
    } all[] = {{PVRDMA_WC_LSO, IBV_WC_TSO}, {PVRDMA_WC_LOCAL_INV, IBV_WC_LOCAL_INV}};
    open_frozen_pair((struct shape){0});
    for (size_t i = 0; i < COUNT(all); i++) {
        struct ibv_wc wc = translated(all[i].device, 0);
        CHECK(wc.opcode == all[i].expected, "opcode %u of the device is %u", all[i].device, wc.opcode);
    }
}

static void completion_flags(void)
{
    static const struct {
        uint32_t device;
        unsigned expected;
    } all[] = {
        {PVRDMA_WC_WITH_INVALIDATE, IBV_WC_WITH_INV},
        {PVRDMA_WC_IP_CSUM_OK, IBV_WC_IP_CSUM_OK},
        /* libibverbs uses these three bits for tag matching. */
        {PVRDMA_WC_GRH | PVRDMA_WC_WITH_SMAC, IBV_WC_GRH},
        {PVRDMA_WC_WITH_VLAN, 0},
        {PVRDMA_WC_WITH_NETWORK_HDR_TYPE, 0},
    };
    open_frozen_pair((struct shape){0});
    for (size_t i = 0; i < COUNT(all); i++) {
        struct ibv_wc wc = translated(PVRDMA_WC_RECV, all[i].device);
        CHECK(wc.wc_flags == all[i].expected, "flags %x of the device are %x", all[i].device, wc.wc_flags);
    }
}

static void vendor_err(void)
{
    open_frozen_pair((struct shape){0});
    struct pvrdma_cqe cqe = cqe_of(a.qp, 1);
    cqe.status = PVRDMA_WC_REM_OP_ERR;
    cqe.vendor_err = 0x5a;
    put_cqe(a.cq, cqe);
    struct ibv_wc wc = poll_one(a.cq);
    CHECK(wc.status == IBV_WC_REM_OP_ERR && wc.vendor_err == 0x5a, "vendor_err %x", wc.vendor_err);
}

/* A completion of a QP that nobody knows does not stop those behind it. */
static void stray_completion(void)
{
    open_frozen_pair((struct shape){0});
    struct pvrdma_cqe stray = cqe_of(a.qp, 1);
    stray.qp = 0x7ffe;
    put_cqe(a.cq, stray);
    put_cqe(a.cq, cqe_of(a.qp, 2));
    CHECK(poll_one(a.cq).wr_id == 2);
}

static void broken_ring(void)
{
    open_frozen_pair((struct shape){0});
    struct ibv_wc wc;
    state_page(a.cq->handle)->rx.prod_tail = 2 * a.cq->cqe + 1;
    int n = ibv_poll_cq(a.cq, 1, &wc);
    CHECK(n < 0, "poll_cq gives %d", n);
}

/* The device answers another length than that of the memory it was given. */
static void other_length(void)
{
    device = open_device();
    CHECK(!hook.answer("cqe", 1024));
    errno = 0;
    struct ibv_cq *cq = ibv_create_cq(device.context, 4, NULL, NULL, 0);
    CHECK(!cq && errno == EIO, "a CQ of %d entries in memory for 4", cq ? cq->cqe : 0);
}

/* A doorbell may cost an exit of the virtual machine. */
static void partial_poll(void)
{
    struct ibv_wc wc[4];
    open_frozen_pair((struct shape){0});
    put_cqe(a.cq, cqe_of(a.qp, 1));
    CHECK(ibv_poll_cq(a.cq, COUNT(wc), wc) == 1);
    CHECK(hook.doorbells("poll") == 0, "a doorbell although there was something");
}

static void empty_polls(void)
{
    enum { POLLS = 1000 };
    struct ibv_wc wc;
    open_frozen_pair((struct shape){0});
    for (int i = 0; i < POLLS; i++)
        CHECK(ibv_poll_cq(a.cq, 1, &wc) == 0);
    long rung = hook.doorbells("poll");
    CHECK(rung > 0 && rung < POLLS, "%ld doorbells in %d empty polls", rung, POLLS);
}

/* ---- create ---- */

static void large_handles(void)
{
    enum { HANDLE = 60000 };
    CHECK(!hook.answer("qp_tab_size", 65536));
    CHECK(!hook.answer("qp_handle", HANDLE));
    device = open_device();
    struct ibv_cq *cq = plain_cq();
    struct ibv_qp_init_attr init = plain_qp(cq, IBV_QPT_RC);
    struct ibv_qp *qp = ibv_create_qp(device.pd, &init);
    CHECK(qp);
    CHECK(!hook.freeze(1));
    struct pvrdma_cqe cqe = {.wr_id = 7, .qp = HANDLE};
    put_cqe(cq, cqe);
    struct ibv_wc wc = poll_one(cq);
    CHECK(wc.wr_id == 7 && wc.qp_num == qp->qp_num);
}

/* Lengths whose next power of two does not fit an int. */
static void endless_rounding(void)
{
    device = open_device();
    errno = 0;
    CHECK(!ibv_create_cq(device.context, 0x40000001, NULL, NULL, 0) && errno == EINVAL);
}

static void rounded_to_one(void)
{
    device = open_device();
    struct ibv_qp_init_attr init = plain_qp(plain_cq(), IBV_QPT_RC);
    init.cap.max_send_wr = UINT32_MAX;
    errno = 0;
    struct ibv_qp *qp = ibv_create_qp(device.pd, &init);
    CHECK(!qp && errno == EINVAL, "a QP for %u requests", init.cap.max_send_wr);
}

/* What cannot be is refused before anything is allocated and the kernel is asked: Linux's driver does not check it. */
static void above_limits(void)
{
    device = open_device();
    struct ibv_device_attr limits;
    CHECK(!ibv_query_device(device.context, &limits));
    struct ibv_cq *cq = plain_cq();
    uint32_t wr = limits.max_qp_wr, sge = limits.max_sge;
    const struct ibv_qp_cap caps[] = {
        {.max_send_wr = wr + 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1},
        {.max_send_wr = 1, .max_recv_wr = wr + 1, .max_send_sge = 1, .max_recv_sge = 1},
        {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = sge + 1, .max_recv_sge = 1},
        {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = sge + 1},
        /* 2^24 slots of 512 bytes: 0 in an int. */
        {.max_send_wr = 1 << 24, .max_recv_wr = 1, .max_send_sge = 16, .max_recv_sge = 1},
    };
    for (size_t i = 0; i < COUNT(caps); i++) {
        struct ibv_qp_init_attr init = plain_qp(cq, IBV_QPT_RC);
        init.cap = caps[i];
        errno = 0;
        CHECK(!ibv_create_qp(device.pd, &init) && errno == EINVAL, "capabilities %zu", i);
    }
    for (int i = 0; i < 2; i++) {
        struct ibv_srq_init_attr attr = {.attr = {.max_wr = 1, .max_sge = 1}};
        *(i ? &attr.attr.max_sge : &attr.attr.max_wr) = (i ? limits.max_srq_sge : limits.max_srq_wr) + 1;
        errno = 0;
        CHECK(!ibv_create_srq(device.pd, &attr) && errno == EINVAL);
    }
    long asked = hook.commands("create_qp") + hook.commands("create_srq");
    CHECK(asked == 0, "the kernel was asked %ld times", asked);
}

/* What the device says it can do at most can be had, whatever number that is. */
static void odd_max_cqe(void)
{
    CHECK(!hook.answer("max_cqe", 3000));
    device = open_device();
    struct ibv_device_attr limits;
    CHECK(!ibv_query_device(device.context, &limits) && limits.max_cqe >= 1024);
    struct ibv_cq *cq = ibv_create_cq(device.context, limits.max_cqe, NULL, NULL, 0);
    CHECK(cq && cq->cqe >= limits.max_cqe, "no CQ of max_cqe, %d", limits.max_cqe);
}

static void odd_max_srq_wr(void)
{
    CHECK(!hook.answer("max_srq_wr", 3000));
    device = open_device();
    struct ibv_device_attr limits;
    CHECK(!ibv_query_device(device.context, &limits) && limits.max_srq_wr >= 1024);
    struct ibv_srq_init_attr attr = {.attr = {.max_wr = limits.max_srq_wr, .max_sge = 1}};
    CHECK(ibv_create_srq(device.pd, &attr), "no SRQ of max_srq_wr, %d", limits.max_srq_wr);
}

/* Linux's driver tells nothing but the state of a QP in RESET, and that every QP signals everything. */
static struct ibv_qp_init_attr query(enum ibv_qp_state state)
{
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;
    memset(&attr, 0xee, sizeof(attr));
    memset(&init, 0xee, sizeof(init));
    CHECK(!ibv_query_qp(a.qp, &attr, IBV_QP_STATE | IBV_QP_CAP, &init));
    CHECK(attr.qp_state == state && !memcmp(&attr.cap, &init.cap, sizeof(attr.cap)));
    return init;
}

static void query_in_reset(void)
{
    device = open_device();
    a = open_end(&device, (struct shape){.depth = 4, .sge = 2});
    struct ibv_qp_cap cap = query(IBV_QPS_RESET).cap;
    CHECK(cap.max_send_wr == 4 && cap.max_send_sge == 2);
    CHECK(cap.max_recv_wr == 4 && cap.max_recv_sge == 2, "%u receives of %u SGEs", cap.max_recv_wr, cap.max_recv_sge);
}

static void query_signaling(void)
{
    device = open_device();
    a = open_end(&device, (struct shape){.depth = 4, .sge = 2});
    to_init(&a);
    CHECK(!query(IBV_QPS_INIT).sq_sig_all, "it seems to signal all");
}

static void no_errno_for_cq(void)
{
    device = open_device();
    errno = 0;
    CHECK(!ibv_create_cq(device.context, 0, NULL, NULL, 0) && errno == EINVAL, "create_cq leaves errno at %d", errno);
}

static void no_errno_for_ah(void)
{
    device = open_device();
    struct ibv_ah_attr no_grh = {.port_num = 1};
    errno = 0;
    CHECK(!ibv_create_ah(device.pd, &no_grh) && errno == EINVAL, "create_ah leaves errno at %d", errno);
}

static void changed_caps(void)
{
    device = open_device();
    struct ibv_qp_init_attr init = plain_qp(plain_cq(), IBV_QPT_UC);
    init.cap.max_send_wr = 5;
    CHECK(!ibv_create_qp(device.pd, &init) && errno == EOPNOTSUPP);
    CHECK(init.cap.max_send_wr == 5, "create_qp fails and leaves max_send_wr at %u", init.cap.max_send_wr);
}

/* The kernel would register the memory at its own address. */
static void other_iova(void)
{
    device = open_device();
    void *memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    CHECK(ibv_reg_mr_iova(device.pd, memory, 8192, (uintptr_t)memory, IBV_ACCESS_LOCAL_WRITE));
    errno = 0;
    CHECK(!ibv_reg_mr_iova(device.pd, memory, 8192, 0x10000, IBV_ACCESS_LOCAL_WRITE) && errno == EOPNOTSUPP);
}

static void extended_verbs(void)
{
    device = open_device();
    struct ibv_cq_init_attr_ex cq_attr = {.cqe = 8, .wc_flags = IBV_WC_EX_WITH_BYTE_LEN};
    struct ibv_cq_ex *cq = ibv_create_cq_ex(device.context, &cq_attr);
    CHECK(cq, "no extended CQ");
    struct ibv_qp_init_attr_ex init = {
        .send_cq = ibv_cq_ex_to_cq(cq), .recv_cq = ibv_cq_ex_to_cq(cq), .qp_type = IBV_QPT_RC, .pd = device.pd,
        .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, .send_ops_flags = IBV_QP_EX_WITH_SEND,
        .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp *qp = ibv_create_qp_ex(device.context, &init);
    CHECK(qp && ibv_qp_to_qp_ex(qp), "no extended QP");
    struct ibv_poll_cq_attr poll = {0};
    CHECK(ibv_start_poll(cq, &poll) == ENOENT);
}

/* ---- address handles ---- */

/* As a request to it has it. On a queue with one slot, so that each request is the first. */
static struct pvrdma_wr_ud address_of(struct ibv_ah *ah)
{
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = datagram(1, &sge, ah, &a);
    struct pvrdma_wr_ud ud;
    post_send(&a, &wr);
    struct pvrdma_sq_wqe_hdr wqe = first_request(a.qp);
    memcpy(&ud, &wqe.wr, sizeof(ud));
    take_requests(a.qp);
    return ud;
}


static void handles_are_cheap(void)
{
    device = open_device();
    ah_to(&device);
    long before = hook.commands("query_port");
    for (int i = 0; i < 10; i++)
        ah_to(&device);
    long asked = hook.commands("query_port") - before;
    CHECK(asked == 0, "%ld commands for 10 address handles", asked);
}

static int has_ipv6(void)
{
    struct sockaddr_in6 loopback = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int there = fd >= 0 && !bind(fd, (struct sockaddr *)&loopback, sizeof(loopback));
    if (fd >= 0)
        close(fd);
    return there;
}

/* ::1 is the one routable address a machine is sure to have, if it has IPv6 at all; else the network must have been asked. */
static void routable_ipv6(void)
{
    device = open_device();
    struct ibv_ah_attr attr = ah_attr_to(&device);
    memset(attr.grh.dgid.raw, 0, 15);
    attr.grh.dgid.raw[15] = 1;
    errno = 0;
    struct ibv_ah *ah = ibv_create_ah(device.pd, &attr);
    CHECK(ah || errno, "refused without a reason");
    CHECK(ah || !has_ipv6(), "refused");
}

static uint32_t traffic_word(struct ibv_ah_attr attr)
{
    struct ibv_ah *ah = ibv_create_ah(device.pd, &attr);
    CHECK(ah);
    return address_of(ah).av.sl_tclass_flowlabel;
}

static void flow_label(void)
{
    open_datagrams(1);
    struct ibv_ah_attr attr = ah_attr_to(&device);
    attr.grh.flow_label = 0xfff12345;
    attr.grh.traffic_class = 0x42;
    uint32_t word = traffic_word(attr) & 0x0fffffff;
    CHECK(word == 0x04212345, "traffic class and flow label are %07x", word);
}

static void service_level(void)
{
    open_datagrams(1);
    struct ibv_ah_attr attr = ah_attr_to(&device);
    attr.sl = 5;
    uint32_t word = traffic_word(attr);
    CHECK(word >> 28 == 5, "the service level is %u", word >> 28);
}

/* One may send to a group, and its MAC follows from its address. */
static void groups(void)
{
    static const struct {
        const char *gid;
        uint8_t mac[6];
    } all[] = {
        {"ff0e::e001:203", {0x33, 0x33, 0xe0, 1, 2, 3}},
        {"::ffff:239.129.2.3", {1, 0, 0x5e, 1, 2, 3}},
    };
    open_datagrams(1);
    struct ibv_ah_attr attr = ah_attr_to(&device);
    for (size_t i = 0; i < COUNT(all); i++) {
        CHECK(inet_pton(AF_INET6, all[i].gid, attr.grh.dgid.raw) == 1);
        struct ibv_ah *ah = ibv_create_ah(device.pd, &attr);
        CHECK(ah, "no address handle for %s", all[i].gid);
        struct pvrdma_wr_ud ud = address_of(ah);
        const uint8_t *mac = ud.av.dmac;
        CHECK(!memcmp(mac, all[i].mac, 6), "%s is %02x:%02x:%02x:%02x:%02x:%02x", all[i].gid, mac[0], mac[1], mac[2], mac[3],
              mac[4], mac[5]);
    }
    CHECK(ibv_attach_mcast(a.qp, &attr.grh.dgid, 0) == EOPNOTSUPP);
}

/* ---- races ---- */

/* Another thread that begins when told to, and for whose end one does not wait for ever. */
struct other {
    pthread_t thread;
    int begin, done;
    uint32_t handle;
    struct ibv_qp *qp;
    uint32_t tail;
};

static int wait_for(int *flag, double ms)
{
    double limit = now_ms() + ms;
    while (!__atomic_load_n(flag, __ATOMIC_ACQUIRE) && now_ms() < limit)
        usleep(1000);
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

static void *create_again(void *argument)
{
    struct other *other = argument;
    CHECK(wait_for(&other->begin, 30000));
    struct ibv_qp_init_attr init = plain_qp(a.cq, IBV_QPT_RC);
    other->qp = ibv_create_qp(device.pd, &init);
    CHECK(other->qp);
    struct pvrdma_cqe cqe = {.wr_id = 5, .qp = other->handle};
    put_cqe(a.cq, cqe);
    __atomic_store_n(&other->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* The kernel has let go of the QP, and the thread that destroys it does not know yet. A provider may have the other wait. */
static void destroyed(void *argument)
{
    struct other *other = argument;
    __atomic_store_n(&other->begin, 1, __ATOMIC_RELEASE);
    wait_for(&other->done, 2000);
}

/* A QP is destroyed while another thread creates one; the device gives the new one the handle that has just become free. */
static void handle_reused(void)
{
    device = open_device();
    a = open_end(&device, (struct shape){0});
    CHECK(!hook.freeze(1));
    struct other other = {.handle = hook.handle(a.qp->handle)};
    CHECK(!hook.answer("qp_handle", other.handle));
    CHECK(!pthread_create(&other.thread, NULL, create_again, &other));
    CHECK(!hook.call("destroy_qp", destroyed, &other));
    CHECK(!ibv_destroy_qp(a.qp));
    CHECK(!pthread_join(other.thread, NULL));
    struct ibv_wc wc = poll_one(a.cq);
    CHECK(wc.wr_id == 5 && wc.qp_num == other.qp->qp_num);
}

static void *reset(void *argument)
{
    struct other *other = argument;
    CHECK(wait_for(&other->begin, 30000));
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RESET};
    CHECK(!ibv_modify_qp(a.qp, &attr, IBV_QP_STATE));
    __atomic_store_n(&other->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* The doorbell is rung while the poster still holds its queue. Whoever does not care about that is done soon. */
static void posting(void *argument)
{
    struct other *other = argument;
    __atomic_store_n(&other->begin, 1, __ATOMIC_RELEASE);
    wait_for(&other->done, 1000);
    other->tail = __atomic_load_n(&state_page(a.qp->handle)->tx.prod_tail, __ATOMIC_ACQUIRE);
}

/* A QP is reset while another thread posts to it. */
static void reset_while_posting(void)
{
    open_frozen_pair((struct shape){0});
    struct other other = {0};
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = work(IBV_WR_SEND, &sge);
    CHECK(!pthread_create(&other.thread, NULL, reset, &other));
    CHECK(!hook.call("send", posting, &other));
    post_send(&a, &wr);
    CHECK(!pthread_join(other.thread, NULL));
    CHECK(other.tail == 1, "the ring was emptied below the poster");
    CHECK(state_page(a.qp->handle)->tx.prod_tail == 0);
}

/* All that one may want of a CQ that another thread polls. */
static void *use_polled_cq(void *argument)
{
    struct other *other = argument;
    CHECK(wait_for(&other->begin, 30000));
    struct ibv_wc wc;
    struct ibv_qp_init_attr init = plain_qp(a.cq, IBV_QPT_RC);
    struct end end = {.qp = ibv_create_qp(device.pd, &init)};
    CHECK(end.qp);
    CHECK(!ibv_req_notify_cq(a.cq, 0));
    CHECK(!ibv_poll_cq(a.cq, 1, &wc));
    to_init(&end);
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RESET};
    CHECK(!ibv_modify_qp(end.qp, &attr, IBV_QP_STATE));
    CHECK(!ibv_destroy_qp(end.qp));
    __atomic_store_n(&other->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* POLL is heard, and its store takes long: an exit of the virtual machine, or a device that looks for work meanwhile. */
static void polling(void *argument)
{
    struct other *other = argument;
    __atomic_store_n(&other->begin, 1, __ATOMIC_RELEASE);
    CHECK(wait_for(&other->done, 30000), "a thread waits as long as the device does");
}

static void slow_poll(void)
{
    struct ibv_wc wc;
    open_frozen_pair((struct shape){0});
    struct other other = {0};
    CHECK(!pthread_create(&other.thread, NULL, use_polled_cq, &other));
    CHECK(!hook.call("poll", polling, &other));
    CHECK(!ibv_poll_cq(a.cq, 1, &wc));
    CHECK(!pthread_join(other.thread, NULL));
}

static const struct test_case CASES[] = {
    {"opcodes", opcodes},
    {"invalidate_key", invalidate_key},
    {"completion_opcodes", completion_opcodes},
    {"completion_flags", completion_flags},
    {"vendor_err", vendor_err},
    {"stray_completion", stray_completion},
    {"broken_ring", broken_ring},
    {"handle_reused", handle_reused},
    {"large_handles", large_handles},
    {"endless_rounding", endless_rounding},
    {"rounded_to_one", rounded_to_one},
    {"above_limits", above_limits},
    {"odd_max_cqe", odd_max_cqe},
    {"odd_max_srq_wr", odd_max_srq_wr},
    {"inline_not_asked_for", inline_not_asked_for},
    {"no_address", no_address},
    {"datagram_opcode", datagram_opcode},
    {"negative_send", negative_send},
    {"negative_recv", negative_recv},
    {"negative_srq_recv", negative_srq_recv},
    {"stale_header", stale_header},
    {"unnamed_request", unnamed_request},
    {"null_list", null_list},
    {"reset_while_posting", reset_while_posting},
    {"query_in_reset", query_in_reset},
    {"query_signaling", query_signaling},
    {"no_errno_for_cq", no_errno_for_cq},
    {"no_errno_for_ah", no_errno_for_ah},
    {"changed_caps", changed_caps},
    {"handles_are_cheap", handles_are_cheap},
    {"routable_ipv6", routable_ipv6},
    {"flow_label", flow_label},
    {"service_level", service_level},
    {"groups", groups},
    {"other_iova", other_iova},
    {"extended_verbs", extended_verbs},
    {"other_length", other_length},
    {"partial_poll", partial_poll},
    {"empty_polls", empty_polls},
    {"slow_poll", slow_poll},
};

int main(int argc, char **argv)
{
    /* A provider that loops for ever ends here, however busy the machine is; one that crashes leaves no core. */
    const struct rlimit seconds = {3, 4}, none = {0, 0};
    CHECK(!setrlimit(RLIMIT_CPU, &seconds) && !setrlimit(RLIMIT_CORE, &none));
    if (argc > 1)
        find_hooks();
    return run_cases(CASES, COUNT(CASES), argc, argv);
}

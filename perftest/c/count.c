/*
 * Calls each hot verb a known way from a function of its own, for callgrind to count.
 *
 * Between posting and polling there is a pause, so that what is polled for is there and no poll comes too early.
 */
#include "../../tests/c/rc.h"

#define ROUNDS 50
#define LIST 16

static struct device device;
static struct end a, b;

static __attribute__((noinline)) int post_send_1(struct ibv_send_wr *wr)
{
    struct ibv_send_wr *bad;
    return ibv_post_send(a.qp, wr, &bad);
}

static __attribute__((noinline)) int post_send_16(struct ibv_send_wr *wr)
{
    struct ibv_send_wr *bad;
    return ibv_post_send(a.qp, wr, &bad);
}

static __attribute__((noinline)) int post_recv_1(struct ibv_recv_wr *wr)
{
    struct ibv_recv_wr *bad;
    return ibv_post_recv(b.qp, wr, &bad);
}

static __attribute__((noinline)) int poll_cq_1(struct ibv_wc *wc)
{
    return ibv_poll_cq(a.cq, 1, wc);
}

static __attribute__((noinline)) int poll_cq_16(struct ibv_wc *wc)
{
    return ibv_poll_cq(a.cq, LIST, wc);
}

static __attribute__((noinline)) int poll_cq_empty(struct ibv_wc *wc)
{
    return ibv_poll_cq(a.cq, 1, wc);
}

int main(void)
{
    device = open_device();
    a = open_end(&device, (struct shape){.depth = 64});
    b = open_end(&device, (struct shape){.depth = 64});
    connect_ends(&device, &a, &b, USUAL);
    struct ibv_sge sge = sge_of(&a, 0, 8), place = sge_of(&b, 0, 8);
    struct ibv_send_wr list[LIST];
    for (int i = 0; i < LIST; i++)
        list[i] = (struct ibv_send_wr){
            .wr_id = i,
            .next = i + 1 < LIST ? &list[i + 1] : NULL,
            .opcode = IBV_WR_RDMA_WRITE,
            .send_flags = IBV_SEND_SIGNALED,
            .sg_list = &sge,
            .num_sge = 1,
            .wr.rdma = {.remote_addr = (uintptr_t)b.buffer, .rkey = b.mr->rkey},
        };
    struct ibv_send_wr one = list[LIST - 1];
    struct ibv_recv_wr recv = {.sg_list = &place, .num_sge = 1};
    struct ibv_wc wc[LIST];
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(!post_send_1(&one));
        usleep(1000);
        CHECK(poll_cq_1(wc) == 1 && wc[0].status == IBV_WC_SUCCESS);
        CHECK(poll_cq_empty(wc) == 0);
        CHECK(!post_send_16(list));
        usleep(1000);
        CHECK(poll_cq_16(wc) == LIST && wc[LIST - 1].status == IBV_WC_SUCCESS);
        CHECK(!post_recv_1(&recv));
    }
    close_end(&a);
    close_end(&b);
    close_device(&device);
    return 0;
}

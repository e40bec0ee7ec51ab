/*
 * Work requests that invalidate keys, which no stock program posts: off until PVRDMA_ENABLE says otherwise, and never
 * taken for another operation. The provider reads the variable when a context is opened.
 *
 * Only keys of fast-register regions can be invalidated, and user space has none: so what shows that the right
 * operation went out is who turns it down, and how.
 */
#include "rc.h"

static struct device device;
static struct end a, b;

static void open_pair(const char *enable)
{
    CHECK(!setenv("PVRDMA_ENABLE", enable, 1));
    open_both(&device, &a, &b, (struct shape){0}, USUAL);
    post_recv(&b, 100, 0, 64);
}

static void close_pair(void)
{
    close_both(&device, &a, &b);
}

static struct ibv_send_wr work(enum ibv_wr_opcode opcode, struct ibv_sge *sge, uint32_t rkey)
{
    return (struct ibv_send_wr){
        .wr_id = 1,
        .opcode = opcode,
        .send_flags = IBV_SEND_SIGNALED,
        .sg_list = sge,
        .num_sge = sge ? 1 : 0,
        .invalidate_rkey = rkey,
    };
}

/* The call fails, names the work request, and the connection works on. */
static void expect_refusal(struct ibv_send_wr wr)
{
    struct ibv_send_wr *bad = NULL;
    int error = ibv_post_send(a.qp, &wr, &bad);
    CHECK(error == EINVAL || error == EOPNOTSUPP, "post_send gives %d", error);
    CHECK(bad == &wr);
    expect_nothing(&a);
    CHECK(state_of(&a) == IBV_QPS_RTS);
}

static void refused_by_default(void)
{
    open_pair("");
    struct ibv_sge sge = sge_of(&a, 0, 8);
    expect_refusal(work(IBV_WR_SEND_WITH_INV, &sge, b.mr->rkey));
    expect_refusal(work(IBV_WR_LOCAL_INV, NULL, a.mr->rkey));
    struct ibv_send_wr send = work(IBV_WR_SEND, &sge, 0);
    post_send(&a, &send);
    expect_wc(&a, 1, IBV_WC_SUCCESS);
    expect_wc(&b, 100, IBV_WC_SUCCESS);
    close_pair();
}

/* The message gets to the other end, which refuses to give up a region that is not the peer's to invalidate. */
static void send_with_inv(void)
{
    open_pair("send_with_inv");
    memset(a.buffer, 0x11, 64);
    memset(b.buffer, 0x22, 64);
    struct ibv_sge sge = sge_of(&a, 0, 64);
    struct ibv_send_wr wr = work(IBV_WR_SEND_WITH_INV, &sge, b.mr->rkey);
    post_send(&a, &wr);
    expect_wc(&a, 1, IBV_WC_REM_ACCESS_ERR);
    expect_wc(&b, 100, IBV_WC_WR_FLUSH_ERR);
    expect_value(b.buffer, 64, 0x22);
    close_pair();
}

/* Turned down on this side; the other one has heard nothing of it. */
static void local_inv(void)
{
    open_pair("local_inv");
    struct ibv_send_wr wr = work(IBV_WR_LOCAL_INV, NULL, a.mr->rkey);
    post_send(&a, &wr);
    struct ibv_wc wc = wait_wc(&a);
    CHECK(wc.wr_id == 1 && wc.status == IBV_WC_MW_BIND_ERR, "%s", ibv_wc_status_str(wc.status));
    CHECK(state_of(&b) == IBV_QPS_RTS);
    expect_nothing(&b);
    close_pair();
}

static const struct test_case CASES[] = {
    {"refused_by_default", refused_by_default},
    {"send_with_inv", send_with_inv},
    {"local_inv", local_inv},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, sizeof(CASES) / sizeof(CASES[0]), argc, argv);
}

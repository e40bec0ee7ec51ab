/*
 * What must be refused, and how, between two devices that need not be of one kind: keys, lengths, receives that are
 * late, peers that are gone. Both sides do the same cases.
 *
 *   wire -g INDEX -p PORT [-l] [-c CASE]             waits for the other side, and answers
 *   wire -g INDEX -p PORT [-l] [-c CASE] ADDRESS     goes to it, and asks
 *
 * With -l the device of this side is Linux's software RoCE. What it answers is right in another way here and there:
 *
 *   - No event tells the program whose memory was asked for, and its receives may stay where they are.
 *   - A message that is longer than the receive is an operation error, not a request that is not valid.
 *   - An atomic that is not aligned cannot be posted.
 *   - When a process ends its regions go before its QPs, so peers may be told of a key that is none.
 *
 * Data that are right are the matter of data.c.
 */
#include <getopt.h>
#include <signal.h>
#include <sys/wait.h>

#include "meet.h"

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))
#define QKEY 0x11223344
#define GRH 40
#define REGION 65536

/* 67 ms and 3 more tries; one more where there is no receive. */
static const struct patience SHORT = {.timeout = 14, .retry_cnt = 3, .rnr_retry = 1};

struct address {
    uint32_t qp_num, rkey;
    uint64_t buffer;
    union ibv_gid gid;
};

static const char *port, *host;
/* What -l says, of this side and of the other one. */
static char linux_here, linux_there;
static int peer = -1;
static struct device device;
static struct end end;
static struct address there;

static int asks(void)
{
    return host != NULL;
}

/* Both sides are at this place of the program. */
static void together(void)
{
    char byte = 1;
    CHECK(tell(peer, &byte, 1) && hear(peer, &byte, 1), "the other side is gone");
}

static void exchange(struct ibv_qp *qp)
{
    struct address mine = {qp->qp_num, end.mr->rkey, (uintptr_t)end.buffer, device.gid};
    CHECK(tell(peer, &mine, sizeof(mine)) && hear(peer, &there, sizeof(there)), "the other side is gone");
}

/* A connection; the answering side's region has these rights. */
static void begin(int access, struct patience patience)
{
    device = open_device();
    end = open_end(&device, (struct shape){.length = REGION, .access = asks() ? ALL_ACCESS : access});
    memset(end.buffer, 0x11, REGION);
    exchange(end.qp);
    to_init(&end);
    if (!asks()) {
        struct ibv_qp_attr attr = {.qp_access_flags = ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC};
        CHECK(!ibv_modify_qp(end.qp, &attr, IBV_QP_ACCESS_FLAGS));
    }
    to_rtr(&end, there.qp_num, there.gid);
    to_rts(&end, patience);
    together();
}

static void finish(void)
{
    together();
    close_end(&end);
    close_device(&device);
}

static struct ibv_send_wr work(enum ibv_wr_opcode opcode, uint64_t place, uint32_t rkey, struct ibv_sge *sge)
{
    struct ibv_send_wr wr = {.wr_id = 1, .opcode = opcode, .sg_list = sge, .num_sge = 1};
    if (opcode == IBV_WR_ATOMIC_FETCH_AND_ADD || opcode == IBV_WR_ATOMIC_CMP_AND_SWP) {
        wr.wr.atomic.remote_addr = place;
        wr.wr.atomic.rkey = rkey;
        wr.wr.atomic.compare_add = 1;
    } else {
        wr.wr.rdma.remote_addr = place;
        wr.wr.rdma.rkey = rkey;
    }
    return wr;
}

/* It fails with this status, what is behind it is flushed, the QP is in ERR. */
static void fails(struct ibv_send_wr wr, enum ibv_wc_status status)
{
    struct ibv_sge sge = sge_of(&end, 0, 8);
    struct ibv_send_wr behind = work(IBV_WR_RDMA_WRITE, there.buffer, there.rkey, &sge);
    behind.wr_id = 99;
    wr.next = &behind;
    post_send(&end, &wr);
    expect_wc(&end, 1, status);
    expect_wc(&end, 99, IBV_WC_WR_FLUSH_ERR);
    CHECK(state_of(&end) == IBV_QPS_ERR, "state %d", state_of(&end));
}

/* The answering side is told: what it had posted comes back, its QP is in ERR, and there is an event. */
static void is_told(enum ibv_event_type type)
{
    struct pollfd fd = {.fd = device.context->async_fd, .events = POLLIN};
    struct ibv_async_event event;
    if (linux_here)
        return;
    expect_wc(&end, 70, IBV_WC_WR_FLUSH_ERR);
    CHECK(state_of(&end) == IBV_QPS_ERR, "state %d", state_of(&end));
    CHECK(poll(&fd, 1, 2000) == 1, "no event, not %s", ibv_event_type_str(type));
    CHECK(!ibv_get_async_event(device.context, &event));
    CHECK(event.event_type == type && event.element.qp == end.qp, "%s, not %s", ibv_event_type_str(event.event_type),
          ibv_event_type_str(type));
    ibv_ack_async_event(&event);
}

/* One request that is refused, and no byte has changed. `place` is counted from the region's start. */
static void refused(enum ibv_wr_opcode opcode, int access, uint64_t place, uint32_t length, uint32_t key,
                    enum ibv_wc_status status, enum ibv_event_type type)
{
    begin(access, USUAL);
    if (asks()) {
        memset(end.buffer, 0x22, REGION);
        struct ibv_sge sge = sge_of(&end, 0, length);
        fails(work(opcode, there.buffer + place, there.rkey ^ key, &sge), status);
        expect_value(end.buffer, REGION, 0x22);
        together();
    } else {
        post_recv(&end, 70, 0, 64);
        is_told(type);
        together();
        expect_value(end.buffer, REGION, 0x11);
    }
    finish();
}

static const enum ibv_wr_opcode ONE_SIDED[] = {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_ATOMIC_FETCH_AND_ADD,
                                               IBV_WR_ATOMIC_CMP_AND_SWP};

/* ---- cases ---- */

static void wrong_key(void)
{
    for (size_t i = 0; i < COUNT(ONE_SIDED); i++)
        refused(ONE_SIDED[i], ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC, 0, 8, 0x5500, IBV_WC_REM_ACCESS_ERR,
                IBV_EVENT_QP_ACCESS_ERR);
}

static void no_right(void)
{
    for (size_t i = 0; i < COUNT(ONE_SIDED); i++)
        refused(ONE_SIDED[i], IBV_ACCESS_LOCAL_WRITE, 0, 8, 0, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
}

/* One byte too far, in one packet and in several, and an address before the region. */
static void beyond_region(void)
{
    for (size_t i = 0; i < 2; i++) {
        refused(ONE_SIDED[i], ALL_ACCESS, REGION - 7, 8, 0, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
        refused(ONE_SIDED[i], ALL_ACCESS, REGION - 4999, 5000, 0, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
        refused(ONE_SIDED[i], ALL_ACCESS, -8, 16, 0, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
    }
}

static void unaligned_atomic(void)
{
    if (asks() ? linux_here : linux_there)
        return;
    for (size_t i = 2; i < COUNT(ONE_SIDED); i++)
        refused(ONE_SIDED[i], ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC, 4, 8, 0, IBV_WC_REM_INV_REQ_ERR,
                IBV_EVENT_QP_REQ_ERR);
}

/* A message that is longer than the receive. */
static void long_message(void)
{
    static const uint32_t lengths[][2] = {{64, 32}, {5000, 1500}, {5000, 4999}};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        begin(ALL_ACCESS, USUAL);
        if (asks()) {
            struct ibv_sge sge = sge_of(&end, 0, lengths[i][0]);
            together();
            fails(work(IBV_WR_SEND, 0, 0, &sge), linux_there ? IBV_WC_REM_OP_ERR : IBV_WC_REM_INV_REQ_ERR);
        } else {
            post_recv(&end, 60, 0, lengths[i][1]);
            post_recv(&end, 70, 0, 64);
            together();
            expect_wc(&end, 60, linux_here ? IBV_WC_LOC_QP_OP_ERR : IBV_WC_LOC_LEN_ERR);
            if (!linux_here) {
                expect_wc(&end, 70, IBV_WC_WR_FLUSH_ERR);
                CHECK(state_of(&end) == IBV_QPS_ERR, "state %d", state_of(&end));
            }
            expect_value(end.buffer + lengths[i][1], REGION - lengths[i][1], 0x11);
        }
        finish();
    }
}

/* Receives that come late: the message waits and is whole. */
static void late_receive(void)
{
    begin(ALL_ACCESS, USUAL);
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t length = i % 2 ? 5000 : 100;
        if (asks()) {
            fill(end.buffer, length, i);
            struct ibv_sge sge = sge_of(&end, 0, length);
            struct ibv_send_wr wr = work(IBV_WR_SEND, 0, 0, &sge);
            wr.send_flags = IBV_SEND_SIGNALED;
            post_send(&end, &wr);
            expect_wc(&end, 1, IBV_WC_SUCCESS);
        } else {
            usleep(50000);
            post_recv(&end, 70, 0, REGION);
            CHECK(expect_wc(&end, 70, IBV_WC_SUCCESS).byte_len == length);
            expect_bytes(end.buffer, length, i);
        }
        together();
    }
    finish();
}

/* Receives that never come. */
static void no_receive(void)
{
    begin(ALL_ACCESS, SHORT);
    if (asks()) {
        struct ibv_sge sge = sge_of(&end, 0, 5000);
        fails(work(IBV_WR_SEND, 0, 0, &sge), IBV_WC_RNR_RETRY_EXC_ERR);
    }
    together();
    if (!asks())
        CHECK(state_of(&end) == IBV_QPS_RTS, "state %d", state_of(&end));
    finish();
}

/* The other side's QP is gone. */
static void no_peer(void)
{
    begin(ALL_ACCESS, SHORT);
    if (!asks()) {
        struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RESET};
        CHECK(!ibv_modify_qp(end.qp, &attr, IBV_QP_STATE));
    }
    together();
    if (asks()) {
        struct ibv_sge sge = sge_of(&end, 0, 8);
        fails(work(IBV_WR_RDMA_WRITE, there.buffer, there.rkey, &sge), IBV_WC_RETRY_EXC_ERR);
    }
    finish();
}

/* The other side is killed while data flow. */
static void killed(void)
{
    pid_t child = asks() ? 0 : fork();
    CHECK(child >= 0);
    if (child) {
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %x", status);
        together();
        return;
    }
    begin(ALL_ACCESS, SHORT);
    if (!asks()) {
        char byte;
        CHECK(hear(peer, &byte, 1));
        kill(getpid(), SIGKILL);
    }
    struct ibv_sge sge = sge_of(&end, 0, 10000);
    struct ibv_send_wr wr = work(IBV_WR_RDMA_WRITE, there.buffer, there.rkey, &sge);
    wr.send_flags = IBV_SEND_SIGNALED;
    struct ibv_wc wc;
    int count = 0;
    do {
        post_send(&end, &wr);
        wc = wait_wc(&end);
        if (++count == 20)
            CHECK(tell(peer, "", 1));
    } while (wc.status == IBV_WC_SUCCESS);
    int right = wc.status == IBV_WC_RETRY_EXC_ERR || (linux_there && wc.status == IBV_WC_REM_ACCESS_ERR);
    CHECK(count > 20 && right, "%s after %d", ibv_wc_status_str(wc.status), count);
    CHECK(state_of(&end) == IBV_QPS_ERR, "state %d", state_of(&end));
    finish();
}

/* A datagram with another Q_Key is lost; one with the right one says where it comes from, and can be answered. */
static void datagram(void)
{
    device = open_device();
    end = open_end(&device, (struct shape){.length = REGION});
    struct ibv_qp_init_attr init = {
        .send_cq = end.cq,
        .recv_cq = end.cq,
        .qp_type = IBV_QPT_UD,
        .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp *unused = end.qp;
    end.qp = ibv_create_qp(device.pd, &init);
    CHECK(end.qp);
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qkey = QKEY};
    CHECK(!ibv_modify_qp(end.qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY));
    attr.qp_state = IBV_QPS_RTR;
    CHECK(!ibv_modify_qp(end.qp, &attr, IBV_QP_STATE));
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .sq_psn = 7};
    CHECK(!ibv_modify_qp(end.qp, &attr, IBV_QP_STATE | IBV_QP_SQ_PSN));
    exchange(end.qp);
    post_recv(&end, 70, 0, 2048);
    together();

    struct ibv_sge sge = sge_of(&end, 4096, 600);
    struct ibv_send_wr wr = {.wr_id = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED, .sg_list = &sge,
                             .num_sge = 1, .wr.ud = {.remote_qpn = there.qp_num, .remote_qkey = QKEY}};
    fill(end.buffer + 4096, 600, asks());
    if (asks()) {
        struct ibv_ah_attr to = {.is_global = 1, .port_num = 1,
                                 .grh = {.dgid = there.gid, .sgid_index = gid_index, .hop_limit = 1}};
        wr.wr.ud.ah = ibv_create_ah(device.pd, &to);
        CHECK(wr.wr.ud.ah);
        struct ibv_send_wr wrong = wr;
        wrong.wr.ud.remote_qkey ^= 1;
        post_send(&end, &wrong);
        expect_wc(&end, 1, IBV_WC_SUCCESS);
        post_send(&end, &wr);
        expect_wc(&end, 1, IBV_WC_SUCCESS);
    }
    struct ibv_wc wc = expect_wc(&end, 70, IBV_WC_SUCCESS);
    CHECK(wc.byte_len == GRH + 600 && wc.wc_flags & IBV_WC_GRH && wc.src_qp == there.qp_num, "%u bytes, flags %x, QP %u",
          wc.byte_len, wc.wc_flags, wc.src_qp);
    expect_bytes(end.buffer + GRH, 600, !asks());
    /* The network's head is IPv4's, in the last 20 bytes: from there, to here. */
    CHECK(end.buffer[20] == 0x45, "%x", end.buffer[20]);
    CHECK(!memcmp(end.buffer + 32, there.gid.raw + 12, 4) && !memcmp(end.buffer + 36, device.gid.raw + 12, 4));
    if (!asks()) {
        wr.wr.ud.ah = ibv_create_ah_from_wc(device.pd, &wc, (struct ibv_grh *)end.buffer, 1);
        CHECK(wr.wr.ud.ah, "no address handle from a completion");
        wr.wr.ud.remote_qpn = wc.src_qp;
        post_send(&end, &wr);
        expect_wc(&end, 1, IBV_WC_SUCCESS);
    }
    together();
    CHECK(!ibv_destroy_ah(wr.wr.ud.ah));
    CHECK(!ibv_destroy_qp(unused));
    close_end(&end);
    close_device(&device);
}

static const struct test_case CASES[] = {
    {"wrong_key", wrong_key},       {"no_right", no_right},         {"beyond_region", beyond_region},
    {"long_message", long_message}, {"late_receive", late_receive}, {"unaligned_atomic", unaligned_atomic},
    {"no_receive", no_receive},     {"no_peer", no_peer},           {"killed", killed},
    {"datagram", datagram},
};

int main(int argc, char **argv)
{
    const char *name = NULL;
    int option, done = 0;
    while ((option = getopt(argc, argv, "g:p:c:l")) != -1)
        switch (option) {
        case 'g':
            gid_index = atoi(optarg);
            break;
        case 'p':
            port = optarg;
            break;
        case 'c':
            name = optarg;
            break;
        case 'l':
            linux_here = 1;
            break;
        default:
            return 2;
        }
    host = argv[optind];
    peer = meet(port, host, 60);
    CHECK(peer >= 0, "nobody is there");
    CHECK(tell(peer, &linux_here, 1) && hear(peer, &linux_there, 1), "the other side is gone");
    for (size_t i = 0; i < COUNT(CASES); i++) {
        if (name && strcmp(name, CASES[i].name))
            continue;
        CASES[i].run();
        printf("ok %s\n", CASES[i].name);
        fflush(stdout);
        done++;
    }
    CHECK(done, "no case is called %s", name);
    return 0;
}

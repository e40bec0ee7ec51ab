/*
 * Two programs, each in a guest of its own, on one host or on two: every operation with checked bytes, and each error
 * as both ends see it.
 *
 *   apart                             lists the cases
 *   apart CASE... -p PORT [ADDRESS]   runs them; the other program is started with the same cases, and one has ADDRESS
 *   apart load [OPTIONS] -p PORT [ADDRESS]
 *
 * The one with ADDRESS asks, the other one answers. `all` stands for all cases. -g INDEX takes another GID than the
 * first one. `load` has both of them write, read,
 * send and add without end, and check what has come:
 *
 *   -u FILE      until FILE is there
 *   -t TIMEOUT   the QP's timer as ibv_modify_qp takes it, 20 (4.3 s, seven times) if not given
 *
 * Now and then it says that it is running. Its exit status is 3 when nobody has answered in time: the other one, or
 * what is between them, is gone.
 */
#define _GNU_SOURCE
#include <getopt.h>

#include "meet.h"

#define ALL (ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC)
/* What is sent lies in front, behind it what the other one writes, reads and sends, a part each. */
#define PART (4u << 20)
#define OUT 0
#define IN PART
#define RECEIVED (2 * PART)
#define COUNTER (3 * PART)
#define LENGTH (3 * PART + 4096)
/* What a frame between hosts holds at most. */
#define PIECE (256u << 10)

static const struct patience SHORT = {.timeout = 12, .retry_cnt = 1, .rnr_retry = 1};

struct address {
    uint32_t qp_num, rkey;
    uint64_t buffer;
    union ibv_gid gid;
};

static struct device device;
static struct end end;
static struct address theirs;
static int fd, asks;

/* Both are here. */
static void together(void)
{
    char byte = 1;
    CHECK(tell(fd, &byte, 1) && hear(fd, &byte, 1), "the other one is gone");
}

static void open_link(struct patience patience)
{
    end = open_end(&device, (struct shape){.length = LENGTH, .access = ALL});
    struct address mine = {end.qp->qp_num, end.mr->rkey, (uintptr_t)end.buffer, device.gid};
    CHECK(tell(fd, &mine, sizeof(mine)) && hear(fd, &theirs, sizeof(theirs)));
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL};
    CHECK(!ibv_modify_qp(end.qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
    to_rtr(&end, theirs.qp_num, theirs.gid);
    to_rts(&end, patience);
    together();
}

static void close_link(void)
{
    together();
    close_end(&end);
}

/* A request of `length` bytes from `out` on; one-sided ones go to `remote` bytes behind the other one's buffer. */
static void ask_from(enum ibv_wr_opcode opcode, uint64_t wr_id, size_t out, uint32_t length, uint64_t remote)
{
    struct ibv_sge sge = sge_of(&end, out, length);
    struct ibv_send_wr wr = {
        .wr_id = wr_id,
        .opcode = opcode,
        .send_flags = IBV_SEND_SIGNALED,
        .sg_list = &sge,
        .num_sge = length ? 1 : 0,
        .wr.rdma = {.remote_addr = theirs.buffer + remote, .rkey = theirs.rkey},
    };
    if (opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        wr.wr.atomic.remote_addr = theirs.buffer + remote;
        wr.wr.atomic.rkey = theirs.rkey;
        wr.wr.atomic.compare_add = 1;
    }
    post_send(&end, &wr);
}

static void ask(enum ibv_wr_opcode opcode, uint64_t wr_id, uint32_t length, uint64_t remote)
{
    ask_from(opcode, wr_id, OUT, length, remote);
}

/* The request behind one that has failed is flushed. */
static void is_refused(enum ibv_wc_status status)
{
    ask(IBV_WR_RDMA_WRITE, 99, 8, IN);
    expect_wc(&end, 1, status);
    expect_wc(&end, 99, IBV_WC_WR_FLUSH_ERR);
    CHECK(state_of(&end) == IBV_QPS_ERR, "state %d", state_of(&end));
}

static void expect_event(enum ibv_event_type type)
{
    struct pollfd poller = {.fd = device.context->async_fd, .events = POLLIN};
    struct ibv_async_event event;
    CHECK(poll(&poller, 1, 10000) == 1, "no event, not %s", ibv_event_type_str(type));
    CHECK(!ibv_get_async_event(device.context, &event));
    CHECK(event.event_type == type, "%s, not %s", ibv_event_type_str(event.event_type), ibv_event_type_str(type));
    ibv_ack_async_event(&event);
}

static void lives(void)
{
    CHECK(state_of(&end) == IBV_QPS_RTS, "state %d", state_of(&end));
    expect_nothing(&end);
}

/* ---- cases: data ---- */

static void sizes(void)
{
    static const uint32_t lengths[] = {0,         1,         4095,          4096,      PIECE - 1,    PIECE,
                                       PIECE + 1, 2 * PIECE, 2 * PIECE + 1, 1u << 20, (1u << 20) + 1, PART};
    open_link(USUAL);
    for (uint32_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        uint32_t length = lengths[i];
        fill(end.buffer + OUT, length, i);
        if (!asks)
            post_recv(&end, i, RECEIVED, length);
        together();
        if (asks) {
            ask(IBV_WR_RDMA_WRITE, 1, length, IN);
            ask_from(IBV_WR_RDMA_READ, 2, IN, length, OUT);
            ask(IBV_WR_SEND, 3, length, 0);
            for (uint64_t wr_id = 1; wr_id <= 3; wr_id++)
                expect_wc(&end, wr_id, IBV_WC_SUCCESS);
        } else {
            struct ibv_wc wc = expect_wc(&end, i, IBV_WC_SUCCESS);
            CHECK(wc.byte_len == length, "%u bytes, not %u", wc.byte_len, length);
            expect_bytes(end.buffer + RECEIVED, length, i);
        }
        together();
        expect_bytes(end.buffer + IN, length, i);
    }
    close_link();
}

static void atomics(void)
{
    open_link(USUAL);
    /* Both at once, each on the other one's. */
    for (uint64_t i = 0; i < 200; i++) {
        ask_from(IBV_WR_ATOMIC_FETCH_AND_ADD, i, OUT, 8, COUNTER);
        expect_wc(&end, i, IBV_WC_SUCCESS);
        CHECK(*(uint64_t *)(end.buffer + OUT) == i, "%llu, not %llu",
              (unsigned long long)*(uint64_t *)(end.buffer + OUT), (unsigned long long)i);
    }
    together();
    CHECK(*(uint64_t *)(end.buffer + COUNTER) == 200);
    close_link();
}

/* A receive comes late, and is waited for. */
static void receive_comes_late(void)
{
    open_link((struct patience){.timeout = 14, .retry_cnt = 7, .rnr_retry = 7});
    if (asks) {
        fill(end.buffer + OUT, 2 * PIECE + 1, 5);
        ask(IBV_WR_SEND, 1, 2 * PIECE + 1, 0);
        expect_nothing(&end);
    }
    together();
    if (asks) {
        expect_wc(&end, 1, IBV_WC_SUCCESS);
    } else {
        post_recv(&end, 1, RECEIVED, PART);
        CHECK(expect_wc(&end, 1, IBV_WC_SUCCESS).byte_len == 2 * PIECE + 1);
        expect_bytes(end.buffer + RECEIVED, 2 * PIECE + 1, 5);
    }
    close_link();
}

/* ---- cases: errors ---- */

/* What a refused request does at both ends: ERR, and an event at the one that refuses. */
static void refused(enum ibv_wr_opcode opcode, uint32_t length, uint64_t remote, enum ibv_wc_status status,
                    enum ibv_event_type event)
{
    if (!asks)
        post_recv(&end, 71, RECEIVED, 64);
    together();
    if (asks) {
        ask(opcode, 1, length, remote);
        is_refused(status);
    } else {
        expect_wc(&end, 71, IBV_WC_WR_FLUSH_ERR);
        CHECK(state_of(&end) == IBV_QPS_ERR, "state %d", state_of(&end));
        expect_event(event);
    }
    close_link();
}

static void wrong_rkey(void)
{
    static const enum ibv_wr_opcode opcodes[] = {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_ATOMIC_FETCH_AND_ADD};
    for (int i = 0; i < 3; i++) {
        open_link(SHORT);
        theirs.rkey ^= 0x5500;
        refused(opcodes[i], 8, COUNTER, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
    }
}

/* A range whose end is out of the region, far behind what the first piece holds. */
static void beyond_the_region(void)
{
    open_link(SHORT);
    refused(IBV_WR_RDMA_WRITE, PART, LENGTH - PART + 1, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
    open_link(SHORT);
    refused(IBV_WR_RDMA_READ, PART, LENGTH - PART + 1, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
}

static void region_is_gone(void)
{
    open_link(SHORT);
    if (!asks) {
        /* What is received goes to a region of its own. */
        CHECK(!ibv_dereg_mr(end.mr));
        end.mr = ibv_reg_mr(device.pd, end.buffer, LENGTH, IBV_ACCESS_LOCAL_WRITE);
        CHECK(end.mr);
    }
    refused(IBV_WR_RDMA_WRITE, 8, IN, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
}

static void no_right_to_write(void)
{
    open_link(SHORT);
    struct ibv_mr *mr = ibv_reg_mr(device.pd, end.buffer, LENGTH, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
    CHECK(mr);
    uint32_t rkey = mr->rkey;
    CHECK(tell(fd, &rkey, sizeof(rkey)) && hear(fd, &theirs.rkey, sizeof(theirs.rkey)));
    refused(IBV_WR_RDMA_WRITE, PIECE + 1, IN, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
    CHECK(!ibv_dereg_mr(mr));
}

static void atomic_at_an_odd_address(void)
{
    open_link(SHORT);
    refused(IBV_WR_ATOMIC_FETCH_AND_ADD, 8, COUNTER + 4, IBV_WC_REM_INV_REQ_ERR, IBV_EVENT_QP_REQ_ERR);
}

static void longer_than_the_receive(void)
{
    static const uint32_t receives[] = {7, PIECE, 2 * PIECE};
    for (int i = 0; i < 3; i++) {
        open_link(SHORT);
        if (!asks)
            post_recv(&end, 70, RECEIVED, receives[i]), post_recv(&end, 71, RECEIVED, 64);
        together();
        if (asks) {
            ask(IBV_WR_SEND, 1, receives[i] + 1, 0);
            is_refused(IBV_WC_REM_INV_REQ_ERR);
        } else {
            expect_wc(&end, 70, IBV_WC_LOC_LEN_ERR);
            expect_wc(&end, 71, IBV_WC_WR_FLUSH_ERR);
            CHECK(state_of(&end) == IBV_QPS_ERR, "state %d", state_of(&end));
        }
        close_link();
    }
}

static void no_receive(void)
{
    static const uint32_t lengths[] = {8, 2 * PIECE + 1};
    for (int i = 0; i < 2; i++) {
        open_link(SHORT);
        if (asks) {
            ask(IBV_WR_SEND, 1, lengths[i], 0);
            is_refused(IBV_WC_RNR_RETRY_EXC_ERR);
        }
        together();
        if (!asks)
            lives();
        close_link();
    }
}

/* Of the asker's own memory: the other end does not notice. */
static void own_key_is_wrong(void)
{
    static const enum ibv_wr_opcode opcodes[] = {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ};
    for (int i = 0; i < 2; i++) {
        open_link(SHORT);
        if (asks) {
            struct ibv_sge sge = {.addr = (uintptr_t)end.buffer, .length = PIECE + 1, .lkey = end.mr->lkey ^ 0x5500};
            struct ibv_send_wr wr = {.wr_id = 1, .opcode = opcodes[i], .sg_list = &sge, .num_sge = 1};
            wr.wr.rdma.remote_addr = theirs.buffer + IN;
            wr.wr.rdma.rkey = theirs.rkey;
            post_send(&end, &wr);
            is_refused(IBV_WC_LOC_PROT_ERR);
        }
        together();
        if (!asks)
            lives();
        close_link();
    }
}

/* Nobody answers, and the asker is told of that when its timers have run out and not before. */
static void nobody_answers(void)
{
    double took = now_ms();
    ask(IBV_WR_RDMA_WRITE, 1, 8, IN);
    is_refused(IBV_WC_RETRY_EXC_ERR);
    took = now_ms() - took;
    double patience = 0.004096 * (1 << SHORT.timeout) * (SHORT.retry_cnt + 1);
    CHECK(took >= patience, "%.0f ms of %.0f ms", took, patience);
}

static void no_such_qp(void)
{
    open_link(SHORT);
    if (asks) {
        close_end(&end);
        end = open_end(&device, (struct shape){.length = LENGTH, .access = ALL});
        to_init(&end);
        to_rtr(&end, theirs.qp_num + 0x1000, theirs.gid);
        to_rts(&end, SHORT);
        nobody_answers();
    }
    together();
    if (!asks)
        lives();
    close_link();
}

/* The address of a guest of a host that is in no list (127.250.82.1, and its link-local sister). */
static void no_such_host(void)
{
    open_link(SHORT);
    if (asks) {
        close_end(&end);
        end = open_end(&device, (struct shape){.length = LENGTH, .access = ALL});
        to_init(&end);
        union ibv_gid gid = theirs.gid;
        gid.raw[14] = 250;
        to_rtr(&end, theirs.qp_num, gid);
        to_rts(&end, SHORT);
        nobody_answers();
    }
    close_link();
}

/* The QP is destroyed under way. */
static void qp_is_gone(void)
{
    open_link(SHORT);
    if (!asks)
        CHECK(!ibv_destroy_qp(end.qp));
    together();
    if (asks)
        nobody_answers();
    together();
    if (asks) {
        close_end(&end);
        return;
    }
    CHECK(!ibv_dereg_mr(end.mr));
    CHECK(!ibv_destroy_cq(end.cq));
    CHECK(!munmap(end.buffer, end.length));
}

/* ---- load ---- */

static const char *until;
static struct patience patience = {.timeout = 20, .retry_cnt = 7, .rnr_retry = 7};
static double slowest;

enum { WRITE = 1, READ, SEND, ADD, RECEIVE };

static uint32_t length_of(uint64_t round)
{
    static const uint32_t lengths[] = {64, 4096, 65536, PIECE, PIECE + 1, (1u << 20) + 1, 8, 3000};
    return lengths[round % 8];
}

/* What has come is what the other one has sent in that round, and the next one may come. */
static void take(uint64_t *received, struct ibv_wc *wc)
{
    CHECK(wc->byte_len == length_of(*received), "%u bytes in round %llu", wc->byte_len,
          (unsigned long long)*received);
    expect_bytes(end.buffer + RECEIVED, wc->byte_len, (uint32_t)*received);
    ++*received;
    post_recv(&end, RECEIVE, RECEIVED, PART);
}

static int is_gone(struct ibv_wc *wc, double since)
{
    if (wc->status == IBV_WC_SUCCESS)
        return 0;
    int told = wc->status == IBV_WC_RETRY_EXC_ERR || wc->status == IBV_WC_WR_FLUSH_ERR;
    CHECK(told, "%s of %llu", ibv_wc_status_str(wc->status), (unsigned long long)wc->wr_id);
    printf("nobody answers after %.0f ms: %s, vendor_err %#x\n", now_ms() - since, ibv_wc_status_str(wc->status),
           wc->vendor_err);
    return 1;
}

static int load(void)
{
    uint64_t rounds = 0, received = 0, sent = 0;
    int done = 0, theirs_done = 0;
    open_link(patience);
    post_recv(&end, RECEIVE, RECEIVED, PART);
    together();
    while (!done || !theirs_done) {
        struct ibv_wc wc;
        int open = 0;
        double since = now_ms();
        if (!done) {
            uint32_t length = length_of(rounds);
            fill(end.buffer + OUT, length, (uint32_t)rounds);
            ask(IBV_WR_RDMA_WRITE, WRITE, length, IN);
            ask_from(IBV_WR_RDMA_READ, READ, OUT + PART / 2, length, IN);
            ask(IBV_WR_SEND, SEND, length, 0);
            ask_from(IBV_WR_ATOMIC_FETCH_AND_ADD, ADD, COUNTER + 8, 8, COUNTER);
            open = 4;
        }
        do {
            int n = ibv_poll_cq(end.cq, 1, &wc);
            CHECK(n >= 0);
            if (n == 1) {
                if (is_gone(&wc, since)) {
                    /* Whoever does not answer may be in the middle of a copy, and is waited for by nobody. */
                    close_end(&end);
                    close_device(&device);
                    return 3;
                }
                if (wc.wr_id == RECEIVE)
                    take(&received, &wc);
                else
                    open--;
            }
            CHECK(now_ms() < since + 120000, "no completion in round %llu", (unsigned long long)rounds);
        } while (open);
        if (!done) {
            expect_bytes(end.buffer + OUT + PART / 2, length_of(rounds), (uint32_t)rounds);
            uint64_t before = *(uint64_t *)(end.buffer + COUNTER + 8);
            CHECK(before == rounds, "added %llu times, not %llu", (unsigned long long)before,
                  (unsigned long long)rounds);
            rounds++;
            if (now_ms() - since > slowest)
                slowest = now_ms() - since;
            if (rounds % 16 == 8) {
                puts("running");
                fflush(stdout);
            }
            if (rounds >= 8 && until && !access(until, F_OK)) {
                done = 1;
                tell(fd, &rounds, sizeof(rounds));
            }
        }
        if (!theirs_done) {
            ssize_t n = recv(fd, &sent, sizeof(sent), MSG_DONTWAIT);
            if (n == 0) {
                puts("the other one is gone");
                return 3;
            }
            theirs_done = n == sizeof(sent);
        }
    }
    /* All of it was acknowledged, so it is here. */
    while (received < sent) {
        struct ibv_wc wc = expect_wc(&end, RECEIVE, IBV_WC_SUCCESS);
        take(&received, &wc);
    }
    printf("%llu rounds, %llu received, the longest took %.0f ms\n", (unsigned long long)rounds,
           (unsigned long long)received, slowest);
    close_link();
    close_device(&device);
    return 0;
}

static const struct test_case CASES[] = {
    {"sizes", sizes},
    {"atomics", atomics},
    {"receive_comes_late", receive_comes_late},
    {"wrong_rkey", wrong_rkey},
    {"beyond_the_region", beyond_the_region},
    {"region_is_gone", region_is_gone},
    {"no_right_to_write", no_right_to_write},
    {"atomic_at_an_odd_address", atomic_at_an_odd_address},
    {"longer_than_the_receive", longer_than_the_receive},
    {"no_receive", no_receive},
    {"own_key_is_wrong", own_key_is_wrong},
    {"no_such_qp", no_such_qp},
    {"no_such_host", no_such_host},
    {"qp_is_gone", qp_is_gone},
};
#define CASE_COUNT (sizeof(CASES) / sizeof(CASES[0]))

int main(int argc, char **argv)
{
    const char *port = NULL, *address = NULL;
    int option;
    while ((option = getopt(argc, argv, "u:t:p:g:")) != -1)
        switch (option) {
        case 'u':
            until = optarg;
            break;
        case 't':
            patience.timeout = (uint8_t)atoi(optarg);
            break;
        case 'p':
            port = optarg;
            break;
        case 'g':
            gid_index = atoi(optarg);
            break;
        default:
            return 2;
        }
    if (optind == argc)
        return run_cases(CASES, CASE_COUNT, 1, argv);
    CHECK(port, "no port");
    struct in_addr parsed;
    if (inet_pton(AF_INET, argv[argc - 1], &parsed) == 1)
        address = argv[--argc];
    asks = address != NULL;
    device = open_device();
    fd = meet(port, address, 60);
    CHECK(fd >= 0, "nobody is there");
    if (!strcmp(argv[optind], "load"))
        return load();
    for (size_t i = 0; i < CASE_COUNT; i++)
        for (int arg = optind; arg < argc; arg++)
            if (!strcmp(argv[arg], "all") || !strcmp(argv[arg], CASES[i].name))
                run_cases(CASES, CASE_COUNT, 2, (char *[]){argv[0], (char *)CASES[i].name, NULL});
    close_device(&device);
    return 0;
}

/*
 * One of many processes that are all connected to several others, as the ranks of a parallel program are.
 *
 *   crowd -p PORT -n COUNT -r RANK [-m ROUNDS]
 *
 * Rank 0 listens on PORT; all others go to it, hand over the numbers of their QPs, and get everyone's. Then each
 * rank has a QP to a few ranks before and behind it, and in every round sends each of them a message, writes into
 * its memory, adds to a counter of its where the device has atomics, and reads back. Odd ranks sleep for completions.
 * All bytes are checked; at the end everybody meets once more.
 */
#include <getopt.h>
#include <stddef.h>

#include "meet.h"

#define HOPS 4
#define LINKS (2 * HOPS)
#define MOST 1024
#define MESSAGE 700
#define PATIENCE_MS 120000

/* To the ranks so far ahead, and as far behind. */
static const int hops[HOPS] = {1, 2, 5, 11};

/* What others may know of a rank. The memory of link `l` is at `buffer + l * sizeof(struct area)`. */
struct card {
    uint32_t qp_num[LINKS], rkey;
    uint64_t buffer;
    union ibv_gid gid;
};

struct area {
    uint8_t out[MESSAGE], in[2][MESSAGE], written[MESSAGE], read[MESSAGE];
    uint64_t counter, before;
};

static struct card cards[MOST];
static int count, rank, rounds = 6, hub[MOST];
static struct ibv_qp *qps[LINKS];
static struct ibv_cq *cq;
static struct ibv_comp_channel *channel;
static struct ibv_mr *mr;
static struct area *areas;

static int neighbour(int of, int link)
{
    int hop = link % 2 ? -hops[link / 2] : hops[link / 2];
    return ((of + hop) % count + count) % count;
}

/* Link n ahead of one rank is link n behind of the other. */
static int other_end(int link)
{
    return link ^ 1;
}

/* Everybody gives `bytes` to rank 0 and gets what all gave. */
static void share(const void *mine, void *all, size_t bytes)
{
    if (rank) {
        CHECK(tell(hub[0], mine, bytes) && hear(hub[0], all, bytes * count), "rank 0 is gone");
        return;
    }
    memcpy(all, mine, bytes);
    for (int i = 1; i < count; i++)
        CHECK(hear(hub[i], (char *)all + i * bytes, bytes), "rank %d is gone", i);
    for (int i = 1; i < count; i++)
        CHECK(tell(hub[i], all, bytes * count), "rank %d is gone", i);
}

static void barrier(void)
{
    char here = 1, all[MOST];
    share(&here, all, 1);
}

static void gather_all(const char *port)
{
    if (rank) {
        /* Rank 0 may not listen yet. */
        double limit = now_ms() + PATIENCE_MS;
        struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
        place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        for (;;) {
            hub[0] = hurry(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
            if (!connect(hub[0], (struct sockaddr *)&place, sizeof(place)))
                break;
            CHECK(errno == ECONNREFUSED && now_ms() < limit, "rank 0 does not listen");
            close(hub[0]);
            usleep(20000);
        }
        CHECK(tell(hub[0], &rank, sizeof(rank)));
        return;
    }
    int listener = listen_on(port, MOST);
    for (int i = 1; i < count; i++) {
        int who, fd = hurry(accept(listener, NULL, NULL));
        CHECK(fd >= 0 && hear(fd, &who, sizeof(who)) && who > 0 && who < count && !hub[who], "rank %d", who);
        hub[who] = fd;
    }
    close(listener);
}

static void connect_link(int link)
{
    const struct card *there = &cards[neighbour(rank, link)];
    struct end end = {.qp = qps[link]};
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC};
    CHECK(!ibv_modify_qp(end.qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
    to_rtr(&end, there->qp_num[other_end(link)], there->gid);
    to_rts(&end, USUAL);
}

static void post_message(int link, int round)
{
    struct ibv_sge sge = {(uintptr_t)areas[link].in[round % 2], MESSAGE, mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = MOST + link, .sg_list = &sge, .num_sge = 1}, *bad;
    CHECK(!ibv_post_recv(qps[link], &wr, &bad));
}

static void post(int link, enum ibv_wr_opcode opcode, void *local, uint32_t length, size_t offset)
{
    const struct card *there = &cards[neighbour(rank, link)];
    uint64_t remote = there->buffer + other_end(link) * sizeof(struct area) + offset;
    struct ibv_sge sge = {(uintptr_t)local, length, mr->lkey};
    struct ibv_send_wr wr = {.wr_id = link,
                             .sg_list = &sge,
                             .num_sge = 1,
                             .opcode = opcode,
                             .send_flags = IBV_SEND_SIGNALED},
                       *bad;
    if (opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        wr.wr.atomic.remote_addr = remote;
        wr.wr.atomic.rkey = there->rkey;
        wr.wr.atomic.compare_add = 3;
    } else {
        wr.wr.rdma.remote_addr = remote;
        wr.wr.rdma.rkey = there->rkey;
    }
    CHECK(!ibv_post_send(qps[link], &wr, &bad));
}

/* Waits for so many completions of sends, and until every link has brought `messages` since the beginning. A
 * neighbour may be a round ahead, so more may have come. */
static void wait_all(int sends, int links, int messages)
{
    static int received[LINKS];
    double limit = now_ms() + PATIENCE_MS;
    for (;;) {
        int missing = 0;
        for (int link = 0; link < links; link++)
            missing += received[link] < messages ? messages - received[link] : 0;
        if (!sends && !missing)
            return;
        struct ibv_wc wc[16];
        int n = ibv_poll_cq(cq, 16, wc);
        CHECK(n >= 0);
        for (int i = 0; i < n; i++) {
            int link = (int)wc[i].wr_id % MOST;
            CHECK(wc[i].status == IBV_WC_SUCCESS, "link %d to rank %d: %s", link, neighbour(rank, link),
                  ibv_wc_status_str(wc[i].status));
            if (wc[i].wr_id < MOST) {
                CHECK(sends-- > 0);
                continue;
            }
            CHECK(wc[i].byte_len == MESSAGE, "%u bytes", wc[i].byte_len);
            received[link]++;
        }
        CHECK(now_ms() < limit, "rank %d: %d sends and %d messages are missing", rank, sends, missing);
        if (n || !channel)
            continue;
        struct pollfd fd = {.fd = channel->fd, .events = POLLIN};
        struct ibv_cq *which;
        void *cq_context;
        CHECK(poll(&fd, 1, PATIENCE_MS) == 1, "rank %d: no event, %d sends and %d messages are missing", rank, sends,
              missing);
        CHECK(!ibv_get_cq_event(channel, &which, &cq_context));
        ibv_ack_cq_events(cq, 1);
        CHECK(!ibv_req_notify_cq(cq, 0));
    }
}

static uint32_t pattern(int from, int to, int round)
{
    return (uint32_t)((from * MOST + to) * 64 + round);
}

int main(int argc, char **argv)
{
    const char *port = NULL;
    int option, links = 0, atomics;
    while ((option = getopt(argc, argv, "p:n:r:m:")) != -1)
        switch (option) {
        case 'p':
            port = optarg;
            break;
        case 'n':
            count = atoi(optarg);
            break;
        case 'r':
            rank = atoi(optarg);
            break;
        case 'm':
            rounds = atoi(optarg);
            break;
        default:
            return 2;
        }
    CHECK(port && rank < count && count > 2 && count <= MOST, "usage: crowd -p PORT -n COUNT -r RANK [-m ROUNDS]");
    /* No two links to one rank, and none to oneself. */
    while (links < LINKS && 2 * hops[links / 2] < count)
        links += 2;

    struct device device = open_device();
    struct ibv_device_attr limits;
    CHECK(!ibv_query_device(device.context, &limits));
    atomics = limits.atomic_cap != IBV_ATOMIC_NONE;
    if (rank % 2) {
        channel = ibv_create_comp_channel(device.context);
        CHECK(channel);
    }
    cq = ibv_create_cq(device.context, 8 * LINKS, NULL, channel, 0);
    CHECK(cq);
    areas = mmap(NULL, LINKS * sizeof(*areas), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(areas != MAP_FAILED);
    mr = ibv_reg_mr(device.pd, areas, LINKS * sizeof(*areas), ALL_ACCESS | (atomics ? IBV_ACCESS_REMOTE_ATOMIC : 0));
    CHECK(mr);
    struct card mine = {.rkey = mr->rkey, .buffer = (uintptr_t)areas, .gid = device.gid};
    for (int link = 0; link < links; link++) {
        struct ibv_qp_init_attr init = {
            .send_cq = cq,
            .recv_cq = cq,
            .qp_type = IBV_QPT_RC,
            .cap = {.max_send_wr = 4, .max_recv_wr = 2, .max_send_sge = 1, .max_recv_sge = 1}};
        qps[link] = ibv_create_qp(device.pd, &init);
        CHECK(qps[link]);
        mine.qp_num[link] = qps[link]->qp_num;
    }
    gather_all(port);
    share(&mine, cards, sizeof(mine));
    for (int link = 0; link < links; link++) {
        connect_link(link);
        post_message(link, 0);
        post_message(link, 1);
    }
    if (channel)
        CHECK(!ibv_req_notify_cq(cq, 0));
    barrier();

    for (int round = 0; round < rounds; round++) {
        for (int link = 0; link < links; link++) {
            int to = neighbour(rank, link);
            fill(areas[link].out, MESSAGE, pattern(rank, to, round));
            post(link, IBV_WR_RDMA_WRITE, areas[link].out, MESSAGE, offsetof(struct area, written));
            post(link, IBV_WR_SEND, areas[link].out, MESSAGE, 0);
            if (atomics)
                post(link, IBV_WR_ATOMIC_FETCH_AND_ADD, &areas[link].before, 8, offsetof(struct area, counter));
        }
        wait_all((2 + atomics) * links, links, round + 1);
        for (int link = 0; link < links; link++) {
            int from = neighbour(rank, link);
            expect_bytes(areas[link].in[round % 2], MESSAGE, pattern(from, rank, round));
            post_message(link, round);
            if (atomics)
                CHECK(areas[link].before == 3u * (unsigned)round, "counter %llu", (unsigned long long)areas[link].before);
            /* The neighbour's message of the next round may already be on its way, but not yet its write. */
            post(link, IBV_WR_RDMA_READ, areas[link].read, MESSAGE, offsetof(struct area, written));
        }
        wait_all(links, links, 0);
        for (int link = 0; link < links; link++)
            expect_bytes(areas[link].read, MESSAGE, pattern(rank, neighbour(rank, link), round));
    }
    barrier();
    for (int link = 0; link < links; link++) {
        expect_bytes(areas[link].written, MESSAGE, pattern(neighbour(rank, link), rank, rounds - 1));
        CHECK(!atomics || areas[link].counter == 3u * (unsigned)rounds);
    }
    barrier();
    for (int link = 0; link < links; link++)
        CHECK(!ibv_destroy_qp(qps[link]));
    CHECK(!ibv_dereg_mr(mr));
    CHECK(!ibv_destroy_cq(cq));
    if (channel)
        CHECK(!ibv_destroy_comp_channel(channel));
    close_device(&device);
    printf("rank %d is done\n", rank);
    return 0;
}

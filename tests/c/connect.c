/*
 * Connections by address that come and go without end: a server that takes all, and a client that keeps a few on their
 * way all the time.
 *
 *   connect server PORT COUNTERS
 *   connect client PORT COUNTERS ADDRESS [CONNECTIONS]
 *
 * COUNTERS is a file of `struct counters`, which whoever started it may look at. SIGTERM ends it, and so does the last
 * of CONNECTIONS; what has begun is brought to its end first. Then nothing may be held that was not held when the
 * first hundred were through. The other side may die at any moment: each step is answered in some way, or this fails.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <malloc.h>
#include <rdma/rdma_cma.h>
#include <signal.h>

#include "holdings.h"

#define WINDOW 8
#define WARM 100
/* Long for a peer that answers, or whose kernel does; short beside the half minute after which silence is told. */
#define PATIENCE_MS 12000
/* Tables of the connection manager that were full once stay as large. */
#define ROOM (1 << 20)

/* What tests/tests/connections.rs reads. */
struct counters {
    uint64_t begun, established, disconnected, refused, unreachable, open;
};

struct connection {
    struct rdma_cm_id *id;
    double since;
    int established, leaving;
    struct connection *next, **previous;
};

struct holdings {
    size_t descriptors, heap;
};

static volatile struct counters *counters;
static struct rdma_event_channel *channel;
static struct ibv_cq *cq;
static struct connection *first;
static volatile sig_atomic_t ending;

static void end(int signal)
{
    (void)signal;
    ending = 1;
}

static struct holdings holdings(void)
{
    struct mallinfo2 heap = mallinfo2();
    return (struct holdings){descriptors_open(), heap.uordblks + heap.hblkhd};
}

static struct connection *new_connection(struct rdma_cm_id *id)
{
    struct connection *one = calloc(1, sizeof(*one));
    CHECK(one);
    one->id = id;
    one->since = now_ms();
    one->next = first;
    one->previous = &first;
    if (first)
        first->previous = &one->next;
    first = one;
    id->context = one;
    counters->begun++;
    counters->open++;
    return one;
}

static void forget(struct connection *one)
{
    if (one->id->qp)
        rdma_destroy_qp(one->id);
    CHECK(!rdma_destroy_id(one->id));
    *one->previous = one->next;
    if (one->next)
        one->next->previous = one->previous;
    free(one);
    counters->open--;
}

static int give_qp(struct rdma_cm_id *id)
{
    struct ibv_qp_init_attr init = {.send_cq = cq,
                                    .recv_cq = cq,
                                    .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
    /* librdmacm opens the device itself, once; all ids have that context. */
    if (!cq) {
        cq = ibv_create_cq(id->verbs, 16, NULL, NULL, 0);
        CHECK(cq);
    }
    return rdma_create_qp(id, NULL, &init);
}

/* ---- what an event makes of a connection ---- */

static void on_event(enum rdma_cm_event_type event, int status, struct rdma_cm_id *id)
{
    struct connection *one = id->context;
    struct rdma_conn_param param = {.retry_count = 7, .rnr_retry_count = 7};
    if (one)
        one->since = now_ms();
    switch (event) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
        CHECK(!rdma_resolve_route(id, 2000));
        return;
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
        CHECK(!give_qp(id));
        CHECK(!rdma_connect(id, &param));
        return;
    case RDMA_CM_EVENT_CONNECT_REQUEST:
        /* Its context is the listener's until here. */
        one = new_connection(id);
        /* Whoever asks may have gone meanwhile, or have been killed. */
        if (give_qp(id) || rdma_accept(id, &param))
            forget(one);
        return;
    case RDMA_CM_EVENT_ESTABLISHED:
        CHECK(!one->established);
        one->established = 1;
        counters->established++;
        return;
    case RDMA_CM_EVENT_DISCONNECTED:
        CHECK(status == 0, "status %d", status);
        counters->disconnected++;
        /* If it was the other side that wanted it. */
        rdma_disconnect(id);
        forget(one);
        return;
    case RDMA_CM_EVENT_REJECTED:
        /* Nobody listens; the peer's consumer, or its kernel when it was killed; it has gone on and no longer knows. */
        CHECK(status == 8 || status == 28 || status == 4, "status %d", status);
        counters->refused++;
        forget(one);
        usleep(1000);
        return;
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_ADDR_ERROR:
        /* librdmacm could not move the QP of somebody who has gone; the guest itself has gone. */
        counters->unreachable++;
        forget(one);
        usleep(1000);
        return;
    case RDMA_CM_EVENT_TIMEWAIT_EXIT:
        return;
    default:
        CHECK(0, "%s, status %d", rdma_event_str(event), status);
    }
}

/* Takes an event if one comes within `ms`. */
static int take(int ms)
{
    struct pollfd wanted = {.fd = channel->fd, .events = POLLIN};
    struct rdma_cm_event *event;
    if (poll(&wanted, 1, ms) <= 0 || rdma_get_cm_event(channel, &event))
        return 0;
    enum rdma_cm_event_type type = event->event;
    int status = event->status;
    struct rdma_cm_id *id = event->id;
    CHECK(!rdma_ack_cm_event(event));
    on_event(type, status, id);
    return 1;
}

static void nothing_is_stuck(int idle_may_stay)
{
    for (struct connection *one = first; one; one = one->next) {
        double waited = now_ms() - one->since;
        CHECK(waited < PATIENCE_MS || (idle_may_stay && one->established), "nothing for %.0f ms, established %d",
              waited, one->established);
    }
}

/* ---- the two ends ---- */

static void begin(const struct sockaddr_in *where)
{
    struct rdma_cm_id *id;
    CHECK(!rdma_create_id(channel, &id, NULL, RDMA_PS_TCP));
    struct connection *one = new_connection(id);
    if (rdma_resolve_addr(id, NULL, (struct sockaddr *)where, 2000))
        forget(one);
}

/* Whoever connected goes away again: by DREQ, or by closing at once. */
static void leave_some(void)
{
    struct connection *next;
    for (struct connection *one = first; one; one = next) {
        next = one->next;
        if (!one->established || one->leaving)
            continue;
        one->leaving = 1;
        if (counters->established % 4)
            CHECK(!rdma_disconnect(one->id));
        else
            forget(one);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc >= 4, "connect server|client PORT COUNTERS [ADDRESS [CONNECTIONS]]");
    int is_client = !strcmp(argv[1], "client");
    uint64_t wanted = is_client && argc > 5 ? strtoull(argv[5], NULL, 10) : UINT64_MAX;
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    int file = open(argv[3], O_RDWR);
    CHECK(file >= 0, "%s", argv[3]);
    counters = mmap(NULL, sizeof(*counters), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(counters != MAP_FAILED);
    CHECK(signal(SIGTERM, end) != SIG_ERR);
    channel = rdma_create_event_channel();
    CHECK(channel);

    struct rdma_cm_id *listener = NULL;
    if (is_client) {
        CHECK(argc > 4 && inet_pton(AF_INET, argv[4], &where.sin_addr) == 1);
    } else {
        CHECK(!rdma_create_id(channel, &listener, NULL, RDMA_PS_TCP));
        CHECK(!rdma_bind_addr(listener, (struct sockaddr *)&where), "port %s", argv[2]);
        CHECK(!rdma_listen(listener, 0));
        printf("listening\n");
        fflush(stdout);
    }

    struct holdings before = {0}, after;
    double start = now_ms(), heard = start;
    while (!ending && counters->established < wanted) {
        if (is_client) {
            while (counters->open < WINDOW)
                begin(&where);
            leave_some();
        }
        if (take(100))
            heard = now_ms();
        if (!before.descriptors && counters->established >= WARM)
            before = holdings();
        if (now_ms() - heard > 50)
            nothing_is_stuck(!is_client);
    }
    double seconds = (now_ms() - start) / 1e3;
    printf("%.0f connections, %.0f a second\n", (double)counters->established, counters->established / seconds);

    if (listener)
        CHECK(!rdma_destroy_id(listener));
    while (first) {
        if (is_client)
            leave_some();
        else
            rdma_disconnect(first->id);
        take(100);
        nothing_is_stuck(0);
    }
    if (!before.descriptors)
        return 0;
    /* Connections that have ended are kept for half a second more, in case a late message names them. */
    for (start = now_ms();; usleep(50000)) {
        after = holdings();
        if (after.descriptors <= before.descriptors && after.heap < before.heap + ROOM)
            return 0;
        CHECK(now_ms() - start < PATIENCE_MS, "descriptors %zu, then %zu; heap %zu, then %zu", before.descriptors,
              after.descriptors, before.heap, after.heap);
    }
}

/*
 * The commands of the connection manager's device, as they are written to it, in random order: legal ones, and ones
 * that the state, the file or the id is not for. A model of it knows each answer and each event beforehand.
 *
 *   cm_model STEPS SEED
 *
 * Prints which commands were given in which states, and how often they were refused there.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <rdma/rdma_user_cm.h>

#include "rc.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define IDS 24
#define NOBODY 100000
#define WAIT_MS 20000
#define CONSUMER 28
#define INVALID_SERVICE 8

/* Linux's names: rdma_cm_event_type. */
enum {
    ADDR_RESOLVED = 0,
    ADDR_ERROR = 1,
    ROUTE_RESOLVED = 2,
    CONNECT_REQUEST = 4,
    CONNECT_RESPONSE = 5,
    REJECTED = 8,
    ESTABLISHED = 9,
    DISCONNECTED = 10,
    TIMEWAIT_EXIT = 15,
};

/* Of rdma_cm before a connection is asked for, of ib_cm from there on; `ended` is whatever comes last. */
#define STATES(X)                                                                                                      \
    X(idle) X(bound) X(resolved) X(routed) X(listening) X(req_sent) X(req_rcvd) X(rep_rcvd) X(rep_sent)                \
    X(established) X(dreq_sent) X(dreq_rcvd) X(ended)
#define NAME(state) S_##state,
#define TEXT(state) #state,
enum state { STATES(NAME) };
static const char *const STATE_NAMES[] = {STATES(TEXT) "no such id", "other file"};
#define COLUMNS COUNT(STATE_NAMES)

#define COMMANDS(X)                                                                                                    \
    X(bind) X(resolve_addr) X(resolve_route) X(listen) X(connect) X(accept) X(establish) X(reject) X(disconnect)       \
    X(init_qp_attr) X(notify) X(set_option) X(query_route) X(query) X(migrate_id) X(destroy_id) X(leave_mcast)         \
    X(unsupported)
#define COMMAND(name) C_##name,
enum command { COMMANDS(COMMAND) C_count };
static const char *const COMMAND_NAMES[] = {COMMANDS(TEXT)};

struct id {
    int used, file, has_device;
    uint32_t number, reported;
    enum state state;
    struct id *peer;
};

struct expected {
    struct id *id;
    uint32_t event;
    int status;
    struct id *counted;
};

static int files[2];
static uint16_t port;
static struct id ids[IDS], listener;
static struct expected expected[4];
static size_t expects;
static uint32_t given[C_count][COLUMNS], refused[C_count][COLUMNS];
static uint32_t seed;

static uint32_t below(uint32_t limit)
{
    seed = seed * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)(seed >> 8) * limit) >> 24);
}

/* ---- commands ---- */

/* Returns 0 or an errno. */
static int give(int file, uint32_t command, const void *body, uint16_t len, uint16_t room)
{
    uint8_t bytes[2048];
    struct rdma_ucm_cmd_hdr hdr = {.cmd = command, .in = len, .out = room};
    memcpy(bytes, &hdr, sizeof(hdr));
    memcpy(bytes + sizeof(hdr), body, len);
    ssize_t written = write(file, bytes, sizeof(hdr) + len);
    CHECK(written < 0 || written == (ssize_t)sizeof(hdr) + len);
    return written < 0 ? errno : 0;
}
#define GIVE(file, command, body, room) give(file, RDMA_USER_CM_CMD_##command, &(body), sizeof(body), room)

static struct sockaddr_in ipv4(const char *text, uint16_t number)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(number)};
    CHECK(inet_pton(AF_INET, text, &address.sin_addr) == 1);
    return address;
}

static int bind_to(int file, uint32_t number, const char *text)
{
    struct sockaddr_in address = ipv4(text, 0);
    struct rdma_ucm_bind bind = {.id = number, .addr_size = sizeof(address)};
    memcpy(&bind.addr, &address, sizeof(address));
    return GIVE(file, BIND, bind, 0);
}

static struct id *new_id(int file)
{
    struct rdma_ucm_create_id_resp answer;
    struct rdma_ucm_create_id create = {.uid = 7, .response = (uintptr_t)&answer, .ps = RDMA_PS_TCP};
    struct id *id = ids;
    while (id->used)
        id++;
    CHECK(!GIVE(files[file], CREATE_ID, create, sizeof(answer)));
    *id = (struct id){.used = 1, .file = file, .number = answer.id};
    return id;
}

static size_t ids_used(void)
{
    size_t used = 0;
    for (size_t i = 0; i < IDS; i++)
        used += ids[i].used;
    return used;
}

static int init_qp_attr(int file, uint32_t number, uint32_t state)
{
    uint8_t answer[512];
    struct rdma_ucm_init_qp_attr init = {.response = (uintptr_t)answer, .id = number, .qp_state = state};
    return GIVE(file, INIT_QP_ATTR, init, 144);
}

/* ---- events ---- */

static void expect(struct id *id, uint32_t event, int status)
{
    CHECK(expects < COUNT(expected));
    expected[expects++] = (struct expected){id, event, status, id};
}

/* Takes an event if there is one. */
static int take(int file)
{
    struct rdma_ucm_event_resp got;
    struct rdma_ucm_get_event get = {.response = (uintptr_t)&got};
    int error = GIVE(files[file], GET_EVENT, get, sizeof(got));
    if (error) {
        CHECK(error == EAGAIN, "%d", error);
        return 0;
    }
    for (size_t i = 0; i < expects; i++) {
        struct expected *one = &expected[i];
        if (got.event != one->event || (int)got.status != one->status)
            continue;
        if (got.event == CONNECT_REQUEST)
            one->id->number = got.id;
        else if (got.id != one->id->number)
            continue;
        CHECK(one->counted->file == file, "event %u in file %d", got.event, file);
        one->counted->reported++;
        *one = expected[--expects];
        return 1;
    }
    /* When TIME_WAIT is over is a matter of time. */
    for (size_t i = 0; got.event == TIMEWAIT_EXIT && i < IDS; i++) {
        if (ids[i].used && ids[i].number == got.id && ids[i].state == S_ended) {
            CHECK(ids[i].file == file);
            ids[i].reported++;
            return 1;
        }
    }
    CHECK(0, "event %u of id %u, status %d", got.event, got.id, (int)got.status);
    return 0;
}

static void all_events_come(void)
{
    double start = now_ms();
    while (expects) {
        struct pollfd wanted[] = {{.fd = files[0], .events = POLLIN}, {.fd = files[1], .events = POLLIN}};
        CHECK(poll(wanted, 2, WAIT_MS) >= 0);
        for (int file = 0; file < 2; file++)
            if (wanted[file].revents)
                take(file);
        CHECK(now_ms() - start < WAIT_MS, "event %u of id %u never came", expected[0].event, expected[0].id->number);
    }
    while (take(0) || take(1))
        ;
}

/* ---- the model ---- */

/* The other end hears of a refusal, if its program has a name for it by now. */
static void refuse_peer(struct id *id)
{
    struct id *peer = id->peer;
    id->state = S_ended;
    if (!peer)
        return;
    id->peer = peer->peer = NULL;
    if (peer->state == S_req_rcvd) {
        /* No event, so nothing tells when it has arrived but this. */
        double start = now_ms();
        while (!init_qp_attr(files[peer->file], peer->number, IBV_QPS_RTR))
            CHECK(now_ms() - start < WAIT_MS);
    } else {
        expect(peer, REJECTED, CONSUMER);
    }
    peer->state = S_ended;
}

static int can_reject(enum state state)
{
    return state == S_req_sent || state == S_req_rcvd || state == S_rep_rcvd || state == S_rep_sent;
}

static int has_connection(const struct id *id)
{
    return id->state >= S_req_sent;
}

static void disconnect(struct id *id)
{
    struct id *peer = id->peer;
    if (id->state == S_established) {
        id->state = S_dreq_sent;
        CHECK(peer && peer->state == S_established);
        peer->state = S_dreq_rcvd;
        expect(peer, DISCONNECTED, 0);
    } else if (id->state == S_dreq_rcvd) {
        id->state = S_ended;
        if (peer) {
            expect(peer, DISCONNECTED, 0);
            peer->state = S_ended;
            id->peer = peer->peer = NULL;
        }
    }
}

static void destroyed(struct id *id)
{
    if (can_reject(id->state))
        refuse_peer(id);
    else
        disconnect(id);
    if (id->peer)
        id->peer->peer = NULL;
    /* Only the place: an event that is expected is another's. */
    id->used = 0;
}

static int established_by_peer(struct id *id)
{
    struct rdma_ucm_accept accept = {.uid = 7, .id = id->number};
    int error = GIVE(files[id->file], ACCEPT, accept, 0);
    CHECK(!error, "%d", error);
    id->state = S_established;
    return 0;
}

/* Gives a command; returns what came of it and sets what the model says. */
static int run(enum command command, struct id *id, int file, uint32_t number, int *model)
{
    enum state state = id->state;
    int right = file == files[id->file] && number == id->number, error;
    /* What an id that is not there, or not in this file, makes of any command. */
    int wrong = number != id->number ? ENOENT : EINVAL;
    int no_device = !id->has_device ? EINVAL : 0, no_connection = no_device || !has_connection(id) ? EINVAL : 0;
    *model = right ? 0 : wrong;

    switch (command) {
    case C_bind: {
        static const char *const WHERE[] = {"0.0.0.0", "127.0.0.1", "192.0.2.1"};
        uint32_t where = below(3);
        error = bind_to(file, number, WHERE[where]);
        if (right)
            *model = state != S_idle ? EINVAL : where == 2 ? EADDRNOTAVAIL : 0;
        if (!*model) {
            id->state = S_bound;
            id->has_device = where == 1;
        }
        return error;
    }
    case C_resolve_addr: {
        int nowhere = !below(6);
        struct sockaddr_in to = ipv4(nowhere ? "192.0.2.1" : "127.0.0.1", below(6) ? port : 1);
        struct rdma_ucm_resolve_addr resolve = {.id = number, .timeout_ms = 2000, .dst_size = sizeof(to)};
        memcpy(&resolve.dst_addr, &to, sizeof(to));
        error = GIVE(file, RESOLVE_ADDR, resolve, 0);
        if (right)
            *model = state == S_idle || state == S_bound ? 0 : EINVAL;
        if (!*model) {
            id->state = nowhere ? S_bound : S_resolved;
            id->has_device |= !nowhere;
            /* To whom it will be. */
            id->peer = to.sin_port == htons(port) ? &listener : NULL;
            expect(id, nowhere ? ADDR_ERROR : ADDR_RESOLVED, nowhere ? -ENODEV : 0);
        }
        return error;
    }
    case C_resolve_route: {
        struct rdma_ucm_resolve_route resolve = {.id = number, .timeout_ms = 2000};
        error = GIVE(file, RESOLVE_ROUTE, resolve, 0);
        if (right)
            *model = state == S_resolved ? 0 : EINVAL;
        if (!*model) {
            id->state = S_routed;
            expect(id, ROUTE_RESOLVED, 0);
        }
        return error;
    }
    case C_listen: {
        struct rdma_ucm_listen listen = {.id = number};
        error = GIVE(file, LISTEN, listen, 0);
        if (right)
            *model = state == S_idle || state == S_bound ? 0 : EINVAL;
        if (!*model)
            id->state = S_listening;
        return error;
    }
    case C_connect: {
        struct rdma_ucm_connect connect = {.id = number, .conn_param = {.qp_num = 0x1000 + below(0x1000000 - 0x1000)}};
        connect.conn_param.valid = below(10) != 0;
        int room = ids_used() < IDS;
        if (right && state == S_routed && !room)
            connect.conn_param.valid = 0;
        error = GIVE(file, CONNECT, connect, 0);
        if (!connect.conn_param.valid)
            *model = EINVAL;
        else if (right)
            *model = state == S_routed ? 0 : EINVAL;
        if (*model)
            return error;
        if (id->peer) {
            struct id *there = ids;
            while (there->used)
                there++;
            *there = (struct id){.used = 1, .has_device = 1, .number = NOBODY, .state = S_req_rcvd, .peer = id};
            id->peer = there;
            id->state = S_req_sent;
            expected[expects++] = (struct expected){there, CONNECT_REQUEST, 0, &listener};
        } else {
            id->state = S_ended;
            expect(id, REJECTED, INVALID_SERVICE);
        }
        return error;
    }
    case C_accept: {
        struct rdma_ucm_accept accept = {.uid = 7, .id = number, .conn_param = {.qp_num = 5, .valid = 1}};
        error = GIVE(file, ACCEPT, accept, 0);
        if (right)
            *model = state == S_req_rcvd ? 0 : EINVAL;
        if (!right)
            return error;
        if (!*model) {
            id->state = S_rep_sent;
            id->peer->state = S_rep_rcvd;
            expect(id->peer, CONNECT_RESPONSE, 0);
        } else if (can_reject(state)) {
            /* An accept that fails refuses. */
            refuse_peer(id);
        }
        return error;
    }
    case C_establish: {
        struct rdma_ucm_accept accept = {.uid = 7, .id = number};
        error = GIVE(file, ACCEPT, accept, 0);
        if (right)
            *model = state == S_rep_rcvd ? 0 : EINVAL;
        if (!*model) {
            id->state = id->peer->state = S_established;
            expect(id->peer, ESTABLISHED, 0);
        }
        return error;
    }
    case C_reject: {
        struct rdma_ucm_reject reject = {.id = number, .reason = below(8) ? 0 : 3};
        error = GIVE(file, REJECT, reject, 0);
        if (reject.reason)
            *model = EINVAL;
        else if (right)
            *model = can_reject(state) ? 0 : EINVAL;
        if (!*model)
            refuse_peer(id);
        return error;
    }
    case C_disconnect: {
        struct rdma_ucm_disconnect body = {.id = number};
        error = GIVE(file, DISCONNECT, body, 0);
        if (right)
            *model = no_connection;
        if (!*model)
            disconnect(id);
        return error;
    }
    case C_init_qp_attr: {
        static const uint32_t WANTED[] = {IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_ERR + 1};
        uint32_t wanted = WANTED[below(4)];
        error = init_qp_attr(file, number, wanted);
        if (wanted > IBV_QPS_ERR)
            *model = EINVAL;
        else if (right)
            *model = no_device || state > S_established || (state == S_req_sent && wanted != IBV_QPS_INIT) ? EINVAL : 0;
        return error;
    }
    case C_notify: {
        struct rdma_ucm_notify notify = {.id = number, .event = below(4) ? IBV_EVENT_COMM_EST : IBV_EVENT_SQ_DRAINED};
        error = GIVE(file, NOTIFY, notify, 0);
        if (right) {
            int known = notify.event == IBV_EVENT_COMM_EST;
            *model = !no_connection && known && state == S_rep_sent ? 0 : EINVAL;
            if (known && state == S_established)
                *model = EISCONN;
        }
        if (!*model) {
            id->state = S_established;
            expect(id, ESTABLISHED, 0);
            established_by_peer(id->peer);
        }
        return error;
    }
    case C_set_option: {
        int yes = 1;
        uint32_t option = below(5);
        struct rdma_ucm_set_option set = {
            .optval = (uintptr_t)&yes, .id = number, .level = RDMA_OPTION_ID, .optname = option};
        set.optlen = option == RDMA_OPTION_ID_TOS || option == RDMA_OPTION_ID_ACK_TIMEOUT ? 1 : sizeof(yes);
        yes = option == RDMA_OPTION_ID_ACK_TIMEOUT ? 17 : 1;
        error = GIVE(file, SET_OPTION, set, 0);
        if (right && option == RDMA_OPTION_ID_REUSEADDR)
            *model = state == S_listening ? EINVAL : 0;
        else if (right && option == RDMA_OPTION_ID_AFONLY)
            *model = state <= S_bound ? 0 : EINVAL;
        else if (right && option == 4)
            *model = ENOSYS;
        return error;
    }
    case C_query_route: {
        struct rdma_ucm_query_route_resp answer;
        struct rdma_ucm_query query = {.response = (uintptr_t)&answer, .id = number};
        error = GIVE(file, QUERY_ROUTE, query, sizeof(answer));
        CHECK(error || answer.num_paths == (state == S_routed || has_connection(id)), "%u", answer.num_paths);
        CHECK(error || answer.port_num == id->has_device);
        return error;
    }
    case C_query: {
        uint8_t answer[1024];
        uint16_t room = below(4) ? sizeof(answer) : 4;
        struct rdma_ucm_query query = {.response = (uintptr_t)answer, .id = number, .option = below(4)};
        error = GIVE(file, QUERY, query, room);
        if (right)
            *model = query.option == 3 ? ENOSYS : room == 4 ? ENOSPC : 0;
        return error;
    }
    case C_migrate_id: {
        struct rdma_ucm_migrate_resp answer;
        int to = (int)below(2);
        struct rdma_ucm_migrate_id migrate = {.response = (uintptr_t)&answer, .id = number, .fd = file};
        error = GIVE(files[to], MIGRATE_ID, migrate, sizeof(answer));
        CHECK(error || answer.events_reported == id->reported);
        if (!error)
            id->file = to;
        return error;
    }
    case C_destroy_id: {
        struct rdma_ucm_destroy_id_resp answer;
        struct rdma_ucm_destroy_id destroy = {.response = (uintptr_t)&answer, .id = number};
        error = GIVE(file, DESTROY_ID, destroy, sizeof(answer));
        CHECK(error || answer.events_reported == id->reported, "%u, not %u", answer.events_reported, id->reported);
        if (!*model)
            destroyed(id);
        return error;
    }
    case C_leave_mcast: {
        struct rdma_ucm_destroy_id leave = {.id = number};
        *model = ENOENT;
        return GIVE(file, LEAVE_MCAST, leave, 64);
    }
    default: {
        uint8_t body[512] = {0};
        static const uint32_t WHAT[] = {RDMA_USER_CM_CMD_GET_OPTION, RDMA_USER_CM_CMD_JOIN_IP_MCAST,
                                        RDMA_USER_CM_CMD_JOIN_MCAST, RDMA_USER_CM_CMD_JOIN_MCAST + 1};
        uint32_t what = below(4);
        *model = what == 3 ? EINVAL : ENOSYS;
        return give(file, WHAT[what], body, sizeof(body), 64);
    }
    }
}

static void step(void)
{
    struct id *id = &ids[below(IDS)];
    if (!id->used) {
        if (ids_used() < 8)
            id = new_id((int)below(2));
        else
            return;
    }
    enum command command = below(C_count);
    /* Mostly what leads on; what has come to its end goes, and the rest seldom. */
    static const uint8_t NEXT[] = {
        [S_idle] = C_resolve_addr,   [S_bound] = C_resolve_addr,  [S_resolved] = C_resolve_route,
        [S_routed] = C_connect,      [S_listening] = C_destroy_id, [S_req_sent] = C_query,
        [S_req_rcvd] = C_accept,     [S_rep_rcvd] = C_establish,  [S_rep_sent] = C_query_route,
        [S_established] = C_query,   [S_dreq_sent] = C_query,     [S_dreq_rcvd] = C_query,
        [S_ended] = C_destroy_id,
    };
    if (!below(3))
        command = NEXT[id->state];
    else if (command == C_destroy_id && below(3))
        return;
    int other_file = !below(24), nobody = !below(24);
    int file = files[other_file ? !id->file : id->file], model;
    enum state state = id->state;
    size_t column = nobody ? COLUMNS - 2 : other_file ? COLUMNS - 1 : state;
    uint32_t number = nobody ? NOBODY + 1 : id->number;
    int error = run(command, id, file, number, &model);
    CHECK(error == model, "%s in %s: %s instead of %s", COMMAND_NAMES[command], STATE_NAMES[column], strerror(error),
          strerror(model));
    given[command][column]++;
    refused[command][column] += error != 0;
    all_events_come();
}

int main(int argc, char **argv)
{
    CHECK(argc == 3, "cm_model STEPS SEED");
    uint32_t steps = (uint32_t)strtoul(argv[1], NULL, 10);
    seed = (uint32_t)strtoul(argv[2], NULL, 10);
    for (int file = 0; file < 2; file++) {
        files[file] = open("/dev/infiniband/rdma_cm", O_RDWR | O_NONBLOCK | O_CLOEXEC);
        CHECK(files[file] >= 0);
    }
    struct rdma_ucm_query_addr_resp answer;
    listener = *new_id(0);
    ids[0].used = 0;
    CHECK(!bind_to(files[0], listener.number, "0.0.0.0"));
    struct rdma_ucm_listen listen = {.id = listener.number};
    CHECK(!GIVE(files[0], LISTEN, listen, 0));
    struct rdma_ucm_query query = {.response = (uintptr_t)&answer, .id = listener.number};
    CHECK(!GIVE(files[0], QUERY, query, sizeof(answer)));
    port = ntohs(((struct sockaddr_in *)&answer.src_addr)->sin_port);
    CHECK(port);

    for (uint32_t i = 0; i < steps; i++)
        step();

    size_t met = 0;
    printf("%-14s", "");
    for (size_t column = 0; column < COLUMNS; column++)
        printf(" %12s", STATE_NAMES[column]);
    for (size_t command = 0; command < C_count; command++) {
        printf("\n%-14s", COMMAND_NAMES[command]);
        for (size_t column = 0; column < COLUMNS; column++) {
            char cell[32];
            snprintf(cell, sizeof(cell), "%u/%u", given[command][column] - refused[command][column],
                     refused[command][column]);
            printf(" %12s", cell);
            met += given[command][column] > 0;
        }
    }
    printf("\n%zu of %zu pairs of a command and a state\n", met, C_count * COLUMNS);
    return 0;
}

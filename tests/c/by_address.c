/*
 * What programs of librdmacm ask of the connection manager beyond connecting: channels that do not block, are polled,
 * move and close; ids that go with events unread; private data to its last byte; backlog, refusal, TIME_WAIT; and what
 * an address means. A case for each, both ends in one process.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <rdma/rdma_cma.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/wait.h>

#include "rc.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define WAIT_MS 20000

typedef struct rdma_event_channel channel_t;
typedef struct rdma_cm_id cm_id;

/* An event, acknowledged. */
struct heard {
    cm_id *id, *listener;
    int status, responder_resources, initiator_depth;
    size_t len;
    uint8_t data[256];
};

static channel_t *server, *client;

static void open_channels(void)
{
    server = rdma_create_event_channel();
    client = rdma_create_event_channel();
    CHECK(server && client);
}

static void close_channels(void)
{
    rdma_destroy_event_channel(server);
    rdma_destroy_event_channel(client);
}

static int is_readable(channel_t *channel, int ms)
{
    struct pollfd wanted = {.fd = channel->fd, .events = POLLIN};
    int ready = poll(&wanted, 1, ms);
    CHECK(ready >= 0 && !(wanted.revents & ~POLLIN), "%x", wanted.revents);
    return ready;
}

static struct heard expect(channel_t *channel, enum rdma_cm_event_type wanted)
{
    struct rdma_cm_event *event;
    CHECK(is_readable(channel, WAIT_MS), "no %s", rdma_event_str(wanted));
    CHECK(!rdma_get_cm_event(channel, &event));
    CHECK(event->event == wanted, "%s, status %d, instead of %s", rdma_event_str(event->event), event->status,
          rdma_event_str(wanted));
    struct heard heard = {.id = event->id, .listener = event->listen_id, .status = event->status};
    const void *data = NULL;
    if (event->id->qp_type == IBV_QPT_UD) {
        heard.len = event->param.ud.private_data_len;
        data = event->param.ud.private_data;
    } else {
        heard.len = event->param.conn.private_data_len;
        data = event->param.conn.private_data;
        heard.responder_resources = event->param.conn.responder_resources;
        heard.initiator_depth = event->param.conn.initiator_depth;
    }
    if (data)
        memcpy(heard.data, data, heard.len);
    CHECK(!rdma_ack_cm_event(event));
    return heard;
}

static void expect_silence(channel_t *channel)
{
    CHECK(!is_readable(channel, 0));
}

#define FAILS(call, error)                                                                                             \
    do {                                                                                                               \
        errno = 0;                                                                                                     \
        CHECK((call) && errno == (error), "not %s", strerrorname_np(error));                                           \
    } while (0)

/* ---- addresses and ids ---- */

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static union address literal(const char *text, uint16_t port)
{
    union address address = {.any.sa_family = strchr(text, ':') ? AF_INET6 : AF_INET};
    void *where = strchr(text, ':') ? (void *)&address.v6.sin6_addr : (void *)&address.v4.sin_addr;
    CHECK(inet_pton(address.any.sa_family, text, where) == 1, "%s", text);
    address.v4.sin_port = htons(port);
    return address;
}

/* The guest's own addresses, from its GIDs. */
static const char *own(int family)
{
    static char text[INET6_ADDRSTRLEN];
    struct device device = open_device();
    union ibv_gid gid;
    CHECK(!ibv_query_gid(device.context, 1, family == AF_INET, &gid));
    CHECK(inet_ntop(family, family == AF_INET ? gid.raw + 12 : gid.raw, text, sizeof(text)));
    close_device(&device);
    return text;
}

static cm_id *new_id(channel_t *channel, enum rdma_port_space ps)
{
    cm_id *id;
    CHECK(!rdma_create_id(channel, &id, NULL, ps));
    return id;
}

static cm_id *listen_at(const char *text, enum rdma_port_space ps, int backlog)
{
    union address address = literal(text, 0);
    cm_id *id = new_id(server, ps);
    CHECK(!rdma_bind_addr(id, &address.any), "%s", text);
    CHECK(!rdma_listen(id, backlog));
    CHECK(rdma_get_src_port(id));
    return id;
}

static uint16_t port_of(cm_id *listener)
{
    return ntohs(rdma_get_src_port(listener));
}

static cm_id *resolved(const char *text, uint16_t port, enum rdma_port_space ps)
{
    union address address = literal(text, port);
    cm_id *id = new_id(client, ps);
    CHECK(!rdma_resolve_addr(id, NULL, &address.any, 2000));
    CHECK(expect(client, RDMA_CM_EVENT_ADDR_RESOLVED).id == id);
    CHECK(!rdma_resolve_route(id, 2000));
    CHECK(expect(client, RDMA_CM_EVENT_ROUTE_RESOLVED).id == id);
    return id;
}

static void give_qp(cm_id *id)
{
    struct ibv_qp_init_attr init = {.qp_type = id->qp_type,
                                    .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
    CHECK(!rdma_create_qp(id, NULL, &init));
}

static cm_id *asking(const char *text, uint16_t port)
{
    cm_id *id = resolved(text, port, RDMA_PS_TCP);
    struct rdma_conn_param param = {.responder_resources = 3, .initiator_depth = 2};
    give_qp(id);
    CHECK(!rdma_connect(id, &param));
    return id;
}

static void agree(cm_id *id)
{
    struct rdma_conn_param param = {0};
    give_qp(id);
    CHECK(!rdma_accept(id, &param));
}

static void end(cm_id *id)
{
    if (id->qp)
        rdma_destroy_qp(id);
    CHECK(!rdma_destroy_id(id));
}

struct pair {
    cm_id *listener, *there, *here;
};

static struct pair connected(void)
{
    struct pair pair = {.listener = listen_at("0.0.0.0", RDMA_PS_TCP, 0)};
    pair.here = asking("127.0.0.1", port_of(pair.listener));
    struct heard request = expect(server, RDMA_CM_EVENT_CONNECT_REQUEST);
    CHECK(request.listener == pair.listener);
    CHECK(request.responder_resources == 2 && request.initiator_depth == 3);
    pair.there = request.id;
    agree(pair.there);
    CHECK(expect(client, RDMA_CM_EVENT_ESTABLISHED).id == pair.here);
    CHECK(expect(server, RDMA_CM_EVENT_ESTABLISHED).id == pair.there);
    return pair;
}

static void end_pair(struct pair *pair)
{
    end(pair->here);
    end(pair->there);
    end(pair->listener);
}

/* ---- channels ---- */

static void never_blocks(void)
{
    struct rdma_cm_event *event;
    open_channels();
    CHECK(!fcntl(client->fd, F_SETFL, fcntl(client->fd, F_GETFL) | O_NONBLOCK));
    cm_id *id = new_id(client, RDMA_PS_TCP);
    FAILS(rdma_get_cm_event(client, &event), EAGAIN);
    union address address = literal("127.0.0.1", 1);
    CHECK(!rdma_resolve_addr(id, NULL, &address.any, 2000));
    expect(client, RDMA_CM_EVENT_ADDR_RESOLVED);
    FAILS(rdma_get_cm_event(client, &event), EAGAIN);
    end(id);
    close_channels();
}

static void polled(void)
{
    open_channels();
    int set = epoll_create1(0);
    struct epoll_event wanted = {.events = EPOLLIN | EPOLLET, .data.ptr = client}, got;
    CHECK(set >= 0 && !epoll_ctl(set, EPOLL_CTL_ADD, client->fd, &wanted));
    cm_id *id = new_id(client, RDMA_PS_TCP);
    CHECK(!epoll_wait(set, &got, 1, 0));
    expect_silence(client);
    union address address = literal("127.0.0.1", 1);
    CHECK(!rdma_resolve_addr(id, NULL, &address.any, 2000));
    /* The edge comes once; the level stays until the event is read. */
    CHECK(epoll_wait(set, &got, 1, WAIT_MS) == 1 && got.events == EPOLLIN && got.data.ptr == client);
    CHECK(!epoll_wait(set, &got, 1, 0));
    CHECK(is_readable(client, 0) && is_readable(client, 0));
    expect(client, RDMA_CM_EVENT_ADDR_RESOLVED);
    expect_silence(client);
    CHECK(!rdma_resolve_route(id, 2000));
    CHECK(epoll_wait(set, &got, 1, WAIT_MS) == 1);
    expect(client, RDMA_CM_EVENT_ROUTE_RESOLVED);
    close(set);
    end(id);
    close_channels();
}

static volatile int reader_ended;

static void *reader(void *errors)
{
    struct rdma_cm_event *event;
    *(int *)errors = rdma_get_cm_event(client, &event) ? errno : 0;
    reader_ended = 1;
    return NULL;
}

static void on_signal(int signal)
{
    (void)signal;
}

/* As with a kernel the reader stays where it is until a signal comes; the process does not mind. */
static void closed_under_a_reader(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    pthread_t thread;
    int error = -1;
    open_channels();
    CHECK(!sigaction(SIGUSR1, &action, NULL));
    cm_id *id = new_id(client, RDMA_PS_TCP);
    CHECK(!pthread_create(&thread, NULL, reader, &error));
    usleep(50000);
    close(client->fd);
    while (!reader_ended) {
        CHECK(!pthread_kill(thread, SIGUSR1));
        usleep(1000);
    }
    CHECK(!pthread_join(thread, NULL));
    CHECK(error == EINTR || error == EIO || error == EBADF, "%d", error);
    /* The id has ended with it. */
    client->fd = open("/dev/null", O_RDWR);
    (void)id;
    struct rdma_event_channel *another = rdma_create_event_channel();
    CHECK(another);
    end(new_id(another, RDMA_PS_TCP));
    rdma_destroy_event_channel(another);
}

static void moves(void)
{
    open_channels();
    channel_t *other = rdma_create_event_channel();
    CHECK(other);
    cm_id *still = new_id(client, RDMA_PS_TCP), *moved = new_id(client, RDMA_PS_TCP);
    union address address = literal("127.0.0.1", 1);
    CHECK(!rdma_resolve_addr(still, NULL, &address.any, 2000));
    CHECK(!rdma_resolve_addr(moved, NULL, &address.any, 2000));
    CHECK(is_readable(client, WAIT_MS));
    CHECK(!rdma_migrate_id(moved, other));
    CHECK(moved->channel == other);
    CHECK(expect(other, RDMA_CM_EVENT_ADDR_RESOLVED).id == moved);
    CHECK(expect(client, RDMA_CM_EVENT_ADDR_RESOLVED).id == still);
    expect_silence(client);
    expect_silence(other);
    /* What comes later goes to the new one. */
    CHECK(!rdma_resolve_route(moved, 2000));
    CHECK(expect(other, RDMA_CM_EVENT_ROUTE_RESOLVED).id == moved);
    CHECK(!rdma_migrate_id(moved, other));
    end(still);
    end(moved);
    rdma_destroy_event_channel(other);
    close_channels();
}

static void moves_with_a_request(void)
{
    open_channels();
    channel_t *other = rdma_create_event_channel();
    CHECK(other);
    cm_id *listener = listen_at("0.0.0.0", RDMA_PS_TCP, 0);
    cm_id *here = asking("127.0.0.1", port_of(listener));
    CHECK(is_readable(server, WAIT_MS));
    CHECK(!rdma_migrate_id(listener, other));
    expect_silence(server);
    struct heard request = expect(other, RDMA_CM_EVENT_CONNECT_REQUEST);
    CHECK(request.listener == listener && request.id->channel == other);
    agree(request.id);
    expect(client, RDMA_CM_EVENT_ESTABLISHED);
    CHECK(expect(other, RDMA_CM_EVENT_ESTABLISHED).id == request.id);
    end(here);
    end(request.id);
    end(listener);
    rdma_destroy_event_channel(other);
    close_channels();
}

static void ends_with_events_unread(void)
{
    open_channels();
    cm_id *id = new_id(client, RDMA_PS_TCP), *other = new_id(client, RDMA_PS_TCP);
    union address address = literal("127.0.0.1", 1);
    CHECK(!rdma_resolve_addr(id, NULL, &address.any, 2000));
    CHECK(!rdma_resolve_addr(other, NULL, &address.any, 2000));
    CHECK(is_readable(client, WAIT_MS));
    end(id);
    CHECK(expect(client, RDMA_CM_EVENT_ADDR_RESOLVED).id == other);
    expect_silence(client);
    end(other);
    /* A request goes with its listener, and whoever asks is refused. */
    cm_id *listener = listen_at("0.0.0.0", RDMA_PS_TCP, 0);
    cm_id *here = asking("127.0.0.1", port_of(listener));
    CHECK(is_readable(server, WAIT_MS));
    end(listener);
    expect_silence(server);
    CHECK(expect(client, RDMA_CM_EVENT_REJECTED).status == 8);
    end(here);
    close_channels();
}

static void *acknowledge(void *event)
{
    usleep(50000);
    reader_ended = 1;
    CHECK(!rdma_ack_cm_event(event));
    return NULL;
}

/* Since Linux 6.17: neither headers nor librdmacm need know of it. */
static void events_of_its_own(void)
{
    enum { WRITE_CM_EVENT = 24, USER = 18 };
    struct {
        uint32_t command;
        uint16_t in, out;
        uint32_t id, reserved, event, status;
        uint64_t param[38];
    } command = {.command = WRITE_CM_EVENT, .in = sizeof(command) - 8, .event = USER, .status = 3};
    open_channels();
    cm_id *id = new_id(client, RDMA_PS_TCP);
    /* It is the first of this process, so its number in the kernel is 0. */
    CHECK(write(client->fd, &command, sizeof(command)) == sizeof(command));
    struct rdma_cm_event *event;
    CHECK(is_readable(client, WAIT_MS) && !rdma_get_cm_event(client, &event));
    CHECK(event->id == id && (int)event->event == USER && event->status == 3);
    CHECK(!rdma_ack_cm_event(event));
    command.event = RDMA_CM_EVENT_ESTABLISHED;
    FAILS(write(client->fd, &command, sizeof(command)) < 0, EINVAL);
    command.event = USER;
    command.id = 1;
    FAILS(write(client->fd, &command, sizeof(command)) < 0, ENOENT);
    end(id);
    close_channels();
}

static void waits_for_an_acknowledgement(void)
{
    struct rdma_cm_event *event;
    pthread_t thread;
    open_channels();
    cm_id *id = new_id(client, RDMA_PS_TCP);
    union address address = literal("127.0.0.1", 1);
    CHECK(!rdma_resolve_addr(id, NULL, &address.any, 2000));
    CHECK(!rdma_get_cm_event(client, &event));
    CHECK(!pthread_create(&thread, NULL, acknowledge, event));
    end(id);
    CHECK(reader_ended, "it did not wait");
    CHECK(!pthread_join(thread, NULL));
    close_channels();
}

/* ---- connections ---- */

static void private_data(void)
{
    uint8_t data[256];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = 3 * i + 1;
    open_channels();
    cm_id *listener = listen_at("0.0.0.0", RDMA_PS_TCP, 0);
    for (int refused = 0; refused < 2; refused++) {
        cm_id *here = resolved("127.0.0.1", port_of(listener), RDMA_PS_TCP);
        struct rdma_conn_param param = {.private_data = data, .private_data_len = 57};
        give_qp(here);
        FAILS(rdma_connect(here, &param), EINVAL);
        param.private_data_len = 56;
        CHECK(!rdma_connect(here, &param));
        struct heard request = expect(server, RDMA_CM_EVENT_CONNECT_REQUEST);
        CHECK(request.len == 56 && !memcmp(request.data, data, 56), "%zu", request.len);
        if (refused) {
            FAILS(rdma_reject(request.id, data, 149), EINVAL);
            CHECK(!rdma_reject(request.id, data, 148));
            struct heard no = expect(client, RDMA_CM_EVENT_REJECTED);
            CHECK(no.status == 28 && no.len == 148 && !memcmp(no.data, data, 148), "%d %zu", no.status, no.len);
        } else {
            give_qp(request.id);
            param.private_data_len = 196;
            CHECK(!rdma_accept(request.id, &param));
            struct heard yes = expect(client, RDMA_CM_EVENT_ESTABLISHED);
            CHECK(yes.len == 196 && !memcmp(yes.data, data, 196), "%zu", yes.len);
            expect(server, RDMA_CM_EVENT_ESTABLISHED);
        }
        end(here);
        if (!refused)
            expect(server, RDMA_CM_EVENT_DISCONNECTED);
        end(request.id);
    }
    end(listener);

    listener = listen_at("0.0.0.0", RDMA_PS_UDP, 0);
    cm_id *here = resolved("127.0.0.1", port_of(listener), RDMA_PS_UDP);
    struct rdma_conn_param param = {.private_data = data, .private_data_len = 181};
    FAILS(rdma_connect(here, &param), EINVAL);
    param.private_data_len = 180;
    CHECK(!rdma_connect(here, &param));
    struct heard request = expect(server, RDMA_CM_EVENT_CONNECT_REQUEST);
    CHECK(request.len == 180 && !memcmp(request.data, data, 180), "%zu", request.len);
    param = (struct rdma_conn_param){.private_data = data, .private_data_len = 136, .qp_num = 0x1234};
    CHECK(!rdma_accept(request.id, &param));
    struct heard yes = expect(client, RDMA_CM_EVENT_ESTABLISHED);
    CHECK(yes.len == 136 && !memcmp(yes.data, data, 136), "%zu", yes.len);
    end(here);
    end(request.id);
    end(listener);
    close_channels();
}

static void no_data_too_long(void)
{
    uint8_t data[256] = {0};
    open_channels();
    cm_id *listener = listen_at("0.0.0.0", RDMA_PS_TCP, 0);
    cm_id *here = asking("127.0.0.1", port_of(listener));
    struct heard request = expect(server, RDMA_CM_EVENT_CONNECT_REQUEST);
    struct rdma_conn_param param = {.private_data = data, .private_data_len = 197};
    give_qp(request.id);
    /* A kernel refuses in the program's name then. */
    FAILS(rdma_accept(request.id, &param), EINVAL);
    CHECK(expect(client, RDMA_CM_EVENT_REJECTED).status == 28);
    end(here);
    end(request.id);
    end(listener);
    close_channels();
}

/* Those for whom there is no room ask again, and come in when there is. */
static void backlog(void)
{
    enum { ALL = 4 };
    cm_id *here[ALL], *there[ALL];
    open_channels();
    cm_id *listener = listen_at("0.0.0.0", RDMA_PS_TCP, 1);
    for (int i = 0; i < ALL; i++)
        here[i] = asking("127.0.0.1", port_of(listener));
    CHECK(is_readable(server, WAIT_MS));
    usleep(150000);
    /* The next one may come before the one before it is established, or after. */
    for (int come = 0, established = 0; established < ALL;) {
        struct rdma_cm_event *event;
        CHECK(is_readable(server, WAIT_MS), "%d have come", come);
        CHECK(!rdma_get_cm_event(server, &event));
        int is_request = event->event == RDMA_CM_EVENT_CONNECT_REQUEST;
        cm_id *id = event->id;
        CHECK(is_request || event->event == RDMA_CM_EVENT_ESTABLISHED, "%s", rdma_event_str(event->event));
        CHECK(!rdma_ack_cm_event(event));
        if (!is_request) {
            established++;
            continue;
        }
        agree(there[come++] = id);
        expect(client, RDMA_CM_EVENT_ESTABLISHED);
    }
    for (int i = 0; i < ALL; i++)
        end(here[i]);
    for (int i = 0; i < ALL; i++)
        expect(server, RDMA_CM_EVENT_DISCONNECTED);
    for (int i = 0; i < ALL; i++)
        end(there[i]);
    end(listener);
    close_channels();
}

static void time_wait(void)
{
    open_channels();
    struct pair pair = connected();
    CHECK(!rdma_disconnect(pair.here));
    CHECK(expect(server, RDMA_CM_EVENT_DISCONNECTED).id == pair.there);
    CHECK(!rdma_disconnect(pair.there));
    CHECK(expect(client, RDMA_CM_EVENT_DISCONNECTED).id == pair.here);
    CHECK(expect(client, RDMA_CM_EVENT_TIMEWAIT_EXIT).id == pair.here);
    CHECK(expect(server, RDMA_CM_EVENT_TIMEWAIT_EXIT).id == pair.there);
    expect_silence(server);
    expect_silence(client);
    end_pair(&pair);
    close_channels();
}

static void both_at_once(void)
{
    open_channels();
    struct pair pair = connected();
    CHECK(!rdma_disconnect(pair.here));
    CHECK(!rdma_disconnect(pair.there));
    expect(server, RDMA_CM_EVENT_DISCONNECTED);
    expect(client, RDMA_CM_EVENT_DISCONNECTED);
    end_pair(&pair);
    close_channels();
}

/* ---- addresses ---- */

static void reaches(const char *at, const char *to)
{
    cm_id *listener = listen_at(at, RDMA_PS_TCP, 0);
    cm_id *here = asking(to, port_of(listener));
    struct heard request = expect(server, RDMA_CM_EVENT_CONNECT_REQUEST);
    CHECK(request.listener == listener);
    CHECK(rdma_get_peer_addr(request.id)->sa_family == rdma_get_local_addr(here)->sa_family);
    CHECK(rdma_get_dst_port(request.id) == rdma_get_src_port(here));
    agree(request.id);
    expect(client, RDMA_CM_EVENT_ESTABLISHED);
    expect(server, RDMA_CM_EVENT_ESTABLISHED);
    end(here);
    expect(server, RDMA_CM_EVENT_DISCONNECTED);
    end(request.id);
    end(listener);
}

static void wildcards(void)
{
    char v4[INET6_ADDRSTRLEN], v6[INET6_ADDRSTRLEN];
    open_channels();
    strcpy(v4, own(AF_INET));
    strcpy(v6, own(AF_INET6));
    reaches("0.0.0.0", "127.0.0.1");
    reaches("0.0.0.0", v4);
    reaches("::", "127.0.0.1");
    reaches("::", "::1");
    reaches("::", v4);
    reaches("::", v6);
    reaches(v4, v4);
    reaches(v6, v6);
    reaches("::1", "::1");
    close_channels();
}

static void one_family_alone(void)
{
    int yes = 1;
    union address any = literal("::", 0);
    open_channels();
    cm_id *listener = new_id(server, RDMA_PS_TCP);
    CHECK(!rdma_set_option(listener, RDMA_OPTION_ID, RDMA_OPTION_ID_AFONLY, &yes, sizeof(yes)));
    CHECK(!rdma_bind_addr(listener, &any.any) && !rdma_listen(listener, 0));
    cm_id *here = asking("127.0.0.1", port_of(listener));
    CHECK(expect(client, RDMA_CM_EVENT_REJECTED).status == 8);
    end(here);
    here = asking("::1", port_of(listener));
    cm_id *there = expect(server, RDMA_CM_EVENT_CONNECT_REQUEST).id;
    CHECK(!rdma_reject(there, NULL, 0));
    expect(client, RDMA_CM_EVENT_REJECTED);
    end(here);
    end(there);
    end(listener);
    close_channels();
}

static void names(void)
{
    struct rdma_addrinfo hints = {.ai_port_space = RDMA_PS_TCP}, *found;
    CHECK(!rdma_getaddrinfo("localhost", "7471", &hints, &found));
    CHECK(found && found->ai_dst_addr);
    rdma_freeaddrinfo(found);
    hints.ai_flags = RAI_NUMERICHOST;
    CHECK(!rdma_getaddrinfo("::1", "7471", &hints, &found));
    CHECK(found->ai_family == AF_INET6);
    rdma_freeaddrinfo(found);
    CHECK(rdma_getaddrinfo("no such host", "7471", &hints, &found));
    CHECK(rdma_getaddrinfo("127.0.0.1", "no such service", &hints, &found));
}

static void nonsense(void)
{
    open_channels();
    struct {
        const char *text;
        int error;
    } nobodys[] = {{"192.0.2.1", ENODEV}, {"2001:db8::1", ENODEV}, {"127.0.82.200", ETIMEDOUT},
                   {"127.9.82.1", ETIMEDOUT}};
    for (size_t i = 0; i < COUNT(nobodys); i++) {
        union address address = literal(nobodys[i].text, 7471);
        cm_id *id = new_id(client, RDMA_PS_TCP);
        CHECK(!rdma_resolve_addr(id, NULL, &address.any, 200));
        struct heard error = expect(client, RDMA_CM_EVENT_ADDR_ERROR);
        CHECK(error.id == id && error.status == -nobodys[i].error, "%s: %d", nobodys[i].text, error.status);
        end(id);
        id = new_id(client, RDMA_PS_TCP);
        FAILS(rdma_bind_addr(id, &address.any), EADDRNOTAVAIL);
        end(id);
    }
    union address odd = {.any.sa_family = AF_UNIX};
    cm_id *id = new_id(client, RDMA_PS_TCP);
    CHECK(rdma_bind_addr(id, &odd.any));
    end(id);
    close_channels();
}

static void ports(void)
{
    open_channels();
    cm_id *listener = listen_at("127.0.0.1", RDMA_PS_TCP, 0), *other = new_id(server, RDMA_PS_TCP);
    union address same = literal("127.0.0.1", port_of(listener)), wildcard = literal("0.0.0.0", port_of(listener));
    FAILS(rdma_bind_addr(other, &same.any), EADDRINUSE);
    FAILS(rdma_bind_addr(other, &wildcard.any), EADDRINUSE);
    cm_id *datagrams = new_id(server, RDMA_PS_UDP);
    CHECK(!rdma_bind_addr(datagrams, &same.any));
    end(datagrams);
    end(listener);
    CHECK(!rdma_bind_addr(other, &wildcard.any));
    CHECK(!rdma_listen(other, 0));
    FAILS(rdma_listen(other, 0), EINVAL);
    end(other);
    close_channels();
}

/* Another process of the guest asks while the listener is being renewed: neither may refuse, and the request comes
 * again. The listener is missing for a few milliseconds, unless something held us up; then it says nothing. */
static void renewed(void)
{
    int up[2], down[2], in_time = 0;
    char byte = 0;
    uint16_t number = 0;
    CHECK(!pipe(up) && !pipe(down));
    pid_t child = fork();
    CHECK(child >= 0);
    close(child ? down[0] : down[1]);
    while (!child && read(down[0], &number, sizeof(number)) == sizeof(number)) {
        open_channels();
        cm_id *id = resolved("127.0.0.1", number, RDMA_PS_TCP);
        struct rdma_conn_param param = {0};
        give_qp(id);
        CHECK(write(up[1], &byte, 1) == 1 && read(down[0], &number, sizeof(number)) == sizeof(number));
        CHECK(!rdma_connect(id, &param));
        CHECK(write(up[1], &byte, 1) == 1);
        struct rdma_cm_event *event;
        CHECK(!rdma_get_cm_event(client, &event));
        byte = event->event == RDMA_CM_EVENT_ESTABLISHED;
        CHECK(!rdma_ack_cm_event(event));
        CHECK(write(up[1], &byte, 1) == 1);
        end(id);
        close_channels();
    }
    if (!child)
        _exit(0);
    for (int round = 0; round < 50 && in_time < 3; round++) {
        open_channels();
        cm_id *listener = listen_at("0.0.0.0", RDMA_PS_TCP, 0);
        union address same = literal("0.0.0.0", port_of(listener));
        number = port_of(listener);
        CHECK(write(down[1], &number, sizeof(number)) == sizeof(number) && read(up[0], &byte, 1) == 1);
        double start = now_ms();
        end(listener);
        CHECK(write(down[1], &number, sizeof(number)) == sizeof(number) && read(up[0], &byte, 1) == 1);
        /* For whoever refuses wrongly. */
        usleep(20000);
        listener = new_id(server, RDMA_PS_TCP);
        CHECK(!rdma_bind_addr(listener, &same.any) && !rdma_listen(listener, 0));
        double missing = now_ms() - start;
        cm_id *there = NULL;
        if (is_readable(server, missing < 200 ? WAIT_MS / 4 : 1000)) {
            there = expect(server, RDMA_CM_EVENT_CONNECT_REQUEST).id;
            agree(there);
            expect(server, RDMA_CM_EVENT_ESTABLISHED);
        }
        CHECK(read(up[0], &byte, 1) == 1);
        CHECK(byte || missing >= 200, "refused, after %.0f ms without a listener", missing);
        in_time += missing < 200;
        if (there)
            end(there);
        end(listener);
        close_channels();
    }
    close(down[1]);
    CHECK(waitpid(child, NULL, 0) == child);
    CHECK(in_time == 3, "only %d rounds were quick enough", in_time);
}

/* ---- several processes of a guest ---- */

struct process {
    pid_t pid;
    /* Ends of its parent. */
    int to, from;
};

/* Whom a child tells and hears. */
static int parent_to, parent_from;

static void say(int to, uint16_t word)
{
    CHECK(write(to, &word, sizeof(word)) == sizeof(word));
}

static uint16_t hear(int from)
{
    uint16_t word;
    CHECK(read(from, &word, sizeof(word)) == sizeof(word));
    return word;
}

/* Comes back when it has its channels, so that who was started first has joined first. */
static struct process start(void (*body)(void))
{
    int up[2], down[2];
    CHECK(!pipe(up) && !pipe(down));
    struct process process = {.pid = fork(), .to = down[1], .from = up[0]};
    CHECK(process.pid >= 0);
    if (!process.pid) {
        close(up[0]);
        close(down[1]);
        parent_to = up[1];
        parent_from = down[0];
        open_channels();
        end(new_id(client, RDMA_PS_TCP));
        say(parent_to, 0);
        body();
        /* A program that does not say goodbye, as children of Python's multiprocessing. */
        _exit(0);
    }
    close(up[1]);
    close(down[0]);
    hear(process.from);
    return process;
}

static void stop(struct process *process)
{
    int status;
    CHECK(!kill(process->pid, SIGSTOP));
    CHECK(waitpid(process->pid, &status, WUNTRACED) == process->pid && WIFSTOPPED(status));
}

static void go_on(struct process *process)
{
    CHECK(!kill(process->pid, SIGCONT));
}

static void expect_end(struct process *process)
{
    int status;
    CHECK(waitpid(process->pid, &status, 0) == process->pid && !status, "%x", status);
    close(process->to);
    close(process->from);
}

/* Tries somebody who is not there; by then all that came before is behind it. */
static void is_refused(void)
{
    cm_id *listener = listen_at("127.0.0.1", RDMA_PS_TCP, 0);
    uint16_t port = port_of(listener);
    end(listener);
    usleep(450000);
    cm_id *here = asking("127.0.0.1", port);
    struct heard no = expect(client, RDMA_CM_EVENT_REJECTED);
    CHECK(no.id == here && no.status == 8, "%d", no.status);
    end(here);
}

static void bystander(void)
{
    CHECK(hear(parent_from) == 1);
    is_refused();
    say(parent_to, 1);
    hear(parent_from);
}

static void refuses(void)
{
    uint8_t data[148] = {42};
    cm_id *listener = listen_at("0.0.0.0", RDMA_PS_TCP, 0);
    say(parent_to, port_of(listener));
    struct heard request = expect(server, RDMA_CM_EVENT_CONNECT_REQUEST);
    CHECK(!rdma_reject(request.id, data, sizeof(data)));
}

static void is_told_why(void)
{
    cm_id *here = asking("127.0.0.1", hear(parent_from));
    raise(SIGSTOP);
    struct heard no = expect(client, RDMA_CM_EVENT_REJECTED);
    CHECK(no.id == here && no.status == 28 && no.len == 148 && no.data[0] == 42, "%d %zu", no.status, no.len);
}

/* Who asks is late, perhaps another process of the guest is too, and who refused has ended by then without a word: what
 * it said counts, and nobody else's opinion. */
static void refused_by_one_who_is_gone(void)
{
    for (int has_other = 0; has_other < 2; has_other++) {
        int status;
        struct process other = {0};
        if (has_other)
            other = start(bystander);
        struct process there = start(refuses), here = start(is_told_why);
        uint16_t port = hear(there.from);
        if (has_other)
            stop(&other);
        say(here.to, port);
        CHECK(waitpid(here.pid, &status, WUNTRACED) == here.pid && WIFSTOPPED(status), "%x", status);
        expect_end(&there);
        if (has_other) {
            go_on(&other);
            say(other.to, 1);
            hear(other.from);
        }
        go_on(&here);
        expect_end(&here);
        if (has_other) {
            say(other.to, 2);
            expect_end(&other);
        }
    }
}

static void serves_one(void)
{
    cm_id *listener = listen_at("0.0.0.0", RDMA_PS_TCP, 0);
    say(parent_to, port_of(listener));
    cm_id *there = expect(server, RDMA_CM_EVENT_CONNECT_REQUEST).id;
    agree(there);
    expect(server, RDMA_CM_EVENT_ESTABLISHED);
    end(listener);
    usleep(450000);
    say(parent_to, 1);
    expect(server, RDMA_CM_EVENT_DISCONNECTED);
    end(there);
}

static void stays_connected(void)
{
    cm_id *here = asking("127.0.0.1", hear(parent_from));
    CHECK(expect(client, RDMA_CM_EVENT_ESTABLISHED).id == here);
    hear(parent_from);
    expect_silence(client);
    is_refused();
    end(here);
}

/* A process of the guest that was held up learns of a request when its listener has gone: that is none of its business,
 * and the connection stays. */
static void established_beside_one_who_is_late(void)
{
    struct process other = start(bystander), there = start(serves_one), here = start(stays_connected);
    uint16_t port = hear(there.from);
    stop(&other);
    say(here.to, port);
    hear(there.from);
    go_on(&other);
    say(other.to, 1);
    hear(other.from);
    say(here.to, 1);
    expect_end(&here);
    expect_end(&there);
    say(other.to, 2);
    expect_end(&other);
}

/* Each call in a state that it is not for. */
static void out_of_order(void)
{
    struct rdma_conn_param param = {.qp_num = 5};
    union address address = literal("127.0.0.1", 1);
    open_channels();
    cm_id *id = new_id(client, RDMA_PS_TCP);
    /* Other calls librdmacm itself does not survive while there is no device. */
    FAILS(rdma_reject(id, NULL, 0), EINVAL);
    CHECK(!rdma_resolve_addr(id, NULL, &address.any, 1000));
    expect(client, RDMA_CM_EVENT_ADDR_RESOLVED);
    FAILS(rdma_bind_addr(id, &address.any), EINVAL);
    FAILS(rdma_resolve_addr(id, NULL, &address.any, 1000), EINVAL);
    FAILS(rdma_listen(id, 0), EINVAL);
    FAILS(rdma_connect(id, &param), EINVAL);
    CHECK(!rdma_resolve_route(id, 1));
    expect(client, RDMA_CM_EVENT_ROUTE_RESOLVED);
    FAILS(rdma_resolve_route(id, 1), EINVAL);
    FAILS(rdma_accept(id, &param), EINVAL);
    end(id);
    struct pair pair = connected();
    FAILS(rdma_connect(pair.here, &param), EINVAL);
    FAILS(rdma_listen(pair.there, 0), EINVAL);
    FAILS(rdma_reject(pair.there, NULL, 0), EINVAL);
    FAILS(rdma_notify(pair.there, IBV_EVENT_COMM_EST), EISCONN);
    FAILS(rdma_notify(pair.there, IBV_EVENT_SQ_DRAINED), EINVAL);
    end_pair(&pair);
    close_channels();
}

static const struct test_case CASES[] = {
    {"never_blocks", never_blocks},
    {"polled", polled},
    {"closed_under_a_reader", closed_under_a_reader},
    {"moves", moves},
    {"moves_with_a_request", moves_with_a_request},
    {"ends_with_events_unread", ends_with_events_unread},
    {"events_of_its_own", events_of_its_own},
    {"waits_for_an_acknowledgement", waits_for_an_acknowledgement},
    {"private_data", private_data},
    {"no_data_too_long", no_data_too_long},
    {"backlog", backlog},
    {"time_wait", time_wait},
    {"both_at_once", both_at_once},
    {"wildcards", wildcards},
    {"one_family_alone", one_family_alone},
    {"names", names},
    {"nonsense", nonsense},
    {"ports", ports},
    {"renewed", renewed},
    {"refused_by_one_who_is_gone", refused_by_one_who_is_gone},
    {"established_beside_one_who_is_late", established_beside_one_who_is_late},
    {"out_of_order", out_of_order},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, COUNT(CASES), argc, argv);
}

/*
 * Data exact, byte for byte: every opcode, many sizes, SGE lists and rings, against a model.
 *
 *   data [OPTIONS]                     both sides in this process, two QPs
 *   data [OPTIONS] -p PORT [ADDRESS]   one side of two processes; the other is started with the same options
 *
 *   -s SEED      what all choices come from; printed, and taken from the clock if not given
 *   -k KIND      what to do: short (a sample of everything), few (less), connected (few without datagrams, which a
 *                wire may lose), rings, sizes, powers, on (sessions until told to stop), or wrong (spoil a byte and
 *                find it)
 *   -o NAMES     only these operations, as SEND,READ
 *   -a           only the side that goes to the other one asks
 *   -z           no READ without length
 *   -g INDEX     the GID to use, if not 1
 *   -u FILE      with -k on: stop when FILE is there; either side may have it
 *   -m           the other side may die at any moment: then the exit status is 3, and no data were wrong until then
 *
 * Both sides make the same plan from the same seed: a batch of work requests each way, which SGEs they name, what
 * arrives where. They keep a model of both buffers, carry the plan out in the model and for real, and compare every
 * byte of their buffer afterwards, so a byte that was not to be touched is seen as well as one that is wrong.
 */
#define _GNU_SOURCE
#include <getopt.h>

#include "meet.h"

#define MAX_SGES 16
/* The index of the GID: one that the kernel can resolve to an address. */
static int gid_index = 1;
/* Bytes in front of every datagram, for its GRH. */
#define GRH 40
#define QKEY 0x11223344
#define COUNT(list) (sizeof(list) / sizeof((list)[0]))
/* Longest wait for anything; a hang is what it is there for. */
#define PATIENCE_MS 60000

enum kind { SEND, SEND_IMM, WRITE, WRITE_IMM, READ, CAS, FADD, KINDS };

static const char *const NAMES[KINDS] = {"SEND", "SEND_IMM", "WRITE", "WRITE_IMM", "READ", "CAS", "FADD"};

static const enum ibv_wr_opcode OPCODES[KINDS] = {
    IBV_WR_SEND,      IBV_WR_SEND_WITH_IMM,      IBV_WR_RDMA_WRITE,          IBV_WR_RDMA_WRITE_WITH_IMM,
    IBV_WR_RDMA_READ, IBV_WR_ATOMIC_CMP_AND_SWP, IBV_WR_ATOMIC_FETCH_AND_ADD};

static const enum ibv_wc_opcode COMPLETIONS[KINDS] = {IBV_WC_SEND,       IBV_WC_SEND,      IBV_WC_RDMA_WRITE, IBV_WC_RDMA_WRITE,
                                                      IBV_WC_RDMA_READ, IBV_WC_COMP_SWAP, IBV_WC_FETCH_ADD};

static int is_message(enum kind kind)
{
    return kind == SEND || kind == SEND_IMM || kind == WRITE_IMM;
}

static int has_imm(enum kind kind)
{
    return kind == SEND_IMM || kind == WRITE_IMM;
}

static int is_atomic(enum kind kind)
{
    return kind == CAS || kind == FADD;
}

/* Reads the other side's memory, and must have done so before a later request may write there. */
static int reads(enum kind kind)
{
    return kind == READ || is_atomic(kind);
}

/* ---- chance ---- */

static uint64_t seed, chance_state;

/* splitmix64; both sides draw the same numbers in the same order. */
static uint64_t chance(void)
{
    uint64_t x = chance_state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint32_t below(uint32_t limit)
{
    return (uint32_t)(chance() % limit);
}

static int one_in(uint32_t n)
{
    return below(n) == 0;
}

static void noise(uint8_t *bytes, size_t length)
{
    for (; length >= 8; length -= 8, bytes += 8) {
        uint64_t word = chance();
        memcpy(bytes, &word, 8);
    }
    uint64_t word = chance();
    memcpy(bytes, &word, length);
}

/* ---- one session: a connection and what is planned for it ---- */

struct session {
    uint32_t depth;     /* work requests of each ring, as asked for */
    uint32_t sges;      /* SGEs of each, as asked for */
    uint32_t batches;
    uint32_t most;      /* work requests of a batch and direction */
    uint32_t stream;    /* messages each way after the batches, back to back */
    uint32_t longest;   /* bytes of the longest message */
    unsigned kinds;     /* bit n: kind n may be chosen */
    int srq, one_cq, events, ud;
    enum ibv_mtu mtu;
    uint32_t (*length)(uint32_t number, uint32_t longest);
};

struct piece {
    uint32_t offset, length;
    int key;
};

struct op {
    enum kind kind;
    uint32_t length, imm, remote;
    int remote_key, fence, signaled, local_count, receive_count;
    struct piece local[MAX_SGES], receive[MAX_SGES];
    uint64_t compare, operand;
};

struct plan {
    uint32_t count, messages;
    struct op *ops;
};

struct address {
    uint32_t qp_num, psn, rkeys[4];
    uint64_t buffer;
    union ibv_gid gid;
};

/* One of the two sides. Only those of this process have more than a model and an address. */
struct side {
    int here;
    struct ibv_cq *send_cq, *recv_cq;
    struct ibv_comp_channel *channel;
    struct ibv_srq *srq;
    struct ibv_qp *qp;
    struct ibv_ah *ah;
    struct ibv_mr *mrs[4];
    uint8_t *mapped, *buffer, *model;
    struct address address;
    uint32_t sent, received; /* completions of this batch or stream */
    uint32_t signaled[16384];
    uint32_t signaled_count;
};

static struct device device;
static unsigned chosen_kinds = (1u << KINDS) - 1;
/* What both sides can do: they need not be devices of one kind. */
static struct limits {
    int max_sge, max_srq, max_qp_wr, atomics;
    enum ibv_mtu mtu;
} limits;
static struct side sides[2];
static struct plan plans[2];
static struct session session;
static size_t length, arena_length, arenas[2], used[2][2];
static int peer = -1; /* the socket; -1: both sides are here */
static int mortal, spoil, alone, no_empty_read;
static const char *until;
static uint64_t done[KINDS], datagrams, bytes_done;

/* Every byte of the buffer that is in no arena is never touched. */
#define EDGE 61

/* Bytes of an arena that a plan can use up. */
static size_t arena_of(const struct session *s)
{
    return (size_t)s->most * (s->longest + GRH + 64 + 24 * (MAX_SGES + 1)) + 256;
}

/* Takes `length` bytes of arena `direction` of side `number`, behind a few that stay as they are. */
static uint32_t take(int number, int direction, uint32_t length, uint32_t align)
{
    size_t at = arenas[direction] + used[number][direction] + 1 + below(15);
    at = (at + align - 1) / align * align;
    used[number][direction] = at + length - arenas[direction];
    CHECK(used[number][direction] <= arena_length, "the arena is too small");
    return (uint32_t)at;
}

/* Cuts `length` bytes into SGEs, empty ones among them. */
static int cut(int number, int direction, uint32_t length, struct piece *pieces)
{
    int count = below(3) == 0 ? (int)session.sges : 1 + (int)below(session.sges);
    if (length == 0 && one_in(2))
        return 0;
    for (int i = 0; i < count; i++) {
        uint32_t share = i == count - 1 ? length : one_in(4) ? 0 : below(length + 1);
        pieces[i] = (struct piece){take(number, direction, share, 1), share, direction * 2 + (int)below(2)};
        length -= share;
    }
    return count;
}

static void plan_one(int direction, uint32_t number, struct op *op, const struct op *before)
{
    int to = !direction;
    do
        op->kind = (enum kind)below(KINDS);
    while (!(session.kinds & 1u << op->kind));
    op->length = is_atomic(op->kind) ? 8 : session.length(number, session.longest);
    if (op->kind == READ && !op->length && no_empty_read)
        op->length = 1;
    op->imm = (uint32_t)chance();
    op->signaled = one_in(2);
    op->fence = one_in(8);
    op->local_count = op->receive_count = 0;
    if (is_atomic(op->kind)) {
        op->local_count = 1;
        op->local[0] = (struct piece){take(direction, direction, 8, 1), 8, direction * 2 + (int)below(2)};
    } else {
        op->local_count = cut(direction, direction, op->length, op->local);
    }
    if (!reads(op->kind))
        for (int i = 0; i < op->local_count; i++)
            noise(sides[direction].model + op->local[i].offset, op->local[i].length);
    if (op->kind == SEND || op->kind == SEND_IMM) {
        uint32_t room = op->length + (one_in(2) ? below(64) : 0);
        op->receive_count = cut(to, direction, room + (session.ud ? GRH : 0), op->receive);
        return;
    }
    op->remote_key = direction * 2 + (int)below(2);
    /* Sometimes the place of the request before: then order matters. */
    int again = before && before->kind != SEND && before->kind != SEND_IMM && op->length <= before->length && one_in(4);
    if (again && (!is_atomic(op->kind) || before->remote % 8 == 0)) {
        op->remote = before->remote;
        /* What reads there must have done so first. The fence covers all before it, so a chain needs no more. */
        op->fence |= reads(before->kind);
    } else {
        op->remote = take(to, direction, op->length, is_atomic(op->kind) ? 8 : 1);
        if (reads(op->kind))
            noise(sides[to].model + op->remote, op->length);
    }
    op->operand = chance();
    op->compare = chance();
    if (op->kind == CAS && one_in(2))
        memcpy(&op->compare, sides[to].model + op->remote, 8);
}

/* The plan of one direction: side `direction` asks, the other one answers. */
static void make_plan(int direction)
{
    struct plan *plan = &plans[direction];
    used[0][direction] = used[1][direction] = 0;
    plan->count = plan->messages = 0;
    if (alone && direction == 0)
        return;
    plan->count = one_in(2) ? session.most : 1 + below(session.most);
    for (uint32_t i = 0; i < plan->count; i++) {
        plan_one(direction, i, &plan->ops[i], i ? &plan->ops[i - 1] : NULL);
        plan->messages += is_message(plan->ops[i].kind);
    }
    plan->ops[plan->count - 1].signaled = 1;
}

/* What stands in a GRH is the device's business: the model takes it as it came. */
static void accept_grh(struct side *side, const struct op *op)
{
    uint32_t left = GRH;
    for (int i = 0; left && i < op->receive_count; i++) {
        uint32_t part = op->receive[i].length < left ? op->receive[i].length : left;
        memcpy(side->model + op->receive[i].offset, side->buffer + op->receive[i].offset, part);
        left -= part;
    }
    CHECK(left == 0);
}

/* Bytes between memory in one piece and SGEs. */
static void gather(const uint8_t *buffer, const struct piece *pieces, int count, uint8_t *out)
{
    for (int i = 0; i < count; out += pieces[i++].length)
        memcpy(out, buffer + pieces[i].offset, pieces[i].length);
}

static void scatter(uint8_t *buffer, const struct piece *pieces, int count, const uint8_t *in, uint32_t length)
{
    for (int i = 0; i < count; i++) {
        uint32_t part = pieces[i].length < length ? pieces[i].length : length;
        memcpy(buffer + pieces[i].offset, in, part);
        in += part;
        length -= part;
    }
    CHECK(length == 0);
}

static void carry_out_in_model(int direction)
{
    static uint8_t *message;
    static size_t room;
    uint8_t *from = sides[direction].model, *to = sides[!direction].model;
    if (room < session.longest + GRH + 64) {
        room = session.longest + GRH + 64;
        message = realloc(message, room);
        CHECK(message);
    }
    for (uint32_t i = 0; i < plans[direction].count; i++) {
        const struct op *op = &plans[direction].ops[i];
        uint64_t value, next;
        done[op->kind]++;
        bytes_done += op->length;
        switch (op->kind) {
        case SEND:
        case SEND_IMM:
            if (session.ud) {
                if (sides[!direction].here)
                    accept_grh(&sides[!direction], op);
                gather(to, op->receive, op->receive_count, message);
                gather(from, op->local, op->local_count, message + GRH);
                scatter(to, op->receive, op->receive_count, message, op->length + GRH);
                datagrams++;
                break;
            }
            gather(from, op->local, op->local_count, message);
            scatter(to, op->receive, op->receive_count, message, op->length);
            break;
        case WRITE:
        case WRITE_IMM:
            gather(from, op->local, op->local_count, to + op->remote);
            break;
        case READ:
            scatter(from, op->local, op->local_count, to + op->remote, op->length);
            break;
        default:
            memcpy(&value, to + op->remote, 8);
            scatter(from, op->local, op->local_count, (uint8_t *)&value, 8);
            next = op->kind == FADD ? value + op->operand : value == op->compare ? op->operand : value;
            memcpy(to + op->remote, &next, 8);
        }
    }
}

/* ---- the same for real ---- */

static struct ibv_sge sge_at(const struct side *side, const struct piece *piece)
{
    return (struct ibv_sge){(uintptr_t)side->buffer + piece->offset, piece->length, side->mrs[piece->key]->lkey};
}

static void post_receives(int number)
{
    struct side *side = &sides[number];
    const struct plan *plan = &plans[!number];
    uint64_t message = 0;
    for (uint32_t i = 0; i < plan->count; i++) {
        const struct op *op = &plan->ops[i];
        if (!is_message(op->kind))
            continue;
        struct ibv_sge sg_list[MAX_SGES];
        for (int k = 0; k < op->receive_count; k++)
            sg_list[k] = sge_at(side, &op->receive[k]);
        struct ibv_recv_wr wr = {.wr_id = message++, .sg_list = sg_list, .num_sge = op->receive_count}, *bad;
        int error = side->srq ? ibv_post_srq_recv(side->srq, &wr, &bad) : ibv_post_recv(side->qp, &wr, &bad);
        CHECK(!error, "post_recv gives %d", error);
    }
}

static void post_sends(int number)
{
    enum { LIST = 64 };
    struct side *side = &sides[number];
    const struct address *there = &sides[!number].address;
    const struct plan *plan = &plans[number];
    uint32_t list = 1 + (uint32_t)(seed + plan->count) % LIST;
    side->signaled_count = 0;
    for (uint32_t first = 0; first < plan->count; first += list) {
        /* Not on the stack: valgrind cannot deliver the doorbell's signal far below what was touched of it. */
        static struct ibv_send_wr wrs[LIST];
        static struct ibv_sge sges[LIST][MAX_SGES];
        struct ibv_send_wr *bad = NULL;
        uint32_t count = plan->count - first < list ? plan->count - first : list;
        for (uint32_t i = 0; i < count; i++) {
            const struct op *op = &plan->ops[first + i];
            uint64_t place = there->buffer + op->remote;
            uint32_t rkey = there->rkeys[op->remote_key];
            for (int k = 0; k < op->local_count; k++)
                sges[i][k] = sge_at(side, &op->local[k]);
            wrs[i] = (struct ibv_send_wr){
                .wr_id = first + i,
                .next = i + 1 < count ? &wrs[i + 1] : NULL,
                .sg_list = sges[i],
                .num_sge = op->local_count,
                .opcode = OPCODES[op->kind],
                .send_flags = (op->signaled ? IBV_SEND_SIGNALED : 0) | (op->fence ? IBV_SEND_FENCE : 0),
                .imm_data = has_imm(op->kind) ? htonl(op->imm) : 0,
            };
            if (session.ud) {
                wrs[i].wr.ud.ah = side->ah;
                wrs[i].wr.ud.remote_qpn = there->qp_num;
                wrs[i].wr.ud.remote_qkey = QKEY;
            } else if (is_atomic(op->kind)) {
                wrs[i].wr.atomic.remote_addr = place;
                wrs[i].wr.atomic.rkey = rkey;
                wrs[i].wr.atomic.compare_add = op->kind == FADD ? op->operand : op->compare;
                wrs[i].wr.atomic.swap = op->operand;
            } else if (op->kind != SEND && op->kind != SEND_IMM) {
                wrs[i].wr.rdma.remote_addr = place;
                wrs[i].wr.rdma.rkey = rkey;
            }
            if (op->signaled)
                side->signaled[side->signaled_count++] = first + i;
        }
        int error = ibv_post_send(side->qp, wrs, &bad);
        CHECK(!error, "post_send gives %d at %u of %u", error, first + (uint32_t)(bad - wrs), plan->count);
    }
}

static void check_sent(int direction, const struct ibv_wc *wc)
{
    struct side *side = &sides[direction];
    CHECK(side->sent < side->signaled_count, "a completion too many, wr_id %llu", (unsigned long long)wc->wr_id);
    const struct op *op = &plans[direction].ops[side->signaled[side->sent]];
    CHECK(wc->wr_id == side->signaled[side->sent], "wr_id %llu, not %u", (unsigned long long)wc->wr_id,
          side->signaled[side->sent]);
    CHECK(wc->opcode == COMPLETIONS[op->kind], "opcode %d for %s", wc->opcode, NAMES[op->kind]);
    side->sent++;
}

static void check_received(int direction, const struct ibv_wc *wc)
{
    struct side *side = &sides[!direction];
    const struct plan *plan = &plans[direction];
    uint32_t message = 0, i = 0;
    /* Cheap enough: batches are short wherever they have messages. */
    for (;; i++) {
        CHECK(i < plan->count, "a message too many");
        if (is_message(plan->ops[i].kind) && message++ == side->received)
            break;
    }
    const struct op *op = &plan->ops[i];
    CHECK(wc->wr_id == side->received, "wr_id %llu, not %u", (unsigned long long)wc->wr_id, side->received);
    CHECK(wc->opcode == (op->kind == WRITE_IMM ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV));
    uint32_t expected = op->length + (session.ud ? GRH : 0);
    CHECK(wc->byte_len == expected, "%u bytes, not %u", wc->byte_len, expected);
    CHECK(!session.ud || (wc->wc_flags & IBV_WC_GRH && wc->src_qp == sides[direction].address.qp_num));
    CHECK(!!(wc->wc_flags & IBV_WC_WITH_IMM) == has_imm(op->kind));
    CHECK(!has_imm(op->kind) || wc->imm_data == htonl(op->imm), "imm %x, not %x", ntohl(wc->imm_data), op->imm);
    side->received++;
}

static void close_side(int number);

/* The other side is gone: whoever stays must get rid of everything all the same. */
static void gone(void)
{
    CHECK(mortal, "the other side is gone");
    for (int number = 0; number < 2; number++)
        if (sides[number].qp)
            close_side(number);
    close_device(&device);
    puts("the other side is gone");
    exit(3);
}

/* Whether the other process has ended; bytes of it may still be unread. */
static int has_gone(void)
{
    struct pollfd fd = {.fd = peer, .events = POLLRDHUP};
    return peer >= 0 && poll(&fd, 1, 0) == 1;
}

typedef void check_wc(int direction, const struct ibv_wc *wc);

/* Takes what is there from the CQs of a side; `sent` and `received` look at each. */
static int poll_side(int number, check_wc *sent, check_wc *received)
{
    struct side *side = &sides[number];
    struct ibv_wc wc[16];
    int found = 0;
    for (int which = 0; which < (side->send_cq == side->recv_cq ? 1 : 2); which++) {
        int n = ibv_poll_cq(which ? side->recv_cq : side->send_cq, 1 + (int)(seed % 16), wc);
        CHECK(n >= 0, "poll_cq gives %d", n);
        found += n;
        for (int i = 0; i < n; i++) {
            if (mortal && (wc[i].status == IBV_WC_RETRY_EXC_ERR || wc[i].status == IBV_WC_WR_FLUSH_ERR))
                gone();
            CHECK(wc[i].status == IBV_WC_SUCCESS, "wr_id %llu: %s", (unsigned long long)wc[i].wr_id,
                  ibv_wc_status_str(wc[i].status));
            CHECK(wc[i].qp_num == side->qp->qp_num);
            if (wc[i].opcode & IBV_WC_RECV)
                received(!number, &wc[i]);
            else
                sent(number, &wc[i]);
        }
    }
    return found;
}

/* Sleeps until a CQ of the side has something; its CQs were armed and then found empty. */
static void sleep_for_event(struct side *side)
{
    struct pollfd fds[2] = {{.fd = side->channel->fd, .events = POLLIN}, {.fd = peer, .events = POLLRDHUP}};
    struct ibv_cq *cq;
    void *cq_context;
    CHECK(poll(fds, 2, PATIENCE_MS) >= 1, "no event");
    if (!fds[0].revents)
        return;
    CHECK(!ibv_get_cq_event(side->channel, &cq, &cq_context));
    CHECK(cq == side->send_cq || cq == side->recv_cq);
    ibv_ack_cq_events(cq, 1);
    CHECK(!ibv_req_notify_cq(cq, 0));
}

/* Something else that a wait may do: post what has room now. */
typedef int more(int number);

/* Waits until all of `sent` and `received` completions are there, on every side that is here. */
static void wait_for(const uint32_t *sent, const uint32_t *received, check_wc *check_send, check_wc *check_receive,
                     more *post)
{
    double limit = now_ms() + PATIENCE_MS;
    for (;;) {
        int complete = 1, found = 0;
        for (int number = 0; number < 2; number++) {
            struct side *side = &sides[number];
            if (!side->here)
                continue;
            found += poll_side(number, check_send, check_receive);
            if (post)
                found += post(number);
            complete &= side->sent == sent[number] && side->received == received[number];
        }
        if (complete)
            return;
        if (found) {
            limit = now_ms() + PATIENCE_MS;
            continue;
        }
        if (mortal && has_gone())
            gone();
        /* With both sides here the sleep would be for one of two channels. */
        for (int number = 0; number < 2 && peer >= 0; number++)
            if (sides[number].here && session.events)
                sleep_for_event(&sides[number]);
        if (now_ms() > limit)
            for (int n = 0; n < 2; n++)
                fprintf(stderr, "side %d: %u of %u sent, %u of %u received\n", n, sides[n].sent, sent[n],
                        sides[n].received, received[n]);
        CHECK(now_ms() < limit, "no completion");
    }
}

/* Both sides are at this place of the program; 0 when one wants to stop. */
static int together(int go_on)
{
    char mine = (char)go_on, theirs = 0;
    if (peer < 0)
        return go_on;
    if (!tell(peer, &mine, 1) || !hear(peer, &theirs, 1))
        gone();
    return mine && theirs;
}

static void compare(int number)
{
    const struct side *side = &sides[number];
    if (!memcmp(side->buffer, side->model, length))
        return;
    size_t at = 0, wrong = 0;
    for (size_t i = length; i-- > 0;)
        if (side->buffer[i] != side->model[i]) {
            at = i;
            wrong++;
        }
    for (int direction = 0; direction < 2; direction++)
        for (uint32_t i = 0; i < plans[direction].count; i++) {
            const struct op *op = &plans[direction].ops[i];
            fprintf(stderr, "%d -> %d: %s %u bytes, remote %u%s", direction, !direction, NAMES[op->kind], op->length,
                    op->remote, op->fence ? ", fence" : "");
            for (int k = 0; k < op->local_count; k++)
                fprintf(stderr, " local %u+%u", op->local[k].offset, op->local[k].length);
            for (int k = 0; k < op->receive_count; k++)
                fprintf(stderr, " receive %u+%u", op->receive[k].offset, op->receive[k].length);
            fputc('\n', stderr);
        }
    CHECK(0, "side %d: %zu bytes are wrong, the first at %zu: %02x, not %02x", number, wrong, at, side->buffer[at],
          side->model[at]);
}

/* Only arenas change, and of those the used part. */
static void write_fresh(int number)
{
    struct side *side = &sides[number];
    for (int direction = 0; direction < 2; direction++)
        memcpy(side->buffer + arenas[direction], side->model + arenas[direction], used[number][direction]);
}

static void on_sides_here(void (*act)(int number))
{
    for (int number = 0; number < 2; number++)
        if (sides[number].here)
            act(number);
}

static void batch(void)
{
    uint32_t sent[2], received[2];
    int late = one_in(8) && !session.ud;
    make_plan(0);
    make_plan(1);
    on_sides_here(write_fresh);
    for (int number = 0; number < 2; number++) {
        sides[number].sent = sides[number].received = 0;
        received[number] = plans[!number].messages;
        sent[number] = 0;
        for (uint32_t i = 0; i < plans[number].count; i++)
            sent[number] += plans[number].ops[i].signaled;
    }
    /* Late: the first sends find no receive and are turned away for a while. */
    if (!late)
        on_sides_here(post_receives);
    CHECK(together(1));
    on_sides_here(post_sends);
    if (late)
        on_sides_here(post_receives);
    wait_for(sent, received, check_sent, check_received, NULL);
    /* What the other side writes is all here when its completions are. */
    CHECK(together(1));
    carry_out_in_model(0);
    carry_out_in_model(1);
    if (spoil)
        sides[0].buffer[below((uint32_t)length)] ^= 1;
    on_sides_here(compare);
}

/* ---- a stream: rings always full ---- */

#define LANE 96
#define LANE_MESSAGE 80

static uint32_t posted[2], stream_depth;

static uint32_t lane_length(int direction, uint32_t n)
{
    return (uint32_t)((n * 2654435761u + (uint32_t)direction * 97u + (uint32_t)seed) >> 7) % (LANE_MESSAGE + 1);
}

static void lane_message(int direction, uint32_t n, uint8_t *out)
{
    for (uint32_t i = 0; i < LANE_MESSAGE; i++)
        out[i] = (uint8_t)((n + (uint32_t)direction) * 167u + i * 31u + (uint32_t)seed);
}

/* Where message `n` of a direction lies: the sender's and the receiver's lanes are apart. */
static struct piece lane(int direction, uint32_t n, uint32_t length)
{
    return (struct piece){(uint32_t)(arenas[direction] + (size_t)(n % stream_depth) * LANE), length, direction * 2};
}

static void post_lane(int number, uint32_t n)
{
    struct side *side = &sides[number];
    struct piece place = lane(!number, n, LANE_MESSAGE);
    struct ibv_sge sge = sge_at(side, &place);
    struct ibv_recv_wr wr = {.wr_id = n, .sg_list = &sge, .num_sge = 1}, *bad;
    memset(side->buffer + place.offset, 0xee, LANE);
    int error = side->srq ? ibv_post_srq_recv(side->srq, &wr, &bad) : ibv_post_recv(side->qp, &wr, &bad);
    CHECK(!error, "post_recv gives %d", error);
}

static int post_stream(int number)
{
    struct side *side = &sides[number];
    uint32_t count = 0;
    while (posted[number] < session.stream && posted[number] - side->sent < stream_depth) {
        uint32_t n = posted[number]++;
        struct piece place = lane(number, n, lane_length(number, n));
        struct ibv_sge sge = sge_at(side, &place);
        struct ibv_send_wr wr = {.wr_id = n,
                                 .sg_list = &sge,
                                 .num_sge = 1,
                                 .opcode = n % 3 ? IBV_WR_SEND : IBV_WR_SEND_WITH_IMM,
                                 .send_flags = IBV_SEND_SIGNALED,
                                 .imm_data = htonl(n)},
                           *bad;
        lane_message(number, n, side->buffer + place.offset);
        int error = ibv_post_send(side->qp, &wr, &bad);
        CHECK(!error, "post_send gives %d", error);
        count++;
    }
    return (int)count;
}

static void check_stream_sent(int direction, const struct ibv_wc *wc)
{
    CHECK(wc->wr_id == sides[direction].sent, "wr_id %llu, not %u", (unsigned long long)wc->wr_id, sides[direction].sent);
    sides[direction].sent++;
}

static void check_stream_received(int direction, const struct ibv_wc *wc)
{
    struct side *side = &sides[!direction];
    uint32_t n = side->received++, length = lane_length(direction, n);
    uint8_t expected[LANE];
    CHECK(wc->wr_id == n, "wr_id %llu, not %u", (unsigned long long)wc->wr_id, n);
    CHECK(wc->byte_len == length, "%u bytes, not %u", wc->byte_len, length);
    CHECK(n % 3 ? !(wc->wc_flags & IBV_WC_WITH_IMM) : wc->imm_data == htonl(n));
    lane_message(direction, n, expected);
    memset(expected + length, 0xee, LANE - length);
    struct piece place = lane(direction, n, length);
    CHECK(!memcmp(side->buffer + place.offset, expected, LANE), "message %u of %u bytes", n, length);
    bytes_done += length;
    done[n % 3 ? SEND : SEND_IMM]++;
    if (n + stream_depth < session.stream)
        post_lane(!direction, n + stream_depth);
}

static void stream(void)
{
    uint32_t count[2] = {session.stream, session.stream};
    if (!session.stream)
        return;
    /* No deeper than the arena has room for. */
    stream_depth = session.depth;
    while (stream_depth > 1 && (size_t)stream_depth * LANE > arena_length)
        stream_depth /= 2;
    CHECK((size_t)stream_depth * LANE <= arena_length);
    for (int number = 0; number < 2; number++) {
        sides[number].sent = sides[number].received = posted[number] = 0;
        for (uint32_t n = 0; sides[number].here && n < stream_depth && n < session.stream; n++)
            post_lane(number, n);
    }
    CHECK(together(1));
    wait_for(count, count, check_stream_sent, check_stream_received, post_stream);
    CHECK(together(1));
}

/* ---- sessions ---- */

static void open_side(int number)
{
    struct side *side = &sides[number];
    uint32_t depth = session.depth;
    size_t pages = (length + 4095) / 4096 * 4096;

    if (session.events) {
        side->channel = ibv_create_comp_channel(device.context);
        CHECK(side->channel);
    }
    side->send_cq = ibv_create_cq(device.context, (int)(session.one_cq ? 2 * depth : depth), NULL, side->channel, 0);
    CHECK(side->send_cq);
    side->recv_cq = session.one_cq ? side->send_cq : ibv_create_cq(device.context, (int)depth, NULL, side->channel, 0);
    CHECK(side->recv_cq);
    if (session.events) {
        CHECK(!ibv_req_notify_cq(side->send_cq, 0));
        CHECK(!ibv_req_notify_cq(side->recv_cq, 0));
    }
    if (session.srq) {
        struct ibv_srq_init_attr init = {.attr = {.max_wr = depth, .max_sge = session.sges}};
        side->srq = ibv_create_srq(device.pd, &init);
        CHECK(side->srq);
    }
    struct ibv_qp_init_attr init = {
        .send_cq = side->send_cq,
        .recv_cq = side->recv_cq,
        .srq = side->srq,
        .qp_type = session.ud ? IBV_QPT_UD : IBV_QPT_RC,
        .cap = {.max_send_wr = depth, .max_recv_wr = depth, .max_send_sge = session.sges, .max_recv_sge = session.sges},
    };
    side->qp = ibv_create_qp(device.pd, &init);
    CHECK(side->qp);
    CHECK(init.cap.max_send_wr >= depth);
    /* Nobody may so much as look at the pages before and behind. */
    side->mapped = mmap(NULL, pages + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(side->mapped != MAP_FAILED);
    CHECK(!mprotect(side->mapped + 4096, pages, PROT_READ | PROT_WRITE));
    /* Sometimes right against one of them. */
    side->buffer = side->mapped + 4096 + (seed & 1 ? pages - length : 0);
    int access = ALL_ACCESS | (session.kinds & (1u << CAS | 1u << FADD) ? IBV_ACCESS_REMOTE_ATOMIC : 0);
    for (int i = 0; i < 4; i++) {
        /* Two regions for each arena: the second one is longer by an odd number of bytes. */
        size_t extra = i % 2 ? 7 : 0;
        side->mrs[i] = ibv_reg_mr(device.pd, side->buffer + arenas[i / 2] - extra, arena_length + 2 * extra, access);
        CHECK(side->mrs[i]);
        side->address.rkeys[i] = side->mrs[i]->rkey;
    }
    memcpy(side->buffer, side->model, length);
    side->address.qp_num = side->qp->qp_num;
    side->address.buffer = (uintptr_t)side->buffer;
    CHECK(!ibv_query_gid(device.context, 1, gid_index, &side->address.gid));
}

static void connect_datagrams(int number)
{
    struct side *side = &sides[number];
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qkey = QKEY};
    CHECK(!ibv_modify_qp(side->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY));
    attr.qp_state = IBV_QPS_RTR;
    CHECK(!ibv_modify_qp(side->qp, &attr, IBV_QP_STATE));
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .sq_psn = side->address.psn};
    CHECK(!ibv_modify_qp(side->qp, &attr, IBV_QP_STATE | IBV_QP_SQ_PSN));
    struct ibv_ah_attr address = {
        .is_global = 1,
        .port_num = 1,
        .grh = {.dgid = sides[!number].address.gid, .sgid_index = (uint8_t)gid_index, .hop_limit = 1}};
    side->ah = ibv_create_ah(device.pd, &address);
    CHECK(side->ah);
}

static void connect_side(int number)
{
    if (session.ud) {
        connect_datagrams(number);
        return;
    }
    struct side *side = &sides[number];
    const struct address *there = &sides[!number].address;
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT,
        .port_num = 1,
        .qp_access_flags = side->mrs[0] ? ALL_ACCESS | IBV_ACCESS_REMOTE_ATOMIC : 0,
    };
    CHECK(!ibv_modify_qp(side->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
    attr = (struct ibv_qp_attr){
        .qp_state = IBV_QPS_RTR,
        .path_mtu = session.mtu,
        .dest_qp_num = there->qp_num,
        .rq_psn = there->psn,
        .max_dest_rd_atomic = 4,
        .min_rnr_timer = 1,
        .ah_attr = {.is_global = 1,
                    .port_num = 1,
                    .grh = {.dgid = there->gid, .sgid_index = (uint8_t)gid_index, .hop_limit = 1}},
    };
    CHECK(!ibv_modify_qp(side->qp, &attr,
                         IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                             IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
    attr = (struct ibv_qp_attr){
        .qp_state = IBV_QPS_RTS,
        .timeout = mortal ? 12 : 14,
        .retry_cnt = mortal ? 3 : 7,
        .rnr_retry = 7,
        .sq_psn = side->address.psn,
        .max_rd_atomic = 4,
    };
    CHECK(!ibv_modify_qp(side->qp, &attr,
                         IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                             IBV_QP_MAX_QP_RD_ATOMIC));
}

static void close_side(int number)
{
    struct side *side = &sides[number];
    CHECK(!ibv_destroy_qp(side->qp));
    if (side->ah)
        CHECK(!ibv_destroy_ah(side->ah));
    side->ah = NULL;
    if (side->srq)
        CHECK(!ibv_destroy_srq(side->srq));
    for (int i = 0; i < 4; i++)
        CHECK(!ibv_dereg_mr(side->mrs[i]));
    if (side->recv_cq != side->send_cq)
        CHECK(!ibv_destroy_cq(side->recv_cq));
    CHECK(!ibv_destroy_cq(side->send_cq));
    if (side->channel)
        CHECK(!ibv_destroy_comp_channel(side->channel));
    CHECK(!munmap(side->mapped, (length + 4095) / 4096 * 4096 + 8192));
    side->channel = NULL;
    side->srq = NULL;
    side->qp = NULL;
}

static void run_session(struct session wanted)
{
    session = wanted;
    if (!session.batches)
        session.most = 1;
    arena_length = arena_of(&session);
    size_t lanes = (size_t)(session.depth < 4096 ? session.depth : 4096) * LANE;
    if (session.stream && arena_length < lanes)
        arena_length = lanes;
    arenas[0] = EDGE;
    arenas[1] = EDGE + arena_length + EDGE;
    /* Atomics want multiples of 8, whichever end of its pages the buffer is put to. */
    length = (arenas[1] + arena_length + EDGE + 7) / 8 * 8;
    CHECK(length < UINT32_MAX);
    for (int number = 0; number < 2; number++) {
        struct side *side = &sides[number];
        side->model = malloc(length);
        plans[number].ops = calloc(session.most, sizeof(struct op));
        CHECK(side->model && plans[number].ops);
        noise(side->model, length);
        /* Sometimes the 24 bits of a PSN wrap on the way. */
        side->address.psn = one_in(2) ? 0xfffff0 + below(16) : below(1 << 24);
        if (side->here)
            open_side(number);
    }
    if (peer >= 0) {
        struct address *mine = &sides[sides[1].here].address, *theirs = &sides[sides[0].here].address;
        if (!tell(peer, mine, sizeof(*mine)) || !hear(peer, theirs, sizeof(*theirs)))
            gone();
    }
    on_sides_here(connect_side);
    CHECK(together(1));
    for (uint32_t i = 0; i < session.batches; i++)
        batch();
    stream();
    /* Nobody leaves while the other one may wait for an answer. */
    CHECK(together(1));
    for (int number = 0; number < 2; number++) {
        if (sides[number].here)
            close_side(number);
        free(sides[number].model);
        free(plans[number].ops);
    }
}

/* ---- what to run ---- */

static unsigned kinds(void)
{
    unsigned all = 1u << KINDS;
    if (!limits.atomics)
        all = 1u << CAS;
    return (all - 1) & chosen_kinds;
}

/* The kinds of a list of names. */
static unsigned kinds_in(char *names)
{
    unsigned set = 0;
    for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
        int kind = 0;
        while (kind < KINDS && strcmp(name, NAMES[kind]))
            kind++;
        CHECK(kind < KINDS, "what is %s?", name);
        set |= 1u << kind;
    }
    return set;
}

/* A session as chance wants it, for the caller to change. */
static struct session any(void)
{
    struct session s = {
        .depth = 1u << below(7),
        .sges = one_in(4) ? (uint32_t)limits.max_sge : 1 + below((uint32_t)limits.max_sge),
        .batches = 4,
        .kinds = kinds(),
        .srq = limits.max_srq > 0 && one_in(3),
        .one_cq = (int)below(2),
        .events = one_in(3),
        .mtu = IBV_MTU_256 + (enum ibv_mtu)below(limits.mtu),
    };
    s.sges = s.sges > MAX_SGES ? MAX_SGES : s.sges;
    s.most = s.depth;
    return s;
}

static uint32_t small_length(uint32_t number, uint32_t longest)
{
    (void)number;
    return one_in(8) ? 0 : below(longest + 1);
}

/* Every ring size there is, several times round. */
static void rings(uint32_t largest)
{
    for (uint32_t depth = 1; depth <= largest; depth *= 2) {
        struct session s = any();
        s.depth = depth;
        s.most = depth < 64 ? depth : 64;
        s.batches = depth < 64 ? 8 : 2;
        s.longest = 200;
        s.length = small_length;
        /* Five times round, and not to the same place again. */
        s.stream = 5 * depth + depth / 2 + 1;
        run_session(s);
    }
}

static uint32_t next_length, last_length;

static uint32_t counted(uint32_t number, uint32_t longest)
{
    (void)number;
    (void)longest;
    uint32_t chosen = next_length;
    next_length = next_length == last_length ? last_length : next_length + 1;
    return chosen;
}

/* Every size from 0 to 9,000 for each of these kinds; both directions take turns within a batch. */
static void sizes(void)
{
    static const unsigned sets[] = {1u << SEND, 1u << WRITE, 1u << READ, 1u << SEND_IMM, 1u << WRITE_IMM};
    for (size_t i = 0; i < COUNT(sets); i++) {
        next_length = 0;
        last_length = 9000;
        while (next_length < last_length) {
            struct session s = any();
            s.depth = s.most = 32;
            s.batches = 16;
            s.longest = 9000;
            s.length = counted;
            s.kinds = sets[i];
            run_session(s);
        }
    }
}

static uint32_t given_length;

static uint32_t given(uint32_t number, uint32_t longest)
{
    (void)number;
    (void)longest;
    return given_length;
}

/* One length, every kind. */
static void one_length(uint32_t length, uint32_t batches)
{
    struct session s = any();
    given_length = length;
    s.depth = s.most = length > 1 << 20 ? 1 : 4;
    s.batches = batches;
    s.longest = length;
    s.length = given;
    run_session(s);
}

/* Around every power of two up to 16 MiB. */
static void powers(uint32_t largest)
{
    static const int32_t around[] = {-9, -1, 0, 1, 13};
    for (uint32_t power = 16; power <= largest; power *= 2)
        for (size_t i = 0; i < COUNT(around); i++)
            one_length(power + (uint32_t)around[i], power <= 1 << 16 ? 6 : 4);
}

/* Datagrams: nothing is repeated, so every receive is there before. */
static void sample_datagrams(uint32_t sessions)
{
    for (uint32_t i = 0; i < sessions; i++) {
        struct session s = any();
        s.ud = 1;
        s.kinds = 1u << SEND | 1u << SEND_IMM;
        s.most = s.depth > 32 ? 32 : s.depth;
        s.longest = one_in(2) ? 128u << limits.mtu : 1 + below(300);
        s.length = small_length;
        s.batches = 8;
        run_session(s);
    }
}

static void sample(uint32_t sessions)
{
    for (uint32_t i = 0; i < sessions; i++) {
        struct session s = any();
        s.most = s.depth > 16 ? 16 : s.depth;
        s.longest = one_in(2) ? 9000 : 1 + below(300);
        s.length = small_length;
        s.batches = 8;
        s.stream = one_in(2) && chosen_kinds & 1u << SEND && !alone ? 100 : 0;
        run_session(s);
    }
}

static void run_short(void)
{
    sample(40);
    sample_datagrams(20);
    rings(1024);
    for (int i = 0; i < 12; i++) {
        uint32_t power = 1u << (4 + below(18));
        one_length(power - 2 + below(5), 2);
    }
    one_length(1 << 24, 1);
}

static void run_on(void)
{
    int told = 0;
    /* Whoever wants to stop says so, and both finish the session they are in. */
    do {
        if (one_in(4)) {
            close_device(&device);
            device = open_device();
        }
        if (one_in(4))
            sample_datagrams(1);
        else
            sample(1);
        if (!told) {
            puts("running");
            fflush(stdout);
            told = 1;
        }
    } while (together(!until || access(until, F_OK)));
}

/* The smaller of what this device and that of the other side can do. */
static void find_limits(void)
{
    struct ibv_device_attr attr;
    struct limits theirs;
    CHECK(!ibv_query_device(device.context, &attr));
    limits = (struct limits){attr.max_sge, attr.max_srq, attr.max_qp_wr, attr.atomic_cap != IBV_ATOMIC_NONE,
                             device.port.active_mtu};
    if (peer < 0)
        return;
    if (!tell(peer, &limits, sizeof(limits)) || !hear(peer, &theirs, sizeof(theirs)))
        gone();
    limits.max_sge = limits.max_sge < theirs.max_sge ? limits.max_sge : theirs.max_sge;
    limits.max_srq = limits.max_srq < theirs.max_srq ? limits.max_srq : theirs.max_srq;
    limits.max_qp_wr = limits.max_qp_wr < theirs.max_qp_wr ? limits.max_qp_wr : theirs.max_qp_wr;
    limits.atomics &= theirs.atomics;
    limits.mtu = limits.mtu < theirs.mtu ? limits.mtu : theirs.mtu;
}

int main(int argc, char **argv)
{
    const char *service = NULL, *what = "short";
    int option;
    seed = (uint64_t)time(NULL) ^ (uint64_t)getpid() << 20;
    while ((option = getopt(argc, argv, "s:k:u:p:g:o:azm")) != -1)
        switch (option) {
        case 's':
            seed = strtoull(optarg, NULL, 0);
            break;
        case 'k':
            what = optarg;
            break;
        case 'u':
            until = optarg;
            break;
        case 'p':
            service = optarg;
            break;
        case 'g':
            gid_index = atoi(optarg);
            break;
        case 'o':
            chosen_kinds = kinds_in(optarg);
            break;
        case 'a':
            alone = 1;
            break;
        case 'z':
            no_empty_read = 1;
            break;
        case 'm':
            mortal = 1;
            break;
        default:
            return 2;
        }
    if (service) {
        peer = meet(service, argv[optind], mortal ? 5 : PATIENCE_MS / 1000);
        /* The one that was there first says with which seed. */
        if (peer < 0 || !(argv[optind] ? hear(peer, &seed, sizeof(seed)) : tell(peer, &seed, sizeof(seed)))) {
            CHECK(mortal, "nobody is there");
            return 3;
        }
    }
    chance_state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    sides[0].here = !service || !argv[optind];
    sides[1].here = !service || argv[optind];
    device = open_device();
    find_limits();
    if (!strcmp(what, "short"))
        run_short();
    else if (!strcmp(what, "few"))
        sample(10), sample_datagrams(3);
    else if (!strcmp(what, "connected"))
        sample(5);
    else if (!strcmp(what, "rings"))
        rings((uint32_t)limits.max_qp_wr);
    else if (!strcmp(what, "sizes"))
        sizes();
    else if (!strcmp(what, "powers"))
        powers(1 << 24);
    else if (!strcmp(what, "on"))
        run_on();
    else if ((spoil = !strcmp(what, "wrong")))
        sample(1);
    else
        CHECK(0, "what is %s?", what);
    close_device(&device);
    for (int kind = 0; kind < KINDS; kind++)
        if (done[kind])
            printf("%s %llu, ", NAMES[kind], (unsigned long long)done[kind]);
    if (datagrams)
        printf("%llu of them datagrams, ", (unsigned long long)datagrams);
    printf("%llu MiB exact\n", (unsigned long long)(bytes_done >> 20));
    return 0;
}

/*
 * Threads of one program that get in each other's way as far as the rules of verbs allow.
 *
 *   races         lists the cases
 *   races CASE    runs it
 *
 * PVRDMA_STEPS in the environment is the number of its rounds. How it is seen that something went wrong: tickets.h.
 */
#include <fcntl.h>

#include "tickets.h"
#include "ud.h"

/* ---- handles that come back at once ---- */

static struct ibv_cq *cqs[2];
/* The same, if the provider has such. */
static struct ibv_cq_ex *cqs_ex[2];
static uint32_t waited_for;

static void new_cq_of_either_kind(uint32_t which, int cqe)
{
    struct ibv_cq_init_attr_ex attr = {.cqe = cqe, .wc_flags = IBV_WC_STANDARD_FLAGS};
    cqs_ex[which] = ibv_create_cq_ex(device.context, &attr);
    cqs[which] = cqs_ex[which] ? ibv_cq_ex_to_cq(cqs_ex[which]) : new_cq(cqe);
}

/* Some dawdle between start_poll and end_poll. Whoever destroys a QP then waits to remove its completions, and its
 * handle, which the kernel has given back, must wait too. */
static int take_either(uint32_t which, uint32_t *seed)
{
    struct ibv_poll_cq_attr attr = {0};
    uint32_t began = LOAD(&endings);
    if (!cqs_ex[which] || below(seed, 2) || ibv_start_poll(cqs_ex[which], &attr))
        return take(cqs[which]);
    took(cqs_ex[which]->wr_id, ibv_wc_read_qp_num(cqs_ex[which]), cqs_ex[which]->status, began);
    if (!below(seed, 4))
        usleep(100);
    ibv_end_poll(cqs_ex[which]);
    return 1;
}

/* Returns how many completions that makes. */
static uint32_t post_some(struct ibv_qp *qp, uint32_t sends, uint32_t *seed, uint64_t *owed)
{
    uint32_t count = 0;
    for (; sends > 0; sends--) {
        int two_sided = below(seed, 2);
        if (two_sided) {
            owed[count] = ticket(qp->qp_num);
            CHECK(!receive(qp, NULL, owed[count++]));
        }
        owed[count] = ticket(qp->qp_num);
        CHECK(!post(qp, two_sided ? IBV_WR_SEND : IBV_WR_RDMA_WRITE, owed[count++]));
        if (!below(seed, 4))
            take_either(below(seed, 2), seed);
    }
    return count;
}

static void one_life(uint32_t *seed)
{
    uint64_t owed[2 * DEPTH];
    struct way way = {
        .send_cq = cqs[below(seed, 2)], .recv_cq = cqs[below(seed, 2)], .inline_data = 32 * below(seed, 2)};
    struct ibv_qp *qp = new_qp(way);
    uint32_t count = post_some(qp, below(seed, 20), seed, owed);
    if (!below(seed, 4)) {
        /* Start over, with whatever is on its way. Then there is room for all. */
        move_to(qp, IBV_QPS_RESET);
        end_tickets(owed, count);
        loop_back(qp);
        count = post_some(qp, DEPTH, seed, owed);
    }
    if (below(seed, 2)) {
        double limit = 0;
        for (uint32_t i = 0; i < count; i++)
            while (!was_seen(owed[i]))
                if (!take_either(0, seed) && !take_either(1, seed))
                    patience(&limit);
        ADD(&waited_for, count);
    }
    CHECK(!ibv_destroy_qp(qp));
    end_tickets(owed, count);
}

static void lives(uint32_t number)
{
    uint32_t seed = number + 1;
    for (uint32_t round = steps(200); round > 0; round--)
        one_life(&seed);
}

static void reuse(void)
{
    open_all();
    new_cq_of_either_kind(0, 4 * THREADS * DEPTH);
    new_cq_of_either_kind(1, 4 * THREADS * DEPTH);
    run_threads(lives);
    CHECK(waited_for, "no completion was waited for");
    CHECK(!take(cqs[0]) && !take(cqs[1]), "completions of no QP");
    CHECK(!ibv_destroy_cq(cqs[0]) && !ibv_destroy_cq(cqs[1]));
    close_all();
}

/* ---- a handle that is wanted before its last owner has left ---- */

static struct ibv_qp *former, *heir;
static uint64_t former_wr_id, heir_wr_id;
static uint32_t is_near;

static void destroy_former(uint32_t number)
{
    (void)number;
    CHECK(!ibv_destroy_qp(former));
    end_tickets(&former_wr_id, 1);
}

/* The device gives handles out in turn. Those up to the wanted one go to QPs of another CQ, which come and go. */
static void inherit(uint32_t wanted)
{
    uint32_t last;
    do {
        struct ibv_qp *other = unconnected_qp((struct way){.send_cq = cqs[1]});
        last = other->qp_num;
        CHECK(!ibv_destroy_qp(other));
    } while (last + 1 != wanted);
    STORE(&is_near, 1);
    heir = new_qp((struct way){.send_cq = cqs[0]});
    heir_wr_id = ticket(heir->qp_num);
    CHECK(!post(heir, IBV_WR_RDMA_WRITE, heir_wr_id));
}

static int handle_comes_back(void)
{
    struct task destroyer, maker;
    struct ibv_poll_cq_attr attr = {0};
    double limit = 0;
    struct ibv_qp *stays = new_qp((struct way){.send_cq = cqs[0]});
    struct ibv_qp *before = unconnected_qp((struct way){.send_cq = cqs[1]});
    former = new_qp((struct way){.send_cq = cqs[0]});
    uint32_t wanted = former->qp_num, began = endings;
    CHECK(!ibv_destroy_qp(before));
    uint64_t wr_id = ticket(stays->qp_num);
    CHECK(!post(stays, IBV_WR_RDMA_WRITE, wr_id));
    former_wr_id = ticket(former->qp_num);
    CHECK(!post(former, IBV_WR_RDMA_WRITE, former_wr_id));
    /* While this poll lasts, nobody removes completions from the CQ. */
    while (ibv_start_poll(cqs_ex[0], &attr))
        patience(&limit);
    took(cqs_ex[0]->wr_id, ibv_wc_read_qp_num(cqs_ex[0]), cqs_ex[0]->status, began);
    is_near = 0;
    start(&destroyer, destroy_former, 0);
    usleep(20000);
    start(&maker, inherit, wanted);
    for (limit = 0; !LOAD(&is_near); patience(&limit))
        continue;
    usleep(20000);
    ibv_end_poll(cqs_ex[0]);
    join(&destroyer);
    join(&maker);
    for (limit = 0; !was_seen(heir_wr_id); patience(&limit))
        take(cqs[0]);
    int hit = heir->qp_num == wanted;
    CHECK(!ibv_destroy_qp(heir) && !ibv_destroy_qp(stays));
    return hit;
}

static void heir_waits(void)
{
    open_all();
    new_cq_of_either_kind(0, 2 * DEPTH);
    new_cq_of_either_kind(1, 2 * DEPTH);
    CHECK(cqs_ex[0]);
    uint32_t hits = 0;
    /* Where the destroyer was late its handle was passed over. */
    for (uint32_t i = 0; i < 20 && hits < 2; i++)
        hits += handle_comes_back();
    CHECK(hits, "no handle came back");
    CHECK(!ibv_destroy_cq(cqs[0]) && !ibv_destroy_cq(cqs[1]));
    close_all();
}

/* ---- destroy against polls ---- */

static uint32_t over, is_held;

/* Pollers that meet are what this is about: they begin together, and give way rarely. */
static void poll_until_over(uint32_t number)
{
    for (uint32_t idle = 0; !LOAD(&over);) {
        if (!LOAD(&is_held) && (cqs_ex[number] ? take_ex(cqs_ex[number]) : take(cqs[number])))
            idle = 0;
        else if (++idle % 64 == 0)
            sched_yield();
    }
}

static void destroy_poll(void)
{
    uint64_t owed[DEPTH], kept[DEPTH];
    struct task pollers[2];
    open_all();
    cqs[0] = cqs[1] = new_cq(2 * DEPTH);
    struct ibv_qp *stays = new_qp((struct way){.send_cq = cqs[0]});
    start(&pollers[0], poll_until_over, 0);
    start(&pollers[1], poll_until_over, 1);
    for (uint32_t round = steps(400); round > 0; round--) {
        struct ibv_qp *goes = new_qp((struct way){.send_cq = cqs[0], .inline_data = 32 * (round % 2)});
        STORE(&is_held, 1);
        post_all(goes, owed);
        post_all(stays, kept);
        STORE(&is_held, 0);
        CHECK(!ibv_destroy_qp(goes));
        end_tickets(owed, DEPTH);
        /* The other QP misses none, though its entries moved while the CQ was polled. */
        wait_for(kept, DEPTH);
    }
    STORE(&over, 1);
    join(&pollers[0]);
    join(&pollers[1]);
    CHECK(!ibv_destroy_qp(stays));
    CHECK(!ibv_destroy_cq(cqs[0]));
    close_all();
}

/* ---- RESET against posts ---- */

static struct ibv_qp *shared_qp;
static uint32_t accepted, room;
#define ROOM 512

static void post_until_over(uint32_t number)
{
    uint64_t wr_id = ticket(shared_qp->qp_num);
    (void)number;
    while (!LOAD(&over)) {
        /* No more than the CQ holds. */
        if (!LOAD(&room)) {
            sched_yield();
            continue;
        }
        int error = post(shared_qp, IBV_WR_RDMA_WRITE, wr_id);
        CHECK(!error || error == EINVAL || error == ENOMEM, "post_send gives %d", error);
        if (error)
            continue;
        wr_id = ticket(shared_qp->qp_num);
        ADD(&accepted, 1);
        ADD(&room, -1);
    }
}

static void reset_against_posts(uint32_t inline_data)
{
    struct task poster;
    struct ibv_wc wc;
    struct ibv_cq *cq = new_cq(2 * ROOM);
    shared_qp = new_qp((struct way){.send_cq = cq, .inline_data = inline_data});
    over = accepted = 0;
    room = ROOM;
    start(&poster, post_until_over, 0);
    /* The poster may be late. */
    for (uint32_t round = steps(200); round > 0 || !LOAD(&accepted); round -= round > 0) {
        for (uint32_t i = round % 16; i > 0; i--)
            sched_yield();
        if (round % 2)
            take(cq);
        move_to(shared_qp, IBV_QPS_RESET);
        CHECK(!ibv_poll_cq(cq, 1, &wc), "ticket %u after RESET", (uint32_t)wc.wr_id);
        CHECK(post(shared_qp, IBV_WR_RDMA_WRITE, ~0ull) == EINVAL);
        /* What comes next is for the last request begun until now, or a later one. */
        uint32_t begun = LOAD(&issued);
        STORE(&room, ROOM);
        loop_back(shared_qp);
        int n = ibv_poll_cq(cq, 1, &wc);
        CHECK(n >= 0);
        CHECK(!n || (uint32_t)wc.wr_id + 1 >= begun, "ticket %u is older than RESET", (uint32_t)wc.wr_id);
        if (n)
            took(wc.wr_id, wc.qp_num, wc.status, LOAD(&endings));
    }
    STORE(&over, 1);
    join(&poster);
    CHECK(!ibv_destroy_qp(shared_qp));
    CHECK(!take(cq), "a completion of no QP");
    CHECK(!ibv_destroy_cq(cq));
}

static void reset_post(void)
{
    open_all();
    reset_against_posts(0);
    reset_against_posts(32);
    close_all();
}

/* ---- one CQ, two pollers ---- */

/* Each request completes once, and one of the pollers takes it. */
static void pollers(uint32_t inline_data)
{
    struct task tasks[2];
    uint64_t wr_ids[DEPTH];
    struct ibv_qp *qp = new_qp((struct way){.send_cq = cqs[0], .inline_data = inline_data});
    start(&tasks[0], poll_until_over, 0);
    start(&tasks[1], poll_until_over, 1);
    for (uint32_t round = steps(1000); round > 0; round--) {
        STORE(&is_held, 1);
        post_all(qp, wr_ids);
        STORE(&is_held, 0);
        wait_for(wr_ids, DEPTH);
    }
    STORE(&over, 1);
    join(&tasks[0]);
    join(&tasks[1]);
    CHECK(!ibv_destroy_qp(qp));
    CHECK(!ibv_destroy_cq(cqs[0]));
    close_all();
}

static void two_pollers(void)
{
    open_all();
    cqs[0] = cqs[1] = new_cq(2 * DEPTH);
    pollers(0);
}

/* One by ibv_poll_cq, one by start_poll and next_poll. */
static void two_pollers_ex(void)
{
    open_all();
    new_cq_of_either_kind(0, 2 * DEPTH);
    CHECK(cqs_ex[0]);
    cqs[1] = cqs[0];
    pollers(32);
}

/* ---- one SRQ, several QPs ---- */

static struct ibv_srq *srq;

static void send_to_itself(uint32_t number)
{
    struct ibv_qp *qp = new_qp((struct way){.send_cq = cqs[number % 2], .srq = srq});
    for (uint32_t round = steps(1000); round > 0; round--) {
        double limit = 0;
        uint64_t wr_ids[] = {ticket(0), ticket(qp->qp_num)};
        while (receive(NULL, srq, wr_ids[0]))
            patience(&limit);
        while (post(qp, IBV_WR_SEND, wr_ids[1])) {
            patience(&limit);
            take(cqs[number % 2]);
        }
        /* The receive is somebody's, the send is our own. */
        while (!was_seen(wr_ids[1]))
            if (!take(cqs[number % 2]))
                patience(&limit);
    }
    CHECK(!ibv_destroy_qp(qp));
}

static void srq_share(void)
{
    open_all();
    cqs[0] = new_cq(4 * THREADS);
    cqs[1] = new_cq(4 * THREADS);
    struct ibv_srq_init_attr init = {.attr = {.max_wr = 2 * THREADS, .max_sge = 1}};
    srq = ibv_create_srq(device.pd, &init);
    CHECK(srq);
    run_threads(send_to_itself);
    /* A message's receive completes before its send does, in the same CQ. */
    CHECK(taken == issued, "%u of %u", taken, issued);
    CHECK(!ibv_destroy_srq(srq));
    CHECK(!ibv_destroy_cq(cqs[0]) && !ibv_destroy_cq(cqs[1]));
    close_all();
}

/* ---- thread domains ---- */

struct domain {
    struct ibv_td *td;
    struct ibv_pd *pd;
    struct ibv_cq_ex *cq;
    struct ibv_qp *qp;
};

static struct domain open_domain(void)
{
    struct domain own;
    struct ibv_td_init_attr td = {0};
    own.td = ibv_alloc_td(device.context, &td);
    CHECK(own.td);
    struct ibv_parent_domain_init_attr parent = {.pd = device.pd, .td = own.td};
    own.pd = ibv_alloc_parent_domain(device.context, &parent);
    CHECK(own.pd);
    struct ibv_cq_init_attr_ex attr = {
        .cqe = 2 * DEPTH,
        .wc_flags = IBV_WC_STANDARD_FLAGS,
        .comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS | IBV_CQ_INIT_ATTR_MASK_PD,
        .flags = IBV_CREATE_CQ_ATTR_SINGLE_THREADED,
        .parent_domain = own.pd,
    };
    own.cq = ibv_create_cq_ex(device.context, &attr);
    CHECK(own.cq);
    own.qp = new_qp((struct way){.send_cq = ibv_cq_ex_to_cq(own.cq), .pd = own.pd, .inline_data = 32});
    return own;
}

static void close_domain(struct domain *own)
{
    CHECK(!ibv_destroy_qp(own->qp));
    CHECK(!ibv_destroy_cq(ibv_cq_ex_to_cq(own->cq)));
    CHECK(!ibv_dealloc_pd(own->pd));
    CHECK(!ibv_dealloc_td(own->td));
}

static void use_domain(struct domain *own)
{
    double limit = 0;
    uint64_t wr_id = ticket(own->qp->qp_num);
    CHECK(!post(own->qp, IBV_WR_RDMA_WRITE, wr_id));
    while (!was_seen(wr_id))
        if (!take_ex(own->cq))
            patience(&limit);
}

static void live_in_domain(uint32_t number)
{
    (void)number;
    for (uint32_t lives = 0; lives < 4; lives++) {
        struct domain own = open_domain();
        for (uint32_t round = steps(1000); round > 0; round--)
            use_domain(&own);
        close_domain(&own);
    }
}

static void td(void)
{
    open_all();
    run_threads(live_in_domain);
    CHECK(issued == taken);
    close_all();
}

#ifdef PLANTED
/* For the test of the tests: a domain that two threads use. One after the other, so nothing breaks; but who goes first
 * is settled by a relaxed atomic, and the objects have no locks. */
static struct domain common;
static uint32_t turn;

static void break_domain(uint32_t number)
{
    if (number > 1)
        return;
    while (LOAD(&turn) != number)
        sched_yield();
    use_domain(&common);
    ADD(&turn, 1);
}

static void planted(void)
{
    open_all();
    common = open_domain();
    run_threads(break_domain);
    close_domain(&common);
    close_all();
}
#endif

/* ---- ibv_wr_* ---- */

static void batches(uint32_t number)
{
    struct ibv_qp_ex *ex = ibv_qp_to_qp_ex(shared_qp);
    CHECK(ex);
    for (uint32_t round = steps(2000); round > 0; round--) {
        uint64_t wr_ids[3];
        double limit = 0;
        int error;
        do {
            ibv_wr_start(ex);
            for (uint32_t i = 0; i < COUNT(wr_ids); i++) {
                wr_ids[i] = ticket(shared_qp->qp_num);
                ex->wr_id = wr_ids[i];
                ex->wr_flags = IBV_SEND_SIGNALED;
                ibv_wr_rdma_write(ex, mr->rkey, (uintptr_t)page + 1024);
                if ((round + number) % 2)
                    ibv_wr_set_inline_data(ex, page, 8);
                else
                    ibv_wr_set_sge(ex, mr->lkey, (uintptr_t)page, 8);
            }
            /* A batch that is given up was never there. */
            error = round % 16 ? ibv_wr_complete(ex) : (ibv_wr_abort(ex), ECANCELED);
            CHECK(!error || error == ENOMEM || error == ECANCELED, "wr_complete gives %d", error);
            if (error) {
                end_tickets(wr_ids, COUNT(wr_ids));
                take(cqs[0]);
                patience(&limit);
            }
        } while (error == ENOMEM);
        ADD(&accepted, error ? 0 : COUNT(wr_ids));
        take(cqs[0]);
    }
}

static void wr_batches(void)
{
    open_all();
    cqs[0] = new_cq(2 * DEPTH);
    uint64_t ops = IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_SEND;
    shared_qp = new_qp((struct way){.send_cq = cqs[0], .inline_data = 32, .ops = ops});
    run_threads(batches);
    for (double limit = 0; taken < accepted; patience(&limit))
        take(cqs[0]);
    CHECK(!take(cqs[0]) && taken == accepted, "%u of %u", taken, accepted);
    CHECK(!ibv_destroy_qp(shared_qp));
    CHECK(!ibv_destroy_cq(cqs[0]));
    close_all();
}

/* ---- events against destroy ---- */

static struct ibv_comp_channel *channel;
static uint32_t made, heard;

static void hear_events(uint32_t number)
{
    (void)number;
    struct pollfd ready = {.fd = channel->fd, .events = POLLIN};
    while (!LOAD(&over)) {
        struct ibv_cq *cq;
        void *context;
        /* Between the look and the call the CQ may go, and its event with it: the channel must not block. */
        if (poll(&ready, 1, 10) < 1 || ibv_get_cq_event(channel, &cq, &context))
            continue;
        /* The kernel has handed the CQ from its maker to us, which ThreadSanitizer does not see. */
        CHECK(__atomic_load_n(&made, __ATOMIC_ACQUIRE));
        /* Until its event is acknowledged a CQ stays. */
        CHECK(!ibv_req_notify_cq(cq, 0));
        take(cq);
        if (ADD(&heard, 1) % 2)
            sched_yield();
        ibv_ack_cq_events(cq, 1);
    }
}

static void events_destroy(void)
{
    struct task listener;
    uint64_t owed[4];
    uint32_t before = 0;
    open_all();
    channel = ibv_create_comp_channel(device.context);
    CHECK(channel && !fcntl(channel->fd, F_SETFL, O_NONBLOCK));
    start(&listener, hear_events, 0);
    for (uint32_t round = steps(1000); round > 0; round--) {
        struct ibv_cq *cq = ibv_create_cq(device.context, 2 * DEPTH, NULL, channel, 0);
        CHECK(cq && !ibv_req_notify_cq(cq, 0));
        struct ibv_qp *qp = new_qp((struct way){.send_cq = cq});
        __atomic_add_fetch(&made, 1, __ATOMIC_RELEASE);
        for (uint32_t i = 0; i < COUNT(owed); i++) {
            owed[i] = ticket(qp->qp_num);
            CHECK(!post(qp, IBV_WR_RDMA_WRITE, owed[i]));
        }
        /* Every other time before the event can have been heard. */
        for (double limit = 0; round % 2 && LOAD(&heard) == before; patience(&limit))
            continue;
        CHECK(!ibv_destroy_qp(qp));
        end_tickets(owed, COUNT(owed));
        CHECK(!ibv_destroy_cq(cq));
        before = LOAD(&heard);
    }
    STORE(&over, 1);
    join(&listener);
    CHECK(!ibv_destroy_comp_channel(channel));
    close_all();
}

/* ---- address handles ---- */

static void make_ahs(uint32_t number)
{
    struct end end = open_ud_end(&device, 4, NULL);
    ud_to_rts(&end);
    for (uint32_t round = 0, rounds = steps(500); round < rounds; round++) {
        struct ibv_ah_attr attr = {.is_global = 1, .port_num = 1, .grh.hop_limit = 64};
        /* One with its MAC inside, one that the kernel is asked for. */
        attr.grh.sgid_index = (round + number) % 2;
        CHECK(!ibv_query_gid(device.context, 1, attr.grh.sgid_index, &attr.grh.dgid));
        struct ibv_ah *ah = ibv_create_ah(device.pd, &attr);
        CHECK(ah);
        post_recv(&end, 2 * round, 0, GRH + 8);
        struct ibv_sge sge = sge_of(&end, 4096, 8);
        struct ibv_send_wr wr = datagram(2 * round + 1, &sge, ah, &end);
        post_send(&end, &wr);
        /* The request has what it needs of it. */
        CHECK(!ibv_destroy_ah(ah));
        uint64_t sum = wait_wc(&end).wr_id + wait_wc(&end).wr_id;
        CHECK(sum == 4 * (uint64_t)round + 1, "round %u", round);
    }
    close_end(&end);
}

static void ah(void)
{
    open_all();
    run_threads(make_ahs);
    close_all();
}

static const struct test_case CASES[] = {
    {"reuse", reuse},
    {"heir_waits", heir_waits},
    {"destroy_poll", destroy_poll},
    {"reset_post", reset_post},
    {"two_pollers", two_pollers},
    {"two_pollers_ex", two_pollers_ex},
    {"srq_share", srq_share},
    {"td", td},
    {"wr_batches", wr_batches},
    {"events_destroy", events_destroy},
    {"ah", ah},
#ifdef PLANTED
    {"planted", planted},
#endif
};

int main(int argc, char **argv)
{
    /* The tickets of one case. */
    CHECK(argc <= 2, "one case at a time");
    return run_cases(CASES, COUNT(CASES), argc, argv);
}

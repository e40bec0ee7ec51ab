/*
 * UD between QPs of one process, and address handles: what each verb must do.
 *
 * Each case opens and closes everything it uses, so that any one can be run alone.
 */
#include "ud.h"

static const uint32_t LENGTHS[] = {0, 1, 7, 8, 63, 64, 65, 1024, 4095, 4096};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct device device;
static struct end a, b;
static struct ibv_ah *ah;

static void open_pair(void)
{
    device = open_device();
    a = open_ud_end(&device, 16, NULL);
    b = open_ud_end(&device, 16, NULL);
    ud_to_rts(&a);
    ud_to_rts(&b);
    ah = ah_to(&device);
}

static void close_pair(void)
{
    CHECK(!ibv_destroy_ah(ah));
    close_end(&a);
    close_end(&b);
    close_device(&device);
}

/* ---- data ---- */

static void moves(enum ibv_wr_opcode opcode)
{
    open_pair();
    for (size_t i = 0; i < COUNT(LENGTHS); i++) {
        uint32_t length = LENGTHS[i];
        fill(a.buffer, length, i);
        memset(b.buffer, 0xee, b.length);
        post_recv(&b, 100 + i, 0, 8192);
        struct ibv_sge sge = sge_of(&a, 0, length);
        struct ibv_send_wr wr = datagram(i, &sge, ah, &b);
        wr.opcode = opcode;
        if (opcode == IBV_WR_SEND_WITH_IMM)
            wr.imm_data = htobe32(0x12345678);
        post_send(&a, &wr);

        struct ibv_wc wc = expect_wc(&a, i, IBV_WC_SUCCESS);
        CHECK(wc.opcode == IBV_WC_SEND, "opcode %d", wc.opcode);
        wc = expect_wc(&b, 100 + i, IBV_WC_SUCCESS);
        CHECK(wc.opcode == IBV_WC_RECV, "opcode %d", wc.opcode);
        CHECK(wc.byte_len == GRH + length, "byte_len %u for %u", wc.byte_len, length);
        CHECK(wc.src_qp == a.qp->qp_num, "src_qp %x", wc.src_qp);
        unsigned flags = IBV_WC_GRH | (opcode == IBV_WR_SEND_WITH_IMM ? IBV_WC_WITH_IMM : 0);
        CHECK(wc.wc_flags == flags, "flags %x", wc.wc_flags);
        CHECK(opcode != IBV_WR_SEND_WITH_IMM || wc.imm_data == htobe32(0x12345678));
        expect_bytes(b.buffer + GRH, length, i);
        expect_value(b.buffer + GRH + length, 8192, 0xee);
    }
    expect_nothing(&a);
    expect_nothing(&b);
    close_pair();
}

static void send_moves(void)
{
    moves(IBV_WR_SEND);
}

static void send_imm_moves(void)
{
    moves(IBV_WR_SEND_WITH_IMM);
}

/* A QP may write to itself. */
static void to_itself(void)
{
    open_pair();
    fill(a.buffer, 64, 1);
    post_recv(&a, 1, 4096, 1024);
    struct ibv_sge sge = sge_of(&a, 0, 64);
    struct ibv_send_wr wr = datagram(2, &sge, ah, &a);
    post_send(&a, &wr);
    unsigned seen = 0;
    for (int i = 0; i < 2; i++) {
        struct ibv_wc wc = wait_wc(&a);
        CHECK(wc.status == IBV_WC_SUCCESS);
        seen |= 1u << wc.wr_id;
    }
    CHECK(seen == (1u << 1 | 1u << 2), "wr_ids %x", seen);
    expect_bytes(a.buffer + 4096 + GRH, 64, 1);
    close_pair();
}

/* Datagrams of a list arrive in order, through rings that wrap. */
static void lists(void)
{
    open_pair();
    for (uint32_t round = 0; round < 100; round++) {
        struct ibv_sge sges[8];
        struct ibv_send_wr wrs[8];
        for (uint32_t i = 0; i < 8; i++) {
            post_recv(&b, i, 256 * i, 256);
            fill(a.buffer + 64 * i, 64, 8 * round + i);
            sges[i] = sge_of(&a, 64 * i, 64);
            wrs[i] = datagram(i, &sges[i], ah, &b);
            wrs[i].next = i < 7 ? &wrs[i + 1] : NULL;
        }
        post_send(&a, wrs);
        for (uint32_t i = 0; i < 8; i++) {
            expect_wc(&a, i, IBV_WC_SUCCESS);
            expect_wc(&b, i, IBV_WC_SUCCESS);
            expect_bytes(b.buffer + 256 * i + GRH, 64, 8 * round + i);
        }
    }
    close_pair();
}

/* The receiver can answer with nothing but the completion and the GRH. */
static void answer(void)
{
    open_pair();
    post_recv(&b, 1, 0, 4096);
    post_recv(&a, 2, 4096, 4096);
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = datagram(3, &sge, ah, &b);
    post_send(&a, &wr);
    expect_wc(&a, 3, IBV_WC_SUCCESS);
    struct ibv_wc wc = expect_wc(&b, 1, IBV_WC_SUCCESS);
    struct ibv_ah *back = ibv_create_ah_from_wc(device.pd, &wc, (struct ibv_grh *)b.buffer, 1);
    CHECK(back, "no address handle from a completion");
    fill(b.buffer + 8192, 32, 9);
    sge = sge_of(&b, 8192, 32);
    wr = datagram(4, &sge, back, &a);
    wr.wr.ud.remote_qpn = wc.src_qp;
    post_send(&b, &wr);
    expect_wc(&b, 4, IBV_WC_SUCCESS);
    expect_wc(&a, 2, IBV_WC_SUCCESS);
    expect_bytes(a.buffer + 4096 + GRH, 32, 9);
    CHECK(!ibv_destroy_ah(back));
    close_pair();
}

/* UCX up to 1.18 asks `wc.sl` where in the 40 bytes the addresses are. */
static void tells_packet_type(void)
{
    open_pair();
    struct ibv_gid_entry gid;
    int sent = 0;
    for (int i = 0; i < device.port.gid_tbl_len; i++) {
        if (ibv_query_gid_ex(device.context, 1, i, &gid, 0))
            continue;
        /* The service level is the sender's affair: it is on no wire. */
        struct ibv_ah_attr attr = {.is_global = 1, .port_num = 1, .sl = 3,
                                   .grh = {.dgid = gid.gid, .sgid_index = i, .hop_limit = 64}};
        struct ibv_ah *to = ibv_create_ah(device.pd, &attr);
        /* The C provider asks the neighbour table for a link-local one too, and lo has no neighbours. */
        if (!to && gid.gid.raw[0] == 0xfe)
            continue;
        CHECK(to, "no address handle for GID %d", i);
        sent++;
        post_recv(&b, 1, 0, 4096);
        struct ibv_sge sge = sge_of(&a, 0, 8);
        struct ibv_send_wr wr = datagram(2, &sge, to, &b);
        post_send(&a, &wr);
        expect_wc(&a, 2, IBV_WC_SUCCESS);
        struct ibv_wc wc = expect_wc(&b, 1, IBV_WC_SUCCESS);
        CHECK((wc.sl & 7) == packet_type(&gid), "GID %d: sl %u instead of %d", i, wc.sl, packet_type(&gid));
        /* Where the bytes say so too. */
        CHECK((b.buffer[0] >> 4 == 6) == (packet_type(&gid) != 2) && (b.buffer[20] >> 4 == 4 || packet_type(&gid) != 2));
        if (packet_type(&gid) == 2)
            CHECK(!memcmp(b.buffer + 32, gid.gid.raw + 12, 4) && !memcmp(b.buffer + 36, gid.gid.raw + 12, 4));
        struct ibv_ah_attr back = {0};
        CHECK(!ibv_init_ah_from_wc(device.context, 1, &wc, (struct ibv_grh *)b.buffer, &back));
        CHECK(back.is_global && back.grh.sgid_index == i && !memcmp(&back.grh.dgid, &gid.gid, sizeof(gid.gid)));
        CHECK(!ibv_destroy_ah(to));
    }
    CHECK(sent, "no GID");
    close_pair();
}

/* ---- what is not delivered: the sender never knows ---- */

static void send_lost(struct ibv_send_wr wr)
{
    post_send(&a, &wr);
    expect_wc(&a, wr.wr_id, IBV_WC_SUCCESS);
    expect_nothing(&b);
}

static void lost(void)
{
    open_pair();
    struct ibv_sge sge = sge_of(&a, 0, 64);
    /* No receive. */
    send_lost(datagram(1, &sge, ah, &b));
    post_recv(&b, 100, 0, 256);
    /* Another qkey. */
    struct ibv_send_wr wr = datagram(2, &sge, ah, &b);
    wr.wr.ud.remote_qkey = QKEY + 1;
    send_lost(wr);
    /* Nobody. */
    wr = datagram(3, &sge, ah, &b);
    wr.wr.ud.remote_qpn = 0xfffff0;
    send_lost(wr);
    /* Nobody, at the address of another host's guest: those are reached or not, but one may send to them. */
    struct ibv_ah_attr attr = ah_attr_to(&device);
    memcpy(attr.grh.dgid.raw, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\x9\x52\1", 16);
    struct ibv_ah *far = ibv_create_ah(device.pd, &attr);
    CHECK(far, "no address handle to another host");
    send_lost(datagram(5, &sge, far, &b));
    CHECK(!ibv_destroy_ah(far));
    /* The receive is still there for one that fits. */
    wr = datagram(4, &sge, ah, &b);
    post_send(&a, &wr);
    expect_wc(&a, 4, IBV_WC_SUCCESS);
    expect_wc(&b, 100, IBV_WC_SUCCESS);
    close_pair();
}

/* A qkey with its top bit set stands for the one of the sending QP. */
static void own_qkey(void)
{
    open_pair();
    post_recv(&b, 1, 0, 256);
    struct ibv_sge sge = sge_of(&a, 0, 64);
    struct ibv_send_wr wr = datagram(2, &sge, ah, &b);
    wr.wr.ud.remote_qkey = 0x80000000;
    post_send(&a, &wr);
    expect_wc(&a, 2, IBV_WC_SUCCESS);
    expect_wc(&b, 1, IBV_WC_SUCCESS);
    close_pair();
}

/* ---- what the verbs refuse ---- */

/* In a list: EINVAL, bad_wr is the one, those before it are carried out. */
static void refuse(struct ibv_send_wr second)
{
    post_recv(&b, 1, 0, 256);
    struct ibv_sge sge = sge_of(&a, 0, 64);
    struct ibv_send_wr third = datagram(3, &sge, ah, &b), first = datagram(1, &sge, ah, &b), *bad = NULL;
    second.next = &third;
    first.next = &second;
    int error = ibv_post_send(a.qp, &first, &bad);
    CHECK(error == EINVAL && bad == &second, "post_send gives %d", error);
    expect_wc(&a, 1, IBV_WC_SUCCESS);
    expect_wc(&b, 1, IBV_WC_SUCCESS);
    expect_nothing(&a);
}

static void no_ah(void)
{
    open_pair();
    struct ibv_sge sge = sge_of(&a, 0, 64);
    refuse(datagram(2, &sge, NULL, &b));
    close_pair();
}

static void other_opcodes(void)
{
    static const enum ibv_wr_opcode opcodes[] = {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_WRITE_WITH_IMM, IBV_WR_RDMA_READ,
                                                 IBV_WR_ATOMIC_CMP_AND_SWP, IBV_WR_ATOMIC_FETCH_AND_ADD,
                                                 IBV_WR_SEND_WITH_INV, IBV_WR_LOCAL_INV, IBV_WR_BIND_MW};
    open_pair();
    struct ibv_sge sge = sge_of(&a, 0, 8);
    for (size_t i = 0; i < COUNT(opcodes); i++) {
        struct ibv_send_wr wr = datagram(2, &sge, ah, &b);
        wr.opcode = opcodes[i];
        refuse(wr);
    }
    close_pair();
}

static void expect_no_ah(struct ibv_ah_attr attr, int error)
{
    errno = 0;
    struct ibv_ah *none = ibv_create_ah(device.pd, &attr);
    CHECK(!none && (error ? errno == error : errno != 0), "address handle %p", (void *)none);
}

static void bad_ah(void)
{
    device = open_device();
    struct ibv_ah_attr good = ah_attr_to(&device), attr = good;
    attr.is_global = 0;
    expect_no_ah(attr, EINVAL);
    attr = good;
    attr.port_num = 0;
    expect_no_ah(attr, EINVAL);
    attr.port_num = 200;
    expect_no_ah(attr, EINVAL);
    attr = good;
    attr.grh.sgid_index = device.port.gid_tbl_len;
    expect_no_ah(attr, EINVAL);
    /* 2001:db8::/32 is for documents: nobody has it, and there is no way to it from a fe80 or mapped source. */
    attr = good;
    memcpy(attr.grh.dgid.raw, "\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\1", 16);
    expect_no_ah(attr, 0);
    /* dlid is nothing on Ethernet; some applications keep things in it. */
    attr = good;
    attr.dlid = 0xc123;
    struct ibv_ah *fine = ibv_create_ah(device.pd, &attr);
    CHECK(fine);
    CHECK(!ibv_destroy_ah(fine));
    close_device(&device);
}

/* One may send to a group, although none can be joined. */
static void multicast(void)
{
    open_pair();
    struct ibv_ah_attr attr = ah_attr_to(&device);
    memcpy(attr.grh.dgid.raw, "\xff\x0e\0\0\0\0\0\0\0\0\xff\xff\xe0\1\2\3", 16);
    struct ibv_ah *group = ibv_create_ah(device.pd, &attr);
    CHECK(group);
    struct ibv_sge sge = sge_of(&a, 0, 8);
    struct ibv_send_wr wr = datagram(1, &sge, group, &b);
    wr.wr.ud.remote_qpn = 0xffffff;
    post_send(&a, &wr);
    expect_wc(&a, 1, IBV_WC_SUCCESS);
    CHECK(ibv_attach_mcast(a.qp, &attr.grh.dgid, 0) == EOPNOTSUPP);
    CHECK(ibv_detach_mcast(a.qp, &attr.grh.dgid, 0) == EOPNOTSUPP);
    CHECK(!ibv_destroy_ah(group));
    close_pair();
}

/* ---- states ---- */

/* What was set can be asked for, in RESET too. */
static void query_qp(void)
{
    device = open_device();
    a = open_ud_end(&device, 5, NULL);
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;
    for (int i = 0; i < 2; i++) {
        memset(&attr, 0xee, sizeof(attr));
        memset(&init, 0xee, sizeof(init));
        CHECK(!ibv_query_qp(a.qp, &attr, IBV_QP_STATE | IBV_QP_QKEY | IBV_QP_CAP, &init));
        CHECK(attr.qp_state == (i ? IBV_QPS_RTS : IBV_QPS_RESET));
        CHECK(!i || attr.qkey == QKEY, "qkey %x", attr.qkey);
        CHECK(init.cap.max_send_wr == 8 && init.cap.max_recv_wr == 8, "%u %u", init.cap.max_send_wr, init.cap.max_recv_wr);
        CHECK(init.cap.max_send_sge == 4 && init.cap.max_recv_sge == 4);
        CHECK(!memcmp(&init.cap, &attr.cap, sizeof(attr.cap)));
        CHECK(init.qp_type == IBV_QPT_UD && init.send_cq == a.cq && init.recv_cq == a.cq && !init.srq);
        CHECK(!init.sq_sig_all);
        if (!i)
            ud_to_rts(&a);
        else
            CHECK(attr.port_num == 1);
    }
    close_end(&a);
    close_device(&device);
}

/* Ends and begins again. */
static void flush_and_reset(void)
{
    open_pair();
    for (int round = 0; round < 10; round++) {
        post_recv(&a, 1, 0, 64);
        to_error(&a);
        expect_wc(&a, 1, IBV_WC_WR_FLUSH_ERR);
        struct ibv_sge sge = sge_of(&a, 0, 8);
        struct ibv_send_wr wr = datagram(2, &sge, ah, &b);
        post_send(&a, &wr);
        expect_wc(&a, 2, IBV_WC_WR_FLUSH_ERR);
        struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RESET};
        CHECK(!ibv_modify_qp(a.qp, &attr, IBV_QP_STATE));
        ud_to_rts(&a);
        post_recv(&b, 3, 0, 256);
        post_send(&a, &wr);
        expect_wc(&a, 2, IBV_WC_SUCCESS);
        expect_wc(&b, 3, IBV_WC_SUCCESS);
    }
    close_pair();
}

static const struct test_case CASES[] = {
    {"send", send_moves},
    {"send_imm", send_imm_moves},
    {"to_itself", to_itself},
    {"lists", lists},
    {"answer", answer},
    {"tells_packet_type", tells_packet_type},
    {"lost", lost},
    {"own_qkey", own_qkey},
    {"no_ah", no_ah},
    {"other_opcodes", other_opcodes},
    {"bad_ah", bad_ah},
    {"multicast", multicast},
    {"query_qp", query_qp},
    {"flush_and_reset", flush_and_reset},
};

int main(int argc, char **argv)
{
    return run_cases(CASES, COUNT(CASES), argc, argv);
}

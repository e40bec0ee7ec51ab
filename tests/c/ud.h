/*
 * UD ends and address handles, for the C programs here. Public verbs only.
 */
#ifndef UD_H
#define UD_H

#include "rc.h"

#define QKEY 0x11223344
#define GRH 40

/* The last GID of the table that is there: one made from an IP address, if there is such. */
static inline int ud_gid(struct device *device, union ibv_gid *gid)
{
    static const union ibv_gid none;
    int found = -1;
    for (int i = 0; i < device->port.gid_tbl_len; i++) {
        union ibv_gid one;
        if (!ibv_query_gid(device->context, 1, i, &one) && memcmp(&one, &none, sizeof(one))) {
            *gid = one;
            found = i;
        }
    }
    CHECK(found >= 0, "no GID");
    return found;
}

static inline struct end open_ud_end(struct device *device, uint32_t depth, struct ibv_srq *srq)
{
    struct end end = {.length = 1 << 16};
    end.cq = ibv_create_cq(device->context, 2 * depth, NULL, NULL, 0);
    CHECK(end.cq);
    struct ibv_qp_init_attr init = {
        .send_cq = end.cq,
        .recv_cq = end.cq,
        .srq = srq,
        .qp_type = IBV_QPT_UD,
        .cap = {.max_send_wr = depth, .max_recv_wr = depth, .max_send_sge = 4, .max_recv_sge = 4},
    };
    end.qp = ibv_create_qp(device->pd, &init);
    CHECK(end.qp);
    end.buffer = mmap(NULL, end.length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(end.buffer != MAP_FAILED);
    end.mr = ibv_reg_mr(device->pd, end.buffer, end.length, IBV_ACCESS_LOCAL_WRITE);
    CHECK(end.mr);
    return end;
}

static inline void ud_to_rts(struct end *end)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qkey = QKEY};
    CHECK(!ibv_modify_qp(end->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY));
    attr.qp_state = IBV_QPS_RTR;
    CHECK(!ibv_modify_qp(end->qp, &attr, IBV_QP_STATE));
    attr.qp_state = IBV_QPS_RTS;
    attr.sq_psn = 1;
    CHECK(!ibv_modify_qp(end->qp, &attr, IBV_QP_STATE | IBV_QP_SQ_PSN));
}

static inline struct ibv_ah_attr ah_attr_to(struct device *device)
{
    struct ibv_ah_attr attr = {.is_global = 1, .port_num = 1, .grh.hop_limit = 64};
    attr.grh.sgid_index = ud_gid(device, &attr.grh.dgid);
    return attr;
}

/* An AH to this guest itself. */
static inline struct ibv_ah *ah_to(struct device *device)
{
    struct ibv_ah_attr attr = ah_attr_to(device);
    struct ibv_ah *ah = ibv_create_ah(device->pd, &attr);
    CHECK(ah, "no address handle");
    return ah;
}

/* What `wc.sl & 7` says of a datagram from and to this GID: 0 RoCE v1, 1 v2 over IPv6, 2 v2 over IPv4. */
static inline int packet_type(const struct ibv_gid_entry *gid)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    if (gid->gid_type != IBV_GID_TYPE_ROCE_V2)
        return 0;
    return memcmp(gid->gid.raw, mapped, sizeof(mapped)) ? 1 : 2;
}

static inline struct ibv_send_wr datagram(uint64_t wr_id, struct ibv_sge *sge, struct ibv_ah *ah, struct end *to)
{
    return (struct ibv_send_wr){
        .wr_id = wr_id,
        .opcode = IBV_WR_SEND,
        .send_flags = IBV_SEND_SIGNALED,
        .sg_list = sge,
        .num_sge = sge->length ? 1 : 0,
        .wr.ud = {.ah = ah, .remote_qpn = to->qp->qp_num, .remote_qkey = QKEY},
    };
}

#endif

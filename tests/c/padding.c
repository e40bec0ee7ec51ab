/*
 * Creates QPs and SRQs on a stack full of one byte, for each byte that is a bit or all bits of a `comp_mask`. What a
 * provider leaves unwritten of its structs is that byte, and some libibverbs look at it. Says how many it made.
 */
#include "rc.h"

/* Leaves `byte` where the functions called next have their locals. */
static __attribute__((noinline)) void stain(uint8_t byte)
{
    volatile uint8_t stack[16384];
    for (size_t i = 0; i < sizeof stack; i++)
        stack[i] = byte;
}

/* What an application hands over may have any bytes between and behind the fields. */
static void *stained(void *attr, size_t length, uint8_t byte)
{
    return memset(attr, byte, length);
}

static const uint8_t STAINS[] = {0x00, 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff};

static const struct ibv_qp_cap CAP = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1};

static struct ibv_qp *plain(struct device *device, struct ibv_cq *cq, uint8_t byte)
{
    struct ibv_qp_init_attr attr;
    stained(&attr, sizeof attr, byte);
    attr.qp_context = NULL;
    attr.send_cq = attr.recv_cq = cq;
    attr.srq = NULL;
    attr.cap = CAP;
    attr.qp_type = IBV_QPT_RC;
    attr.sq_sig_all = 0;
    stain(byte);
    return ibv_create_qp(device->pd, &attr);
}

static struct ibv_qp *extended(struct device *device, struct ibv_cq *cq, uint8_t byte, uint64_t send_ops)
{
    struct ibv_qp_init_attr_ex attr;
    memset(&attr, 0, sizeof attr);
    attr.send_cq = attr.recv_cq = cq;
    attr.cap = CAP;
    attr.qp_type = IBV_QPT_RC;
    attr.pd = device->pd;
    attr.comp_mask = IBV_QP_INIT_ATTR_PD | (send_ops ? IBV_QP_INIT_ATTR_SEND_OPS_FLAGS : IBV_QP_INIT_ATTR_CREATE_FLAGS);
    attr.send_ops_flags = send_ops;
    stain(byte);
    return ibv_create_qp_ex(device->context, &attr);
}

static struct ibv_srq *shared(struct device *device, uint8_t byte)
{
    struct ibv_srq_init_attr attr;
    stained(&attr, sizeof attr, byte);
    attr.srq_context = NULL;
    attr.attr = (struct ibv_srq_attr){.max_wr = 4, .max_sge = 1};
    stain(byte);
    return ibv_create_srq(device->pd, &attr);
}

int main(void)
{
    struct device device = open_device();
    struct ibv_cq *cq = ibv_create_cq(device.context, 16, NULL, NULL, 0);
    CHECK(cq);
    int made = 0;
    for (size_t i = 0; i < sizeof STAINS; i++) {
        for (int way = 0; way < 3; way++) {
            struct ibv_qp *qp = way == 0 ? plain(&device, cq, STAINS[i])
                                         : extended(&device, cq, STAINS[i], way == 1 ? 0 : IBV_QP_EX_WITH_SEND);
            CHECK(qp, "stack of %02x, way %d", STAINS[i], way);
            /* Bytes nobody asked for may not have become a capability either. */
            struct ibv_qp_attr attr;
            struct ibv_qp_init_attr init;
            CHECK(!ibv_query_qp(qp, &attr, IBV_QP_CAP, &init));
            CHECK(init.cap.max_send_wr == 4 && init.cap.max_recv_wr == 4 && !init.sq_sig_all);
            CHECK(!ibv_destroy_qp(qp));
            made++;
        }
        struct ibv_srq *srq = shared(&device, STAINS[i]);
        CHECK(srq, "stack of %02x", STAINS[i]);
        CHECK(!ibv_destroy_srq(srq));
        made++;
    }
    CHECK(!ibv_destroy_cq(cq));
    close_device(&device);
    printf("%d\n", made);
}

/*
 * The device that stands still, for frozen.c: with the stand-in's hooks (device/standin/src/hooks.rs) the program
 * plays its part on the rings, and the doorbell page becomes plain memory.
 */
#ifndef STILL_H
#define STILL_H

#include <dlfcn.h>
#include <sys/syscall.h>

#include "../../include/pvrdma.h"
#include "../../tests/c/rc.h"

static int (*freeze)(int on);
static long (*doorbells)(const char *kind);
static long (*handle_of)(uint32_t number);
static void *(*ring_of)(uint32_t number, unsigned nth, size_t *len);

static inline void *find(const char *name)
{
    void *found = dlsym(RTLD_DEFAULT, name);
    CHECK(found, "%s is missing", name);
    return found;
}

static inline void find_hooks(void)
{
    freeze = find("pvrdma_hook_freeze");
    doorbells = find("pvrdma_hook_doorbells");
    handle_of = find("pvrdma_hook_handle");
    ring_of = find("pvrdma_hook_ring");
    CHECK(!freeze(0), "PVRDMA_HOOKS=1 is not set");
}

static inline long all_doorbells(void)
{
    return doorbells("send") + doorbells("recv") + doorbells("srq") + doorbells("arm") + doorbells("poll");
}

/* One direction of a queue, as the device sees it. */
struct ring {
    struct pvrdma_ring *counters;
    uint8_t *entries;
    uint32_t count;
};

static inline struct ring send_ring(struct ibv_qp *qp, uint32_t count)
{
    struct pvrdma_ring_state *state = ring_of(qp->handle, 0, NULL);
    CHECK(state);
    return (struct ring){&state->tx, (uint8_t *)state + PVRDMA_PAGE_SIZE, count};
}

/* Of a CQ or an SRQ, or the receive queue of a QP, which has its counters beside those of the other queue. */
static inline struct ring recv_ring(uint32_t number, uint32_t count)
{
    struct pvrdma_ring_state *state = ring_of(number, 0, NULL);
    CHECK(state);
    return (struct ring){&state->rx, (uint8_t *)state + PVRDMA_PAGE_SIZE, count};
}

/* How many entries are there to be taken. */
static inline uint32_t filled(const struct ring *ring)
{
    uint32_t tail = __atomic_load_n(&ring->counters->prod_tail, __ATOMIC_ACQUIRE);
    return (tail - ring->counters->cons_head) & (2 * ring->count - 1);
}

static inline void take_all(const struct ring *ring)
{
    __atomic_store_n(&ring->counters->cons_head, ring->counters->prod_tail, __ATOMIC_RELEASE);
}

static inline void show(const struct ring *cq, uint32_t tail)
{
    __atomic_store_n(&cq->counters->prod_tail, tail & (2 * cq->count - 1), __ATOMIC_RELEASE);
}

/* A completion of `qp` in the `nth` place after the last one; not yet shown. */
static inline void write_cqe(const struct ring *cq, uint32_t nth, long qp, uint64_t wr_id)
{
    struct pvrdma_cqe cqe = {.wr_id = wr_id, .qp = qp, .opcode = PVRDMA_WC_RDMA_WRITE};
    uint32_t at = (cq->counters->prod_tail + nth) & (cq->count - 1);
    memcpy(cq->entries + at * sizeof(cqe), &cqe, sizeof(cqe));
}

/* The doorbell page, once it is plain memory. */
static volatile uint32_t *doorbell_page;

/* Whether a doorbell was written since the last time. */
static inline int rang(void)
{
    uint32_t sum = 0;
    for (int offset = PVRDMA_UAR_QP_OFFSET; offset <= PVRDMA_UAR_SRQ_OFFSET; offset += sizeof(sum)) {
        sum |= doorbell_page[offset / sizeof(sum)];
        doorbell_page[offset / sizeof(sum)] = 0;
    }
    return sum != 0;
}

/* Makes plain memory of the doorbell page: a private page that cannot be written and is not for children ("dc"). */
static inline void calm_doorbells(void)
{
    unsigned long from = 0, to = 0;
    char line[512], rights[8] = "", path[2] = "";
    int found = 0;
    FILE *maps = fopen("/proc/self/smaps", "r");
    CHECK(maps);
    while (fgets(line, sizeof(line), maps)) {
        unsigned long begin, end;
        char mode[8], what[2] = "";
        if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %1s", &begin, &end, mode, what) >= 3) {
            from = begin, to = end;
            strcpy(rights, mode);
            strcpy(path, what);
        } else if (!strncmp(line, "VmFlags:", 8) && strstr(line, " dc") && !strcmp(rights, "r--p") && !path[0] &&
                   to - from == PVRDMA_PAGE_SIZE) {
            /* The system call itself: mmap is the stand-in's. */
            long page = syscall(SYS_mmap, from, PVRDMA_PAGE_SIZE, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0L);
            CHECK((unsigned long)page == from);
            doorbell_page = (void *)page;
            found++;
        }
    }
    fclose(maps);
    CHECK(found == 1, "%d pages look like that of the doorbells", found);
}

#endif

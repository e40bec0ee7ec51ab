/*
 * Posting and polling by direct verbs, as pvrdmadv(7) says it: what a program does that knows the rings. Atomics are the
 * compiler's, so that this is C of any year.
 */
#ifndef DIRECT_H
#define DIRECT_H

#include <infiniband/pvrdmadv.h>
#include <pvrdma.h>
#include <rdma/vmw_pvrdma-abi.h>
#include <string.h>

static inline uint32_t direct_load(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* Entries that are filled, or that are there to be polled: counters run modulo twice the number of entries. */
static inline uint32_t direct_used(uint32_t tail, uint32_t head, uint32_t num_entries)
{
    return (tail - head) & (2 * num_entries - 1);
}

/* A doorbell is one store of 32 bits, after everything that it tells of. */
static inline void direct_ring(uint32_t *doorbell, uint32_t value)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    *(volatile uint32_t *)doorbell = value;
}

/* The next free entry, or NULL: the queue is full. */
static inline void *direct_slot(const struct pvrdmadv_wq *wq)
{
    uint32_t tail = *wq->prod_tail;
    if (direct_used(tail, direct_load(wq->cons_head), wq->num_entries) == wq->num_entries)
        return NULL;
    return (char *)wq->buf + (size_t)(tail & (wq->num_entries - 1)) * wq->entry_size;
}

/* What is in the entry is the device's from here on. */
static inline void direct_publish(const struct pvrdmadv_wq *wq)
{
    __atomic_store_n(wq->prod_tail, (*wq->prod_tail + 1) & (2 * wq->num_entries - 1), __ATOMIC_RELEASE);
    direct_ring(wq->doorbell, wq->doorbell_value);
}

/* The entry behind what was polled last, or NULL: there is none yet. */
static inline struct pvrdma_cqe *direct_peek(const struct pvrdmadv_cq *cq)
{
    uint32_t head = *cq->cons_head;
    if (!direct_used(direct_load(cq->prod_tail), head, cq->num_entries))
        return NULL;
    return (struct pvrdma_cqe *)cq->buf + (head & (cq->num_entries - 1));
}

/* Gives it back. */
static inline void direct_done(const struct pvrdmadv_cq *cq)
{
    __atomic_store_n(cq->cons_head, (*cq->cons_head + 1) & (2 * cq->num_entries - 1), __ATOMIC_RELEASE);
}

#endif

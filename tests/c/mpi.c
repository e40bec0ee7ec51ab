/*
 * An MPI program with checked data: ping-pong from nothing to a mebibyte, allreduce, alltoall, and one-sided put, get and
 * fetch_and_op. Rank 0 says "ok" with the number of ranks.
 */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int rank, ranks;

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "rank %d, line %d: %s: ", rank, __LINE__, #condition);                                     \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            MPI_Abort(MPI_COMM_WORLD, 1);                                                                              \
        }                                                                                                              \
    } while (0)

/* Bytes that tell their place, their sender and their round. */
static uint8_t byte_at(size_t at, unsigned seed)
{
    return (uint8_t)((at * 2654435761u + seed * 40503u) >> 13);
}

static void fill(uint8_t *bytes, size_t length, unsigned seed)
{
    for (size_t i = 0; i < length; i++)
        bytes[i] = byte_at(i, seed);
}

static void expect(const uint8_t *bytes, size_t length, unsigned seed)
{
    for (size_t i = 0; i < length; i++)
        CHECK(bytes[i] == byte_at(i, seed), "byte %zu of %zu", i, length);
}

/* The first half of the ranks with the second, which is in another guest. */
static void ping_pong(uint8_t *buffer)
{
    static const int sizes[] = {0, 1, 7, 8, 64, 1000, 4096, 8191, 65536, 262145, 1 << 20};
    int half = ranks / 2, peer = rank < half ? rank + half : rank - half;
    for (unsigned round = 0; round < 20 * sizeof(sizes) / sizeof(*sizes); round++) {
        int size = sizes[round % (sizeof(sizes) / sizeof(*sizes))], received;
        MPI_Status status;
        unsigned there = round * 1000 + (rank < half ? rank : peer);
        if (rank < half) {
            fill(buffer, size, there);
            MPI_Send(buffer, size, MPI_BYTE, peer, round, MPI_COMM_WORLD);
        }
        MPI_Recv(buffer, 1 << 20, MPI_BYTE, peer, round, MPI_COMM_WORLD, &status);
        MPI_Get_count(&status, MPI_BYTE, &received);
        CHECK(received == size, "%d instead of %d bytes", received, size);
        expect(buffer, size, rank < half ? there + 500 : there);
        if (rank >= half) {
            fill(buffer, size, there + 500);
            MPI_Send(buffer, size, MPI_BYTE, peer, round, MPI_COMM_WORLD);
        }
    }
}

static void collectives(void)
{
    for (int count = 1; count <= 65536; count *= 16) {
        int64_t *mine = malloc(count * sizeof(*mine)), *sum = malloc(count * sizeof(*sum));
        for (int i = 0; i < count; i++)
            mine[i] = (int64_t)i * (rank + 1);
        MPI_Allreduce(mine, sum, count, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
        for (int i = 0; i < count; i++)
            CHECK(sum[i] == (int64_t)i * ranks * (ranks + 1) / 2, "sum %d of %d", i, count);
        free(mine);
        free(sum);
    }
    size_t size = 50000;
    uint8_t *out = malloc(size * ranks), *in = malloc(size * ranks);
    for (int round = 0; round < 10; round++) {
        for (int to = 0; to < ranks; to++)
            fill(out + to * size, size, round * 10000 + rank * 100 + to);
        MPI_Alltoall(out, size, MPI_BYTE, in, size, MPI_BYTE, MPI_COMM_WORLD);
        for (int from = 0; from < ranks; from++)
            expect(in + from * size, size, round * 10000 + from * 100 + rank);
    }
    free(out);
    free(in);
}

static void one_sided(void)
{
    enum { LENGTH = 100000 };
    int right = (rank + ranks / 2) % ranks;
    uint8_t *window, *bytes = malloc(LENGTH);
    MPI_Win win;
    MPI_Win_allocate(LENGTH, 1, MPI_INFO_NULL, MPI_COMM_WORLD, &window, &win);
    for (int round = 0; round < 10; round++) {
        fill(bytes, LENGTH, round * 100 + rank);
        MPI_Win_fence(0, win);
        MPI_Put(bytes, LENGTH, MPI_BYTE, right, 0, LENGTH, MPI_BYTE, win);
        MPI_Win_fence(0, win);
        int left = (rank + ranks - ranks / 2) % ranks;
        expect(window, LENGTH, round * 100 + left);
        MPI_Get(bytes, LENGTH, MPI_BYTE, right, 0, LENGTH, MPI_BYTE, win);
        MPI_Win_fence(0, win);
        expect(bytes, LENGTH, round * 100 + rank);
    }
    MPI_Win_free(&win);

    int64_t *counter, one = 1, before, last = -1;
    MPI_Win_allocate(sizeof(*counter), sizeof(*counter), MPI_INFO_NULL, MPI_COMM_WORLD, &counter, &win);
    MPI_Win_lock(MPI_LOCK_EXCLUSIVE, rank, 0, win);
    *counter = 0;
    MPI_Win_unlock(rank, win);
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Win_lock_all(0, win);
    for (int i = 0; i < 200; i++) {
        MPI_Fetch_and_op(&one, &before, MPI_INT64_T, ranks - 1, 0, MPI_SUM, win);
        MPI_Win_flush(ranks - 1, win);
        CHECK(before > last, "%lld after %lld", (long long)before, (long long)last);
        last = before;
    }
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Fetch_and_op(NULL, &before, MPI_INT64_T, ranks - 1, 0, MPI_NO_OP, win);
    MPI_Win_unlock_all(win);
    CHECK(before == 200 * ranks, "%lld", (long long)before);
    MPI_Win_free(&win);
    free(bytes);
}

int main(int argc, char **argv)
{
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    CHECK(ranks >= 2 && ranks % 2 == 0, "%d ranks", ranks);
    uint8_t *buffer = malloc(1 << 20);
    ping_pong(buffer);
    collectives();
    one_sided();
    free(buffer);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0)
        printf("ok %d ranks\n", ranks);
    MPI_Finalize();
    return 0;
}

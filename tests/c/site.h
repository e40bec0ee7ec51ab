/*
 * Doorbells at declared places, as provider/src/support/doorbell.rs writes them: a nop of six bytes inside one aligned word of
 * eight, a plain store, and a note that says where they are and which registers they use. For the text of asm.
 *
 * tests/c/site_own.c has some of all kinds, for tests/c/site.c. They are in a library: a program lies too far from the
 * stand-in.
 */
#ifndef SITE_H
#define SITE_H

#include <stddef.h>
#include <stdint.h>

#define NOTE_OF(type, value, page, offset)                                                                             \
    ".pushsection .note.pvrdma, \"a\", @note\n"                                                                        \
    ".balign 4\n"                                                                                                      \
    ".4byte 993f - 992f, 995f - 994f, " type "\n"                                                                      \
    "992: .asciz \"pvrdma\"\n"                                                                                         \
    "993: .balign 4\n"                                                                                                 \
    "994: .4byte 990b - .\n"                                                                                           \
    ".4byte 991b - .\n"                                                                                                \
    ".asciz \"4@" value " 8@" page " 4@$" offset "\"\n"                                                                \
    "995: .balign 4\n"                                                                                                 \
    ".popsection\n"

#define DOORBELL_OF(type, value, page, offset)                                                                         \
    ".p2align 3,,5\n"                                                                                                  \
    "990: .byte 0x48, 0x0f, 0x1f, 0x44, 0x00, 0x00\n"                                                                  \
    "movl " value ", " offset "(" page ")\n"                                                                           \
    "991:\n" NOTE_OF(type, value, page, offset)

/* Vector, mask and x87 registers need not be kept. */
#define DOORBELL(value, page, offset) DOORBELL_OF("0x101", value, page, offset)

/* What C may not expect behind such a doorbell. */
#define CLOBBERED                                                                                                      \
    "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",        \
        "xmm12", "xmm13", "xmm14", "xmm15"

/* What a processor has, before a doorbell and after it. */
struct state {
    uint64_t registers[16]; /* In the processor's order; that of rsp is not used. */
    uint64_t flags;
    uint64_t red_zone[16]; /* Downwards. */
    uint64_t vectors[16][2];
    uint32_t mxcsr;
    uint16_t control;
};

/* A doorbell between two states. */
struct through {
    void (*ring)(void);
    int value, page; /* Which registers. */
    const char *kind;
    uint32_t rung;
};

/* What tests/c/site_own.c has. */
struct own_sites {
    struct state *before, *after;
    const struct through *throughs;
    size_t through_cnt;
    /* Its note says nothing of vector registers. */
    struct through undeclared;
    /* A function of C. */
    void (*ring)(uint32_t *page, uint32_t value);
};

/* Doorbells that nobody hears: no object has this handle. */
#define SEND_NOBODY 0x40ffffffu
#define POLL_NOBODY 0x80ffffffu
#define SRQ_NOBODY 0x40ffffffu

#endif

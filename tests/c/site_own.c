/* Declared doorbells of all kinds, for tests/c/site.c. */
#include "site.h"

__attribute__((visibility("hidden"))) struct state before, after;
_Static_assert(offsetof(struct state, flags) == 128 && offsetof(struct state, red_zone) == 136, "used below");
_Static_assert(offsetof(struct state, vectors) == 264 && offsetof(struct state, mxcsr) == 520, "used below");

/*
 * void NAME(void): has everything as in `before`, rings, and writes everything to `after`. Offsets are those of
 * struct state. The red zone is filled and read by moves alone, which keep the flags.
 */
#define IN(register, at) "mov before + " #at "(%rip), %" register "\n"
#define OUT(register, at) "mov %" register ", after + " #at "(%rip)\n"
#define RED_IN(n) "mov before + 136 + 8 * " #n "(%rip), %rax\nmov %rax, -8 - 8 * " #n "(%rsp)\n"
#define RED_OUT(n) "mov -8 - 8 * " #n "(%rsp), %rax\nmov %rax, after + 136 + 8 * " #n "(%rip)\n"
#define VECTOR_IN(n) "movups before + 264 + 16 * " #n "(%rip), %xmm" #n "\n"
#define VECTOR_OUT(n) "movups %xmm" #n ", after + 264 + 16 * " #n "(%rip)\n"
#define EACH(what)                                                                                                     \
    what(0) what(1) what(2) what(3) what(4) what(5) what(6) what(7) what(8) what(9) what(10) what(11) what(12)         \
        what(13) what(14) what(15)
#define THROUGH(name, doorbell)                                                                                        \
    __asm__(".text\n.balign 16\n.globl " #name "\n.hidden " #name "\n.type " #name ", @function\n" #name ":\n"         \
            "push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"                                       \
            "ldmxcsr before + 520(%rip)\nfldcw before + 524(%rip)\n"                                                   \
            "push before + 128(%rip)\npopfq\n" EACH(VECTOR_IN) EACH(RED_IN)                                            \
            IN("rax", 0) IN("rcx", 8) IN("rdx", 16) IN("rbx", 24) IN("rbp", 40) IN("rsi", 48) IN("rdi", 56)            \
            IN("r8", 64) IN("r9", 72) IN("r10", 80) IN("r11", 88) IN("r12", 96) IN("r13", 104) IN("r14", 112)          \
            IN("r15", 120) doorbell                                                                                    \
            OUT("rax", 0) OUT("rcx", 8) OUT("rdx", 16) OUT("rbx", 24) OUT("rbp", 40) OUT("rsi", 48) OUT("rdi", 56)     \
            OUT("r8", 64) OUT("r9", 72) OUT("r10", 80) OUT("r11", 88) OUT("r12", 96) OUT("r13", 104) OUT("r14", 112)   \
            OUT("r15", 120) EACH(RED_OUT) EACH(VECTOR_OUT)                                                             \
            "pushfq\npop after + 128(%rip)\ncld\n"                                                                     \
            "stmxcsr after + 520(%rip)\nfnstcw after + 524(%rip)\n"                                                    \
            "ldmxcsr usual_mxcsr(%rip)\nfldcw usual_control(%rip)\n"                                                   \
            "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n.size " #name ", . - " #name "\n");      \
    extern void name(void)

__attribute__((visibility("hidden"))) uint32_t usual_mxcsr = 0x1f80;
__attribute__((visibility("hidden"))) uint16_t usual_control = 0x37f;

THROUGH(through_ecx_rax, DOORBELL("%ecx", "%rax", "0"));
THROUGH(through_esi_rdi, DOORBELL("%esi", "%rdi", "4"));
THROUGH(through_ebx_rbp, DOORBELL("%ebx", "%rbp", "8"));
THROUGH(through_r15d_r12, DOORBELL("%r15d", "%r12", "4"));
THROUGH(through_r8d_r13, DOORBELL("%r8d", "%r13", "0"));
THROUGH(through_edx_r9, DOORBELL("%edx", "%r9", "8"));
/* Does not say that vector registers need not be kept. */
THROUGH(through_undeclared, DOORBELL_OF("0x100", "%ecx", "%rax", "0"));

static const struct through THROUGHS[] = {
    {through_ecx_rax, 1, 0, "send", SEND_NOBODY},  {through_esi_rdi, 6, 7, "poll", POLL_NOBODY},
    {through_ebx_rbp, 3, 5, "srq", SRQ_NOBODY},    {through_r15d_r12, 15, 12, "poll", POLL_NOBODY},
    {through_r8d_r13, 8, 13, "send", SEND_NOBODY}, {through_edx_r9, 2, 9, "srq", SRQ_NOBODY},
};

static void ring(uint32_t *page, uint32_t value)
{
    __asm__ volatile(DOORBELL("%%ecx", "%%rax", "0")::"a"(page), "c"(value) : CLOBBERED);
}

const struct own_sites own_sites = {
    .before = &before,
    .after = &after,
    .throughs = THROUGHS,
    .through_cnt = sizeof THROUGHS / sizeof *THROUGHS,
    .undeclared = {through_undeclared, 1, 0, "send", SEND_NOBODY},
    .ring = ring,
};

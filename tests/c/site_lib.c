/* A library with SITES declared doorbells, for tests/c/site.c to load and unload. */
#include "site.h"

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)

int sites(void)
{
    return SITES;
}

/* Rings once from each. */
__attribute__((noinline)) void ring_all(uint32_t *page, uint32_t value)
{
    __asm__ volatile(".rept " TEXT(SITES) "\n" DOORBELL("%%ecx", "%%rax", "0") ".endr\n" ::"a"(page), "c"(value)
                     : CLOBBERED);
}

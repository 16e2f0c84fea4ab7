/* A Cortex-M without a system: draws an image, prints a hash of its bytes and how much stack it took, by semihosting. */
#include <stdint.h>

#include "model.h"

#ifndef SEED
#define SEED 3
#endif
#ifndef STEPS
#define STEPS 4
#endif

extern uint32_t bss_start, bss_end, stack_top;

static uint64_t arena[(MODEL_ARENA_BYTES + 7) / 8];
static float image[MODEL_PIXELS];

static void call_host(int what, const void *with)
{
    register int r0 __asm__("r0") = what;
    register const void *r1 __asm__("r1") = with;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void say(uint32_t number)
{
    char text[12];
    int i;
    for (i = 0; i < 8; i++)
        text[i] = "0123456789abcdef"[number >> (28 - 4 * i) & 15u];
    text[8] = '\n';
    text[9] = 0;
    call_host(4, text);
}

static void work(void)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    int i;
    model_sample(arena, image, SEED, STEPS);
    for (i = 0; i < MODEL_PIXELS; i++)
        hash = (hash ^ (uint8_t)((image[i] + 1.0f) * 127.5f + 0.5f)) * 16777619u;
    say(hash);
}

void reset(void)
{
    uint32_t *p, here;
#ifdef __ARM_FP
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20; /* the floating-point unit on */
    __asm__ volatile("dsb\n\tisb");
#endif
    for (p = &bss_start; p < &bss_end; p++)
        *p = 0;
    for (p = &bss_end; p < &here - 16; p++)
        *p = 0xa5a5a5a5u;
    work();
    for (p = &bss_end; *p == 0xa5a5a5a5u; p++)
        ;
    say((uint32_t)((char *)&stack_top - (char *)p));
    call_host(0x18, (void *)0x20026);
    for (;;)
        ;
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {&stack_top, (void *)reset};

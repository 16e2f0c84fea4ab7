/* An ATmega328P: draws an image, prints a hash of its bytes, how much stack it took and how many cycles,
   through its serial port. */
#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>
#include <stdint.h>

#include "model.h"

#ifndef SEED
#define SEED 3
#endif
#ifndef STEPS
#define STEPS 4
#endif
#define UNUSED 0xa5

extern uint8_t _end; /* of what the linker has placed in memory; the stack comes down to it */

static uint64_t arena[(MODEL_ARENA_BYTES + 7) / 8];
static float image[MODEL_PIXELS];

/* Before main, with nothing on the stack yet. */
__attribute__((naked, used, section(".init3"))) void fill(void)
{
    uint8_t *p;
    for (p = &_end; p < (uint8_t *)RAMEND; p++)
        *p = UNUSED;
}

static volatile uint16_t turns; /* of a counter of 16 bits */

ISR(TIMER1_OVF_vect)
{
    turns++;
}

static void say(uint32_t number)
{
    int i;
    for (i = 0; i <= 8; i++) {
        UDR0 = i < 8 ? "0123456789abcdef"[number >> (28 - 4 * i) & 15u] : '\n';
        while (!(UCSR0A & (1 << UDRE0)))
            ;
    }
}

int main(void)
{
    uint32_t hash = 2166136261u /* FNV-1a */, cycles;
    const uint8_t *p;
    int i;

    UCSR0B = 1 << TXEN0;
    TIMSK1 = 1 << TOIE1;
    sei();
    TCCR1B = 1 << CS10;
    model_sample(arena, image, SEED, STEPS);
    cycles = (uint32_t)turns << 16 | TCNT1;
    for (i = 0; i < MODEL_PIXELS; i++)
        hash = (hash ^ (uint8_t)((image[i] + 1.0f) * 127.5f + 0.5f)) * 16777619u;
    for (p = &_end; *p == UNUSED; p++)
        ;
    say(hash);
    say((uint32_t)(RAMEND - (uint16_t)p + 1));
    say(cycles);
    cli();
    sleep_mode(); /* which ends the simulation */
    return 0;
}

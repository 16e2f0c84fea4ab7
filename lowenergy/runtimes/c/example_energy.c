/* Reads images from standard input, MODEL_PIXELS bytes each, one channel after the other; prints their energies. */
#include <stdio.h>

#include "model.h"

static uint64_t arena[(MODEL_ARENA_BYTES + 7) / 8];
static float image[MODEL_PIXELS];

int main(void)
{
    int i, byte = 0;

    for (;;) {
        for (i = 0; i < MODEL_PIXELS && (byte = getchar()) != EOF; i++)
            image[i] = (float)byte / 127.5f - 1.0f;
        if (i < MODEL_PIXELS)
            return i != 0; /* half an image */
        printf("%.6f\n", (double)model_energy(arena, image));
    }
}

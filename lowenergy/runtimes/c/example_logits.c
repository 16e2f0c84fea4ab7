/* Reads images from standard input, MODEL_PIXELS bytes each, one channel after the other; prints their logits. */
#include <stdio.h>

#include "model.h"

static uint64_t arena[(MODEL_ARENA_BYTES + 7) / 8];
static float image[MODEL_PIXELS], logits[MODEL_OUTPUTS];

int main(void)
{
    int i, byte = 0;

    for (;;) {
        for (i = 0; i < MODEL_PIXELS && (byte = getchar()) != EOF; i++)
            image[i] = (float)byte / 127.5f - 1.0f;
        if (i < MODEL_PIXELS)
            return i != 0; /* half an image */
        model_logits(arena, image, logits);
        for (i = 0; i < MODEL_OUTPUTS; i++)
            printf("%.6f%c", (double)logits[i], i + 1 < MODEL_OUTPUTS ? ' ' : '\n');
    }
}

/* Draws an image: main [seed] [steps] prints it as a picture that most viewers take (PGM or PPM, as text). Channels
   that are no colours are one below the other. */
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

static uint64_t arena[(MODEL_ARENA_BYTES + 7) / 8];
static float image[MODEL_PIXELS];

int main(int count, char **given)
{
    const uint32_t seed = count > 1 ? (uint32_t)strtoul(given[1], 0, 10) : 0;
    const int steps = count > 2 ? atoi(given[2]) : MODEL_STEPS;
    uint32_t sum = 2166136261u;
    const int colours = MODEL_CHANNELS == 3 ? 3 : 1, pixels = MODEL_HEIGHT * MODEL_WIDTH;
    int channel, place;

    model_sample(arena, image, seed, steps);
    for (place = 0; place < MODEL_PIXELS; place++) /* FNV-1a of the pixels, to compare with other machines */
        sum = (sum ^ (uint8_t)((image[place] + 1.0f) * 127.5f + 0.5f)) * 16777619u;
    printf("P%d\n# energy %.6f, pixels %08lx\n%d %d\n255\n", colours == 3 ? 3 : 2,
           (double)model_energy(arena, image), (unsigned long)sum, MODEL_WIDTH, MODEL_PIXELS / colours / MODEL_WIDTH);
    for (place = 0; place < MODEL_PIXELS / colours; place++)
        for (channel = 0; channel < colours; channel++) {
            const float value = (image[channel * pixels + place] + 1.0f) * 127.5f + 0.5f;
            printf("%d%c", (int)value, (place + 1) % MODEL_WIDTH ? ' ' : '\n');
        }
    return 0;
}

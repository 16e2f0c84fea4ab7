/* ebm: compact, 1 x 28 x 28

   An image is float[MODEL_CHANNELS * MODEL_HEIGHT * MODEL_WIDTH], values in [-1, 1] (black is -1, white is 1), one
   channel after the other, each row by row. The arena is MODEL_ARENA_BYTES of memory, aligned to 8 bytes, that the
   caller hands over; nothing in it must be kept between calls (but see MODEL_KEEP), and nothing else is written.

   Results are the same bits on every machine whose float is IEEE 754's and whose compiler keeps the order of sums:
   no -ffast-math; -ffp-contract=off unless in a standard mode (-std=c99). */
#ifndef MODEL_H
#define MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MODEL_CHANNELS 1
#define MODEL_HEIGHT 28
#define MODEL_WIDTH 28
#define MODEL_OUTPUTS 1
#define MODEL_PIXELS (MODEL_CHANNELS * MODEL_HEIGHT * MODEL_WIDTH)

/* Channels computed side by side, at most 16: one on a microcontroller, eight on processors with vectors.
   It changes time and memory, no result; give it on the command line of all files or of none. */
#ifndef MODEL_LANES
#if defined(__GNUC__) && (defined(__SSE2__) || defined(__aarch64__) || defined(__wasm_simd128__))
#define MODEL_LANES 8
#else
#define MODEL_LANES 1
#endif
#endif

/* 1: weights are decoded once and then kept, which is faster and takes more memory. The arena must be all zeros before
   the first call, and what is in it must be kept between calls. */
#ifndef MODEL_KEEP
#define MODEL_KEEP 0
#endif

/* 27,456 bytes; with lanes, the weights of a tile more. */
#define MODEL_ARENA_BYTES \
    (27456L + (MODEL_KEEP ? 193344L : MODEL_LANES > 1 ? 1600L * MODEL_LANES : 0L))

#define MODEL_HAS_ENERGY 1
/* The energy of an image: low where data is likely. */
float model_energy(void *arena, const float *image);

/* The Langevin step x <- clamp(x - step_size * clamp(slope of the energy) + noise * normal).
   Images stay in [-1, 1], slopes within MODEL_GRADIENT_CLAMP. */
#define MODEL_STEP_SIZE 0.05f
#define MODEL_NOISE 0.015f
#define MODEL_GRADIENT_CLAMP 5.0f
#define MODEL_STEPS 149 /* of a chain as it was trained */

/* One step in place; the energy before it. `random` is any number, and then what the last step left there. */
float model_step(void *arena, float *image, uint32_t *random);

/* The same with another step size. */
float model_step_by(void *arena, float *image, uint32_t *random, float step_size);

/* Uniform noise, where chains start; the `random` of the first step. */
uint32_t model_start(float *image, uint32_t seed);

/* A whole chain from noise; one seed gives one image, everywhere. */
void model_sample(void *arena, float *image, uint32_t seed, int steps);

#ifdef __cplusplus
}
#endif

#endif

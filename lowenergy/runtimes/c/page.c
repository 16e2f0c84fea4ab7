/* What the page's script calls; see page.html. */
#include "model.h"

#define EXPORTED(name) __attribute__((export_name(#name)))

static uint64_t arena[(MODEL_ARENA_BYTES + 7) / 8];
static float image[MODEL_PIXELS];

EXPORTED(image) float *page_image(void)
{
    return image;
}

#ifdef MODEL_STEP_SIZE
static uint32_t random_state;

EXPORTED(start) void page_start(uint32_t seed)
{
    random_state = model_start(image, seed);
}

EXPORTED(step) float page_step(float step_size)
{
    return model_step_by(arena, image, &random_state, step_size);
}
#endif

#ifdef MODEL_HAS_ENERGY
EXPORTED(energy) float page_energy(void)
{
    return model_energy(arena, image);
}
#endif

#ifdef MODEL_HAS_LOGITS
static float logits[MODEL_OUTPUTS];

EXPORTED(logits) float *page_logits(void)
{
    model_logits(arena, image, logits);
    return logits;
}
#endif

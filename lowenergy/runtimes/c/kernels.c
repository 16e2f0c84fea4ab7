/* The functions that models are made of. emit.py copies the sections into a model.c of which it uses a name; the names
   stand at each section's head. */

/* == choose == */
#define choose(condition, a, b) ((condition) ? (a) : (b))

/* == to_float == */
#define to_float(x) ((float)(x))

/* == float_of == */
static float float_of(uint32_t bits)
{
    union {
        uint32_t bits;
        float value;
    } both;
    both.bits = bits;
    return both.value;
}

/* == bits_of == */
static uint32_t bits_of(float value)
{
    union {
        uint32_t bits;
        float value;
    } both;
    both.value = value;
    return both.bits;
}

/* == half == */
/* A float16; no infinities. */
static float half(uint16_t h)
{
    const uint32_t bits = (uint32_t)(h & 0x8000u) << 16 | (uint32_t)(h & 0x7fffu) << 13;
    return float_of(bits) * 5.192296858534828e33f; /* 2^112, by which the exponents differ */
}

/* == larger == */
static float larger(float a, float b)
{
    return a > b ? a : b;
}

/* == smaller == */
static float smaller(float a, float b)
{
    return a < b ? a : b;
}

/* == exponential == */
/* e^x to 2 units in the last place, from sums and products alone: the same bits on every machine. */
static float exponential(float x)
{
    float shifted, n, r, y;
    x = smaller(larger(x, -87.0f), 88.0f);
    shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23 has no fraction: the whole number is in the last bits */
    n = shifted - 12582912.0f;
    r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = (y * r) * r + r + 1.0f;
    return y * float_of((bits_of(shifted) + 127u) << 23);
}

/* == sigmoid == */
static float sigmoid(float x)
{
    return 1.0f / (1.0f + exponential(-x));
}

/* == swish_slope == */
static float swish_slope(float x)
{
    const float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

/* == tanh_of == */
static float tanh_of(float x)
{
    const float size = x < 0.0f ? -x : x;
    const float e = exponential(2.0f * size);
    const float y = size < 0.02f ? size - size * size * size * 0.33333333f : 1.0f - 2.0f / (e + 1.0f);
    return x < 0.0f ? -y : y;
}

/* == logarithm == */
static float logarithm(float x)
{
    uint32_t bits = bits_of(x);
    float m, y, z, e;
    if (!(x > 0.0f))
        return x == 0.0f ? -87.0f : (x - x) / (x - x); /* what exponential takes for nothing; else NaN */
    if (bits < 0x00800000u)
        return -87.0f;
    e = (float)((int32_t)(bits >> 23) - 126);
    m = float_of((bits & 0x007fffffu) | 0x3f000000u);
    if (m < 0.707106781f) {
        e -= 1.0f;
        m = m + m;
    }
    m -= 1.0f;
    z = m * m;
    y = 7.0376836292e-2f;
    y = y * m - 1.1514610310e-1f;
    y = y * m + 1.1676998740e-1f;
    y = y * m - 1.2420140846e-1f;
    y = y * m + 1.4249322787e-1f;
    y = y * m - 1.6668057665e-1f;
    y = y * m + 2.0000714765e-1f;
    y = y * m - 2.4999993993e-1f;
    y = y * m + 3.3333331174e-1f;
    y = y * m * z - 2.12194440e-4f * e - 0.5f * z;
    return (m + y) + 0.693359375f * e;
}

/* == expm1_of == */
/* e^x - 1, as exact for small x: what y = e^x rounds off, the factor x / log(y) brings back (Kahan). */
static float expm1_of(float x)
{
    const float y = exponential(x);
    if (!(x > -0.5f && x < 0.5f))
        return y - 1.0f;
    return y == 1.0f ? x : (y - 1.0f) * (x / logarithm(y));
}

/* == log1p_of == */
/* log(1 + x), likewise. */
static float log1p_of(float x)
{
    const float y = 1.0f + x;
    return y == 1.0f ? x : logarithm(y) * (x / (y - 1.0f));
}

/* == root == */
/* The square root, by Newton's steps from a guess at 1/sqrt(x): no library's rounding to depend on. */
static float root(float x)
{
    float y;
    int i;
    if (!(x > 1.0e-37f))
        return 0.0f;
    y = float_of(0x5f3759dfu - (bits_of(x) >> 1));
    for (i = 0; i < 3; i++)
        y = y * (1.5f - 0.5f * x * y * y);
    y = x * y;
    return 0.5f * (y + x / y);
}

/* == error_function == */
/* Abramowitz and Stegun 7.1.26, to 2e-7; below 1 a polynomial (Cephes), as exact for small x. */
static float error_function(float x)
{
    const float size = x < 0.0f ? -x : x;
    float y, t;
    if (size < 1.0f) {
        t = x * x;
        y = 7.853861353e-5f;
        y = y * t - 8.010193625e-4f;
        y = y * t + 5.188327686e-3f;
        y = y * t - 2.685381194e-2f;
        y = y * t + 1.128358515e-1f;
        y = y * t - 3.761262582e-1f;
        y = y * t + 1.128379166f;
        return x * y;
    }
    t = 1.0f / (1.0f + 0.3275911f * size);
    y = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    y = 1.0f - y * exponential(-size * size);
    return x < 0.0f ? -y : y;
}

/* == draw == */
/* The next of a sequence of 2^32 numbers: a counter, mixed (Wellons's lowbias32). */
static uint32_t draw(uint32_t *random)
{
    uint32_t x = *random += 0x9e3779b9u;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

/* == normal == */
/* sin and cos of a quarter turn times u in [0, 1), to 4e-6. */
static float sine(float u)
{
    const float z = u * u;
    return u * (1.570796327f + z * (-0.645964097f + z * (0.0796926259f + z * (-0.00468175390f + z * 0.000160441184f))));
}

/* Two standard normal numbers (Box and Muller 1958). */
static void normal(uint32_t *random, float pair[2])
{
    const float length = root(-2.0f * logarithm((float)((draw(random) >> 8) + 1u) * 5.9604645e-8f));
    const uint32_t turn = draw(random);
    const float u = (float)((turn >> 6) & 0xffffffu) * 5.9604645e-8f;
    const float a = length * sine(u), b = length * sine(1.0f - u);
    pair[0] = turn & 0x80000000u ? -a : a;
    pair[1] = turn & 0x40000000u ? -b : b;
}

/* == weight == */
/* A tensor of the model as it is stored. */
struct weight {
    const void *values; /* of coded weights the codewords, of sparse ones what is not zero */
    const uint8_t *codes; /* packed, the highest bit first; of sparse weights a bit for each, or gaps */
    const void *rows; /* where in the values of sparse weights each output channel starts */
    const float *scale; /* of integers, by output channel */
    uint32_t row; /* weights of one output channel */
    uint8_t kind, bits; /* how to fetch it; bits of a code */
    uint16_t length; /* weights of a codeword */
};

/* == read_bits == */
static uint32_t read_bits(const uint8_t *from, uint32_t bit, unsigned count)
{
    const uint8_t *p = from + (bit >> 3);
    const uint32_t three = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2];
    return three >> (24u - count - (unsigned)(bit & 7u)) & (((uint32_t)1 << count) - 1u);
}

/* == rank == */
/* Bits that are set among those from `from` to before `to`. */
static uint32_t rank(const uint8_t *mask, uint32_t from, uint32_t to)
{
    uint32_t found = 0;
    while (from < to) {
        if (!(from & 7u) && to - from >= 8) {
            unsigned byte = mask[from >> 3];
            byte = byte - (byte >> 1 & 0x55u);
            byte = (byte & 0x33u) + (byte >> 2 & 0x33u);
            found += (byte + (byte >> 4)) & 0xfu;
            from += 8;
        } else {
            found += mask[from >> 3] >> (7u - (from & 7u)) & 1u;
            from++;
        }
    }
    return found;
}

/* == lanes == */
/* Output channels computed side by side. Each sum keeps its order, so their number changes no bit of a result. */
#if MODEL_LANES > 1
typedef float lanes __attribute__((vector_size(4 * MODEL_LANES), aligned(4), may_alias));
#define LOAD(p) (*(const lanes *)(p))
#define STORE(p, v, count)                                                                                             \
    do {                                                                                                               \
        const lanes stored = (v);                                                                                      \
        int lane;                                                                                                      \
        if ((count) == MODEL_LANES)                                                                                    \
            *(lanes *)(p) = stored;                                                                                    \
        else                                                                                                           \
            for (lane = 0; lane < (count); lane++)                                                                     \
                (p)[lane] = stored[lane];                                                                              \
    } while (0)
#else
typedef float lanes;
#define LOAD(p) (*(p))
#define STORE(p, v, count) (*(p) = (v))
#endif

/* == find_taps == */
struct conv {
    const struct weight *weight;
    const void *bias;
    count_t groups, in, out; /* channels of a group, as this direction sees them */
    count_t height, width, rows, columns; /* of the input and of the output */
    count_t step_in, step_out; /* numbers from one pixel to the next */
    uint8_t kernel[2], stride[2], padding[2], dilation[2];
    uint8_t pulled; /* the way back: from the gradient of the output to that of the input */
};

struct tap {
    int16_t row, column; /* what is added to a pixel's place in the output, to find its place in the input */
    uint32_t weights; /* place of the tap's weights in the tile */
};

/* The kernel's weights that meet outputs of one parity; forward there is but one. */
static int find_taps(const struct conv *c, int down, int right, struct tap *taps)
{
    int ky, kx, n = 0;
    for (ky = 0; ky < c->kernel[0]; ky++)
        for (kx = 0; kx < c->kernel[1]; kx++) {
            int row = ky * c->dilation[0] - c->padding[0], column = kx * c->dilation[1] - c->padding[1];
            if (c->pulled) {
                row = down - row;
                column = right - column;
                if (row % c->stride[0] || column % c->stride[1])
                    continue;
                row /= c->stride[0];
                column /= c->stride[1];
            }
            taps[n].row = (int16_t)row;
            taps[n].column = (int16_t)column;
            taps[n++].weights = (uint32_t)(ky * c->kernel[1] + kx) * c->in * MODEL_LANES;
        }
    return n;
}

#if MODEL_LANES > 1
/* Where `count` pixels of a row are in the input, -1 for those beyond its ends; whether there is such a row. */
static int find_pixels(const struct conv *c, int row, int column, int step, int count, int32_t *places)
{
    const int32_t hop = (int32_t)step * c->step_in;
    int32_t place = ((int32_t)row * c->width + column) * c->step_in;
    int k;
    if (row < 0 || row >= c->height)
        return 0;
    for (k = 0; k < count; k++, column += step, place += hop)
        places[k] = column >= 0 && column < c->width ? place : -1;
    return 1;
}
#endif

/* == ready == */
/* Whether the weights of a convolution lie decoded behind this place, which zeros say no to; from now on they do. */
#if MODEL_KEEP
static int ready(float **tile)
{
    const int found = **tile != 0.0f;
    **tile = 1.0f;
    *tile += 16;
    return found;
}
#define NEXT_TILE(tile, size) ((tile) += (size))
#else
#define ready(tile) 0
#define NEXT_TILE(tile, size) ((void)0)
#endif

/* == convolve == */
static void load_tile(const struct conv *c, int group, int o, int count, float *tile)
{
    const int taps = c->kernel[0] * c->kernel[1];
    int i, l;
    for (l = count; l < MODEL_LANES; l++)
        for (i = 0; i < taps * c->in; i++)
            tile[i * MODEL_LANES + l] = 0.0f;
    if (c->pulled)
        for (i = 0; i < c->in; i++)
            fetch(c->weight, ((uint32_t)(group * c->in + i) * c->out + (uint32_t)o) * (uint32_t)taps, count, taps,
                  tile + i * MODEL_LANES, 1, c->in * MODEL_LANES);
    else
        for (l = 0; l < count; l++)
            fetch(c->weight, (uint32_t)(group * c->out + o + l) * c->in * (uint32_t)taps, c->in, taps, tile + l,
                  MODEL_LANES, c->in * MODEL_LANES);
}

/* Outputs: their rows from `first` to before `last`. Every sum starts with the bias and goes tap by tap, and within a
   tap channel by channel. */
static void convolve(const struct conv *c, const float *x, float *y, float *tile, int first, int last)
{
    const float *bias = c->bias;
    const int down = c->pulled ? c->stride[0] : 1, right = c->pulled ? c->stride[1] : 1;
    const int step_y = c->pulled ? 1 : c->stride[0], step_x = c->pulled ? 1 : c->stride[1];
    const int decoded = ready(&tile);
    struct tap taps[MOST_TAPS];
    int group, o, l, dy, dx, i, j, k, t;

    for (group = 0; group < c->groups; group++)
        for (o = 0; o < c->out; o += MODEL_LANES) {
            const int count = c->out - o < MODEL_LANES ? c->out - o : MODEL_LANES;
            const float *const from = x + group * c->in;
            float *const to = y + group * c->out + o;
            float start[MODEL_LANES] = {0};
            if (!decoded)
                load_tile(c, group, o, count, tile);
            for (l = 0; bias && l < count; l++)
                start[l] = bias[group * c->out + o + l];
            for (dy = 0; dy < down; dy++)
                for (dx = 0; dx < right; dx++) {
                    const int n = find_taps(c, dy, dx, taps);
                    const int columns = (c->columns - dx + right - 1) / right;
                    const int rows = (c->rows - dy + down - 1) / down;
                    for (i = first; i < (last < rows ? last : rows); i++)
                        for (j = 0; j < columns;) {
                            float *out = to + (int32_t)((i * down + dy) * c->columns + j * right + dx) * c->step_out;
#if MODEL_LANES > 1
                            if (count == 1 && columns - j >= 4) { /* no channels side by side, but pixels */
                                const int wide = columns - j >= 8 ? 8 : columns - j;
                                float sum[8];
                                for (k = 0; k < 8; k++)
                                    sum[k] = start[0];
                                for (t = 0; t < n; t++) {
                                    const float *w = tile + taps[t].weights, *in[8];
                                    int32_t places[8];
                                    if (!find_pixels(c, i * step_y + taps[t].row, j * step_x + taps[t].column, step_x,
                                                     8, places))
                                        continue;
                                    for (k = 0; k < 8; k++)
                                        in[k] = places[k] < 0 ? zeros : from + places[k];
                                    for (k = 0; k < c->in; k++) {
                                        const float v = w[k * MODEL_LANES];
                                        sum[0] += v * in[0][k];
                                        sum[1] += v * in[1][k];
                                        sum[2] += v * in[2][k];
                                        sum[3] += v * in[3][k];
                                        sum[4] += v * in[4][k];
                                        sum[5] += v * in[5][k];
                                        sum[6] += v * in[6][k];
                                        sum[7] += v * in[7][k];
                                    }
                                }
                                for (k = 0; k < wide; k++)
                                    out[k * right * c->step_out] = sum[k];
                                j += wide;
                                continue;
                            }
                            if (columns - j >= 2) {
                                lanes a = LOAD(start), b = a, d = a, e = a;
                                const int wide = columns - j >= 4 ? 4 : columns - j, step = right * c->step_out;
                                for (t = 0; t < n; t++) {
                                    const float *w = tile + taps[t].weights, *in[4];
                                    int32_t places[4];
                                    if (!find_pixels(c, i * step_y + taps[t].row, j * step_x + taps[t].column, step_x,
                                                     4, places))
                                        continue;
                                    for (k = 0; k < 4; k++)
                                        in[k] = places[k] < 0 ? zeros : from + places[k];
                                    if (wide == 2)
                                        for (k = 0; k < c->in; k++) {
                                            const lanes v = LOAD(w + k * MODEL_LANES);
                                            a += v * in[0][k];
                                            b += v * in[1][k];
                                        }
                                    else
                                        for (k = 0; k < c->in; k++) {
                                            const lanes v = LOAD(w + k * MODEL_LANES);
                                            a += v * in[0][k];
                                            b += v * in[1][k];
                                            d += v * in[2][k];
                                            e += v * in[3][k];
                                        }
                                }
                                STORE(out, a, count);
                                STORE(out + step, b, count);
                                if (wide > 2)
                                    STORE(out + 2 * step, d, count);
                                if (wide > 3)
                                    STORE(out + 3 * step, e, count);
                                j += wide;
                                continue;
                            }
#endif
                            {
                                lanes sum = LOAD(start);
                                for (t = 0; t < n; t++) {
                                    const int row = i * step_y + taps[t].row, column = j * step_x + taps[t].column;
                                    const float *w = tile + taps[t].weights, *in;
                                    if (row < 0 || row >= c->height || column < 0 || column >= c->width)
                                        continue;
                                    in = from + (int32_t)(row * c->width + column) * c->step_in;
                                    for (k = 0; k < c->in; k++)
                                        sum += LOAD(w + k * MODEL_LANES) * in[k];
                                }
                                STORE(out, sum, count);
                                j++;
                            }
                        }
                }
            NEXT_TILE(tile, c->kernel[0] * c->kernel[1] * c->in * MODEL_LANES);
        }
}

/* == to_byte == */
/* The byte that stands for x = scale * (byte - zero); ties go to the even number. */
static uint8_t to_byte(float x, float per_scale, float zero)
{
    const float n = smaller(larger(x * per_scale, -512.0f), 512.0f);
    return (uint8_t)smaller(larger(((n + 12582912.0f) - 12582912.0f) + zero, 0.0f), 255.0f);
}

/* == to_level == */
/* The same of few levels. */
static uint8_t to_level(float x, float per_scale, float zero, uint8_t last)
{
    const uint8_t byte = to_byte(x, per_scale, zero);
    return byte < last ? byte : last;
}

/* == whole == */
#if MODEL_LANES > 1
typedef int32_t whole __attribute__((vector_size(4 * MODEL_LANES), aligned(4), may_alias));
typedef int32_t tile_t;
#define LOAD_WHOLE(p) (*(const whole *)(p))
#define OF_WHOLE(v, l) ((v)[l])
#else
typedef int32_t whole;
typedef int8_t tile_t;
#define LOAD_WHOLE(p) (*(p))
#define OF_WHOLE(v, l) (v)
#endif

/* == convolve_bytes == */
static void load_integers(const struct conv *c, int group, int o, int count, tile_t *tile)
{
    const int taps = c->kernel[0] * c->kernel[1];
    int i, l;
    for (l = count; l < MODEL_LANES; l++)
        for (i = 0; i < taps * c->in; i++)
            tile[i * MODEL_LANES + l] = 0;
    if (c->pulled)
        for (i = 0; i < c->in; i++)
            fetch_integers(c->weight, ((uint32_t)(group * c->in + i) * c->out + (uint32_t)o) * (uint32_t)taps, count,
                           taps, tile + i * MODEL_LANES, 1, c->in * MODEL_LANES);
    else
        for (l = 0; l < count; l++)
            fetch_integers(c->weight, (uint32_t)(group * c->out + o + l) * c->in * (uint32_t)taps, c->in, taps,
                           tile + l, MODEL_LANES, c->in * MODEL_LANES);
}

/* Ranges of an int8 convolution. */
struct range {
    float scale; /* of what comes in */
    float per_scale, zero_out; /* of what goes out; 0 where that is float */
    int16_t zero;
};

/* An output pixel's sums become float once, and bytes again. */
static void put(const struct conv *c, const struct range *r, const whole *sum, int first, int count, void *y,
                int32_t at)
{
    const float *bias = c->bias;
    int l;
    for (l = 0; l < count; l++) {
        const int channel = first + l;
        float value = (float)OF_WHOLE(*sum, l);
        value = value * (c->pulled ? r->scale : r->scale * c->weight->scale[channel]);
        if (bias)
            value = value + bias[channel];
        if (r->per_scale != 0.0f)
            ((uint8_t *)y)[at + channel] = to_byte(value, r->per_scale, r->zero_out);
        else
            ((float *)y)[at + channel] = value;
    }
}

/* Sums of (byte - zero) * weight in 32 bits, exact in any order. */
static void convolve_bytes(const struct conv *c, const struct range *r, const uint8_t *x, void *y, void *space, int first,
                           int last)
{
    float *place = space;
    const int decoded = ready(&place);
    tile_t *tile = (tile_t *)place;
    const int down = c->pulled ? c->stride[0] : 1, right = c->pulled ? c->stride[1] : 1;
    const int step_y = c->pulled ? 1 : c->stride[0], step_x = c->pulled ? 1 : c->stride[1];
    struct tap taps[MOST_TAPS];
    int group, o, dy, dx, i, j, k, t;

    for (group = 0; group < c->groups; group++)
        for (o = 0; o < c->out; o += MODEL_LANES) {
            const int count = c->out - o < MODEL_LANES ? c->out - o : MODEL_LANES, channel = group * c->out + o;
            const uint8_t *const from = x + group * c->in;
            if (!decoded)
                load_integers(c, group, o, count, tile);
            for (dy = 0; dy < down; dy++)
                for (dx = 0; dx < right; dx++) {
                    const int n = find_taps(c, dy, dx, taps);
                    const int columns = (c->columns - dx + right - 1) / right;
                    const int rows = (c->rows - dy + down - 1) / down;
                    for (i = first; i < (last < rows ? last : rows); i++)
                        for (j = 0; j < columns;) {
                            const int32_t at = (int32_t)((i * down + dy) * c->columns + j * right + dx) * c->step_out;
                            whole sum = {0};
#if MODEL_LANES > 1
                            if (columns - j >= 2) {
                                const int wide = columns - j >= 4 ? 4 : columns - j, step = right * c->step_out;
                                whole b = sum, d = sum, e = sum;
                                for (t = 0; t < n; t++) {
                                    const tile_t *w = tile + taps[t].weights;
                                    const uint8_t *in[4];
                                    int32_t places[4], zero[4];
                                    if (!find_pixels(c, i * step_y + taps[t].row, j * step_x + taps[t].column, step_x,
                                                     4, places))
                                        continue;
                                    for (k = 0; k < 4; k++) {
                                        in[k] = places[k] < 0 ? (const uint8_t *)zeros : from + places[k];
                                        zero[k] = places[k] < 0 ? 0 : r->zero;
                                    }
                                    for (k = 0; k < c->in; k++) {
                                        const whole v = LOAD_WHOLE(w + k * MODEL_LANES);
                                        sum += v * (in[0][k] - zero[0]);
                                        b += v * (in[1][k] - zero[1]);
                                        d += v * (in[2][k] - zero[2]);
                                        e += v * (in[3][k] - zero[3]);
                                    }
                                }
                                put(c, r, &sum, channel, count, y, at);
                                put(c, r, &b, channel, count, y, at + step);
                                if (wide > 2)
                                    put(c, r, &d, channel, count, y, at + 2 * step);
                                if (wide > 3)
                                    put(c, r, &e, channel, count, y, at + 3 * step);
                                j += wide;
                                continue;
                            }
#endif
                            for (t = 0; t < n; t++) {
                                const int row = i * step_y + taps[t].row, column = j * step_x + taps[t].column;
                                const tile_t *w = tile + taps[t].weights;
                                const uint8_t *in;
                                if (row < 0 || row >= c->height || column < 0 || column >= c->width)
                                    continue;
                                in = from + (int32_t)(row * c->width + column) * c->step_in;
                                for (k = 0; k < c->in; k++)
                                    sum += LOAD_WHOLE(w + k * MODEL_LANES) * (in[k] - r->zero);
                            }
                            put(c, r, &sum, channel, count, y, at);
                            j++;
                        }
                }
            NEXT_TILE(tile, c->kernel[0] * c->kernel[1] * c->in * MODEL_LANES);
        }
}

/* == pool == */
struct pool {
    count_t channels, height, width, rows, columns;
    uint8_t kernel[2], stride[2], padding[2];
    uint8_t counted; /* what lies beyond the edges counts in a mean */
};

/* == pool_largest == */
static void pool_largest(const struct pool *p, const float *x, float *y)
{
    int c, i, j, ky, kx;
    for (i = 0; i < p->rows; i++)
        for (j = 0; j < p->columns; j++)
            for (c = 0; c < p->channels; c++) {
                float best = -FLT_MAX;
                for (ky = 0; ky < p->kernel[0]; ky++)
                    for (kx = 0; kx < p->kernel[1]; kx++) {
                        const int row = i * p->stride[0] + ky - p->padding[0];
                        const int column = j * p->stride[1] + kx - p->padding[1];
                        if (row >= 0 && row < p->height && column >= 0 && column < p->width) {
                            const float v = x[(int32_t)(row * p->width + column) * p->channels + c];
                            best = v > best ? v : best;
                        }
                    }
                y[(int32_t)(i * p->columns + j) * p->channels + c] = best;
            }
}

/* == pool_largest_back == */
/* Each window's gradient goes to its first largest element. */
static void pool_largest_back(const struct pool *p, const float *g, const float *x, float *y)
{
    int c, i, j, ky, kx;
    int32_t k;
    for (k = 0; k < (int32_t)p->height * p->width * p->channels; k++)
        y[k] = 0.0f;
    for (i = 0; i < p->rows; i++)
        for (j = 0; j < p->columns; j++)
            for (c = 0; c < p->channels; c++) {
                float best = -FLT_MAX;
                int32_t at = -1;
                for (ky = 0; ky < p->kernel[0]; ky++)
                    for (kx = 0; kx < p->kernel[1]; kx++) {
                        const int row = i * p->stride[0] + ky - p->padding[0];
                        const int column = j * p->stride[1] + kx - p->padding[1];
                        if (row >= 0 && row < p->height && column >= 0 && column < p->width) {
                            k = (int32_t)(row * p->width + column) * p->channels + c;
                            if (at < 0 || x[k] > best) {
                                best = x[k];
                                at = k;
                            }
                        }
                    }
                if (at >= 0)
                    y[at] += g[(int32_t)(i * p->columns + j) * p->channels + c];
            }
}

/* == pool_count == */
static int pool_count(const struct pool *p, int i, int j)
{
    int top = i * p->stride[0] - p->padding[0], left = j * p->stride[1] - p->padding[1];
    int bottom = top + p->kernel[0], right = left + p->kernel[1];
    if (p->counted) { /* but for what a last, uneven window has beyond the padding */
        bottom = bottom < p->height + p->padding[0] ? bottom : p->height + p->padding[0];
        right = right < p->width + p->padding[1] ? right : p->width + p->padding[1];
    } else {
        top = top > 0 ? top : 0;
        left = left > 0 ? left : 0;
        bottom = bottom < p->height ? bottom : p->height;
        right = right < p->width ? right : p->width;
    }
    return (bottom - top) * (right - left);
}

/* == pool_mean == */
static void pool_mean(const struct pool *p, const float *x, float *y)
{
    int c, i, j, ky, kx;
    for (i = 0; i < p->rows; i++)
        for (j = 0; j < p->columns; j++)
            for (c = 0; c < p->channels; c++) {
                float sum = 0.0f;
                for (ky = 0; ky < p->kernel[0]; ky++)
                    for (kx = 0; kx < p->kernel[1]; kx++) {
                        const int row = i * p->stride[0] + ky - p->padding[0];
                        const int column = j * p->stride[1] + kx - p->padding[1];
                        if (row >= 0 && row < p->height && column >= 0 && column < p->width)
                            sum += x[(int32_t)(row * p->width + column) * p->channels + c];
                    }
                y[(int32_t)(i * p->columns + j) * p->channels + c] = sum / (float)pool_count(p, i, j);
            }
}

/* == pool_mean_back == */
static void pool_mean_back(const struct pool *p, const float *g, float *y)
{
    int c, i, j, ky, kx;
    int32_t k;
    for (k = 0; k < (int32_t)p->height * p->width * p->channels; k++)
        y[k] = 0.0f;
    for (i = 0; i < p->rows; i++)
        for (j = 0; j < p->columns; j++)
            for (c = 0; c < p->channels; c++) {
                const float part = g[(int32_t)(i * p->columns + j) * p->channels + c] / (float)pool_count(p, i, j);
                for (ky = 0; ky < p->kernel[0]; ky++)
                    for (kx = 0; kx < p->kernel[1]; kx++) {
                        const int row = i * p->stride[0] + ky - p->padding[0];
                        const int column = j * p->stride[1] + kx - p->padding[1];
                        if (row >= 0 && row < p->height && column >= 0 && column < p->width)
                            y[(int32_t)(row * p->width + column) * p->channels + c] += part;
                    }
            }
}

/* == conv_down == */
/* Row by row, the output behind the input in one piece of memory: it overwrites rows that are used up. */
static void conv_down(const struct conv *c, const float *x, float *y, float *tile)
{
    int row;
    for (row = 0; row < c->rows; row++)
        convolve(c, x, y, tile, row, row + 1);
}

/* == conv_up == */
/* The same from the last row on, the output ahead of the input. */
static void conv_up(const struct conv *c, const float *x, float *y, float *tile)
{
    int row;
    for (row = c->rows; row-- > 0;)
        convolve(c, x, y, tile, row, row + 1);
}

/* ebm: compact, 1 x 28 x 28
   Written by lowenergy; see model.h. */
#include "model.h"

#include <float.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

typedef uint16_t count_t;
#define MOST_TAPS 25

#if MODEL_KEEP
#define TILE(place, kept) (a + 6864 + (kept))
#elif MODEL_LANES > 1
#define TILE(place, kept) (a + 6864)
#else
#define TILE(place, kept) (a + (place))
#endif

static float float_of(uint32_t bits)
{
    union {
        uint32_t bits;
        float value;
    } both;
    both.bits = bits;
    return both.value;
}

static uint32_t bits_of(float value)
{
    union {
        uint32_t bits;
        float value;
    } both;
    both.value = value;
    return both.bits;
}

/* A float16; no infinities. */
static float half(uint16_t h)
{
    const uint32_t bits = (uint32_t)(h & 0x8000u) << 16 | (uint32_t)(h & 0x7fffu) << 13;
    return float_of(bits) * 5.192296858534828e33f; /* 2^112, by which the exponents differ */
}

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

static uint32_t read_bits(const uint8_t *from, uint32_t bit, unsigned count)
{
    const uint8_t *p = from + (bit >> 3);
    const uint32_t three = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2];
    return three >> (24u - count - (unsigned)(bit & 7u)) & (((uint32_t)1 << count) - 1u);
}

static void fetch_coded(const struct weight *w, uint32_t at, int outer, int inner, float *to, int a, int b)
{
    const uint16_t *words = w->values, *word;
    uint32_t bit = at / w->length * w->bits;
    int i, j, left = w->length - (int)(at % w->length);
    word = words + read_bits(w->codes, bit, w->bits) * w->length + (w->length - left);
    for (i = 0; i < outer; i++)
        for (j = 0; j < inner; j++) {
            if (!left) {
                bit += w->bits;
                word = words + read_bits(w->codes, bit, w->bits) * w->length;
                left = w->length;
            }
            to[i * a + j * b] = half(*word++);
            left--;
        }
}

static void fetch_half(const struct weight *w, uint32_t at, int outer, int inner, float *to, int a, int b)
{
    uint32_t k = at;
    int i, j;
    for (i = 0; i < outer; i++)
        for (j = 0; j < inner; j++, k++)
            to[i * a + j * b] = half(((const uint16_t *)w->values)[k]);
}

/* outer x inner weights that follow one another, from the one at `at` on, all in one row; the one at (i, j)
   goes to to[i * a + j * b]. */
static void fetch(const struct weight *w, uint32_t at, int outer, int inner, float *to, int a, int b)
{
    switch (w->kind) {
    case 1:
        fetch_coded(w, at, outer, inner, to, a, b);
        break;
    default:
        fetch_half(w, at, outer, inner, to, a, b);
        break;
    }
}

#if MODEL_LANES > 1
static const float zeros[256] = {0};
#endif

static float larger(float a, float b)
{
    return a > b ? a : b;
}

static float smaller(float a, float b)
{
    return a < b ? a : b;
}

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

static float sigmoid(float x)
{
    return 1.0f / (1.0f + exponential(-x));
}

static float swish_slope(float x)
{
    const float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

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

/* The next of a sequence of 2^32 numbers: a counter, mixed (Wellons's lowbias32). */
static uint32_t draw(uint32_t *random)
{
    uint32_t x = *random += 0x9e3779b9u;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

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

/* Row by row, the output behind the input in one piece of memory: it overwrites rows that are used up. */
static void conv_down(const struct conv *c, const float *x, float *y, float *tile)
{
    int row;
    for (row = 0; row < c->rows; row++)
        convolve(c, x, y, tile, row, row + 1);
}

/* The same from the last row on, the output ahead of the input. */
static void conv_up(const struct conv *c, const float *x, float *y, float *tile)
{
    int row;
    for (row = c->rows; row-- > 0;)
        convolve(c, x, y, tile, row, row + 1);
}

static const float w0_features_0_conv_bias[16] = {
    -0.48339844f, 0.08270264f, -0.25585938f, 0.028747559f, -0.39379883f, 0.006919861f, -0.12322998f, -0.24743652f,
    0.038757324f, -0.06713867f, 0.13024902f, -0.7583008f, 0.64941406f, 0.8256836f, -0.31347656f, 0.09979248f
};
static const float w2_features_2_conv_bias[16] = {
    -0.48583984f, -0.23779297f, -0.16601562f, -0.03515625f, -0.7519531f, -0.21179199f, -0.03677368f, -0.0040664673f,
    -0.69433594f, -0.13476562f, -0.04711914f, -0.68359375f, 0.30981445f, -0.17346191f, -0.765625f, 0.13330078f
};
static const float w4_features_4_conv_bias[16] = {
    -0.039276123f, 0.22229004f, 0.25390625f, 0.64990234f, 0.19091797f, -0.41577148f, -0.013114929f, -0.31958008f,
    0.10272217f, 0.01096344f, -0.59765625f, -0.7207031f, -0.11517334f, -0.38598633f, -0.3881836f, -0.89160156f
};
static const float w6_features_6_conv_bias[16] = {
    -0.66015625f, -0.19128418f, 0.27124023f, 0.5986328f, -1.5693359f, 0.6582031f, 0.29492188f, 0.4699707f, 0.22802734f,
    0.06365967f, -0.9614258f, -0.21691895f, -0.9321289f, -0.21203613f, -0.06640625f, -1.1289062f
};
static const float w8_features_8_conv_bias[16] = {
    0.9838867f, -0.32250977f, -0.42919922f, -0.5185547f, -0.5859375f, -0.46362305f, -0.16113281f, 0.39624023f,
    -0.44335938f, -0.3955078f, -0.3154297f, 0.085876465f, 0.02053833f, -0.6748047f, -1.3164062f, -0.8613281f
};
static const float w10_features_10_conv_bias[16] = {
    0.28344727f, 0.6176758f, -0.02708435f, 0.008087158f, -0.28027344f, -0.15270996f, 0.03378296f, 0.16760254f,
    -0.17358398f, 0.67822266f, 0.1685791f, -0.4050293f, 0.016479492f, -1.3798828f, 0.24536133f, -0.1751709f
};
static const float w12_features_12_conv_bias[16] = {
    -0.2376709f, -0.056762695f, -0.7709961f, -0.42407227f, 0.6323242f, -0.40405273f, -0.40405273f, -0.64746094f,
    1.15625f, 1.3935547f, 0.37670898f, 1.8623047f, 0.6796875f, 1.5166016f, -0.2578125f, -0.38061523f
};
static const float w14_features_14_conv_bias[16] = {
    -5.59375f, 0.22973633f, 1.4453125f, -2.9667969f, -0.82177734f, 4.2421875f, 0.4946289f, 6.5351562f, -0.87646484f,
    3.921875f, -0.14941406f, -4.8203125f, 0.6479492f, -1.4648438f, 2.5800781f, -1.5214844f
};
static const float w16_features_16_conv_bias[16] = {
    -14.015625f, -11.6484375f, 4.921875f, -3.9609375f, 1.7871094f, -0.31811523f, -5.2226562f, -9.6171875f, 2.9414062f,
    -1.6582031f, 1.0263672f, -2.5546875f, -14.515625f, -2.6074219f, -3.2128906f, 5.6835938f
};
static const float w18_fc_bias[1] = {
    1.3154297f
};
static const float w20_constant0[1] = {
    1.0f
};
static const uint16_t w1_features_0_conv_weight_values[400] = {
    9044, 6572, 9662, 6594, 42739, 8761, 10268, 44107, 45195, 39612, 11287, 12622, 45848, 46512, 8489, 12406, 13103,
    45401, 46553, 44709, 11265, 12840, 11941, 44213, 40477, 36076, 6564, 44116, 43965, 42561, 5576, 43321, 46103, 45133,
    41300, 44120, 9713, 15900, 45102, 43534, 42699, 6764, 45243, 45412, 35482, 8059, 43110, 43882, 7659, 9324, 10985,
    12396, 13241, 13304, 40798, 8034, 10571, 45427, 47053, 46321, 10097, 10314, 46218, 45712, 12409, 9784, 44144, 44950,
    12941, 12629, 8574, 10654, 11735, 11996, 11234, 40488, 9553, 8866, 9264, 10124, 5589, 41462, 44603, 44419, 43187,
    43473, 43592, 47305, 45821, 43388, 10361, 12212, 15941, 10372, 43082, 42513, 44034, 44757, 43327, 8552, 11396, 11610,
    9700, 43593, 37423, 12503, 11267, 46287, 44466, 12238, 12624, 45414, 47761, 8613, 13089, 11222, 45183, 45401, 13323,
    11427, 10913, 43404, 11528, 10955, 43323, 42381, 43206, 44602, 42169, 11422, 44344, 46030, 45930, 11805, 12318,
    45185, 46172, 13207, 14551, 12552, 45194, 43148, 14207, 13560, 44884, 43010, 12389, 11699, 44685, 45256, 39933,
    40583, 7037, 38546, 41900, 42174, 40323, 6479, 43823, 43930, 43147, 42001, 44317, 45726, 44897, 43785, 43969, 45638,
    45503, 44060, 43182, 44493, 44243, 43572, 40238, 11124, 11523, 12583, 13147, 12388, 9360, 12364, 14317, 14607, 12760,
    10137, 9595, 44726, 46687, 45284, 11118, 44207, 46653, 47060, 44418, 41349, 44279, 45119, 44196, 43949, 8314, 9903,
    9264, 9319, 8639, 9109, 5876, 40125, 42879, 10317, 39220, 43777, 42787, 46183, 44367, 6926, 44431, 46369, 15926,
    46074, 40405, 42720, 43421, 43534, 43861, 42102, 10948, 9702, 10585, 8024, 11268, 12777, 12467, 11728, 42694, 11139,
    13027, 12581, 45179, 44599, 11724, 13635, 43382, 46216, 45243, 4197, 11345, 44201, 45159, 44216, 8936, 8608, 41568,
    42204, 41217, 8705, 40624, 5356, 45316, 42675, 38370, 43865, 45772, 15997, 45941, 41507, 43371, 45127, 45149, 43896,
    39758, 43006, 41952, 43529, 39338, 41951, 11781, 12497, 11111, 10286, 11033, 44972, 43437, 41071, 10197, 45855,
    47618, 46972, 44351, 11161, 9952, 44278, 11799, 12152, 10349, 11911, 12875, 12414, 8974, 10373, 42650, 40434, 6161,
    42999, 43605, 43274, 42236, 43037, 44472, 44901, 43580, 44213, 6269, 12944, 12260, 43876, 44052, 13315, 15124, 14141,
    44532, 44513, 12357, 13844, 13068, 43240, 43250, 4512, 43553, 44217, 41290, 11340, 12845, 10368, 44790, 10574, 13053,
    14695, 13602, 42566, 7564, 10853, 13452, 12759, 42431, 43926, 43872, 40099, 42628, 43272, 44281, 7555, 41495, 12357,
    11442, 42687, 7968, 12162, 13976, 12159, 5568, 44783, 45489, 14089, 13899, 11186, 46168, 47750, 46028, 12203, 7464,
    44109, 45789, 43569, 9835, 10433, 10642, 9764, 10388, 5195, 42145, 40296, 12542, 11693, 11368, 44184, 45908, 14143,
    46172, 42334, 45683, 46190, 15452, 46643, 44071, 43964, 43223, 12469, 45307, 44104
};
static const struct weight w1_features_0_conv_weight_stored = {w1_features_0_conv_weight_values, 0, 0, 0, 25, 4, 0, 0};
static const uint16_t w3_features_2_conv_weight_words[192] = {
    44039, 43808, 44482, 10236, 48430, 46307, 41432, 46467, 44906, 10977, 46349, 10302, 12282, 12744, 12658, 41615,
    48350, 46940, 12402, 12478, 11035, 45923, 48486, 11290, 44088, 13156, 9769, 45336, 9713, 13403, 10751, 43737, 45257,
    45188, 46582, 43770, 8610, 46299, 46081, 44755, 46471, 5006, 10841, 44515, 8904, 43983, 46467, 47545, 44201, 45413,
    45001, 41907, 11330, 45143, 10812, 13139, 14333, 44223, 44244, 46258, 46066, 47507, 42629, 8733, 12610, 43449, 45737,
    45970, 45618, 12344, 46246, 46847, 45862, 44695, 42733, 41118, 46898, 46123, 42781, 43686, 9371, 10962, 13436, 12642,
    45937, 46759, 46475, 46693, 46542, 4892, 9857, 11031, 10308, 45462, 45103, 43851, 41272, 45638, 43739, 43420, 45856,
    12689, 10697, 48006, 11055, 43279, 47018, 44260, 7473, 10550, 41809, 46215, 45486, 12763, 12716, 13355, 13354, 12274,
    38748, 45133, 46076, 9496, 10993, 40494, 44255, 43267, 6110, 14355, 9817, 46295, 48961, 14377, 10570, 45485, 11654,
    11869, 10627, 42220, 46160, 43898, 46672, 44242, 44734, 43402, 5952, 47133, 42648, 10403, 11877, 13353, 11919, 47543,
    12422, 11705, 11923, 41826, 41325, 6013, 8611, 44049, 42668, 40098, 45093, 45238, 44792, 10098, 42159, 46616, 8245,
    12062, 11700, 11586, 12653, 9512, 12649, 44339, 48178, 9567, 41592, 43138, 38920, 45097, 44634, 12194, 13638, 11741,
    43082, 11437, 11274, 7214, 43545, 10840
};
static const uint8_t w3_features_2_conv_weight_codes[578] = {
    247, 213, 123, 208, 13, 92, 91, 187, 239, 127, 145, 54, 147, 156, 75, 37, 11, 150, 210, 74, 104, 32, 77, 36, 239,
    116, 16, 158, 126, 4, 221, 59, 123, 147, 81, 185, 121, 46, 116, 164, 169, 10, 91, 250, 116, 67, 105, 16, 114, 242,
    183, 70, 78, 64, 214, 254, 239, 115, 109, 26, 166, 214, 254, 183, 159, 173, 154, 23, 177, 210, 244, 59, 189, 53, 117,
    51, 253, 57, 133, 8, 26, 123, 30, 222, 247, 245, 18, 182, 75, 216, 128, 221, 116, 19, 206, 227, 212, 157, 201, 108,
    107, 111, 35, 235, 252, 209, 232, 59, 183, 146, 123, 225, 237, 26, 209, 229, 116, 251, 238, 254, 34, 217, 141, 26,
    151, 184, 123, 55, 137, 34, 125, 57, 120, 239, 222, 123, 157, 45, 171, 142, 213, 121, 238, 52, 104, 213, 128, 221,
    53, 77, 181, 4, 192, 165, 63, 202, 78, 77, 231, 18, 66, 187, 44, 212, 32, 161, 43, 194, 67, 245, 74, 255, 144, 41,
    223, 244, 81, 157, 15, 252, 144, 195, 59, 122, 205, 13, 163, 75, 222, 123, 152, 254, 36, 187, 37, 38, 154, 40, 147,
    93, 38, 89, 254, 228, 214, 248, 127, 122, 134, 164, 96, 190, 254, 181, 227, 188, 94, 55, 53, 121, 239, 184, 18, 71,
    187, 237, 7, 222, 70, 89, 84, 75, 65, 39, 239, 189, 16, 186, 93, 59, 120, 156, 109, 215, 86, 59, 120, 46, 228, 66,
    75, 244, 112, 199, 218, 121, 175, 249, 199, 77, 90, 122, 65, 132, 108, 107, 103, 247, 91, 239, 209, 173, 113, 108,
    77, 52, 212, 237, 252, 144, 174, 245, 91, 111, 10, 1, 238, 222, 206, 230, 233, 144, 191, 198, 151, 245, 181, 225, 52,
    9, 67, 191, 164, 167, 241, 150, 213, 207, 177, 186, 102, 147, 118, 116, 191, 249, 204, 222, 197, 217, 23, 27, 67,
    222, 226, 205, 53, 10, 157, 45, 0, 0, 251, 122, 205, 59, 131, 189, 120, 123, 67, 180, 104, 221, 47, 178, 77, 77, 215,
    141, 248, 104, 215, 154, 143, 247, 131, 121, 168, 52, 108, 192, 251, 71, 70, 190, 13, 18, 142, 121, 93, 0, 32, 131,
    11, 231, 189, 195, 236, 238, 255, 77, 30, 206, 59, 253, 202, 43, 45, 81, 234, 36, 124, 105, 30, 26, 210, 111, 187,
    64, 9, 30, 239, 203, 244, 147, 149, 90, 0, 1, 6, 18, 75, 249, 65, 3, 142, 109, 234, 80, 165, 239, 184, 231, 57, 14,
    25, 185, 21, 225, 20, 123, 208, 126, 36, 9, 13, 67, 99, 200, 245, 210, 43, 123, 10, 217, 107, 206, 147, 126, 128,
    176, 62, 196, 109, 77, 219, 133, 196, 227, 140, 251, 203, 23, 131, 228, 2, 145, 113, 77, 190, 210, 249, 38, 207, 139,
    244, 240, 163, 138, 159, 177, 23, 191, 134, 222, 205, 253, 87, 114, 125, 53, 215, 140, 123, 127, 51, 144, 227, 58,
    108, 106, 148, 26, 39, 34, 154, 20, 36, 85, 126, 0, 90, 238, 203, 17, 50, 149, 150, 1, 28, 31, 44, 126, 236, 132,
    150, 135, 52, 142, 185, 182, 61, 90, 103, 86, 148, 182, 8, 218, 3, 196, 30, 123, 142, 192, 225, 233, 36, 165, 91,
    245, 121, 162, 197, 66, 73, 53, 121, 231, 149, 162, 247, 158, 123, 86, 160, 1, 91, 228, 145, 61, 117, 1, 167, 180, 0,
    0
};
static const struct weight w3_features_2_conv_weight_stored = {w3_features_2_conv_weight_words, w3_features_2_conv_weight_codes, 0, 0, 144, 1, 6, 3};
static const uint16_t w5_features_4_conv_weight_words[16] = {
    43319, 46515, 9438, 12640, 46165, 45074, 45692, 12288, 41123, 48208, 14251, 47373, 10914, 46862, 44116, 13386
};
static const uint8_t w5_features_4_conv_weight_codes[1154] = {
    12, 197, 2, 40, 40, 229, 14, 126, 204, 8, 44, 8, 124, 32, 204, 35, 204, 200, 120, 206, 71, 247, 124, 82, 86, 5, 44,
    56, 88, 238, 238, 32, 200, 192, 94, 88, 117, 12, 80, 226, 7, 68, 11, 40, 206, 14, 140, 101, 120, 12, 224, 134, 80,
    136, 226, 200, 204, 204, 7, 34, 40, 238, 238, 199, 136, 231, 200, 0, 124, 15, 53, 35, 88, 108, 24, 141, 44, 197, 86,
    134, 40, 204, 232, 108, 85, 128, 136, 209, 38, 16, 248, 122, 114, 255, 103, 34, 93, 2, 98, 117, 198, 14, 17, 94, 110,
    239, 91, 199, 199, 123, 40, 63, 226, 84, 84, 230, 88, 114, 107, 118, 111, 85, 0, 11, 51, 66, 130, 195, 160, 247, 32,
    114, 211, 194, 192, 85, 85, 119, 229, 15, 143, 112, 205, 115, 35, 194, 204, 119, 200, 197, 126, 128, 60, 128, 2, 8,
    88, 32, 2, 236, 36, 204, 124, 83, 236, 174, 0, 34, 136, 95, 124, 60, 88, 198, 224, 229, 34, 114, 120, 238, 37, 39,
    69, 198, 80, 92, 132, 3, 110, 96, 62, 96, 116, 88, 135, 134, 136, 88, 0, 130, 200, 2, 136, 0, 104, 232, 94, 2, 46, 7,
    86, 32, 142, 252, 239, 198, 142, 14, 100, 112, 124, 98, 100, 54, 114, 85, 94, 65, 207, 126, 224, 197, 142, 248, 60,
    47, 53, 247, 192, 247, 2, 135, 82, 131, 116, 120, 96, 112, 86, 51, 200, 64, 60, 119, 88, 88, 134, 72, 93, 0, 12, 48,
    138, 133, 46, 224, 232, 36, 135, 229, 55, 124, 247, 197, 224, 34, 0, 101, 231, 86, 84, 213, 84, 195, 124, 63, 250,
    24, 5, 30, 238, 140, 126, 198, 21, 94, 206, 197, 78, 134, 85, 37, 214, 84, 23, 197, 167, 118, 122, 7, 165, 178, 51,
    200, 119, 35, 252, 38, 60, 236, 37, 117, 24, 198, 255, 135, 2, 232, 135, 88, 38, 37, 88, 55, 5, 16, 16, 135, 80, 88,
    112, 236, 37, 0, 255, 34, 12, 246, 81, 211, 112, 101, 94, 5, 130, 39, 126, 35, 117, 130, 34, 85, 84, 199, 242, 49,
    33, 208, 175, 85, 0, 7, 40, 236, 230, 25, 180, 72, 128, 60, 103, 167, 195, 202, 173, 67, 243, 54, 98, 7, 230, 113,
    117, 58, 110, 100, 56, 160, 94, 165, 167, 3, 53, 127, 102, 239, 167, 67, 172, 12, 195, 193, 134, 30, 136, 231, 172,
    119, 87, 2, 205, 244, 66, 228, 101, 180, 77, 68, 224, 194, 119, 214, 133, 92, 237, 119, 254, 206, 238, 83, 52, 34,
    119, 4, 38, 200, 35, 40, 71, 102, 133, 216, 122, 250, 162, 110, 76, 164, 51, 131, 118, 3, 68, 142, 127, 4, 24, 85,
    96, 37, 114, 28, 194, 20, 96, 54, 119, 255, 135, 242, 84, 60, 44, 8, 240, 143, 39, 114, 238, 40, 126, 119, 231, 6,
    117, 87, 34, 85, 55, 135, 245, 1, 78, 112, 114, 110, 102, 96, 37, 44, 115, 224, 204, 119, 194, 44, 230, 82, 134, 119,
    34, 130, 51, 49, 221, 142, 83, 44, 197, 236, 51, 30, 133, 143, 51, 50, 124, 78, 112, 130, 92, 245, 231, 199, 50, 207,
    102, 108, 88, 12, 61, 212, 109, 69, 87, 101, 140, 204, 142, 108, 112, 2, 46, 195, 80, 242, 204, 200, 39, 55, 119,
    118, 5, 51, 80, 5, 119, 136, 72, 140, 40, 56, 128, 108, 12, 200, 199, 206, 5, 224, 238, 131, 85, 1, 117, 239, 131,
    118, 12, 102, 135, 227, 37, 114, 85, 142, 46, 8, 115, 92, 126, 23, 204, 44, 232, 82, 87, 38, 33, 85, 236, 46, 15,
    131, 39, 82, 194, 205, 226, 69, 128, 114, 243, 55, 252, 83, 232, 199, 40, 72, 2, 29, 32, 6, 108, 102, 248, 250, 7, 0,
    120, 5, 14, 110, 231, 126, 126, 231, 88, 160, 7, 37, 6, 77, 81, 88, 124, 37, 255, 175, 118, 231, 215, 63, 200, 228,
    56, 35, 92, 80, 229, 54, 83, 229, 199, 90, 247, 60, 85, 88, 112, 124, 5, 5, 79, 94, 118, 44, 92, 46, 240, 195, 97,
    77, 100, 101, 35, 113, 160, 32, 6, 55, 60, 167, 243, 194, 195, 46, 2, 122, 14, 226, 135, 142, 72, 104, 236, 39, 70,
    136, 135, 85, 36, 96, 44, 32, 232, 34, 112, 195, 78, 247, 44, 7, 38, 136, 232, 39, 140, 133, 83, 80, 136, 142, 0, 0,
    80, 46, 110, 46, 82, 14, 107, 92, 177, 34, 231, 72, 84, 229, 120, 229, 101, 85, 226, 12, 66, 26, 37, 124, 44, 101,
    36, 51, 51, 92, 125, 142, 229, 111, 51, 239, 46, 82, 202, 8, 29, 198, 138, 71, 5, 134, 64, 60, 37, 244, 219, 140, 23,
    198, 175, 131, 138, 95, 246, 19, 86, 182, 80, 194, 199, 164, 46, 32, 206, 167, 248, 78, 247, 60, 87, 206, 32, 127,
    228, 36, 216, 242, 174, 47, 39, 40, 119, 6, 196, 20, 229, 24, 246, 35, 130, 124, 87, 12, 70, 132, 67, 101, 142, 239,
    127, 202, 142, 63, 87, 126, 14, 142, 231, 204, 126, 23, 94, 44, 204, 230, 114, 8, 34, 195, 96, 85, 196, 109, 47, 103,
    252, 56, 6, 98, 112, 254, 239, 37, 114, 102, 195, 7, 117, 6, 120, 231, 108, 56, 140, 210, 81, 120, 119, 64, 240, 130,
    143, 38, 92, 232, 133, 108, 44, 240, 252, 192, 92, 38, 207, 178, 0, 250, 112, 226, 112, 87, 51, 35, 247, 44, 0, 39,
    227, 12, 40, 12, 228, 245, 204, 34, 34, 87, 46, 56, 230, 15, 134, 224, 115, 163, 71, 170, 56, 255, 86, 243, 195, 44,
    120, 116, 112, 12, 70, 197, 221, 88, 199, 194, 99, 250, 4, 234, 123, 136, 51, 204, 130, 94, 194, 119, 21, 86, 23,
    114, 140, 40, 140, 50, 32, 200, 96, 101, 55, 8, 128, 172, 63, 236, 226, 250, 127, 62, 8, 207, 103, 181, 229, 136,
    110, 6, 85, 244, 32, 204, 124, 136, 96, 30, 40, 34, 122, 90, 86, 97, 22, 248, 166, 219, 181, 202, 210, 220, 124, 103,
    72, 99, 227, 126, 47, 111, 197, 126, 130, 240, 254, 24, 102, 124, 255, 115, 140, 243, 245, 44, 72, 142, 229, 5, 136,
    34, 10, 229, 92, 227, 192, 6, 14, 242, 50, 66, 194, 19, 243, 124, 134, 178, 229, 117, 229, 134, 187, 81, 108, 14, 67,
    176, 94, 112, 180, 89, 70, 72, 63, 250, 175, 170, 131, 15, 175, 127, 51, 55, 225, 100, 93, 214, 206, 11, 219, 181,
    42, 242, 162, 63, 239, 224, 93, 28, 98, 255, 255, 10, 58, 204, 20, 9, 102, 232, 84, 70, 172, 7, 83, 196, 209, 85, 99,
    77, 29, 77, 129, 47, 175, 250, 51, 39, 0, 0
};
static const struct weight w5_features_4_conv_weight_stored = {w5_features_4_conv_weight_words, w5_features_4_conv_weight_codes, 0, 0, 144, 1, 4, 1};
static const uint16_t w7_features_6_conv_weight_words[192] = {
    44057, 44205, 42928, 11355, 12306, 11455, 10986, 45247, 47118, 40369, 8578, 9694, 44912, 45608, 45634, 45733, 45823,
    44448, 13278, 14034, 13973, 12607, 11674, 43219, 45473, 41994, 11487, 44585, 45175, 42409, 10886, 45161, 46051,
    12846, 13639, 13241, 12624, 42656, 44761, 44986, 11869, 13235, 43078, 43045, 8681, 44256, 45284, 44917, 41709, 46193,
    46173, 7018, 43983, 43891, 10936, 11435, 37081, 14911, 14103, 14704, 43797, 11590, 11718, 46332, 46640, 45765, 42387,
    47217, 47033, 11471, 44472, 45132, 45671, 45907, 45541, 44564, 46210, 45149, 45068, 47324, 47218, 12117, 11810,
    46104, 8263, 40045, 40342, 43552, 45965, 45206, 11554, 10968, 44015, 43944, 44848, 44314, 47384, 47729, 47131, 46942,
    46748, 13277, 12340, 12843, 11883, 7147, 41837, 42924, 43483, 44398, 46280, 10391, 10624, 9795, 13598, 9744, 44170,
    42036, 42069, 11228, 41061, 45101, 45021, 10537, 12738, 12744, 12320, 11829, 42547, 10456, 42081, 43624, 45184,
    46003, 11440, 13377, 14746, 13950, 12248, 45179, 44986, 13007, 45125, 46804, 13417, 12520, 44148, 11648, 45474,
    46443, 13379, 13320, 11789, 45415, 45098, 10734, 11804, 41104, 45251, 44818, 46061, 46239, 44135, 43314, 6452, 10931,
    11823, 11532, 10653, 46723, 11874, 12230, 13416, 13347, 45932, 46487, 44810, 43129, 43334, 10027, 10081, 9278, 42457,
    45615, 10277, 13073, 9959, 10747, 11613, 46003, 45625, 42512
};
static const uint8_t w7_features_6_conv_weight_codes[578] = {
    52, 217, 235, 210, 176, 114, 200, 7, 201, 184, 196, 174, 65, 149, 223, 253, 145, 127, 167, 115, 235, 208, 199, 28,
    141, 35, 38, 7, 114, 61, 55, 212, 146, 162, 31, 125, 169, 246, 31, 143, 96, 252, 173, 45, 25, 255, 120, 164, 63, 105,
    106, 193, 36, 165, 200, 116, 58, 33, 72, 162, 80, 72, 202, 39, 254, 226, 138, 160, 112, 208, 187, 75, 49, 211, 210,
    6, 148, 81, 82, 122, 101, 204, 141, 231, 166, 45, 137, 38, 121, 246, 216, 211, 114, 28, 126, 193, 6, 99, 34, 139,
    152, 178, 195, 10, 40, 163, 37, 150, 219, 84, 18, 7, 224, 17, 69, 39, 35, 171, 239, 107, 150, 89, 101, 112, 61, 168,
    216, 4, 102, 168, 234, 75, 138, 219, 121, 159, 55, 195, 211, 13, 153, 199, 245, 117, 50, 251, 212, 167, 125, 78, 148,
    138, 138, 135, 208, 84, 136, 128, 110, 61, 245, 157, 151, 218, 226, 45, 211, 109, 12, 251, 69, 200, 114, 102, 180,
    100, 53, 142, 232, 32, 172, 170, 59, 142, 57, 101, 13, 26, 0, 56, 16, 67, 14, 56, 252, 148, 56, 227, 5, 37, 200, 35,
    111, 31, 163, 99, 221, 121, 16, 30, 89, 105, 101, 149, 234, 190, 4, 146, 62, 248, 31, 118, 33, 232, 195, 144, 199,
    164, 49, 227, 217, 38, 50, 68, 13, 119, 240, 230, 158, 199, 92, 97, 190, 173, 202, 209, 94, 112, 13, 156, 111, 115,
    103, 139, 20, 165, 37, 201, 32, 0, 0, 56, 130, 82, 169, 39, 223, 124, 145, 115, 210, 235, 163, 195, 42, 140, 127,
    115, 18, 12, 3, 139, 78, 101, 54, 36, 166, 51, 157, 193, 232, 100, 151, 255, 254, 135, 64, 94, 181, 18, 171, 232,
    227, 243, 180, 146, 170, 252, 105, 44, 189, 191, 213, 46, 227, 7, 121, 103, 117, 152, 222, 175, 216, 162, 126, 131,
    201, 34, 125, 247, 149, 246, 73, 30, 161, 217, 105, 87, 246, 82, 63, 3, 161, 165, 179, 231, 33, 134, 230, 135, 235,
    117, 94, 185, 250, 161, 244, 58, 43, 70, 152, 172, 39, 204, 238, 94, 98, 131, 223, 105, 166, 219, 188, 68, 26, 232,
    44, 126, 173, 6, 139, 202, 161, 173, 201, 49, 185, 173, 87, 211, 77, 52, 140, 195, 33, 147, 23, 58, 158, 221, 213,
    186, 252, 237, 254, 167, 36, 148, 21, 129, 9, 63, 98, 126, 249, 244, 178, 33, 92, 143, 218, 215, 63, 193, 93, 145,
    52, 176, 46, 193, 175, 109, 64, 38, 249, 54, 125, 209, 212, 166, 0, 55, 217, 193, 222, 115, 244, 137, 6, 177, 82, 78,
    203, 6, 203, 109, 7, 152, 88, 13, 208, 11, 26, 41, 250, 97, 168, 16, 153, 16, 118, 222, 88, 223, 236, 62, 227, 54,
    42, 165, 221, 74, 49, 125, 151, 235, 82, 117, 52, 124, 154, 98, 80, 26, 67, 148, 167, 193, 211, 144, 15, 81, 104, 22,
    120, 207, 131, 36, 152, 241, 233, 30, 254, 103, 163, 172, 255, 96, 220, 120, 79, 200, 142, 138, 200, 231, 202, 168,
    140, 147, 223, 54, 154, 134, 202, 111, 171, 59, 156, 166, 234, 18, 1, 139, 226, 72, 165, 26, 25, 198, 76, 42, 194,
    70, 22, 212, 140, 213, 164, 17, 242, 201, 98, 198, 200, 187, 109, 230, 87, 109, 25, 50, 115, 206, 8, 21, 0, 0
};
static const struct weight w7_features_6_conv_weight_stored = {w7_features_6_conv_weight_words, w7_features_6_conv_weight_codes, 0, 0, 144, 1, 6, 3};
static const uint16_t w9_features_8_conv_weight_words[16] = {
    43561, 46915, 15542, 47569, 13356, 46234, 45413, 11436, 14066, 15069, 8905, 12527, 49499, 12671, 48489, 45047
};
static const uint8_t w9_features_8_conv_weight_codes[1154] = {
    221, 13, 127, 86, 10, 175, 11, 165, 101, 221, 186, 125, 71, 219, 125, 0, 251, 160, 102, 97, 85, 96, 95, 255, 6, 247,
    167, 170, 7, 96, 170, 170, 251, 80, 127, 106, 111, 246, 246, 15, 6, 166, 5, 102, 90, 10, 191, 250, 13, 127, 127, 250,
    176, 112, 86, 102, 96, 0, 119, 119, 7, 11, 164, 166, 10, 95, 96, 22, 101, 96, 83, 81, 221, 216, 180, 91, 11, 77, 168,
    75, 68, 95, 95, 21, 11, 5, 16, 0, 84, 128, 10, 21, 245, 244, 112, 111, 246, 218, 112, 187, 189, 167, 123, 13, 6, 191,
    247, 21, 10, 183, 175, 186, 119, 11, 180, 189, 189, 10, 93, 209, 152, 191, 255, 17, 22, 241, 0, 253, 118, 170, 167,
    101, 180, 138, 81, 26, 81, 100, 17, 91, 111, 212, 70, 95, 101, 253, 217, 84, 217, 139, 218, 132, 125, 166, 102, 181,
    86, 167, 215, 96, 71, 250, 157, 136, 184, 138, 64, 173, 254, 88, 49, 20, 145, 111, 88, 107, 184, 209, 191, 216, 166,
    75, 53, 209, 48, 255, 161, 84, 23, 128, 90, 137, 80, 152, 160, 117, 153, 127, 240, 135, 90, 137, 160, 106, 123, 219,
    68, 100, 77, 66, 9, 132, 212, 75, 130, 132, 214, 166, 168, 71, 180, 152, 216, 75, 132, 255, 247, 22, 7, 122, 216,
    158, 109, 181, 141, 75, 157, 187, 69, 182, 76, 234, 29, 132, 189, 212, 219, 3, 64, 209, 63, 23, 26, 229, 113, 49,
    235, 72, 180, 70, 121, 221, 139, 6, 107, 10, 127, 215, 10, 72, 221, 185, 146, 185, 71, 123, 177, 91, 181, 184, 125,
    139, 72, 253, 125, 137, 152, 187, 208, 113, 91, 253, 240, 221, 8, 128, 173, 112, 250, 96, 111, 11, 209, 75, 245, 97,
    101, 17, 95, 53, 118, 246, 208, 106, 22, 95, 129, 13, 170, 103, 250, 119, 75, 112, 247, 187, 127, 183, 171, 91, 101,
    160, 164, 85, 20, 223, 91, 22, 22, 90, 10, 187, 93, 134, 84, 166, 240, 183, 116, 109, 5, 122, 21, 27, 10, 181, 16,
    51, 176, 5, 1, 21, 26, 96, 216, 164, 79, 134, 216, 247, 109, 85, 15, 99, 22, 221, 214, 139, 68, 66, 136, 107, 115,
    21, 21, 118, 248, 95, 127, 75, 23, 83, 17, 48, 213, 216, 69, 101, 68, 102, 95, 119, 138, 170, 68, 150, 111, 77, 91,
    213, 100, 221, 171, 177, 51, 189, 123, 130, 143, 17, 240, 107, 245, 122, 21, 136, 223, 72, 20, 136, 141, 240, 127,
    80, 170, 176, 56, 11, 79, 253, 168, 16, 83, 101, 21, 118, 251, 111, 165, 191, 5, 122, 244, 31, 70, 0, 11, 160, 127,
    166, 133, 251, 64, 15, 183, 31, 113, 0, 93, 11, 176, 0, 180, 107, 251, 212, 139, 51, 69, 216, 101, 113, 80, 182, 123,
    127, 189, 143, 186, 84, 145, 31, 128, 0, 85, 85, 244, 165, 240, 80, 176, 253, 221, 139, 218, 189, 175, 165, 95, 79,
    167, 103, 164, 7, 247, 7, 10, 1, 118, 6, 111, 101, 255, 81, 21, 85, 86, 5, 0, 95, 97, 213, 189, 111, 101, 10, 90, 21,
    245, 85, 0, 15, 122, 0, 103, 123, 175, 247, 164, 22, 53, 101, 17, 16, 102, 21, 240, 214, 11, 86, 65, 247, 58, 119,
    119, 247, 122, 167, 125, 0, 165, 248, 97, 213, 31, 83, 136, 213, 104, 86, 72, 218, 141, 221, 187, 21, 101, 170, 107,
    99, 221, 214, 68, 180, 40, 169, 144, 77, 120, 81, 86, 21, 53, 133, 72, 170, 27, 54, 84, 219, 168, 7, 159, 101, 19,
    246, 57, 125, 81, 85, 102, 88, 10, 41, 125, 180, 170, 123, 80, 64, 67, 184, 86, 132, 14, 160, 109, 180, 247, 32, 23,
    53, 29, 130, 132, 68, 74, 11, 101, 86, 8, 22, 251, 139, 13, 208, 208, 161, 7, 255, 112, 71, 169, 166, 214, 53, 5,
    208, 243, 251, 133, 84, 213, 170, 103, 181, 230, 218, 90, 85, 49, 215, 245, 118, 218, 223, 10, 186, 77, 218, 13, 221,
    74, 66, 47, 127, 101, 55, 175, 219, 20, 241, 132, 218, 93, 97, 21, 107, 213, 122, 191, 54, 85, 180, 167, 223, 119,
    221, 135, 127, 79, 77, 212, 11, 187, 6, 245, 246, 175, 183, 170, 175, 167, 240, 176, 10, 65, 253, 101, 161, 187, 116,
    106, 74, 221, 186, 186, 221, 138, 10, 250, 251, 244, 77, 181, 187, 119, 0, 119, 71, 175, 165, 119, 15, 250, 116, 175,
    187, 111, 80, 15, 191, 164, 113, 219, 166, 167, 6, 175, 219, 75, 176, 171, 168, 120, 132, 167, 189, 182, 68, 116,
    167, 161, 26, 64, 10, 26, 101, 221, 120, 136, 171, 117, 0, 107, 77, 186, 95, 107, 15, 5, 251, 96, 180, 151, 170, 102,
    111, 111, 22, 127, 251, 181, 164, 219, 245, 182, 21, 123, 186, 246, 87, 69, 247, 170, 212, 208, 184, 138, 87, 214,
    143, 189, 103, 173, 141, 79, 189, 117, 143, 251, 250, 119, 175, 81, 176, 101, 247, 51, 17, 221, 181, 11, 148, 218,
    211, 21, 189, 114, 40, 79, 25, 80, 182, 119, 160, 255, 213, 1, 119, 97, 95, 217, 109, 177, 133, 83, 5, 101, 96, 103,
    133, 250, 101, 111, 181, 255, 85, 122, 69, 85, 23, 6, 160, 93, 215, 64, 89, 191, 23, 86, 104, 81, 208, 133, 64, 80,
    245, 255, 29, 160, 21, 101, 191, 103, 167, 0, 189, 209, 81, 64, 244, 133, 83, 26, 1, 176, 79, 170, 184, 137, 132,
    135, 136, 136, 214, 171, 251, 71, 126, 57, 20, 13, 87, 36, 248, 180, 216, 67, 59, 49, 165, 189, 30, 181, 116, 69,
    210, 48, 241, 180, 9, 87, 10, 109, 119, 216, 217, 128, 77, 100, 73, 101, 83, 29, 40, 164, 61, 131, 93, 57, 131, 244,
    132, 216, 164, 22, 97, 103, 152, 23, 107, 214, 129, 152, 135, 69, 152, 221, 103, 0, 132, 84, 68, 221, 64, 216, 250,
    176, 117, 209, 231, 183, 171, 135, 72, 164, 136, 136, 218, 69, 19, 241, 95, 105, 87, 59, 97, 117, 33, 160, 117, 0,
    95, 19, 17, 24, 16, 143, 6, 5, 97, 184, 116, 164, 141, 213, 59, 87, 125, 246, 249, 115, 53, 16, 171, 39, 170, 106,
    251, 163, 125, 183, 164, 216, 136, 176, 132, 151, 178, 123, 107, 112, 132, 87, 216, 135, 75, 161, 251, 106, 165, 111,
    166, 31, 61, 69, 68, 24, 20, 245, 5, 87, 10, 27, 119, 10, 175, 93, 95, 170, 102, 219, 23, 189, 186, 215, 74, 176,
    107, 118, 117, 123, 13, 0, 19, 70, 130, 107, 101, 81, 243, 211, 250, 247, 31, 181, 56, 120, 107, 27, 68, 218, 218,
    219, 6, 128, 90, 83, 77, 56, 213, 0, 0
};
static const struct weight w9_features_8_conv_weight_stored = {w9_features_8_conv_weight_words, w9_features_8_conv_weight_codes, 0, 0, 144, 1, 4, 1};
static const uint16_t w11_features_10_conv_weight_words[16] = {
    45205, 12494, 49676, 44270, 48329, 47074, 13995, 46336, 15657, 11740, 13448, 14647, 47833, 9208, 45559, 43266
};
static const uint8_t w11_features_10_conv_weight_codes[1154] = {
    144, 121, 3, 63, 217, 255, 161, 235, 83, 196, 198, 187, 186, 188, 84, 182, 200, 219, 85, 30, 122, 87, 235, 91, 231,
    11, 219, 199, 25, 165, 161, 14, 121, 54, 158, 174, 85, 124, 201, 8, 139, 149, 167, 213, 199, 14, 154, 16, 254, 58,
    166, 229, 223, 122, 5, 224, 173, 159, 172, 99, 160, 87, 70, 181, 155, 87, 174, 103, 231, 237, 154, 53, 17, 157, 221,
    25, 62, 145, 217, 125, 217, 204, 204, 76, 52, 84, 76, 228, 203, 201, 145, 157, 115, 208, 53, 119, 83, 151, 233, 224,
    14, 144, 3, 122, 145, 170, 31, 255, 197, 204, 196, 5, 89, 1, 240, 211, 29, 57, 243, 224, 208, 234, 213, 223, 31, 218,
    29, 26, 241, 224, 117, 237, 126, 6, 145, 68, 68, 69, 229, 127, 145, 49, 121, 222, 253, 231, 229, 117, 250, 222, 149,
    202, 231, 137, 109, 188, 106, 88, 180, 137, 66, 34, 204, 214, 150, 219, 27, 85, 110, 173, 184, 51, 233, 208, 110,
    126, 230, 189, 90, 14, 92, 204, 115, 136, 190, 17, 237, 151, 198, 7, 9, 222, 84, 70, 126, 224, 125, 250, 53, 166,
    160, 246, 168, 10, 118, 156, 214, 135, 156, 246, 70, 90, 218, 110, 62, 106, 7, 112, 0, 16, 161, 147, 254, 59, 106,
    24, 132, 53, 187, 142, 134, 70, 60, 136, 112, 15, 22, 117, 94, 196, 109, 200, 60, 224, 167, 119, 117, 119, 234, 17,
    174, 85, 69, 19, 23, 190, 134, 97, 83, 247, 238, 117, 206, 238, 119, 7, 30, 94, 148, 110, 77, 224, 217, 174, 182,
    133, 94, 181, 89, 231, 68, 102, 119, 145, 30, 147, 103, 214, 211, 17, 221, 238, 234, 177, 213, 231, 197, 200, 26, 9,
    136, 84, 72, 136, 136, 132, 57, 78, 69, 175, 238, 183, 218, 204, 110, 144, 252, 209, 22, 199, 167, 105, 51, 7, 10,
    87, 134, 70, 229, 214, 85, 87, 94, 169, 16, 117, 158, 91, 105, 160, 101, 147, 60, 120, 106, 107, 180, 69, 136, 150,
    136, 225, 92, 161, 187, 236, 86, 22, 110, 204, 222, 147, 240, 238, 95, 150, 247, 81, 231, 185, 105, 108, 139, 213,
    126, 133, 65, 196, 230, 149, 94, 223, 246, 206, 85, 198, 161, 106, 227, 62, 112, 221, 87, 102, 9, 124, 225, 101, 83,
    80, 21, 234, 117, 153, 23, 218, 7, 61, 112, 255, 154, 14, 90, 13, 95, 103, 54, 169, 233, 196, 163, 230, 164, 26, 139,
    239, 140, 174, 198, 16, 108, 64, 147, 119, 14, 51, 155, 122, 121, 101, 7, 100, 133, 137, 139, 184, 136, 91, 40, 136,
    149, 195, 165, 26, 117, 88, 231, 86, 97, 92, 145, 125, 13, 233, 105, 106, 113, 85, 180, 171, 75, 151, 62, 5, 163,
    221, 112, 213, 87, 151, 102, 216, 90, 119, 144, 145, 161, 27, 245, 12, 29, 59, 69, 92, 101, 133, 187, 87, 181, 176,
    112, 233, 175, 57, 13, 112, 19, 170, 62, 49, 150, 28, 0, 180, 90, 70, 139, 188, 67, 228, 75, 75, 23, 127, 26, 97, 60,
    90, 167, 127, 59, 122, 102, 151, 5, 144, 234, 160, 237, 147, 62, 232, 84, 110, 94, 49, 233, 171, 119, 87, 253, 159,
    217, 19, 3, 122, 215, 237, 160, 231, 160, 249, 84, 206, 84, 72, 166, 143, 214, 27, 142, 230, 105, 121, 12, 157, 231,
    9, 85, 19, 154, 26, 174, 145, 53, 7, 187, 171, 53, 198, 196, 245, 69, 66, 165, 161, 230, 125, 21, 199, 107, 190, 56,
    112, 25, 55, 54, 150, 107, 0, 23, 55, 144, 184, 168, 175, 25, 92, 90, 106, 253, 145, 193, 215, 224, 202, 105, 76, 60,
    123, 113, 181, 225, 167, 107, 99, 139, 169, 184, 197, 175, 104, 126, 87, 236, 149, 199, 118, 211, 221, 233, 238, 102,
    14, 147, 238, 113, 70, 108, 139, 104, 18, 118, 72, 148, 136, 238, 14, 112, 127, 86, 196, 76, 84, 68, 17, 175, 153,
    173, 16, 222, 150, 113, 159, 87, 220, 119, 14, 175, 161, 211, 222, 254, 0, 233, 1, 62, 26, 225, 61, 122, 117, 94,
    231, 93, 1, 4, 197, 71, 20, 23, 97, 193, 23, 166, 150, 9, 169, 49, 107, 9, 25, 97, 87, 95, 151, 218, 23, 87, 28, 84,
    68, 181, 129, 76, 34, 37, 24, 3, 215, 221, 238, 11, 235, 80, 136, 184, 1, 209, 119, 81, 153, 31, 150, 213, 62, 48,
    181, 85, 184, 128, 23, 90, 14, 247, 19, 175, 225, 227, 165, 169, 163, 19, 22, 214, 234, 0, 49, 150, 92, 92, 183, 136,
    5, 187, 91, 103, 224, 57, 157, 215, 87, 48, 237, 240, 157, 49, 121, 145, 22, 103, 177, 136, 171, 129, 133, 52, 89,
    139, 232, 125, 183, 115, 85, 119, 10, 150, 103, 119, 97, 19, 238, 233, 61, 161, 170, 25, 112, 123, 27, 97, 134, 190,
    69, 26, 83, 160, 22, 97, 215, 125, 53, 170, 222, 63, 101, 7, 147, 86, 170, 180, 196, 90, 85, 197, 187, 182, 171, 74,
    186, 52, 30, 217, 112, 127, 151, 170, 93, 29, 89, 6, 62, 5, 115, 140, 200, 28, 132, 68, 68, 76, 75, 51, 49, 157, 214,
    217, 71, 172, 118, 92, 125, 105, 234, 105, 126, 13, 14, 25, 6, 21, 139, 123, 129, 190, 173, 89, 161, 171, 206, 62,
    19, 7, 105, 228, 250, 58, 9, 102, 250, 161, 22, 212, 74, 83, 139, 232, 135, 125, 225, 158, 235, 29, 17, 5, 83, 225,
    247, 224, 121, 13, 60, 111, 150, 85, 205, 182, 109, 231, 216, 139, 231, 196, 39, 5, 30, 117, 151, 73, 131, 184, 154,
    187, 193, 55, 10, 119, 5, 125, 97, 94, 55, 73, 212, 23, 205, 219, 28, 103, 85, 49, 224, 233, 117, 92, 89, 166, 10,
    163, 183, 129, 230, 182, 214, 248, 187, 11, 88, 179, 107, 0, 185, 103, 193, 16, 230, 151, 217, 144, 58, 145, 215,
    217, 190, 102, 89, 237, 22, 225, 186, 139, 100, 68, 34, 68, 68, 112, 30, 223, 209, 221, 196, 175, 187, 167, 213, 225,
    57, 121, 175, 9, 253, 115, 15, 199, 199, 84, 28, 16, 171, 23, 233, 234, 238, 9, 63, 147, 173, 241, 174, 235, 202, 80,
    119, 189, 246, 84, 68, 192, 184, 136, 253, 23, 190, 238, 145, 92, 0, 175, 219, 92, 92, 197, 85, 5, 205, 93, 245, 115,
    11, 103, 182, 85, 66, 194, 72, 180, 114, 16, 106, 6, 106, 99, 219, 225, 151, 219, 154, 86, 161, 62, 69, 182, 107,
    110, 7, 107, 173, 109, 58, 112, 53, 223, 159, 48, 227, 224, 249, 9, 230, 102, 221, 161, 91, 169, 218, 117, 186, 28,
    170, 91, 62, 103, 187, 186, 110, 53, 79, 158, 3, 110, 173, 0, 0
};
static const struct weight w11_features_10_conv_weight_stored = {w11_features_10_conv_weight_words, w11_features_10_conv_weight_codes, 0, 0, 144, 1, 4, 1};
static const uint16_t w13_features_12_conv_weight_words[16] = {
    10759, 48435, 44813, 14182, 46310, 13132, 47486, 46903, 8173, 47888, 13554, 45911, 15456, 13656, 14554, 12758
};
static const uint8_t w13_features_12_conv_weight_codes[1154] = {
    51, 112, 87, 138, 208, 47, 187, 68, 11, 100, 199, 96, 21, 221, 187, 237, 82, 12, 230, 246, 158, 50, 62, 75, 200, 94,
    101, 107, 248, 242, 226, 141, 71, 32, 177, 85, 144, 135, 222, 66, 197, 36, 34, 104, 209, 55, 107, 32, 215, 132, 241,
    132, 120, 218, 82, 146, 180, 34, 220, 233, 150, 129, 65, 6, 184, 43, 52, 182, 30, 249, 252, 188, 88, 4, 176, 135, 8,
    34, 40, 75, 184, 179, 158, 199, 254, 50, 183, 5, 95, 251, 3, 72, 225, 187, 176, 36, 160, 147, 139, 89, 98, 6, 152,
    111, 7, 5, 130, 34, 249, 66, 7, 116, 158, 38, 168, 131, 167, 229, 139, 6, 131, 248, 127, 8, 75, 249, 71, 57, 135,
    242, 108, 200, 204, 203, 204, 32, 168, 38, 79, 12, 225, 232, 28, 231, 104, 99, 100, 151, 75, 180, 130, 32, 47, 183,
    197, 34, 108, 117, 60, 80, 87, 40, 43, 77, 189, 184, 111, 94, 35, 215, 150, 232, 200, 176, 59, 144, 3, 136, 13, 98,
    196, 183, 84, 215, 104, 182, 4, 7, 35, 230, 207, 0, 210, 100, 17, 38, 55, 98, 49, 16, 155, 11, 188, 204, 145, 145,
    145, 248, 179, 238, 0, 138, 241, 119, 112, 105, 73, 69, 132, 60, 169, 150, 40, 127, 135, 204, 190, 233, 57, 204, 206,
    161, 12, 8, 228, 98, 135, 74, 107, 252, 116, 116, 139, 194, 142, 118, 163, 22, 104, 128, 96, 168, 203, 224, 139, 133,
    201, 75, 240, 187, 134, 116, 185, 8, 35, 172, 22, 152, 35, 248, 226, 242, 107, 136, 236, 195, 113, 28, 236, 151, 180,
    89, 128, 34, 200, 252, 87, 236, 255, 242, 245, 27, 1, 151, 71, 98, 2, 56, 11, 176, 107, 110, 0, 244, 123, 62, 123, 4,
    112, 43, 68, 40, 46, 43, 8, 249, 114, 78, 134, 242, 72, 0, 79, 148, 194, 244, 148, 182, 70, 132, 10, 39, 32, 226,
    213, 4, 84, 171, 87, 68, 39, 47, 224, 183, 5, 62, 236, 92, 145, 209, 103, 184, 2, 8, 40, 240, 103, 73, 121, 23, 2,
    229, 36, 32, 135, 119, 68, 187, 254, 231, 39, 150, 98, 143, 202, 71, 39, 37, 39, 2, 249, 136, 80, 131, 179, 0, 46,
    82, 197, 4, 7, 52, 53, 32, 189, 43, 239, 105, 7, 186, 191, 2, 120, 208, 143, 66, 75, 180, 100, 69, 119, 114, 104, 80,
    8, 71, 23, 8, 252, 204, 17, 26, 109, 107, 8, 34, 208, 190, 135, 102, 107, 152, 96, 80, 180, 152, 64, 47, 43, 43, 32,
    204, 172, 235, 182, 156, 98, 14, 78, 232, 114, 116, 178, 219, 224, 108, 176, 89, 16, 239, 99, 175, 67, 57, 187, 216,
    131, 42, 203, 94, 123, 226, 118, 109, 39, 244, 176, 15, 85, 95, 194, 195, 189, 182, 168, 107, 230, 188, 73, 134, 108,
    233, 192, 199, 145, 151, 84, 176, 38, 223, 97, 139, 240, 78, 98, 55, 87, 134, 128, 178, 36, 69, 2, 144, 78, 174, 90,
    35, 176, 247, 120, 59, 153, 183, 130, 182, 118, 9, 232, 15, 140, 39, 4, 191, 121, 105, 190, 183, 113, 184, 207, 189,
    82, 232, 162, 130, 0, 68, 43, 194, 0, 17, 181, 5, 191, 11, 251, 70, 168, 46, 101, 8, 12, 188, 4, 54, 158, 39, 72,
    127, 118, 119, 100, 244, 186, 212, 136, 114, 104, 139, 85, 219, 42, 120, 248, 68, 124, 78, 238, 168, 200, 84, 254,
    226, 13, 82, 232, 78, 37, 40, 239, 226, 215, 72, 130, 116, 164, 91, 168, 15, 77, 170, 143, 166, 163, 15, 123, 15,
    191, 181, 39, 139, 116, 8, 213, 146, 164, 8, 47, 96, 123, 91, 47, 134, 246, 119, 222, 124, 243, 250, 0, 243, 0, 91,
    246, 174, 220, 188, 136, 186, 175, 116, 123, 47, 128, 42, 136, 71, 54, 148, 226, 232, 217, 148, 69, 232, 43, 184,
    242, 248, 216, 136, 120, 32, 171, 132, 87, 69, 165, 229, 4, 32, 133, 255, 99, 150, 136, 206, 196, 42, 136, 160, 170,
    165, 96, 180, 168, 34, 82, 175, 128, 239, 219, 48, 180, 240, 209, 145, 17, 121, 204, 128, 10, 63, 240, 185, 113, 32,
    172, 204, 254, 79, 87, 178, 104, 178, 40, 7, 43, 14, 182, 246, 198, 111, 53, 106, 122, 46, 7, 0, 92, 138, 208, 226,
    48, 119, 46, 152, 226, 244, 34, 147, 0, 2, 117, 70, 117, 5, 224, 96, 147, 163, 115, 7, 68, 66, 11, 42, 58, 230, 37,
    184, 70, 150, 130, 11, 76, 32, 161, 204, 178, 193, 60, 240, 91, 128, 58, 94, 204, 211, 204, 147, 11, 136, 130, 135,
    190, 218, 61, 3, 134, 128, 64, 75, 176, 39, 253, 130, 2, 232, 43, 187, 36, 0, 240, 13, 11, 248, 11, 34, 11, 255, 212,
    79, 36, 138, 176, 0, 187, 39, 70, 127, 74, 130, 11, 128, 43, 43, 138, 238, 181, 91, 8, 34, 128, 2, 88, 168, 43, 38,
    39, 39, 166, 46, 231, 130, 184, 128, 4, 190, 195, 236, 206, 204, 170, 72, 139, 130, 101, 40, 139, 32, 47, 26, 97, 35,
    202, 114, 232, 214, 136, 194, 231, 110, 70, 162, 180, 40, 146, 102, 0, 86, 111, 142, 247, 40, 240, 69, 247, 244, 142,
    185, 20, 65, 100, 245, 139, 132, 240, 180, 139, 9, 11, 80, 132, 43, 232, 60, 118, 215, 112, 8, 129, 110, 23, 113,
    100, 96, 6, 62, 123, 255, 17, 182, 19, 25, 68, 137, 180, 141, 135, 160, 101, 49, 242, 192, 235, 43, 39, 139, 147,
    210, 190, 143, 70, 178, 239, 103, 8, 101, 187, 34, 218, 171, 57, 72, 210, 130, 42, 96, 47, 183, 205, 123, 48, 197,
    91, 128, 11, 6, 64, 53, 53, 226, 239, 68, 176, 245, 6, 168, 13, 167, 218, 85, 44, 108, 177, 83, 155, 32, 6, 4, 146,
    177, 205, 156, 6, 200, 164, 114, 244, 234, 15, 143, 43, 136, 130, 248, 71, 114, 22, 126, 212, 60, 42, 130, 139, 85,
    55, 191, 255, 22, 89, 69, 63, 203, 159, 105, 50, 95, 173, 36, 247, 184, 30, 161, 152, 25, 144, 32, 88, 70, 45, 111,
    116, 2, 100, 136, 130, 79, 36, 41, 4, 229, 222, 82, 140, 1, 88, 18, 198, 88, 89, 70, 120, 254, 12, 199, 140, 22, 39,
    101, 117, 89, 112, 34, 130, 4, 66, 25, 179, 75, 132, 94, 51, 127, 39, 53, 127, 231, 143, 68, 126, 248, 184, 57, 146,
    87, 87, 34, 146, 50, 15, 72, 137, 142, 105, 239, 102, 135, 181, 210, 136, 64, 46, 166, 185, 154, 98, 37, 83, 0, 42,
    5, 71, 182, 167, 221, 153, 19, 157, 193, 17, 36, 98, 79, 168, 44, 237, 43, 113, 177, 0, 0
};
static const struct weight w13_features_12_conv_weight_stored = {w13_features_12_conv_weight_words, w13_features_12_conv_weight_codes, 0, 0, 144, 1, 4, 1};
static const uint16_t w15_features_14_conv_weight_words[48] = {
    44273, 13633, 43881, 48392, 45995, 10800, 46594, 45534, 13775, 14317, 14574, 15430, 44289, 14710, 14677, 44962,
    10958, 14978, 45925, 47381, 48241, 11429, 45929, 44236, 14547, 11423, 11083, 12505, 8402, 47129, 46723, 12315, 12039,
    14697, 13509, 14235, 46817, 47043, 10473, 47415, 13386, 46884, 14226, 46481, 13743, 15245, 13838, 13750
};
static const uint8_t w15_features_14_conv_weight_codes[386] = {
    135, 94, 39, 151, 142, 129, 12, 155, 13, 103, 85, 72, 121, 126, 237, 174, 2, 119, 12, 237, 118, 90, 154, 120, 50,
    239, 208, 178, 204, 102, 107, 77, 188, 192, 11, 12, 199, 26, 17, 141, 241, 30, 196, 206, 12, 156, 159, 216, 224, 249,
    235, 227, 46, 83, 29, 58, 106, 203, 47, 237, 206, 201, 94, 135, 231, 13, 234, 217, 0, 88, 222, 175, 224, 44, 215,
    103, 217, 33, 120, 216, 117, 160, 117, 221, 199, 103, 92, 144, 119, 125, 167, 130, 22, 237, 80, 193, 125, 191, 183,
    199, 230, 108, 217, 247, 231, 187, 207, 207, 146, 108, 94, 151, 192, 124, 204, 102, 28, 193, 73, 232, 125, 120, 120,
    119, 117, 27, 37, 39, 119, 135, 116, 59, 10, 169, 119, 87, 117, 83, 122, 171, 152, 112, 119, 139, 150, 157, 4, 12,
    206, 37, 238, 68, 103, 231, 211, 97, 33, 122, 230, 1, 247, 237, 139, 116, 154, 221, 194, 123, 198, 5, 0, 2, 110, 123,
    162, 10, 112, 40, 126, 224, 119, 39, 133, 37, 46, 152, 173, 27, 184, 45, 217, 237, 156, 24, 235, 97, 161, 196, 81,
    24, 26, 190, 221, 236, 2, 154, 148, 170, 226, 153, 232, 7, 10, 245, 77, 86, 247, 156, 136, 121, 99, 187, 18, 60, 107,
    199, 95, 218, 36, 160, 185, 231, 2, 231, 128, 0, 184, 141, 12, 121, 249, 83, 104, 141, 222, 204, 225, 236, 158, 241,
    210, 129, 7, 128, 138, 146, 104, 233, 157, 217, 138, 160, 69, 140, 137, 248, 0, 119, 142, 156, 13, 158, 148, 33, 0,
    39, 124, 206, 126, 190, 108, 119, 119, 154, 102, 66, 13, 110, 84, 120, 6, 226, 30, 20, 213, 75, 119, 93, 115, 68,
    231, 226, 190, 154, 40, 153, 234, 160, 0, 201, 192, 4, 227, 108, 76, 32, 130, 102, 123, 5, 207, 8, 182, 236, 144, 21,
    41, 25, 28, 34, 234, 122, 113, 130, 245, 97, 233, 53, 210, 201, 14, 2, 153, 184, 123, 146, 103, 218, 44, 103, 119,
    135, 108, 39, 121, 198, 118, 98, 138, 119, 236, 252, 39, 251, 230, 196, 86, 232, 164, 137, 252, 30, 199, 201, 2, 178,
    76, 167, 155, 198, 188, 161, 115, 166, 0, 0
};
static const struct weight w15_features_14_conv_weight_stored = {w15_features_14_conv_weight_words, w15_features_14_conv_weight_codes, 0, 0, 144, 1, 4, 3};
static const uint16_t w17_features_16_conv_weight_words[96] = {
    45099, 14782, 46423, 6826, 11417, 11824, 14644, 14567, 14007, 14885, 14531, 12461, 46905, 14445, 13062, 49496, 49499,
    48846, 46349, 11576, 47657, 14538, 14463, 14184, 48130, 46589, 14553, 47209, 48238, 15166, 47248, 13525, 48741,
    13673, 46157, 46109, 12194, 48265, 46099, 47605, 12545, 47586, 13423, 9374, 46610, 42959, 12426, 45165, 47952, 47377,
    46250, 44961, 14464, 48683, 16000, 12388, 39968, 43644, 12907, 47226, 13750, 13493, 13405, 46855, 41008, 47928, 8281,
    47544, 46935, 46388, 11195, 45437, 43566, 45909, 15023, 45894, 14008, 15528, 47494, 46155, 13429, 47870, 47242,
    47008, 46427, 48860, 48679, 46696, 48414, 46911, 44762, 45077, 14491, 45219, 12176, 47180
};
static const uint8_t w17_features_16_conv_weight_codes[194] = {
    59, 15, 92, 112, 15, 7, 127, 191, 63, 255, 160, 176, 7, 6, 208, 112, 245, 189, 255, 95, 48, 255, 0, 176, 104, 119,
    138, 191, 111, 255, 183, 173, 170, 122, 171, 160, 0, 15, 208, 7, 182, 15, 255, 107, 135, 240, 176, 0, 133, 96, 56,
    172, 32, 188, 251, 160, 85, 69, 166, 88, 11, 59, 80, 15, 247, 5, 246, 95, 39, 187, 80, 7, 7, 5, 128, 112, 246, 95,
    15, 234, 59, 247, 7, 0, 7, 15, 252, 143, 253, 7, 6, 240, 13, 176, 170, 0, 157, 117, 234, 83, 115, 112, 0, 9, 49, 7,
    243, 54, 20, 234, 193, 27, 25, 247, 195, 167, 113, 87, 135, 110, 46, 5, 58, 96, 83, 173, 186, 14, 37, 176, 240, 229,
    111, 136, 12, 143, 186, 245, 118, 253, 48, 96, 135, 11, 0, 117, 208, 6, 95, 214, 111, 96, 0, 208, 7, 0, 0, 14, 60,
    15, 245, 15, 111, 95, 160, 255, 160, 7, 0, 6, 48, 112, 111, 7, 175, 96, 0, 253, 0, 176, 78, 213, 222, 87, 91, 166,
    151, 112, 174, 106, 198, 110, 0, 0
};
static const struct weight w17_features_16_conv_weight_stored = {w17_features_16_conv_weight_words, w17_features_16_conv_weight_codes, 0, 0, 144, 1, 4, 6};
static const uint16_t w19_fc_weight_words[32] = {
    11793, 14728, 13857, 14540, 42341, 15177, 12925, 14178, 12008, 45899, 14437, 10018, 13403, 43562, 14513, 47669,
    12886, 13589, 14876, 14883, 11349, 42798, 44402, 11319, 43128, 46645, 46266, 46195, 9794, 45124, 45496, 14175
};
static const uint8_t w19_fc_weight_codes[66] = {
    15, 107, 78, 106, 225, 238, 238, 238, 153, 13, 172, 200, 93, 238, 238, 170, 148, 99, 104, 112, 63, 234, 236, 234, 71,
    238, 224, 237, 209, 94, 106, 110, 205, 49, 228, 54, 133, 50, 185, 164, 84, 13, 116, 190, 95, 173, 106, 110, 7, 238,
    234, 110, 239, 238, 236, 78, 178, 230, 166, 238, 151, 79, 165, 204, 0, 0
};
static const struct weight w19_fc_weight_stored = {w19_fc_weight_words, w19_fc_weight_codes, 0, 0, 256, 1, 4, 2};

static void map0(float *restrict y, int32_t n)
{
    int32_t i;
    for (i = 0; i < n; i++) {
        const float x0 = y[i];
        const float t0 = sigmoid(x0);
        y[i] = x0 * t0;
    }
}

static void map1(float *restrict y, const float *restrict p0, int32_t n)
{
    int32_t i;
    for (i = 0; i < n; i++) {
        const float x0 = p0[i];
        const float t0 = sigmoid(x0);
        y[i] = x0 * t0;
    }
}

static void map2(float *restrict y, const float *restrict p0)
{
    int32_t i, j;
    for (i = 0; i < 16; i++)
        for (j = 0; j < 16; j++) {
            const float x0 = p0[i + j * 16];
            y[i * 16 + j] = x0;
        }
}

static void reduce3(float *restrict y, const float *restrict x)
{
    float total;
        total = 0.0f;
            total += x[0];
        y[0] = total;
}

static void map4(float *restrict y, const float *restrict p0, int32_t n)
{
    int32_t i;
    for (i = 0; i < n; i++) {
        const float x0 = p0[0];
        y[0] = x0;
    }
}

static void map5(float *restrict y, const float *restrict p0)
{
    int32_t i, j;
    for (i = 0; i < 16; i++)
        for (j = 0; j < 16; j++) {
            const float x0 = p0[i + j * 16];
            const float x1 = y[i * 16 + j];
            y[i * 16 + j] = x0 * swish_slope(x1);
        }
}

static void map6(float *restrict y, const float *restrict p1, int32_t n)
{
    int32_t i;
    for (i = 0; i < n; i++) {
        const float x0 = y[i];
        const float x1 = p1[i];
        y[i] = x0 * swish_slope(x1);
    }
}

static const struct conv conv0 = {&w1_features_0_conv_weight_stored, w0_features_0_conv_bias, 1, 1, 16, 28, 28, 14, 14, 1, 16, {5, 5}, {2, 2}, {2, 2}, {1, 1}, 0};
static const struct conv conv1 = {&w3_features_2_conv_weight_stored, w2_features_2_conv_bias, 1, 16, 16, 14, 14, 14, 14, 16, 16, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0};
static const struct conv conv2 = {&w5_features_4_conv_weight_stored, w4_features_4_conv_bias, 1, 16, 16, 14, 14, 14, 14, 16, 16, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0};
static const struct conv conv3 = {&w7_features_6_conv_weight_stored, w6_features_6_conv_bias, 1, 16, 16, 14, 14, 7, 7, 16, 16, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 0};
static const struct conv conv4 = {&w9_features_8_conv_weight_stored, w8_features_8_conv_bias, 1, 16, 16, 7, 7, 7, 7, 16, 16, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0};
static const struct conv conv5 = {&w11_features_10_conv_weight_stored, w10_features_10_conv_bias, 1, 16, 16, 7, 7, 7, 7, 16, 16, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0};
static const struct conv conv6 = {&w13_features_12_conv_weight_stored, w12_features_12_conv_bias, 1, 16, 16, 7, 7, 4, 4, 16, 16, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 0};
static const struct conv conv7 = {&w15_features_14_conv_weight_stored, w14_features_14_conv_bias, 1, 16, 16, 4, 4, 4, 4, 16, 16, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0};
static const struct conv conv8 = {&w17_features_16_conv_weight_stored, w16_features_16_conv_bias, 1, 16, 16, 4, 4, 4, 4, 16, 16, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 0};
static const struct conv conv9 = {&w19_fc_weight_stored, w18_fc_bias, 1, 256, 1, 1, 1, 1, 1, 256, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 0};
static const struct conv conv10 = {&w19_fc_weight_stored, 0, 1, 1, 256, 1, 1, 1, 1, 1, 256, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1};
static const struct conv conv11 = {&w17_features_16_conv_weight_stored, 0, 1, 16, 16, 4, 4, 4, 4, 16, 16, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
static const struct conv conv12 = {&w15_features_14_conv_weight_stored, 0, 1, 16, 16, 4, 4, 4, 4, 16, 16, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
static const struct conv conv13 = {&w13_features_12_conv_weight_stored, 0, 1, 16, 16, 4, 4, 7, 7, 16, 16, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1};
static const struct conv conv14 = {&w11_features_10_conv_weight_stored, 0, 1, 16, 16, 7, 7, 7, 7, 16, 16, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
static const struct conv conv15 = {&w9_features_8_conv_weight_stored, 0, 1, 16, 16, 7, 7, 7, 7, 16, 16, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
static const struct conv conv16 = {&w7_features_6_conv_weight_stored, 0, 1, 16, 16, 7, 7, 14, 14, 16, 16, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1};
static const struct conv conv17 = {&w5_features_4_conv_weight_stored, 0, 1, 16, 16, 14, 14, 14, 14, 16, 16, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
static const struct conv conv18 = {&w3_features_2_conv_weight_stored, 0, 1, 16, 16, 14, 14, 14, 14, 16, 16, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
static const struct conv conv19 = {&w1_features_0_conv_weight_stored, 0, 1, 16, 1, 14, 14, 28, 28, 16, 1, {5, 5}, {2, 2}, {2, 2}, {1, 1}, 1};

/* Logits and energy. */
static float forward(float *a, const float *image)
{
    convolve(&conv0, image, a, TILE(3136, 0), 0, 14);
    map0(a, 3136);
    convolve(&conv1, a, a + 3136, TILE(6272, 416), 0, 14);
    map0(a + 3136, 3136);
    convolve(&conv2, a + 3136, a, TILE(6272, 2736), 0, 14);
    map0(a, 3136);
    convolve(&conv3, a, a + 3136, TILE(3920, 5056), 0, 7);
    map1(a, a + 3136, 784);
    convolve(&conv4, a, a + 784, TILE(1568, 7376), 0, 7);
    map1(a, a + 784, 784);
    convolve(&conv5, a, a + 1568, TILE(2352, 9696), 0, 7);
    map1(a, a + 1568, 784);
    convolve(&conv6, a, a + 2352, TILE(2608, 12016), 0, 4);
    map1(a, a + 2352, 256);
    convolve(&conv7, a, a + 256, TILE(512, 14336), 0, 4);
    map1(a, a + 256, 256);
    convolve(&conv8, a, a + 512, TILE(2608, 16656), 0, 4);
    map1(a, a + 512, 256);
    map2(a + 2608, a);
    convolve(&conv9, a + 2608, a + 768, TILE(0, 18976), 0, 1);
    reduce3(a, a + 768);
    return *(a);
}

float model_energy(void *arena, const float *image)
{
    return forward(arena, image);
}

float model_step_by(void *arena, float *image, uint32_t *random, float step_size)
{
    float *a = arena;
    const float energy = forward(a, image);
    float pair[2] = {0.0f, 0.0f};
    int i, j, k, n = 0;
    map4(a + 770, w20_constant0, 1);
    convolve(&conv10, a + 770, a, TILE(768, 23088), 0, 1);
    map5(a + 512, a);
    convolve(&conv11, a + 512, a, TILE(2608, 23360), 0, 4);
    map6(a, a + 256, 256);
    convolve(&conv12, a, a + 2608, TILE(256, 25680), 0, 4);
    map6(a + 2608, a + 2352, 256);
    convolve(&conv13, a + 2608, a, TILE(2352, 28000), 0, 7);
    map6(a, a + 1568, 784);
    convolve(&conv14, a, a + 1568, TILE(2352, 30320), 0, 7);
    map6(a + 1568, a + 784, 784);
    convolve(&conv15, a + 1568, a, TILE(784, 32640), 0, 7);
    map6(a, a + 3136, 784);
    convolve(&conv16, a, a + 3584, TILE(784, 34960), 0, 14);
    convolve(&conv0, image, a, TILE(3136, 0), 0, 14);
    map0(a, 3136);
    conv_up(&conv1, a, a + 448, TILE(6720, 416));
    map0(a + 448, 3136);
    conv_down(&conv2, a + 448, a, TILE(6720, 2736));
    map6(a + 3584, a, 3136);
    convolve(&conv17, a + 3584, a, TILE(3136, 37280), 0, 14);
    convolve(&conv0, image, a + 3136, TILE(6272, 0), 0, 14);
    map0(a + 3136, 3136);
    conv_up(&conv1, a + 3136, a + 3584, TILE(6720, 416));
    map6(a, a + 3584, 3136);
    conv_up(&conv18, a, a + 448, TILE(3584, 39600));
    convolve(&conv0, image, a + 3584, TILE(0, 0), 0, 14);
    map6(a + 448, a + 3584, 3136);
    convolve(&conv19, a + 448, a + 3584, TILE(0, 41920), 0, 28);
    for (i = 0; i < 1; i++)
        for (j = 0; j < 28; j++)
            for (k = 0; k < 28; k++, n++) {
                const float g = (a + 3584)[i * 0 + j * 28 + k * 1];
                const float slope = smaller(larger(g, -MODEL_GRADIENT_CLAMP), MODEL_GRADIENT_CLAMP);
                float x;
                if (!(n & 1))
                    normal(random, pair);
                x = (image[n] - step_size * slope) + MODEL_NOISE * pair[n & 1];
                image[n] = smaller(larger(x, -1.0f), 1.0f);
            }
    return energy;
}

float model_step(void *arena, float *image, uint32_t *random)
{
    return model_step_by(arena, image, random, MODEL_STEP_SIZE);
}

uint32_t model_start(float *image, uint32_t seed)
{
    uint32_t random = seed;
    int i;
    random = draw(&random); /* neighbouring seeds start far apart */
    for (i = 0; i < 784; i++)
        image[i] = (float)(draw(&random) >> 8) * 1.1920929e-7f - 1.0f; /* 2^-23: uniform in [-1, 1) */
    return random;
}

void model_sample(void *arena, float *image, uint32_t seed, int steps)
{
    uint32_t random = model_start(image, seed);
    while (steps-- > 0)
        model_step(arena, image, &random);
}

/* GroupNorm, and what follows it; LayerNorm. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "simd.h"

enum { PLACES = 256, BESIDE = 4, SOME = 16 };

/* of each channel, over some places (n, channels): the sum of what is beyond `pivot`, and of its squares */
static void sums(const number *x, i64 n, i64 channels, const float *pivot, float *sum, float *square)
{
    memset(sum, 0, sizeof(float) * channels);
    memset(square, 0, sizeof(float) * channels);
    for (i64 p = 0; p < n; p += BESIDE)
        for (i64 i = 0; i < channels; i += LANES) {
            __mmask16 some = first(channels - i);
            __m512 from = _mm512_maskz_loadu_ps(some, pivot + i), one = _mm512_maskz_loadu_ps(some, sum + i);
            __m512 two = _mm512_maskz_loadu_ps(some, square + i);
            for (i64 k = p; k < p + BESIDE && k < n; k++) {
                __m512 y = _mm512_sub_ps(floats(some, x + k * channels + i), from);
                one = _mm512_add_ps(one, y), two = _mm512_fmadd_ps(y, y, two);
            }
            _mm512_mask_storeu_ps(sum + i, some, one);
            _mm512_mask_storeu_ps(square + i, some, two);
        }
}

/* Of maps x (batch, places, channels), with a shift (batch, channels) added: `scale` and `offset` (batch, channels) with
   which scale x + offset is their GroupNorm, `steep` and `centre` with which steep (x - centre) is the same without weight
   and bias. Sums are taken about the mean of some places, in blocks that threads do not change.
   Source: Wu & He, "Group Normalization" (1803.08494); Chan, Golub, LeVeque 1983, equation 2.1. */
int moments(const number *x, i64 batch, i64 places, i64 channels, i64 groups, const float *shift, const float *weight,
            const float *bias, double eps, float *scale, float *offset, float *steep, float *centre)
{
    i64 blocks = (places + PLACES - 1) / PLACES, each = channels / groups;
    float *room = malloc(sizeof(float) * (size_t)(batch * (2 * blocks + 1) * channels));
    if (!room) return 1;
    float *pivots = room + batch * 2 * blocks * channels;
    for (i64 b = 0; b < batch; b++)
        for (i64 i = 0; i < channels; i += LANES) {
            __mmask16 some = first(channels - i);
            __m512 y = _mm512_setzero_ps();
            for (i64 k = 0; k < SOME; k++)
                y = _mm512_add_ps(y, floats(some, x + (b * places + k * places / SOME) * channels + i));
            _mm512_mask_storeu_ps(pivots + b * channels + i, some, _mm512_mul_ps(y, _mm512_set1_ps(1.0f / SOME)));
        }
#pragma omp parallel for schedule(static)
    for (i64 k = 0; k < batch * blocks; k++) {
        i64 b = k / blocks, from = k % blocks * PLACES;
        float *to = room + 2 * k * channels;
        sums(x + (b * places + from) * channels, places - from < PLACES ? places - from : PLACES, channels,
             pivots + b * channels, to, to + channels);
    }
#pragma omp parallel for schedule(static)
    for (i64 k = 0; k < batch * groups; k++) {
        i64 b = k / groups, start = b * channels + k % groups * each;
        double mean = 0, within = 0, between = 0;
        for (int pass = 0; pass < 2; pass++)
            for (i64 i = start; i < start + each; i++) {
                double sum = 0, square = 0;
                for (i64 j = 0; j < blocks; j++) {
                    const float *of = room + 2 * (b * blocks + j) * channels + i - b * channels;
                    sum += of[0], square += of[channels];
                }
                sum /= (double)places;
                double here = sum + pivots[i] + (shift ? shift[i] : 0);
                if (pass)
                    within += square / (double)places - sum * sum, between += (here - mean) * (here - mean);
                else
                    mean += here / (double)each;
            }
        double by = 1 / sqrt((within + between) / (double)each + eps);
        for (i64 i = start; i < start + each; i++) {
            double w = weight[i - b * channels] * by, from = mean - (shift ? shift[i] : 0);
            scale[i] = (float)w, offset[i] = (float)(bias[i - b * channels] - w * from);
            steep[i] = (float)by, centre[i] = (float)from;
        }
    }
    free(room);
    return 0;
}

/* 1 / (1 + exp(-x)) */
static inline __m512 sigmoid(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 below = _mm512_add_ps(power_of_two(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f))), one);
#ifdef BF16
    return _mm512_rcp14_ps(below);
#else
    return _mm512_div_ps(one, below);
#endif
}

static inline __m512 silu(__m512 x) { return _mm512_mul_ps(x, sigmoid(x)); }

/* of silu, at x */
static inline __m512 slope_of_silu(__m512 x)
{
    __m512 s = sigmoid(x);
    return _mm512_fmadd_ps(_mm512_mul_ps(x, s), _mm512_sub_ps(_mm512_set1_ps(1.0f), s), s);
}

/* out = scale x + offset for maps (batch, places, channels) with a scale and an offset for each channel of each; and
   x / (1 + exp(-x)) of that, if `active` */
int scaled(const number *x, number *out, i64 batch, i64 places, i64 channels, const float *scale, const float *offset,
            i64 active)
{
#pragma omp parallel for schedule(static)
    for (i64 p = 0; p < batch * places; p++) {
        i64 at = p / places * channels;
        for (i64 i = 0; i < channels; i += LANES) {
            __mmask16 some = first(channels - i);
            __m512 y = _mm512_fmadd_ps(floats(some, x + p * channels + i), _mm512_maskz_loadu_ps(some, scale + at + i),
                                       _mm512_maskz_loadu_ps(some, offset + at + i));
            put(out + p * channels + i, some, active ? silu(y) : y);
        }
    }
    return 0;
}

/* what is known of a group-normalised map, to go back through it */
typedef struct {
    const number *x, *slope;
    i64 places, channels, groups, active;
    const float *scale, *offset, *steep, *centre; /* as `moments` has them */
} Way;

/* the slope before the activation, of some channels from i on of place p of map b; x there goes to `seen` */
static inline __attribute__((always_inline)) __m512 inner_slope(const Way *way, i64 b, i64 p, i64 i, __mmask16 some,
                                                                __m512 *seen)
{
    i64 at = (b * way->places + p) * way->channels + i, of = b * way->channels + i;
    __m512 slope = floats(some, way->slope + at);
    *seen = floats(some, way->x + at);
    if (!way->active) return slope;
    __m512 scale = _mm512_maskz_loadu_ps(some, way->scale + of), offset = _mm512_maskz_loadu_ps(some, way->offset + of);
    return _mm512_mul_ps(slope, slope_of_silu(_mm512_fmadd_ps(*seen, scale, offset)));
}

enum { FOUND = 3 }; /* of each channel: sums of the slope, of the slope times what is beyond the centre, and of that alone */

/* of some places [from, to) of map b */
static void slopes(const Way *way, i64 b, i64 from, i64 to, float *sums)
{
    i64 channels = way->channels;
    for (i64 i = 0; i < channels; i += LANES) {
        __mmask16 some = first(channels - i);
        __m512 one = _mm512_setzero_ps(), two = one, three = one, x;
        __m512 centre = _mm512_maskz_loadu_ps(some, way->centre + b * channels + i);
        for (i64 p = from; p < to; p++) {
            __m512 slope = inner_slope(way, b, p, i, some, &x), beyond = _mm512_sub_ps(x, centre);
            one = _mm512_add_ps(one, slope), two = _mm512_fmadd_ps(slope, beyond, two), three = _mm512_add_ps(three, beyond);
        }
        _mm512_mask_storeu_ps(sums + i, some, one);
        _mm512_mask_storeu_ps(sums + channels + i, some, two);
        _mm512_mask_storeu_ps(sums + 2 * channels + i, some, three);
    }
}

/* The way back through `moments` and `scaled`: from the slope of what came out, (batch, places, channels), to that of x, and
   of weight, bias (channels) and shift (batch, channels). Source: Ioffe & Szegedy, "Batch Normalization" (1502.03167),
   section 3, with the places and channels of a group. */
int moments_back(const number *x, const number *slope, i64 batch, i64 places, i64 channels, i64 groups, i64 active,
                 const float *scale, const float *offset, const float *steep, const float *centre, const float *weight,
                 number *of_x, float *of_weight, float *of_bias, float *of_shift)
{
    Way way = {x, slope, places, channels, groups, active, scale, offset, steep, centre};
    i64 blocks = parts_of(places, PLACES), each = channels / groups, size = FOUND * channels;
    float *room = calloc((size_t)(batch * (blocks * size + 2 * channels)), sizeof(float));
    if (!room) return 1;
    float *lines = room + batch * blocks * size; /* for each: by what it is multiplied beyond the centre, and what is added */
#pragma omp parallel for schedule(static)
    for (i64 k = 0; k < batch * blocks; k++) {
        i64 from = k % blocks * PLACES;
        slopes(&way, k / blocks, from, least(places, from + PLACES), room + k * size);
    }
#pragma omp parallel for schedule(static)
    for (i64 k = 0; k < batch * groups; k++) {
        i64 b = k / groups, start = k % groups * each;
        float *sums = room + b * blocks * size, *line = lines + b * 2 * channels;
        double plain = 0, beyond = 0, count = (double)(places * each), by = steep[b * channels + start];
        for (i64 i = start; i < start + each; i++) {
            for (i64 j = 1; j < blocks; j++)
                for (i64 f = 0; f < FOUND; f++) sums[f * channels + i] += sums[j * size + f * channels + i];
            plain += (double)weight[i] * sums[i], beyond += (double)weight[i] * sums[channels + i];
        }
        for (i64 i = start; i < start + each; i++) {
            double times = -by * by * by * beyond / count, rest = -by * plain / count;
            line[i] = (float)times, line[channels + i] = (float)rest;
            double all = by * weight[i] * sums[i] + times * sums[2 * channels + i] + rest * (double)places;
            of_shift[b * channels + i] = (float)all;
        }
    }
    for (i64 i = 0; i < channels; i++) {
        double w = 0, s = 0;
        for (i64 b = 0; b < batch; b++) {
            const float *sums = room + b * blocks * size;
            s += sums[i], w += (double)sums[channels + i] * steep[b * channels + i];
        }
        of_weight[i] = (float)w, of_bias[i] = (float)s;
    }
#pragma omp parallel for schedule(static)
    for (i64 k = 0; k < batch * blocks; k++) {
        i64 b = k / blocks, from = k % blocks * PLACES;
        const float *line = lines + b * 2 * channels;
        for (i64 p = from; p < least(places, from + PLACES); p++)
            for (i64 i = 0; i < channels; i += LANES) {
                __mmask16 some = first(channels - i);
                __m512 seen, inner = inner_slope(&way, b, p, i, some, &seen);
                __m512 beyond = _mm512_sub_ps(seen, _mm512_maskz_loadu_ps(some, centre + b * channels + i));
                __m512 y = _mm512_maskz_loadu_ps(some, line + channels + i);
                y = _mm512_fmadd_ps(beyond, _mm512_maskz_loadu_ps(some, line + i), y);
                y = _mm512_fmadd_ps(inner, _mm512_maskz_loadu_ps(some, scale + b * channels + i), y);
                put(of_x + (b * places + p) * channels + i, some, y);
            }
    }
    free(room);
    return 0;
}

/* out = weight (x - mean) / sqrt(variance + eps) + bias, for each of the rows of `width` numbers. Source: Ba, Kiros &
   Hinton, "Layer Normalization" (1607.06450), equation 4. */
int rows_scaled(const number *x, number *out, i64 rows, i64 width, const number *weight, const number *bias, double eps)
{
#pragma omp parallel for schedule(static)
    for (i64 r = 0; r < rows; r++) {
        const number *row = x + r * width;
        __m512 sum = _mm512_setzero_ps(), square = _mm512_setzero_ps();
        for (i64 i = 0; i < width; i += LANES) sum = _mm512_add_ps(sum, floats(first(width - i), row + i));
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)width);
        for (i64 i = 0; i < width; i += LANES) {
            __m512 y = _mm512_maskz_sub_ps(first(width - i), floats(first(width - i), row + i), mean);
            square = _mm512_fmadd_ps(y, y, square);
        }
        __m512 steep = _mm512_set1_ps((float)(1 / sqrt(_mm512_reduce_add_ps(square) / (double)width + eps)));
        for (i64 i = 0; i < width; i += LANES) {
            __mmask16 some = first(width - i);
            __m512 y = _mm512_mul_ps(_mm512_sub_ps(floats(some, row + i), mean), steep);
            put(out + r * width + i, some, _mm512_fmadd_ps(y, floats(some, weight + i), floats(some, bias + i)));
        }
    }
    return 0;
}

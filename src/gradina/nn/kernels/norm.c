/* GroupNorm, and what follows it; LayerNorm. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "vectors.h"

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

/* scale and offset (batch, channels) with which scale x + offset is GroupNorm of x + shift, for maps x (batch, places,
   channels). Sums are taken about the mean of some places, in blocks that threads do not change. Returns 0, or 1 where
   there is no memory. Source: Wu & He, "Group Normalization" (1803.08494); Chan, Golub, LeVeque 1983, equation 2.1. */
int moments(const number *x, i64 batch, i64 places, i64 channels, i64 groups, const float *shift, const float *weight,
            const float *bias, double eps, float *scale, float *offset)
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
        double steep = 1 / sqrt((within + between) / (double)each + eps);
        for (i64 i = start; i < start + each; i++) {
            double w = weight[i - b * channels] * steep;
            scale[i] = (float)w;
            offset[i] = (float)(bias[i - b * channels] + w * ((shift ? shift[i] : 0) - mean));
        }
    }
    free(room);
    return 0;
}

static inline __m512 silu(__m512 x)
{
    __m512 below = power_of_two(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)));
    below = _mm512_add_ps(below, _mm512_set1_ps(1.0f));
#ifdef BF16
    return _mm512_mul_ps(x, _mm512_rcp14_ps(below));
#else
    return _mm512_div_ps(x, below);
#endif
}

/* out = scale x + offset for maps (batch, places, channels) with a scale and an offset for each channel of each; and
   x / (1 + exp(-x)) of that, if `active` */
void scaled(const number *x, number *out, i64 batch, i64 places, i64 channels, const float *scale, const float *offset,
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
}

/* out = weight (x - mean) / sqrt(variance + eps) + bias, for each of the rows of `width` numbers. Source: Ba, Kiros &
   Hinton, "Layer Normalization" (1607.06450), equation 4. */
void rows_scaled(const number *x, number *out, i64 rows, i64 width, const number *weight, const number *bias, double eps)
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
}

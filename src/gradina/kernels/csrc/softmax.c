/* Shares, of scores. */

#include <math.h>

#include "simd.h"

/* out = softmax(scale x) of each of the rows of `width` numbers */
int softmax(const number *x, number *out, i64 rows, i64 width, double scale)
{
    const __m512 by = _mm512_set1_ps((float)(scale * 1.4426950408889634));
#pragma omp parallel for schedule(static)
    for (i64 r = 0; r < rows; r++) {
        const number *row = x + r * width;
        const __m512 lowest = _mm512_set1_ps(-INFINITY);
        __m512 most = lowest, sum = _mm512_setzero_ps();
        for (i64 i = 0; i < width; i += LANES) {
            __mmask16 some = first(width - i);
            most = _mm512_mask_max_ps(most, some, most, _mm512_mul_ps(floats(some, row + i), by));
        }
        __m512 from = _mm512_set1_ps(_mm512_reduce_max_ps(most));
        for (i64 i = 0; i < width; i += LANES) {
            __mmask16 some = first(width - i);
            sum = _mm512_mask_add_ps(sum, some, sum, power_or_none(_mm512_fmsub_ps(floats(some, row + i), by, from)));
        }
        __m512 share = _mm512_set1_ps(1 / _mm512_reduce_add_ps(sum));
        for (i64 i = 0; i < width; i += LANES) {
            __mmask16 some = first(width - i);
            __m512 power = power_or_none(_mm512_fmsub_ps(floats(some, row + i), by, from));
            put(out + r * width + i, some, _mm512_mul_ps(power, share));
        }
    }
    return 0;
}

/* the way back: from what came out, `share`, and its slope to the slope of x */
int softmax_back(const number *share, const number *slope, number *out, i64 rows, i64 width, double scale)
{
    const __m512 by = _mm512_set1_ps((float)scale);
#pragma omp parallel for schedule(static)
    for (i64 r = 0; r < rows; r++) {
        __m512 sum = _mm512_setzero_ps();
        for (i64 i = 0, at = r * width; i < width; i += LANES, at += LANES) {
            __mmask16 some = first(width - i);
            sum = _mm512_fmadd_ps(floats(some, share + at), floats(some, slope + at), sum);
        }
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
        for (i64 i = 0, at = r * width; i < width; i += LANES, at += LANES) {
            __mmask16 some = first(width - i);
            __m512 beyond = _mm512_sub_ps(floats(some, slope + at), mean);
            put(out + at, some, _mm512_mul_ps(_mm512_mul_ps(floats(some, share + at), beyond), by));
        }
    }
    return 0;
}

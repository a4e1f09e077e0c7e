/* Softmax over the last dimension, forward and backward, of rows of `width`. */

#include <math.h>

#include "simd.h"

/* out = softmax(scale x) */
int softmax(const scalar_t *x, scalar_t *out, i64 rows, i64 width, double scale)
{
    const __m512 factor =
        _mm512_set1_ps((float)(scale * 1.4426950408889634)); /* log2(e): exp2 takes the place of exp */
#pragma omp parallel for schedule(static)
    for (i64 r = 0; r < rows; r++) {
        const scalar_t *row = x + r * width;
        const __m512 lowest = _mm512_set1_ps(-INFINITY);
        __m512 maxima = lowest, sum = _mm512_setzero_ps();
        for (i64 i = 0; i < width; i += LANES) {
            __mmask16 mask = tail_mask(width - i);
            maxima = _mm512_mask_max_ps(maxima, mask, maxima, _mm512_mul_ps(load(mask, row + i), factor));
        }
        __m512 max = _mm512_set1_ps(_mm512_reduce_max_ps(maxima));
        for (i64 i = 0; i < width; i += LANES) {
            __mmask16 mask = tail_mask(width - i);
            sum = _mm512_mask_add_ps(sum, mask, sum, exp2_flushed(_mm512_fmsub_ps(load(mask, row + i), factor, max)));
        }
        __m512 inverse = _mm512_set1_ps(1 / _mm512_reduce_add_ps(sum));
        for (i64 i = 0; i < width; i += LANES) {
            __mmask16 mask = tail_mask(width - i);
            __m512 power = exp2_flushed(_mm512_fmsub_ps(load(mask, row + i), factor, max));
            store(out + r * width + i, mask, _mm512_mul_ps(power, inverse));
        }
    }
    return 0;
}

/* backward, with probs = softmax(scale x): grad_x = scale probs (grad_output - sum(probs grad_output)) */
int softmax_backward(const scalar_t *probs, const scalar_t *grad_output, scalar_t *grad_x, i64 rows, i64 width,
                     double scale)
{
    const __m512 factor = _mm512_set1_ps((float)scale);
#pragma omp parallel for schedule(static)
    for (i64 r = 0; r < rows; r++) {
        __m512 sum = _mm512_setzero_ps();
        for (i64 i = 0, at = r * width; i < width; i += LANES, at += LANES) {
            __mmask16 mask = tail_mask(width - i);
            sum = _mm512_fmadd_ps(load(mask, probs + at), load(mask, grad_output + at), sum);
        }
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
        for (i64 i = 0, at = r * width; i < width; i += LANES, at += LANES) {
            __mmask16 mask = tail_mask(width - i);
            __m512 centred = _mm512_sub_ps(load(mask, grad_output + at), mean);
            store(grad_x + at, mask, _mm512_mul_ps(_mm512_mul_ps(load(mask, probs + at), centred), factor));
        }
    }
    return 0;
}

/* GEGLU, forward and backward: gelu(gate) h for rows (h gate) of 2 width. Source: Shazeer, "GLU Variants Improve
   Transformer" (2002.05202), equation 6. */

#include "simd.h"

/* in (rows, 2 width) -> out (rows, width) */
int geglu(const scalar_t *in, scalar_t *out, i64 rows, i64 width)
{
#pragma omp parallel for schedule(static)
    for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < width; i += LANES) {
            const scalar_t *h = in + r * 2 * width + i;
            __mmask16 mask = tail_mask(width - i);
            store(out + r * width + i, mask, _mm512_mul_ps(gelu(load(mask, h + width)), load(mask, h)));
        }
    return 0;
}

/* backward: in (rows, 2 width) and the gradient of the output (rows, width) -> the gradient of in */
int geglu_backward(const scalar_t *in, const scalar_t *grad_output, scalar_t *grad_in, i64 rows, i64 width)
{
    const __m512 half_log2e = _mm512_set1_ps(-0.5f * 1.44269504f),
                 peak = _mm512_set1_ps(0.398942280f); /* 1 / sqrt(2 pi) */
#pragma omp parallel for schedule(static)
    for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < width; i += LANES) {
            i64 at = r * 2 * width + i;
            __mmask16 mask = tail_mask(width - i);
            __m512 h = load(mask, in + at), gate = load(mask, in + at + width),
                   grad = load(mask, grad_output + r * width + i);
            __m512 cdf = normal_cdf(gate), density = exp2_flushed(_mm512_mul_ps(_mm512_mul_ps(gate, gate), half_log2e));
            __m512 grad_gelu = _mm512_fmadd_ps(_mm512_mul_ps(gate, peak), density, cdf);
            store(grad_in + at, mask, _mm512_mul_ps(grad, _mm512_mul_ps(gate, cdf)));
            store(grad_in + at + width, mask, _mm512_mul_ps(_mm512_mul_ps(grad, h), grad_gelu));
        }
    return 0;
}

/* The gates of feed-forward layers. */

#include "simd.h"

/* out = gelu(gate) h, for rows of `width` numbers h and as many of gate behind them */
int gated(const number *in, number *out, i64 rows, i64 width)
{
#pragma omp parallel for schedule(static)
    for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < width; i += LANES) {
            const number *h = in + r * 2 * width + i;
            __mmask16 some = first(width - i);
            put(out + r * width + i, some, _mm512_mul_ps(gelu(floats(some, h + width)), floats(some, h)));
        }
    return 0;
}

/* the way back: from the slope of that, (rows, width), to those of h and gate, (rows, 2 width) */
int gated_back(const number *in, const number *slope, number *out, i64 rows, i64 width)
{
    const __m512 even = _mm512_set1_ps(-0.5f * 1.44269504f), peak = _mm512_set1_ps(0.398942280f); /* of a normal's density */
#pragma omp parallel for schedule(static)
    for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < width; i += LANES) {
            i64 at = r * 2 * width + i;
            __mmask16 some = first(width - i);
            __m512 h = floats(some, in + at), gate = floats(some, in + at + width), of = floats(some, slope + r * width + i);
            __m512 below = normal(gate), density = power_or_none(_mm512_mul_ps(_mm512_mul_ps(gate, gate), even));
            __m512 steep = _mm512_fmadd_ps(_mm512_mul_ps(gate, peak), density, below);
            put(out + at, some, _mm512_mul_ps(of, _mm512_mul_ps(gate, below)));
            put(out + at + width, some, _mm512_mul_ps(_mm512_mul_ps(of, h), steep));
        }
    return 0;
}

/* The gates of feed-forward layers. */

#include "vectors.h"

/* out = gelu(gate) h, for rows of `width` numbers h and as many of gate behind them */
void gated(const number *in, number *out, i64 rows, i64 width)
{
#pragma omp parallel for schedule(static)
    for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < width; i += LANES) {
            const number *h = in + r * 2 * width + i;
            __mmask16 some = first(width - i);
            put(out + r * width + i, some, _mm512_mul_ps(gelu(floats(some, h + width)), floats(some, h)));
        }
}

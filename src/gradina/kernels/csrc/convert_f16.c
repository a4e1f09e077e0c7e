/* float16 -> bfloat16, rounded to nearest, for float16 checkpoints computed in bfloat16. */

#include "simd.h"

#ifdef BF16
int f16_to_bf16(const uint16_t *in, scalar_t *out, i64 count)
{
    enum { CHUNK = 1 << 14 };
#pragma omp parallel for schedule(static)
    for (i64 start = 0; start < count; start += CHUNK)
        for (i64 i = start; i < min_i64(start + CHUNK, count); i += LANES) {
            __mmask16 mask = tail_mask(count - i);
            store(out + i, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, in + i)));
        }
    return 0;
}
#endif

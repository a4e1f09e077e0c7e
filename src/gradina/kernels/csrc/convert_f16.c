/* From one half precision to the other. */

#include "simd.h"

#ifdef BF16
/* numbers of half precision -> the nearest of bfloat16 */
int nearest(const uint16_t *in, number *out, i64 count)
{
    enum { AT_ONCE = 1 << 14 };
#pragma omp parallel for schedule(static)
    for (i64 start = 0; start < count; start += AT_ONCE)
        for (i64 i = start; i < least(start + AT_ONCE, count); i += LANES) {
            __mmask16 some = first(count - i);
            put(out + i, some, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, in + i)));
        }
    return 0;
}
#endif

/* What threads do with numbers that are too small to be normal. */

#include "simd.h"

/* From now on all threads take them for 0, or do not: a core needs 50 times as long for one. Returns what was so before. */
int flush(i64 on)
{
    const unsigned both = _MM_FLUSH_ZERO_MASK | _MM_DENORMALS_ZERO_MASK;
    int before = (_mm_getcsr() & both) == both;
#pragma omp parallel
    _mm_setcsr(on ? _mm_getcsr() | both : _mm_getcsr() & ~both);
    return before;
}

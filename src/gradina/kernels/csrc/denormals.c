/* Flushing of denormals, on each of which a core spends about 50 times as long as on a normal number. */

#include "simd.h"

/* Sets or clears flush-to-zero (results) and denormals-are-zero (operands) in all OpenMP threads; returns whether both
   were set before. */
int flush_denormals(i64 on)
{
    const unsigned flags = _MM_FLUSH_ZERO_MASK | _MM_DENORMALS_ZERO_MASK;
    int before = (_mm_getcsr() & flags) == flags;
#pragma omp parallel
    _mm_setcsr(on ? _mm_getcsr() | flags : _mm_getcsr() & ~flags);
    return before;
}

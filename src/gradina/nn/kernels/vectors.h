/* What the kernels share: numbers, sixteen at a time, on CPUs with AVX-512. Compiled for float, or with -DBF16 for
   bfloat16, where the processor multiplies pairs of them. */

#include <immintrin.h>
#include <stdint.h>

typedef int64_t i64;

#ifdef BF16
typedef uint16_t number;
#else
typedef float number;
#endif

enum { LANES = 16 };

static inline i64 up(i64 n, i64 step) { return (n + step - 1) / step * step; }

static inline __mmask16 first(i64 n) { return (__mmask16)(n >= LANES ? 0xffff : (1 << (n > 0 ? n : 0)) - 1); }

/* numbers <-> single precision; what is not there is 0 */
static inline __m512 floats(__mmask16 some, const number *from)
{
#ifdef BF16
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from)), 16));
#else
    return _mm512_maskz_loadu_ps(some, from);
#endif
}

static inline void put(number *to, __mmask16 some, __m512 x)
{
#ifdef BF16
    _mm256_mask_storeu_epi16(to, some, (__m256i)_mm512_cvtneps_pbh(x));
#else
    _mm512_mask_storeu_ps(to, some, x);
#endif
}

/* 2^x, to 2e-7 of it; to 8e-5, where it is rounded to bfloat16 */
static inline __attribute__((always_inline)) __m512 power_of_two(__m512 x)
{
#ifdef BF16
    const float to[] = {7.80244235e-2f, 2.26067297e-1f, 6.95833492e-1f, 9.99925221e-1f};
#else
    const float to[] = {1.87757554e-03f, 8.98934284e-03f, 5.58263157e-02f, 2.40153618e-01f, 6.93153073e-01f, 9.99999925e-01f};
#endif
    __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC), y = _mm512_set1_ps(to[0]);
    for (unsigned i = 1; i < sizeof to / sizeof *to; i++) y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(to[i]));
    return _mm512_scalef_ps(y, x);
}

#ifdef AMX
/* eight tiles of 16 rows of 64 bytes, for the thread that asks */
static inline void set_tiles(void)
{
    struct { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    _tile_loadconfig(&shape);
}

#define BARRIER __asm__ volatile("" ::: "memory") /* compilers do not know that tiles are loaded and stored */
#endif

/* What the kernels share: numbers, sixteen at a time, on CPUs with AVX-512. Compiled for float, or with -DBF16 for
   bfloat16, where the processor multiplies pairs of them. What computes for others returns 0, or 1 where there is no
   memory. */

#pragma once

#include <immintrin.h>
#include <stdint.h>

typedef int64_t i64;

#ifdef BF16
typedef uint16_t number;
#else
typedef float number;
#endif

enum { LANES = 16 };

static inline i64 least(i64 a, i64 b) { return a < b ? a : b; }
static inline i64 parts_of(i64 all, i64 each) { return (all + each - 1) / each; }
static inline i64 up(i64 n, i64 step) { return parts_of(n, step) * step; }

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

/* the same, or 0 where it is below 2^-64: numbers too small to be normal ones take a core 50 times as long. What is no number
   stays none. */
static inline __m512 power_or_none(__m512 x)
{
    const __m512 least = _mm512_set1_ps(-64.0f);
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), power_of_two(_mm512_max_ps(least, x)));
}

/* P(X < x) for a normal X */
static inline __attribute__((always_inline)) __m512 normal(__m512 x)
{
#ifdef BF16
    /* x P to 8e-6, before it is rounded: (P - 1/2) / x is a polynomial in 2/25 x^2 - 1, fitted to x^2 times the error, up
       to 5 */
    const float to[] = {2.27719569e-03f, -6.27791462e-03f, 7.02143600e-03f, -8.33000708e-03f, 1.55477906e-02f,
                        -2.42150556e-02f, 3.17441784e-02f, -4.03191932e-02f, 5.14880084e-02f,
                        -7.03005195e-02f, 1.41364306e-01f};
    const __m512 low = _mm512_set1_ps(-5.0f), high = _mm512_set1_ps(5.0f), half = _mm512_set1_ps(0.5f);
    __m512 near = _mm512_min_ps(_mm512_max_ps(x, low), high);
    __m512 u = _mm512_fmsub_ps(_mm512_mul_ps(near, near), _mm512_set1_ps(2 / 25.0f), _mm512_set1_ps(1.0f));
    __m512 y = _mm512_set1_ps(to[0]);
    for (unsigned k = 1; k < sizeof to / sizeof *to; k++) y = _mm512_fmadd_ps(y, u, _mm512_set1_ps(to[k]));
    __mmask16 above = _mm512_cmp_ps_mask(x, low, _CMP_NLE_UQ); /* what is no number stays none */
    return _mm512_maskz_fmadd_ps(above, near, y, half);
#else
    /* to 6e-7 of it: P below -|x| is exp(-x^2 / 2) / 2 times a polynomial in t = 1 / (1 + 0.44 |x| / sqrt(2)) */
    const float to[] = {0.0714897316f, -0.279104928f, 0.298773831f, -0.0221974705f, 0.216936211f,
                        0.216954032f, 0.248932010f, 0.248216773f};
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 below = power_of_two(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f * 1.44269504f)));
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.44f * 0.707106781f), one));
    __m512 y = _mm512_set1_ps(to[0]);
    for (unsigned k = 1; k < sizeof to / sizeof *to; k++) y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(to[k]));
    y = _mm512_mul_ps(_mm512_mul_ps(y, t), _mm512_mul_ps(below, _mm512_set1_ps(0.5f)));
    __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mask_sub_ps(y, above, one, y);
#endif
}

/* x P(X < x) */
static inline __attribute__((always_inline)) __m512 gelu(__m512 x) { return _mm512_mul_ps(x, normal(x)); }

/* Sixteen float32 at a time with AVX-512, for all kernels. Compiled for float32, or with -DBF16 for bfloat16. Exported
   functions that compute return 0, or 1 when out of memory. */

#pragma once

#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

typedef int64_t i64;

#ifdef BF16
typedef uint16_t scalar_t;
#else
typedef float scalar_t;
#endif

enum { LANES = 16 };

static inline i64 min_i64(i64 a, i64 b) { return a < b ? a : b; }
static inline i64 ceil_div(i64 n, i64 step) { return (n + step - 1) / step; }
static inline i64 round_up(i64 n, i64 step) { return ceil_div(n, step) * step; }

/* the first n of 16 lanes */
static inline __mmask16 tail_mask(i64 n) { return (__mmask16)(n >= LANES ? 0xffff : (1 << (n > 0 ? n : 0)) - 1); }

/* scalar_t -> float32; 0 where the mask is */
static inline __m512 load(__mmask16 mask, const scalar_t *from)
{
#ifdef BF16
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
#else
    return _mm512_maskz_loadu_ps(mask, from);
#endif
}

/* float32 -> scalar_t, rounded to nearest */
static inline void store(scalar_t *to, __mmask16 mask, __m512 x)
{
#ifdef BF16
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(x));
#else
    _mm512_mask_storeu_ps(to, mask, x);
#endif
}

/* 2^x with a relative error of 2e-7, or of 8e-5 for bfloat16, by a polynomial in the fraction of x */
INLINE __m512 exp2_ps(__m512 x)
{
#ifdef BF16
    const float c[] = {7.80244235e-2f, 2.26067297e-1f, 6.95833492e-1f, 9.99925221e-1f};
#else
    const float c[] = {1.87757554e-03f, 8.98934284e-03f, 5.58263157e-02f,
                       2.40153618e-01f, 6.93153073e-01f, 9.99999925e-01f};
#endif
    __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC), y = _mm512_set1_ps(c[0]);
    for (unsigned i = 1; i < sizeof c / sizeof *c; i++) y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(c[i]));
    return _mm512_scalef_ps(y, x);
}

/* exp2_ps flushed to 0 below 2^-64, since denormals take 50 times as long; propagates NaN */
static inline __m512 exp2_flushed(__m512 x)
{
    const __m512 lowest = _mm512_set1_ps(-64.0f);
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, lowest, _CMP_NLT_UQ), exp2_ps(_mm512_max_ps(lowest, x)));
}

/* P(X < x) of a standard normal X; propagates NaN */
INLINE __m512 normal_cdf(__m512 x)
{
#ifdef BF16
    /* x P has an error of 8e-6 before rounding: (P - 1/2) / x is a polynomial in 2/25 x^2 - 1, fitted up to |x| = 5
       with the error weighted by x^2 */
    const float c[] = {2.27719569e-03f, -6.27791462e-03f, 7.02143600e-03f, -8.33000708e-03f,
                       1.55477906e-02f, -2.42150556e-02f, 3.17441784e-02f, -4.03191932e-02f,
                       5.14880084e-02f, -7.03005195e-02f, 1.41364306e-01f};
    const __m512 low = _mm512_set1_ps(-5.0f), high = _mm512_set1_ps(5.0f), half = _mm512_set1_ps(0.5f);
    __m512 clamped = _mm512_min_ps(_mm512_max_ps(x, low), high);
    __m512 u = _mm512_fmsub_ps(_mm512_mul_ps(clamped, clamped), _mm512_set1_ps(2 / 25.0f), _mm512_set1_ps(1.0f));
    __m512 y = _mm512_set1_ps(c[0]);
    for (unsigned k = 1; k < sizeof c / sizeof *c; k++) y = _mm512_fmadd_ps(y, u, _mm512_set1_ps(c[k]));
    __mmask16 above = _mm512_cmp_ps_mask(x, low, _CMP_NLE_UQ); /* unordered: true for NaN */
    return _mm512_maskz_fmadd_ps(above, clamped, y, half);
#else
    /* relative error 6e-7: P(X < -|x|) is exp(-x^2 / 2) / 2 times a polynomial in t = 1 / (1 + 0.44 |x| / sqrt(2)) */
    const float c[] = {0.0714897316f, -0.279104928f, 0.298773831f, -0.0221974705f,
                       0.216936211f,  0.216954032f,  0.248932010f, 0.248216773f};
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 density = exp2_ps(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f * 1.44269504f)));
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.44f * 0.707106781f), one));
    __m512 y = _mm512_set1_ps(c[0]);
    for (unsigned k = 1; k < sizeof c / sizeof *c; k++) y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(c[k]));
    y = _mm512_mul_ps(_mm512_mul_ps(y, t), _mm512_mul_ps(density, _mm512_set1_ps(0.5f)));
    __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mask_sub_ps(y, above, one, y);
#endif
}

/* x P(X < x). Source: Hendrycks & Gimpel, "Gaussian Error Linear Units" (1606.08415). */
INLINE __m512 gelu(__m512 x) { return _mm512_mul_ps(x, normal_cdf(x)); }

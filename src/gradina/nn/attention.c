/* softmax(q k' / sqrt(d)) v for CPUs with AVX-512, without ever writing all scores to memory.

   Compiled once for float, and once, with -DBF16, for bfloat16 where the processor multiplies pairs of them. Keys and
   values are packed once for each head. Then every thread takes tiles of queries and goes over the keys tile by tile
   with a running maximum and sum for each query (Dao, "FlashAttention-2", 2023, algorithm 1); the scores of a tile stay
   in the caches nearest to the core. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t i64;

#ifdef BF16
typedef uint16_t number;
typedef uint32_t unit; /* what is multiplied at once: two numbers, one behind the other */
enum { IN_UNIT = 2 };
#define MULTIPLY_ADD(sum, one, row) _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)(one)), (__m512bh)(row))
#define LOAD(from) _mm512_loadu_si512(from)
typedef __m512i units;
#else
typedef float number;
typedef float unit;
enum { IN_UNIT = 1 };
#define MULTIPLY_ADD(sum, one, row) _mm512_fmadd_ps(_mm512_set1_ps(one), row, sum)
#define LOAD(from) _mm512_loadu_ps(from)
typedef __m512 units;
#endif

enum { LANES = 16, QUERIES = 48, KEYS = 256, WIDEST = 512 }; /* WIDEST: native.py knows it, too */

typedef struct {
    const number *at;
    i64 batch, head, token; /* strides, in numbers */
} View;

static inline const number *row_of(const View *x, i64 b, i64 h, i64 n)
{
    return x->at + b * x->batch + h * x->head + n * x->token;
}

static inline unit unit_of(const number *row, i64 i, i64 count, i64 step)
{
#ifdef BF16
    return (unit)(i < count ? row[i * step] : 0) | (unit)(i + 1 < count ? row[(i + 1) * step] : 0) << 16;
#else
    return i < count ? row[i * step] : 0;
#endif
}

static inline i64 up(i64 n, i64 step) { return (n + step - 1) / step * step; }

/* keys (m, d) -> [sixteen keys at a time][units of d][key] */
static void pack_keys(const View *k, i64 b, i64 h, i64 m, i64 d, unit *out)
{
    i64 deep = up(d, IN_UNIT) / IN_UNIT;
    for (i64 n = 0; n < up(m, LANES); n++) {
        unit *to = out + n / LANES * LANES * deep + n % LANES;
        const number *row = row_of(k, b, h, n < m ? n : 0);
        for (i64 i = 0; i < deep; i++) to[i * LANES] = unit_of(row, i * IN_UNIT, n < m ? d : 0, 1);
    }
}

/* values (m, d) -> [units of keys][d] */
static void pack_values(const View *v, i64 b, i64 h, i64 m, i64 d, unit *out)
{
    i64 wide = up(d, LANES);
    for (i64 n = 0; n < up(m, LANES); n += IN_UNIT) {
        unit *to = out + n / IN_UNIT * wide;
        const number *row = row_of(v, b, h, n < m ? n : 0);
        for (i64 i = 0; i < wide; i++) to[i] = unit_of(row + (i < d ? i : 0), 0, i < d ? m - n : 0, v->token);
    }
}

/* out[r][column] (+)= sum over p of a[r][p] b[p][column], for ROWS rows and WIDE vectors of columns: `down` units lie
   between one p and the next, `across` between one vector of columns and the next */
#define PRODUCT(ROWS, WIDE)                                                                                       \
    static inline __attribute__((always_inline)) void product_##WIDE(const unit *a, i64 lda, const unit *b,       \
                                                                     i64 down, i64 across, i64 deep, float *out,  \
                                                                     i64 ldo, int adds)                           \
    {                                                                                                             \
        for (i64 r = 0; r < QUERIES; r += ROWS) {                                                                 \
            __m512 sum[ROWS][WIDE];                                                                               \
            for (int i = 0; i < ROWS; i++)                                                                        \
                for (int c = 0; c < WIDE; c++)                                                                    \
                    sum[i][c] = adds ? _mm512_loadu_ps(out + (r + i) * ldo + LANES * c) : _mm512_setzero_ps();    \
            for (i64 p = 0; p < deep; p++) {                                                                      \
                units row[WIDE];                                                                                  \
                for (int c = 0; c < WIDE; c++) row[c] = LOAD(b + p * down + c * across);                          \
                for (int i = 0; i < ROWS; i++)                                                                    \
                    for (int c = 0; c < WIDE; c++)                                                                \
                        sum[i][c] = MULTIPLY_ADD(sum[i][c], a[(r + i) * lda + p], row[c]);                        \
            }                                                                                                     \
            for (int i = 0; i < ROWS; i++)                                                                        \
                for (int c = 0; c < WIDE; c++) _mm512_storeu_ps(out + (r + i) * ldo + LANES * c, sum[i][c]);      \
        }                                                                                                         \
    }

PRODUCT(6, 4)
PRODUCT(8, 3)
PRODUCT(12, 2)
PRODUCT(16, 1)

static inline __attribute__((always_inline)) void product(const unit *a, i64 lda, const unit *b, i64 down, i64 across,
                                                          i64 deep, i64 vectors, float *out, i64 ldo, int adds)
{
    for (i64 c = 0; c < vectors;) {
        i64 left = vectors - c, take = left == 5 || left == 3 ? 3 : left < 4 ? left : 4;
        const unit *from = b + c * across;
        float *to = out + c * LANES;
        if (take == 4) product_4(a, lda, from, down, across, deep, to, ldo, adds);
        if (take == 3) product_3(a, lda, from, down, across, deep, to, ldo, adds);
        if (take == 2) product_2(a, lda, from, down, across, deep, to, ldo, adds);
        if (take == 1) product_1(a, lda, from, down, across, deep, to, ldo, adds);
        c += take;
    }
}

/* 2^x for x <= 0, to 2e-7 of it */
static inline __attribute__((always_inline)) __m512 power_of_two(__m512 x)
{
    x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, whole), y = _mm512_set1_ps(1.32647273e-3f);
    const float to[] = {9.67151279e-3f, 5.55073374e-2f, 2.40222421e-1f, 6.93146978e-1f, 1.0f};
    for (int i = 0; i < 5; i++) y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(to[i]));
    return _mm512_scalef_ps(y, whole);
}

/* scores -> shares of one query over a tile of keys; `most` and `total` are its running maximum and sum, `sum` fades */
static inline __attribute__((always_inline)) void share(const float *score, i64 vectors, float scale, float *most,
                                                        float *total, float *sum, i64 wide, unit *out)
{
    __m512 high = _mm512_loadu_ps(score), all = _mm512_setzero_ps();
    for (i64 c = 1; c < vectors; c++) high = _mm512_max_ps(high, _mm512_loadu_ps(score + c * LANES));
    float top = _mm512_reduce_max_ps(high) * scale;
    if (top > *most) {
        float fade = exp2f(*most - top);
        *most = top, *total *= fade;
        for (i64 i = 0; i < wide; i += LANES)
            _mm512_storeu_ps(sum + i, _mm512_mul_ps(_mm512_loadu_ps(sum + i), _mm512_set1_ps(fade)));
    }
    for (i64 c = 0; c < vectors; c++) {
        __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(score + c * LANES), _mm512_set1_ps(scale), _mm512_set1_ps(*most));
        x = power_of_two(x);
        all = _mm512_add_ps(all, x);
#ifdef BF16
        _mm256_storeu_si256((__m256i *)(out + c * LANES / 2), (__m256i)_mm512_cvtneps_pbh(x));
#else
        _mm512_storeu_ps(out + c * LANES, x);
#endif
    }
    *total += _mm512_reduce_add_ps(all);
}

/* one tile of queries over all keys */
static void attend(const unit *keys, const unit *values, const View *q, i64 b, i64 h, i64 from, i64 rows, i64 m, i64 d,
                   float scale, number *out, i64 out_token)
{
    i64 deep = up(d, IN_UNIT) / IN_UNIT, wide = up(d, LANES);
    unit query[QUERIES * WIDEST / IN_UNIT] __attribute__((aligned(64)));
    unit shares[QUERIES * KEYS / IN_UNIT] __attribute__((aligned(64)));
    float score[QUERIES * KEYS] __attribute__((aligned(64)));
    float sum[QUERIES * WIDEST] __attribute__((aligned(64)));
    float most[QUERIES], total[QUERIES];
    for (i64 r = 0; r < QUERIES; r++) {
        const number *row = row_of(q, b, h, from + (r < rows ? r : 0));
        most[r] = -INFINITY, total[r] = 0;
        for (i64 i = 0; i < deep; i++) query[r * deep + i] = unit_of(row, i * IN_UNIT, d, 1);
    }
    memset(sum, 0, sizeof(float) * QUERIES * wide);
    for (i64 key = 0; key < m; key += KEYS) {
        i64 here = m - key < KEYS ? m - key : KEYS, vectors = up(here, LANES) / LANES;
        product(query, deep, keys + key * deep, LANES, deep * LANES, deep, vectors, score, KEYS, 0);
        for (i64 r = 0; r < QUERIES; r++) {
            for (i64 i = here; i < vectors * LANES; i++) score[r * KEYS + i] = -INFINITY; /* behind the last key */
            share(score + r * KEYS, vectors, scale, most + r, total + r, sum + r * wide, wide,
                  shares + r * (KEYS / IN_UNIT));
        }
        product(shares, KEYS / IN_UNIT, values + key / IN_UNIT * wide, wide, LANES, vectors * LANES / IN_UNIT,
                wide / LANES, sum, wide, 1);
    }
    for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < d; i += LANES) {
            __m512 x = _mm512_mul_ps(_mm512_loadu_ps(sum + r * wide + i), _mm512_set1_ps(1 / total[r]));
            __mmask16 some = (__mmask16)(d - i >= LANES ? 0xffff : (1 << (d - i)) - 1);
#ifdef BF16
            _mm256_mask_storeu_epi16(out + r * out_token + i, some, (__m256i)_mm512_cvtneps_pbh(x));
#else
            _mm512_mask_storeu_ps(out + r * out_token + i, some, x);
#endif
        }
}

/* q (batch, heads, n, d), k and v (batch, heads, m, d), each with its three strides; out (batch, n, heads, d). Returns
   0, or 1 where there is no memory for what is packed. d may be up to 512. */
int attention(const number *q, const i64 *qs, const number *k, const i64 *ks, const number *v, const i64 *vs, number *out,
              i64 batch, i64 heads, i64 n, i64 m, i64 d)
{
    View Q = {q, qs[0], qs[1], qs[2]}, K = {k, ks[0], ks[1], ks[2]}, V = {v, vs[0], vs[1], vs[2]};
    i64 of_keys = up(m, LANES) * up(d, IN_UNIT) / IN_UNIT, of_both = up(of_keys + up(m, LANES) / IN_UNIT * up(d, LANES), 16);
    i64 tiles = (n + QUERIES - 1) / QUERIES;
    float scale = (float)(1.4426950408889634 / sqrt((double)d)); /* powers are of two instead of e */
    unit *packed = aligned_alloc(64, sizeof(unit) * (size_t)(of_both * batch * heads));
    if (!packed) return 1;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (i64 i = 0; i < batch * heads; i++) {
            pack_keys(&K, i / heads, i % heads, m, d, packed + i * of_both);
            pack_values(&V, i / heads, i % heads, m, d, packed + i * of_both + of_keys);
        }
#pragma omp for schedule(static)
        for (i64 i = 0; i < batch * heads * tiles; i++) {
            i64 head = i / tiles, from = i % tiles * QUERIES, b = head / heads, h = head % heads;
            const unit *at = packed + head * of_both;
            attend(at, at + of_keys, &Q, b, h, from, n - from < QUERIES ? n - from : QUERIES, m, d, scale,
                   out + ((b * n + from) * heads + h) * d, heads * d);
        }
    }
    free(packed);
    return 0;
}

/* whether this processor has what this file was compiled for */
int usable(void)
{
#ifdef BF16
    if (!__builtin_cpu_supports("avx512bf16")) return 0;
#endif
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

/* softmax(q k' / sqrt(d)) v, without ever writing all scores to memory.

   With -DAMX besides -DBF16 whole tiles of numbers are multiplied. Keys and values are packed once for each head. Then
   every thread takes tiles of queries and goes over the keys tile by tile with a running sum for each query, and a running
   maximum where scores may be too large to do without (Dao, "FlashAttention-2", 2023, algorithm 1); the scores of a tile
   stay in the caches nearest to the core. */

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "simd.h"
#ifdef AMX
#include "amx.h"
#endif

#ifdef BF16
typedef uint32_t unit; /* what is multiplied at once: two numbers, one behind the other */
enum { IN_UNIT = 2 };
#define MULTIPLY_ADD(sum, one, row) _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)(one)), (__m512bh)(row))
#define LOAD(from) _mm512_loadu_si512(from)
#define STORE(to, mask, x) _mm512_mask_storeu_epi32(to, mask, x)
#define SCATTER(to, mask, apart, x) _mm512_mask_i32scatter_epi32(to, mask, apart, x, 4)
typedef __m512i units;
#else
typedef float unit;
enum { IN_UNIT = 1 };
#define MULTIPLY_ADD(sum, one, row) _mm512_fmadd_ps(_mm512_set1_ps(one), row, sum)
#define LOAD(from) _mm512_loadu_ps(from)
#define STORE(to, mask, x) _mm512_mask_storeu_ps(to, mask, x)
#define SCATTER(to, mask, apart, x) _mm512_mask_i32scatter_ps(to, mask, apart, x, 4)
typedef __m512 units;
#endif

enum { WIDEST = 512, LIMIT = 120, NEAR = 1 << 19, AHEAD = 16 };
/* each core packs heads of up to NEAR units before they are used: what stays in its cache. */
/* a head of queries is filled up with zeros to a multiple of STEP numbers: they are multiplied by what lies behind a head of
   keys, which is not filled up. Keys are, to a multiple of TOGETHER: the numbers in a unit of shares, or of values, belong
   to keys that are LANES apart */
enum { TOGETHER = LANES * IN_UNIT };
#ifdef AMX
enum { QUERIES = 32, KEYS = 96, STEP = LANES * IN_UNIT };
#else
enum { QUERIES = 48, KEYS = 256, STEP = IN_UNIT };
#endif

typedef struct {
    const number *at;
    i64 batch, head, token; /* strides, in numbers */
} View;

static inline const number *row_of(const View *x, i64 b, i64 h, i64 n)
{
    return x->at + b * x->batch + h * x->head + n * x->token;
}

/* a vector of the units that begin here; `left` numbers of them are there, the others are 0 */
static inline units units_of(const number *from, i64 left)
{
#ifdef BF16
    __mmask32 there = left >= 2 * LANES ? 0xffffffff : (1u << (left > 0 ? left : 0)) - 1;
    return _mm512_maskz_loadu_epi16(there, from);
#else
    return _mm512_maskz_loadu_ps(first(left), from);
#endif
}

/* what is read AHEAD rows later, here by then: no processor foresees rows so far apart */
static inline void fetch(const View *x, i64 b, i64 h, i64 n, i64 end, i64 d)
{
    if (n >= end) return;
    const number *row = row_of(x, b, h, n);
    for (i64 i = 0; i < d; i += 64 / (i64)sizeof(number)) _mm_prefetch((const char *)(row + i), _MM_HINT_T0);
    _mm_prefetch((const char *)(row + d - 1), _MM_HINT_T0);
}

/* keys (m, d) -> [sixteen keys at a time][units of d][key], and zeros for a head to be filled up with behind them */
static void pack_keys(const View *k, i64 b, i64 h, i64 m, i64 d, unit *out)
{
    const __m512i apart = _mm512_mullo_epi32(_mm512_set1_epi32(LANES), _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7,
                                                                                        6, 5, 4, 3, 2, 1, 0));
    i64 thin = up(d, IN_UNIT) / IN_UNIT;
    for (i64 n = 0; n < up(m, TOGETHER); n++) {
        unit *to = out + n / LANES * LANES * thin + n % LANES;
        const number *row = row_of(k, b, h, n < m ? n : 0);
        fetch(k, b, h, n + AHEAD, m, d);
        for (i64 i = 0; i < thin; i += LANES) {
            units some = units_of(row + i * IN_UNIT, n < m ? d - i * IN_UNIT : 0);
            SCATTER(to + i * LANES, first(thin - i), apart, some);
        }
    }
    memset(out + up(m, TOGETHER) * thin, 0, sizeof(unit) * (size_t)(LANES * (up(d, STEP) / IN_UNIT - thin)));
}

/* values (m, d) -> [units of keys][d], and 1 behind d, where there is room: so that shares are summed besides */
static void pack_values(const View *v, i64 b, i64 h, i64 m, i64 d, unit *out)
{
    i64 wide = up(d, LANES);
    for (i64 u = 0; u < up(m, TOGETHER) / IN_UNIT; u++) {
        i64 n = u / LANES * TOGETHER + u % LANES;
        unit *to = out + u * wide;
        fetch(v, b, h, n + AHEAD, m, d);
        if (IN_UNIT > 1) fetch(v, b, h, n + LANES + AHEAD, m, d);
        for (i64 i = 0; i < wide; i += LANES) {
#ifdef BF16
            i64 other = n + LANES;
            __mmask16 there[2] = {first(n < m ? d - i : 0), first(other < m ? d - i : 0)};
            __m256i low = _mm256_maskz_loadu_epi16(there[0], row_of(v, b, h, n) + i);
            __m256i high = _mm256_maskz_loadu_epi16(there[1], row_of(v, b, h, other) + i);
            __m512i behind = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
            _mm512_storeu_si512(to + i, _mm512_or_si512(_mm512_cvtepu16_epi32(low), behind));
#else
            _mm512_storeu_ps(to + i, units_of(row_of(v, b, h, n) + i, n < m ? d - i : 0));
#endif
        }
#ifdef BF16
        if (wide > d) to[d] = (n < m ? 0x3f80u : 0) | (n + LANES < m ? 0x3f800000u : 0);
#endif
    }
}

/* out[r][column] (+)= sum over p of a[r][p] b[p][column]: `down` units lie between one p and the next, `across` between
   one vector of columns and the next */
#ifdef AMX

/* two tiles of rows by one or two of columns: tiles 0 to 3 are sums, 4 and 5 of a, 6 and 7 of b */
static inline __attribute__((always_inline)) void tiles(const unit *a, i64 lda, const unit *b, i64 down, i64 across,
                                                        i64 deep, int both, float *out, i64 ldo, int adds)
{
    const i64 of_a = lda * (i64)sizeof(unit), of_b = down * (i64)sizeof(unit), of_out = ldo * (i64)sizeof(float);
    float *low = out + LANES * ldo;
    if (adds) {
        _tile_loadd(0, out, of_out);
        _tile_loadd(1, low, of_out);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    if (both && adds) {
        _tile_loadd(2, out + LANES, of_out);
        _tile_loadd(3, low + LANES, of_out);
    } else if (both) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (i64 p = 0; p < deep; p += LANES) {
        _tile_loadd(4, a + p, of_a);
        _tile_loadd(6, b + p * down, of_b);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + LANES * lda + p, of_a);
        _tile_dpbf16ps(1, 5, 6);
        if (both) {
            _tile_loadd(7, b + p * down + across, of_b);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out, of_out);
    _tile_stored(1, low, of_out);
    if (both) {
        _tile_stored(2, out + LANES, of_out);
        _tile_stored(3, low + LANES, of_out);
    }
}

/* two tiles of rows by three of columns, added: all their sums stay in tiles 0 to 5; 6 is of b, and 7 of a */
static inline __attribute__((always_inline)) void six_tiles(const unit *a, i64 lda, const unit *b, i64 down, i64 across,
                                                            i64 deep, float *out, i64 ldo)
{
    const i64 of_a = lda * (i64)sizeof(unit), of_b = down * (i64)sizeof(unit), of_out = ldo * (i64)sizeof(float);
#define SIX(done)                         \
    done(0, out);                         \
    done(1, out + LANES * ldo);           \
    done(2, out + LANES);                 \
    done(3, out + LANES * ldo + LANES);   \
    done(4, out + 2 * LANES);             \
    done(5, out + LANES * ldo + 2 * LANES);
#define TAKEN(i, at) _tile_loadd(i, at, of_out)
#define PUT(i, at) _tile_stored(i, at, of_out)
    SIX(TAKEN)
    for (i64 p = 0; p < deep; p += LANES, a += LANES, b += LANES * down) {
        const unit *low = a + LANES * lda;
        _tile_loadd(6, b, of_b);
        _tile_loadd(7, a, of_a);
        _tile_dpbf16ps(0, 7, 6);
        _tile_loadd(7, low, of_a);
        _tile_dpbf16ps(1, 7, 6);
        _tile_loadd(6, b + across, of_b);
        _tile_dpbf16ps(3, 7, 6);
        _tile_loadd(7, a, of_a);
        _tile_dpbf16ps(2, 7, 6);
        _tile_loadd(6, b + 2 * across, of_b);
        _tile_dpbf16ps(4, 7, 6);
        _tile_loadd(7, low, of_a);
        _tile_dpbf16ps(5, 7, 6);
    }
    SIX(PUT)
}

static void product(const unit *a, i64 lda, const unit *b, i64 down, i64 across, i64 deep, i64 vectors, float *out,
                    i64 ldo, int adds)
{
    i64 c = 0;
    BARRIER;
    for (; adds && vectors - c > 2 && vectors - c != 4; c += 3)
        six_tiles(a, lda, b + c * across, down, across, deep, out + c * LANES, ldo);
    for (; c + 1 < vectors; c += 2) tiles(a, lda, b + c * across, down, across, deep, 1, out + c * LANES, ldo, adds);
    if (c < vectors) tiles(a, lda, b + c * across, down, across, deep, 0, out + c * LANES, ldo, adds);
    BARRIER;
}

#else

/* ... for ROWS rows and WIDE vectors of columns at a time */
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

#endif

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
    for (i64 c = 0; c < vectors; c += IN_UNIT) {
        __m512 x[IN_UNIT];
        for (int i = 0; i < IN_UNIT; i++) {
            x[i] = _mm512_loadu_ps(score + (c + i) * LANES);
            x[i] = power_of_two(_mm512_fmsub_ps(x[i], _mm512_set1_ps(scale), _mm512_set1_ps(*most)));
            all = _mm512_add_ps(all, x[i]);
        }
#ifdef BF16
        __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x[0]));
        __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x[1]));
        _mm512_storeu_si512(out + c / IN_UNIT * LANES, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
#else
        _mm512_storeu_ps(out + c * LANES, x[0]);
#endif
    }
    *total += _mm512_reduce_add_ps(all);
}

/* the length of the longest of n rows */
static float longest(const View *x, i64 b, i64 h, i64 n, i64 d)
{
    float most = 0;
    for (i64 r = 0; r < n; r++) {
        const number *row = row_of(x, b, h, r);
        __m512 sum = _mm512_setzero_ps();
        for (i64 i = 0; i < d; i += LANES) {
            __m512 y = floats(first(d - i), row + i);
            sum = _mm512_fmadd_ps(y, y, sum);
        }
        float square = _mm512_reduce_add_ps(sum);
        if (!(square <= most)) most = square; /* what is no number is kept */
        if (most != most) break;
    }
    return sqrtf(most);
}

/* one tile of queries over all keys: sums (QUERIES, d) of values by their shares, and totals of the shares */
static inline __attribute__((always_inline)) void unbounded(const unit *query, const unit *keys, const unit *values,
                                                            i64 m, i64 d, float scale, float *sum, float *total)
{
    i64 deep = up(d, STEP) / IN_UNIT, thin = up(d, IN_UNIT) / IN_UNIT, wide = up(d, LANES);
    unit shares[QUERIES * KEYS / IN_UNIT] __attribute__((aligned(64)));
    float score[QUERIES * KEYS] __attribute__((aligned(64)));
    float most[QUERIES];
    for (i64 r = 0; r < QUERIES; r++) most[r] = -INFINITY, total[r] = 0;
    for (i64 key = 0; key < m; key += KEYS) {
        i64 here = m - key < KEYS ? m - key : KEYS, vectors = up(here, TOGETHER) / LANES;
        product(query, deep, keys + key * thin, LANES, thin * LANES, deep, vectors, score, KEYS, 0);
        for (i64 r = 0; r < QUERIES; r++) {
            for (i64 i = here; i < vectors * LANES; i++) score[r * KEYS + i] = -INFINITY; /* behind the last key */
            share(score + r * KEYS, vectors, scale, most + r, total + r, sum + r * wide, wide,
                  shares + r * (KEYS / IN_UNIT));
        }
        product(shares, KEYS / IN_UNIT, values + key / IN_UNIT * wide, wide, LANES, vectors * LANES / IN_UNIT,
                wide / LANES, sum, wide, 1);
    }
}

#ifdef BF16
/* 2^(scale score) for two vectors of scores, rounded to bfloat16, one beside the other: for powers between -LIMIT and
   LIMIT, in whole numbers of 16 bits. The power in 256ths, and 127 more, would be bfloat16 if 2^f were 1 + f between whole
   powers; it is less by 0.328 f (1.031 - f), to 0.002. */
static inline __attribute__((always_inline)) __m512i rounded_powers(const float *one, const float *other, __m512 scale)
{
    const __m512 whole = _mm512_set1_ps(12582912.0f + 127 * 256); /* added, it leaves no fraction: a number in the last bits */
    __m512i low = (__m512i)_mm512_fmadd_ps(_mm512_loadu_ps(one), scale, whole);
    __m512i high = (__m512i)_mm512_fmadd_ps(_mm512_loadu_ps(other), scale, whole);
    __m512i x = _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
    __m512i f = _mm512_and_si512(x, _mm512_set1_epi16(255));
    __m512i less = _mm512_mullo_epi16(f, _mm512_sub_epi16(_mm512_set1_epi16(264), f));
    return _mm512_srli_epi16(_mm512_sub_epi16(x, _mm512_mulhi_epu16(less, _mm512_set1_epi16(84))), 1);
}

/* scores -> shares for a tile of queries and `vectors` of keys that need no maximum; `totals` unless values sum them */
static inline __attribute__((always_inline)) void bounded_shares(const float *score, i64 vectors, float scale,
                                                                 float *totals, unit *out)
{
    const __m512 by = _mm512_set1_ps(256 * scale);
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    for (i64 r = 0; r < QUERIES; r++)
        for (i64 c = 0; c < vectors; c += 2) {
            __m512i both = rounded_powers(score + r * KEYS + c * LANES, score + r * KEYS + (c + 1) * LANES, by);
            _mm512_storeu_si512(out + r * (KEYS / 2) + c / 2 * LANES, both);
            if (totals) {
                __m512 sum = _mm512_loadu_ps(totals + r * LANES);
                _mm512_storeu_ps(totals + r * LANES, _mm512_dpbf16_ps(sum, (__m512bh)both, ones));
            }
        }
}

/* one tile of queries over all keys, where no score can be large: there is no need to know the largest */
static inline __attribute__((always_inline)) void bounded(const unit *query, const unit *keys, const unit *values, i64 m,
                                                          i64 d, float scale, float *sum, float *total)
{
    i64 deep = up(d, STEP) / IN_UNIT, thin = up(d, IN_UNIT) / IN_UNIT, wide = up(d, LANES);
    unit shares[QUERIES * KEYS / IN_UNIT] __attribute__((aligned(64)));
    float score[QUERIES * KEYS] __attribute__((aligned(64)));
    float totals[QUERIES * LANES] __attribute__((aligned(64))) = {0};
    for (i64 key = 0; key < m; key += KEYS) {
        i64 here = m - key < KEYS ? m - key : KEYS, vectors = up(here, TOGETHER) / LANES;
        product(query, deep, keys + key * thin, LANES, thin * LANES, deep, vectors, score, KEYS, 0);
        for (i64 i = here; i < vectors * LANES; i++)
            for (i64 r = 0; r < QUERIES; r++) score[r * KEYS + i] = -LIMIT / scale; /* behind the last key */
        bounded_shares(score, vectors, scale, wide > d ? 0 : totals, shares);
        product(shares, KEYS / IN_UNIT, values + key / IN_UNIT * wide, wide, LANES, vectors * LANES / IN_UNIT,
                wide / LANES, sum, wide, 1);
    }
    for (i64 r = 0; r < QUERIES; r++)
        total[r] = wide > d ? sum[r * wide + d] : _mm512_reduce_add_ps(_mm512_loadu_ps(totals + r * LANES));
}
#endif

/* one tile of queries; `limits` are the lengths of the longest key and value */
static void attend(const unit *keys, const unit *values, const float *limits, const View *q, i64 b, i64 h, i64 from,
                   i64 rows, i64 m, i64 d, float scale, number *out, i64 out_token)
{
    i64 deep = up(d, STEP) / IN_UNIT, wide = up(d, LANES);
    unit query[QUERIES * WIDEST / IN_UNIT] __attribute__((aligned(64)));
    float sum[QUERIES * WIDEST] __attribute__((aligned(64)));
    float total[QUERIES];
    for (i64 r = 0; r < QUERIES; r++) {
        const number *row = row_of(q, b, h, from + (r < rows ? r : 0));
        for (i64 i = 0; i < deep; i += LANES)
            STORE(query + r * deep + i, first(deep - i), units_of(row + i * IN_UNIT, d - i * IN_UNIT));
    }
    memset(sum, 0, sizeof(float) * QUERIES * wide);
    (void)limits;
#ifdef BF16
    View here = {row_of(q, b, h, from), 0, 0, q->token};
    float power = longest(&here, 0, 0, rows, d) * limits[0] * scale;
    if (power <= LIMIT && power + log2f(limits[1] * (float)m) <= LIMIT)
        bounded(query, keys, values, m, d, scale, sum, total);
    else
#endif
        unbounded(query, keys, values, m, d, scale, sum, total);
    for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < d; i += LANES)
            put(out + r * out_token + i, first(d - i),
                _mm512_mul_ps(_mm512_loadu_ps(sum + r * wide + i), _mm512_set1_ps(1 / total[r])));
}

/* q (batch, heads, n, d), k and v (batch, heads, m, d), each with its three strides; out (batch, n, heads, d). d may be
   up to 512. */
int attention(const number *q, const i64 *qs, const number *k, const i64 *ks, const number *v, const i64 *vs, number *out,
              i64 batch, i64 heads, i64 n, i64 m, i64 d)
{
    View Q = {q, qs[0], qs[1], qs[2]}, K = {k, ks[0], ks[1], ks[2]}, V = {v, vs[0], vs[1], vs[2]};
    i64 thin = up(d, IN_UNIT) / IN_UNIT, of_keys = up(m, TOGETHER) * thin + LANES * (up(d, STEP) / IN_UNIT - thin);
    i64 of_both = up(of_keys + up(m, TOGETHER) / IN_UNIT * up(d, LANES), 16);
    i64 tiles = (n + QUERIES - 1) / QUERIES, all = batch * heads;
    i64 some = omp_get_max_threads() * (NEAR / of_both > 1 ? NEAR / of_both : 1); /* heads that are packed at a time */
    if (some > all) some = all;
    float scale = (float)(1.4426950408889634 / sqrt((double)d)); /* powers are of two instead of e */
    unit *packed = aligned_alloc(64, sizeof(unit) * (size_t)(of_both * some));
    float *limits = malloc(sizeof(float) * (size_t)(2 * some));
    if (!packed || !limits) {
        free(packed), free(limits);
        return 1;
    }
#pragma omp parallel
    {
#ifdef AMX
        set_tiles();
#endif
        for (i64 start = 0; start < all; start += some) {
            i64 here = all - start < some ? all - start : some;
#pragma omp for schedule(static)
            for (i64 i = 0; i < here; i++) {
                i64 b = (start + i) / heads, h = (start + i) % heads;
                pack_keys(&K, b, h, m, d, packed + i * of_both);
                pack_values(&V, b, h, m, d, packed + i * of_both + of_keys);
                limits[2 * i] = longest(&K, b, h, m, d);
                limits[2 * i + 1] = longest(&V, b, h, m, d);
            }
#pragma omp for schedule(static)
            for (i64 i = 0; i < here * tiles; i++) {
                i64 head = start + i / tiles, from = i % tiles * QUERIES, b = head / heads, h = head % heads;
                const unit *at = packed + i / tiles * of_both;
                attend(at, at + of_keys, limits + i / tiles * 2, &Q, b, h, from, n - from < QUERIES ? n - from : QUERIES, m,
                       d, scale, out + ((b * n + from) * heads + h) * d, heads * d);
            }
        }
#ifdef AMX
        _tile_release();
#endif
    }
    free(packed), free(limits);
    return 0;
}

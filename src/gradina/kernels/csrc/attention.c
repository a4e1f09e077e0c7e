/* softmax(q k' / sqrt(d)) v without ever writing all scores to memory.

   Keys and values are packed once per head. Then each thread takes tiles of queries and iterates over tiles of keys,
   with a running sum per query and, where scores may overflow without it, a running maximum; the scores of a tile stay
   in L1 and L2. Source: Dao, "FlashAttention-2" (2307.08691), algorithm 1.

   Compiled for float32; with -DBF16 for bfloat16 by dot products of pairs; with -DAMX as well, by AMX tiles. */

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "simd.h"
#ifdef AMX
#include "amx.h"
#endif

#ifdef BF16
typedef uint32_t lane_t; /* 32 bits of a vector: two bfloat16 that are multiplied and added together (VNNI) */
enum { LANE_ELEMS = 2 };
#define MULTIPLY_ADD(sum, one, row) _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)(one)), (__m512bh)(row))
#define LOAD_VEC(from) _mm512_loadu_si512(from)
#define STORE_VEC(to, mask, x) _mm512_mask_storeu_epi32(to, mask, x)
#define SCATTER_VEC(to, mask, index, x) _mm512_mask_i32scatter_epi32(to, mask, index, x, 4)
typedef __m512i vec_t;
#else
typedef float lane_t;
enum { LANE_ELEMS = 1 };
#define MULTIPLY_ADD(sum, one, row) _mm512_fmadd_ps(_mm512_set1_ps(one), row, sum)
#define LOAD_VEC(from) _mm512_loadu_ps(from)
#define STORE_VEC(to, mask, x) _mm512_mask_storeu_ps(to, mask, x)
#define SCATTER_VEC(to, mask, index, x) _mm512_mask_i32scatter_ps(to, mask, index, x, 4)
typedef __m512 vec_t;
#endif

/* L2_BUDGET: lanes of packed keys and values per core, so that they are still in its cache when used */
enum { MAX_HEAD_DIM = 512, MAX_EXPONENT = 120, L2_BUDGET = 1 << 19, PREFETCH_ROWS = 16 };
/* Queries are zero-padded to a multiple of D_STEP along d; the keys they are multiplied by there are whatever follows
   in memory. Keys are padded to a multiple of KEY_BLOCK: the two elements of a lane of probs or values belong to keys
   that are LANES apart. */
enum { KEY_BLOCK = LANES * LANE_ELEMS };
#ifdef AMX
enum { QUERY_TILE = 32, KEY_TILE = 96, D_STEP = LANES * LANE_ELEMS };
#else
enum { QUERY_TILE = 48, KEY_TILE = 256, D_STEP = LANE_ELEMS };
#endif

typedef struct {
    const scalar_t *data;
    i64 batch, head, token; /* strides in elements */
} View;

static inline const scalar_t *row_at(const View *x, i64 b, i64 h, i64 n)
{
    return x->data + b * x->batch + h * x->head + n * x->token;
}

/* a vector of lanes; 0 from the element `left` on */
static inline vec_t load_vec(const scalar_t *from, i64 left)
{
#ifdef BF16
    __mmask32 mask = left >= 2 * LANES ? 0xffffffff : (1u << (left > 0 ? left : 0)) - 1;
    return _mm512_maskz_loadu_epi16(mask, from);
#else
    return _mm512_maskz_loadu_ps(tail_mask(left), from);
#endif
}

/* hardware prefetchers do not follow rows this far apart */
static inline void prefetch_row(const View *x, i64 b, i64 h, i64 n, i64 end, i64 d)
{
    if (n >= end) return;
    const scalar_t *row = row_at(x, b, h, n);
    for (i64 i = 0; i < d; i += 64 / (i64)sizeof(scalar_t)) _mm_prefetch((const char *)(row + i), _MM_HINT_T0);
    _mm_prefetch((const char *)(row + d - 1), _MM_HINT_T0);
}

/* keys (m, d) -> [m / 16][lanes of d][16 keys], followed by the zeros that padded queries are multiplied by */
static void pack_keys(const View *k, i64 b, i64 h, i64 m, i64 d, lane_t *out)
{
    const __m512i index = _mm512_mullo_epi32(_mm512_set1_epi32(LANES),
                                             _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    i64 d_lanes = ceil_div(d, LANE_ELEMS);
    for (i64 n = 0; n < round_up(m, KEY_BLOCK); n++) {
        lane_t *to = out + n / LANES * LANES * d_lanes + n % LANES;
        const scalar_t *row = row_at(k, b, h, n < m ? n : 0);
        prefetch_row(k, b, h, n + PREFETCH_ROWS, m, d);
        for (i64 i = 0; i < d_lanes; i += LANES) {
            vec_t lanes = load_vec(row + i * LANE_ELEMS, n < m ? d - i * LANE_ELEMS : 0);
            SCATTER_VEC(to + i * LANES, tail_mask(d_lanes - i), index, lanes);
        }
    }
    memset(out + round_up(m, KEY_BLOCK) * d_lanes, 0,
           sizeof(lane_t) * (size_t)(LANES * (round_up(d, D_STEP) / LANE_ELEMS - d_lanes)));
}

/* values (m, d) -> [lanes of keys][d]; if d is padded, the first padding column is 1, so that it sums the probs */
static void pack_values(const View *v, i64 b, i64 h, i64 m, i64 d, lane_t *out)
{
    i64 d_padded = round_up(d, LANES);
    for (i64 u = 0; u < round_up(m, KEY_BLOCK) / LANE_ELEMS; u++) {
        i64 n = u / LANES * KEY_BLOCK + u % LANES;
        lane_t *to = out + u * d_padded;
        prefetch_row(v, b, h, n + PREFETCH_ROWS, m, d);
        if (LANE_ELEMS > 1) prefetch_row(v, b, h, n + LANES + PREFETCH_ROWS, m, d);
        for (i64 i = 0; i < d_padded; i += LANES) {
#ifdef BF16
            i64 second = n + LANES;
            __mmask16 mask[2] = {tail_mask(n < m ? d - i : 0), tail_mask(second < m ? d - i : 0)};
            __m256i low = _mm256_maskz_loadu_epi16(mask[0], row_at(v, b, h, n) + i);
            __m256i high = _mm256_maskz_loadu_epi16(mask[1], row_at(v, b, h, second) + i);
            __m512i upper = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
            _mm512_storeu_si512(to + i, _mm512_or_si512(_mm512_cvtepu16_epi32(low), upper));
#else
            _mm512_storeu_ps(to + i, load_vec(row_at(v, b, h, n) + i, n < m ? d - i : 0));
#endif
        }
#ifdef BF16
        if (d_padded > d) to[d] = (n < m ? 0x3f80u : 0) | (n + LANES < m ? 0x3f800000u : 0);
#endif
    }
}

/* out[r][column] (+)= sum over p of a[r][p] b[p][column]; rows of b are `ldb` lanes apart, vectors of columns `ldv` */
#ifdef AMX

/* 2 tiles of rows by 1 or 2 of columns: tiles 0 to 3 accumulate, 4 and 5 hold a, 6 and 7 hold b */
INLINE void product_2x2(const lane_t *a, i64 lda, const lane_t *b, i64 ldb, i64 ldv, i64 depth, int two_columns,
                        float *out, i64 ldo, int accumulate)
{
    const i64 a_bytes = 4 * lda, b_bytes = 4 * ldb, out_bytes = 4 * ldo; /* a lane has 4 bytes */
    float *low = out + LANES * ldo;
    if (accumulate) {
        _tile_loadd(0, out, out_bytes);
        _tile_loadd(1, low, out_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    if (two_columns && accumulate) {
        _tile_loadd(2, out + LANES, out_bytes);
        _tile_loadd(3, low + LANES, out_bytes);
    } else if (two_columns) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (i64 p = 0; p < depth; p += LANES) {
        _tile_loadd(4, a + p, a_bytes);
        _tile_loadd(6, b + p * ldb, b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + LANES * lda + p, a_bytes);
        _tile_dpbf16ps(1, 5, 6);
        if (two_columns) {
            _tile_loadd(7, b + p * ldb + ldv, b_bytes);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out, out_bytes);
    _tile_stored(1, low, out_bytes);
    if (two_columns) {
        _tile_stored(2, out + LANES, out_bytes);
        _tile_stored(3, low + LANES, out_bytes);
    }
}

/* 2 tiles of rows by 3 of columns, added to out: tiles 0 to 5 accumulate, 6 holds b and 7 holds a */
INLINE void product_2x3(const lane_t *a, i64 lda, const lane_t *b, i64 ldb, i64 ldv, i64 depth, float *out, i64 ldo)
{
    const i64 a_bytes = 4 * lda, b_bytes = 4 * ldb, out_bytes = 4 * ldo; /* a lane has 4 bytes */
#define EACH_ACC(OP)                  \
    OP(0, out);                       \
    OP(1, out + LANES * ldo);         \
    OP(2, out + LANES);               \
    OP(3, out + LANES * ldo + LANES); \
    OP(4, out + 2 * LANES);           \
    OP(5, out + LANES * ldo + 2 * LANES);
#define LOAD_OUT(i, at) _tile_loadd(i, at, out_bytes)
#define STORE_OUT(i, at) _tile_stored(i, at, out_bytes)
    EACH_ACC(LOAD_OUT)
    for (i64 p = 0; p < depth; p += LANES, a += LANES, b += LANES * ldb) {
        const lane_t *low = a + LANES * lda;
        _tile_loadd(6, b, b_bytes);
        _tile_loadd(7, a, a_bytes);
        _tile_dpbf16ps(0, 7, 6);
        _tile_loadd(7, low, a_bytes);
        _tile_dpbf16ps(1, 7, 6);
        _tile_loadd(6, b + ldv, b_bytes);
        _tile_dpbf16ps(3, 7, 6);
        _tile_loadd(7, a, a_bytes);
        _tile_dpbf16ps(2, 7, 6);
        _tile_loadd(6, b + 2 * ldv, b_bytes);
        _tile_dpbf16ps(4, 7, 6);
        _tile_loadd(7, low, a_bytes);
        _tile_dpbf16ps(5, 7, 6);
    }
    EACH_ACC(STORE_OUT)
}

static void product(const lane_t *a, i64 lda, const lane_t *b, i64 ldb, i64 ldv, i64 depth, i64 vectors, float *out,
                    i64 ldo, int accumulate)
{
    i64 c = 0;
    BARRIER;
    for (; accumulate && vectors - c > 2 && vectors - c != 4; c += 3)
        product_2x3(a, lda, b + c * ldv, ldb, ldv, depth, out + c * LANES, ldo);
    for (; c + 1 < vectors; c += 2)
        product_2x2(a, lda, b + c * ldv, ldb, ldv, depth, 1, out + c * LANES, ldo, accumulate);
    if (c < vectors) product_2x2(a, lda, b + c * ldv, ldb, ldv, depth, 0, out + c * LANES, ldo, accumulate);
    BARRIER;
}

#else

/* register blocking: ROWS rows by WIDE vectors of columns */
#define PRODUCT(ROWS, WIDE)                                                                                           \
    INLINE void product_##WIDE(const lane_t *a, i64 lda, const lane_t *b, i64 ldb, i64 ldv, i64 depth, float *out,    \
                               i64 ldo, int accumulate)                                                               \
    {                                                                                                                 \
        for (i64 r = 0; r < QUERY_TILE; r += ROWS) {                                                                  \
            __m512 sum[ROWS][WIDE];                                                                                   \
            for (int i = 0; i < ROWS; i++)                                                                            \
                for (int c = 0; c < WIDE; c++)                                                                        \
                    sum[i][c] = accumulate ? _mm512_loadu_ps(out + (r + i) * ldo + LANES * c) : _mm512_setzero_ps();  \
            for (i64 p = 0; p < depth; p++) {                                                                         \
                vec_t row[WIDE];                                                                                      \
                for (int c = 0; c < WIDE; c++) row[c] = LOAD_VEC(b + p * ldb + c * ldv);                              \
                for (int i = 0; i < ROWS; i++)                                                                        \
                    for (int c = 0; c < WIDE; c++) sum[i][c] = MULTIPLY_ADD(sum[i][c], a[(r + i) * lda + p], row[c]); \
            }                                                                                                         \
            for (int i = 0; i < ROWS; i++)                                                                            \
                for (int c = 0; c < WIDE; c++) _mm512_storeu_ps(out + (r + i) * ldo + LANES * c, sum[i][c]);          \
        }                                                                                                             \
    }

PRODUCT(6, 4)
PRODUCT(8, 3)
PRODUCT(12, 2)
PRODUCT(16, 1)

INLINE void product(const lane_t *a, i64 lda, const lane_t *b, i64 ldb, i64 ldv, i64 depth, i64 vectors, float *out,
                    i64 ldo, int accumulate)
{
    for (i64 c = 0; c < vectors;) {
        i64 left = vectors - c, take = left == 5 || left == 3 ? 3 : left < 4 ? left : 4;
        const lane_t *from = b + c * ldv;
        float *to = out + c * LANES;
        if (take == 4) product_4(a, lda, from, ldb, ldv, depth, to, ldo, accumulate);
        if (take == 3) product_3(a, lda, from, ldb, ldv, depth, to, ldo, accumulate);
        if (take == 2) product_2(a, lda, from, ldb, ldv, depth, to, ldo, accumulate);
        if (take == 1) product_1(a, lda, from, ldb, ldv, depth, to, ldo, accumulate);
        c += take;
    }
}

#endif

/* scores -> unnormalised probs of one query over a tile of keys; `acc` and row_sum are rescaled when row_max rises */
INLINE void online_softmax(const float *scores, i64 vectors, float scale, float *row_max, float *row_sum, float *acc,
                           i64 d_padded, lane_t *out)
{
    __m512 maxima = _mm512_loadu_ps(scores), sums = _mm512_setzero_ps();
    for (i64 c = 1; c < vectors; c++) maxima = _mm512_max_ps(maxima, _mm512_loadu_ps(scores + c * LANES));
    float tile_max = _mm512_reduce_max_ps(maxima) * scale;
    if (tile_max > *row_max) {
        float rescale = exp2f(*row_max - tile_max);
        *row_max = tile_max, *row_sum *= rescale;
        for (i64 i = 0; i < d_padded; i += LANES)
            _mm512_storeu_ps(acc + i, _mm512_mul_ps(_mm512_loadu_ps(acc + i), _mm512_set1_ps(rescale)));
    }
    for (i64 c = 0; c < vectors; c += LANE_ELEMS) {
        __m512 x[LANE_ELEMS];
        for (int i = 0; i < LANE_ELEMS; i++) {
            x[i] = _mm512_loadu_ps(scores + (c + i) * LANES);
            x[i] = exp2_ps(_mm512_fmsub_ps(x[i], _mm512_set1_ps(scale), _mm512_set1_ps(*row_max)));
            sums = _mm512_add_ps(sums, x[i]);
        }
#ifdef BF16
        __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x[0]));
        __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x[1]));
        _mm512_storeu_si512(out + c / LANE_ELEMS * LANES, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
#else
        _mm512_storeu_ps(out + c * LANES, x[0]);
#endif
    }
    *row_sum += _mm512_reduce_add_ps(sums);
}

/* the largest L2 norm of n rows; NaN if any is */
static float max_row_norm(const View *x, i64 b, i64 h, i64 n, i64 d)
{
    float max = 0;
    for (i64 r = 0; r < n; r++) {
        const scalar_t *row = row_at(x, b, h, r);
        __m512 sum = _mm512_setzero_ps();
        for (i64 i = 0; i < d; i += LANES) {
            __m512 y = load(tail_mask(d - i), row + i);
            sum = _mm512_fmadd_ps(y, y, sum);
        }
        float square = _mm512_reduce_add_ps(sum);
        if (!(square <= max)) max = square; /* true for NaN */
        if (max != max) break;
    }
    return sqrtf(max);
}

/* one tile of queries over all keys: acc (QUERY_TILE, d) sums values by unnormalised probs, row_sum the probs */
INLINE void attend_online(const lane_t *query, const lane_t *keys, const lane_t *values, i64 m, i64 d, float scale,
                          float *acc, float *row_sum)
{
    i64 depth = round_up(d, D_STEP) / LANE_ELEMS, d_lanes = ceil_div(d, LANE_ELEMS), d_padded = round_up(d, LANES);
    lane_t probs[QUERY_TILE * KEY_TILE / LANE_ELEMS] __attribute__((aligned(64)));
    float scores[QUERY_TILE * KEY_TILE] __attribute__((aligned(64)));
    float row_max[QUERY_TILE];
    for (i64 r = 0; r < QUERY_TILE; r++) row_max[r] = -INFINITY, row_sum[r] = 0;
    for (i64 key = 0; key < m; key += KEY_TILE) {
        i64 count = m - key < KEY_TILE ? m - key : KEY_TILE, vectors = round_up(count, KEY_BLOCK) / LANES;
        product(query, depth, keys + key * d_lanes, LANES, d_lanes * LANES, depth, vectors, scores, KEY_TILE, 0);
        for (i64 r = 0; r < QUERY_TILE; r++) {
            for (i64 i = count; i < vectors * LANES; i++) scores[r * KEY_TILE + i] = -INFINITY; /* padding keys */
            online_softmax(scores + r * KEY_TILE, vectors, scale, row_max + r, row_sum + r, acc + r * d_padded,
                           d_padded, probs + r * (KEY_TILE / LANE_ELEMS));
        }
        product(probs, KEY_TILE / LANE_ELEMS, values + key / LANE_ELEMS * d_padded, d_padded, LANES,
                vectors * LANES / LANE_ELEMS, d_padded / LANES, acc, d_padded, 1);
    }
}

#ifdef BF16
/* 2^(scale score) of two vectors, interleaved as bfloat16, in 16-bit integer arithmetic; exponents within
   +-MAX_EXPONENT. The biased exponent in fixed point with 8 fraction bits has the bits of the bfloat16 1 + f instead of
   2^f, which is less by 0.328 f (1.031 - f), to within 0.002. Source: Schraudolph, "A Fast, Compact Approximation of
   the Exponential Function", 1999. */
INLINE __m512i exp2_bf16_pair(const float *first, const float *second, __m512 scale)
{
    const __m512 round_magic = _mm512_set1_ps(12582912.0f + 127 * 256); /* 1.5 2^23: an integer in the low bits */
    __m512i low = (__m512i)_mm512_fmadd_ps(_mm512_loadu_ps(first), scale, round_magic);
    __m512i high = (__m512i)_mm512_fmadd_ps(_mm512_loadu_ps(second), scale, round_magic);
    __m512i x = _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
    __m512i f = _mm512_and_si512(x, _mm512_set1_epi16(255));
    __m512i correction = _mm512_mullo_epi16(f, _mm512_sub_epi16(_mm512_set1_epi16(264), f));
    return _mm512_srli_epi16(_mm512_sub_epi16(x, _mm512_mulhi_epu16(correction, _mm512_set1_epi16(84))), 1);
}

/* scores -> unnormalised probs of a tile of queries, without a maximum; summed in row_sums unless the values do that */
INLINE void bounded_probs(const float *scores, i64 vectors, float scale, float *row_sums, lane_t *out)
{
    const __m512 factor = _mm512_set1_ps(256 * scale);
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    for (i64 r = 0; r < QUERY_TILE; r++)
        for (i64 c = 0; c < vectors; c += 2) {
            __m512i pair =
                exp2_bf16_pair(scores + r * KEY_TILE + c * LANES, scores + r * KEY_TILE + (c + 1) * LANES, factor);
            _mm512_storeu_si512(out + r * (KEY_TILE / 2) + c / 2 * LANES, pair);
            if (row_sums) {
                __m512 sum = _mm512_loadu_ps(row_sums + r * LANES);
                _mm512_storeu_ps(row_sums + r * LANES, _mm512_dpbf16_ps(sum, (__m512bh)pair, ones));
            }
        }
}

/* as attend_online, for scores too small to overflow: no running maximum */
INLINE void attend_bounded(const lane_t *query, const lane_t *keys, const lane_t *values, i64 m, i64 d, float scale,
                           float *acc, float *row_sum)
{
    i64 depth = round_up(d, D_STEP) / LANE_ELEMS, d_lanes = ceil_div(d, LANE_ELEMS), d_padded = round_up(d, LANES);
    lane_t probs[QUERY_TILE * KEY_TILE / LANE_ELEMS] __attribute__((aligned(64)));
    float scores[QUERY_TILE * KEY_TILE] __attribute__((aligned(64)));
    float row_sums[QUERY_TILE * LANES] __attribute__((aligned(64))) = {0};
    for (i64 key = 0; key < m; key += KEY_TILE) {
        i64 count = m - key < KEY_TILE ? m - key : KEY_TILE, vectors = round_up(count, KEY_BLOCK) / LANES;
        product(query, depth, keys + key * d_lanes, LANES, d_lanes * LANES, depth, vectors, scores, KEY_TILE, 0);
        for (i64 i = count; i < vectors * LANES; i++)
            for (i64 r = 0; r < QUERY_TILE; r++) scores[r * KEY_TILE + i] = -MAX_EXPONENT / scale; /* padding keys */
        bounded_probs(scores, vectors, scale, d_padded > d ? 0 : row_sums, probs);
        product(probs, KEY_TILE / LANE_ELEMS, values + key / LANE_ELEMS * d_padded, d_padded, LANES,
                vectors * LANES / LANE_ELEMS, d_padded / LANES, acc, d_padded, 1);
    }
    for (i64 r = 0; r < QUERY_TILE; r++)
        row_sum[r] = d_padded > d ? acc[r * d_padded + d] : _mm512_reduce_add_ps(_mm512_loadu_ps(row_sums + r * LANES));
}
#endif

/* one tile of queries; norms: the largest of a key and of a value, which bound all scores and sums */
static void attend_tile(const lane_t *keys, const lane_t *values, const float *norms, const View *q, i64 b, i64 h,
                        i64 from, i64 rows, i64 m, i64 d, float scale, scalar_t *out, i64 out_token)
{
    i64 depth = round_up(d, D_STEP) / LANE_ELEMS, d_padded = round_up(d, LANES);
    lane_t query[QUERY_TILE * MAX_HEAD_DIM / LANE_ELEMS] __attribute__((aligned(64)));
    float acc[QUERY_TILE * MAX_HEAD_DIM] __attribute__((aligned(64)));
    float row_sum[QUERY_TILE];
    for (i64 r = 0; r < QUERY_TILE; r++) {
        const scalar_t *row = row_at(q, b, h, from + (r < rows ? r : 0));
        for (i64 i = 0; i < depth; i += LANES)
            STORE_VEC(query + r * depth + i, tail_mask(depth - i), load_vec(row + i * LANE_ELEMS, d - i * LANE_ELEMS));
    }
    memset(acc, 0, sizeof(float) * QUERY_TILE * d_padded);
    (void)norms;
#ifdef BF16
    View queries = {row_at(q, b, h, from), 0, 0, q->token};
    float exponent = max_row_norm(&queries, 0, 0, rows, d) * norms[0] * scale;
    if (exponent <= MAX_EXPONENT && exponent + log2f(norms[1] * (float)m) <= MAX_EXPONENT)
        attend_bounded(query, keys, values, m, d, scale, acc, row_sum);
    else
#endif
        attend_online(query, keys, values, m, d, scale, acc, row_sum);
    for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < d; i += LANES)
            store(out + r * out_token + i, tail_mask(d - i),
                  _mm512_mul_ps(_mm512_loadu_ps(acc + r * d_padded + i), _mm512_set1_ps(1 / row_sum[r])));
}

/* q (batch, heads, n, d), k and v (batch, heads, m, d), each with its first three strides and the last one 1; out
   (batch, n, heads, d) contiguous; d up to MAX_HEAD_DIM. */
int attention(const scalar_t *q, const i64 *qs, const scalar_t *k, const i64 *ks, const scalar_t *v, const i64 *vs,
              scalar_t *out, i64 batch, i64 heads, i64 n, i64 m, i64 d)
{
    View q_view = {q, qs[0], qs[1], qs[2]}, k_view = {k, ks[0], ks[1], ks[2]}, v_view = {v, vs[0], vs[1], vs[2]};
    i64 d_lanes = ceil_div(d, LANE_ELEMS), d_zeros = round_up(d, D_STEP) / LANE_ELEMS - d_lanes;
    i64 keys_size = round_up(m, KEY_BLOCK) * d_lanes + LANES * d_zeros;
    i64 head_size = round_up(keys_size + round_up(m, KEY_BLOCK) / LANE_ELEMS * round_up(d, LANES), 16);
    i64 query_tiles = ceil_div(n, QUERY_TILE), total = batch * heads;
    i64 heads_at_once = omp_get_max_threads() * (L2_BUDGET / head_size > 1 ? L2_BUDGET / head_size : 1);
    heads_at_once = min_i64(heads_at_once, total);
    float scale = (float)(1.4426950408889634 / sqrt((double)d)); /* log2(e): exp2 takes the place of exp */
    lane_t *packed = aligned_alloc(64, sizeof(lane_t) * (size_t)(head_size * heads_at_once));
    float *norms = malloc(sizeof(float) * (size_t)(2 * heads_at_once));
    if (!packed || !norms) {
        free(packed), free(norms);
        return 1;
    }
#pragma omp parallel
    {
#ifdef AMX
        configure_tiles();
#endif
        for (i64 start = 0; start < total; start += heads_at_once) {
            i64 count = min_i64(total - start, heads_at_once);
#pragma omp for schedule(static)
            for (i64 i = 0; i < count; i++) {
                i64 b = (start + i) / heads, h = (start + i) % heads;
                pack_keys(&k_view, b, h, m, d, packed + i * head_size);
                pack_values(&v_view, b, h, m, d, packed + i * head_size + keys_size);
                norms[2 * i] = max_row_norm(&k_view, b, h, m, d);
                norms[2 * i + 1] = max_row_norm(&v_view, b, h, m, d);
            }
#pragma omp for schedule(static)
            for (i64 i = 0; i < count * query_tiles; i++) {
                i64 head = start + i / query_tiles, query = i % query_tiles * QUERY_TILE;
                i64 b = head / heads, h = head % heads;
                const lane_t *at = packed + i / query_tiles * head_size;
                attend_tile(at, at + keys_size, norms + i / query_tiles * 2, &q_view, b, h, query,
                            min_i64(n - query, QUERY_TILE), m, d, scale, out + ((b * n + query) * heads + h) * d,
                            heads * d);
            }
        }
#ifdef AMX
        _tile_release();
#endif
    }
    free(packed), free(norms);
    return 0;
}

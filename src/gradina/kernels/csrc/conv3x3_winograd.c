/* 3x3 convolutions of channels-last maps by Winograd's F(4x4, 3x3): 36 multiplications per channel for 4x4 outputs
   instead of 144, exact but for rounding.

   In one dimension, 6 inputs are coefficients of a polynomial and 3 weights of another; 4 outputs are coefficients of
   the product, which is determined by its values at 6 points, one multiplication each. In two dimensions tiles of 6x6
   inputs are transformed by columns and by rows, and each of the 36 points is a matrix product of (tiles, in) by (in,
   out). The points 0, +-3/4, +-3/2 and infinity halve the rounding error of the usual 0, +-1, +-2; accumulated over
   K_BLOCK channels at a time, it is no larger than that of direct convolution. Transformed values are float32 whatever
   the dtype.

   Source: Winograd, "Arithmetic Complexity of Computations", 1980; Lavin & Gray, "Fast Algorithms for Convolutional
   Neural Networks" (1509.09308), section 4.3: A' [(G g G') * (B' d B)] A. */

#ifndef AMX /* conv3x3_amx.c is faster there */

#include <omp.h>
#include <stdlib.h>

#include "conv3x3.h"
#include "simd.h"

enum { OUT_TILE = 4, IN_TILE = 6, TAPS = 3, POINTS = IN_TILE * IN_TILE };
/* a block of the matrix product: TILE_GROUP tiles by K_BLOCK channels by PANEL output channels; points are LANES
   further apart than a block, lest they share cache sets */
enum { TILE_GROUP = 48, K_BLOCK = 64, PANEL = 64 };
enum { WEIGHT_STRIDE = K_BLOCK * PANEL + LANES, SUM_STRIDE = TILE_GROUP * PANEL + LANES };

#define SET(x) _mm512_set1_ps(x)
#define ADD(a, b) _mm512_add_ps(a, b)
#define SUB(a, b) _mm512_sub_ps(a, b)
#define MUL(a, b) _mm512_mul_ps(SET(a), b)
#define MUL_ADD(a, b, c) _mm512_fmadd_ps(SET(a), b, c) /* a b + c */

static const float P = 3 / 4.0f, Q = 3 / 2.0f, PP = 9 / 16.0f, QQ = 9 / 4.0f; /* the points 0, P, -P, Q, -Q, infinity */

/* B' d: 6 inputs -> their values at 6 points; `stride` is in vectors */
INLINE void transform_input(const __m512 *d, i64 stride, __m512 *out)
{
    __m512 even = MUL_ADD(-QQ, d[2 * stride], d[4 * stride]), odd = MUL(P, MUL_ADD(-QQ, d[stride], d[3 * stride]));
    __m512 even2 = MUL_ADD(-PP, d[2 * stride], d[4 * stride]), odd2 = MUL(Q, MUL_ADD(-PP, d[stride], d[3 * stride]));
    out[0] = MUL_ADD(PP * QQ, d[0], MUL_ADD(-PP - QQ, d[2 * stride], d[4 * stride]));
    out[stride] = ADD(even, odd), out[2 * stride] = SUB(even, odd);
    out[3 * stride] = ADD(even2, odd2), out[4 * stride] = SUB(even2, odd2);
    out[5 * stride] = MUL_ADD(PP * QQ, d[stride], MUL_ADD(-PP - QQ, d[3 * stride], d[5 * stride]));
}

/* G g: 3 weights -> their values at 6 points */
INLINE void transform_weight(const __m512 *g, i64 stride, __m512 *out)
{
    const float p = 1 / (2 * PP * (PP - QQ)), q = 1 / (2 * QQ * (QQ - PP));
    __m512 even = MUL_ADD(PP * p, g[2 * stride], MUL(p, g[0])), odd = MUL(P * p, g[stride]);
    __m512 even2 = MUL_ADD(QQ * q, g[2 * stride], MUL(q, g[0])), odd2 = MUL(Q * q, g[stride]);
    out[0] = MUL(1 / (PP * QQ), g[0]);
    out[stride] = ADD(even, odd), out[2 * stride] = SUB(even, odd);
    out[3 * stride] = ADD(even2, odd2), out[4 * stride] = SUB(even2, odd2);
    out[5 * stride] = g[2 * stride];
}

/* A' m: products at 6 points -> 4 outputs */
INLINE void transform_output(const __m512 *m, i64 stride, __m512 *out)
{
    __m512 even = ADD(m[stride], m[2 * stride]), odd = SUB(m[stride], m[2 * stride]);
    __m512 even2 = ADD(m[3 * stride], m[4 * stride]), odd2 = SUB(m[3 * stride], m[4 * stride]);
    out[0] = ADD(m[0], ADD(even, even2));
    out[stride] = MUL_ADD(P, odd, MUL(Q, odd2));
    out[2 * stride] = MUL_ADD(PP, even, MUL(QQ, even2));
    out[3 * stride] = MUL_ADD(P * PP, odd, MUL_ADD(Q * QQ, odd2, m[5 * stride]));
}

/* sums[r][column] (+)= sum over p of a[r][p] b[p][column], in register blocks of ROWS by VECTORS */
#define PRODUCT(ROWS, VECTORS)                                                                                    \
    static void product_##ROWS##_##VECTORS(const float *a, i64 rows, const float *b, i64 depth, float *sums,      \
                                           int accumulate)                                                        \
    {                                                                                                             \
        for (i64 r = 0; r < rows; r += ROWS, a += ROWS * K_BLOCK, sums += ROWS * PANEL) {                         \
            __m512 sum[ROWS][VECTORS], row[VECTORS];                                                              \
            for (int i = 0; i < ROWS; i++)                                                                        \
                for (int c = 0; c < VECTORS; c++) sum[i][c] = _mm512_setzero_ps();                                \
            for (i64 p = 0; p < depth; p++) {                                                                     \
                for (int c = 0; c < VECTORS; c++) row[c] = _mm512_loadu_ps(b + p * PANEL + c * LANES);            \
                for (int i = 0; i < ROWS; i++)                                                                    \
                    for (int c = 0; c < VECTORS; c++) sum[i][c] = MUL_ADD(a[i * K_BLOCK + p], row[c], sum[i][c]); \
            }                                                                                                     \
            for (int i = 0; i < ROWS; i++)                                                                        \
                for (int c = 0; c < VECTORS; c++) {                                                               \
                    float *to = sums + i * PANEL + c * LANES;                                                     \
                    _mm512_storeu_ps(to, accumulate ? ADD(_mm512_loadu_ps(to), sum[i][c]) : sum[i][c]);           \
                }                                                                                                 \
        }                                                                                                         \
    }

PRODUCT(6, 1)
PRODUCT(6, 2)
PRODUCT(6, 3)
PRODUCT(6, 4)
PRODUCT(2, 1)
PRODUCT(2, 2)
PRODUCT(2, 3)
PRODUCT(2, 4)

/* the same for an even number of rows */
static void product(const float *a, i64 rows, const float *b, i64 depth, i64 vectors, float *sums, int accumulate)
{
    typedef void Product(const float *, i64, const float *, i64, float *, int);
    static Product *const by_6[] = {product_6_1, product_6_2, product_6_3, product_6_4};
    static Product *const by_2[] = {product_2_1, product_2_2, product_2_3, product_2_4};
    i64 multiple = rows / 6 * 6;
    by_6[vectors - 1](a, multiple, b, depth, sums, accumulate);
    by_2[vectors - 1](a + multiple * K_BLOCK, rows - multiple, b, depth, sums + multiple * PANEL, accumulate);
}

typedef struct {
    i64 height, width, in, out, upsample; /* height and width of the output; nearest-neighbour factor, 1 or 2 */
    i64 row_tiles, map_tiles;
} Shape;

/* `depth` channels of one input tile -> their values at each point; all 0 unless the tile exists */
static void gather_tile(const scalar_t *x, const Shape *shape, i64 tile, int exists, i64 depth, float *values,
                        i64 point_stride)
{
    const scalar_t *from[POINTS];
    __mmask16 masks[POINTS];
    i64 map = tile / shape->map_tiles;
    i64 top = tile % shape->map_tiles / shape->row_tiles * OUT_TILE - 1, left = tile % shape->row_tiles * OUT_TILE - 1;
    for (int i = 0; i < POINTS; i++) {
        i64 row = top + i / IN_TILE, column = left + i % IN_TILE;
        int inside = exists && row >= 0 && row < shape->height && column >= 0 && column < shape->width;
        masks[i] = inside ? 0xffff : 0;
        if (shape->upsample == 2) row >>= 1, column >>= 1;
        i64 pixel = (map * (shape->height / shape->upsample) + row) * (shape->width / shape->upsample) + column;
        from[i] = inside ? x + pixel * shape->in : x;
    }
    for (i64 c = 0; c < depth; c += LANES) {
        __m512 d[POINTS], by_columns[POINTS], by_both[POINTS];
        for (int i = 0; i < POINTS; i++) d[i] = load(masks[i] & tail_mask(depth - c), from[i] + c);
        for (int j = 0; j < IN_TILE; j++) transform_input(d + j, IN_TILE, by_columns + j);
        for (int i = 0; i < IN_TILE; i++) transform_input(by_columns + i * IN_TILE, 1, by_both + i * IN_TILE);
        for (int i = 0; i < POINTS; i++) _mm512_storeu_ps(values + i * point_stride + c, by_both[i]);
    }
}

/* weights [out / 16][in][tap][16], from an input channel on -> their values at each point [depth][PANEL] */
static void transform_weights(const scalar_t *weight, i64 in, i64 depth, i64 vectors, float *values)
{
    for (i64 v = 0; v < vectors; v++)
        for (i64 p = 0; p < depth; p++) {
            __m512 g[TAPS * TAPS], by_columns[IN_TILE * TAPS], by_both[POINTS];
            for (int i = 0; i < TAPS * TAPS; i++)
                g[i] = load(0xffff, weight + ((v * in + p) * TAPS * TAPS + i) * LANES);
            for (int j = 0; j < TAPS; j++) transform_weight(g + j, TAPS, by_columns + j);
            for (int i = 0; i < IN_TILE; i++) transform_weight(by_columns + i * TAPS, 1, by_both + i * IN_TILE);
            for (int i = 0; i < POINTS; i++)
                _mm512_storeu_ps(values + i * WEIGHT_STRIDE + p * PANEL + v * LANES, by_both[i]);
        }
}

/* products at each point of one tile -> its outputs for up to 16 channels from c on, plus bias and residual */
static void store_tile(const float *products, const Shape *shape, i64 tile, i64 c, const scalar_t *bias,
                       const scalar_t *residual, scalar_t *out)
{
    i64 map = tile / shape->map_tiles;
    i64 top = tile % shape->map_tiles / shape->row_tiles * OUT_TILE, left = tile % shape->row_tiles * OUT_TILE;
    __mmask16 mask = tail_mask(shape->out - c);
    __m512 m[POINTS], by_columns[OUT_TILE * IN_TILE], by_both[OUT_TILE * OUT_TILE];
    for (int i = 0; i < POINTS; i++) m[i] = _mm512_loadu_ps(products + i * SUM_STRIDE);
    for (int j = 0; j < IN_TILE; j++) transform_output(m + j, IN_TILE, by_columns + j);
    for (int i = 0; i < OUT_TILE; i++) transform_output(by_columns + i * IN_TILE, 1, by_both + i * OUT_TILE);
    __m512 bias_values = bias ? load(mask, bias + c) : _mm512_setzero_ps();
    for (int i = 0; i < OUT_TILE && top + i < shape->height; i++)
        for (int j = 0; j < OUT_TILE && left + j < shape->width; j++) {
            i64 at = ((map * shape->height + top + i) * shape->width + left + j) * shape->out + c;
            __m512 y = ADD(by_both[i * OUT_TILE + j], bias_values);
            store(out + at, mask, residual ? ADD(y, load(mask, residual + at)) : y);
        }
}

/* Packs weights (out, in, taps) as [out / 16][in][tap][16], zero-padded. */
int reorder_conv3x3(const scalar_t *weight, scalar_t *to, i64 in, i64 out, i64 channels_last, i64 transposed)
{
    enum { ALL_TAPS = TAPS * TAPS };
    Weights w = weights_view(weight, in, out, channels_last, transposed);
#pragma omp parallel for schedule(static)
    for (i64 c = 0; c < out; c += LANES)
        for (i64 k = 0; k < in * ALL_TAPS; k++) {
            const scalar_t *from = w.data + c * w.out_stride + k / ALL_TAPS * w.in_stride + k % ALL_TAPS * w.tap_stride;
            scalar_t *at = to + c * in * ALL_TAPS + k * LANES;
            for (i64 lane = 0; lane < LANES; lane++) at[lane] = c + lane < out ? from[lane * w.out_stride] : 0;
        }
    return 0;
}

/* x (batch, height / upsample, width / upsample, in), upsampled and zero-padded by 1 -> to (batch, height, width, out),
   plus a bias (out) and a residual of the shape of the output, unless they are null; weights as `order` packs them. */
int conv3x3(const scalar_t *x, const scalar_t *weight, const scalar_t *bias, const scalar_t *residual, scalar_t *to,
            i64 batch, i64 height, i64 width, i64 in, i64 out, i64 upsample)
{
    Shape shape = {height, width, in, out, upsample, ceil_div(width, OUT_TILE), 0};
    shape.map_tiles = ceil_div(height, OUT_TILE) * shape.row_tiles;
    i64 total = batch * shape.map_tiles, panels = ceil_div(out, PANEL), blocks = ceil_div(in, K_BLOCK);
    i64 threads = omp_get_max_threads(), groups = ceil_div(4 * threads, panels); /* about four jobs per thread */
    i64 tiles_at_once = groups * TILE_GROUP < total ? groups * TILE_GROUP : round_up(total, 2);
    i64 point_stride = tiles_at_once * K_BLOCK + LANES, thread_size = POINTS * (WEIGHT_STRIDE + SUM_STRIDE);
    if (total == 0) return 0;
    float *values = aligned_alloc(64, sizeof(float) * (size_t)(blocks * POINTS * point_stride));
    float *scratch = aligned_alloc(64, sizeof(float) * (size_t)(threads * thread_size));
    if (!values || !scratch) {
        free(values), free(scratch);
        return 1;
    }
#pragma omp parallel
    {
        float *weights = scratch + omp_get_thread_num() * thread_size, *sums = weights + POINTS * WEIGHT_STRIDE;
        for (i64 start = 0; start < total; start += tiles_at_once) {
            i64 count = total - start < tiles_at_once ? total - start : tiles_at_once, padded = round_up(count, 2);
#pragma omp for schedule(static)
            for (i64 k = 0; k < blocks * padded; k++) {
                i64 t = k % padded, block = k / padded, channel = block * K_BLOCK;
                i64 depth = min_i64(in - channel, K_BLOCK);
                gather_tile(x + channel, &shape, start + t, t < count, depth,
                            values + block * POINTS * point_stride + t * K_BLOCK, point_stride);
            }
#pragma omp for schedule(dynamic)
            for (i64 job = 0; job < ceil_div(count, TILE_GROUP) * panels; job++) {
                i64 group = job / panels * TILE_GROUP, panel = job % panels * PANEL;
                i64 tiles = count - group < TILE_GROUP ? count - group : TILE_GROUP;
                i64 vectors = round_up(min_i64(out - panel, PANEL), LANES) / LANES;
                for (i64 block = 0; block < blocks; block++) {
                    i64 depth = min_i64(in - block * K_BLOCK, K_BLOCK);
                    transform_weights(weight + (panel * in + block * K_BLOCK * LANES) * TAPS * TAPS, in, depth, vectors,
                                      weights);
                    for (i64 i = 0; i < POINTS; i++) {
                        const float *input = values + (block * POINTS + i) * point_stride + group * K_BLOCK;
                        product(input, round_up(tiles, 2), weights + i * WEIGHT_STRIDE, depth, vectors,
                                sums + i * SUM_STRIDE, block > 0);
                    }
                }
                for (i64 t = 0; t < tiles; t++)
                    for (i64 v = 0; v < vectors; v++)
                        store_tile(sums + t * PANEL + v * LANES, &shape, start + group + t, panel + v * LANES, bias,
                                   residual, to);
            }
        }
    }
    free(values), free(scratch);
    return 0;
}

#endif

/* Linear layers in bfloat16 by AMX tiles of 16 rows by 16 output features, optionally followed by GEGLU.

   AMX is bound by cache bandwidth, so data locality decides. 32 rows at a time stay in L1 while as many panels of
   weights (32 output features) as fit in L2 stream past them; the next panels are prefetched meanwhile.

   Source: Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008. */

#ifdef AMX

#include <omp.h>
#include <stdlib.h>

#include "amx.h"

/* rows at a time; TILE_Ks of features per chunk; bytes of weights in L2; rows whose accumulators wait for a chunk */
enum { ROWS = 2 * LANES, K_CHUNK = 40, L2_BUDGET = 640 * 1024, MAX_WAITING = 1024, ACC_ALL = 4 * ACC };

typedef struct {
    const scalar_t *x, *weight, *bias, *residual;
    scalar_t *out;
    i64 in, out_features, halves, geglu;
    i64 k_steps, k_chunk;  /* TILE_Ks of input features in all, and per chunk */
    i64 row_stride, group; /* elements from one gathered row to the next; panels in L2 */
} Linear;

typedef struct { i64 top, bottom, from, to; } Block; /* rows [top, bottom) by panels [from, to) */

/* Packs weights (out, in) as [out / 32][in / 32][2][16 pairs of in][16 of out][2], zero-padded. With `halves`, for
   GEGLU, each panel has 16 rows of the first half and 16 of the second. */
int reorder_linear(const scalar_t *weight, scalar_t *to, i64 in, i64 out, i64 halves)
{
    i64 k_steps = ceil_div(in, TILE_K), end = halves ? out / 2 : out, width = halves ? LANES : TILE_K;
#pragma omp parallel for schedule(static)
    for (i64 panel = 0; panel < ceil_div(end, width); panel++)
        for (i64 step = 0; step < k_steps; step++)
            for (i64 half = 0; half < 2; half++) {
                i64 c = panel * width + half * (halves ? end : LANES), rows = halves ? end - panel * width : end - c;
                scalar_t *at = to + (panel * k_steps + step) * PANEL + half * TILE;
                pack_tile(weight + c * in + step * TILE_K, in, rows, in - step * TILE_K, 1, at);
            }
    return 0;
}

#define EACH_ACC(OP) OP(0) OP(1) OP(2) OP(3)

/* ROWS rows by a panel of weights: tiles 0 to 3 accumulate. Prefetches `lines` of the next panel with each step. */
static inline void product(const scalar_t *rows, i64 row_stride, i64 k_steps, const scalar_t *weight,
                           const scalar_t *next, i64 lines, int accumulate, float *acc)
{
    const scalar_t *below = rows + LANES * row_stride;
    row_stride *= (i64)sizeof(scalar_t);
    BARRIER;
    if (accumulate) {
        EACH_ACC(LOAD_ACC)
    } else {
        EACH_ACC(ZERO_ACC)
    }
    for (i64 step = 0; step < k_steps; step++, rows += TILE_K, below += TILE_K, weight += PANEL) {
        _tile_loadd(4, rows, row_stride);
        _tile_stream_loadd(6, weight, 64); /* a streaming load does not evict the rows from L1 */
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, below, row_stride);
        _tile_dpbf16ps(1, 5, 6);
        _tile_stream_loadd(7, weight + TILE, 64);
        for (i64 k = 0; k < lines; k++, next += TILE_K) _mm_prefetch((const char *)next, _MM_HINT_T1);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    EACH_ACC(STORE_ACC)
    BARRIER;
}

/* gathers `depth` of the `left` features of some rows, zero-padded */
static void gather(const scalar_t *x, i64 rows, i64 width, i64 left, i64 depth, i64 row_stride, scalar_t *to)
{
    i64 count = min_i64(left, depth);
    for (i64 i = 0; i < rows; i++, x += width, to += row_stride) {
        memcpy(to, x, sizeof(scalar_t) * (size_t)count);
        memset(to + count, 0, sizeof(scalar_t) * (size_t)(depth - count));
    }
}

/* adds bias and residual to the accumulators of some rows by a panel, or applies GEGLU, and stores them */
static inline void store_rows(const Linear *op, const float *acc, i64 row, i64 rows, i64 panel)
{
    i64 half = op->halves ? op->out_features / 2 : op->out_features, c = panel * (op->halves ? LANES : TILE_K);
    i64 c2 = op->halves ? half + c : c + LANES, width = op->geglu ? half : op->out_features;
    __mmask16 mask = tail_mask(half - c), mask2 = op->halves ? mask : tail_mask(half - c2);
    __m512 bias = op->bias ? load(mask, op->bias + c) : _mm512_setzero_ps();
    __m512 bias2 = op->bias ? load(mask2, op->bias + c2) : _mm512_setzero_ps();
    for (i64 i = 0; i < rows; i++) {
        const float *sum = acc + i * LANES;
        __m512 y = _mm512_add_ps(_mm512_loadu_ps(sum), bias), y2 = _mm512_add_ps(_mm512_loadu_ps(sum + 2 * ACC), bias2);
        i64 at = (row + i) * width;
        if (op->geglu) {
            store(op->out + at + c, mask, _mm512_mul_ps(gelu(y2), y));
            continue;
        }
        if (op->residual) {
            y = _mm512_add_ps(y, load(mask, op->residual + at + c));
            y2 = _mm512_add_ps(y2, load(mask2, op->residual + at + c2));
        }
        store(op->out + at + c, mask, y);
        store(op->out + at + c2, mask2, y2);
    }
}

/* one block: a group of panels at a time, chunk by chunk of the input features */
static void multiply_block(const Linear *op, Block block, scalar_t *gathered, float *acc)
{
    i64 lines = ceil_div(PANEL / TILE_K, ceil_div(block.bottom - block.top, ROWS)), panel_size = op->k_steps * PANEL;
    for (i64 from = block.from; from < block.to; from += op->group)
        for (i64 step = 0; step < op->k_steps; step += op->k_chunk) {
            i64 depth = min_i64(op->k_chunk, op->k_steps - step), is_last = step + depth == op->k_steps;
            for (i64 row = block.top, i = 0; row < block.bottom; row += ROWS, i++) {
                i64 count = min_i64(ROWS, block.bottom - row), c = step * TILE_K;
                gather(op->x + row * op->in + c, count, op->in, op->in - c, depth * TILE_K, op->row_stride, gathered);
                for (i64 p = from; p < min_i64(block.to, from + op->group); p++) {
                    const scalar_t *panel = op->weight + p * panel_size + step * PANEL;
                    const scalar_t *next = is_last ? op->weight + (p + op->group) * panel_size : panel + depth * PANEL;
                    int prefetch = i * lines < PANEL / TILE_K && (!is_last || p + op->group < block.to);
                    float *at = acc + (op->k_chunk < op->k_steps ? (i * op->group + p - from) * ACC_ALL : 0);
                    product(gathered, op->row_stride, depth, panel,
                            prefetch ? next + i * lines * depth * TILE_K : panel, prefetch ? lines : 0, step > 0, at);
                    if (is_last) store_rows(op, at, row, count, p);
                }
            }
        }
}

/* x (rows, in) -> out (rows, out_features), plus a bias (out_features) and a residual of the shape of out, unless they
   are null; weights as `order_rows` packs them. With `geglu`, gelu(second half) * first half: out (rows, out_features /
   2). */
int linear(const scalar_t *x, const scalar_t *weight, const scalar_t *bias, const scalar_t *residual, scalar_t *out,
           i64 rows, i64 in, i64 out_features, i64 halves, i64 geglu)
{
    Linear op = {x, weight, bias, residual, out, in, out_features, halves, geglu, ceil_div(in, TILE_K), 0, 0, 0};
    i64 panels = halves ? ceil_div(out_features / 2, LANES) : ceil_div(out_features, TILE_K);
    i64 threads = omp_get_max_threads();
    if (rows * out_features == 0) return 0;
    i64 splits = 1; /* divides threads between panels and rows so that they read least */
    for (i64 t = 2; t <= min_i64(threads, panels); t++)
        if (threads % t == 0 &&
            rows * t + out_features * (threads / t) < rows * splits + out_features * (threads / splits))
            splits = t;
    op.k_chunk = ceil_div(op.k_steps, ceil_div(op.k_steps, K_CHUNK));
    op.row_stride = (op.k_chunk + 1) * TILE_K; /* one more, lest rows share cache sets */
    int waits = op.k_chunk < op.k_steps;
    i64 split = ceil_div(panels, splits), max_panels = L2_BUDGET / (op.k_chunk * PANEL * (i64)sizeof(scalar_t));
    op.group = ceil_div(split, ceil_div(split, max_panels));
    i64 rows_each = round_up(ceil_div(rows, threads / splits), ROWS), row_parts;
    if (waits) rows_each = min_i64(rows_each, MAX_WAITING);
    row_parts = ceil_div(rows, rows_each);
    size_t acc_bytes = sizeof(float) * ACC_ALL * (size_t)(waits ? rows_each / ROWS * op.group : 1);
    size_t scratch_bytes = acc_bytes + sizeof(scalar_t) * (size_t)(ROWS * op.row_stride);
    char *scratch = aligned_alloc(64, (size_t)threads * scratch_bytes);
    if (!scratch) return 1;
#pragma omp parallel
    {
        char *local = scratch + (size_t)omp_get_thread_num() * scratch_bytes;
        configure_tiles();
#pragma omp for schedule(static)
        for (i64 k = 0; k < splits * row_parts; k++) {
            i64 top = k % row_parts * rows_each, from = k / row_parts * split;
            Block block = {top, min_i64(rows, top + rows_each), from, min_i64(panels, from + split)};
            multiply_block(&op, block, (scalar_t *)(local + acc_bytes), (float *)local);
        }
        _tile_release();
    }
    free(scratch);
    return 0;
}

#endif

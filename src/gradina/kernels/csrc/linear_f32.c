/* Linear layers in float32, optionally followed by GEGLU, whose inputs then never leave the registers: register blocks
   of ROWS by VECTORS.

   Source: Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008. */

#ifndef BF16

#include <omp.h>

#include "simd.h"

enum { ROWS = 6, VECTORS = 4, PANEL = VECTORS * LANES, L2_BUDGET = 512 * 1024 }; /* L2_BUDGET: bytes of rows */

typedef struct {
    const scalar_t *x, *weight, *bias, *residual;
    scalar_t *out;
    i64 in, out_features, geglu;
    i64 half, panel_width; /* width of a half (of all, without halves), and how much of it is in a panel */
} Linear;

/* Packs weights (out, in) as [out / 64][in][64], zero-padded. With `halves`, for GEGLU, each panel has 32 output
   features of the first half and 32 of the second. */
int reorder_linear(const scalar_t *weight, scalar_t *to, i64 in, i64 out, i64 halves)
{
    i64 end = halves ? out / 2 : out, width = halves ? PANEL / 2 : PANEL;
#pragma omp parallel for schedule(static)
    for (i64 panel = 0; panel < ceil_div(end, width); panel++)
        for (i64 k = 0; k < in; k++)
            for (i64 i = 0; i < PANEL; i++) {
                i64 c = panel * width + i % width;
                to[(panel * in + k) * PANEL + i] = c < end ? weight[(c + i / width * end) * in + k] : 0;
            }
    return 0;
}

/* up to ROWS rows by a panel of weights */
INLINE void multiply_rows(const Linear *op, i64 row, int rows, i64 panel)
{
    const scalar_t *x = op->x + row * op->in, *weight = op->weight + panel * op->in * PANEL;
    __m512 sum[ROWS][VECTORS];
    __mmask16 mask[VECTORS];
    i64 column[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        i64 c = panel * op->panel_width + v * LANES % op->panel_width;
        mask[v] = tail_mask(op->half - c), column[v] = c + v * LANES / op->panel_width * op->half;
        __m512 bias = op->bias ? load(mask[v], op->bias + column[v]) : _mm512_setzero_ps();
        for (int i = 0; i < rows; i++) sum[i][v] = bias;
    }
    for (i64 k = 0; k < op->in; k++, weight += PANEL) {
        __m512 w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = _mm512_loadu_ps(weight + v * LANES);
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < VECTORS; v++)
                sum[i][v] = _mm512_fmadd_ps(_mm512_set1_ps(x[i * op->in + k]), w[v], sum[i][v]);
    }
    for (int i = 0; i < rows; i++) {
        i64 at = (row + i) * (op->geglu ? op->half : op->out_features);
        for (int v = 0; v < (op->geglu ? VECTORS / 2 : VECTORS); v++) {
            __m512 y = op->geglu ? _mm512_mul_ps(gelu(sum[i][v + VECTORS / 2]), sum[i][v]) : sum[i][v];
            if (op->residual) y = _mm512_add_ps(y, load(mask[v], op->residual + at + column[v]));
            store(op->out + at + column[v], mask[v], y);
        }
    }
}

/* x (rows, in) -> out (rows, out_features), plus a bias (out_features) and a residual of the shape of out, unless they
   are null; weights as `order_rows` packs them. With `geglu`, gelu(second half) * first half: out (rows, out_features /
   2). */
int linear(const scalar_t *x, const scalar_t *weight, const scalar_t *bias, const scalar_t *residual, scalar_t *out,
           i64 rows, i64 in, i64 out_features, i64 halves, i64 geglu)
{
    Linear op = {x, weight, bias, residual, out, in, out_features, geglu};
    op.half = halves ? out_features / 2 : out_features, op.panel_width = halves ? PANEL / 2 : PANEL;
    if (rows * out_features == 0) return 0;
    i64 panels = ceil_div(op.half, op.panel_width), jobs = 4 * omp_get_max_threads();
    i64 rows_each = round_up(min_i64(ceil_div(rows, 2), 1 + L2_BUDGET / (in * (i64)sizeof(scalar_t))), ROWS);
    i64 row_parts = ceil_div(rows, rows_each);
    i64 split = ceil_div(panels, min_i64(panels, ceil_div(jobs, row_parts))), splits = ceil_div(panels, split);
#pragma omp parallel for schedule(dynamic)
    for (i64 k = 0; k < row_parts * splits; k++) {
        i64 top = k % row_parts * rows_each, bottom = min_i64(rows, top + rows_each), from = k / row_parts * split;
        for (i64 p = from; p < min_i64(panels, from + split); p++) {
            i64 row = top;
            for (; row + ROWS <= bottom; row += ROWS) multiply_rows(&op, row, ROWS, p);
            for (; row < bottom; row++) multiply_rows(&op, row, 1, p);
        }
    }
    return 0;
}

#endif

/* Linear layers in single precision, six rows by four vectors at a time: with a gate behind them, what is gated never leaves
   the registers. */

#ifndef BF16

#include <omp.h>

#include "simd.h"

enum { HIGH = 6, WIDE = 4, PANEL = WIDE * LANES, NEAR = 512 * 1024 }; /* rows and vectors at a time; bytes of rows near */

typedef struct {
    const number *x, *weight, *bias, *beside;
    number *out;
    i64 in, made, gates;
    i64 end, each; /* of a half, or of all that comes out: its width, and how many of a panel are its own */
} Job;

/* Weights (out, in) -> [64 that come out][in][64]; zeros fill up. With `halves`, 32 of the 64 are of the first half, and 32 of
   the second. */
int order_rows(const number *weight, number *to, i64 in, i64 out, i64 halves)
{
    i64 end = halves ? out / 2 : out, each = halves ? PANEL / 2 : PANEL;
#pragma omp parallel for schedule(static)
    for (i64 panel = 0; panel < parts_of(end, each); panel++)
        for (i64 k = 0; k < in; k++)
            for (i64 i = 0; i < PANEL; i++) {
                i64 c = panel * each + i % each;
                to[(panel * in + k) * PANEL + i] = c < end ? weight[(c + i / each * end) * in + k] : 0;
            }
    return 0;
}

/* `high` rows by a panel of weights */
static inline __attribute__((always_inline)) void some_rows(const Job *job, i64 row, int high, i64 panel)
{
    const number *x = job->x + row * job->in, *weight = job->weight + panel * job->in * PANEL;
    __m512 sum[HIGH][WIDE];
    __mmask16 some[WIDE];
    i64 column[WIDE];
    for (int v = 0; v < WIDE; v++) {
        i64 c = panel * job->each + v * LANES % job->each;
        some[v] = first(job->end - c), column[v] = c + v * LANES / job->each * job->end;
        __m512 shift = job->bias ? floats(some[v], job->bias + column[v]) : _mm512_setzero_ps();
        for (int i = 0; i < high; i++) sum[i][v] = shift;
    }
    for (i64 k = 0; k < job->in; k++, weight += PANEL) {
        __m512 by[WIDE];
        for (int v = 0; v < WIDE; v++) by[v] = _mm512_loadu_ps(weight + v * LANES);
        for (int i = 0; i < high; i++)
            for (int v = 0; v < WIDE; v++) sum[i][v] = _mm512_fmadd_ps(_mm512_set1_ps(x[i * job->in + k]), by[v], sum[i][v]);
    }
    for (int i = 0; i < high; i++) {
        i64 at = (row + i) * (job->gates ? job->end : job->made);
        for (int v = 0; v < (job->gates ? WIDE / 2 : WIDE); v++) {
            __m512 y = job->gates ? _mm512_mul_ps(gelu(sum[i][v + WIDE / 2]), sum[i][v]) : sum[i][v];
            if (job->beside) y = _mm512_add_ps(y, floats(some[v], job->beside + at + column[v]));
            put(job->out + at + column[v], some[v], y);
        }
    }
}

/* x (rows, in) by weights as `order_rows` has them, into out (rows, made); adds a bias (made) and what is beside it, if they
   are given. Where it gates, gelu(second half) first half comes out: (rows, made / 2). */
int multiplied(const number *x, const number *weight, const number *bias, const number *beside, number *out, i64 rows,
               i64 in, i64 made, i64 halves, i64 gates)
{
    Job job = {x, weight, bias, beside, out, in, made, gates, halves ? made / 2 : made, halves ? PANEL / 2 : PANEL};
    if (rows * made == 0) return 0;
    i64 panels = parts_of(job.end, job.each), enough = 4 * omp_get_max_threads(); /* parts, for all threads */
    i64 high = up(least(parts_of(rows, 2), 1 + NEAR / (in * (i64)sizeof(number))), HIGH), blocks = parts_of(rows, high);
    i64 share = parts_of(panels, least(panels, parts_of(enough, blocks))), shares = parts_of(panels, share);
#pragma omp parallel for schedule(dynamic)
    for (i64 k = 0; k < blocks * shares; k++) {
        i64 top = k % blocks * high, bottom = least(rows, top + high), from = k / blocks * share;
        for (i64 p = from; p < least(panels, from + share); p++) {
            i64 row = top;
            for (; row + HIGH <= bottom; row += HIGH) some_rows(&job, row, HIGH, p);
            for (; row < bottom; row++) some_rows(&job, row, 1, p);
        }
    }
    return 0;
}

#endif

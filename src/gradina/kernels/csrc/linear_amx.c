/* Linear layers by tiles of 16 rows by 32 numbers, which the processor multiplies whole.

   Out of the caches nearest to a core, numbers come too slowly for that. So 32 rows at a time lie there, while panels of
   weights pass by, as many as its next cache holds; the next ones are asked for meanwhile. */

#ifdef AMX

#include <omp.h>
#include <stdlib.h>

#include "amx.h"

/* rows at a time; numbers of theirs, in DEEPs; bytes of weights that are near; rows whose sums wait; what sums there are */
enum { ROWS = 2 * LANES, NUMBERS = 40, NEAR = 640 * 1024, WAITING = 1024, SUMS = 4 * SQUARE };

typedef struct {
    const number *x, *weight, *bias, *beside;
    number *out;
    i64 in, made, halves, gates;
    i64 steps, chunk;  /* numbers of a row in all, and at a time, in DEEPs */
    i64 apart, group;  /* numbers from one row that is near to the next, and panels that are near */
} Job;

typedef struct { i64 top, bottom, from, to; } Part; /* rows, and panels */

/* Weights (out, in) -> [32 that come out][32 in][16 of the first][pair of the second][16][2]; zeros fill up. With `halves`
   there are 16 of the first half and 16 of the second one in each 32. */
int order_rows(const number *weight, number *to, i64 in, i64 out, i64 halves)
{
    i64 steps = parts_of(in, DEEP), end = halves ? out / 2 : out, each = halves ? LANES : DEEP;
#pragma omp parallel for schedule(static)
    for (i64 panel = 0; panel < parts_of(end, each); panel++)
        for (i64 step = 0; step < steps; step++)
            for (i64 half = 0; half < 2; half++) {
                i64 c = panel * each + half * (halves ? end : LANES), rows = halves ? end - panel * each : end - c;
                number *at = to + (panel * steps + step) * PANEL + half * TILE;
                order_tile(weight + c * in + step * DEEP, in, rows, in - step * DEEP, 1, at);
            }
    return 0;
}

#define ALL_FOUR(DONE) DONE(0) DONE(1) DONE(2) DONE(3)

/* 32 rows by a panel of weights; `lines` of what is next to be multiplied are asked for with each product */
static inline void product(const number *rows, i64 apart, i64 steps, const number *weight, const number *next, i64 lines,
                           int adds, float *sums)
{
    const number *below = rows + LANES * apart;
    apart *= (i64)sizeof(number);
    BARRIER;
    if (adds) {
        ALL_FOUR(LOADED)
    } else {
        ALL_FOUR(ZEROED)
    }
    for (i64 step = 0; step < steps; step++, rows += DEEP, below += DEEP, weight += PANEL) {
        _tile_loadd(4, rows, apart);
        _tile_stream_loadd(6, weight, 64); /* used once: it shall not drive out the rows */
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, below, apart);
        _tile_dpbf16ps(1, 5, 6);
        _tile_stream_loadd(7, weight + TILE, 64);
        for (i64 k = 0; k < lines; k++, next += DEEP) _mm_prefetch((const char *)next, _MM_HINT_T1);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    ALL_FOUR(STORED)
    BARRIER;
}

/* numbers of some rows, `left` or `deep` of each, `apart`; zeros fill up */
static void look(const number *x, i64 rows, i64 width, i64 left, i64 deep, i64 apart, number *to)
{
    i64 here = least(left, deep);
    for (i64 i = 0; i < rows; i++, x += width, to += apart) {
        memcpy(to, x, sizeof(number) * (size_t)here);
        memset(to + here, 0, sizeof(number) * (size_t)(deep - here));
    }
}

/* sums of some rows by a panel -> what comes out */
static inline void put_rows(const Job *to, const float *sums, i64 row, i64 rows, i64 panel)
{
    i64 end = to->halves ? to->made / 2 : to->made, c = panel * (to->halves ? LANES : DEEP);
    i64 d = to->halves ? end + c : c + LANES, width = to->gates ? end : to->made;
    __mmask16 some = first(end - c), others = to->halves ? some : first(end - d);
    __m512 shift = to->bias ? floats(some, to->bias + c) : _mm512_setzero_ps();
    __m512 other = to->bias ? floats(others, to->bias + d) : _mm512_setzero_ps();
    for (i64 i = 0; i < rows; i++) {
        const float *sum = sums + i * LANES;
        __m512 h = _mm512_add_ps(_mm512_loadu_ps(sum), shift), g = _mm512_add_ps(_mm512_loadu_ps(sum + 2 * SQUARE), other);
        i64 at = (row + i) * width;
        if (to->gates) {
            put(to->out + at + c, some, _mm512_mul_ps(gelu(g), h));
            continue;
        }
        if (to->beside) {
            h = _mm512_add_ps(h, floats(some, to->beside + at + c));
            g = _mm512_add_ps(g, floats(others, to->beside + at + d));
        }
        put(to->out + at + c, some, h);
        put(to->out + at + d, others, g);
    }
}

/* One part: some panels at a time, chunk by chunk of the numbers of its rows. */
static void multiply(const Job *job, Part part, number *seen, float *sums)
{
    i64 lines = parts_of(PANEL / DEEP, parts_of(part.bottom - part.top, ROWS)), of_panel = job->steps * PANEL;
    for (i64 from = part.from; from < part.to; from += job->group)
        for (i64 step = 0; step < job->steps; step += job->chunk) {
            i64 deep = least(job->chunk, job->steps - step), ends = step + deep == job->steps;
            for (i64 row = part.top, i = 0; row < part.bottom; row += ROWS, i++) {
                i64 here = least(ROWS, part.bottom - row), c = step * DEEP;
                look(job->x + row * job->in + c, here, job->in, job->in - c, deep * DEEP, job->apart, seen);
                for (i64 p = from; p < least(part.to, from + job->group); p++) {
                    const number *now = job->weight + p * of_panel + step * PANEL;
                    const number *next = ends ? job->weight + (p + job->group) * of_panel : now + deep * PANEL;
                    int asks = i * lines < PANEL / DEEP && (!ends || p + job->group < part.to);
                    float *at = sums + (job->chunk < job->steps ? (i * job->group + p - from) * SUMS : 0);
                    product(seen, job->apart, deep, now, asks ? next + i * lines * deep * DEEP : now, asks ? lines : 0,
                            step > 0, at);
                    if (ends) put_rows(job, at, row, here, p);
                }
            }
        }
}

/* x (rows, in) by weights as `order_rows` has them, into out (rows, made); adds a bias (made) and what is beside it, if they
   are given. Where it gates, gelu(second half) first half comes out: (rows, made / 2). */
int multiplied(const number *x, const number *weight, const number *bias, const number *beside, number *out, i64 rows,
               i64 in, i64 made, i64 halves, i64 gates)
{
    Job job = {x, weight, bias, beside, out, in, made, halves, gates, parts_of(in, DEEP), 0, 0, 0};
    i64 panels = halves ? parts_of(made / 2, LANES) : parts_of(made, DEEP), threads = omp_get_max_threads();
    if (rows * made == 0) return 0;
    i64 across = 1; /* so many threads share the panels, and the others the rows: as is read least */
    for (i64 t = 2; t <= least(threads, panels); t++)
        if (threads % t == 0 && rows * t + made * (threads / t) < rows * across + made * (threads / across)) across = t;
    job.chunk = parts_of(job.steps, parts_of(job.steps, NUMBERS));
    job.apart = (job.chunk + 1) * DEEP; /* one DEEP more, lest rows meet in a cache */
    int waits = job.chunk < job.steps;
    i64 share = parts_of(panels, across), most = NEAR / (job.chunk * PANEL * (i64)sizeof(number));
    job.group = parts_of(share, parts_of(share, most));
    i64 high = up(parts_of(rows, threads / across), ROWS), parts;
    if (waits) high = least(high, WAITING);
    parts = parts_of(rows, high);
    size_t of_sums = sizeof(float) * SUMS * (size_t)(waits ? high / ROWS * job.group : 1);
    size_t each = of_sums + sizeof(number) * (size_t)(ROWS * job.apart);
    char *room = aligned_alloc(64, (size_t)threads * each);
    if (!room) return 1;
#pragma omp parallel
    {
        char *own = room + (size_t)omp_get_thread_num() * each;
        set_tiles();
#pragma omp for schedule(static)
        for (i64 k = 0; k < across * parts; k++) {
            i64 top = k % parts * high, from = k / parts * share;
            Part part = {top, least(rows, top + high), from, least(panels, from + share)};
            multiply(&job, part, (number *)(own + of_sums), (float *)own);
        }
        _tile_release();
    }
    free(room);
    return 0;
}

#endif

/* 3x3 convolutions by tiles of 16 places by 32 channels, which the processor multiplies whole.

   Out of the caches nearest to a core, numbers come too slowly for that. So a core takes some rows of a map, and of them
   some channels at a time, with a border of zeros, as many as stay near; and panels of weights pass by, each of which is
   asked for while the one before it is multiplied. Sums of channels that have passed wait in single precision for the next
   ones. What comes out of three tiles, one above the other, by a panel is summed up at a time: they look at mostly the same
   rows. */

#ifdef AMX

#include <omp.h>
#include <stdlib.h>

#include "conv3x3.h"
#include "amx.h"

enum { TAPS = 9, BESIDE = 3, SUMS = BESIDE * 2 * SQUARE };
/* channels at a time, in DEEPs; bytes of what is seen of them; columns at a time; panels whose sums wait */
enum { CHANNELS = 10, NEAR = 512 * 1024, COLUMNS = 64, PANELS = 10 };

typedef struct {
    const number *x, *weight, *bias, *beside;
    number *out;
    i64 height, width, in, made, grows; /* of the map that comes out: each place seen is `grows` of them high and wide */
    i64 steps, chunk;                   /* channels in all, and at a time, in DEEPs */
    i64 across, apart;                  /* what is near: places of a row, with a border, and numbers of a place */
    i64 taps[TAPS];
} Job;

typedef struct { i64 top, bottom, left, right; } Part; /* of all maps, one below the other */

typedef struct { const number *seen; i64 row, column; } Tile; /* sixteen places; the first one, and what is left above it */

/* Weights (out, in), as `threes` has them -> [32 that come out][32 in][tap][16 of the first][pair of the second][16][2];
   zeros fill up. */
int order(const number *weight, number *to, i64 in, i64 out, i64 last, i64 turned)
{
    Threes w = threes(weight, in, out, last, turned);
    i64 steps = parts_of(in, DEEP);
#pragma omp parallel for schedule(static)
    for (i64 panel = 0; panel < parts_of(out, DEEP); panel++)
        for (i64 step = 0; step < steps; step++)
            for (i64 half = 0; half < 2; half++) {
                i64 c = panel * DEEP + half * LANES, i = step * DEEP;
                number *at = to + (panel * steps + step) * TAPS * PANEL + half * TILE;
                const number *from = w.from + c * w.of_out + i * w.of_in;
                if (w.of_tap == 1) {
                    order_tile(from, w.of_out, out - c, in - i, TAPS, at);
                    continue;
                }
                for (i64 tap = 0; tap < TAPS; tap++, from += w.of_tap, at += PANEL)
                    if (w.of_in == 1)
                        order_tile(from, w.of_out, out - c, in - i, 1, at);
                    else
                        turn_tile(from, w.of_out, w.of_in, out - c, in - i, at);
            }
    return 0;
}

#define ALL_SIX(DONE) DONE(0) DONE(1) DONE(2) DONE(3) DONE(4) DONE(5)

/* three tiles by one panel of weights, over `steps` of channels: tiles 0 to 5 are the sums. On the way, `lines` of what is
   next to be multiplied are asked for with each product. */
static inline void product(const Job *job, const Tile *tile, i64 steps, const number *weight, const number *next, i64 lines,
                           int adds, float *sums)
{
    const number *one = tile[0].seen, *two = tile[1].seen, *three = tile[2].seen;
    const i64 apart = job->apart * (i64)sizeof(number);
    BARRIER;
    if (adds) {
        ALL_SIX(LOADED)
    } else {
        ALL_SIX(ZEROED)
    }
    for (i64 step = 0; step < steps; step++, one += DEEP, two += DEEP, three += DEEP)
        for (i64 i = 0; i < TAPS; i++, weight += PANEL) {
            i64 tap = job->taps[i];
            _tile_loadd(7, weight, 64);
            _tile_loadd(6, one + tap, apart);
            _tile_dpbf16ps(0, 6, 7);
            _tile_loadd(6, two + tap, apart);
            _tile_dpbf16ps(1, 6, 7);
            _tile_loadd(6, three + tap, apart);
            _tile_dpbf16ps(2, 6, 7);
            _tile_loadd(7, weight + TILE, 64);
            _tile_dpbf16ps(5, 6, 7);
            for (i64 k = 0; k < lines; k++, next += DEEP) _mm_prefetch((const char *)next, _MM_HINT_T1);
            _tile_loadd(6, two + tap, apart);
            _tile_dpbf16ps(4, 6, 7);
            _tile_loadd(6, one + tap, apart);
            _tile_dpbf16ps(3, 6, 7);
        }
    ALL_SIX(STORED)
    BARRIER;
}

/* channels [c, c + deep) of what a part looks at: map by map, with a border; zeros fill up the last ones */
static void look(const Job *job, Part part, i64 c, i64 deep, number *to)
{
    i64 here = least(deep, job->in - c), height = job->height, grows = job->grows;
    for (i64 top = part.top; top < part.bottom;) {
        i64 first = top / height * height, bottom = least(part.bottom, first + height);
        for (i64 y = top - 1; y <= bottom; y++)
            for (i64 x = part.left - 1; x < part.left - 1 + job->across; x++, to += job->apart) {
                int there = y >= first && y < first + height && x >= 0 && x < job->width;
                i64 place = y / grows * (job->width / grows) + x / grows;
                if (there) memcpy(to, job->x + place * job->in + c, sizeof(number) * (size_t)here);
                memset(to + (there ? here : 0), 0, sizeof(number) * (size_t)(deep - (there ? here : 0)));
            }
        top = bottom;
    }
}

/* whether rows are so narrow that tiles go on from one to the next: what they make of the border between is dropped */
static int goes_on(const Job *job) { return job->width < 3 * LANES && job->width % LANES; }

/* the tiles of a part of what `look` has put there; some twice at the end, to make a multiple of BESIDE */
static i64 cut(const Job *job, Part part, const number *seen, Tile *tiles)
{
    i64 across = job->across, apart = job->apart, n = 0;
    for (i64 top = part.top; top < part.bottom;) {
        i64 bottom = least(part.bottom, (top / job->height + 1) * job->height), rows = bottom - top;
        if (goes_on(job))
            for (i64 p = 0; p < rows * across - 2; p += LANES)
                tiles[n++] = (Tile){seen + p * apart, top + p / across, p % across};
        else
            for (i64 high = 0; high < rows; high += BESIDE)
                for (i64 x = 0; x < part.right - part.left; x += LANES)
                    for (i64 y = high; y < least(rows, high + BESIDE); y++)
                        tiles[n++] = (Tile){seen + (y * across + x) * apart, top + y, part.left + x};
        seen += (rows + 2) * across * apart;
        top = bottom;
    }
    for (i64 k = n; k % BESIDE; k++) tiles[k] = tiles[n - 1];
    return n;
}

/* sums of one tile by a panel -> what comes out, from channel c on */
static void put_tile(const Job *job, Part part, Tile tile, const float *sums, i64 c)
{
    i64 wraps = goes_on(job) ? job->across : tile.column + LANES;
    __mmask16 some[2] = {first(job->made - c), first(job->made - c - LANES)};
    __m512 shift[2];
    for (int k = 0; k < 2; k++)
        shift[k] = job->bias ? floats(some[k], job->bias + c + k * LANES) : _mm512_setzero_ps();
    for (i64 i = 0, x = tile.column, y = tile.row; i < LANES && y < part.bottom; i++) {
        i64 at = (y * job->width + x) * job->made + c;
        for (int k = 0; k < 2 && x < part.right; k++) {
            __m512 sum = _mm512_add_ps(_mm512_loadu_ps(sums + k * BESIDE * SQUARE + i * LANES), shift[k]);
            if (job->beside) sum = _mm512_add_ps(sum, floats(some[k], job->beside + at + k * LANES));
            put(job->out + at + k * LANES, some[k], sum);
        }
        if (++x == wraps) x = 0, y++;
    }
}

/* One part by panels [from, to): chunk by chunk of its channels. */
static void convolve(const Job *job, Part part, i64 from, i64 to, Tile *tiles, number *seen, float *sums)
{
    i64 n = cut(job, part, seen, tiles), threes = parts_of(n, BESIDE), lines = parts_of(PANEL / DEEP, threes);
    i64 of_panel = job->steps * TAPS * PANEL;
    for (i64 step = 0; step < job->steps; step += job->chunk) {
        i64 deep = least(job->chunk, job->steps - step), ends = step + deep == job->steps;
        look(job, part, step * DEEP, deep * DEEP, seen);
        for (i64 p = from; p < to; p++) {
            const number *now = job->weight + p * of_panel + step * TAPS * PANEL;
            const number *next = p + 1 < to ? now + of_panel : job->weight + from * of_panel + (step + deep) * TAPS * PANEL;
            for (i64 t = 0; t < threes; t++) {
                int asks = t * lines < PANEL / DEEP && (p + 1 < to || !ends);
                float *at = sums + (job->chunk < job->steps ? ((p - from) * threes + t) * SUMS : 0);
                product(job, tiles + t * BESIDE, deep, now, asks ? next + t * lines * deep * TAPS * DEEP : now,
                        asks ? lines : 0, step > 0, at);
                for (i64 i = 0; ends && i < least(BESIDE, n - t * BESIDE); i++)
                    put_tile(job, part, tiles[t * BESIDE + i], at + i * SQUARE, p * DEEP);
            }
        }
    }
}

/* Convolves maps x (batch, height / grows, width / grows, in), each place taken `grows` times in both directions (1 or 2),
   with a zero around them, into out (batch, height, width, made); adds a bias (made) and what is beside it, if they are
   given. Weights are as `order` has them. */
int convolved(const number *x, const number *weight, const number *bias, const number *beside, number *out, i64 batch,
              i64 height, i64 width, i64 in, i64 made, i64 grows)
{
    Job job = {x, weight, bias, beside, out, height, width, in, made, grows, parts_of(in, DEEP), 0, 0, 0, {0}};
    i64 rows = batch * height, panels = parts_of(made, DEEP), threads = omp_get_max_threads();
    if (rows * width * made == 0) return 0;
    job.chunk = parts_of(job.steps, parts_of(job.steps, CHANNELS)), job.apart = job.chunk * DEEP;
    i64 columns = goes_on(&job) ? width : least(width, COLUMNS), wide = parts_of(width, columns);
    job.across = columns + 2;
    for (i64 i = 0; i < TAPS; i++) job.taps[i] = (i / 3 * job.across + i % 3) * job.apart;

    /* so many rows of a part that it is near, as many parts for each thread, and of panels what makes enough of both */
    i64 most = NEAR / (i64)sizeof(number) / (job.across * job.apart) - 2, slabs = parts_of(rows, most < 1 ? 1 : most);
    if (slabs * wide > threads) slabs = up(slabs * wide, threads) / wide;
    i64 slab = parts_of(rows, slabs), parts = parts_of(rows, slab) * wide;
    i64 groups = job.chunk < job.steps ? parts_of(panels, PANELS) : 1;
    if (parts * groups < 4 * threads) groups = least(panels, parts_of(up(parts * groups, threads), parts));
    i64 group = parts_of(panels, groups), jobs = parts * parts_of(panels, group);

    i64 places = (slab + 2 * (slab / height + 2)) * job.across + LANES; /* with a border for each map */
    i64 cuts = slab * parts_of(job.across, LANES) + slab / height + 2 + BESIDE;
    size_t of_seen = (size_t)up(places * job.apart * (i64)sizeof(number), 64);
    size_t of_tiles = (size_t)up(cuts * (i64)sizeof(Tile), 64);
    size_t of_sums = sizeof(float) * SUMS * (size_t)(job.chunk < job.steps ? cuts / BESIDE * group : 1);
    size_t each = of_seen + of_tiles + of_sums;
    char *room = aligned_alloc(64, (size_t)threads * each);
    if (!room) return 1;
#pragma omp parallel
    {
        char *own = room + (size_t)omp_get_thread_num() * each;
        set_tiles();
#pragma omp for schedule(dynamic)
        for (i64 k = 0; k < jobs; k++) {
            i64 from = k / parts * group, top = k % parts / wide * slab, left = k % wide * columns;
            Part part = {top, least(rows, top + slab), left, least(width, left + columns)};
            convolve(&job, part, from, least(panels, from + group), (Tile *)(own + of_seen), (number *)own,
                     (float *)(own + of_seen + of_tiles));
        }
        _tile_release();
    }
    free(room);
    return 0;
}

#endif

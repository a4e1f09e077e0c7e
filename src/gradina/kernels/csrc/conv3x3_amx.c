/* 3x3 convolutions of channels-last maps in bfloat16 by AMX tiles of 16 pixels by 16 output channels.

   AMX is bound by cache bandwidth, so data locality decides. A thread gathers a patch of some rows and K_CHUNK * TILE_K
   of their channels, with a border of zeros, that fits in its L2 cache, and streams panels of weights (32 output
   channels) past it, prefetching each while the one before it is multiplied. Accumulators wait in float32 for the next
   chunk of channels. A product takes three tiles of pixels, one below the other, since these share most input rows.

   Source: implicit GEMM, Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning" (1410.0759). */

#ifdef AMX

#include <omp.h>
#include <stdlib.h>

#include "conv3x3.h"
#include "amx.h"

enum { TAPS = 9, M_TILES = 3, ACC_ALL = M_TILES * 2 * ACC };
/* TILE_Ks of channels per chunk; bytes of a patch; columns of a patch; panels per chunk whose accumulators wait */
enum { K_CHUNK = 10, L2_BUDGET = 512 * 1024, MAX_COLUMNS = 64, PANEL_GROUP = 10 };

typedef struct {
    const scalar_t *x, *weight, *bias, *residual;
    scalar_t *out;
    i64 height, width, in, out_channels, upsample; /* of the output; upsample: nearest-neighbour factor, 1 or 2 */
    i64 k_steps, k_chunk;                          /* TILE_Ks of channels in all, and per chunk */
    i64 patch_width, pixel_stride;                 /* pixels of a row with its border, elements of a pixel */
    i64 tap_offset[TAPS];
} Conv;

typedef struct { i64 top, bottom, left, right; } Region; /* rows count through all maps of the batch */

typedef struct { const scalar_t *patch; i64 row, column; } Tile; /* 16 pixels: their top left input, the first output */

/* Packs weights (out, in, taps) as [out / 32][in / 32][tap][2][16 pairs of in][16 of out][2], zero-padded. */
int reorder_conv3x3(const scalar_t *weight, scalar_t *to, i64 in, i64 out, i64 channels_last, i64 transposed)
{
    Weights w = weights_view(weight, in, out, channels_last, transposed);
    i64 k_steps = ceil_div(in, TILE_K);
#pragma omp parallel for schedule(static)
    for (i64 panel = 0; panel < ceil_div(out, TILE_K); panel++)
        for (i64 step = 0; step < k_steps; step++)
            for (i64 half = 0; half < 2; half++) {
                i64 c = panel * TILE_K + half * LANES, i = step * TILE_K;
                scalar_t *at = to + (panel * k_steps + step) * TAPS * PANEL + half * TILE;
                const scalar_t *from = w.data + c * w.out_stride + i * w.in_stride;
                if (w.tap_stride == 1) {
                    pack_tile(from, w.out_stride, out - c, in - i, TAPS, at);
                    continue;
                }
                for (i64 tap = 0; tap < TAPS; tap++, from += w.tap_stride, at += PANEL)
                    if (w.in_stride == 1)
                        pack_tile(from, w.out_stride, out - c, in - i, 1, at);
                    else
                        pack_tile_transposed(from, w.out_stride, w.in_stride, out - c, in - i, at);
            }
    return 0;
}

#define EACH_ACC(OP) OP(0) OP(1) OP(2) OP(3) OP(4) OP(5)

/* Three tiles of pixels by one panel of weights, over `k_steps` of channels: tiles 0 to 5 accumulate. Prefetches
   `lines` of the next panel with each tap. */
static inline void product(const Conv *conv, const Tile *tile, i64 k_steps, const scalar_t *weight,
                           const scalar_t *next, i64 lines, int accumulate, float *acc)
{
    const scalar_t *top = tile[0].patch, *middle = tile[1].patch, *bottom = tile[2].patch;
    const i64 pixel_stride = conv->pixel_stride * (i64)sizeof(scalar_t);
    BARRIER;
    if (accumulate) {
        EACH_ACC(LOAD_ACC)
    } else {
        EACH_ACC(ZERO_ACC)
    }
    for (i64 step = 0; step < k_steps; step++, top += TILE_K, middle += TILE_K, bottom += TILE_K)
        for (i64 i = 0; i < TAPS; i++, weight += PANEL) {
            i64 tap = conv->tap_offset[i];
            _tile_loadd(7, weight, 64);
            _tile_loadd(6, top + tap, pixel_stride);
            _tile_dpbf16ps(0, 6, 7);
            _tile_loadd(6, middle + tap, pixel_stride);
            _tile_dpbf16ps(1, 6, 7);
            _tile_loadd(6, bottom + tap, pixel_stride);
            _tile_dpbf16ps(2, 6, 7);
            _tile_loadd(7, weight + TILE, 64);
            _tile_dpbf16ps(5, 6, 7);
            for (i64 k = 0; k < lines; k++, next += TILE_K) _mm_prefetch((const char *)next, _MM_HINT_T1);
            _tile_loadd(6, middle + tap, pixel_stride);
            _tile_dpbf16ps(4, 6, 7);
            _tile_loadd(6, top + tap, pixel_stride);
            _tile_dpbf16ps(3, 6, 7);
        }
    EACH_ACC(STORE_ACC)
    BARRIER;
}

/* Gathers channels [c, c + depth) of a region with its border, map by map, zero-padded; upsamples on the way. */
static void gather(const Conv *conv, Region region, i64 c, i64 depth, scalar_t *to)
{
    i64 count = min_i64(depth, conv->in - c), height = conv->height, upsample = conv->upsample;
    for (i64 top = region.top; top < region.bottom;) {
        i64 map_top = top / height * height, bottom = min_i64(region.bottom, map_top + height);
        for (i64 y = top - 1; y <= bottom; y++)
            for (i64 x = region.left - 1; x < region.left - 1 + conv->patch_width; x++, to += conv->pixel_stride) {
                int inside = y >= map_top && y < map_top + height && x >= 0 && x < conv->width;
                i64 pixel = y / upsample * (conv->width / upsample) + x / upsample;
                if (inside) memcpy(to, conv->x + pixel * conv->in + c, sizeof(scalar_t) * (size_t)count);
                memset(to + (inside ? count : 0), 0, sizeof(scalar_t) * (size_t)(depth - (inside ? count : 0)));
            }
        top = bottom;
    }
}

/* whether rows are so narrow that tiles continue in the next one; outputs at the border between them are dropped */
static int tiles_wrap(const Conv *conv) { return conv->width < 3 * LANES && conv->width % LANES; }

/* lists the tiles of a gathered region, the last one repeated up to a multiple of M_TILES; returns how many differ */
static i64 list_tiles(const Conv *conv, Region region, const scalar_t *patch, Tile *tiles)
{
    i64 patch_width = conv->patch_width, pixel_stride = conv->pixel_stride, n = 0;
    for (i64 top = region.top; top < region.bottom;) {
        i64 bottom = min_i64(region.bottom, (top / conv->height + 1) * conv->height), rows = bottom - top;
        if (tiles_wrap(conv))
            for (i64 p = 0; p < rows * patch_width - 2; p += LANES)
                tiles[n++] = (Tile){patch + p * pixel_stride, top + p / patch_width, p % patch_width};
        else
            for (i64 high = 0; high < rows; high += M_TILES)
                for (i64 x = 0; x < region.right - region.left; x += LANES)
                    for (i64 y = high; y < min_i64(rows, high + M_TILES); y++)
                        tiles[n++] = (Tile){patch + (y * patch_width + x) * pixel_stride, top + y, region.left + x};
        patch += (rows + 2) * patch_width * pixel_stride;
        top = bottom;
    }
    for (i64 k = n; k % M_TILES; k++) tiles[k] = tiles[n - 1];
    return n;
}

/* adds bias and residual to the accumulators of one tile and stores 32 output channels from c on */
static void store_tile(const Conv *conv, Region region, Tile tile, const float *acc, i64 c)
{
    i64 row_end = tiles_wrap(conv) ? conv->patch_width : tile.column + LANES;
    __mmask16 mask[2] = {tail_mask(conv->out_channels - c), tail_mask(conv->out_channels - c - LANES)};
    __m512 bias[2];
    for (int k = 0; k < 2; k++) bias[k] = conv->bias ? load(mask[k], conv->bias + c + k * LANES) : _mm512_setzero_ps();
    for (i64 i = 0, x = tile.column, y = tile.row; i < LANES && y < region.bottom; i++) {
        i64 at = (y * conv->width + x) * conv->out_channels + c;
        for (int k = 0; k < 2 && x < region.right; k++) {
            __m512 sum = _mm512_add_ps(_mm512_loadu_ps(acc + k * M_TILES * ACC + i * LANES), bias[k]);
            if (conv->residual) sum = _mm512_add_ps(sum, load(mask[k], conv->residual + at + k * LANES));
            store(conv->out + at + k * LANES, mask[k], sum);
        }
        if (++x == row_end) x = 0, y++;
    }
}

/* one region by panels [from, to), chunk by chunk of the channels */
static void convolve_region(const Conv *conv, Region region, i64 from, i64 to, Tile *tiles, scalar_t *patch, float *acc)
{
    i64 n = list_tiles(conv, region, patch, tiles), triples = ceil_div(n, M_TILES);
    i64 lines = ceil_div(PANEL / TILE_K, triples);
    i64 panel_size = conv->k_steps * TAPS * PANEL;
    for (i64 step = 0; step < conv->k_steps; step += conv->k_chunk) {
        i64 depth = min_i64(conv->k_chunk, conv->k_steps - step), is_last = step + depth == conv->k_steps;
        gather(conv, region, step * TILE_K, depth * TILE_K, patch);
        for (i64 p = from; p < to; p++) {
            const scalar_t *panel = conv->weight + p * panel_size + step * TAPS * PANEL;
            const scalar_t *next =
                p + 1 < to ? panel + panel_size : conv->weight + from * panel_size + (step + depth) * TAPS * PANEL;
            for (i64 t = 0; t < triples; t++) {
                int prefetch = t * lines < PANEL / TILE_K && (p + 1 < to || !is_last);
                float *at = acc + (conv->k_chunk < conv->k_steps ? ((p - from) * triples + t) * ACC_ALL : 0);
                product(conv, tiles + t * M_TILES, depth, panel,
                        prefetch ? next + t * lines * depth * TAPS * TILE_K : panel, prefetch ? lines : 0, step > 0,
                        at);
                for (i64 i = 0; is_last && i < min_i64(M_TILES, n - t * M_TILES); i++)
                    store_tile(conv, region, tiles[t * M_TILES + i], at + i * ACC, p * TILE_K);
            }
        }
    }
}

/* x (batch, height / upsample, width / upsample, in), upsampled and zero-padded by 1 -> out (batch, height, width,
   out_channels), plus a bias (out_channels) and a residual of the shape of out, unless they are null; weights as
   `order` packs them. */
int conv3x3(const scalar_t *x, const scalar_t *weight, const scalar_t *bias, const scalar_t *residual, scalar_t *out,
            i64 batch, i64 height, i64 width, i64 in, i64 out_channels, i64 upsample)
{
    Conv conv = {x, weight, bias, residual, out, height, width, in, out_channels, upsample};
    conv.k_steps = ceil_div(in, TILE_K);
    i64 rows = batch * height, panels = ceil_div(out_channels, TILE_K), threads = omp_get_max_threads();
    if (rows * width * out_channels == 0) return 0;
    conv.k_chunk = ceil_div(conv.k_steps, ceil_div(conv.k_steps, K_CHUNK)), conv.pixel_stride = conv.k_chunk * TILE_K;
    i64 columns = tiles_wrap(&conv) ? width : min_i64(width, MAX_COLUMNS), column_groups = ceil_div(width, columns);
    conv.patch_width = columns + 2;
    for (i64 i = 0; i < TAPS; i++) conv.tap_offset[i] = (i / 3 * conv.patch_width + i % 3) * conv.pixel_stride;

    /* regions as high as L2 allows, equally many per thread; groups of panels where regions alone are too few */
    i64 max_rows = L2_BUDGET / (i64)sizeof(scalar_t) / (conv.patch_width * conv.pixel_stride) - 2;
    i64 slabs = ceil_div(rows, max_rows < 1 ? 1 : max_rows);
    if (slabs * column_groups > threads) slabs = round_up(slabs * column_groups, threads) / column_groups;
    i64 slab = ceil_div(rows, slabs), parts = ceil_div(rows, slab) * column_groups;
    i64 groups = conv.k_chunk < conv.k_steps ? ceil_div(panels, PANEL_GROUP) : 1;
    if (parts * groups < 4 * threads) groups = min_i64(panels, ceil_div(round_up(parts * groups, threads), parts));
    i64 group = ceil_div(panels, groups), jobs = parts * ceil_div(panels, group);

    i64 patch_pixels = (slab + 2 * (slab / height + 2)) * conv.patch_width + LANES; /* each map has a border */
    i64 max_tiles = slab * ceil_div(conv.patch_width, LANES) + slab / height + 2 + M_TILES;
    size_t patch_bytes = (size_t)round_up(patch_pixels * conv.pixel_stride * (i64)sizeof(scalar_t), 64);
    size_t tiles_bytes = (size_t)round_up(max_tiles * (i64)sizeof(Tile), 64);
    size_t acc_bytes =
        sizeof(float) * ACC_ALL * (size_t)(conv.k_chunk < conv.k_steps ? max_tiles / M_TILES * group : 1);
    size_t scratch_bytes = patch_bytes + tiles_bytes + acc_bytes;
    char *scratch = aligned_alloc(64, (size_t)threads * scratch_bytes);
    if (!scratch) return 1;
#pragma omp parallel
    {
        char *local = scratch + (size_t)omp_get_thread_num() * scratch_bytes;
        configure_tiles();
#pragma omp for schedule(dynamic)
        for (i64 k = 0; k < jobs; k++) {
            i64 from = k / parts * group, top = k % parts / column_groups * slab, left = k % column_groups * columns;
            Region region = {top, min_i64(rows, top + slab), left, min_i64(width, left + columns)};
            convolve_region(&conv, region, from, min_i64(panels, from + group), (Tile *)(local + patch_bytes),
                            (scalar_t *)local, (float *)(local + patch_bytes + tiles_bytes));
        }
        _tile_release();
    }
    free(scratch);
    return 0;
}

#endif

/* AMX tiles: 16 rows of TILE_K bfloat16 of A, or 32 rows of 16 of B with two rows interleaved in pairs (the VNNI
   layout); 16 by 16 float32 of the accumulator. */

#pragma once

#include <string.h>

#include "simd.h"

/* elements along k, of a tile of A or B, of two tiles of B (32 output channels), of an accumulator */
enum { TILE_K = 2 * LANES, TILE = LANES * TILE_K, PANEL = 2 * TILE, ACC = LANES * LANES };

/* the compiler does not know that tile loads and stores access memory */
#define BARRIER __asm__ volatile("" ::: "memory")

/* configures the eight tiles of the calling thread as 16 rows of 64 bytes */
static inline void configure_tiles(void)
{
    struct { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
}

#define LOAD_ACC(i) _tile_loadd(i, acc + i * ACC, 64);
#define STORE_ACC(i) _tile_stored(i, acc + i * ACC, 64);
#define ZERO_ACC(i) _tile_zero(i);

/* Packs up to 16 `rows` of weights (width, taps), `stride` apart, as a tile of B per tap, a PANEL apart. `left` of the
   width remain; zero-padded. */
static inline void pack_tile(const scalar_t *from, i64 stride, i64 rows, i64 left, i64 taps, scalar_t *to)
{
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i index = _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)stride)), zero = _mm512_setzero_si512();
    __mmask16 mask = tail_mask(rows);
    for (i64 i = 0; i < TILE_K; i += 2, to += TILE_K)
        for (i64 tap = 0; tap < taps; tap++) {
            const scalar_t *at = from + i * taps + tap;
            __m512i pairs = zero;
            if (i + 1 < left) { /* a gather reads two elements: after the last one it would read past the weights */
                __m512i low = _mm512_mask_i32gather_epi32(zero, mask, index, at, sizeof(scalar_t));
                __m512i high =
                    taps == 1 ? low : _mm512_mask_i32gather_epi32(zero, mask, index, at + taps - 1, sizeof(scalar_t));
                pairs = _mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
            }
            _mm512_storeu_si512(to + tap * PANEL, pairs);
            for (i64 row = 0; i + 1 == left && row < rows; row++) to[tap * PANEL + 2 * row] = at[row * stride];
        }
}

/* Packs one tile of B from transposed weights, whose rows are `row_stride` apart, and elements of a row `stride`. */
static inline void pack_tile_transposed(const scalar_t *from, i64 row_stride, i64 stride, i64 rows, i64 left,
                                        scalar_t *to)
{
    scalar_t pair[2][LANES];
    for (i64 i = 0; i < TILE_K; i += 2, to += TILE_K) {
        for (i64 k = 0; k < 2; k++)
            for (i64 row = 0; row < LANES; row++)
                pair[k][row] = row < rows && i + k < left ? from[(i + k) * stride + row * row_stride] : 0;
        __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)pair[0]));
        __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)pair[1]));
        _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

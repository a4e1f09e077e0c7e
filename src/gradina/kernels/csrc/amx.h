/* What is multiplied by whole tiles: 16 rows of 32 numbers, or of weights 32 rows of 16, two of which lie beside each other.
   Results of 16 by 16 are of single precision. */

#pragma once

#include <string.h>

#include "simd.h"

enum { DEEP = 2 * LANES, TILE = LANES * DEEP, PANEL = 2 * TILE, SQUARE = LANES * LANES };

#define BARRIER __asm__ volatile("" ::: "memory") /* compilers do not know that tiles are loaded and stored */

/* eight tiles of 16 rows of 64 bytes, for the thread that asks */
static inline void set_tiles(void)
{
    struct { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    _tile_loadconfig(&shape);
}

/* what is done to tiles of sums */
#define LOADED(i) _tile_loadd(i, sums + i * SQUARE, 64);
#define STORED(i) _tile_stored(i, sums + i * SQUARE, 64);
#define ZEROED(i) _tile_zero(i);

/* `rows` of weights (width, taps), up to 16, `apart`, from one on with which `left` are left of them -> for each tap a tile,
   a panel apart, where two of each row are a pair. Zeros fill up. */
static inline void order_tile(const number *from, i64 apart, i64 rows, i64 left, i64 taps, number *to)
{
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i at = _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)apart)), none = _mm512_setzero_si512();
    __mmask16 some = first(rows);
    for (i64 i = 0; i < DEEP; i += 2, to += DEEP)
        for (i64 tap = 0; tap < taps; tap++) {
            const number *one = from + i * taps + tap;
            __m512i pairs = none;
            if (i + 1 < left) { /* what is gathered is two numbers wide: of the last ones, none lies behind the weights */
                __m512i low = _mm512_mask_i32gather_epi32(none, some, at, one, sizeof(number));
                __m512i high = taps == 1 ? low : _mm512_mask_i32gather_epi32(none, some, at, one + taps - 1, sizeof(number));
                pairs = _mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
            }
            _mm512_storeu_si512(to + tap * PANEL, pairs);
            for (i64 row = 0; i + 1 == left && row < rows; row++) to[tap * PANEL + 2 * row] = one[row * apart];
        }
}

/* one tile of weights that lie the other way: from one of a row to the next `apart`, from row to row `beside` */
static inline void turn_tile(const number *from, i64 beside, i64 apart, i64 rows, i64 left, number *to)
{
    number line[2][LANES];
    for (i64 i = 0; i < DEEP; i += 2, to += DEEP) {
        for (i64 k = 0; k < 2; k++)
            for (i64 row = 0; row < LANES; row++)
                line[k][row] = row < rows && i + k < left ? from[(i + k) * apart + row * beside] : 0;
        __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)line[0]));
        __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)line[1]));
        _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

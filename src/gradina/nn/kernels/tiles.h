/* What is multiplied by whole tiles: 16 rows of 32 numbers, or of weights 32 rows of 16, two of which lie beside each other.
   Results of 16 by 16 are of single precision. */

#pragma once


#include <string.h>

#include "vectors.h"

enum { DEEP = 2 * LANES, TILE = LANES * DEEP, PANEL = 2 * TILE, SQUARE = LANES * LANES };

#define BARRIER __asm__ volatile("" ::: "memory") /* compilers do not know that tiles are loaded and stored */

static inline i64 least(i64 a, i64 b) { return a < b ? a : b; }
static inline i64 parts_of(i64 all, i64 each) { return (all + each - 1) / each; }

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

/* numbers c to c + 32 of each row (width, taps) of weights -> panels, one for each tap: two rows of theirs are one of 32
   pairs. `column`: which of the 32 that come out it is. */
static inline void order_row(const number *row, i64 c, i64 width, i64 taps, i64 column, number *to)
{
    to += column / LANES * TILE + column % LANES * 2;
    for (i64 i = 0; i < least(DEEP, width - c); i++)
        for (i64 tap = 0; tap < taps; tap++) to[tap * PANEL + i / 2 * DEEP + i % 2] = row[(c + i) * taps + tap];
}

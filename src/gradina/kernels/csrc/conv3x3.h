/* How the weights of 3x3 convolutions lie. */

#pragma once

#include "simd.h"

/* where 3x3 weights (out, in) are: numbers from one to the next */
typedef struct { const number *from; i64 of_out, of_in, of_tap; } Threes;

/* as they lie, channels before taps or `last`; or `turned`: those of the way back, where what came out goes in, and each tap
   is at the other end */
static inline Threes threes(const number *weight, i64 in, i64 out, i64 last, i64 turned)
{
    i64 wide = turned ? out : in, row = 9 * wide, channel = last ? 1 : 9, tap = last ? wide : 1;
    return turned ? (Threes){weight + 8 * tap, channel, row, -tap} : (Threes){weight, row, channel, tap};
}

/* The layout in which 3x3 weights arrive. */

#pragma once

#include "simd.h"

/* weights (out, in, taps) with the stride of each dimension */
typedef struct { const scalar_t *data; i64 out_stride, in_stride, tap_stride; } Weights;

/* Weights in memory as (out, in, 3, 3), or (out, 3, 3, in) if `channels_last`. `transposed` are those of the backward
   pass: `in` and `out` swapped, taps flipped. */
static inline Weights weights_view(const scalar_t *weight, i64 in, i64 out, i64 channels_last, i64 transposed)
{
    i64 width = transposed ? out : in, row = 9 * width;
    i64 channel = channels_last ? 1 : 9, tap = channels_last ? width : 1;
    return transposed ? (Weights){weight + 8 * tap, channel, row, -tap} : (Weights){weight, row, channel, tap};
}

/* GroupNorm with an optional SiLU after it, forward and backward, of channels-last maps (batch, pixels, channels);
   LayerNorm.

   The forward is two passes: `moments` finds one scale and offset per channel, `scaled` applies them.

   Source: Wu & He, "Group Normalization" (1803.08494); Ba, Kiros & Hinton, "Layer Normalization" (1607.06450);
   variances by Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance", 1983, equation 2.1. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "simd.h"

/* a block, so that sums do not depend on the number of threads; pixels per load of sums; pixels averaged as a pivot */
enum { BLOCK_PIXELS = 256, UNROLL = 4, PIVOT_PIXELS = 16 };

/* x (n, channels) -> sums of x - pivot and of its square per channel */
static void channel_sums(const scalar_t *x, i64 n, i64 channels, const float *pivot, float *sum, float *square)
{
    memset(sum, 0, sizeof(float) * channels);
    memset(square, 0, sizeof(float) * channels);
    for (i64 p = 0; p < n; p += UNROLL)
        for (i64 i = 0; i < channels; i += LANES) {
            __mmask16 mask = tail_mask(channels - i);
            __m512 centre = _mm512_maskz_loadu_ps(mask, pivot + i), s = _mm512_maskz_loadu_ps(mask, sum + i);
            __m512 q = _mm512_maskz_loadu_ps(mask, square + i);
            for (i64 k = p; k < p + UNROLL && k < n; k++) {
                __m512 y = _mm512_sub_ps(load(mask, x + k * channels + i), centre);
                s = _mm512_add_ps(s, y), q = _mm512_fmadd_ps(y, y, q);
            }
            _mm512_mask_storeu_ps(sum + i, mask, s);
            _mm512_mask_storeu_ps(square + i, mask, q);
        }
}

/* GroupNorm of x + shift (batch, channels; may be null) as scale x + offset, and without weight and bias as
   rstd (x - centre); all four are (batch, channels). Sums are taken about a pivot per channel against cancellation. */
int group_norm_moments(const scalar_t *x, i64 batch, i64 pixels, i64 channels, i64 groups, const float *shift,
                       const float *weight, const float *bias, double eps, float *scale, float *offset, float *rstd,
                       float *centre)
{
    i64 blocks = ceil_div(pixels, BLOCK_PIXELS), group_size = channels / groups;
    float *scratch = malloc(sizeof(float) * (size_t)(batch * (2 * blocks + 1) * channels));
    if (!scratch) return 1;
    float *pivots = scratch + batch * 2 * blocks * channels;
    for (i64 b = 0; b < batch; b++)
        for (i64 i = 0; i < channels; i += LANES) {
            __mmask16 mask = tail_mask(channels - i);
            __m512 y = _mm512_setzero_ps();
            for (i64 k = 0; k < PIVOT_PIXELS; k++)
                y = _mm512_add_ps(y, load(mask, x + (b * pixels + k * pixels / PIVOT_PIXELS) * channels + i));
            _mm512_mask_storeu_ps(pivots + b * channels + i, mask,
                                  _mm512_mul_ps(y, _mm512_set1_ps(1.0f / PIVOT_PIXELS)));
        }
#pragma omp parallel for schedule(static)
    for (i64 k = 0; k < batch * blocks; k++) {
        i64 b = k / blocks, from = k % blocks * BLOCK_PIXELS;
        float *to = scratch + 2 * k * channels;
        channel_sums(x + (b * pixels + from) * channels, min_i64(pixels - from, BLOCK_PIXELS), channels,
                     pivots + b * channels, to, to + channels);
    }
#pragma omp parallel for schedule(static)
    for (i64 k = 0; k < batch * groups; k++) {
        i64 b = k / groups, start = b * channels + k % groups * group_size;
        double mean = 0, within = 0, between = 0;
        for (int pass = 0; pass < 2; pass++)
            for (i64 i = start; i < start + group_size; i++) {
                double sum = 0, square = 0;
                for (i64 j = 0; j < blocks; j++) {
                    const float *part = scratch + 2 * (b * blocks + j) * channels + i - b * channels;
                    sum += part[0], square += part[channels];
                }
                sum /= (double)pixels;
                double channel_mean = sum + pivots[i] + (shift ? shift[i] : 0);
                if (pass)
                    within += square / (double)pixels - sum * sum,
                        between += (channel_mean - mean) * (channel_mean - mean);
                else
                    mean += channel_mean / (double)group_size;
            }
        double group_rstd = 1 / sqrt((within + between) / (double)group_size + eps);
        for (i64 i = start; i < start + group_size; i++) {
            double w = weight[i - b * channels] * group_rstd, from = mean - (shift ? shift[i] : 0);
            scale[i] = (float)w, offset[i] = (float)(bias[i - b * channels] - w * from);
            rstd[i] = (float)group_rstd, centre[i] = (float)from;
        }
    }
    free(scratch);
    return 0;
}

static inline __m512 sigmoid(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 denominator = _mm512_add_ps(exp2_ps(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f))), one);
#ifdef BF16
    return _mm512_rcp14_ps(denominator);
#else
    return _mm512_div_ps(one, denominator);
#endif
}

static inline __m512 silu(__m512 x) { return _mm512_mul_ps(x, sigmoid(x)); }

/* derivative of SiLU at x */
static inline __m512 silu_grad(__m512 x)
{
    __m512 s = sigmoid(x);
    return _mm512_fmadd_ps(_mm512_mul_ps(x, s), _mm512_sub_ps(_mm512_set1_ps(1.0f), s), s);
}

/* out = scale x + offset with scale and offset (batch, channels), or SiLU of that if `activated` */
int group_norm_apply(const scalar_t *x, scalar_t *out, i64 batch, i64 pixels, i64 channels, const float *scale,
                     const float *offset, i64 activated)
{
#pragma omp parallel for schedule(static)
    for (i64 p = 0; p < batch * pixels; p++) {
        i64 at = p / pixels * channels;
        for (i64 i = 0; i < channels; i += LANES) {
            __mmask16 mask = tail_mask(channels - i);
            __m512 y = _mm512_fmadd_ps(load(mask, x + p * channels + i), _mm512_maskz_loadu_ps(mask, scale + at + i),
                                       _mm512_maskz_loadu_ps(mask, offset + at + i));
            store(out + p * channels + i, mask, activated ? silu(y) : y);
        }
    }
    return 0;
}

/* what the backward knows from the forward */
typedef struct {
    const scalar_t *x, *grad_output;
    i64 pixels, channels, groups, activated;
    const float *scale, *offset, *rstd, *centre; /* of `moments` */
} Backward;

/* the gradient before SiLU at channels [i, i + 16) of pixel p of map b; `x_value` is x there */
INLINE __m512 grad_before_silu(const Backward *f, i64 b, i64 p, i64 i, __mmask16 mask, __m512 *x_value)
{
    i64 at = (b * f->pixels + p) * f->channels + i, channel = b * f->channels + i;
    __m512 grad_output = load(mask, f->grad_output + at);
    *x_value = load(mask, f->x + at);
    if (!f->activated) return grad_output;
    __m512 scale = _mm512_maskz_loadu_ps(mask, f->scale + channel),
           offset = _mm512_maskz_loadu_ps(mask, f->offset + channel);
    return _mm512_mul_ps(grad_output, silu_grad(_mm512_fmadd_ps(*x_value, scale, offset)));
}

enum { SUMS = 3 }; /* per channel: sums of the gradient, of gradient (x - centre), and of x - centre */

/* ... over pixels [from, to) of map b */
static void grad_sums(const Backward *f, i64 b, i64 from, i64 to, float *sums)
{
    i64 channels = f->channels;
    for (i64 i = 0; i < channels; i += LANES) {
        __mmask16 mask = tail_mask(channels - i);
        __m512 grads = _mm512_setzero_ps(), products = grads, deviations = grads, x;
        __m512 centre = _mm512_maskz_loadu_ps(mask, f->centre + b * channels + i);
        for (i64 p = from; p < to; p++) {
            __m512 grad = grad_before_silu(f, b, p, i, mask, &x), centred = _mm512_sub_ps(x, centre);
            grads = _mm512_add_ps(grads, grad), products = _mm512_fmadd_ps(grad, centred, products),
            deviations = _mm512_add_ps(deviations, centred);
        }
        _mm512_mask_storeu_ps(sums + i, mask, grads);
        _mm512_mask_storeu_ps(sums + channels + i, mask, products);
        _mm512_mask_storeu_ps(sums + 2 * channels + i, mask, deviations);
    }
}

/* backward of `moments` and `scaled`: the gradient of the output -> those of x, weight and bias (channels) and shift
   (batch, channels). Source: Ioffe & Szegedy, "Batch Normalization" (1502.03167), section 3, over a group's pixels and
   channels. */
int group_norm_backward(const scalar_t *x, const scalar_t *grad_output, i64 batch, i64 pixels, i64 channels, i64 groups,
                        i64 activated, const float *scale, const float *offset, const float *rstd, const float *centre,
                        const float *weight, scalar_t *grad_x, float *grad_weight, float *grad_bias, float *grad_shift)
{
    Backward f = {x, grad_output, pixels, channels, groups, activated, scale, offset, rstd, centre};
    i64 blocks = ceil_div(pixels, BLOCK_PIXELS), group_size = channels / groups, size = SUMS * channels;
    float *scratch = calloc((size_t)(batch * (blocks * size + 2 * channels)), sizeof(float));
    if (!scratch) return 1;
    float *affine = scratch + batch * blocks * size; /* grad_x is scale grad + affine[0] (x - centre) + affine[1] */
#pragma omp parallel for schedule(static)
    for (i64 k = 0; k < batch * blocks; k++) {
        i64 from = k % blocks * BLOCK_PIXELS;
        grad_sums(&f, k / blocks, from, min_i64(pixels, from + BLOCK_PIXELS), scratch + k * size);
    }
#pragma omp parallel for schedule(static)
    for (i64 k = 0; k < batch * groups; k++) {
        i64 b = k / groups, start = k % groups * group_size;
        float *sums = scratch + b * blocks * size, *affine_b = affine + b * 2 * channels;
        double sum_grad = 0, centred = 0, count = (double)(pixels * group_size),
               group_rstd = rstd[b * channels + start];
        for (i64 i = start; i < start + group_size; i++) {
            for (i64 j = 1; j < blocks; j++)
                for (i64 s = 0; s < SUMS; s++) sums[s * channels + i] += sums[j * size + s * channels + i];
            sum_grad += (double)weight[i] * sums[i], centred += (double)weight[i] * sums[channels + i];
        }
        for (i64 i = start; i < start + group_size; i++) {
            double slope = -group_rstd * group_rstd * group_rstd * centred / count,
                   intercept = -group_rstd * sum_grad / count;
            affine_b[i] = (float)slope, affine_b[channels + i] = (float)intercept;
            double total =
                group_rstd * weight[i] * sums[i] + slope * sums[2 * channels + i] + intercept * (double)pixels;
            grad_shift[b * channels + i] = (float)total;
        }
    }
    for (i64 i = 0; i < channels; i++) {
        double w = 0, s = 0;
        for (i64 b = 0; b < batch; b++) {
            const float *sums = scratch + b * blocks * size;
            s += sums[i], w += (double)sums[channels + i] * rstd[b * channels + i];
        }
        grad_weight[i] = (float)w, grad_bias[i] = (float)s;
    }
#pragma omp parallel for schedule(static)
    for (i64 k = 0; k < batch * blocks; k++) {
        i64 b = k / blocks, from = k % blocks * BLOCK_PIXELS;
        const float *affine_b = affine + b * 2 * channels;
        for (i64 p = from; p < min_i64(pixels, from + BLOCK_PIXELS); p++)
            for (i64 i = 0; i < channels; i += LANES) {
                __mmask16 mask = tail_mask(channels - i);
                __m512 x_value, grad = grad_before_silu(&f, b, p, i, mask, &x_value);
                __m512 centred = _mm512_sub_ps(x_value, _mm512_maskz_loadu_ps(mask, centre + b * channels + i));
                __m512 y = _mm512_maskz_loadu_ps(mask, affine_b + channels + i);
                y = _mm512_fmadd_ps(centred, _mm512_maskz_loadu_ps(mask, affine_b + i), y);
                y = _mm512_fmadd_ps(grad, _mm512_maskz_loadu_ps(mask, scale + b * channels + i), y);
                store(grad_x + (b * pixels + p) * channels + i, mask, y);
            }
    }
    free(scratch);
    return 0;
}

/* LayerNorm of rows (rows, width), equation 4: out = weight (x - mean) / sqrt(variance + eps) + bias */
int layer_norm(const scalar_t *x, scalar_t *out, i64 rows, i64 width, const scalar_t *weight, const scalar_t *bias,
               double eps)
{
#pragma omp parallel for schedule(static)
    for (i64 r = 0; r < rows; r++) {
        const scalar_t *row = x + r * width;
        __m512 sum = _mm512_setzero_ps(), square = _mm512_setzero_ps();
        for (i64 i = 0; i < width; i += LANES) sum = _mm512_add_ps(sum, load(tail_mask(width - i), row + i));
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)width);
        for (i64 i = 0; i < width; i += LANES) {
            __m512 y = _mm512_maskz_sub_ps(tail_mask(width - i), load(tail_mask(width - i), row + i), mean);
            square = _mm512_fmadd_ps(y, y, square);
        }
        __m512 rstd = _mm512_set1_ps((float)(1 / sqrt(_mm512_reduce_add_ps(square) / (double)width + eps)));
        for (i64 i = 0; i < width; i += LANES) {
            __mmask16 mask = tail_mask(width - i);
            __m512 y = _mm512_mul_ps(_mm512_sub_ps(load(mask, row + i), mean), rstd);
            store(out + r * width + i, mask, _mm512_fmadd_ps(y, load(mask, weight + i), load(mask, bias + i)));
        }
    }
    return 0;
}

/* 3x3 convolutions by a quarter of the multiplications: exact, but for rounding.

   Six places in a row are a polynomial's coefficients, three weights another's, and four sums coefficients of their
   product: known from its values at six points, where it takes one multiplication each. So too for tiles of 6x6 places, by
   rows and columns: 36 products for 16 sums instead of 144. At each of the 36 points it is a product of matrices: tiles by
   channels, channels by what comes out. The points 0, +-3/4, +-3/2 and infinity keep rounding at half of what the usual
   ones, 0, +-1, +-2, make of it; with sums over DEEP channels at a time it is no more than that of adding up products one
   by one. Values at the points are of single precision, whatever the numbers are.

   Source: Winograd, "Arithmetic complexity of computations", 1980; Lavin & Gray, "Fast Algorithms for Convolutional Neural
   Networks" (1509.09308), section 4.3: A' [(G g G') * (B' d B)] A. */

#ifndef AMX /* conv3x3_amx.c is quicker there */

#include <omp.h>
#include <stdlib.h>

#include "conv3x3.h"
#include "simd.h"

enum { MADE = 4, SEEN = 6, TAPS = 3, POINTS = SEEN * SEEN };
/* multiplied at once: GROUP tiles, DEEP channels of them, PANEL of those that come out, in PANEL / LANES vectors; values at
   one point and at the next lie a little more apart, lest they meet in a cache */
enum { GROUP = 48, DEEP = 64, PANEL = 64, OF_WEIGHTS = DEEP * PANEL + LANES, OF_SUMS = GROUP * PANEL + LANES };

#define EACH(x) _mm512_set1_ps(x)
#define ADD(a, b) _mm512_add_ps(a, b)
#define SUB(a, b) _mm512_sub_ps(a, b)
#define MUL(a, b) _mm512_mul_ps(EACH(a), b)
#define MUL_ADD(a, b, c) _mm512_fmadd_ps(EACH(a), b, c) /* a b + c */

static const float P = 3 / 4.0f, Q = 3 / 2.0f, PP = 9 / 16.0f, QQ = 9 / 4.0f; /* the points 0, P, -P, Q, -Q, infinity */

/* B' d: what six places come to at each point; `step` vectors lie between one and the next, in and out */
static inline __attribute__((always_inline)) void seen(const __m512 *d, i64 step, __m512 *out)
{
    __m512 even = MUL_ADD(-QQ, d[2 * step], d[4 * step]), odd = MUL(P, MUL_ADD(-QQ, d[step], d[3 * step]));
    __m512 even2 = MUL_ADD(-PP, d[2 * step], d[4 * step]), odd2 = MUL(Q, MUL_ADD(-PP, d[step], d[3 * step]));
    out[0] = MUL_ADD(PP * QQ, d[0], MUL_ADD(-PP - QQ, d[2 * step], d[4 * step]));
    out[step] = ADD(even, odd), out[2 * step] = SUB(even, odd);
    out[3 * step] = ADD(even2, odd2), out[4 * step] = SUB(even2, odd2);
    out[5 * step] = MUL_ADD(PP * QQ, d[step], MUL_ADD(-PP - QQ, d[3 * step], d[5 * step]));
}

/* G g: what three weights come to at each point */
static inline __attribute__((always_inline)) void learnt(const __m512 *g, i64 step, __m512 *out)
{
    const float p = 1 / (2 * PP * (PP - QQ)), q = 1 / (2 * QQ * (QQ - PP));
    __m512 even = MUL_ADD(PP * p, g[2 * step], MUL(p, g[0])), odd = MUL(P * p, g[step]);
    __m512 even2 = MUL_ADD(QQ * q, g[2 * step], MUL(q, g[0])), odd2 = MUL(Q * q, g[step]);
    out[0] = MUL(1 / (PP * QQ), g[0]);
    out[step] = ADD(even, odd), out[2 * step] = SUB(even, odd);
    out[3 * step] = ADD(even2, odd2), out[4 * step] = SUB(even2, odd2);
    out[5 * step] = g[2 * step];
}

/* A' m: four sums from the products at each point */
static inline __attribute__((always_inline)) void made(const __m512 *m, i64 step, __m512 *out)
{
    __m512 even = ADD(m[step], m[2 * step]), odd = SUB(m[step], m[2 * step]);
    __m512 even2 = ADD(m[3 * step], m[4 * step]), odd2 = SUB(m[3 * step], m[4 * step]);
    out[0] = ADD(m[0], ADD(even, even2));
    out[step] = MUL_ADD(P, odd, MUL(Q, odd2));
    out[2 * step] = MUL_ADD(PP, even, MUL(QQ, even2));
    out[3 * step] = MUL_ADD(P * PP, odd, MUL_ADD(Q * QQ, odd2, m[5 * step]));
}

/* sums[r][column] (+)= sum over p of a[r][p] b[p][column], for HIGH rows and WIDE vectors of columns at a time */
#define PRODUCT(HIGH, WIDE)                                                                                         \
    static void product_##HIGH##_##WIDE(const float *a, i64 rows, const float *b, i64 deep, float *sums, int adds)  \
    {                                                                                                               \
        for (i64 r = 0; r < rows; r += HIGH, a += HIGH * DEEP, sums += HIGH * PANEL) {                              \
            __m512 sum[HIGH][WIDE], row[WIDE];                                                                      \
            for (int i = 0; i < HIGH; i++)                                                                          \
                for (int c = 0; c < WIDE; c++) sum[i][c] = _mm512_setzero_ps();                                     \
            for (i64 p = 0; p < deep; p++) {                                                                        \
                for (int c = 0; c < WIDE; c++) row[c] = _mm512_loadu_ps(b + p * PANEL + c * LANES);                 \
                for (int i = 0; i < HIGH; i++)                                                                      \
                    for (int c = 0; c < WIDE; c++) sum[i][c] = MUL_ADD(a[i * DEEP + p], row[c], sum[i][c]);         \
            }                                                                                                       \
            for (int i = 0; i < HIGH; i++)                                                                          \
                for (int c = 0; c < WIDE; c++) {                                                                    \
                    float *to = sums + i * PANEL + c * LANES;                                                       \
                    _mm512_storeu_ps(to, adds ? ADD(_mm512_loadu_ps(to), sum[i][c]) : sum[i][c]);                   \
                }                                                                                                   \
        }                                                                                                           \
    }

PRODUCT(6, 1)
PRODUCT(6, 2)
PRODUCT(6, 3)
PRODUCT(6, 4)
PRODUCT(2, 1)
PRODUCT(2, 2)
PRODUCT(2, 3)
PRODUCT(2, 4)

/* ... for an even number of rows */
static void product(const float *a, i64 rows, const float *b, i64 deep, i64 vectors, float *sums, int adds)
{
    typedef void Product(const float *, i64, const float *, i64, float *, int);
    static Product *const six[] = {product_6_1, product_6_2, product_6_3, product_6_4};
    static Product *const two[] = {product_2_1, product_2_2, product_2_3, product_2_4};
    i64 most = rows / 6 * 6;
    six[vectors - 1](a, most, b, deep, sums, adds);
    two[vectors - 1](a + most * DEEP, rows - most, b, deep, sums + most * PANEL, adds);
}

typedef struct {
    i64 height, width, in, out, grows; /* of the map that comes out: each place seen is `grows` of them high and wide */
    i64 across, each;                  /* tiles of a row, and of a map */
} Sizes;

/* `deep` channels of one tile -> their values at each point, `apart` from one point to the next; zeros if it is none */
static void look(const number *x, const Sizes *of, i64 tile, int is_one, i64 deep, float *values, i64 apart)
{
    const number *from[POINTS];
    __mmask16 there[POINTS];
    i64 map = tile / of->each, top = tile % of->each / of->across * MADE - 1, left = tile % of->across * MADE - 1;
    for (int i = 0; i < POINTS; i++) {
        i64 row = top + i / SEEN, column = left + i % SEEN;
        int inside = is_one && row >= 0 && row < of->height && column >= 0 && column < of->width;
        there[i] = inside ? 0xffff : 0;
        if (of->grows == 2) row >>= 1, column >>= 1;
        i64 place = (map * (of->height / of->grows) + row) * (of->width / of->grows) + column;
        from[i] = inside ? x + place * of->in : x;
    }
    for (i64 c = 0; c < deep; c += LANES) {
        __m512 d[POINTS], by_columns[POINTS], by_both[POINTS];
        for (int i = 0; i < POINTS; i++) d[i] = floats(there[i] & first(deep - c), from[i] + c);
        for (int j = 0; j < SEEN; j++) seen(d + j, SEEN, by_columns + j);
        for (int i = 0; i < SEEN; i++) seen(by_columns + i * SEEN, 1, by_both + i * SEEN);
        for (int i = 0; i < POINTS; i++) _mm512_storeu_ps(values + i * apart + c, by_both[i]);
    }
}

/* weights [16 that come out at a time][in][tap][of the 16], from a channel on -> values at each point [deep][PANEL] */
static void learn(const number *weight, i64 in, i64 deep, i64 vectors, float *values)
{
    for (i64 v = 0; v < vectors; v++)
        for (i64 p = 0; p < deep; p++) {
            __m512 g[TAPS * TAPS], by_columns[SEEN * TAPS], by_both[POINTS];
            for (int i = 0; i < TAPS * TAPS; i++) g[i] = floats(0xffff, weight + ((v * in + p) * TAPS * TAPS + i) * LANES);
            for (int j = 0; j < TAPS; j++) learnt(g + j, TAPS, by_columns + j);
            for (int i = 0; i < SEEN; i++) learnt(by_columns + i * TAPS, 1, by_both + i * SEEN);
            for (int i = 0; i < POINTS; i++) _mm512_storeu_ps(values + i * OF_WEIGHTS + p * PANEL + v * LANES, by_both[i]);
        }
}

/* products at each point of one tile -> its sums, for up to 16 channels from c on, with what is added to them */
static void make(const float *products, const Sizes *of, i64 tile, i64 c, const number *bias, const number *beside,
                 number *out)
{
    i64 map = tile / of->each, top = tile % of->each / of->across * MADE, left = tile % of->across * MADE;
    __mmask16 some = first(of->out - c);
    __m512 m[POINTS], by_columns[MADE * SEEN], by_both[MADE * MADE];
    for (int i = 0; i < POINTS; i++) m[i] = _mm512_loadu_ps(products + i * OF_SUMS);
    for (int j = 0; j < SEEN; j++) made(m + j, SEEN, by_columns + j);
    for (int i = 0; i < MADE; i++) made(by_columns + i * SEEN, 1, by_both + i * MADE);
    __m512 shift = bias ? floats(some, bias + c) : _mm512_setzero_ps();
    for (int i = 0; i < MADE && top + i < of->height; i++)
        for (int j = 0; j < MADE && left + j < of->width; j++) {
            i64 at = ((map * of->height + top + i) * of->width + left + j) * of->out + c;
            __m512 y = ADD(by_both[i * MADE + j], shift);
            put(out + at, some, beside ? ADD(y, floats(some, beside + at)) : y);
        }
}

/* Weights (out, in), as `threes` has them -> [16 that come out at a time][in][tap][of the 16]; zeros fill up. */
int order(const number *weight, number *to, i64 in, i64 out, i64 last, i64 turned)
{
    enum { ALL = TAPS * TAPS };
    Threes w = threes(weight, in, out, last, turned);
#pragma omp parallel for schedule(static)
    for (i64 c = 0; c < out; c += LANES)
        for (i64 k = 0; k < in * ALL; k++) {
            const number *from = w.from + c * w.of_out + k / ALL * w.of_in + k % ALL * w.of_tap;
            number *at = to + c * in * ALL + k * LANES;
            for (i64 lane = 0; lane < LANES; lane++) at[lane] = c + lane < out ? from[lane * w.of_out] : 0;
        }
    return 0;
}

/* Convolves maps x (batch, height / grows, width / grows, in), each place taken `grows` times in both directions (1 or 2),
   with a zero around them, into out (batch, height, width, out); adds a bias (out) and what is beside it, if they are
   given. Weights are in `order`. */
int convolved(const number *x, const number *weight, const number *bias, const number *beside, number *to, i64 batch,
              i64 height, i64 width, i64 in, i64 out, i64 grows)
{
    Sizes of = {height, width, in, out, grows, (width + MADE - 1) / MADE, 0};
    of.each = (height + MADE - 1) / MADE * of.across;
    i64 all = batch * of.each, panels = (out + PANEL - 1) / PANEL, blocks = (in + DEEP - 1) / DEEP;
    i64 threads = omp_get_max_threads(), groups = (4 * threads + panels - 1) / panels; /* some panels for each */
    i64 some = groups * GROUP < all ? groups * GROUP : up(all, 2); /* tiles that are seen at a time */
    i64 apart = some * DEEP + LANES, own = POINTS * (OF_WEIGHTS + OF_SUMS);
    if (all == 0) return 0;
    float *values = aligned_alloc(64, sizeof(float) * (size_t)(blocks * POINTS * apart));
    float *rooms = aligned_alloc(64, sizeof(float) * (size_t)(threads * own));
    if (!values || !rooms) {
        free(values), free(rooms);
        return 1;
    }
#pragma omp parallel
    {
        float *weights = rooms + omp_get_thread_num() * own, *sums = weights + POINTS * OF_WEIGHTS;
        for (i64 start = 0; start < all; start += some) {
            i64 here = all - start < some ? all - start : some, padded = up(here, 2);
#pragma omp for schedule(static)
            for (i64 k = 0; k < blocks * padded; k++) {
                i64 t = k % padded, block = k / padded, channel = block * DEEP;
                i64 deep = in - channel < DEEP ? in - channel : DEEP;
                look(x + channel, &of, start + t, t < here, deep, values + block * POINTS * apart + t * DEEP, apart);
            }
#pragma omp for schedule(dynamic)
            for (i64 job = 0; job < (here + GROUP - 1) / GROUP * panels; job++) {
                i64 group = job / panels * GROUP, panel = job % panels * PANEL;
                i64 tiles = here - group < GROUP ? here - group : GROUP;
                i64 vectors = up(out - panel < PANEL ? out - panel : PANEL, LANES) / LANES;
                for (i64 block = 0; block < blocks; block++) {
                    i64 deep = in - block * DEEP < DEEP ? in - block * DEEP : DEEP;
                    learn(weight + (panel * in + block * DEEP * LANES) * TAPS * TAPS, in, deep, vectors, weights);
                    for (i64 i = 0; i < POINTS; i++) {
                        const float *seen_here = values + (block * POINTS + i) * apart + group * DEEP;
                        product(seen_here, up(tiles, 2), weights + i * OF_WEIGHTS, deep, vectors, sums + i * OF_SUMS,
                                block > 0);
                    }
                }
                for (i64 t = 0; t < tiles; t++)
                    for (i64 v = 0; v < vectors; v++)
                        make(sums + t * PANEL + v * LANES, &of, start + group + t, panel + v * LANES, bias, beside, to);
            }
        }
    }
    free(values), free(rooms);
    return 0;
}

#endif

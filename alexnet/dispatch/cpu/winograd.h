/* The transforms of Winograd's convolution: tiles of 4 x 4 outputs under filters of 3 x 3 or 5 x 5.
 *
 * In one dimension, m outputs y[i] = sum over j < r of x[i + j] g[j] need n = m + r - 1 pixels and, as products of
 * polynomials do, no more than n multiplications (Toom and Cook; Winograd 1980; Lavin and Gray 2016):
 *
 *     y = E_m' ( (E_r g / N) * (B x) )                  * and / element by element, ' for transposed
 *
 * E_k is n x k and gives the values of a polynomial of k coefficients at n points 0, +-a, +-b, ..., infinity (there:
 * its leading coefficient).  Row p of B holds the coefficients of the product of (z - q) over all other finite points
 * q, and N_p is that product at z = p; the last row of B is the product over all finite points.  In two dimensions each
 * transform is applied along the rows and along the columns.  The gradient of the filters is the same formula with the
 * roles of m and r exchanged: r outputs under a "filter" of m gradients.
 *
 * The points decide how much is rounded.  Six points (r = 3): 0, +-sqrt(1/2), +-sqrt(2), infinity, whose products
 * keep B small (1, 2.5, 2, 1/2): twice the error of the plain sum, where 0, +-1, +-2 have four times as much.  Eight
 * points (r = 5): 0, +-1/2, +-1, +-2, infinity: all exact in binary, two and a half times the error of the plain sum.
 *
 * The point at infinity serves the last output alone.  A tile of 3 outputs is one of 4 without the last and without
 * that point; 13 pixels are cut into 4 + 3 + 3 + 3, which takes 21 points where four tiles of 4 take 24.
 *
 * A number that is infinite or not a number makes all outputs of its tile so.
 */
#ifndef WINOGRAD_H
#define WINOGRAD_H

#include <stdint.h>
#include <string.h>
#include "tiles.h"

enum { TILE = 4, MOST_POINTS = 8 };        /* outputs of a tile, and points, in one dimension */

/* The pairs of points +-root; products of (z^2 - square) over all pairs and over all others, coefficients upwards. */
typedef struct { float root[3], square[3], inverse[4], all[4], others[3][3]; } Points;

static const Points SIX = {
    .root = { 0.70710678f, 1.41421356f }, .square = { 0.5f, 2 }, .inverse = { 1, -2 / 3.f, 1 / 6.f },
    .all = { 1, -2.5f, 1 }, .others = { { -2, 1 }, { -0.5f, 1 } },
};
static const Points EIGHT = {
    .root = { 0.5f, 1, 2 }, .square = { 0.25f, 1, 4 }, .inverse = { -1, 32 / 45.f, -2 / 9.f, 1 / 90.f },
    .all = { -1, 5.25f, -5.25f, 1 }, .others = { { 4, -5, 1 }, { 1, -4.25f, 1 }, { 0.25f, -1.25f, 1 } },
};

ALWAYS_INLINE const Points *points(const int n) { return n == 6 ? &SIX : &EIGHT; }

ALWAYS_INLINE vector load(const float *from) { return *(const vector *)from; }
ALWAYS_INLINE void store(float *to, vector x) { *(vector *)to = x; }

/* The first `count` numbers, at most LANES, and zeros. */
ALWAYS_INLINE vector load_some(const float *from, long count)
{
    vector x = { 0 };
    if (count >= LANES)
        return load(from);
    memcpy(&x, from, most(count, 0) * sizeof(float));
    return x;
}

/* 1 / N of point i. */
ALWAYS_INLINE float inverse(const int n, const int i)
{
    return i == n - 1 ? 1 : points(n)->inverse[(i + 1) / 2];
}

/* Sum of coefficients[i] * x[2 i]; the last coefficient is 1. */
ALWAYS_INLINE vector monic(const float *coefficients, const int degree, const vector *x)
{
    vector sum = x[2 * degree];
    UNROLL
    for (int i = 0; i < degree; i++)
        sum += coefficients[i] * x[2 * i];
    return sum;
}

/* out = B x: n pixels to n points. */
ALWAYS_INLINE void data_points(const int n, const vector *x, vector *out)
{
    const Points *p = points(n);
    const int pairs = (n - 2) / 2;
    out[0] = monic(p->all, pairs, x);
    UNROLL
    for (int i = 0; i < pairs; i++) {
        vector even = monic(p->others[i], pairs - 1, x + 2), odd = monic(p->others[i], pairs - 1, x + 1);
        out[1 + 2 * i] = even + p->root[i] * odd;
        out[2 + 2 * i] = even - p->root[i] * odd;
    }
    out[n - 1] = monic(p->all, pairs, x + 1);
}

/* out = E_k g: the polynomial of k coefficients at n points, by Horner's scheme in root^2. */
ALWAYS_INLINE void evaluate(const int n, const int k, const vector *g, vector *out)
{
    const Points *p = points(n);
    out[0] = g[0];
    UNROLL
    for (int i = 0; i < (n - 2) / 2; i++) {
        vector part[2];                                          /* even and odd powers of the root */
        part[(k - 1) % 2] = g[k - 1];
        part[k % 2] = g[k - 2];
        UNROLL
        for (int j = k - 3; j >= 0; j--)
            part[j % 2] = g[j] + p->square[i] * part[j % 2];
        out[1 + 2 * i] = part[0] + p->root[i] * part[1];
        out[2 + 2 * i] = part[0] - p->root[i] * part[1];
    }
    out[n - 1] = g[k - 1];
}

/* y = E_k' m: n points to k outputs. */
ALWAYS_INLINE void interpolate(const int n, const int k, const vector *m, vector *y)
{
    const Points *p = points(n);
    const int pairs = (n - 2) / 2;
    vector part[2][3];                                           /* even and odd powers of each root */
    UNROLL
    for (int i = 0; i < pairs; i++) {
        part[0][i] = m[1 + 2 * i] + m[2 + 2 * i];
        part[1][i] = (m[1 + 2 * i] - m[2 + 2 * i]) * p->root[i];
    }
    UNROLL
    for (int j = 0; j < k; j++) {
        y[j] = j == 0 ? m[0] : j == k - 1 ? m[n - 1] : (vector){ 0 };
        UNROLL
        for (int i = 0; i < pairs; i++) {
            if (j >= 2)
                part[j % 2][i] *= p->square[i];
            y[j] += part[j % 2][i];
        }
    }
}

/* The transforms of a square, row by row in memory: each along the columns first, then along the rows.  Lines are read
 * and written where they lie, one vector of each. */

/* V = B x B': from n x n lines to as many, `step` floats apart. */
ALWAYS_INLINE void data_square(const int n, const float *const *x, float *out, long step)
{
    vector half[MOST_POINTS * MOST_POINTS];
    for (int j = 0; j < n; j++) {
        vector column[MOST_POINTS], at[MOST_POINTS];
        UNROLL
        for (int i = 0; i < n; i++)
            column[i] = load(x[i * n + j]);
        data_points(n, column, at);
        UNROLL
        for (int i = 0; i < n; i++)
            half[i * n + j] = at[i];
    }
    for (int i = 0; i < n; i++) {
        vector at[MOST_POINTS];
        data_points(n, half + i * n, at);
        UNROLL
        for (int j = 0; j < n; j++)
            store(out + (i * n + j) * step, at[j]);
    }
}

ALWAYS_INLINE void evaluate_square(const int n, const int k, const vector *g, vector *out)
{
    vector half[MOST_POINTS * MOST_POINTS];
    for (int j = 0; j < k; j++) {
        vector column[MOST_POINTS], at[MOST_POINTS];
        UNROLL
        for (int i = 0; i < k; i++)
            column[i] = g[i * k + j];
        evaluate(n, k, column, at);
        UNROLL
        for (int i = 0; i < n; i++)
            half[i * k + j] = at[i];
    }
    for (int i = 0; i < n; i++)
        evaluate(n, k, half + i * k, out + i * n);
}

/* y = E' m E: from n x n lines, side by side, to k x k. */
ALWAYS_INLINE void interpolate_square(const int n, const int k, const float *m, float *y)
{
    vector half[MOST_POINTS * MOST_POINTS];
    for (int j = 0; j < n; j++) {
        vector column[MOST_POINTS], at[MOST_POINTS];
        UNROLL
        for (int i = 0; i < n; i++)
            column[i] = load(m + (i * n + j) * LINE);
        interpolate(n, k, column, at);
        UNROLL
        for (int i = 0; i < k; i++)
            half[i * n + j] = at[i];
    }
    for (int i = 0; i < k; i++) {
        vector at[MOST_POINTS];
        interpolate(n, k, half + i * n, at);
        UNROLL
        for (int j = 0; j < k; j++)
            store(y + (i * k + j) * LINE, at[j]);
    }
}

/* ---- tiles and their pixels */

/* A convolution cut into tiles.  A stride cuts images and filters into stride^2 phases each, pixels and taps
 * (i*stride + p, j*stride + q), and is a convolution of stride 1 over channels (c,p,q). */
typedef struct {
    long groups, c, o, b;                               /* c and o of one group; c counts phases */
    long stride, pad, size, taps;                       /* taps: the size of a filter's largest phase */
    long height, width, out_height, out_width;
    long n, step;                                       /* step: lines from the points of a channel to the next's */
    long tiles_y, tiles_x, blocks, positions;           /* positions: [tile row][tile column][block of LINE images] */
} Tiling;

static Tiling tiling(const Layer *l)
{
    Tiling t = { .groups = l->groups, .c = l->c / l->groups * l->stride * l->stride, .o = l->o / l->groups, .b = l->b,
                 .stride = l->stride, .pad = l->pad, .size = l->rows, .taps = parts(l->rows, l->stride),
                 .height = l->height, .width = l->width, .blocks = parts(l->b, LINE) };
    t.out_height = (l->height + 2 * l->pad - l->rows) / l->stride + 1;
    t.out_width = (l->width + 2 * l->pad - l->columns) / l->stride + 1;
    t.n = TILE + t.taps - 1;
    t.step = (t.n * t.n) | 1;                /* odd: the channels of one point spread over the sets of a cache */
    t.tiles_y = parts(t.out_height, TILE);
    t.tiles_x = parts(t.out_width, TILE);
    t.positions = t.tiles_y * t.tiles_x * t.blocks;
    return t;
}

/* A tile of a block of images: its first output, how many of its rows and columns are its own, and the images. */
typedef struct { long row, column, rows, columns, block, images; } Position;

/* Where tile i of `tiles` starts that cover `size` outputs, those of 4 before those of 3. */
static long tile_start(long i, long tiles, long size)
{
    long fours = most(size - 3 * tiles, 0);
    return i < fours ? 4 * i : 3 * i + fours;
}

static Position position_at(const Tiling *t, long position)
{
    long block = position % t->blocks, i = position / t->blocks / t->tiles_x, j = position / t->blocks % t->tiles_x;
    Position at = { .row = tile_start(i, t->tiles_y, t->out_height), .column = tile_start(j, t->tiles_x, t->out_width),
                    .block = block, .images = least(LINE, t->b - block * LINE) };
    at.rows = least(tile_start(i + 1, t->tiles_y, t->out_height), t->out_height) - at.row;
    at.columns = least(tile_start(j + 1, t->tiles_x, t->out_width), t->out_width) - at.column;
    return at;
}

/* Whether a tile needs a point: those at infinity only where it has a last row, or column, of its own. */
static int needs(const Tiling *t, Position at, long point)
{
    return (at.rows == TILE || point / t->n < t->n - 1) && (at.columns == TILE || point % t->n < t->n - 1);
}

/* Where tap (i, j) of phase (p, q) is in the filter, or -1 where the phase has none. */
static long tap_at(const Tiling *t, long p, long q, long i, long j)
{
    long row = i * t->stride + p, column = j * t->stride + q;
    return row < t->size && column < t->size ? row * t->size + column : -1;
}

static const float zeros[LINE];

/* The n x n lines of pixels under a tile, of one phase of one channel; `edge` has room for copies of short lines. */
static void find_lines(const Tiling *t, const float *channel, long p, long q, Position at, const float **lines,
                       float *edge)
{
    for (long i = 0; i < t->n; i++) {
        long row = (at.row + i) * t->stride + p - t->pad;
        for (long j = 0; j < t->n; j++, edge += LINE) {
            long column = (at.column + j) * t->stride + q - t->pad;
            int inside = row >= 0 && row < t->height && column >= 0 && column < t->width;
            const float *line = inside ? channel + (row * t->width + column) * t->b + at.block * LINE : zeros;
            if (inside && at.images < LINE) {
                memcpy(edge, line, at.images * sizeof(float));
                memset(edge + at.images, 0, (LINE - at.images) * sizeof(float));
                line = edge;
            }
            *lines++ = line;
        }
    }
}

ALWAYS_INLINE void transform_lines(const int n, const float **lines, float *data, long point_step)
{
    for (long v = 0; v < VECTORS; v++, data += LANES) {
        data_square(n, lines, data, point_step);
        for (long i = 0; i < n * n; i++)
            lines[i] += LANES;
    }
}

/* The data points of one channel at some positions, `point_step` floats apart, those of a position `position_step`. */
static void transform_channel(const Tiling *t, const float *x, long channel, long first, long end, float *data,
                              long point_step, long position_step)
{
    long phase = channel % (t->stride * t->stride);
    const float *image = x + channel / (t->stride * t->stride) * t->height * t->width * t->b;
    for (long position = first; position < end; position++, data += position_step) {
        const float *lines[MOST_POINTS * MOST_POINTS];
        float edge[MOST_POINTS * MOST_POINTS * LINE];
        find_lines(t, image, phase / t->stride, phase % t->stride, position_at(t, position), lines, edge);
        if (t->n == 6)
            transform_lines(6, lines, data, point_step);
        else
            transform_lines(8, lines, data, point_step);
    }
}

#endif

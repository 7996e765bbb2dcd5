/* Winograd transforms for convolution: tiles of 4 x 4 outputs with filters of 3 x 3 or 5 x 5.
 *
 * In one dimension, m outputs y[i] = sum over j < r of x[i + j] g[j] need n = m + r - 1 pixels.  As in polynomial
 * multiplication, n multiplications suffice (Toom and Cook; Winograd 1980; Lavin and Gray 2016):
 *
 *     y = E_m' ( (E_r g / N) * (B x) )                  * and / are elementwise, ' is transposition
 *
 * E_k is n x k and evaluates a polynomial of k coefficients at the n points 0, +-a, +-b, ..., infinity; the value at
 * infinity is the leading coefficient.  Row p of B holds the coefficients of the product of (z - q) over all other
 * finite points q, and N_p is that product at z = p.  The last row of B is the product over all finite points.  In
 * two dimensions each transform is applied along the rows and along the columns.  The filter gradient is the same
 * formula with m and r exchanged: r outputs with a "filter" of m gradients.
 *
 * The choice of points determines the rounding error.  For r = 3 the six points are 0, +-sqrt(1/2), +-sqrt(2),
 * infinity, which keep the coefficients of B small (1, 2.5, 2, 1/2).  The error is twice that of the direct sum; with
 * 0, +-1, +-2 it is four times.  For r = 5 the eight points are 0, +-1/2, +-1, +-2, infinity.  All are exact in
 * binary, and the error is two and a half times that of the direct sum.
 *
 * The point at infinity affects only the last output.  A tile of 3 outputs is a tile of 4 without the last output and
 * without that point.  13 pixels are split into 4 + 3 + 3 + 3, which needs 21 points; four tiles of 4 need 24.
 *
 * An infinity or NaN in the input makes all outputs of its tile infinite or NaN.
 */
#ifndef WINOGRAD_H
#define WINOGRAD_H

#include <stdint.h>
#include <string.h>
#include "tiles.h"

enum { TILE = 4, MOST_POINTS = 8 };        /* outputs of a tile and maximum number of points, in one dimension */

/* The pairs of points +-root, and the products of (z^2 - square) over all pairs and over all other pairs; coefficients
 * in ascending order. */
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

/* Load the first `count` floats, at most LANES; the other lanes are zeros. */
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

/* out = B x: from n pixels to n points. */
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

/* out = E_k g: evaluate the polynomial of k coefficients at n points, with Horner's scheme in root^2. */
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

/* y = E_k' m: from n points to k outputs. */
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

/* Transforms of a square that is stored row by row: first along the columns, then along the rows.  A call reads and
 * writes one vector of each line; lines need not be contiguous. */

/* V = B x B': from n x n lines to n x n lines, `step` floats apart. */
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

/* y = E' m E: from n x n contiguous lines to k x k. */
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

/* A convolution split into tiles.  A strided convolution is split into stride^2 phases, with the pixels and taps
 * (i*stride + p, j*stride + q), and becomes a convolution of stride 1 over channels (c,p,q). */
typedef struct {
    long groups, c, o, b;                               /* c and o of one group; c includes phases */
    long stride, pad, size, taps;                       /* taps: the size of a filter's largest phase */
    long height, width, out_height, out_width;
    long n, step;                                       /* step: lines from one channel's points to the next */
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
    t.step = (t.n * t.n) | 1;                /* odd: spreads the channels of one point over the cache sets */
    t.tiles_y = parts(t.out_height, TILE);
    t.tiles_x = parts(t.out_width, TILE);
    t.positions = t.tiles_y * t.tiles_x * t.blocks;
    return t;
}

/* A tile of a block of images: its first output, its size, the block, and the number of images in the block. */
typedef struct { long row, column, rows, columns, block, images; } Position;

/* Start of tile i, if `tiles` tiles cover `size` outputs; tiles of 4 come before tiles of 3. */
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

/* Whether a tile needs a point; the point at infinity of an axis is needed only if the tile has TILE outputs there. */
static int needs(const Tiling *t, Position at, long point)
{
    return (at.rows == TILE || point / t->n < t->n - 1) && (at.columns == TILE || point % t->n < t->n - 1);
}

/* Index of tap (i, j) of phase (p, q) in the filter, or -1 if the phase has no such tap. */
static long tap_at(const Tiling *t, long p, long q, long i, long j)
{
    long row = i * t->stride + p, column = j * t->stride + q;
    return row < t->size && column < t->size ? row * t->size + column : -1;
}

static const float zeros[LINE];

/* Find the n x n lines of pixels of a tile in one phase of one channel; incomplete lines are copied to `edge`. */
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

/* Compute the data points of one channel at some positions; point_step and position_step are distances in floats. */
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

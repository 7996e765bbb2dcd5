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

#include <string.h>
#include "layer.h"
#include "micro_kernel.h"

enum { OUTPUTS = 4, MAX_POINTS = 8 };      /* outputs of a tile and maximum number of points, in one dimension */
enum { MAX_SQUARE = MAX_POINTS * MAX_POINTS };

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

/* Load the first `count` floats, at most LANES; the other lanes are zeros. */
ALWAYS_INLINE vector load_some(const float *from, long count)
{
    vector x = { 0 };
    if (count >= LANES)
        return load(from);
    memcpy(&x, from, max(count, 0) * sizeof(float));
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
 * writes one vector of each element of the square, a block of BLOCK floats; the blocks need not be contiguous. */

/* V = B x B': from n x n blocks to n x n blocks, `stride` floats apart. */
ALWAYS_INLINE void data_square(const int n, const float *const *x, float *out, long stride)
{
    vector half[MAX_SQUARE];
    for (int j = 0; j < n; j++) {
        vector column[MAX_POINTS], value[MAX_POINTS];
        UNROLL
        for (int i = 0; i < n; i++)
            column[i] = load(x[i * n + j]);
        data_points(n, column, value);
        UNROLL
        for (int i = 0; i < n; i++)
            half[i * n + j] = value[i];
    }
    for (int i = 0; i < n; i++) {
        vector value[MAX_POINTS];
        data_points(n, half + i * n, value);
        UNROLL
        for (int j = 0; j < n; j++)
            store(out + (i * n + j) * stride, value[j]);
    }
}

ALWAYS_INLINE void evaluate_square(const int n, const int k, const vector *g, vector *out)
{
    vector half[MAX_SQUARE];
    for (int j = 0; j < k; j++) {
        vector column[MAX_POINTS], value[MAX_POINTS];
        UNROLL
        for (int i = 0; i < k; i++)
            column[i] = g[i * k + j];
        evaluate(n, k, column, value);
        UNROLL
        for (int i = 0; i < n; i++)
            half[i * k + j] = value[i];
    }
    for (int i = 0; i < n; i++)
        evaluate(n, k, half + i * k, out + i * n);
}

/* y = E' m E: from n x n contiguous blocks to k x k. */
ALWAYS_INLINE void interpolate_square(const int n, const int k, const float *m, float *y)
{
    vector half[MAX_SQUARE];
    for (int j = 0; j < n; j++) {
        vector column[MAX_POINTS], value[MAX_POINTS];
        UNROLL
        for (int i = 0; i < n; i++)
            column[i] = load(m + (i * n + j) * BLOCK);
        interpolate(n, k, column, value);
        UNROLL
        for (int i = 0; i < k; i++)
            half[i * n + j] = value[i];
    }
    for (int i = 0; i < k; i++) {
        vector value[MAX_POINTS];
        interpolate(n, k, half + i * n, value);
        UNROLL
        for (int j = 0; j < k; j++)
            store(y + (i * k + j) * BLOCK, value[j]);
    }
}

/* ---- tiles and their pixels */

/* A convolution split into tiles.  A strided convolution is split into stride^2 phases, with the pixels and taps
 * (i*stride + p, j*stride + q), and becomes a convolution of stride 1 over channels (c,p,q). */
typedef struct {
    long groups, c, o, b;                               /* c and o of one group; c includes phases */
    long stride, phases, pad, size, taps;               /* size of a filter, and of its largest phase */
    long height, width, out_height, out_width;
    long n, points;                                     /* points of a tile in one dimension and in two */
    long tile_rows, tile_columns, blocks, positions;    /* blocks of BLOCK images; see Segment */
    int mixed;
} Tiling;

/* A position is a block of BLOCK lanes.  It holds images of one tile, [tile row][tile column][block of images], or, if
 * that needs fewer blocks (`mixed`), BLOCK elements of the sequence of all (tile row, tile column, image).  A segment is
 * the part of a block that belongs to one tile: its first output, its size, its first image, first lane and length. */
typedef struct { long row, column, height, width, image, lane, lanes; } Segment;

static Tiling make_tiling(const Layer *l)
{
    Tiling t = { .groups = l->groups, .c = l->c / l->groups * l->stride * l->stride, .o = l->o / l->groups, .b = l->b,
                 .stride = l->stride, .phases = l->stride * l->stride, .pad = l->pad, .size = l->filter_height,
                 .taps = ceil_div(l->filter_height, l->stride), .height = l->height, .width = l->width,
                 .out_height = out_height(l), .out_width = out_width(l), .blocks = ceil_div(l->b, BLOCK) };
    t.n = OUTPUTS + t.taps - 1;
    t.points = t.n * t.n;
    t.tile_rows = ceil_div(t.out_height, OUTPUTS);
    t.tile_columns = ceil_div(t.out_width, OUTPUTS);
    t.positions = t.tile_rows * t.tile_columns * t.blocks;
    long mixed = ceil_div(t.tile_rows * t.tile_columns * t.b, BLOCK);
    t.mixed = mixed < t.positions;
    t.positions = min(t.positions, mixed);
    return t;
}

/* Start of tile i, if `tiles` tiles cover `size` outputs; tiles of 4 come before tiles of 3. */
static long tile_start(long i, long tiles, long size)
{
    long fours = max(size - 3 * tiles, 0);
    return i < fours ? 4 * i : 3 * i + fours;
}

/* Find the segment of a position that starts at a lane; returns 0 if there is none. */
static int find_segment(const Tiling *t, long position, long lane, Segment *found)
{
    long tile = position / t->blocks, image = position % t->blocks * BLOCK;
    if (t->mixed) {
        tile = (position * BLOCK + lane) / t->b;
        image = (position * BLOCK + lane) % t->b;
    }
    if (lane >= BLOCK || tile >= t->tile_rows * t->tile_columns || (lane && !t->mixed))
        return 0;
    long i = tile / t->tile_columns, j = tile % t->tile_columns;
    *found = (Segment){ .row = tile_start(i, t->tile_rows, t->out_height),
                        .column = tile_start(j, t->tile_columns, t->out_width),
                        .image = image, .lane = lane, .lanes = min(BLOCK - lane, t->b - image) };
    found->height = min(tile_start(i + 1, t->tile_rows, t->out_height), t->out_height) - found->row;
    found->width = min(tile_start(j + 1, t->tile_columns, t->out_width), t->out_width) - found->column;
    return 1;
}

/* Loop over the segments of a position. */
#define FOR_SEGMENTS(t, position, segment)                                                                             \
    for (Segment segment = { 0 }; find_segment(t, position, segment.lane, &segment); segment.lane += segment.lanes)

/* Whether a position needs a point; the point at infinity of an axis is needed only for OUTPUTS outputs along it. */
static int needs(const Tiling *t, long position, long point)
{
    int rows = point / t->n < t->n - 1, columns = point % t->n < t->n - 1;
    if (rows && columns)
        return 1;
    FOR_SEGMENTS(t, position, tile)
        if ((rows || tile.height == OUTPUTS) && (columns || tile.width == OUTPUTS))
            return 1;
    return 0;
}

/* Index of tap (i, j) of phase (p, q) in the filter, or -1 if the phase has no such tap. */
static long tap_index(const Tiling *t, long p, long q, long i, long j)
{
    long row = i * t->stride + p, column = j * t->stride + q;
    return row < t->size && column < t->size ? row * t->size + column : -1;
}

static const float zeros[BLOCK];

/* Copy the n x n pixels of one segment to `edge`, [pixel][BLOCK], with zeros outside the image. */
static void copy_pixels(const Tiling *t, const float *channel, long p, long q, Segment tile, float *edge)
{
    edge += tile.lane;
    for (long i = 0; i < t->n; i++) {
        long row = (tile.row + i) * t->stride + p - t->pad;
        const float *from = channel + row * t->width * t->b + tile.image;
        for (long j = 0; j < t->n; j++, edge += BLOCK) {
            long column = (tile.column + j) * t->stride + q - t->pad;
            if (row >= 0 && row < t->height && column >= 0 && column < t->width)
                copy_few(edge, from + column * t->b, tile.lanes);
            else
                memset(edge, 0, tile.lanes * sizeof(float));
        }
    }
}

/* Find the n x n pixels of a position in one phase of one channel, each a block of lanes.  Blocks that are not in
 * memory are copied to `edge`. */
static void find_pixels(const Tiling *t, const float *channel, long p, long q, long position, const float **pixels,
                        float *edge)
{
    Segment tile;
    find_segment(t, position, 0, &tile);
    if (tile.lanes < BLOCK) {
        for (long i = 0; i < t->points; i++)
            pixels[i] = edge + i * BLOCK;
        long lane = 0;
        FOR_SEGMENTS(t, position, part) {
            copy_pixels(t, channel, p, q, part, edge);
            lane = part.lane + part.lanes;
        }
        for (long i = 0; i < t->points && lane < BLOCK; i++)
            memset(edge + i * BLOCK + lane, 0, (BLOCK - lane) * sizeof(float));
        return;
    }
    for (long i = 0; i < t->n; i++) {
        long row = (tile.row + i) * t->stride + p - t->pad;
        for (long j = 0; j < t->n; j++) {
            long column = (tile.column + j) * t->stride + q - t->pad;
            int inside = row >= 0 && row < t->height && column >= 0 && column < t->width;
            *pixels++ = inside ? channel + (row * t->width + column) * t->b + tile.image : zeros;
        }
    }
}

ALWAYS_INLINE void transform_pixels(const int n, const float **pixels, float *data, long point_stride)
{
    for (long v = 0; v < VECTORS; v++, data += LANES) {
        data_square(n, pixels, data, point_stride);
        for (long i = 0; i < n * n; i++)
            pixels[i] += LANES;
    }
}

/* Compute the data points of one channel at some positions; point_stride and position_stride are in floats. */
static void transform_channel(const Tiling *t, const float *x, long channel, long first, long end, float *data,
                              long point_stride, long position_stride)
{
    long phase = channel % t->phases;
    const float *image = x + channel / t->phases * t->height * t->width * t->b;
    for (long position = first; position < end; position++, data += position_stride) {
        const float *pixels[MAX_SQUARE];
        float edge[MAX_SQUARE * BLOCK];
        find_pixels(t, image, phase / t->stride, phase % t->stride, position, pixels, edge);
        if (t->n == 6)
            transform_pixels(6, pixels, data, point_stride);
        else
            transform_pixels(8, pixels, data, point_stride);
    }
}

#endif

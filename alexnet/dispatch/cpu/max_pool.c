/* Max pooling in c01b layout and its gradient.
 *
 *     y[c,r,s,b] = largest of x[c, r*stride + i, s*stride + j, b] over the window,  index = i * size + j of the first such
 *
 * The batch is the innermost axis, so it is the vector axis: a vector of images keeps its running maximum and its index
 * in registers while the pixels of the window go by.  Rows of one channel are shared out over the threads.
 *
 * A NaN is the maximum of its window, and its index that of the first.  To see to that at each pixel takes twice as long
 * as all the rest, so windows of the usual sizes are summed as well: where the sums of a row of windows hold no NaN, no
 * pixel does, and any other row is done again by the careful loop.
 *
 * The gradient visits each input pixel once and adds the few windows that cover it, in fixed order: nothing is zeroed
 * beforehand and no two threads write the same place. */
#include <math.h>
#include <stdint.h>
#include "tiles.h"

enum { IMAGES = 64, LARGEST_SIZE = 16 };

/* At most IMAGES images of one window, of any size, NaN and all. */
static inline void careful_block(const float *x, float *y, uint8_t *index, long row_pitch, long batch, long n, long size)
{
    float best[IMAGES];
    int32_t where[IMAGES];
    for (long b = 0; b < n; b++) {
        best[b] = -INFINITY;
        where[b] = 0;
    }
    for (long i = 0; i < size; i++)
        for (long j = 0; j < size; j++) {
            const float *pixel = x + i * row_pitch + j * batch;
            const int32_t k = (int32_t)(i * size + j);
            for (long b = 0; b < n; b++) {
                const float v = pixel[b], old = best[b];
                const int higher = (v > old) | ((v != v) & (old == old)); /* the first NaN stays */
                best[b] = higher ? v : old;
                where[b] = higher ? k : where[b];
            }
        }
    for (long b = 0; b < n; b++) {
        y[b] = best[b];
        index[b] = (uint8_t)where[b];
    }
}

/* At most IMAGES images of one window without a NaN; makes NaN of `seen` where there may have been one. */
ALWAYS_INLINE void quick_block(const float *x, float *y, uint8_t *index, float *seen, long row_pitch, long batch, long n,
                               const int size)
{
    int32_t where[IMAGES];
#pragma omp simd
    for (long b = 0; b < n; b++) {
        float best = -INFINITY, sum = 0;
        int32_t place = 0;
        UNROLL
        for (int k = 0; k < size * size; k++) {
            const float v = x[k / size * row_pitch + k % size * batch + b];
            place = v > best ? k : place;
            best = v > best ? v : best;
            sum += v;
        }
        y[b] = best;
        where[b] = place;
        seen[b] += sum - sum;
    }
    for (long b = 0; b < n; b++)
        index[b] = (uint8_t)where[b];
}

typedef struct { long width, batch, columns, size, stride; } Row;

/* One row of windows; returns whether there may have been a NaN. */
ALWAYS_INLINE int quick_row(const float *x, float *y, uint8_t *index, const Row *r, const int size)
{
    float seen[IMAGES] = {0};
    for (long column = 0; column < r->columns; column++) {
        const float *corner = x + column * r->stride * r->batch;
        const long out = column * r->batch;
        for (long b = 0; b < r->batch; b += IMAGES)
            quick_block(corner + b, y + out + b, index + out + b, seen, r->width * r->batch, r->batch,
                        least(IMAGES, r->batch - b), size);
    }
    int nan = 0;
    for (long b = 0; b < IMAGES; b++)
        nan |= seen[b] != seen[b];
    return nan;
}

static void careful_row(const float *x, float *y, uint8_t *index, const Row *r)
{
    for (long column = 0; column < r->columns; column++)
        for (long b = 0; b < r->batch; b += IMAGES) {
            const long out = column * r->batch + b;
            careful_block(x + column * r->stride * r->batch + b, y + out, index + out, r->width * r->batch, r->batch,
                          least(IMAGES, r->batch - b), r->size);
        }
}

/* x (channels, height, width, batch) -> y, index (channels, rows, columns, batch) */
void max_pool(const float *x, float *y, uint8_t *index, long channels, long height, long width, long batch,
              long rows, long columns, long size, long stride)
{
    const Row r = { width, batch, columns, size, stride };
#pragma omp parallel for schedule(static)
    for (long row = 0; row < channels * rows; row++) {
        const float *from = x + (row / rows * height + row % rows * stride) * width * batch;
        const long out = row * columns * batch;
        int careful = size != 2 && size != 3;
        if (size == 3)
            careful = quick_row(from, y + out, index + out, &r, 3);
        else if (size == 2)
            careful = quick_row(from, y + out, index + out, &r, 2);
        if (careful)
            careful_row(from, y + out, index + out, &r);
    }
}

/* The windows that cover a pixel, along one axis: from first to last. */
typedef struct { int first, last; } Range;

static inline Range windows_over(int pixel, int size, int stride, int windows)
{
    const int last = pixel / stride;
    return (Range){ pixel < size ? 0 : (pixel - size) / stride + 1, last < windows ? last : windows - 1 };
}

/* What a pixel gets from a window: g where the window's index is k, at `at` in g and index. */
typedef struct { long at; int32_t k; } Share;

ALWAYS_INLINE void add_shares(const float *g, const uint8_t *index, float *out, const Share *shares, const int n,
                              long batch)
{
#pragma omp simd
    for (long b = 0; b < batch; b++) {
        float sum = 0;
        UNROLL
        for (int w = 0; w < n; w++)
            sum += index[shares[w].at + b] == shares[w].k ? g[shares[w].at + b] : 0.0f;
        out[b] = sum;
    }
}

/* One pixel; the usual numbers of windows have a loop of their own. */
static void gather_pixel(const float *g, const uint8_t *index, float *out, const Share *shares, int n, long batch)
{
    if (n == 1)
        add_shares(g, index, out, shares, 1, batch);
    else if (n == 2)
        add_shares(g, index, out, shares, 2, batch);
    else if (n == 4)
        add_shares(g, index, out, shares, 4, batch);
    else
        add_shares(g, index, out, shares, n, batch);
}

/* g, index (channels, rows, columns, batch) -> dx (channels, height, width, batch) */
void max_pool_gradient(const float *g, const uint8_t *index, float *dx, long channels, long height, long width,
                       long batch, long rows, long columns, long size, long stride)
{
#pragma omp parallel for collapse(2) schedule(static)
    for (long c = 0; c < channels; c++)
        for (long i = 0; i < height; i++) {
            const Range down = windows_over(i, size, stride, rows);
            for (long j = 0; j < width; j++) {
                const Range across = windows_over(j, size, stride, columns);
                Share shares[LARGEST_SIZE * LARGEST_SIZE];
                int n = 0;
                for (long r = down.first; r <= down.last; r++)
                    for (long s = across.first; s <= across.last; s++)
                        shares[n++] = (Share){ ((c * rows + r) * columns + s) * batch,
                                               (i - r * stride) * size + j - s * stride };
                gather_pixel(g, index, dx + ((c * height + i) * width + j) * batch, shares, n, batch);
            }
        }
}

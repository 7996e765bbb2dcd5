/* Max pooling in c01b layout and its gradient.
 *
 *     y[c,r,s,b] = maximum of x[c, r*stride + i - pad, s*stride + j - pad, b] over the pixels (i, j) inside the image,
 *     index = i * size + j of the first maximum
 *
 * The loops vectorise over the batch, the innermost axis.  A vector of images keeps its running maximum and index in
 * registers during the loop over the window.  Threads process different rows.  At stride 1, adjacent windows of a row
 * inside the image differ only by a shift.  They are computed as one window over a larger batch, so small batches also
 * fill the vectors.  The gradient limits this to AT_ONCE values, which stay in the cache.
 *
 * If a window contains a NaN, the maximum is NaN and the index is that of the first NaN.  Testing each pixel for NaN
 * takes twice as long as the rest of the loop.  Instead the fast loop for the common sizes also sums each window.  If
 * no sum in a row of windows is NaN, no pixel is NaN; otherwise the careful loop recomputes the row.
 *
 * The gradient visits each input pixel once and adds the few windows that cover it, in a fixed order.  The output needs
 * no initial zeros, and no two threads write to the same address. */
#include <math.h>
#include <stdint.h>
#include "tiles.h"

enum { IMAGES = 64, AT_ONCE = 256, LARGEST_SIZE = 16, LARGEST_WINDOW = LARGEST_SIZE * LARGEST_SIZE };

typedef struct { long height, width, batch, columns, size, stride, pad; } Row;

/* Offsets of the pixels of a window in a channel, and their indices.  A pixel outside the image is replaced by the
 * nearest pixel inside, which is also in the window.  This changes neither the maximum nor its first index. */
typedef struct { long at[LARGEST_WINDOW]; int32_t index[LARGEST_WINDOW]; } Window;

static void place_window(Window *w, const Row *r, long top, long left)
{
    for (long k = 0; k < r->size * r->size; k++) {
        const long row = least(most(top + k / r->size, 0), r->height - 1);
        const long column = least(most(left + k % r->size, 0), r->width - 1);
        w->at[k] = (row * r->width + column) * r->batch;
        w->index[k] = (int32_t)((row - top) * r->size + column - left);
    }
}

/* Pool one window of any size for at most IMAGES images; handles NaN. */
static inline void careful_block(const float *x, float *y, uint8_t *index, const Window *w, long n, long size)
{
    float best[IMAGES];
    int32_t where[IMAGES];
    for (long b = 0; b < n; b++) {
        best[b] = -INFINITY;
        where[b] = w->index[0];
    }
    for (long k = 0; k < size * size; k++) {
        const float *pixel = x + w->at[k];
        for (long b = 0; b < n; b++) {
            const float v = pixel[b], old = best[b];
            const int higher = (v > old) | ((v != v) & (old == old)); /* keeps the first NaN */
            best[b] = higher ? v : old;
            where[b] = higher ? w->index[k] : where[b];
        }
    }
    for (long b = 0; b < n; b++) {
        y[b] = best[b];
        index[b] = (uint8_t)where[b];
    }
}

/* Pool one window without NaN for at most IMAGES images; sets `seen` to NaN if there may have been one. */
ALWAYS_INLINE void quick_block(const float *x, float *y, uint8_t *index, float *seen, const Window *w, long n,
                               const int size)
{
    int32_t where[IMAGES];
#pragma omp simd
    for (long b = 0; b < n; b++) {
        float best = -INFINITY, sum = 0;
        int32_t place = w->index[0];
        UNROLL
        for (int k = 0; k < size * size; k++) {
            const float v = x[w->at[k] + b];
            place = v > best ? w->index[k] : place;
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

/* Pool one row of windows of size `quick`, or with the careful loop if it is 0; returns whether a NaN is possible. */
ALWAYS_INLINE int pool_row(const float *x, float *y, uint8_t *index, const Row *r, long top, const int quick)
{
    float seen[IMAGES] = {0};
    Window window;
    for (long column = 0, run; column < r->columns; column += run) {
        const long left = column * r->stride - r->pad;
        place_window(&window, r, top, left);
        run = r->stride == 1 && left >= 0 ? most(r->width - r->size - left + 1, 1) : 1;
        for (long b = 0; b < run * r->batch; b += IMAGES) {
            const long out = column * r->batch + b, n = least(IMAGES, run * r->batch - b);
            if (quick)
                quick_block(x + b, y + out, index + out, seen, &window, n, quick);
            else
                careful_block(x + b, y + out, index + out, &window, n, r->size);
        }
    }
    int nan = 0;
    for (long b = 0; b < IMAGES; b++)
        nan |= seen[b] != seen[b];
    return nan;
}

/* x (channels, height, width, batch) -> y, index (channels, rows, columns, batch) */
void max_pool(const float *x, float *y, uint8_t *index, long channels, long height, long width, long batch,
              long rows, long columns, long size, long stride, long pad)
{
    const Row r = { height, width, batch, columns, size, stride, pad };
#pragma omp parallel for schedule(static)
    for (long row = 0; row < channels * rows; row++) {
        const float *channel = x + row / rows * height * width * batch;
        const long top = row % rows * stride - pad, out = row * columns * batch;
        int careful = size != 2 && size != 3;
        if (size == 3)
            careful = pool_row(channel, y + out, index + out, &r, top, 3);
        else if (size == 2)
            careful = pool_row(channel, y + out, index + out, &r, top, 2);
        if (careful)
            pool_row(channel, y + out, index + out, &r, top, 0);
    }
}

/* The windows that cover a pixel along one axis, from first to last; `pixel` counts from the padded edge. */
typedef struct { int first, last; } Range;

static inline Range windows_over(int pixel, int size, int stride, int windows)
{
    const int last = pixel / stride;
    return (Range){ pixel < size ? 0 : (pixel - size) / stride + 1, last < windows ? last : windows - 1 };
}

/* Contribution of a window to a pixel: g[at] if index[at] is k. */
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

/* Compute one pixel; common numbers of windows have specialised loops. */
static void gather_pixel(const float *g, const uint8_t *index, float *out, const Share *shares, int n, long batch)
{
    if (n == 1)
        add_shares(g, index, out, shares, 1, batch);
    else if (n == 2)
        add_shares(g, index, out, shares, 2, batch);
    else if (n == 4)
        add_shares(g, index, out, shares, 4, batch);
    else if (n == 6)
        add_shares(g, index, out, shares, 6, batch);
    else if (n == 9)
        add_shares(g, index, out, shares, 9, batch);
    else
        add_shares(g, index, out, shares, n, batch);
}

/* g, index (channels, rows, columns, batch) -> dx (channels, height, width, batch) */
void max_pool_gradient(const float *g, const uint8_t *index, float *dx, long channels, long height, long width,
                       long batch, long rows, long columns, long size, long stride, long pad)
{
#pragma omp parallel for collapse(2) schedule(static)
    for (long c = 0; c < channels; c++)
        for (long i = 0; i < height; i++) {
            const Range down = windows_over(i + pad, size, stride, rows);
            for (long j = 0, run; j < width; j += run) {
                const Range across = windows_over(j + pad, size, stride, columns);
                Share shares[LARGEST_WINDOW];
                int n = 0;
                for (long r = down.first; r <= down.last; r++)
                    for (long s = across.first; s <= across.last; s++)
                        shares[n++] = (Share){ ((c * rows + r) * columns + s) * batch,
                                               (i + pad - r * stride) * size + j + pad - s * stride };
                const int inside = stride == 1 && across.last - across.first + 1 == size;
                run = inside ? least(columns - (j + pad), least(width - j, most(AT_ONCE / most(batch, 1), 1))) : 1;
                gather_pixel(g, index, dx + ((c * height + i) * width + j) * batch, shares, n, run * batch);
            }
        }
}

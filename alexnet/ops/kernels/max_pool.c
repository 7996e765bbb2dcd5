/* Max pooling in c01b layout and its gradient.
 *
 *     y[c,r,s,b] = maximum of x[c, r*stride + i - pad, s*stride + j - pad, b] over the pixels (i, j) inside the image,
 *     index = i * size + j of the first maximum
 *
 * The last window of an axis may end after the image: by at most pad pixels, or by any number if windows are rounded up.
 *
 * The loops: output row: column: block of images: pixel of the window: image.  The innermost loop is vectorised: a
 * vector of images keeps its running maximum and index in registers during the loop over the window.  Threads process
 * different rows.  At stride 1, adjacent windows of a row inside the image differ only by a shift.  They are computed
 * as one window over a larger batch, so small batches also fill the vectors.  At a larger stride, with few images, their
 * pixels are first copied to rows of equal remainder modulo the stride, in which adjacent windows differ by a shift, too.
 * At most MERGED values are merged, which stay in the cache.
 *
 * If a window contains a NaN, the maximum is NaN and the index is that of the first NaN.  Testing each pixel for NaN
 * takes twice as long as the rest of the loop.  Instead the fast loop for the common sizes also sums each window.  If
 * no sum in a row of windows is NaN, no pixel is NaN; otherwise the checked loop recomputes the row.
 *
 * The gradient visits each input pixel once and adds the few windows that cover it, in a fixed order.  The output needs
 * no initial zeros, and no two threads write to the same address.
 */
#include <math.h>
#include <stdint.h>
#include "common.h"

enum { IMAGES = 64, MERGED = 256, MAX_SIZE = 16, MAX_WINDOW = MAX_SIZE * MAX_SIZE };
enum { FEW_IMAGES = 16, FAST_SIZE = 3, MAX_STRIDE = 4 };
enum { COPIED = FAST_SIZE * MAX_STRIDE * (MERGED + FAST_SIZE * FEW_IMAGES) };      /* values */

typedef struct { long height, width, batch, out_width, size, stride, pad; } Row;

/* Offsets of the pixels of a window in a channel, and their indices.  A pixel outside the image is replaced by the
 * nearest pixel inside, which is also in the window.  This changes neither the maximum nor its first index. */
typedef struct { long offset[MAX_WINDOW]; int32_t index[MAX_WINDOW]; } Window;

static void place_window(Window *w, const Row *r, long top, long left)
{
    for (long k = 0; k < r->size * r->size; k++) {
        const long row = min(max(top + k / r->size, 0), r->height - 1);
        const long column = min(max(left + k % r->size, 0), r->width - 1);
        w->offset[k] = (row * r->width + column) * r->batch;
        w->index[k] = (int32_t)((row - top) * r->size + column - left);
    }
}

/* Pool one window of any size for at most IMAGES images; handles NaN. */
static inline void checked_block(const real *x, real *y, uint8_t *index, const Window *w, long n, long size)
{
    real best[IMAGES];
    int32_t best_index[IMAGES];
    for (long b = 0; b < n; b++) {
        best[b] = -INFINITY;
        best_index[b] = w->index[0];
    }
    for (long k = 0; k < size * size; k++) {
        const real *pixel = x + w->offset[k];
        for (long b = 0; b < n; b++) {
            const real v = pixel[b], old = best[b];
            const int higher = (v > old) | ((v != v) & (old == old)); /* keeps the first NaN */
            best[b] = higher ? v : old;
            best_index[b] = higher ? w->index[k] : best_index[b];
        }
    }
    for (long b = 0; b < n; b++) {
        y[b] = best[b];
        index[b] = (uint8_t)best_index[b];
    }
}

/* Pool one window without NaN for at most IMAGES images; sets `nan` to NaN if there may have been one. */
ALWAYS_INLINE void fast_block(const real *x, real *y, uint8_t *index, real *nan, const Window *w, long n,
                              const int size)
{
    int32_t best_index[IMAGES];
    #pragma omp simd
    for (long b = 0; b < n; b++) {
        real best = -INFINITY, sum = 0;
        int32_t first = w->index[0];
        UNROLL
        for (int k = 0; k < size * size; k++) {
            const real v = x[w->offset[k] + b];
            first = v > best ? w->index[k] : first;
            best = v > best ? v : best;
            sum += v;
        }
        y[b] = best;
        best_index[b] = first;
        nan[b] += sum - sum;
    }
    for (long b = 0; b < n; b++)
        index[b] = (uint8_t)best_index[b];
}

/* Copy the pixels of `run` adjacent windows to rows of equal remainder modulo the stride, and place the first window. */
static void copy_windows(const real *x, const Row *r, long top, long left, long run, real *copy, Window *w)
{
    const long length = (run + r->size) * r->batch, columns = (run - 1) * r->stride + r->size;
    for (long i = 0; i < r->size; i++) {
        const real *row = x + ((top + i) * r->width + left) * r->batch;
        for (long first = 0; first < r->stride; first++) {
            real *to = copy + (i * r->stride + first) * length;
            for (long column = first; column < columns; column += r->stride, to += r->batch)
                copy_few(to, row + column * r->batch, r->batch);
        }
    }
    for (long k = 0; k < r->size * r->size; k++) {
        const long i = k / r->size, j = k % r->size;
        w->offset[k] = (i * r->stride + j % r->stride) * length + j / r->stride * r->batch;
        w->index[k] = (int32_t)k;
    }
}

/* The number of windows from one on that can be copied together, at most MERGED values; 0 if they cannot be. */
static long copied_run(const Row *r, long top, long left, long windows)
{
    const int inside = top >= 0 && top + r->size <= r->height && left >= 0 && left + r->size <= r->width;
    if (!inside || r->stride == 1 || r->stride > MAX_STRIDE || r->batch > FEW_IMAGES)
        return 0;
    return min(min((r->width - r->size - left) / r->stride + 1, windows), MERGED / r->batch);
}

/* Pool one row of windows of size `fast`, or with the checked loop if it is 0; returns whether a NaN is possible. */
ALWAYS_INLINE int pool_row(const real *x, real *y, uint8_t *index, const Row *r, long top, const int fast)
{
    real nan[IMAGES] = { 0 }, copy[COPIED];
    Window window;
    for (long column = 0, run; column < r->out_width; column += run) {
        const long left = column * r->stride - r->pad;
        const real *from = x;
        run = fast ? copied_run(r, top, left, r->out_width - column) : 0;
        if (run) {
            copy_windows(x, r, top, left, run, copy, &window);
            from = copy;
        } else {
            place_window(&window, r, top, left);
            run = r->stride == 1 && left >= 0 ? max(r->width - r->size - left + 1, 1) : 1;
        }
        for (long b = 0; b < run * r->batch; b += IMAGES) {
            const long out = column * r->batch + b, n = min(IMAGES, run * r->batch - b);
            if (fast)
                fast_block(from + b, y + out, index + out, nan, &window, n, fast);
            else
                checked_block(from + b, y + out, index + out, &window, n, r->size);
        }
    }
    int possible = 0;
    for (long b = 0; b < IMAGES; b++)
        possible |= nan[b] != nan[b];
    return possible;
}

/* x (channels, height, width, batch) -> y, index (channels, out_height, out_width, batch) */
void max_pool(const real *x, real *y, uint8_t *index, long channels, long height, long width, long batch,
              long out_height, long out_width, long size, long stride, long pad)
{
    const Row r = { height, width, batch, out_width, size, stride, pad };
    if (!batch)
        return;                                          /* copied_run() divides by it */
    #pragma omp parallel for schedule(static)
    for (long row = 0; row < channels * out_height; row++) {
        const real *channel = x + row / out_height * height * width * batch;
        const long top = row % out_height * stride - pad, out = row * out_width * batch;
        int check = size != 2 && size != 3;
        if (size == 3)
            check = pool_row(channel, y + out, index + out, &r, top, 3);
        else if (size == 2)
            check = pool_row(channel, y + out, index + out, &r, top, 2);
        if (check)
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

/* Contribution of a window to a pixel: g[offset] if index[offset] is k. */
typedef struct { long offset; int32_t k; } Contribution;

ALWAYS_INLINE void add_contributions(const real *g, const uint8_t *index, real *out, const Contribution *windows,
                                     const int n, long batch)
{
    #pragma omp simd
    for (long b = 0; b < batch; b++) {
        real sum = 0;
        UNROLL
        for (int w = 0; w < n; w++)
            sum += index[windows[w].offset + b] == windows[w].k ? g[windows[w].offset + b] : 0;
        out[b] = sum;
    }
}

/* Compute one pixel; common numbers of windows have specialised loops. */
static void gather_pixel(const real *g, const uint8_t *index, real *out, const Contribution *windows, int n,
                         long batch)
{
    if (n == 1)
        add_contributions(g, index, out, windows, 1, batch);
    else if (n == 2)
        add_contributions(g, index, out, windows, 2, batch);
    else if (n == 4)
        add_contributions(g, index, out, windows, 4, batch);
    else if (n == 6)
        add_contributions(g, index, out, windows, 6, batch);
    else if (n == 9)
        add_contributions(g, index, out, windows, 9, batch);
    else
        add_contributions(g, index, out, windows, n, batch);
}

/* The number of pixels, `stride` apart from `pixel` on, that the same number of windows covers, one further each. */
static long equal_run(int pixel, int size, int stride, int windows)
{
    const int first_in_image = pixel - size >= -stride, last = pixel / stride;
    return first_in_image && last < windows ? windows - last : 1;
}

/* g, index (channels, out_height, out_width, batch) -> dx (channels, height, width, batch)
 *
 * With few images, pixels that are `stride` apart are computed together, as their windows are adjacent. */
void max_pool_gradient(const real *g, const uint8_t *index, real *dx, long channels, long height, long width,
                       long batch, long out_height, long out_width, long size, long stride, long pad)
{
    const long step = batch <= FEW_IMAGES ? stride : 1;
    #pragma omp parallel for collapse(2) schedule(static)
    for (long c = 0; c < channels; c++)
        for (long i = 0; i < height; i++) {
            const Range rows = windows_over(i + pad, size, stride, out_height);
            real *row = dx + (c * height + i) * width * batch;
            for (long first = 0; first < min(step, width); first++)
                for (long j = first, run; j < width; j += run * step) {
                    const Range columns = windows_over(j + pad, size, stride, out_width);
                    Contribution windows[MAX_WINDOW];
                    int n = 0;
                    for (long r = rows.first; r <= rows.last; r++)
                        for (long s = columns.first; s <= columns.last; s++)
                            windows[n++] = (Contribution){ ((c * out_height + r) * out_width + s) * batch,
                                                           (i + pad - r * stride) * size + j + pad - s * stride };
                    run = step == stride ? equal_run(j + pad, size, stride, out_width) : 1;
                    run = min(min(run, (width - 1 - j) / step + 1), max(MERGED / max(batch, 1), 1));
                    if (step == 1 || run == 1) {
                        gather_pixel(g, index, row + j * batch, windows, n, run * batch);
                        continue;
                    }
                    real pixels[MERGED];
                    gather_pixel(g, index, pixels, windows, n, run * batch);
                    for (long k = 0; k < run; k++)
                        copy_few(row + (j + k * step) * batch, pixels + k * batch, batch);
                }
        }
}

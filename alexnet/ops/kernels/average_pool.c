/* Average pooling in c01b layout and its adjoint.
 *
 *     y[c,r,s,b] = sum over i,j of x[c, r*stride + i, s*stride + j, b] / size^2
 *
 * The loops: output row: column: pixel of the window: batch.  The innermost loop is vectorised, and the sums of one
 * position stay in the L1 cache.  Threads process different rows.  Each output is summed in a fixed order, so the
 * result does not depend on the number of threads.
 */
#include "common.h"

/* x (channels, height, width, batch) -> y (channels, out_height, out_width, batch) */
void average_pool(const real *x, real *y, long channels, long height, long width, long batch, long out_height,
                  long out_width, long size, long stride)
{
    const real weight = 1 / (real)(size * size);
    #pragma omp parallel for schedule(static)
    for (long row = 0; row < channels * out_height; row++) {
        const real *top = x + (row / out_height * height + row % out_height * stride) * width * batch;
        for (long column = 0; column < out_width; column++) {
            real *out = y + (row * out_width + column) * batch;
            for (long b = 0; b < batch; b++)
                out[b] = 0;
            for (long k = 0; k < size * size; k++) {
                const real *pixel = top + (k / size * width + column * stride + k % size) * batch;
                for (long b = 0; b < batch; b++)
                    out[b] += pixel[b];
            }
            for (long b = 0; b < batch; b++)
                out[b] *= weight;
        }
    }
}

/* The first of the windows along an axis that cover a pixel; the last one starts at or before the pixel. */
static long first_window(long pixel, long size, long stride)
{
    return max(pixel - size + stride, 0) / stride;
}

/* g (channels, out_height, out_width, batch) -> dx (channels, height, width, batch) */
void average_pool_gradient(const real *g, real *dx, long channels, long height, long width, long batch,
                           long out_height, long out_width, long size, long stride)
{
    const real weight = 1 / (real)(size * size);
    #pragma omp parallel for schedule(static)
    for (long row = 0; row < channels * height; row++) {
        const long i = row % height;
        for (long j = 0; j < width; j++) {
            real *out = dx + (row * width + j) * batch;
            for (long b = 0; b < batch; b++)
                out[b] = 0;
            for (long r = first_window(i, size, stride); r <= min(i / stride, out_height - 1); r++)
                for (long s = first_window(j, size, stride); s <= min(j / stride, out_width - 1); s++) {
                    const real *from = g + ((row / height * out_height + r) * out_width + s) * batch;
                    for (long b = 0; b < batch; b++)
                        out[b] += from[b] * weight;
                }
        }
    }
}

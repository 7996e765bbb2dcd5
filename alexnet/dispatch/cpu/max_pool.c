/* Max pooling in c01b layout and its gradient.
 *
 * The batch is the innermost axis, so it is the vector axis: a block of LANES images keeps its running maximum and its
 * window index in registers or L1 while the pixels of the window go by.  Rows of one channel are shared out over the
 * threads.  The gradient visits each input pixel once and adds the few windows that cover it, in fixed order: nothing
 * is zeroed beforehand and no two threads write the same place. */
#include <math.h>
#include <stdint.h>

enum { LANES = 64 };

static inline void pool_block(const float *x, float *y, uint8_t *index, long row_pitch, long batch, long n, long size)
{
    float best[LANES];
    int32_t where[LANES];
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

/* x (channels, height, width, batch) -> y, index (channels, rows, columns, batch) */
void max_pool(const float *x, float *y, uint8_t *index, long channels, long height, long width, long batch,
              long rows, long columns, long size, long stride)
{
#pragma omp parallel for collapse(2) schedule(static)
    for (long c = 0; c < channels; c++)
        for (long r = 0; r < rows; r++)
            for (long s = 0; s < columns; s++) {
                const float *corner = x + ((c * height + r * stride) * width + s * stride) * batch;
                const long out = ((c * rows + r) * columns + s) * batch;
                long b = 0;
                for (; b + LANES <= batch; b += LANES)
                    pool_block(corner + b, y + out + b, index + out + b, width * batch, batch, LANES, size);
                if (b < batch)
                    pool_block(corner + b, y + out + b, index + out + b, width * batch, batch, batch - b, size);
            }
}

static inline void spread_block(const float *g, const uint8_t *index, float *sum, int k, long n)
{
    for (long b = 0; b < n; b++)
        sum[b] += index[b] == k ? g[b] : 0.0f;
}

static long first_window(long pixel, long size, long stride)
{
    return pixel < size ? 0 : (pixel - size) / stride + 1;
}

static long last_window(long pixel, long windows, long stride)
{
    return pixel / stride < windows ? pixel / stride : windows - 1;
}

/* g, index (channels, rows, columns, batch) -> dx (channels, height, width, batch) */
void max_pool_gradient(const float *g, const uint8_t *index, float *dx, long channels, long height, long width,
                       long batch, long rows, long columns, long size, long stride)
{
#pragma omp parallel for collapse(2) schedule(static)
    for (long c = 0; c < channels; c++)
        for (long i = 0; i < height; i++)
            for (long j = 0; j < width; j++)
                for (long b = 0; b < batch; b += LANES) {
                    const long n = batch - b < LANES ? batch - b : LANES;
                    float sum[LANES] = {0};
                    for (long r = first_window(i, size, stride); r <= last_window(i, rows, stride); r++)
                        for (long s = first_window(j, size, stride); s <= last_window(j, columns, stride); s++) {
                            const long at = ((c * rows + r) * columns + s) * batch + b;
                            const int k = (int)((i - r * stride) * size + j - s * stride);
                            if (n == LANES)
                                spread_block(g + at, index + at, sum, k, LANES);
                            else
                                spread_block(g + at, index + at, sum, k, n);
                        }
                    float *out = dx + ((c * height + i) * width + j) * batch + b;
                    for (long l = 0; l < n; l++)
                        out[l] = sum[l];
                }
}

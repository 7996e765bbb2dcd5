/* Average pooling in c01b layout and its adjoint.
 *
 *     y[c,r,s,b] = sum over i,j of x[c, r*stride + i, s*stride + j, b] / size^2
 *
 * The loops vectorise over the batch, the innermost axis.  Threads process different rows.  Each output is summed in a
 * fixed order, so the result does not depend on the number of threads. */

/* x (channels, height, width, batch) -> y (channels, rows, columns, batch) */
void average_pool(const float *x, float *y, long channels, long height, long width, long batch, long rows, long columns,
                  long size, long stride)
{
    const float share = 1.0f / (float)(size * size);
#pragma omp parallel for schedule(static)
    for (long row = 0; row < channels * rows; row++) {
        const float *top = x + (row / rows * height + row % rows * stride) * width * batch;
        for (long column = 0; column < columns; column++) {
            float *out = y + (row * columns + column) * batch;
            for (long b = 0; b < batch; b++)
                out[b] = 0;
            for (long k = 0; k < size * size; k++) {
                const float *pixel = top + (k / size * width + column * stride + k % size) * batch;
                for (long b = 0; b < batch; b++)
                    out[b] += pixel[b];
            }
            for (long b = 0; b < batch; b++)
                out[b] *= share;
        }
    }
}

static int covers(long window, long pixel, long size, long stride)
{
    return window * stride <= pixel && pixel < window * stride + size;
}

/* g (channels, rows, columns, batch) -> dx (channels, height, width, batch) */
void average_pool_gradient(const float *g, float *dx, long channels, long height, long width, long batch, long rows,
                           long columns, long size, long stride)
{
    const float share = 1.0f / (float)(size * size);
#pragma omp parallel for schedule(static)
    for (long row = 0; row < channels * height; row++)
        for (long j = 0; j < width; j++) {
            float *out = dx + (row * width + j) * batch;
            for (long b = 0; b < batch; b++)
                out[b] = 0;
            for (long k = 0; k < rows * columns; k++) {
                const long r = k / columns, s = k % columns;
                if (!covers(r, row % height, size, stride) || !covers(s, j, size, stride))
                    continue;
                const float *from = g + ((row / height * rows + r) * columns + s) * batch;
                for (long b = 0; b < batch; b++)
                    out[b] += from[b] * share;
            }
        }
}

/* A dense layer of few images, which is bound by the time to read the weights from memory.
 *
 *     y[o,b] = sum over k of  w[k,o] * x[k,b]
 *
 * The vectors run along the outputs, in which the weights are contiguous.  The loops: strip of outputs: PASS rows of w:
 * STEPS rows: image: vector.  The sums of a strip stay in the L1 cache, and so do the STEPS rows, once read, during the
 * loop over the images.  The sums of the passes are added in order, which halves the rounding error.  Threads process
 * different strips.  Each output is summed by one thread in a fixed order, so the result does not depend on their number.
 */
#include <string.h>
#include "common.h"

enum { MAX_IMAGES = 6, STRIP = 512, STEPS = 8, PASS = 256 };

/* sum[j] += sum over `steps` rows of  w[row * stride + j] * x[row * batch], for n elements */
ALWAYS_INLINE void add_rows(const real *w, long stride, const real *x, long batch, real *sum, long n, const int steps)
{
    #pragma omp simd
    for (long j = 0; j < n; j++) {
        real s = sum[j];
        UNROLL
        for (int row = 0; row < steps; row++)
            s += w[row * stride + j] * x[row * batch];
        sum[j] = s;
    }
}

/* Sum `rows` rows for all images; x and w point at the first of them. */
static void sum_pass(const real *x, const real *w, long rows, long outputs, long batch, real sum[][STRIP], long n)
{
    long k = 0;
    for (; k + STEPS <= rows; k += STEPS)
        for (long b = 0; b < batch; b++)
            add_rows(w + k * outputs, outputs, x + k * batch + b, batch, sum[b], n, STEPS);
    for (; k < rows; k++)
        for (long b = 0; b < batch; b++)
            add_rows(w + k * outputs, outputs, x + k * batch + b, batch, sum[b], n, 1);
}

/* x (inputs, batch), w (inputs, outputs) -> y (outputs, batch); batch <= MAX_IMAGES */
void dense_forward(const real *x, const real *w, real *y, long inputs, long outputs, long batch)
{
    #pragma omp parallel for schedule(dynamic)
    for (long start = 0; start < outputs; start += STRIP) {
        const long n = min(STRIP, outputs - start);
        real sum[MAX_IMAGES][STRIP], total[MAX_IMAGES][STRIP];
        memset(total, 0, sizeof total);
        for (long k = 0; k < inputs; k += PASS) {
            memset(sum, 0, sizeof sum);
            sum_pass(x + k * batch, w + k * outputs + start, min(PASS, inputs - k), outputs, batch, sum, n);
            for (long b = 0; b < batch; b++)
                for (long j = 0; j < n; j++)
                    total[b][j] += sum[b][j];
        }
        for (long j = 0; j < n; j++)
            for (long b = 0; b < batch; b++)
                y[(start + j) * batch + b] = total[b][j];
    }
}

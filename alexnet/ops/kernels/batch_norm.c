/* Batch normalisation of each channel, optionally followed by ReLU, and its gradient.
 *
 *     y = f(scale (x - mean) + beta),   scale = gamma / sqrt(variance + epsilon),   f: identity or max(., 0)
 *     d = g where f passes it, else 0
 *     dx = scale (d - mean of d - (x - mean) * mean of d (x - mean) / (variance + epsilon))
 *
 * A channel is contiguous in c01b.  Threads process different channels; a channel is read again from the cache for the
 * variance and for y.  Sums are those of BLOCK values in LANES accumulators, added up in double, in a fixed order.
 */
#include <math.h>
#include "common.h"

enum { LANES = 64, BLOCK = 4096 };

/* The sum of the LANES accumulators. */
static inline double total(const real *lanes)
{
    double sum = 0;
    for (long l = 0; l < LANES; l++)
        sum += lanes[l];
    return sum;
}

/* Sums `term`, an expression of p, over n values.  The remainder of LANES values goes to the first lanes. */
#define SUM_BLOCK(sum, n, term)                                                                                        \
    do {                                                                                                               \
        real lanes[LANES] = { 0 };                                                                                     \
        long first = 0;                                                                                                \
        for (; first + LANES <= (n); first += LANES)                                                                   \
            for (long l = 0; l < LANES; l++) {                                                                         \
                const long p = first + l;                                                                              \
                lanes[l] += (term);                                                                                    \
            }                                                                                                          \
        for (long p = first; p < (n); p++)                                                                             \
            lanes[p - first] += (term);                                                                                \
        (sum) += total(lanes);                                                                                         \
    } while (0)

static double sum_of(const real *x, long n)
{
    double sum = 0;
    for (long start = 0; start < n; start += BLOCK) {
        const real *block = x + start;
        SUM_BLOCK(sum, min(n - start, BLOCK), block[p]);
    }
    return sum;
}

static double sum_of_squares(const real *x, long n, real mean)
{
    double sum = 0;
    for (long start = 0; start < n; start += BLOCK) {
        const real *block = x + start;
        SUM_BLOCK(sum, min(n - start, BLOCK), (block[p] - mean) * (block[p] - mean));
    }
    return sum;
}

/* x -> y (channels, pixels); gamma, beta -> mean, variance (channels) */
void batch_norm(const real *x, const real *gamma, const real *beta, real *y, real *mean, real *variance, long channels,
                long pixels, long relu, real epsilon)
{
    #pragma omp parallel for schedule(static)
    for (long c = 0; c < channels; c++) {
        const real *x_c = x + c * pixels;
        real *y_c = y + c * pixels;
        const real m = (real)(sum_of(x_c, pixels) / pixels);
        const real v = (real)(sum_of_squares(x_c, pixels, m) / pixels);
        const real scale = gamma[c] / (real)sqrt((double)(v + epsilon)), shift = beta[c];
        mean[c] = m;
        variance[c] = v;
        if (relu)
            for (long p = 0; p < pixels; p++) {
                const real value = scale * (x_c[p] - m) + shift;
                y_c[p] = value < 0 ? 0 : value;                    /* NaN stays NaN */
            }
        else
            for (long p = 0; p < pixels; p++)
                y_c[p] = scale * (x_c[p] - m) + shift;
    }
}

/* The gradients of one channel; y is the output of the forward pass, which is read only after ReLU. */
ALWAYS_INLINE void gradient_of_channel(const real *x, const real *g, const real *y, real *dx, real *dgamma, real *dbeta,
                                       const int relu, long n, real gamma, real mean, real variance, real epsilon)
{
    double sum = 0, product = 0;
    for (long start = 0; start < n; start += BLOCK) {
        const real *x_b = x + start, *g_b = g + start, *y_b = y + start;
        const long count = min(n - start, BLOCK);
        SUM_BLOCK(sum, count, !relu || y_b[p] > 0 ? g_b[p] : 0);
        SUM_BLOCK(product, count, (!relu || y_b[p] > 0 ? g_b[p] : 0) * (x_b[p] - mean));
    }
    const double inverse = 1 / sqrt((double)(variance + epsilon));
    const real scale = gamma * (real)inverse, mean_d = (real)(sum / n);
    const real slope = (real)(product * inverse * inverse / n);
    *dgamma = (real)(product * inverse);
    *dbeta = (real)sum;
    for (long p = 0; p < n; p++) {
        const real d = !relu || y[p] > 0 ? g[p] : 0;
        dx[p] = scale * (d - mean_d - (x[p] - mean) * slope);
    }
}

/* x, g, y, dx (channels, pixels); gamma, mean, variance -> dgamma, dbeta (channels) */
void batch_norm_gradient(const real *x, const real *gamma, const real *mean, const real *variance, const real *g,
                         const real *y, real *dx, real *dgamma, real *dbeta, long channels, long pixels, long relu,
                         real epsilon)
{
    #pragma omp parallel for schedule(static)
    for (long c = 0; c < channels; c++) {
        const long at = c * pixels;
        if (relu)
            gradient_of_channel(x + at, g + at, y + at, dx + at, dgamma + c, dbeta + c, 1, pixels, gamma[c], mean[c],
                                variance[c], epsilon);
        else
            gradient_of_channel(x + at, g + at, x + at, dx + at, dgamma + c, dbeta + c, 0, pixels, gamma[c], mean[c],
                                variance[c], epsilon);
    }
}

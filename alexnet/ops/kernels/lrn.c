/* Local response normalisation and its gradient, each in one pass over memory.
 *
 *     s[c] = k + alpha * sum of x[j]^2 over the channels j of a window around c
 *     y[c] = x[c] * s[c]^-beta
 *     dx[c] = d[c] - 2 alpha beta x[c] * sum of t[j] over the same channels,    d = g s^-beta,  t = d x / s
 *
 * Image rows, columns and batch form one axis of `pixels`, which is vectorised.  The loops: block of BLOCK pixels:
 * channel: pixel.  The channels of the window stay in the L1 cache during the loop over the channels.  Threads process
 * different blocks.  beta = 3/4 is computed with two square roots, any other beta with pow.
 */
#include <stdlib.h>
#include <tgmath.h>
#include "common.h"

enum { BLOCK = 256 };

/* s^-beta, for n values of s in place */
static inline void inverse_power(real *s, real beta, long n)
{
    if (beta == (real)0.75)
        for (long p = 0; p < n; p++) {
            const real root = sqrt(s[p]);
            s[p] = 1 / (root * sqrt(root));
        }
    else
        for (long p = 0; p < n; p++)
            s[p] = pow(s[p], -beta);
}

/* s = k + alpha * sum of x^2 over `count` channels; x points at the block in the first of them. */
ALWAYS_INLINE void scale_over(const real *x, real *s, const long count, long pixels, real k, real alpha, long n)
{
    #pragma omp simd
    for (long p = 0; p < n; p++) {
        real sum = 0;
        UNROLL
        for (long j = 0; j < count; j++)
            sum += x[j * pixels + p] * x[j * pixels + p];
        s[p] = k + alpha * sum;
    }
}

/* s of channel c; x points at the block in channel 0.  Common window sizes have specialised loops. */
static inline void scale(const real *x, real *s, long c, long channels, long pixels, long half, real k, real alpha,
                         long n)
{
    const long first = max(c - half, 0), last = min(c + half, channels - 1);
    const real *from = x + first * pixels;
    if (last - first == 4)
        scale_over(from, s, 5, pixels, k, alpha, n);
    else if (last - first == 2)
        scale_over(from, s, 3, pixels, k, alpha, n);
    else
        scale_over(from, s, last - first + 1, pixels, k, alpha, n);
}

/* x, y (channels, pixels) */
void lrn(const real *x, real *y, long channels, long pixels, long window, real k, real alpha, real beta)
{
    #pragma omp parallel for schedule(static)
    for (long start = 0; start < pixels; start += BLOCK) {
        const long n = min(pixels - start, BLOCK);
        real s[BLOCK];
        for (long c = 0; c < channels; c++) {
            const real *x_c = x + c * pixels + start;
            real *y_c = y + c * pixels + start;
            scale(x + start, s, c, channels, pixels, window / 2, k, alpha, n);
            inverse_power(s, beta, n);
            for (long p = 0; p < n; p++)
                y_c[p] = x_c[p] * s[p];
        }
    }
}

/* dx = d + factor * x * sum over the rows of the ring buffer t, in memory order. */
ALWAYS_INLINE void add_window(const real *d, const real *x, const real *t, real *dx, const long window,
                              real factor, long n)
{
    #pragma omp simd
    for (long p = 0; p < n; p++) {
        real sum = 0;
        UNROLL
        for (long j = 0; j < window; j++)
            sum += t[j * BLOCK + p];
        dx[p] = d[p] + factor * x[p] * sum;
    }
}

/* The gradient of one block.  Only the channels of the window are needed at a time, so d and t are ring buffers of
 * `window` rows.  They are computed for channel `next`, the last one of the window around channel c. */
static void gradient_block(const real *x, const real *g, real *dx, real *d, real *t, long channels, long pixels,
                           long window, real k, real alpha, real beta, long n)
{
    const long half = window / 2;
    const real factor = -2 * alpha * beta;
    for (long p = 0; p < window * BLOCK; p++)
        t[p] = 0;
    for (long next = 0; next < channels + half; next++) {
        real *d_next = d + next % window * BLOCK, *t_next = t + next % window * BLOCK;
        if (next < channels) {
            const real *x_next = x + next * pixels, *g_next = g + next * pixels;
            real s[BLOCK], power[BLOCK];
            scale(x, s, next, channels, pixels, half, k, alpha, n);
            for (long p = 0; p < n; p++)
                power[p] = s[p];
            inverse_power(power, beta, n);
            for (long p = 0; p < n; p++) {
                d_next[p] = g_next[p] * power[p];
                t_next[p] = d_next[p] * x_next[p] / s[p];
            }
        } else {
            for (long p = 0; p < n; p++)
                t_next[p] = 0;
        }
        const long c = next - half;
        if (c < 0)
            continue;
        const real *d_c = d + c % window * BLOCK, *x_c = x + c * pixels;
        if (window == 5)
            add_window(d_c, x_c, t, dx + c * pixels, 5, factor, n);
        else
            add_window(d_c, x_c, t, dx + c * pixels, window, factor, n);
    }
}

/* x, g, dx (channels, pixels); returns 0, or 1 if the ring buffers cannot be allocated */
int lrn_gradient(const real *x, const real *g, real *dx, long channels, long pixels, long window, real k,
                 real alpha, real beta)
{
    int failed = 0;
    #pragma omp parallel reduction(| : failed)
    {
        real *rings = malloc(sizeof(real) * 2 * window * BLOCK);
        failed = rings == NULL;
        #pragma omp for schedule(static)
        for (long start = 0; start < pixels; start += BLOCK) {
            const long n = min(pixels - start, BLOCK);
            if (rings)
                gradient_block(x + start, g + start, dx + start, rings, rings + window * BLOCK, channels, pixels,
                               window, k, alpha, beta, n);
        }
        free(rings);
    }
    return failed;
}

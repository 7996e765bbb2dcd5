/* Local response normalisation and its gradient, each in one pass over memory.
 *
 * Image rows, columns and batch form one axis of `pixels`, which is vectorised.  The channel loop over a block of
 * PIXELS pixels keeps the rows of the window in the L1 cache.  Threads process different blocks.  beta = 3/4 is
 * computed with two square roots, any other beta with powf. */
#include <math.h>
#include <stdlib.h>
#include "tiles.h"

enum { PIXELS = 256 };

/* s ** -beta, for n values of s in place */
static inline void inverse_power(float *s, float beta, long n)
{
    if (beta == 0.75f)
        for (long p = 0; p < n; p++) {
            const float root = sqrtf(s[p]);
            s[p] = 1.0f / (root * sqrtf(root));
        }
    else
        for (long p = 0; p < n; p++)
            s[p] = powf(s[p], -beta);
}

/* s = k + alpha * sum of x ** 2 over `count` channels; x points at the block in the first of them. */
ALWAYS_INLINE void scale_over(const float *x, float *s, const long count, long pixels, float k, float alpha, long n)
{
#pragma omp simd
    for (long p = 0; p < n; p++) {
        float sum = 0;
        UNROLL
        for (long j = 0; j < count; j++)
            sum += x[j * pixels + p] * x[j * pixels + p];
        s[p] = k + alpha * sum;
    }
}

/* s of channel c; x points at the block in channel 0.  Common window sizes have specialised loops. */
static inline void scale(const float *x, float *s, long c, long channels, long pixels, long half, float k, float alpha,
                         long n)
{
    const long first = c < half ? 0 : c - half, last = c + half < channels ? c + half : channels - 1;
    const float *from = x + first * pixels;
    if (last - first == 4)
        scale_over(from, s, 5, pixels, k, alpha, n);
    else if (last - first == 2)
        scale_over(from, s, 3, pixels, k, alpha, n);
    else
        scale_over(from, s, last - first + 1, pixels, k, alpha, n);
}

/* x, y (channels, pixels) */
void lrn(const float *x, float *y, long channels, long pixels, long window, float k, float alpha, float beta)
{
#pragma omp parallel for schedule(static)
    for (long start = 0; start < pixels; start += PIXELS) {
        const long n = pixels - start < PIXELS ? pixels - start : PIXELS;
        float s[PIXELS];
        for (long c = 0; c < channels; c++) {
            const float *xc = x + c * pixels + start;
            float *yc = y + c * pixels + start;
            scale(x + start, s, c, channels, pixels, window / 2, k, alpha, n);
            inverse_power(s, beta, n);
            for (long p = 0; p < n; p++)
                yc[p] = xc[p] * s[p];
        }
    }
}

/* dx = d + factor * x * sum over the rows of the ring buffer t, in memory order. */
ALWAYS_INLINE void add_window(const float *d, const float *x, const float *t, float *dx, const long window, float factor,
                              long n)
{
#pragma omp simd
    for (long p = 0; p < n; p++) {
        float sum = 0;
        UNROLL
        for (long j = 0; j < window; j++)
            sum += t[j * PIXELS + p];
        dx[p] = d[p] + factor * x[p] * sum;
    }
}

/* The gradient of one block.  With d = g s**-beta and t = d x / s:
 * dx[c] = d[c] - 2 alpha beta x[c] * sum of t over the window.
 * Only the channels of the window are needed at a time, so d and t are ring buffers of `window` rows. */
static void gradient_block(const float *x, const float *g, float *dx, float *d, float *t, long channels, long pixels,
                           long window, float k, float alpha, float beta, long n)
{
    const long half = window / 2;
    const float factor = -2.0f * alpha * beta;
    for (long row = 0; row < window * PIXELS; row++)
        t[row] = 0;
    for (long ahead = 0; ahead < channels + half; ahead++) {
        float *da = d + ahead % window * PIXELS, *ta = t + ahead % window * PIXELS;
        if (ahead < channels) {
            const float *xa = x + ahead * pixels, *ga = g + ahead * pixels;
            float s[PIXELS], power[PIXELS];
            scale(x, s, ahead, channels, pixels, half, k, alpha, n);
            for (long p = 0; p < n; p++)
                power[p] = s[p];
            inverse_power(power, beta, n);
            for (long p = 0; p < n; p++) {
                da[p] = ga[p] * power[p];
                ta[p] = da[p] * xa[p] / s[p];
            }
        } else {
            for (long p = 0; p < n; p++)
                ta[p] = 0;
        }
        const long c = ahead - half;
        if (c < 0)
            continue;
        const float *dc = d + c % window * PIXELS, *xc = x + c * pixels;
        if (window == 5)
            add_window(dc, xc, t, dx + c * pixels, 5, factor, n);
        else
            add_window(dc, xc, t, dx + c * pixels, window, factor, n);
    }
}

/* x, g, dx (channels, pixels); returns 0, or 1 if the ring buffers cannot be allocated */
int lrn_gradient(const float *x, const float *g, float *dx, long channels, long pixels, long window, float k,
                 float alpha, float beta)
{
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *rings = malloc(sizeof(float) * 2 * window * PIXELS);
        failed = rings == NULL;
#pragma omp for schedule(static)
        for (long start = 0; start < pixels; start += PIXELS) {
            const long n = pixels - start < PIXELS ? pixels - start : PIXELS;
            if (rings)
                gradient_block(x + start, g + start, dx + start, rings, rings + window * PIXELS, channels, pixels,
                               window, k, alpha, beta, n);
        }
        free(rings);
    }
    return failed;
}

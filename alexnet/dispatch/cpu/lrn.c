/* Local response normalisation and its gradient, each in one pass over memory.
 *
 * Image rows, columns and batch are one axis of `pixels`, the vector axis.  A block of LANES pixels walks through the
 * channels while the few rows of the window lie in L1; blocks are shared out over the threads.  beta = 3/4 is two
 * square roots, any other beta powf. */
#include <math.h>
#include <stdlib.h>

enum { LANES = 256 };

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

/* s = k + alpha * sum of x ** 2 over the window of channel c; x points at the block in channel 0 */
static inline void scale(const float *x, float *s, long c, long channels, long pixels, long half, float k, float alpha,
                         long n)
{
    const long first = c < half ? 0 : c - half, last = c + half < channels ? c + half : channels - 1;
    for (long p = 0; p < n; p++)
        s[p] = 0;
    for (long j = first; j <= last; j++)
        for (long p = 0; p < n; p++)
            s[p] += x[j * pixels + p] * x[j * pixels + p];
    for (long p = 0; p < n; p++)
        s[p] = k + alpha * s[p];
}

/* x, y (channels, pixels) */
void lrn(const float *x, float *y, long channels, long pixels, long window, float k, float alpha, float beta)
{
#pragma omp parallel for schedule(static)
    for (long start = 0; start < pixels; start += LANES) {
        const long n = pixels - start < LANES ? pixels - start : LANES;
        float s[LANES];
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

/* The block's gradient.  With d = g s**-beta and t = d x / s, which only the window's channels need at once:
 * dx[c] = d[c] - 2 alpha beta x[c] * sum of t over the window.  d and t are rings of `window` rows. */
static void gradient_block(const float *x, const float *g, float *dx, float *d, float *t, long channels, long pixels,
                           long window, float k, float alpha, float beta, long n)
{
    const long half = window / 2;
    const float factor = -2.0f * alpha * beta;
    for (long row = 0; row < window * LANES; row++)
        t[row] = 0;
    for (long ahead = 0; ahead < channels + half; ahead++) {
        float *da = d + ahead % window * LANES, *ta = t + ahead % window * LANES;
        if (ahead < channels) {
            const float *xa = x + ahead * pixels, *ga = g + ahead * pixels;
            float s[LANES], power[LANES];
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
        float sum[LANES] = {0};
        for (long j = 0; j < window; j++)                     /* fixed order within the ring */
            for (long p = 0; p < n; p++)
                sum[p] += t[j * LANES + p];
        const float *dc = d + c % window * LANES, *xc = x + c * pixels;
        for (long p = 0; p < n; p++)
            dx[c * pixels + p] = dc[p] + factor * xc[p] * sum[p];
    }
}

/* x, g, dx (channels, pixels); returns 0, or 1 if memory for the rings is lacking */
int lrn_gradient(const float *x, const float *g, float *dx, long channels, long pixels, long window, float k,
                 float alpha, float beta)
{
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *rings = malloc(sizeof(float) * 2 * window * LANES);
        failed = rings == NULL;
#pragma omp for schedule(static)
        for (long start = 0; start < pixels; start += LANES) {
            const long n = pixels - start < LANES ? pixels - start : LANES;
            if (rings)
                gradient_block(x + start, g + start, dx + start, rings, rings + window * LANES, channels, pixels,
                               window, k, alpha, beta, n);
        }
        free(rings);
    }
    return failed;
}

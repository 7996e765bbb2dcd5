/* A dense layer of few images, which is bound by the time to read the weights from memory.
 *
 *     y[o,b] = sum over k of  w[k,o] * x[k,b],       dx[k,b] = sum over o of  w[k,o] * g[o,b]
 *
 * Forward: the vectors run along the outputs, in which the weights are contiguous.  A task is PASS rows of w by a strip
 * of outputs, so the threads read neighbouring memory.  Its loops: STEPS rows: IMAGES images: BLOCK outputs: row.  It
 * prefetches the rows that follow.  Finally the sums of all passes are added in order, which halves the rounding error.
 *
 * Input gradient: the vectors run along the outputs, too; the lanes of a sum are added at the end of a strip.  g is
 * transposed once.  A task is some rows of w.  Its loops: strip of outputs: TILE_ROWS rows: IMAGES images: vector.
 *
 * Each result is summed in a fixed order, so it does not depend on the number of threads.
 */
#include <stdlib.h>
#include <string.h>
#include "micro_kernel.h"

enum { MAX_IMAGES = 16, IMAGES = GRADIENT_ROWS, STRIP = 4096, STEPS = 8, PASS = 256, TASKS_PER_THREAD = 2 };
enum { AHEAD = 16, LINE = CACHE_LINE / sizeof(real) };   /* rows fetched ahead; elements of a cache line */

/* sum[i * BLOCK + o] += sum over `steps` rows of  w[row * stride + o] * x[row * batch + i],  for BLOCK outputs */
ALWAYS_INLINE void add_block(const real *w, long stride, const real *x, long batch, real *sum, const int steps,
                             const int images)
{
    vector s[IMAGES][VECTORS], row_of_w[VECTORS];
    UNROLL
    for (int i = 0; i < images; i++)
        load_row(sum + i * BLOCK, s[i]);
    UNROLL
    for (int row = 0; row < steps; row++) {
        load_row(w + row * stride, row_of_w);
        UNROLL
        for (int i = 0; i < images; i++)
            add_product(s[i], x[row * batch + i], row_of_w);
    }
    UNROLL
    for (int i = 0; i < images; i++)
        store_row(sum + i * BLOCK, s[i]);
}

/* The same for a strip of n outputs, whose sums for all images are [block of outputs][image][BLOCK]. */
ALWAYS_INLINE void add_rows(const real *w, long stride, const real *x, long batch, real *sum, long n, const int steps,
                            const int images)
{
    for (; n >= BLOCK; n -= BLOCK, w += BLOCK, sum += batch * BLOCK)
        add_block(w, stride, x, batch, sum, steps, images);
    if (n) {
        real rest[STEPS * BLOCK] = { 0 };
        for (int row = 0; row < steps; row++)
            memcpy(rest + row * BLOCK, w + row * stride, n * sizeof(real));
        add_block(rest, BLOCK, x, batch, sum, steps, images);
    }
}

/* Add STEPS rows for all images. */
static void add_steps(const real *w, long stride, const real *x, long batch, real *sum, long n)
{
    long b = 0;
    for (; b + IMAGES <= batch; b += IMAGES)
        add_rows(w, stride, x + b, batch, sum + b * BLOCK, n, STEPS, IMAGES);
    for (; b + 4 <= batch; b += 4)
        add_rows(w, stride, x + b, batch, sum + b * BLOCK, n, STEPS, 4);
    for (; b + 2 <= batch; b += 2)
        add_rows(w, stride, x + b, batch, sum + b * BLOCK, n, STEPS, 2);
    if (b < batch)
        add_rows(w, stride, x + b, batch, sum + b * BLOCK, n, STEPS, 1);
}

/* Sum `rows` rows of a strip for all images; x and w point at the first of them. */
static void sum_pass(const real *x, const real *w, long rows, long outputs, long batch, real *sum, long n)
{
    long k = 0;
    memset(sum, 0, ceil_div(n, BLOCK) * batch * sizeof(real[BLOCK]));
    for (; k + STEPS <= rows; k += STEPS) {
        for (long row = k + AHEAD; row < k + AHEAD + STEPS; row++)
            for (long o = 0; o < n; o += LINE)
                __builtin_prefetch(w + row * outputs + o);
        add_steps(w + k * outputs, outputs, x + k * batch, batch, sum, n);
    }
    for (; k < rows; k++)
        for (long b = 0; b < batch; b++)
            add_rows(w + k * outputs, outputs, x + k * batch + b, batch, sum + b * BLOCK, n, 1, 1);
}

/* x (inputs, batch), w (inputs, outputs) -> y (outputs, batch); batch <= MAX_IMAGES.  Returns 0, or 1 if the sums of
 * the passes cannot be allocated. */
int dense_forward(const real *x, const real *w, real *y, long inputs, long outputs, long batch)
{
    const long passes = ceil_div(inputs, PASS), pass_sums = ceil_div(outputs, BLOCK) * batch * BLOCK;
    const long tasks = max(ceil_div(TASKS_PER_THREAD * omp_get_max_threads(), passes), ceil_div(outputs, STRIP));
    const long strip = ceil_div(ceil_div(outputs, BLOCK), tasks) * BLOCK, strips = ceil_div(outputs, strip);
    real *sums = aligned_alloc(CACHE_LINE, ceil_div(passes * pass_sums * sizeof(real), CACHE_LINE) * CACHE_LINE);
    if (!sums)
        return 1;
    #pragma omp parallel for schedule(dynamic)
    for (long task = 0; task < passes * strips; task++) {
        const long pass = task / strips, k = pass * PASS, start = task % strips * strip;
        sum_pass(x + k * batch, w + k * outputs + start, min(PASS, inputs - k), outputs, batch,
                 sums + pass * pass_sums + start * batch, min(strip, outputs - start));
    }
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < pass_sums / BLOCK; i++) {
        const long first = i / batch * BLOCK, b = i % batch;
        real total[BLOCK] = { 0 };
        for (long pass = 0; pass < passes; pass++)
            for (long lane = 0; lane < BLOCK; lane++)
                total[lane] += sums[pass * pass_sums + i * BLOCK + lane];
        for (long lane = 0; lane < min(outputs - first, BLOCK); lane++)
            y[(first + lane) * batch + b] = total[lane];
    }
    free(sums);
    return 0;
}

enum { TILE_ROWS = 2, TASK_ROWS = 64, G_STRIP = 1024 };

/* sum[r * batch + i] += sum over n outputs of  w[r * stride + o] * g[i * g_stride + o], for `rows` r and `images` i */
ALWAYS_INLINE void add_products(const real *w, long stride, const real *g, long g_stride, real *sum, long batch, long n,
                                const int rows, const int images)
{
    vector s[TILE_ROWS][IMAGES];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int i = 0; i < images; i++)
            s[r][i] = (vector){ 0 };
    long o = 0;
    for (; o + LANES <= n; o += LANES) {
        vector row[TILE_ROWS];
        UNROLL
        for (int r = 0; r < rows; r++) {
            row[r] = load(w + r * stride + o);
            __builtin_prefetch(w + (r + AHEAD) * stride + o);
        }
        UNROLL
        for (int i = 0; i < images; i++) {
            const vector own = load(g + i * g_stride + o);
            UNROLL
            for (int r = 0; r < rows; r++)
                s[r][i] += row[r] * own;
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < images; i++) {
            real total = 0;
            for (int lane = 0; lane < LANES; lane++)
                total += s[r][i][lane];
            for (long rest = o; rest < n; rest++)
                total += w[r * stride + rest] * g[i * g_stride + rest];
            sum[r * batch + i] += total;
        }
}

ALWAYS_INLINE void add_rows_products(const real *w, long stride, const real *g, long g_stride, real *sum, long batch,
                                     long n, const int rows)
{
    long b = 0;
    for (; b + IMAGES <= batch; b += IMAGES)
        add_products(w, stride, g + b * g_stride, g_stride, sum + b, batch, n, rows, IMAGES);
    for (; b + 4 <= batch; b += 4)
        add_products(w, stride, g + b * g_stride, g_stride, sum + b, batch, n, rows, 4);
    for (; b < batch; b++)
        add_products(w, stride, g + b * g_stride, g_stride, sum + b, batch, n, rows, 1);
}

/* w (inputs, outputs), g (outputs, batch) -> dx (inputs, batch); batch <= MAX_IMAGES.  Returns 0, or 1 if the transpose
 * of g cannot be allocated. */
int dense_input_gradient(const real *w, const real *g, real *dx, long inputs, long outputs, long batch)
{
    real *of_image = malloc(batch * outputs * sizeof(real));
    if (!of_image)
        return 1;
    for (long o = 0; o < outputs; o++)
        for (long b = 0; b < batch; b++)
            of_image[b * outputs + o] = g[o * batch + b];
    #pragma omp parallel for schedule(dynamic)
    for (long first = 0; first < inputs; first += TASK_ROWS) {
        const long end = min(first + TASK_ROWS, inputs);
        memset(dx + first * batch, 0, (end - first) * batch * sizeof(real));
        for (long start = 0; start < outputs; start += G_STRIP) {
            const long n = min(G_STRIP, outputs - start);
            long k = first;
            for (; k + TILE_ROWS <= end; k += TILE_ROWS)
                add_rows_products(w + k * outputs + start, outputs, of_image + start, outputs, dx + k * batch, batch, n,
                                  TILE_ROWS);
            for (; k < end; k++)
                add_rows_products(w + k * outputs + start, outputs, of_image + start, outputs, dx + k * batch, batch, n,
                                  1);
        }
    }
    free(of_image);
    return 0;
}

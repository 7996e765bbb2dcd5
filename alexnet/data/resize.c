/* Bilinear resizing with antialiasing, to the bit as Pillow's Image.resize().
 *
 *     row pass:     t[y, u] = round(sum over x of  kx[u, x] * image[y, x])        for each row that the second pass needs
 *     column pass:  out[v, u] = round(sum over y of  ky[v, y] * t[y, u])
 *
 * or the column pass first: Pillow 13 does so for some tall images, and the rounding between the passes differs.
 *
 * The weights are a triangle of the width of one output pixel, at least two input pixels wide, in fixed point with
 * PRECISION bits.  Source of the formula: Pillow, src/libImaging/Resample.c.
 *
 * In the row pass the lanes of a vector are ROWS rows of the image, which have the same weights: a block of rows is
 * transposed, resized and transposed back, in the L2 cache.  In the column pass they are the bytes of a row.
 */
#include <stdint.h>
#include <stdlib.h>

enum { ROWS = 16, COLOURS = 3, PRECISION = 22, HALF = 1 << (PRECISION - 1), CHUNK = 1024 };

/* For each output pixel: the first input pixel, the number of input pixels, and `most` weights. */
typedef struct { long most; int32_t *first, *count, *weights; } Weights;

static double triangle(double x) { return x < 0 ? (x > -1 ? 1 + x : 0) : (x < 1 ? 1 - x : 0); }

static int new_weights(Weights *w, long pixels, double start, double end, long size)
{
    const double scale = (end - start) / size, support = scale > 1 ? scale : 1;
    w->most = (long)support + 2;
    w->most = 2 * w->most + 1;
    w->first = malloc(size * (2 + w->most) * sizeof(int32_t));
    double *exact = malloc(w->most * sizeof(double));
    if (!w->first || !exact) {
        free(exact);
        return 0;
    }
    w->count = w->first + size;
    w->weights = w->count + size;
    for (long u = 0; u < size; u++) {
        const double centre = start + (u + 0.5) * scale;
        long first = (long)(centre - support + 0.5), end_pixel = (long)(centre + support + 0.5);
        double total = 0;
        first = first < 0 ? 0 : first;
        end_pixel = end_pixel > pixels ? pixels : end_pixel;
        for (long x = first; x < end_pixel; x++)
            total += exact[x - first] = triangle((x - centre + 0.5) * (1.0 / support));
        for (long x = first; x < end_pixel; x++) {
            const double weight = total != 0 ? exact[x - first] / total : exact[x - first];
            w->weights[u * w->most + x - first] = (int32_t)(0.5 + weight * (1 << PRECISION));
        }
        w->first[u] = (int32_t)first;
        w->count[u] = (int32_t)(end_pixel - first);
    }
    free(exact);
    return 1;
}

/* Transpose rows x columns bytes: the rows of `from` and `to` are from_stride and to_stride bytes apart. */
static void transpose(const uint8_t *from, long from_stride, uint8_t *to, long to_stride, long rows, long columns)
{
    for (long c = 0; c < columns; c++)
        for (long r = 0; r < rows; r++)
            to[c * to_stride + r] = from[r * from_stride + c];
}

/* to[i] = round(sum over k of weights[k] * from[k * stride + i]), for n <= CHUNK bytes. */
static inline __attribute__((always_inline)) void mix(const uint8_t *from, long stride, const int32_t *weights,
                                                      long count, uint8_t *to, const long n)
{
    int32_t sum[n];
    for (long i = 0; i < n; i++)
        sum[i] = HALF;
    for (long k = 0; k < count; k++)
        for (long i = 0; i < n; i++)
            sum[i] += from[k * stride + i] * weights[k];
    for (long i = 0; i < n; i++)
        to[i] = (uint8_t)(sum[i] >> PRECISION);
}

/* The column pass: rows of `row_bytes`, the first of which has index `start` -> size rows. */
static void resize_columns(const uint8_t *rows, long start, long row_bytes, uint8_t *out, long size, const Weights *w)
{
    for (long v = 0; v < size; v++)
        for (long i = 0; i < row_bytes; i += CHUNK)
            mix(rows + (w->first[v] - start) * row_bytes + i, row_bytes, w->weights + v * w->most, w->count[v],
                out + v * row_bytes + i, row_bytes - i < CHUNK ? row_bytes - i : CHUNK);
}

/* Resize `rows` <= ROWS rows of `width` pixels to `size` pixels each.  `block` and `mixed` are scratch memory. */
static void resize_block(const uint8_t *image, long rows, long width, uint8_t *out, long size, const Weights *w,
                         uint8_t *block, uint8_t *mixed)
{
    transpose(image, width * COLOURS, block, ROWS, rows, width * COLOURS);
    for (long u = 0; u < size; u++)
        for (long c = 0; c < COLOURS; c++)
            mix(block + (w->first[u] * COLOURS + c) * ROWS, COLOURS * ROWS, w->weights + u * w->most, w->count[u],
                mixed + (u * COLOURS + c) * ROWS, ROWS);
    transpose(mixed, ROWS, out, size * COLOURS, size * COLOURS, rows);
}

/* The row pass: n rows of `width` pixels -> n rows of `size` pixels.  Returns 0, or 1 without memory. */
static int resize_rows(const uint8_t *rows, long n, long width, uint8_t *out, long size, const Weights *w)
{
    uint8_t *block = calloc(width * COLOURS, ROWS), *mixed = malloc(size * COLOURS * ROWS);
    for (long row = 0; row < n && block && mixed; row += ROWS)
        resize_block(rows + row * width * COLOURS, n - row < ROWS ? n - row : ROWS, width, out + row * size * COLOURS,
                     size, w, block, mixed);
    const int failed = !block || !mixed;
    free(block);
    free(mixed);
    return failed;
}

/* image (height, width, 3) -> out (size, size, 3), of the box from (left, top) to (right, bottom) in pixels.  Returns 0,
 * or 1 without memory. */
int resize(const uint8_t *image, uint8_t *out, long height, long width, long size, long columns_first, double left,
           double top, double right, double bottom)
{
    Weights x = { 0 }, y = { 0 };
    uint8_t *between = NULL;
    int failed = !new_weights(&x, width, left, right, size) || !new_weights(&y, height, top, bottom, size);
    if (!failed && columns_first) {
        between = malloc(size * width * COLOURS);
        failed = !between;
        if (!failed) {
            resize_columns(image, 0, width * COLOURS, between, size, &y);
            failed = resize_rows(between, size, width, out, size, &x);
        }
    } else if (!failed) {
        const long first = y.first[0], n = y.first[size - 1] + y.count[size - 1] - first;
        between = malloc(n * size * COLOURS);
        failed = !between || resize_rows(image + first * width * COLOURS, n, width, between, size, &x);
        if (!failed)
            resize_columns(between, first, size * COLOURS, out, size, &y);
    }
    free(between);
    free(x.first);
    free(y.first);
    return failed;
}

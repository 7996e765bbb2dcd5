/* Crop, mirror and mean subtraction: uint8 (channels, height, width, batch) -> float (channels, size, size, batch).
 *
 *     out[c,i,j,b] = images[c, y + i, x + j, b] - mean[c, y + i, x + j]        (y, x): the corner of b's window
 *
 * with j counted from the right if b is mirrored.  The batch is the innermost axis and each image has its own corner,
 * so adjacent output elements come from distant rows and columns, and reading them one by one causes cache misses.
 * Therefore the pixels of SQUARE images are transposed twice, with vector shuffles:
 *   - as bytes, to rows of single images, mirrored if requested, so that a row of a window is contiguous;
 *   - as floats, after subtraction of the mean, back to batch-innermost order.
 *
 * A task is a channel, TASK_ROWS rows of the output and SQUARE images.  Its first loop transposes the source rows into
 * a scratch buffer that stays in the L2 cache.  The second loop nest is output rows: pixels: images.  Each element is
 * one subtraction, so the result does not depend on the tasks.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "common.h"

enum { SQUARE = 16 };                    /* bytes are transposed in squares of 16 x 16, floats in 4 x 4 */
enum { TASK_ROWS = 57 };                 /* a quarter of 227; tasks overlap in `halo` source rows, up to 29 */

typedef uint8_t bytes __attribute__((vector_size(SQUARE), aligned(1), may_alias));
typedef uint8_t four_bytes __attribute__((vector_size(4), aligned(1), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t four_lanes __attribute__((vector_size(16)));

typedef struct {
    long height, width, batch, size;
    long pixels;                         /* of a row in the scratch: the width, rounded up to SQUARE */
    long top, halo;                      /* topmost corner row, and row range of the corners */
    const float *mean, *mirrored_mean;
    const int32_t *rows, *columns;       /* corner of each image */
    const uint8_t *mirrored;             /* whether an image is mirrored */
} Crop;

/* Transpose a square: log2(SQUARE) times, interleave the first half of the rows with the second half. */
ALWAYS_INLINE void transpose_bytes(bytes *rows)
{
    bytes shuffled[SQUARE];
    UNROLL
    for (long round = 0; round < 4; round++) {
        UNROLL
        for (long i = 0; i < SQUARE / 2; i++) {
            const bytes a = rows[i], b = rows[i + SQUARE / 2];
            shuffled[2 * i] = SHUFFLE(bytes, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            shuffled[2 * i + 1] = SHUFFLE(bytes, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        UNROLL
        for (long i = 0; i < SQUARE; i++)
            rows[i] = shuffled[i];
    }
}

ALWAYS_INLINE bytes reversed(bytes row)
{
    return SHUFFLE(bytes, row, row, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}

/* Transpose a row of n <= SQUARE images: (width, batch) -> scratch (n, pixels); mirrored images are right-aligned. */
NEVER_INLINE void transpose_row(const Crop *crop, const uint8_t *row, const uint8_t *mirrored, long n, uint8_t *scratch)
{
    for (long x = 0; x < crop->width; x += SQUARE) {
        const long columns = min(SQUARE, crop->width - x);
        bytes square[SQUARE] = { 0 };
        for (long i = 0; i < columns; i++) {
            const uint8_t *pixel = row + (x + i) * crop->batch;
            if (n == SQUARE)
                square[i] = *(const bytes *)pixel;
            else
                memcpy(&square[i], pixel, n);
        }
        transpose_bytes(square);
        for (long i = 0; i < n; i++) {
            const long column = mirrored[i] ? crop->pixels - SQUARE - x : x;
            *(bytes *)(scratch + i * crop->pixels + column) = mirrored[i] ? reversed(square[i]) : square[i];
        }
    }
}

/* Subtract the mean from four pixels of four windows and transpose by the same shuffles -> out (4, batch). */
ALWAYS_INLINE void write_square(const uint8_t **pixels, const float **means, long s, float *out, long batch)
{
    four rows[4];
    UNROLL
    for (long i = 0; i < 4; i++)
        rows[i] = __builtin_convertvector(*(const four_bytes *)(pixels[i] + s), four) - *(const four *)(means[i] + s);
    TRANSPOSE_FOUR(four, four_lanes, rows);
    UNROLL
    for (long i = 0; i < 4; i++)
        *(four *)(out + i * batch) = rows[i];
}

/* Write a row of n <= SQUARE windows, each with its own pixels and means -> out (size, batch). */
NEVER_INLINE void write_row(const Crop *crop, const uint8_t **pixels, const float **means, long n, float *out)
{
    const long vectorised = n == SQUARE ? crop->size / 4 * 4 : 0;
    for (long s = 0; s < vectorised; s += 4)
        for (long b = 0; b < SQUARE; b += 4)
            write_square(pixels + b, means + b, s, out + s * crop->batch + b, crop->batch);
    for (long s = vectorised; s < crop->size; s++)
        for (long b = 0; b < n; b++)
            out[s * crop->batch + b] = pixels[b][s] - means[b][s];
}

/* Compute output rows first..end-1 of channel c for n images from b; scratch is (row, SQUARE, pixels). */
static void crop_rows(const Crop *crop, const uint8_t *images, long c, long b, long n, long first, long end,
                      uint8_t *scratch, float *out)
{
    const long top = crop->top + first, row_bytes = SQUARE * crop->pixels;
    for (long r = 0; r < end - first + crop->halo; r++)
        transpose_row(crop, images + (c * crop->height + top + r) * crop->width * crop->batch + b, crop->mirrored + b,
                      n, scratch + r * row_bytes);
    for (long r = first; r < end; r++) {
        const uint8_t *pixels[SQUARE];
        const float *means[SQUARE];
        for (long i = 0; i < n; i++) {
            const long row = r + crop->rows[b + i], left = crop->columns[b + i], right = left + crop->size;
            const uint8_t mirrored = crop->mirrored[b + i];
            const float *mean = (mirrored ? crop->mirrored_mean : crop->mean) + (c * crop->height + row) * crop->width;
            const uint8_t *image_row = scratch + (row - top) * row_bytes + i * crop->pixels;
            pixels[i] = image_row + (mirrored ? crop->pixels - right : left);
            means[i] = mean + (mirrored ? crop->width - right : left);
        }
        write_row(crop, pixels, means, n, out + (c * crop->size + r) * crop->size * crop->batch + b);
    }
}

/* Returns 0, or 1 if memory allocation fails.  The caller has checked the corners. */
int crop_mirror(const uint8_t *images, const float *mean, const int32_t *rows, const int32_t *columns,
                const uint8_t *mirrored, float *out, long channels, long height, long width, long batch, long size)
{
    long top = height, bottom = 0;
    for (long b = 0; b < batch; b++) {
        top = min(top, rows[b]);
        bottom = max(bottom, rows[b]);
    }
    const long pixels = ceil_div(width, SQUARE) * SQUARE, halo = max(0, bottom - top);
    const long scratch_bytes = (TASK_ROWS + halo) * SQUARE * pixels;
    float *mirrored_mean = malloc(sizeof(float) * channels * height * width + 1);
    uint8_t *scratch = malloc(omp_get_max_threads() * scratch_bytes);
    const int failed = !mirrored_mean || !scratch;
    const Crop crop = { height, width, batch, size, pixels, top, halo, mean, mirrored_mean, rows, columns, mirrored };
    for (long r = 0; r < channels * height && !failed; r++)
        for (long x = 0; x < width; x++)
            mirrored_mean[r * width + x] = mean[r * width + width - 1 - x];
    #pragma omp parallel for collapse(3) schedule(dynamic) if (!failed)
    for (long c = 0; c < (failed ? 0 : channels); c++)
        for (long first = 0; first < size; first += TASK_ROWS)
            for (long b = 0; b < batch; b += SQUARE)
                crop_rows(&crop, images, c, b, min(SQUARE, batch - b), first, min(first + TASK_ROWS, size),
                          scratch + omp_get_thread_num() * scratch_bytes, out);
    free(scratch);
    free(mirrored_mean);
    return failed;
}

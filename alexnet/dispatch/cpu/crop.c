/* Crop, mirror and mean subtraction: uint8 images (channels, height, width, batch) -> float (channels, size, size, batch).
 *
 * The output is written in order, row by row over the threads; each image of the batch has its own corner, so reads hop,
 * within about a hundred rows of pixels that stay in the cache. */
#include <stdint.h>
#include <stdlib.h>

/* Returns 0, or 1 if memory for the corners is lacking.  The corners have been checked. */
int crop_mirror(const uint8_t *images, const float *mean, const int32_t *rows, const int32_t *columns,
                const uint8_t *mirrors, float *out, long channels, long height, long width, long batch, long size)
{
    long *start = malloc(sizeof(long) * 2 * (batch + 1)), *step = start + batch;
    if (!start)
        return 1;
    for (long b = 0; b < batch; b++) {
        start[b] = rows[b] * width + columns[b] + (mirrors[b] ? size - 1 : 0);
        step[b] = mirrors[b] ? -1 : 1;
    }
#pragma omp parallel for collapse(2) schedule(static)
    for (long c = 0; c < channels; c++)
        for (long r = 0; r < size; r++) {
            const long row = (c * height + r) * width;
            float *pixels = out + (c * size + r) * size * batch;
            for (long s = 0; s < size; s++)
                for (long b = 0; b < batch; b++) {
                    const long at = row + start[b] + s * step[b];
                    pixels[s * batch + b] = images[at * batch + b] - mean[at];
                }
        }
    free(start);
    return 0;
}

/* Transpose of a matrix in memory: y[c, r] = x[r, c], for elements of 1, 4 or 8 bytes.
 *
 * Converts NCHW images, a matrix (batch, channel row column), to c01b, (channel row column, batch), and back.  A thread
 * transposes squares of SQUARE x SQUARE elements, which read and write whole cache lines; elements of 4 bytes in
 * registers, 4 x 4 at a time.
 */
#include <stdint.h>
#include "common.h"

enum { SQUARE = 32 };

typedef uint32_t four __attribute__((vector_size(16), aligned(4), may_alias));

#define DEFINE_SQUARE(type)                                                                                            \
    static void square_##type(const type *x, type *y, long rows, long columns, long height, long width)                \
    {                                                                                                                  \
        for (long c = 0; c < width; c++)                                                                               \
            for (long r = 0; r < height; r++)                                                                          \
                y[c * rows + r] = x[r * columns + c];                                                                  \
    }

DEFINE_SQUARE(uint8_t)
DEFINE_SQUARE(uint32_t)
DEFINE_SQUARE(uint64_t)

static void whole_square(const uint32_t *x, uint32_t *y, long rows, long columns)
{
    for (long c = 0; c < SQUARE; c += 4)
        for (long r = 0; r < SQUARE; r += 4)
            TRANSPOSE_SQUARE(four, four, x + r * columns + c, columns, y + c * rows + r, rows);
}

#define DEFINE_TRANSPOSE(name, type, WHOLE)                                                                            \
    void name(const type *x, type *y, long rows, long columns)                                                         \
    {                                                                                                                  \
        _Pragma("omp parallel for schedule(static)")                                                                   \
        for (long c = 0; c < columns; c += SQUARE)                                                                     \
            for (long r = 0; r < rows; r += SQUARE) {                                                                  \
                const long height = min(SQUARE, rows - r), width = min(SQUARE, columns - c);                           \
                const type *from = x + r * columns + c;                                                                \
                if (WHOLE && height == SQUARE && width == SQUARE)                                                      \
                    whole_square((const uint32_t *)from, (uint32_t *)(y + c * rows + r), rows, columns);               \
                else                                                                                                   \
                    square_##type(from, y + c * rows + r, rows, columns, height, width);                               \
            }                                                                                                          \
    }

DEFINE_TRANSPOSE(transpose1, uint8_t, 0)
DEFINE_TRANSPOSE(transpose4, uint32_t, 1)
DEFINE_TRANSPOSE(transpose8, uint64_t, 0)

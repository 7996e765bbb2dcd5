/* The micro-kernel of all convolutions: a tile of sums that stays in registers (tiles.h).
 *
 *     sum[r] += scalar[r] * x          for each term; sum[r] and x are rows of BLOCK floats
 *
 * A kernel zeroes the tile, loads x and adds a product to each row for each term, and stores the tile.  The functions
 * are inlined and `rows` is a constant, so that the compiler unrolls all loops and replaces the array by registers.
 */
#ifndef MICRO_KERNEL_H
#define MICRO_KERNEL_H

#include "tiles.h"

ALWAYS_INLINE vector load(const real *from) { return *(const vector *)from; }
ALWAYS_INLINE void store(real *to, vector x) { *(vector *)to = x; }

ALWAYS_INLINE void zero_tile(const int rows, vector sum[][VECTORS])
{
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            sum[r][v] = (vector){ 0 };
}

ALWAYS_INLINE void load_row(const real *from, vector x[VECTORS])
{
    UNROLL
    for (int v = 0; v < VECTORS; v++)
        x[v] = load(from + v * LANES);
}

/* Add scalar * x to one row of a tile. */
ALWAYS_INLINE void add_product(vector sum[VECTORS], real scalar, const vector x[VECTORS])
{
    UNROLL
    for (int v = 0; v < VECTORS; v++)
        sum[v] += scalar * x[v];
}

ALWAYS_INLINE void store_row(real *to, const vector sum[VECTORS])
{
    UNROLL
    for (int v = 0; v < VECTORS; v++)
        store(to + v * LANES, sum[v]);
}

/* Store a tile if it is the first, otherwise add it to the sums in memory, whose rows are `stride` floats apart.  One
 * loop that adds all vectors and another that stores them made the filter gradient up to 15 % slower with GCC 12. */
ALWAYS_INLINE void store_tile(const int rows, real *to, long stride, int first, vector sum[][VECTORS])
{
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            if (!first)
                sum[r][v] += load(to + r * stride + v * LANES);
            store(to + r * stride + v * LANES, sum[r][v]);
        }
}

#endif

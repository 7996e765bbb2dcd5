/* Register tiles: the sums that one processor core keeps in registers.
 *
 * All convolution kernels are sums of outer products: a column of `rows` scalars times a row of BLOCK = VECTORS * LANES
 * elements, accumulated in a tile of rows x VECTORS vectors (micro_kernel.h).  A tile is fast if it
 *   - fits: accumulators + VECTORS + one broadcast <= number of registers; otherwise the compiler spills;
 *   - hides latency: at least 8 accumulators if two multiply-adds of latency 4 start per cycle;
 *   - loads little: rows + VECTORS loads per rows * VECTORS multiply-adds.
 *
 *   processor    registers   floats  FORWARD_ROWS x VECTORS    GRADIENT_ROWS x VECTORS
 *   AVX-512      32 of 16    16      12 x 2 = 24               8 x 2 = 16 (one pointer per row)
 *   AVX2 + FMA   16 of 8     8       6 x 2 = 12                6 x 2 = 12
 *   NEON         32 of 4     4       4 x 4 = 16                5 x 4 = 20 (GCC keeps each broadcast in a register)
 *   portable     16 of 4     4       4 x 2 = 8                 4 x 2 = 8 (a product also needs a register)
 *
 * The tiles of channel_vectors.h are 1 to ELEMENTS rows; their scalars are adjacent in memory.
 *
 * DEPTH is the maximum number of terms that one pass of a forward tile sums.  A pass reads DEPTH * BLOCK floats of
 * images, which stay in half of a 32 KiB L1 cache.
 *
 * Select a tile with -DTILE_AVX512, -DTILE_AVX2, -DTILE_NEON or -DTILE_PORTABLE; the default depends on the compiler's
 * target.
 */
#ifndef TILES_H
#define TILES_H

#include "common.h"

#if !defined(TILE_AVX512) && !defined(TILE_AVX2) && !defined(TILE_NEON) && !defined(TILE_PORTABLE)
#if defined(__AVX512F__)
#define TILE_AVX512
#elif defined(__AVX2__) && defined(__FMA__)
#define TILE_AVX2
#elif defined(__ARM_NEON)
#define TILE_NEON
#else
#define TILE_PORTABLE
#endif
#endif

#if defined(TILE_AVX512)
enum { LANES = 64 / sizeof(real), VECTORS = 2, FORWARD_ROWS = 12, GRADIENT_ROWS = 8, ELEMENTS = 14, DEPTH = 192 };
#elif defined(TILE_AVX2)
enum { LANES = 32 / sizeof(real), VECTORS = 2, FORWARD_ROWS = 6, GRADIENT_ROWS = 6, ELEMENTS = 6, DEPTH = 256 };
#elif defined(TILE_NEON)
enum { LANES = 16 / sizeof(real), VECTORS = 4, FORWARD_ROWS = 4, GRADIENT_ROWS = 5, ELEMENTS = 4, DEPTH = 256 };
#else
enum { LANES = 16 / sizeof(real), VECTORS = 2, FORWARD_ROWS = 4, GRADIENT_ROWS = 4, ELEMENTS = 4, DEPTH = 512 };
#endif

enum { BLOCK = VECTORS * LANES };    /* elements of one row of a tile: images (forward) or output channels (gradient) */
enum { SMALL_ROWS = 4 };             /* forward tile for the remainder of FORWARD_ROWS */

typedef real vector __attribute__((vector_size(LANES * sizeof(real)), aligned(sizeof(real)), may_alias));

#endif

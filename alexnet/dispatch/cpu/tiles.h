/* Register tiles: how many sums one processor core keeps in registers at a time.
 *
 * Both convolution kernels are sums of outer products: a column of `rows` broadcast numbers times a line of
 * VECTORS vectors of LANES floats, added to rows x VECTORS vector accumulators.  A tile is fast when it
 *   - leaves room: accumulators + VECTORS + one broadcast <= the registers, or the compiler spills them;
 *   - hides the latency: at least 8 accumulators where two multiply-adds of latency 4 start in each cycle;
 *   - loads little: rows + VECTORS loads for rows * VECTORS multiply-adds.
 *
 *   processor    registers   LANES   FORWARD_ROWS x VECTORS    GRADIENT_ROWS x VECTORS
 *   AVX-512      32 of 16    16      12 x 2 = 24               8 x 2 = 16 (a pointer for each row)
 *   AVX2 + FMA   16 of 8     8       6 x 2 = 12                6 x 2 = 12
 *   NEON         32 of 4     4       4 x 4 = 16                5 x 4 = 20 (GCC keeps each broadcast in a register)
 *   portable     16 of 4     4       4 x 2 = 8                 4 x 2 = 8 (a product needs a register, too)
 *
 * DEPTH bounds the terms summed in one pass of a forward tile, so that what they read of one line of images,
 * DEPTH * VECTORS * LANES floats, stays in half of a 32 KiB first-level cache.
 *
 * Choose with -DTILE_AVX512, -DTILE_AVX2, -DTILE_NEON or -DTILE_PORTABLE; without one the compiler's target decides.
 */
#ifndef TILES_H
#define TILES_H

#include <stdint.h>

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
enum { LANES = 16, VECTORS = 2, FORWARD_ROWS = 12, GRADIENT_ROWS = 8, DEPTH = 192 };
#elif defined(TILE_AVX2)
enum { LANES = 8, VECTORS = 2, FORWARD_ROWS = 6, GRADIENT_ROWS = 6, DEPTH = 256 };
#elif defined(TILE_NEON)
enum { LANES = 4, VECTORS = 4, FORWARD_ROWS = 4, GRADIENT_ROWS = 5, DEPTH = 256 };
#else
enum { LANES = 4, VECTORS = 2, FORWARD_ROWS = 4, GRADIENT_ROWS = 4, DEPTH = 512 };
#endif

enum { LINE = VECTORS * LANES };     /* floats of one line: images (forward) or output channels (filter gradient) */
enum { SMALL_ROWS = 4 };             /* the forward tile for what FORWARD_ROWS does not divide */

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* A convolution's shapes as they come from Python; the filters are (c / groups, rows, columns, o). */
typedef struct { int64_t c, height, width, b, o, rows, columns, stride, pad, groups; } Layer;

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_max_threads(void) { return 1; }
static inline int omp_get_thread_num(void) { return 0; }
#endif

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")          /* loops over a tile, which then lives in registers */
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NEVER_INLINE static __attribute__((noinline))      /* a tile needs all registers to itself */

static inline long least(long a, long b) { return a < b ? a : b; }
static inline long most(long a, long b) { return a > b ? a : b; }
static inline long parts(long n, long size) { return (n + size - 1) / size; }     /* pieces of at most `size` */

/* A workspace is handed out in pieces that start on a cache line. */
enum { CACHE_LINE = 64 };

static inline void *piece(char **free, long bytes)
{
    char *start = *free;
    *free = start + parts(bytes, CACHE_LINE) * CACHE_LINE;
    return start;
}

static inline char *aligned(char *workspace)
{
    return workspace + (CACHE_LINE - (unsigned long)workspace % CACHE_LINE) % CACHE_LINE;
}

#endif

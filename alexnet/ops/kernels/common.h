/* Shared by the kernels: the type of the elements, OpenMP or its replacement for one thread, attributes, and integer
 * arithmetic. */
#ifndef COMMON_H
#define COMMON_H

#ifndef REAL
#define REAL float             /* or double */
#endif
typedef REAL real;

#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_max_threads(void) { return 1; }
static inline int omp_get_thread_num(void) { return 0; }
#endif

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define SHUFFLE(lanes, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)       /* lanes: vector of integers */
#else
#define UNROLL _Pragma("GCC unroll 16")                    /* for loops over an array that is kept in registers */
#define SHUFFLE(lanes, a, b, ...) __builtin_shuffle(a, b, (lanes){ __VA_ARGS__ })
#endif
/* Transpose four rows, vectors of four elements: twice, interleave the first two with the last two.  `lanes` is
 * the vector of integers of the same width. */
#define TRANSPOSE_FOUR(type, lanes, rows)                                                                              \
    do {                                                                                                               \
        UNROLL                                                                                                         \
        for (long round = 0; round < 2; round++) {                                                                     \
            type shuffled[4];                                                                                          \
            UNROLL                                                                                                     \
            for (long i = 0; i < 2; i++) {                                                                             \
                shuffled[2 * i] = SHUFFLE(lanes, rows[i], rows[i + 2], 0, 4, 1, 5);                                    \
                shuffled[2 * i + 1] = SHUFFLE(lanes, rows[i], rows[i + 2], 2, 6, 3, 7);                                \
            }                                                                                                          \
            UNROLL                                                                                                     \
            for (long i = 0; i < 4; i++)                                                                               \
                rows[i] = shuffled[i];                                                                                 \
        }                                                                                                              \
    } while (0)
/* Transpose a square of four by four elements in memory, from rows `step` apart to rows `to_step` apart. */
#define TRANSPOSE_SQUARE(type, lanes, from, step, to, to_step)                                                         \
    do {                                                                                                               \
        type square[4];                                                                                                \
        UNROLL                                                                                                         \
        for (long i = 0; i < 4; i++)                                                                                   \
            square[i] = *(const type *)((from) + i * (step));                                                          \
        TRANSPOSE_FOUR(type, lanes, square);                                                                           \
        UNROLL                                                                                                         \
        for (long i = 0; i < 4; i++)                                                                                   \
            *(type *)((to) + i * (to_step)) = square[i];                                                               \
    } while (0)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NEVER_INLINE static __attribute__((noinline))      /* for an inner loop that needs all registers */

enum { CACHE_LINE = 64 };                                  /* bytes */

static inline long min(long a, long b) { return a < b ? a : b; }
static inline long max(long a, long b) { return a > b ? a : b; }
static inline long ceil_div(long a, long b) { return (a + b - 1) / b; }

/* Copy n elements; usual numbers of images are constants, for which the compiler inlines the copy. */
ALWAYS_INLINE void copy_few(real *to, const real *from, long n)
{
    if (n == 1)
        *to = *from;
    else if (n == 2)
        memcpy(to, from, sizeof(real[2]));
    else if (n == 4)
        memcpy(to, from, sizeof(real[4]));
    else if (n == 8)
        memcpy(to, from, sizeof(real[8]));
    else if (n == 16)
        memcpy(to, from, sizeof(real[16]));
    else if (n == 32)
        memcpy(to, from, sizeof(real[32]));
    else
        memcpy(to, from, n * sizeof(real));
}

#endif

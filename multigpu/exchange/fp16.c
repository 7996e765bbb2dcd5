/* Conversion between float32 and float16 (IEEE 754 binary16).
 *
 * Rounding is to nearest, ties to even. Subnormals, infinities and NaNs are preserved.
 *
 * Each function makes one pass over its arrays, eight elements at a time. It uses the F16C instructions if the
 * processor has them, otherwise integer arithmetic. Both give the same bits, except for the payload of a NaN. The
 * arrays of a call are a piece of some hundred thousand elements, which stays in the cache until the next call.
 */
#include <stdint.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

enum { BLOCK = 8 };
typedef uint16_t half;
typedef float floats __attribute__((vector_size(4 * BLOCK)));
typedef uint16_t halves __attribute__((vector_size(2 * BLOCK)));

static inline half narrowed(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000)                       /* NaN: return a quiet NaN */
        return sign | 0x7e00 | (size >> 13 & 0x3ff);
    if (size >= 0x477ff000)                      /* 65520 and above: infinity */
        return sign | 0x7c00;
    if (size < 0x38800000) {                     /* below 2^-14: subnormal; floats in [0.5, 1) have the same ulp, 2^-24 */
        float shifted;
        memcpy(&shifted, &size, 4);
        shifted += 0.5f;
        memcpy(&size, &shifted, 4);
        return sign | (size - 0x3f000000);
    }
    return sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}

static inline float widened(half h)
{
    uint32_t sign = (uint32_t) (h & 0x8000) << 16, size = h & 0x7fff, bits;
    if (size < 0x0400) {                         /* subnormal: a multiple of 2^-24 */
        float x = (float) size * 0x1p-24f;
        memcpy(&bits, &x, 4);
    } else if (size < 0x7c00)
        bits = (size << 13) + 0x38000000;
    else
        bits = 0x7f800000 | (size & 0x3ff) << 13 | (size > 0x7c00 ? 0x400000 : 0);
    bits |= sign;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline void narrow_block(half *to, floats from)
{
#ifdef __F16C__
    _mm_storeu_si128((__m128i *) to, _mm256_cvtps_ph((__m256) from, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < BLOCK; i++)
        to[i] = narrowed(from[i]);
#endif
}

static inline floats widen_block(const half *from)
{
#ifdef __F16C__
    return (floats) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) from));
#else
    floats to;
    for (int i = 0; i < BLOCK; i++)
        to[i] = widened(from[i]);
    return to;
#endif
}

static inline floats load(const float *from)
{
    floats block;
    memcpy(&block, from, sizeof block);
    return block;
}

static inline void store(float *to, floats block)
{
    memcpy(to, &block, sizeof block);
}

/* A mask with all bits set in each lane that holds an infinity, 0 elsewhere. */
static inline halves infinite_block(const half *from)
{
    halves block;
    memcpy(&block, from, sizeof block);
    return (halves) ((block & 0x7fff) == 0x7c00);
}

static inline int any_of(halves found)
{
    uint64_t words[2];
    memcpy(words, &found, sizeof words);
    return (words[0] | words[1]) != 0;
}

/* narrow() and narrow_and_keep() return whether their output contains an infinity. */
int narrow(half *to, const float *from, long n)
{
    long i = 0;
    halves found = {0};
    for (; i + BLOCK <= n; i += BLOCK) {
        narrow_block(to + i, load(from + i));
        found |= infinite_block(to + i);
    }
    for (; i < n; i++) {
        to[i] = narrowed(from[i]);
        found[0] |= (to[i] & 0x7fff) == 0x7c00;
    }
    return any_of(found);
}

/* Error feedback: add the accumulated rounding error, then store the new one: lost = from + lost - to. */
int narrow_and_keep(half *to, const float *from, float *lost, long n)
{
    long i = 0;
    halves found = {0};
    for (; i + BLOCK <= n; i += BLOCK) {
        floats wanted = load(from + i) + load(lost + i);
        narrow_block(to + i, wanted);
        store(lost + i, wanted - widen_block(to + i));
        found |= infinite_block(to + i);
    }
    for (; i < n; i++) {
        float wanted = from[i] + lost[i];
        to[i] = narrowed(wanted);
        lost[i] = wanted - widened(to[i]);
        found[0] |= (to[i] & 0x7fff) == 0x7c00;
    }
    return any_of(found);
}

void widen(float *to, const half *from, long n)
{
    long i = 0;
    for (; i + BLOCK <= n; i += BLOCK)
        store(to + i, widen_block(from + i));
    for (; i < n; i++)
        to[i] = widened(from[i]);
}

void add(float *to, const half *from, long n)
{
    long i = 0;
    for (; i + BLOCK <= n; i += BLOCK)
        store(to + i, load(to + i) + widen_block(from + i));
    for (; i < n; i++)
        to[i] += widened(from[i]);
}

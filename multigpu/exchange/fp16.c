/* Conversion between float32 and float16 (IEEE 754 binary16).
 *
 * Rounding is to nearest, ties to even. Subnormals, infinities and NaNs are preserved.
 *
 * Each function makes one pass over its arrays, eight elements at a time. It uses the F16C instructions if the
 * processor has them, otherwise integer arithmetic. Both give the same bits, except for the payload of a NaN. A
 * call converts some hundred thousand elements, which stay in the cache until the next call.
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

static inline half half_from_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)                  /* NaN: return a quiet NaN */
        return sign | 0x7e00 | (magnitude >> 13 & 0x3ff);
    if (magnitude >= 0x477ff000)                 /* 65520 and above: infinity */
        return sign | 0x7c00;
    if (magnitude < 0x38800000) {                /* below 2^-14: subnormal, a multiple of 2^-24, the ulp of 0.5 */
        float shifted;
        memcpy(&shifted, &magnitude, 4);
        shifted += 0.5f;
        memcpy(&magnitude, &shifted, 4);
        return sign | (magnitude - 0x3f000000);
    }
    return sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

static inline float float_from_half(half h)
{
    uint32_t sign = (uint32_t) (h & 0x8000) << 16, magnitude = h & 0x7fff, bits;
    if (magnitude < 0x0400) {                    /* subnormal: a multiple of 2^-24 */
        float x = (float) magnitude * 0x1p-24f;
        memcpy(&bits, &x, 4);
    } else if (magnitude < 0x7c00)
        bits = (magnitude << 13) + 0x38000000;
    else
        bits = 0x7f800000 | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000 : 0);
    bits |= sign;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline void halves_from_floats(half *to, floats from)
{
#ifdef __F16C__
    _mm_storeu_si128((__m128i *) to, _mm256_cvtps_ph((__m256) from, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < BLOCK; i++)
        to[i] = half_from_float(from[i]);
#endif
}

static inline floats floats_from_halves(const half *from)
{
#ifdef __F16C__
    return (floats) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) from));
#else
    floats to;
    for (int i = 0; i < BLOCK; i++)
        to[i] = float_from_half(from[i]);
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
static inline halves infinite(const half *from)
{
    halves block;
    memcpy(&block, from, sizeof block);
    return (halves) ((block & 0x7fff) == 0x7c00);
}

static inline int any_of(halves mask)
{
    uint64_t words[2];
    memcpy(words, &mask, sizeof words);
    return (words[0] | words[1]) != 0;
}

/* Round to float16; returns whether the output contains an infinity, as narrow_and_keep() does. */
int narrow(half *to, const float *from, long n)
{
    long i = 0;
    halves infinities = { 0 };
    for (; i + BLOCK <= n; i += BLOCK) {
        halves_from_floats(to + i, load(from + i));
        infinities |= infinite(to + i);
    }
    for (; i < n; i++) {
        to[i] = half_from_float(from[i]);
        infinities[0] |= (to[i] & 0x7fff) == 0x7c00;
    }
    return any_of(infinities);
}

/* Round with error feedback: to = float16(from + residual), then residual = from + residual - to. */
int narrow_and_keep(half *to, const float *from, float *residual, long n)
{
    long i = 0;
    halves infinities = { 0 };
    for (; i + BLOCK <= n; i += BLOCK) {
        floats sum = load(from + i) + load(residual + i);
        halves_from_floats(to + i, sum);
        store(residual + i, sum - floats_from_halves(to + i));
        infinities |= infinite(to + i);
    }
    for (; i < n; i++) {
        float sum = from[i] + residual[i];
        to[i] = half_from_float(sum);
        residual[i] = sum - float_from_half(to[i]);
        infinities[0] |= (to[i] & 0x7fff) == 0x7c00;
    }
    return any_of(infinities);
}

/* to = float32(from), exact */
void widen(float *to, const half *from, long n)
{
    long i = 0;
    for (; i + BLOCK <= n; i += BLOCK)
        store(to + i, floats_from_halves(from + i));
    for (; i < n; i++)
        to[i] = float_from_half(from[i]);
}

/* to += float32(from) */
void add(float *to, const half *from, long n)
{
    long i = 0;
    for (; i + BLOCK <= n; i += BLOCK)
        store(to + i, load(to + i) + floats_from_halves(from + i));
    for (; i < n; i++)
        to[i] += float_from_half(from[i]);
}

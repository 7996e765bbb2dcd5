/* Inverted dropout with a counter-based mask: element i is kept if mix(mix(i ^ key) + second_key) >= threshold.
 *
 * mix is lowbias32, as in the NumPy reference.  Elements are independent, so threads and vectors may process them in
 * any order.
 */
#include <stdint.h>
#include "common.h"

static inline uint32_t mix(uint32_t word)
{
    word ^= word >> 16;
    word *= 0x7FEB352Du;
    word ^= word >> 15;
    word *= 0x846CA68Bu;
    return word ^ word >> 16;
}

void dropout(const real *x, real *y, long n, uint32_t key, uint32_t second_key, uint32_t threshold, real scale)
{
    #pragma omp parallel for simd schedule(static)
    for (long i = 0; i < n; i++) {
        const uint32_t word = mix(mix((uint32_t)i ^ key) + second_key);
        y[i] = word >= threshold ? x[i] * scale : 0;
    }
}

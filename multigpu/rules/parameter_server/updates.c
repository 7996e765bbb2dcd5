/* Server updates of rule asgd. updates.py contains the formulas and a bit-identical NumPy implementation.
 *
 * Each function makes one pass over the arrays. For bit-identical results, every product, sum, quotient and root is
 * rounded separately. A multiplication and an addition must not be contracted to one instruction, which rounds once.
 */
#include <math.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

void plain(float *restrict push, float *restrict centre, long n, float scale, long back)
{
#pragma omp simd
    for (long i = 0; i < n; i++) {
        centre[i] += push[i] * scale;
        if (back)
            push[i] = centre[i];
    }
}

void adagrad(float *restrict push, float *restrict centre, float *restrict squares, long n, float scale,
             float epsilon, long back)
{
#pragma omp simd
    for (long i = 0; i < n; i++) {
        const float d = push[i];
        squares[i] += d * d;
        centre[i] += d / (sqrtf(squares[i]) + epsilon) * scale;
        if (back)
            push[i] = centre[i];
    }
}

void adadelta(float *restrict push, float *restrict centre, float *restrict squares, float *restrict steps, long n,
              float scale, float rho, float rest, float epsilon, long back)
{
#pragma omp simd
    for (long i = 0; i < n; i++) {
        squares[i] = squares[i] * rho + push[i] * push[i] * rest;
        const float d = push[i] * sqrtf((steps[i] + epsilon) / (squares[i] + epsilon));
        steps[i] = steps[i] * rho + d * d * rest;
        centre[i] += d * scale;
        if (back)
            push[i] = centre[i];
    }
}

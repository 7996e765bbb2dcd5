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

void plain(float *restrict push, float *restrict center, long n, float scale, long write_back)
{
    #pragma omp simd
    for (long i = 0; i < n; i++) {
        center[i] += push[i] * scale;
        if (write_back)
            push[i] = center[i];
    }
}

void adagrad(float *restrict push, float *restrict center, float *restrict squares, long n, float scale,
             float epsilon, long write_back)
{
    #pragma omp simd
    for (long i = 0; i < n; i++) {
        const float d = push[i];
        squares[i] += d * d;
        center[i] += d / (sqrtf(squares[i]) + epsilon) * scale;
        if (write_back)
            push[i] = center[i];
    }
}

void adadelta(float *restrict push, float *restrict center, float *restrict squares, float *restrict steps, long n,
              float scale, float rho, float one_minus_rho, float epsilon, long write_back)
{
    #pragma omp simd
    for (long i = 0; i < n; i++) {
        squares[i] = squares[i] * rho + push[i] * push[i] * one_minus_rho;
        const float d = push[i] * sqrtf((steps[i] + epsilon) / (squares[i] + epsilon));
        steps[i] = steps[i] * rho + d * d * one_minus_rho;
        center[i] += d * scale;
        if (write_back)
            push[i] = center[i];
    }
}

void nesterov(float *restrict push, float *restrict center, float *restrict velocity, long n, float scale,
              float momentum, long write_back)
{
    #pragma omp simd
    for (long i = 0; i < n; i++) {
        const float d = push[i] * scale;
        velocity[i] = velocity[i] * momentum + d;
        center[i] += velocity[i] * momentum + d;
        if (write_back)
            push[i] = center[i];
    }
}

void delayed_nesterov(float *restrict push, float *restrict center, float *restrict velocity, float *restrict buffer,
                      long n, float scale, float momentum, float weight, long last, long write_back)
{
    #pragma omp simd
    for (long i = 0; i < n; i++) {
        const float d = push[i] * scale;
        buffer[i] += d;
        if (last) {
            velocity[i] = velocity[i] * momentum + buffer[i];
            buffer[i] = 0;
        }
        center[i] += velocity[i] * weight + d;
        if (write_back)
            push[i] = center[i];
    }
}

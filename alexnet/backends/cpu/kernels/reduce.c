/* Row sums of a matrix: x (rows, n) -> y (rows).
 *
 * Each row is split into blocks of BLOCK elements.  A block is summed in LANES double accumulators, and the block sums
 * are added in order.  Threads process different blocks, which depend only on n, so the result does not depend on the
 * number of threads.
 */
#include <stdlib.h>

enum { LANES = 16, BLOCK = 16384 };

static double block_sum(const float *x, long n)
{
    double lanes[LANES] = { 0 };
    double sum = 0;
    long i = 0;
    for (; i + LANES <= n; i += LANES)
        for (long l = 0; l < LANES; l++)
            lanes[l] += x[i + l];
    for (; i < n; i++)
        lanes[0] += x[i];
    for (long l = 0; l < LANES; l++)
        sum += lanes[l];
    return sum;
}

/* Returns 0, or 1 if the block sums cannot be allocated. */
int row_sums(const float *x, float *y, long rows, long n)
{
    const long blocks = (n + BLOCK - 1) / BLOCK;
    double *sums = malloc(sizeof(double) * (rows * blocks + 1));
    if (!sums)
        return 1;
    #pragma omp parallel for collapse(2) schedule(static)
    for (long r = 0; r < rows; r++)
        for (long k = 0; k < blocks; k++)
            sums[r * blocks + k] = block_sum(x + r * n + k * BLOCK, k + 1 < blocks ? BLOCK : n - k * BLOCK);
    for (long r = 0; r < rows; r++) {
        double sum = 0;
        for (long k = 0; k < blocks; k++)
            sum += sums[r * blocks + k];
        y[r] = (float)sum;
    }
    free(sums);
    return 0;
}

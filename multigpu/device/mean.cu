/* The mean of up to 16 buffers of float32, element by element: CudaDevice.mean().
 *
 * mean.ptx beside this file is made from it, so that no CUDA compiler is needed to run it; the driver compiles that
 * for the GPU at hand.  After a change:
 *
 *     nvcc -ptx -arch=compute_75 -o mean.ptx mean.cu
 *
 * and set by hand  .version 4.3  and  .target sm_50 : it uses nothing newer, and so runs from Maxwell on.
 *
 * Each addition and the division round to nearest, in the order of the sources: the bits are those of the host.
 * destination may be one of the sources, since each element is read before it is written, by one thread.
 *
 * Parameters as they lie in memory, 152 bytes with 4 of padding at the end:
 *       0  destination      pointer to count floats
 *       8  sources          16 pointers, of which n are looked at
 *     136  count            unsigned 64 bits: floats in each
 *     144  n                unsigned 32 bits: sources, 1 to 16
 */

struct Sources {
    const float *pointer[16];
};

extern "C" __global__ void mean(float *destination, Sources sources, unsigned long long count, unsigned int n)
{
    unsigned long long step = (unsigned long long) gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long) blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        float sum = sources.pointer[0][i];
#pragma unroll
        for (unsigned int k = 1; k < 16; k++)    /* unrolled, the pointers stay where the launch put them */
            if (k < n)
                sum = __fadd_rn(sum, sources.pointer[k][i]);
        destination[i] = __fdiv_rn(sum, (float) n);
    }
}

/* Elementwise mean of up to 16 float32 buffers: CudaDevice.mean().
 *
 * mean.ptx beside this file is generated from it, so that no CUDA compiler is needed at run time; the driver compiles
 * the PTX code for the installed GPU.  After a change:
 *
 *     nvcc -ptx -arch=compute_75 -o mean.ptx mean.cu
 *
 * Then edit the PTX by hand to  .version 4.3  and  .target sm_50 : it uses no newer feature and runs from Maxwell on.
 *
 * Each addition and the division round to nearest, in the order of the sources, so the result is bit-identical to the
 * host's.  destination may be one of the sources, because one thread reads each element before it writes it.
 *
 * Parameters as laid out in memory, 152 bytes with 4 of padding at the end:
 *       0  destination      pointer to count floats
 *       8  sources          16 pointers, of which n are used
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
        for (unsigned int k = 1; k < 16; k++)    /* unrolled, the pointers stay in the parameter space */
            if (k < n)
                sum = __fadd_rn(sum, sources.pointer[k][i]);
        destination[i] = __fdiv_rn(sum, (float) n);
    }
}

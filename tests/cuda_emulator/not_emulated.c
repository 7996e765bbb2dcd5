/* Functions that PyCUDA links against and that are not emulated: arrays, textures, surfaces, run-time linking, managed
 * memory, 2-D and 3-D copies, inter-process events, and the launch functions from before CUDA 4.
 *
 * Each returns CUDA_ERROR_NOT_SUPPORTED and prints its name if EMUCUDA_VERBOSE=1.  This file must not include cuda.h,
 * because every function is defined without parameters.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int not_emulated(const char *name)
{
    const char *verbose = getenv("EMUCUDA_VERBOSE");
    if (verbose && strcmp(verbose, "1") == 0)
        fprintf(stderr, "emucuda: %s is not emulated\n", name);
    return 801;                                  /* CUDA_ERROR_NOT_SUPPORTED */
}

#define NOT_EMULATED(name)                                                                                             \
    __attribute__((visibility("default"))) int name(void);                                                             \
    int name(void)                                                                                                     \
    {                                                                                                                  \
        return not_emulated(#name);                                                                                    \
    }

NOT_EMULATED(cuArray3DCreate_v2)
NOT_EMULATED(cuArray3DGetDescriptor_v2)
NOT_EMULATED(cuArrayCreate_v2)
NOT_EMULATED(cuArrayDestroy)
NOT_EMULATED(cuArrayGetDescriptor_v2)
NOT_EMULATED(cuCtxGetCacheConfig)
NOT_EMULATED(cuCtxGetLimit)
NOT_EMULATED(cuCtxGetSharedMemConfig)
NOT_EMULATED(cuCtxSetCacheConfig)
NOT_EMULATED(cuCtxSetLimit)
NOT_EMULATED(cuCtxSetSharedMemConfig)
NOT_EMULATED(cuFuncSetAttribute)
NOT_EMULATED(cuFuncSetCacheConfig)
NOT_EMULATED(cuFuncSetSharedSize)
NOT_EMULATED(cuIpcGetEventHandle)
NOT_EMULATED(cuIpcOpenEventHandle)
NOT_EMULATED(cuLaunch)
NOT_EMULATED(cuLaunchGrid)
NOT_EMULATED(cuLaunchGridAsync)
NOT_EMULATED(cuLinkAddData_v2)
NOT_EMULATED(cuLinkAddFile_v2)
NOT_EMULATED(cuLinkComplete)
NOT_EMULATED(cuLinkCreate_v2)
NOT_EMULATED(cuLinkDestroy)
NOT_EMULATED(cuMemAllocManaged)
NOT_EMULATED(cuMemAllocPitch_v2)
NOT_EMULATED(cuMemHostGetDevicePointer_v2)
NOT_EMULATED(cuMemcpy2DAsync_v2)
NOT_EMULATED(cuMemcpy2DUnaligned_v2)
NOT_EMULATED(cuMemcpy2D_v2)
NOT_EMULATED(cuMemcpy3DAsync_v2)
NOT_EMULATED(cuMemcpy3DPeer)
NOT_EMULATED(cuMemcpy3DPeerAsync)
NOT_EMULATED(cuMemcpy3D_v2)
NOT_EMULATED(cuMemcpyAtoA_v2)
NOT_EMULATED(cuMemcpyAtoD_v2)
NOT_EMULATED(cuMemcpyAtoH_v2)
NOT_EMULATED(cuMemcpyDtoA_v2)
NOT_EMULATED(cuMemcpyHtoA_v2)
NOT_EMULATED(cuMemsetD2D16Async)
NOT_EMULATED(cuMemsetD2D16_v2)
NOT_EMULATED(cuMemsetD2D32Async)
NOT_EMULATED(cuMemsetD2D32_v2)
NOT_EMULATED(cuMemsetD2D8Async)
NOT_EMULATED(cuMemsetD2D8_v2)
NOT_EMULATED(cuModuleGetGlobal_v2)
NOT_EMULATED(cuModuleGetSurfRef)
NOT_EMULATED(cuModuleGetTexRef)
NOT_EMULATED(cuModuleLoad)
NOT_EMULATED(cuParamSetSize)
NOT_EMULATED(cuParamSetTexRef)
NOT_EMULATED(cuParamSetf)
NOT_EMULATED(cuParamSeti)
NOT_EMULATED(cuParamSetv)
NOT_EMULATED(cuProfilerInitialize)
NOT_EMULATED(cuProfilerStart)
NOT_EMULATED(cuProfilerStop)
NOT_EMULATED(cuStreamAttachMemAsync)
NOT_EMULATED(cuSurfRefGetArray)
NOT_EMULATED(cuSurfRefSetArray)
NOT_EMULATED(cuTexRefCreate)
NOT_EMULATED(cuTexRefDestroy)
NOT_EMULATED(cuTexRefGetAddressMode)
NOT_EMULATED(cuTexRefGetAddress_v2)
NOT_EMULATED(cuTexRefGetArray)
NOT_EMULATED(cuTexRefGetFilterMode)
NOT_EMULATED(cuTexRefGetFlags)
NOT_EMULATED(cuTexRefGetFormat)
NOT_EMULATED(cuTexRefSetAddress2D_v3)
NOT_EMULATED(cuTexRefSetAddressMode)
NOT_EMULATED(cuTexRefSetAddress_v2)
NOT_EMULATED(cuTexRefSetArray)
NOT_EMULATED(cuTexRefSetFilterMode)
NOT_EMULATED(cuTexRefSetFlags)
NOT_EMULATED(cuTexRefSetFormat)

/* Copies and fills, synchronous and deferred.
 *
 *   host to device, pageable       waits for the stream, then stages the bytes; the copy to the device is deferred
 *   host to device, page-locked    complete on return; Async: deferred, reads the memory at execution time
 *   device to host                 complete on return; Async to page-locked memory: deferred
 *   device to device, peer, fill   deferred
 *
 * Async copies of pageable memory "might be synchronous".  To the device, the bytes are staged immediately, without
 * waiting for the stream, and the copy is deferred.  From the device, the copy is complete on return.
 *
 * Source: CUDA Driver API, "API synchronization behavior".
 */
#define _GNU_SOURCE
#include "driver.h"

#include <stdlib.h>
#include <string.h>

static void run_copy(struct operation *operation)
{
    memmove(operation->destination, operation->source, operation->size);
}

static void run_fill(struct operation *operation)
{
    for (size_t offset = 0; offset < operation->size; offset += operation->width)
        memcpy(operation->destination + offset, &operation->value, operation->width);      /* little-endian */
}

/* Get the host address of the bytes at a device pointer; an error if they are not all inside one allocation. */
static CUresult bytes_at(CUdeviceptr pointer, size_t size, char **bytes)
{
    struct block *block = find_block(pointer, size);
    if (!block)
        return CUDA_ERROR_INVALID_VALUE;
    *bytes = block->bytes + (pointer - block->base);
    return CUDA_SUCCESS;
}

static CUresult check_host(const void *pointer, size_t size)
{
    return pointer && !is_device_memory(pointer, size) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* ---- host to device ---- */

static CUresult upload(CUdeviceptr destination, const void *source, size_t size, CUstream stream, bool async)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    TRY(check_stream(context, &stream));
    if (!size)
        return CUDA_SUCCESS;
    struct operation copy = {.run = run_copy, .size = size, .contexts = {context}, .stream = stream};
    if (!async)
        wait_for_stream(context, stream);
    TRY(check_host(source, size));
    TRY(bytes_at(destination, size, &copy.destination));
    if (is_page_locked(source, size))
        copy.source = source;
    else {
        if (!(copy.owned = malloc(size)))
            return CUDA_ERROR_OUT_OF_MEMORY;
        copy.source = memcpy(copy.owned, source, size);
    }
    enqueue(copy);
    if (!async && !copy.owned)
        wait_for_stream(context, stream);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoD(CUdeviceptr destination, const void *source, size_t size)
{
    return upload(destination, source, size, NULL, false);
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr destination, const void *source, size_t size, CUstream stream)
{
    return upload(destination, source, size, stream, true);
}

/* ---- device to host ---- */

static CUresult download(void *destination, CUdeviceptr source, size_t size, CUstream stream, bool async)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    TRY(check_stream(context, &stream));
    if (!size)
        return CUDA_SUCCESS;
    char *bytes;
    TRY(check_host(destination, size));
    TRY(bytes_at(source, size, &bytes));
    enqueue((struct operation){.run = run_copy, .destination = destination, .source = bytes, .size = size,
                               .contexts = {context}, .stream = stream});
    if (!async || !is_page_locked(destination, size))
        wait_for_stream(context, stream);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoH(void *destination, CUdeviceptr source, size_t size)
{
    return download(destination, source, size, NULL, false);
}

CUresult cuMemcpyDtoHAsync(void *destination, CUdeviceptr source, size_t size, CUstream stream)
{
    return download(destination, source, size, stream, true);
}

/* ---- device to device ---- */

static CUresult copy(CUdeviceptr destination, CUdeviceptr source, size_t size, CUstream stream,
                     CUcontext destination_context, CUcontext source_context)
{
    CUcontext context;
    TRY(current_context(&context));
    TRY(check_stream(context, &stream));
    if (!size)
        return CUDA_SUCCESS;
    struct operation copy = {.run = run_copy, .size = size, .stream = stream,
                             .contexts = {context, destination_context, source_context}};
    char *bytes;
    TRY(bytes_at(destination, size, &copy.destination));
    TRY(bytes_at(source, size, &bytes));
    copy.source = bytes;
    enqueue(copy);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoD(CUdeviceptr destination, CUdeviceptr source, size_t size)
{
    LOCKED;
    return copy(destination, source, size, NULL, NULL, NULL);
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr destination, CUdeviceptr source, size_t size, CUstream stream)
{
    LOCKED;
    return copy(destination, source, size, stream, NULL, NULL);
}

/* Ordered with all operations in the default streams of the three contexts. */
CUresult cuMemcpyPeer(CUdeviceptr destination, CUcontext destination_context, CUdeviceptr source,
                      CUcontext source_context, size_t size)
{
    LOCKED;
    TRY(check_context(destination_context));
    TRY(check_context(source_context));
    return copy(destination, source, size, NULL, destination_context, source_context);
}

/* Ordered only with operations of the given stream. */
CUresult cuMemcpyPeerAsync(CUdeviceptr destination, CUcontext destination_context, CUdeviceptr source,
                           CUcontext source_context, size_t size, CUstream stream)
{
    LOCKED;
    TRY(check_context(destination_context));
    TRY(check_context(source_context));
    return copy(destination, source, size, stream, NULL, NULL);
}

/* ---- fills ---- */

static CUresult fill(CUdeviceptr destination, uint32_t value, size_t width, size_t count, CUstream stream)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    TRY(check_stream(context, &stream));
    if (!count)
        return CUDA_SUCCESS;
    if (count > settings.memory || destination % width)
        return CUDA_ERROR_INVALID_VALUE;
    struct operation fill = {.run = run_fill, .size = count * width, .width = width, .value = value,
                             .contexts = {context}, .stream = stream};
    TRY(bytes_at(destination, fill.size, &fill.destination));
    enqueue(fill);
    return CUDA_SUCCESS;
}

CUresult cuMemsetD8(CUdeviceptr destination, unsigned char value, size_t count)
{
    return fill(destination, value, 1, count, NULL);
}

CUresult cuMemsetD16(CUdeviceptr destination, unsigned short value, size_t count)
{
    return fill(destination, value, 2, count, NULL);
}

CUresult cuMemsetD32(CUdeviceptr destination, unsigned value, size_t count)
{
    return fill(destination, value, 4, count, NULL);
}

CUresult cuMemsetD8Async(CUdeviceptr destination, unsigned char value, size_t count, CUstream stream)
{
    return fill(destination, value, 1, count, stream);
}

CUresult cuMemsetD16Async(CUdeviceptr destination, unsigned short value, size_t count, CUstream stream)
{
    return fill(destination, value, 2, count, stream);
}

CUresult cuMemsetD32Async(CUdeviceptr destination, unsigned value, size_t count, CUstream stream)
{
    return fill(destination, value, 4, count, stream);
}

/* Devices, contexts, settings, and the registry of objects that handles point to. */
#define _GNU_SOURCE
#include "driver.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

pthread_mutex_t the_lock = PTHREAD_MUTEX_INITIALIZER;
struct settings settings;

static pid_t initialised_by;                     /* process id; 0 before cuInit. CUDA is unusable after a fork. */
static struct object *objects;
static struct CUctx_st *primary[MAX_DEVICES];

/* Context stack of each thread. */
enum { MAX_NESTED_CONTEXTS = 1024 };
static _Thread_local CUcontext stack[MAX_NESTED_CONTEXTS];
static _Thread_local unsigned depth;

/* ---- messages ---- */

static void write_line(const char *format, va_list arguments)
{
    char line[512];                              /* one write, so that lines of several processes do not interleave */
    vsnprintf(line, sizeof line, format, arguments);
    fprintf(stderr, "emucuda: %s\n", line);
}

void log_warning(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write_line(format, arguments);
    va_end(arguments);
}

void fault(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write_line(format, arguments);
    va_end(arguments);
    if (settings.strict)
        abort();
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    static const struct {
        CUresult error;
        const char *text;
    } known[] = {
        {CUDA_SUCCESS, "no error"},
        {CUDA_ERROR_INVALID_VALUE, "invalid argument"},
        {CUDA_ERROR_OUT_OF_MEMORY, "out of memory"},
        {CUDA_ERROR_NOT_INITIALIZED, "initialization error"},
        {CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"},
        {CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"},
        {CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"},
        {CUDA_ERROR_INVALID_CONTEXT, "invalid device context"},
        {CUDA_ERROR_MAP_FAILED, "mapping of buffer object failed"},
        {CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"},
        {CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, "peer access is not supported between these two devices"},
        {CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed"},
        {CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"},
        {CUDA_ERROR_NOT_FOUND, "named symbol not found"},
        {CUDA_ERROR_NOT_READY, "device not ready"},
        {CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
        {CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"},
        {CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "peer access is already enabled"},
        {CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, "peer access has not been enabled"},
        {CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed"},
        {CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part or all of the requested memory range is already mapped"},
        {CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "pointer does not correspond to a registered memory region"},
        {CUDA_ERROR_NOT_SUPPORTED, "operation not supported"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].error == error) {
            *text = known[i].text;
            return CUDA_SUCCESS;
        }
    *text = "unknown error";
    return CUDA_ERROR_INVALID_VALUE;
}

/* ---- objects ---- */

void *new_object(enum kind kind, size_t size)
{
    struct object *object = calloc(1, size);
    if (!object)
        abort();
    *object = (struct object){.kind = kind, .alive = true, .next = objects};
    objects = object;
    return object;
}

bool is_alive(const void *handle, enum kind kind)
{
    for (const struct object *object = objects; object; object = object->next)
        if (object == handle)
            return object->kind == kind && object->alive;
    return false;
}

/* ---- settings ---- */

/* Return the number in variable `name`, or `otherwise` if it is not set; if it is invalid, print a line, return -1. */
static long number_from(const char *name, long otherwise, long most)
{
    const char *text = getenv(name);
    if (!text || !*text)
        return otherwise;
    char *end;
    long number = strtol(text, &end, 10);
    if (*end || number < 0 || number > most) {
        log_warning("%s must be a number from 0 to %ld, got '%s'", name, most, text);
        return -1;
    }
    return number;
}

/* EMUCUDA_PEER: 1 for peer access between all devices, 0 for none, or pairs such as "0-1,2-3". */
static bool read_peers(const char *text)
{
    bool all = !text || !*text || strcmp(text, "1") == 0;
    for (int a = 0; a < MAX_DEVICES; a++)
        for (int b = 0; b < MAX_DEVICES; b++)
            settings.peers[a][b] = all && a != b;
    if (all || strcmp(text, "0") == 0)
        return true;
    for (const char *pair = text; *pair;) {
        int a, b, length;
        if (sscanf(pair, "%d-%d%n", &a, &b, &length) != 2 || a < 0 || b < 0 || a == b || a >= MAX_DEVICES ||
            b >= MAX_DEVICES || (pair[length] && pair[length] != ',')) {
            log_warning("EMUCUDA_PEER must be 0, 1 or pairs of devices such as 0-1,2-3, got '%s'", text);
            return false;
        }
        settings.peers[a][b] = settings.peers[b][a] = true;
        pair += length + (pair[length] == ',');
    }
    return true;
}

static bool read_settings(void)
{
    const char *defer = getenv("EMUCUDA_DEFER"), *machine = getenv("EMUCUDA_MACHINE");
    long mebibytes = number_from("EMUCUDA_MEMORY_MIB", 1024, 1 << 20);
    long ipc = number_from("EMUCUDA_IPC", 1, 1), strict = number_from("EMUCUDA_STRICT", 0, 1);
    settings.devices = number_from("EMUCUDA_DEVICES", 2, MAX_DEVICES);
    settings.delay = WHEN_SYNCHRONISED;
    if (defer && strcmp(defer, "sync") != 0 && (settings.delay = number_from("EMUCUDA_DEFER", 0, 60000)) < 0)
        return false;
    settings.memory = (size_t)mebibytes << 20;
    settings.ipc = ipc;
    settings.strict = strict;
    settings.machine = machine ? machine : "";
    return settings.devices >= 0 && mebibytes >= 0 && ipc >= 0 && strict >= 0 && read_peers(getenv("EMUCUDA_PEER"));
}

/* ---- devices ---- */

CUresult cuInit(unsigned flags)
{
    LOCKED;
    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (!initialised_by) {
        if (!read_settings())
            return CUDA_ERROR_INVALID_VALUE;
        for (int device = 0; device < settings.devices; device++) {
            primary[device] = new_object(CONTEXT, sizeof **primary);
            primary[device]->object.alive = false;
            primary[device]->device = device;
            primary[device]->primary = true;
        }
        initialised_by = getpid();
    }
    if (initialised_by != getpid())
        return CUDA_ERROR_NOT_INITIALIZED;
    return settings.devices ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

static CUresult check_initialised(void)
{
    return initialised_by == getpid() ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

CUresult check_device(CUdevice device)
{
    TRY(check_initialised());
    return device >= 0 && device < settings.devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDriverGetVersion(int *version)
{
    *version = CUDA_VERSION;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count)
{
    LOCKED;
    TRY(check_initialised());
    *count = settings.devices;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    LOCKED;
    TRY(check_device(ordinal));
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
    LOCKED;
    TRY(check_device(device));
    snprintf(name, length, "Emulated device %d", device);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char *id, int length, CUdevice device)
{
    LOCKED;
    TRY(check_device(device));
    snprintf(id, length, "0000:%02X:00.0", device + 1);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetByPCIBusId(CUdevice *device, const char *id)
{
    LOCKED;
    unsigned bus;
    if (sscanf(id, "%*x:%x:", &bus) != 1)
        return CUDA_ERROR_INVALID_VALUE;
    TRY(check_device((int)bus - 1));
    *device = bus - 1;
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device)
{
    LOCKED;
    TRY(check_device(device));
    *bytes = settings.memory;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    LOCKED;
    TRY(check_device(device));
    switch ((int)attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 4; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = 2048; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: *value = 64; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: *value = 2147483647; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: *value = 65535; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: *value = 65535; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 49152; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: *value = 2; break;
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: *value = device + 1; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
    TRY(cuDeviceGetAttribute(major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device));
    return cuDeviceGetAttribute(minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
}

CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer)
{
    LOCKED;
    TRY(check_device(device));
    TRY(check_device(peer));
    *can = settings.peers[device][peer];
    return CUDA_SUCCESS;
}

/* ---- contexts ---- */

CUresult check_context(CUcontext context)
{
    TRY(check_initialised());
    for (const struct object *object = objects; object; object = object->next)
        if (object == (void *)context && object->kind == CONTEXT)
            return object->alive ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
    return CUDA_ERROR_INVALID_CONTEXT;
}

CUresult current_context(CUcontext *context)
{
    TRY(check_initialised());
    if (!depth)
        return CUDA_ERROR_INVALID_CONTEXT;
    *context = stack[depth - 1];
    return check_context(*context);
}

static CUresult push(CUcontext context)
{
    if (depth == MAX_NESTED_CONTEXTS)
        return CUDA_ERROR_OUT_OF_MEMORY;
    stack[depth++] = context;
    return CUDA_SUCCESS;
}

/* Decrement the reference count of the context; at zero, destroy it and free its memory. */
static void release(CUcontext context)
{
    if (--context->uses)
        return;
    wait_for_context(context);
    free_blocks_of(context);
    context->object.alive = false;
    memset(context->reaches, 0, sizeof context->reaches);
    if (context->primary)                        /* retaining it again returns the same handle */
        return;
    if (depth && stack[depth - 1] == context)
        depth--;
}

#if CUDA_VERSION >= 13000
CUresult cuCtxCreate(CUcontext *context, CUctxCreateParams *parameters, unsigned flags, CUdevice device)
{
    if (parameters)
        return CUDA_ERROR_NOT_SUPPORTED;
#else
CUresult cuCtxCreate(CUcontext *context, unsigned flags, CUdevice device)
{
#endif
    LOCKED;
    (void)flags;
    TRY(check_device(device));
    CUcontext new = new_object(CONTEXT, sizeof *new);
    new->device = device;
    new->uses = 1;
    TRY(push(new));
    *context = new;
    return CUDA_SUCCESS;
}

CUresult cuCtxDestroy(CUcontext context)
{
    LOCKED;
    TRY(check_context(context));
    if (context->primary)
        return CUDA_ERROR_INVALID_CONTEXT;
    context->uses = 1;
    release(context);
    return CUDA_SUCCESS;
}

CUresult cuCtxAttach(CUcontext *context, unsigned flags)
{
    LOCKED;
    TRY(current_context(context));
    if (flags || (*context)->primary)
        return CUDA_ERROR_INVALID_VALUE;
    (*context)->uses++;
    return CUDA_SUCCESS;
}

CUresult cuCtxDetach(CUcontext context)
{
    LOCKED;
    CUcontext current;
    TRY(current_context(&current));
    if (context != current || context->primary)
        return CUDA_ERROR_INVALID_CONTEXT;
    release(context);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    LOCKED;
    TRY(check_device(device));
    primary[device]->uses++;
    primary[device]->object.alive = true;
    *context = primary[device];
    return CUDA_SUCCESS;
}

/* Unlike cuCtxDestroy, this does not pop the context from the stack. */
CUresult cuDevicePrimaryCtxRelease(CUdevice device)
{
    LOCKED;
    TRY(check_device(device));
    if (!primary[device]->uses)
        return CUDA_ERROR_INVALID_CONTEXT;
    release(primary[device]);
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context)
{
    LOCKED;
    TRY(check_context(context));
    return push(context);
}

CUresult cuCtxPopCurrent(CUcontext *context)
{
    LOCKED;
    TRY(check_initialised());
    if (!depth)
        return CUDA_ERROR_INVALID_CONTEXT;
    depth--;
    if (context)
        *context = stack[depth];
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context)
{
    LOCKED;
    TRY(check_initialised());
    *context = depth ? stack[depth - 1] : NULL;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context)
{
    LOCKED;
    if (context)
        TRY(check_context(context));
    if (depth)
        depth--;
    return context ? push(context) : CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    *device = context->device;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetApiVersion(CUcontext context, unsigned *version)
{
    LOCKED;
    if (!context)
        TRY(current_context(&context));
    TRY(check_context(context));
    *version = CUDA_VERSION;
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    wait_for_context(context);
    return CUDA_SUCCESS;
}

/* ---- peers ---- */

CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    TRY(check_context(peer));
    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (peer == context)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!settings.peers[context->device][peer->device])
        return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    if (context->reaches[peer->device])
        return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
    context->reaches[peer->device] = true;
    return CUDA_SUCCESS;
}

CUresult cuCtxDisablePeerAccess(CUcontext peer)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    TRY(check_context(peer));
    if (!context->reaches[peer->device])
        return CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
    context->reaches[peer->device] = false;
    return CUDA_SUCCESS;
}

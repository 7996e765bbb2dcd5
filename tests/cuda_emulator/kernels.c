/* Modules and kernels.  The names of a module's kernels and their parameter layout are parsed from its PTX text.  The
 * computation of each kernel is implemented here in C, under the same name.  A launch therefore checks names,
 * parameters, bounds and order, but not the PTX.
 *
 * A launch is checked at its call; its execution is deferred, like that of copies.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_PARAMETERS = 64, MOST_POINTERS = 32, NAME_LENGTH = 128, ALIGNMENT_OF_PARAMETERS = 8 };
enum { MOST_THREADS = 1024, MOST_THREADS_IN_Z = 64, MOST_SHARED_BYTES = 48 << 10 };       /* of one block */

struct parameter {
    size_t offset, size;
};

/* One .entry of a module. */
struct CUfunc_st {
    struct object object;
    CUmodule module;
    CUfunction next;
    char name[NAME_LENGTH];
    const struct kernel *kernel;                 /* NULL: not implemented below */
    unsigned parameters;
    struct parameter parameter[MOST_PARAMETERS];
    size_t size;                                 /* of all parameters, in bytes */
};

struct CUmod_st {
    struct object object;
    CUcontext context;
    CUfunction functions;
};

/* A queued launch: a copy of the parameters, and the host addresses of the pointers among them. */
struct launch {
    CUfunction function;
    CUcontext context;
    char *pointers[MOST_POINTERS];
    char bytes[];
};

/* Implementation of a kernel: `check` is called at the launch, `run` at execution. */
struct kernel {
    const char *name;
    unsigned parameters;
    CUresult (*check)(struct launch *launch);
    void (*run)(struct operation *operation);
};

/* ---- helpers for kernels ---- */

/* Copy parameter `index`, `size` bytes, into `value`. */
static void get(const struct launch *launch, unsigned index, void *value, size_t size)
{
    const struct parameter *parameter = &launch->function->parameter[index];
    memcpy(value, launch->bytes + parameter->offset, size < parameter->size ? size : parameter->size);
}

/* Check that the kernel may access `size` bytes at `pointer`, and set *bytes to their host address. */
static CUresult reach(const struct launch *launch, CUdeviceptr pointer, size_t size, char **bytes)
{
    struct block *block = find_block(pointer, size);
    if (!block || pointer % sizeof(float)) {
        log_warning("kernel %s: no allocation holds %zu bytes at %#llx", launch->function->name, size, pointer);
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    if (block->device != launch->context->device && !block->opened && !launch->context->reaches[block->device]) {
        log_warning("kernel %s: device %d has not enabled peer access to device %d, where %#llx lies", launch->function->name,
             launch->context->device, block->device, pointer);
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    *bytes = block->bytes + (pointer - block->base);
    return CUDA_SUCCESS;
}

/* ---- the kernels ---- */

/* multigpu/device/mean.cu: mean(destination, sources[16] by value, number of floats, number of sources). */
enum { MEAN_DESTINATION, MEAN_SOURCES, MEAN_COUNT, MEAN_NUMBER, MEAN_PARAMETERS, MEAN_MOST_SOURCES = 16 };

static CUresult check_mean(struct launch *launch)
{
    CUdeviceptr destination, sources[MEAN_MOST_SOURCES];
    uint64_t count;
    uint32_t number;
    get(launch, MEAN_DESTINATION, &destination, sizeof destination);
    get(launch, MEAN_SOURCES, sources, sizeof sources);
    get(launch, MEAN_COUNT, &count, sizeof count);
    get(launch, MEAN_NUMBER, &number, sizeof number);
    if (number > MEAN_MOST_SOURCES)
        return CUDA_ERROR_INVALID_VALUE;
    TRY(reach(launch, destination, count * sizeof(float), &launch->pointers[MEAN_MOST_SOURCES]));
    for (uint32_t i = 0; i < number; i++)
        TRY(reach(launch, sources[i], count * sizeof(float), &launch->pointers[i]));
    return CUDA_SUCCESS;
}

static void run_mean(struct operation *operation)
{
    struct launch *launch = operation->owned;
    float *destination = (float *)launch->pointers[MEAN_MOST_SOURCES];
    uint64_t count;
    uint32_t number;
    get(launch, MEAN_COUNT, &count, sizeof count);
    get(launch, MEAN_NUMBER, &number, sizeof number);
    for (uint64_t i = 0; i < count; i++) {
        float sum = ((const float *)launch->pointers[0])[i];
        for (uint32_t k = 1; k < number; k++)
            sum += ((const float *)launch->pointers[k])[i];
        destination[i] = sum / (float)number;
    }
}

static const struct kernel KERNELS[] = {
    {"mean", MEAN_PARAMETERS, check_mean, run_mean},
};

/* ---- PTX parser ---- */

/* Return a copy of the text without comments. */
static char *without_comments(const char *text)
{
    char *copy = strdup(text), *to = copy;
    for (const char *from = text; copy && *from;) {
        const char *end = NULL;
        if (strncmp(from, "//", 2) == 0)
            end = strchr(from, '\n');
        else if (strncmp(from, "/*", 2) == 0 && (end = strstr(from, "*/")))
            end += 2;
        else {
            *to++ = *from++;
            continue;
        }
        from = end ? end : from + strlen(from);
    }
    if (copy)
        *to = '\0';
    return copy;
}

/* Read the next word or punctuation mark and advance *text past it.  Words consist of letters, digits and _ . $ % */
static bool next_token(const char **text, char token[NAME_LENGTH])
{
    const char *at = *text + strspn(*text, " \t\r\n");
    size_t length = 0;
    while (at[length] && (isalnum((unsigned char)at[length]) || strchr("_.$%", at[length])))
        length++;
    if (!length && *at)
        length = 1;
    if (!length || length >= NAME_LENGTH)
        return false;
    memcpy(token, at, length);
    token[length] = '\0';
    *text = at + length;
    return true;
}

/* Return the size in bytes of a type such as .u64 or .b8; 0 for any other word. */
static size_t size_of_type(const char *word)
{
    if (word[0] != '.' || !word[1] || !strchr("busf", word[1]))
        return 0;
    int bits = atoi(word + 2);
    return bits == 8 || bits == 16 || bits == 32 || bits == 64 ? bits / 8 : 0;
}

/* Read one parameter, such as  .param .align 8 .b8 name[128]  or  .param .u64 .ptr .global .align 4 name , up to and
 * including the comma or bracket that follows. */
static bool read_parameter(const char **text, CUfunction function, char token[NAME_LENGTH])
{
    size_t element = 0, alignment = 0, count = 1;
    do {
        size_t size = size_of_type(token);
        if (size)
            element = size;
        else if (strcmp(token, ".align") == 0) {
            if (!next_token(text, token))
                return false;
            if (!element)                        /* after the type, it is the alignment of the pointer's target */
                alignment = atoi(token);
        } else if (strcmp(token, "[") == 0) {
            if (!next_token(text, token))
                return false;
            count = strtoul(token, NULL, 10);
        }
        if (!next_token(text, token))
            return false;
    } while (strcmp(token, ",") != 0 && strcmp(token, ")") != 0);
    if (!element || !count || function->parameters == MOST_PARAMETERS)
        return false;
    if (!alignment)
        alignment = element;
    size_t offset = (function->size + alignment - 1) / alignment * alignment;
    function->parameter[function->parameters++] = (struct parameter){offset, element * count};
    function->size = offset + element * count;
    return true;
}

/* Read  name ( parameters ) ; a kernel without parameters may omit the brackets. */
static bool read_entry(const char **text, CUmodule module)
{
    CUfunction function = new_object(FUNCTION, sizeof *function);
    function->module = module;
    function->next = module->functions;
    module->functions = function;
    char token[NAME_LENGTH];
    if (!next_token(text, function->name) || !next_token(text, token))
        return false;
    if (strcmp(token, "(") == 0) {
        if (!next_token(text, token))
            return false;
        while (strcmp(token, ")") != 0)
            if (!read_parameter(text, function, token) || (strcmp(token, ",") == 0 && !next_token(text, token)))
                return false;
    }
    for (size_t i = 0; i < sizeof KERNELS / sizeof *KERNELS; i++)
        if (strcmp(KERNELS[i].name, function->name) == 0)
            function->kernel = &KERNELS[i];
    return true;
}

static CUresult read_module(const char *text, CUmodule module)
{
    char token[NAME_LENGTH];
    bool version = false;
    while (next_token(&text, token)) {
        version |= strcmp(token, ".version") == 0;
        if (strcmp(token, ".entry") == 0 && !read_entry(&text, module))
            return CUDA_ERROR_INVALID_PTX;
    }
    return version ? CUDA_SUCCESS : CUDA_ERROR_INVALID_PTX;
}

/* ---- modules ---- */

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    if (!isspace(*(const unsigned char *)image) && !strchr("./", *(const char *)image)) {
        log_warning("a module must be PTX text; machine code of a GPU cannot be run here");
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    char *text = without_comments(image);
    if (!text)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *module = new_object(MODULE, sizeof **module);
    (*module)->context = context;
    CUresult result = read_module(text, *module);
    free(text);
    return result;
}

/* The compiler's logs stay empty. */
CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, CUjit_option *options, void **values)
{
    for (unsigned i = 0; i < count; i++)
        if (options[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES || options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
            values[i] = NULL;
    return cuModuleLoadData(module, image);
}

CUresult cuModuleUnload(CUmodule module)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    if (!is_alive(module, MODULE))
        return CUDA_ERROR_INVALID_HANDLE;
    module->object.alive = false;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    if (!is_alive(module, MODULE))
        return CUDA_ERROR_INVALID_HANDLE;
    for (*function = module->functions; *function; *function = (*function)->next)
        if (strcmp((*function)->name, name) == 0)
            break;
    if (!*function)
        return CUDA_ERROR_NOT_FOUND;
    const struct kernel *kernel = (*function)->kernel;
    if (kernel && kernel->parameters == (*function)->parameters)
        return CUDA_SUCCESS;
    log_warning(kernel ? "kernel %s: the emulator's has other parameters (kernels.c)"
                : "kernel %s is not among the emulator's (kernels.c)",
         name);
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function)
{
    LOCKED;
    if (!is_alive(function, FUNCTION))
        return CUDA_ERROR_INVALID_HANDLE;
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? MOST_THREADS : 0;
    return CUDA_SUCCESS;
}

/* PyCUDA sets the block shape before some launches.  It is ignored, because cuLaunchKernel receives it as well. */
CUresult cuFuncSetBlockShape(CUfunction function, int x, int y, int z)
{
    LOCKED;
    (void)x, (void)y, (void)z;
    return is_alive(function, FUNCTION) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* ---- launches ---- */

/* Copy the parameters, which are given either as a list of pointers or as one buffer. */
static CUresult copy_parameters(struct launch *launch, void **one_by_one, void **extra)
{
    const struct CUfunc_st *function = launch->function;
    if (one_by_one) {
        if (extra)
            return CUDA_ERROR_INVALID_VALUE;
        for (unsigned i = 0; i < function->parameters; i++)
            memcpy(launch->bytes + function->parameter[i].offset, one_by_one[i], function->parameter[i].size);
        return CUDA_SUCCESS;
    }
    const void *buffer = NULL;
    size_t size = 0;
    for (; extra && *extra != CU_LAUNCH_PARAM_END; extra += 2)
        if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER)
            buffer = extra[1];
        else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE)
            size = *(const size_t *)extra[1];
    size_t padded = (function->size + ALIGNMENT_OF_PARAMETERS - 1) & ~(size_t)(ALIGNMENT_OF_PARAMETERS - 1);
    if (size != function->size && size != padded) {
        log_warning("kernel %s takes %zu bytes of parameters, got %zu", function->name, function->size, size);
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    }
    memcpy(launch->bytes, buffer, function->size);
    return CUDA_SUCCESS;
}

static CUresult prepare(struct launch *launch, void **one_by_one, void **extra)
{
    TRY(copy_parameters(launch, one_by_one, extra));
    return launch->function->kernel->check(launch);
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void **parameters,
                        void **extra)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    TRY(check_stream(context, &stream));
    if (!is_alive(function, FUNCTION) || !is_alive(function->module, MODULE) || function->module->context != context)
        return CUDA_ERROR_INVALID_HANDLE;
    uint64_t threads = (uint64_t)block_x * block_y * block_z;
    if (!threads || threads > MOST_THREADS || block_z > MOST_THREADS_IN_Z || shared_bytes > MOST_SHARED_BYTES ||
        !grid_x || !grid_y || !grid_z || grid_x > INT32_MAX || grid_y > UINT16_MAX || grid_z > UINT16_MAX)
        return CUDA_ERROR_INVALID_VALUE;
    struct launch *launch = calloc(1, sizeof *launch + function->size);
    if (!launch)
        return CUDA_ERROR_OUT_OF_MEMORY;
    launch->function = function;
    launch->context = context;
    CUresult result = prepare(launch, parameters, extra);
    if (result != CUDA_SUCCESS) {
        free(launch);
        return result;
    }
    enqueue((struct operation){.run = function->kernel->run, .owned = launch, .contexts = {context}, .stream = stream});
    return CUDA_SUCCESS;
}

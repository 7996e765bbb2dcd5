/* Device memory, IPC handles, and page-locked host memory.
 *
 * An allocation is an anonymous memory file (memfd), mapped at `bytes` for copies.  Its device pointer is a separate
 * address range of the same length with guard pages at both ends, mapped without access.  A program that dereferences
 * it on the host faults, as with a real GPU.  New memory contains 0xA5, not zero.
 *
 * A handle contains the process id, file descriptor, inode, size and device.  To open it, a process opens
 * /proc/<pid>/fd/<fd> and checks the inode, because the process id and the descriptor may have been reused.  An open
 * file keeps its contents when another process closes it.
 *
 * Processes share nothing else.  The memory in use on a device is the sum over the files that processes have open, as
 * listed in /proc.  A killed process therefore leaves nothing behind.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, GUARD = 16 * PAGE, UNDEFINED = 0xA5, PATH_LENGTH = 300 };
static const size_t MEBIBYTE = 1 << 20;
static const char LINK_OF_A_MEMORY[] = "/memfd:emucuda:";      /* how /proc names a memfd "emucuda:..." */

static struct block *blocks;

static size_t whole_pages(size_t size)
{
    return (size + PAGE - 1) & ~(size_t)(PAGE - 1);
}

struct block *find_block(CUdeviceptr pointer, size_t size)
{
    for (struct block *block = blocks; block; block = block->next) {
        size_t offset = pointer - block->base;   /* a pointer below the base wraps around to a very large offset */
        if (offset < block->size && size <= block->size - offset)
            return block;
    }
    return NULL;
}

bool is_device_memory(const void *pointer, size_t size)
{
    CUdeviceptr start = (CUdeviceptr)pointer;
    for (struct block *block = blocks; block; block = block->next)
        if (start < block->base + block->size && block->base < start + size)
            return true;
    return false;
}

/* ---- accounting: which process has which memory open ---- */

typedef void visitor(pid_t process, const char *link, const struct stat *file, void *result);

static void visit_process(pid_t process, visitor *visit, void *result)
{
    char path[PATH_LENGTH], link[PATH_LENGTH];
    snprintf(path, sizeof path, "/proc/%d/fd", process);
    DIR *folder = opendir(path);
    if (!folder)                                 /* the process has exited or belongs to another user */
        return;
    for (struct dirent *entry; (entry = readdir(folder));) {
        ssize_t length = readlinkat(dirfd(folder), entry->d_name, link, sizeof link - 1);
        link[length < 0 ? 0 : length] = '\0';
        struct stat file;
        if (strncmp(link, LINK_OF_A_MEMORY, strlen(LINK_OF_A_MEMORY)) == 0 &&
            fstatat(dirfd(folder), entry->d_name, &file, 0) == 0)
            visit(process, link, &file, result);
    }
    closedir(folder);
}

/* Visit each allocation of an emulated device that a process has open; some are visited more than once. */
static void visit_memories(visitor *visit, void *result)
{
    DIR *folder = opendir("/proc");
    if (!folder)
        return;
    for (struct dirent *entry; (entry = readdir(folder));) {
        pid_t process = atoi(entry->d_name);
        if (process > 0)
            visit_process(process, visit, result);
    }
    closedir(folder);
}

struct sum {
    char link[PATH_LENGTH];
    size_t bytes;
    ino_t *seen;
    size_t count;
};

static void add_bytes(pid_t process, const char *link, const struct stat *file, void *result)
{
    (void)process;
    struct sum *sum = result;
    if (strncmp(link, sum->link, strlen(sum->link)) != 0)
        return;
    for (size_t i = 0; i < sum->count; i++)
        if (sum->seen[i] == file->st_ino)
            return;
    sum->seen = realloc(sum->seen, (sum->count + 1) * sizeof *sum->seen);
    if (!sum->seen)
        abort();
    sum->seen[sum->count++] = file->st_ino;
    sum->bytes += file->st_size;
}

/* Return the bytes of a device's memory that processes of this machine hold. */
static size_t bytes_in_use(int device)
{
    struct sum sum = {.bytes = 0};
    snprintf(sum.link, sizeof sum.link, "%s%.200s:%d ", LINK_OF_A_MEMORY, settings.machine, device);
    visit_memories(add_bytes, &sum);
    free(sum.seen);
    return sum.bytes;
}

struct search {
    ino_t inode;
    pid_t found;
};

static void find_other(pid_t process, const char *link, const struct stat *file, void *result)
{
    (void)link;
    struct search *search = result;
    if (file->st_ino == search->inode && process != getpid())
        search->found = process;
}

/* ---- mapping ---- */

static struct block *map(int fd, struct block like)
{
    size_t size = whole_pages(like.size);
    char *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED)
        return NULL;
    char *range = mmap(NULL, size + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct block *block = range == MAP_FAILED ? NULL : malloc(sizeof *block);
    if (!block) {
        munmap(bytes, size);
        return NULL;
    }
    *block = like;
    block->fd = fd;
    block->bytes = bytes;
    block->base = (CUdeviceptr)(range + GUARD);
    block->next = blocks;
    return blocks = block;
}

static void unmap(struct block *block)
{
    struct block **link = &blocks;
    while (*link != block)
        link = &(*link)->next;
    *link = block->next;
    munmap(block->bytes, whole_pages(block->size));
    munmap((char *)block->base - GUARD, whole_pages(block->size) + 2 * GUARD);
    close(block->fd);
    free(block);
}

/* Free a block that this process allocated.  Freeing it while another process has it open is undefined in CUDA. */
static void free_block(struct block *block)
{
    struct search search = {.inode = block->inode};
    if (block->exported)
        visit_memories(find_other, &search);
    if (search.found)
        fault("process %d frees %zu bytes of device %d that process %d still has open", getpid(), block->size,
              block->device, search.found);
    unmap(block);
}

void free_blocks_of(CUcontext context)
{
    for (struct block *block = blocks, *next; block; block = next) {
        next = block->next;
        if (block->context == context)
            block->opened ? unmap(block) : free_block(block);
    }
}

/* Fill a small block completely.  Of a large block, fill the ends and one page per mebibyte, to save time. */
static void make_undefined(char *bytes, size_t size)
{
    size_t step = size <= 16 * MEBIBYTE ? MEBIBYTE : PAGE;
    for (size_t offset = 0; offset < size; offset += MEBIBYTE)
        memset(bytes + offset, UNDEFINED, step < size - offset ? step : size - offset);
    size_t end = size < PAGE ? size : PAGE;
    memset(bytes + size - end, UNDEFINED, end);
}

/* ---- allocation ---- */

CUresult cuMemAlloc(CUdeviceptr *pointer, size_t size)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    if (!size)
        return CUDA_ERROR_INVALID_VALUE;
    if (size > settings.memory)
        return CUDA_ERROR_OUT_OF_MEMORY;
    char name[PATH_LENGTH];
    snprintf(name, sizeof name, "emucuda:%.200s:%d", settings.machine, context->device);
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct stat file;
    struct block *block = NULL;
    /* the sum already includes this file, so that two concurrent allocations cannot both get the last bytes */
    if (ftruncate(fd, whole_pages(size)) == 0 && fstat(fd, &file) == 0 &&
        bytes_in_use(context->device) <= settings.memory)
        block = map(fd, (struct block){.size = size, .device = context->device, .owner = getpid(),
                                       .inode = file.st_ino, .context = context});
    if (!block) {
        close(fd);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    make_undefined(block->bytes, size);
    *pointer = block->base;
    return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr pointer)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    if (!pointer)
        return CUDA_SUCCESS;
    wait_for_everything();
    struct block *block = find_block(pointer, 0);
    if (!block || block->base != pointer || block->opened)
        return CUDA_ERROR_INVALID_VALUE;
    free_block(block);
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t *free, size_t *total)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    size_t used = bytes_in_use(context->device);
    *total = settings.memory;
    *free = used < settings.memory ? settings.memory - used : 0;
    return CUDA_SUCCESS;
}

CUresult cuMemGetAddressRange(CUdeviceptr *base, size_t *size, CUdeviceptr pointer)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    struct block *block = find_block(pointer, 1);
    if (!block)
        return CUDA_ERROR_NOT_FOUND;
    if (base)
        *base = block->base;
    if (size)
        *size = block->size;
    return CUDA_SUCCESS;
}

/* ---- handles ---- */

struct handle {
    char magic[8];
    int32_t process, fd, device, reserved;
    uint64_t size, inode;
};
_Static_assert(sizeof(struct handle) <= CU_IPC_HANDLE_SIZE, "a handle must fit CUDA's");
static const char MAGIC[8] = "emucuda";

/* The handle refers to the whole allocation, even if the pointer is not its start. */
CUresult cuIpcGetMemHandle(CUipcMemHandle *result, CUdeviceptr pointer)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    if (!settings.ipc)
        return CUDA_ERROR_NOT_SUPPORTED;
    struct block *block = find_block(pointer, 1);
    if (!block || block->opened)
        return CUDA_ERROR_INVALID_VALUE;
    block->exported = true;
    struct handle handle = {.process = getpid(), .fd = block->fd, .device = block->device,
                            .size = block->size, .inode = block->inode};
    memcpy(handle.magic, MAGIC, sizeof MAGIC);
    memset(result, 0, sizeof *result);
    memcpy(result, &handle, sizeof handle);
    return CUDA_SUCCESS;
}

/* Open the file of the handle; return -1 if it no longer exists. */
static int open_file_of(const struct handle *handle)
{
    char path[PATH_LENGTH], link[PATH_LENGTH];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", handle->process, handle->fd);
    ssize_t length = readlink(path, link, sizeof link - 1);
    link[length < 0 ? 0 : length] = '\0';
    if (strncmp(link, LINK_OF_A_MEMORY, strlen(LINK_OF_A_MEMORY)) != 0)
        return -1;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat file;
    if (fd >= 0 && fstat(fd, &file) == 0 && file.st_ino == handle->inode &&
        (size_t)file.st_size == whole_pages(handle->size))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

CUresult cuIpcOpenMemHandle(CUdeviceptr *pointer, CUipcMemHandle given, unsigned flags)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    struct handle handle;
    memcpy(&handle, &given, sizeof handle);
    if (!settings.ipc)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS || memcmp(handle.magic, MAGIC, sizeof MAGIC) != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (handle.process == getpid())
        return CUDA_ERROR_INVALID_CONTEXT;
    if (handle.device < 0 || handle.device >= settings.devices)
        return CUDA_ERROR_INVALID_DEVICE;
    if (handle.device != context->device && !settings.peers[context->device][handle.device])
        return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    int fd = open_file_of(&handle);
    if (fd < 0)
        return CUDA_ERROR_INVALID_HANDLE;
    for (struct block *block = blocks; block; block = block->next)
        if (block->opened && block->inode == handle.inode && block->context->device == context->device) {
            close(fd);
            if (block->context != context)       /* only one context of a device may open it */
                return CUDA_ERROR_INVALID_CONTEXT;
            block->opened++;
            *pointer = block->base;
            return CUDA_SUCCESS;
        }
    struct block *block = map(fd, (struct block){.size = handle.size, .device = handle.device, .owner = handle.process,
                                                 .inode = handle.inode, .context = context, .opened = 1});
    if (!block) {
        close(fd);
        return CUDA_ERROR_MAP_FAILED;
    }
    *pointer = block->base;
    return CUDA_SUCCESS;
}

CUresult cuIpcCloseMemHandle(CUdeviceptr pointer)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    wait_for_everything();
    struct block *block = find_block(pointer, 0);
    if (!block || block->base != pointer || !block->opened)
        return CUDA_ERROR_INVALID_VALUE;
    if (--block->opened == 0)
        unmap(block);
    return CUDA_SUCCESS;
}

/* ---- page-locked host memory ---- */

struct range {
    char *start;
    size_t size;
    bool registered;                             /* memory of the program; if false, allocated here */
    unsigned flags;
    struct range *next;
};
static struct range *page_locked;

static struct range **find_range(const void *start)
{
    struct range **link = &page_locked;
    while (*link && (*link)->start != start)
        link = &(*link)->next;
    return link;
}

static void lock_pages(void *start, size_t size, bool registered, unsigned flags)
{
    struct range *range = malloc(sizeof *range);
    if (!range)
        abort();
    *range = (struct range){start, size, registered, flags, page_locked};
    page_locked = range;
}

static void unlock_pages(struct range **link)
{
    struct range *range = *link;
    *link = range->next;
    if (!range->registered)
        munmap(range->start, whole_pages(range->size));
    free(range);
}

bool is_page_locked(const void *pointer, size_t size)
{
    for (struct range *range = page_locked; range; range = range->next) {
        size_t offset = (const char *)pointer - range->start;
        if (offset < range->size && size <= range->size - offset)
            return true;
    }
    return false;
}

CUresult cuMemHostAlloc(void **pointer, size_t size, unsigned flags)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    if (!size)
        return CUDA_ERROR_INVALID_VALUE;
    char *start = mmap(NULL, whole_pages(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    make_undefined(start, size);
    lock_pages(start, size, false, flags);
    *pointer = start;
    return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void *pointer)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    wait_for_everything();
    struct range **link = find_range(pointer);
    if (!*link || (*link)->registered)
        return CUDA_ERROR_INVALID_VALUE;
    unlock_pages(link);
    return CUDA_SUCCESS;
}

CUresult cuMemHostRegister(void *pointer, size_t size, unsigned flags)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    if (!pointer || !size || is_device_memory(pointer, size))
        return CUDA_ERROR_INVALID_VALUE;
    if (is_page_locked(pointer, 1))
        return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    lock_pages(pointer, size, true, flags);
    return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void *pointer)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    wait_for_everything();
    struct range **link = find_range(pointer);
    if (!*link || !(*link)->registered)
        return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    unlock_pages(link);
    return CUDA_SUCCESS;
}

CUresult cuMemHostGetFlags(unsigned *flags, void *pointer)
{
    LOCKED;
    struct range **link = find_range(pointer);
    if (!*link)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = (*link)->flags;
    return CUDA_SUCCESS;
}

/* Declarations shared by the files of the emulator: settings, objects, memory and queue.
 *
 * README.md describes the purpose of the emulator.
 *
 *   devices.c       devices and contexts
 *   memory.c        device memory, page-locked host memory and IPC
 *   queue.c         streams, events and deferred execution
 *   copies.c        copies and fills
 *   kernels.c       modules and kernel launches
 *   not_emulated.c  functions that return "operation not supported"
 *
 * One lock guards everything. Each function of the driver API takes it with LOCKED; all others require it to be held.
 */
#ifndef EMUCUDA_DRIVER_H
#define EMUCUDA_DRIVER_H

#pragma GCC visibility push(default)             /* the exported symbols: those of cuda.h, and this one */
#include <cuda.h>
unsigned long emucuda_pending(void);             /* copies, fills and kernels of this process not yet executed */
#pragma GCC visibility pop

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { MAX_DEVICES = 16, CONTEXTS_OF_A_PEER_COPY = 3 };

/* ---- lock and error handling ---- */

extern pthread_mutex_t the_lock;

static inline pthread_mutex_t *take_lock(void)
{
    pthread_mutex_lock(&the_lock);
    return &the_lock;
}

static inline void release_lock(pthread_mutex_t **lock)
{
    pthread_mutex_unlock(*lock);
}

/* Take the lock and release it at any return of the function. */
#define LOCKED __attribute__((cleanup(release_lock), unused)) pthread_mutex_t *held = take_lock()

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        CUresult result = (call);                                                                                      \
        if (result != CUDA_SUCCESS)                                                                                    \
            return result;                                                                                             \
    } while (0)

/* ---- settings: environment variables, read once by cuInit ---- */

enum { WHEN_SYNCHRONISED = -1, AT_ONCE = 0 };    /* values of settings.delay; others are milliseconds */

struct settings {
    long devices;
    size_t memory;                               /* bytes of each device */
    long delay;
    bool ipc, strict;
    bool peers[MAX_DEVICES][MAX_DEVICES];        /* [a][b]: device a can access device b */
    const char *machine;                         /* processes with the same name share the devices' memory */
};

extern struct settings settings;

/* Write one line to standard error. */
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Report undefined behaviour the same way; abort the process if EMUCUDA_STRICT=1. */
void fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- objects: targets of handles ---- */

enum kind { CONTEXT, STREAM, EVENT, MODULE, FUNCTION };

/* First member of each object.  Objects are never freed, so that stale handles can be detected. */
struct object {
    enum kind kind;
    bool alive;
    struct object *next;
};

void *new_object(enum kind kind, size_t size);
bool is_alive(const void *handle, enum kind kind);

struct CUctx_st {
    struct object object;
    int device;
    bool primary;
    unsigned uses;
    bool reaches[MAX_DEVICES];                   /* cuCtxEnablePeerAccess was called for a context of that device */
};

struct CUstream_st {
    struct object object;
    CUcontext context;
    bool blocking;                               /* synchronises with the default stream, and vice versa */
};

struct CUevent_st {
    struct object object;
    CUcontext context;
    bool timed, recorded;
    uint64_t mark;                               /* sequence number of its operation in the queue */
    uint64_t time;                               /* when the operation was executed, in nanoseconds */
};

/* Get the current context of the calling thread; an error if there is none or it has been destroyed. */
CUresult current_context(CUcontext *context);
CUresult check_context(CUcontext context);
CUresult check_device(CUdevice device);

/* ---- memory ---- */

/* Device memory that this process allocated, or opened with a handle of another process. */
struct block {
    CUdeviceptr base;
    size_t size;
    char *bytes;                                 /* host address for copies and kernels, not the device pointer */
    int device, fd;
    pid_t owner;
    ino_t inode;
    CUcontext context;
    unsigned opened;                             /* times opened; 0 if allocated by this process */
    bool exported;
    struct block *next;
};

/* Return the block that contains all `size` bytes starting at `pointer`, or NULL. */
struct block *find_block(CUdeviceptr pointer, size_t size);
void free_blocks_of(CUcontext context);
bool is_page_locked(const void *pointer, size_t size);
bool is_device_memory(const void *pointer, size_t size);

/* ---- the queue ---- */

struct launch;

/* An operation in a stream that is executed after its call has returned. */
struct operation {
    void (*run)(struct operation *operation);    /* NULL: a mark that other operations can wait for */
    char *destination;
    const char *source;
    size_t size, width;                          /* bytes: total, and of one element of a fill */
    uint32_t value;
    void *owned;                                 /* freed after execution: staged host memory or a launch */
    CUevent event;                               /* for a mark: its event */

    CUcontext contexts[CONTEXTS_OF_A_PEER_COPY]; /* the caller's, then those of a peer copy */
    CUstream stream;                             /* NULL: the default stream of the contexts */
    uint64_t after;                              /* sequence number of a mark to wait for, or 0 */
    uint64_t sequence, due;
    bool needed;
    struct operation *previous, *next;
};

void enqueue(struct operation operation);
void wait_for_stream(CUcontext context, CUstream stream);
void wait_for_context(CUcontext context);
void wait_for_everything(void);

/* Check that `stream`, which may be NULL, belongs to the context; CU_STREAM_LEGACY becomes NULL. */
CUresult check_stream(CUcontext context, CUstream *stream);

#endif

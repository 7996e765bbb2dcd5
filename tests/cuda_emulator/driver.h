/* What the files of the emulator share: its settings, its objects, its memory and its queue.
 *
 * README.md says what the emulator is for.  devices.c has devices and contexts, memory.c device and host memory and
 * IPC, queue.c streams, events and late execution, copies.c what moves bytes, kernels.c modules and launches.
 *
 * One lock guards everything: each function of the driver's interface takes it by LOCKED, all others expect it held.
 */
#ifndef EMUCUDA_DRIVER_H
#define EMUCUDA_DRIVER_H

#pragma GCC visibility push(default)             /* the library exports what cuda.h declares, and this */
#include <cuda.h>
unsigned long emucuda_pending(void);             /* copies, fills and kernels of this process not yet executed */
#pragma GCC visibility pop

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { MAX_DEVICES = 16, CONTEXTS_OF_A_PEER_COPY = 3 };

/* ---- the lock, and how an error leaves a function ---- */

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

/* Hold the lock until the function returns, wherever that is. */
#define LOCKED __attribute__((cleanup(release_lock), unused)) pthread_mutex_t *held = take_lock()

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        CUresult result = (call);                                                                                      \
        if (result != CUDA_SUCCESS)                                                                                    \
            return result;                                                                                             \
    } while (0)

/* ---- settings: the environment, read once by cuInit ---- */

enum { WHEN_SYNCHRONISED = -1, AT_ONCE = 0 };    /* values of settings.delay; others are milliseconds */

struct settings {
    long devices;
    size_t memory;                               /* bytes of each device */
    long delay;
    bool ipc, strict;
    bool peers[MAX_DEVICES][MAX_DEVICES];        /* which device reaches which */
    const char *machine;                         /* processes of one name share the devices' memory */
};

extern struct settings settings;

/* Write one line to standard error. */
void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same for what CUDA leaves undefined; ends the process if EMUCUDA_STRICT asks for it. */
void fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- objects: what a handle points to ---- */

enum kind { CONTEXT, STREAM, EVENT, MODULE, FUNCTION };

/* The head of each.  None is ever freed, so that a handle used too late is recognised. */
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
    bool reaches[MAX_DEVICES];                   /* cuCtxEnablePeerAccess was called for a context there */
};

struct CUstream_st {
    struct object object;
    CUcontext context;
    bool blocking;                               /* it and the default stream wait for each other */
};

struct CUevent_st {
    struct object object;
    CUcontext context;
    bool timed, recorded;
    uint64_t mark;                               /* sequence number of its operation in the queue */
    uint64_t time;                               /* nanoseconds, when that was reached */
};

/* The calling thread's context; an error where there is none, or it has been destroyed. */
CUresult current_context(CUcontext *context);
CUresult check_context(CUcontext context);
CUresult check_device(CUdevice device);

/* ---- memory ---- */

/* Device memory: bytes that this process allocated, or opened by another's handle. */
struct block {
    CUdeviceptr base;
    size_t size;
    char *bytes;                                 /* where copies and kernels find them: never the device pointer */
    int device, fd;
    pid_t owner;
    ino_t inode;
    CUcontext context;
    unsigned opened;                             /* times opened, 0 for one's own */
    bool exported;
    struct block *next;
};

/* The block that holds all of `size` bytes from `pointer` on, or NULL. */
struct block *find_block(CUdeviceptr pointer, size_t size);
void free_blocks_of(CUcontext context);
bool is_page_locked(const void *pointer, size_t size);
bool is_device_memory(const void *pointer, size_t size);

/* ---- the queue ---- */

struct launch;

/* Something that a stream does after the call that asked for it has returned. */
struct operation {
    void (*run)(struct operation *operation);    /* NULL: a mark, which other operations wait for */
    char *destination;
    const char *source;
    size_t size, width;                          /* bytes; of one element of a fill */
    uint32_t value;
    void *owned;                                 /* freed when it has run: staged host memory, or a launch */
    CUevent event;                               /* of a mark */

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

/* Check `stream`, which may be NULL, against the context; CU_STREAM_LEGACY becomes NULL. */
CUresult check_stream(CUcontext context, CUstream *stream);

#endif

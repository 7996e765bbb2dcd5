/* Streams, events, and the queue of operations that have not been executed yet.
 *
 * CUDA may complete a copy long after its call.  The emulator therefore keeps operations in one queue, in the order of
 * the calls, and executes them as late as CUDA allows: when something waits for them (EMUCUDA_DEFER=sync) or after a
 * number of milliseconds (EMUCUDA_DEFER=300).  A wait executes only the operations it waits for and their dependencies:
 *
 *   - earlier operations of the same stream;
 *   - the default stream waits for every stream of its context, and they wait for it (the "legacy" default stream),
 *     except non-blocking streams;
 *   - an operation on several contexts (cuMemcpyPeer) counts as an operation in the default stream of each;
 *   - cuStreamWaitEvent waits for the event's mark.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <stdlib.h>
#include <time.h>

static const uint64_t NANOSECONDS = 1000000000, NANOSECONDS_OF_A_MILLISECOND = 1000000;

static struct operation *first, *last;
static uint64_t sequence;
static unsigned long pending;
static pthread_cond_t queued = PTHREAD_COND_INITIALIZER, progress = PTHREAD_COND_INITIALIZER;

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return time.tv_sec * NANOSECONDS + time.tv_nsec;
}

unsigned long emucuda_pending(void)
{
    LOCKED;
    return pending;
}

/* ---- dependencies ---- */

/* A point that a caller waits for: a hypothetical next operation of one stream, of all streams, or of all contexts. */
struct point {
    struct operation operation;
    enum { ONE_STREAM, ALL_STREAMS, ALL_CONTEXTS } scope;
};

static bool wait_for_each_other(CUstream a, CUstream b)
{
    return a == b || (!a && b->blocking) || (!b && a->blocking);
}

static bool share_a_context(const struct operation *a, const struct operation *b)
{
    for (int i = 0; i < CONTEXTS_OF_A_PEER_COPY; i++)
        for (int j = 0; j < CONTEXTS_OF_A_PEER_COPY; j++)
            if (a->contexts[i] && a->contexts[i] == b->contexts[j])
                return true;
    return false;
}

static bool depends(const struct operation *later, const struct operation *earlier)
{
    return (later->after && later->after == earlier->sequence) ||
           (share_a_context(later, earlier) && wait_for_each_other(later->stream, earlier->stream));
}

static bool waits_for(const struct point *point, const struct operation *operation)
{
    switch (point->scope) {
    case ALL_CONTEXTS: return true;
    case ALL_STREAMS: return share_a_context(&point->operation, operation);
    default: return depends(&point->operation, operation);
    }
}

/* Mark the operations up to `limit` that must be executed before the point is reached; return their number. */
static unsigned mark_needed(const struct point *point, uint64_t limit)
{
    unsigned count = 0;
    for (struct operation *operation = last; operation; operation = operation->previous) {
        operation->needed = operation->sequence <= limit && waits_for(point, operation);
        for (const struct operation *later = operation->next; later && !operation->needed; later = later->next)
            operation->needed = later->needed && depends(later, operation);
        count += operation->needed;
    }
    return count;
}

/* ---- execution ---- */

static void execute(struct operation *operation)
{
    *(operation->previous ? &operation->previous->next : &first) = operation->next;
    *(operation->next ? &operation->next->previous : &last) = operation->previous;
    if (operation->run) {
        operation->run(operation);
        pending--;
    } else if (operation->event && operation->event->mark == operation->sequence)
        operation->event->time = now();
    free(operation->owned);
    free(operation);
}

/* Execute all marked operations, or only the first. */
static void execute_needed(bool all)
{
    for (struct operation *operation = first, *next; operation; operation = next) {
        next = operation->next;
        if (operation->needed) {
            execute(operation);
            if (!all)
                return;
        }
    }
}

static void reach(const struct point *point)
{
    uint64_t limit = sequence;
    while (mark_needed(point, limit))
        if (settings.delay > 0)
            pthread_cond_wait(&progress, &the_lock);      /* the wait lasts until the thread has executed them */
        else
            execute_needed(true);
}

/* The thread that executes each operation when it is due (EMUCUDA_DEFER=<milliseconds>). */
static void *execute_when_due(void *unused)
{
    pthread_mutex_lock(&the_lock);
    for (;;) {
        struct operation *next = first;
        for (struct operation *operation = first; operation; operation = operation->next)
            if (operation->due < next->due)
                next = operation;
        if (!next)
            pthread_cond_wait(&queued, &the_lock);
        else if (next->due > now()) {
            struct timespec due = {next->due / NANOSECONDS, next->due % NANOSECONDS};
            pthread_cond_timedwait(&queued, &the_lock, &due);
        } else {
            execute(next);
            pthread_cond_broadcast(&progress);
        }
    }
    return unused;
}

/* Return when the operation completes: later on devices with a higher number, and never before its dependencies. */
static uint64_t due_time(const struct operation *new)
{
    uint64_t due = now() + settings.delay * NANOSECONDS_OF_A_MILLISECOND * (1 + new->contexts[0]->device);
    for (const struct operation *operation = first; operation; operation = operation->next)
        if (operation->due > due && depends(new, operation))
            due = operation->due;
    return due;
}

static bool waits_for_any(const struct operation *new)
{
    for (const struct operation *operation = first; operation != new; operation = operation->next)
        if (depends(new, operation))
            return true;
    return false;
}

void enqueue(struct operation operation)
{
    static bool started;
    struct operation *new = malloc(sizeof *new);
    if (!new)
        abort();
    *new = operation;
    new->sequence = ++sequence;
    pending += new->run != NULL;
    if (settings.delay > 0) {
        new->due = due_time(new);
        pthread_t thread;
        if (!started && pthread_create(&thread, NULL, execute_when_due, NULL) == 0)
            started = pthread_detach(thread) == 0;
        pthread_cond_signal(&queued);
    }
    new->previous = last;
    new->next = NULL;
    *(last ? &last->next : &first) = new;
    last = new;
    if (settings.delay == AT_ONCE || (!new->run && !waits_for_any(new)))
        execute(new);
}

/* ---- waiting ---- */

static struct point end_of(CUcontext context, CUstream stream)
{
    return (struct point){.operation = {.contexts = {context}, .stream = stream}, .scope = ONE_STREAM};
}

void wait_for_stream(CUcontext context, CUstream stream)
{
    struct point point = end_of(context, stream);
    reach(&point);
}

void wait_for_context(CUcontext context)
{
    struct point point = end_of(context, NULL);
    point.scope = ALL_STREAMS;
    reach(&point);
}

void wait_for_everything(void)
{
    struct point point = {.scope = ALL_CONTEXTS};
    reach(&point);
}

/* Query whether the point is reached.  To model progress, each answer "not ready" executes one more operation. */
static CUresult ask(const struct point *point)
{
    if (!mark_needed(point, sequence))
        return CUDA_SUCCESS;
    if (settings.delay == WHEN_SYNCHRONISED)
        execute_needed(false);
    return CUDA_ERROR_NOT_READY;
}

/* ---- streams ---- */

CUresult check_stream(CUcontext context, CUstream *stream)
{
    if (*stream == CU_STREAM_LEGACY)
        *stream = NULL;
    if (*stream && (!is_alive(*stream, STREAM) || (*stream)->context != context))
        return CUDA_ERROR_INVALID_HANDLE;
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    if (flags & ~CU_STREAM_NON_BLOCKING)
        return CUDA_ERROR_INVALID_VALUE;
    *stream = new_object(STREAM, sizeof **stream);
    (*stream)->context = context;
    (*stream)->blocking = !(flags & CU_STREAM_NON_BLOCKING);
    return CUDA_SUCCESS;
}

/* Operations that are still queued in the stream are executed nevertheless. */
CUresult cuStreamDestroy(CUstream stream)
{
    LOCKED;
    if (!is_alive(stream, STREAM))
        return CUDA_ERROR_INVALID_HANDLE;
    stream->object.alive = false;
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    TRY(check_stream(context, &stream));
    wait_for_stream(context, stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamQuery(CUstream stream)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    TRY(check_stream(context, &stream));
    struct point point = end_of(context, stream);
    return ask(&point);
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    TRY(check_stream(context, &stream));
    if (!is_alive(event, EVENT) || flags)
        return CUDA_ERROR_INVALID_HANDLE;
    if (event->recorded)
        enqueue((struct operation){.contexts = {context}, .stream = stream, .after = event->mark});
    return CUDA_SUCCESS;
}

/* ---- events ---- */

CUresult cuEventCreate(CUevent *event, unsigned flags)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    if (flags & CU_EVENT_INTERPROCESS)
        return CUDA_ERROR_NOT_SUPPORTED;
    *event = new_object(EVENT, sizeof **event);
    (*event)->context = context;
    (*event)->timed = !(flags & CU_EVENT_DISABLE_TIMING);
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event)
{
    LOCKED;
    if (!is_alive(event, EVENT))
        return CUDA_ERROR_INVALID_HANDLE;
    event->object.alive = false;
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{
    LOCKED;
    CUcontext context;
    TRY(current_context(&context));
    TRY(check_stream(context, &stream));
    if (!is_alive(event, EVENT) || event->context != context)
        return CUDA_ERROR_INVALID_HANDLE;
    event->recorded = true;
    event->mark = sequence + 1;
    enqueue((struct operation){.contexts = {context}, .stream = stream, .event = event});
    return CUDA_SUCCESS;
}

/* Return the point of an event; an event that was never recorded counts as reached. */
static struct point mark_of(CUevent event)
{
    return (struct point){.operation = {.after = event->mark}, .scope = ONE_STREAM};
}

CUresult cuEventQuery(CUevent event)
{
    LOCKED;
    if (!is_alive(event, EVENT))
        return CUDA_ERROR_INVALID_HANDLE;
    struct point point = mark_of(event);
    return ask(&point);
}

CUresult cuEventSynchronize(CUevent event)
{
    LOCKED;
    if (!is_alive(event, EVENT))
        return CUDA_ERROR_INVALID_HANDLE;
    struct point point = mark_of(event);
    reach(&point);
    return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end)
{
    LOCKED;
    if (!is_alive(start, EVENT) || !is_alive(end, EVENT) || !start->recorded || !end->recorded || !start->timed ||
        !end->timed)
        return CUDA_ERROR_INVALID_HANDLE;
    struct point points[] = {mark_of(start), mark_of(end)};
    if (mark_needed(&points[0], sequence) || mark_needed(&points[1], sequence))
        return CUDA_ERROR_NOT_READY;
    *milliseconds = ((double)end->time - (double)start->time) / NANOSECONDS_OF_A_MILLISECOND;
    return CUDA_SUCCESS;
}

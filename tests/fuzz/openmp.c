/* The functions of OpenMP that the kernels call, on POSIX threads, for ThreadSanitizer.
 *
 * ThreadSanitizer does not see how libgomp synchronises its threads, because libgomp is not compiled with it, so it
 * reports races between regions that are separated.  It sees mutexes, barriers, and the start and the end of threads.
 * Each parallel region starts its threads.  The number of threads is that of OMP_NUM_THREADS, or 3.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_THREADS = 16, MAX_LOOPS = 64 };

typedef struct { long next, end, step, chunk; int begun; } Loop;
typedef struct {
    void (*region)(void *);
    void *data;
    int threads;
    pthread_mutex_t lock;
    pthread_barrier_t barrier;
    Loop loops[MAX_LOOPS];               /* the dynamic loops of the region, in order */
} Team;
typedef struct { Team *team; int number, loop; } Member;

static __thread Member self;

int omp_get_max_threads(void)
{
    const char *text = getenv("OMP_NUM_THREADS");
    const int threads = text ? atoi(text) : 0;
    return threads < 1 ? 3 : threads < MAX_THREADS ? threads : MAX_THREADS;
}

int omp_get_num_threads(void) { return self.team ? self.team->threads : 1; }
int omp_get_thread_num(void) { return self.number; }

static void *run_member(void *member)
{
    const Member outer = self;
    self = *(Member *)member;
    self.team->region(self.team->data);
    self = outer;
    return NULL;
}

void GOMP_parallel(void (*region)(void *), void *data, unsigned threads, unsigned flags)
{
    (void)flags;
    Team team = { .region = region, .data = data };
    pthread_t started[MAX_THREADS];
    Member members[MAX_THREADS];
    team.threads = threads ? (int)threads : self.team ? 1 : omp_get_max_threads();
    pthread_mutex_init(&team.lock, NULL);
    pthread_barrier_init(&team.barrier, NULL, team.threads);
    for (int i = 0; i < team.threads; i++)
        members[i] = (Member){ &team, i, 0 };
    for (int i = 1; i < team.threads; i++)
        if (pthread_create(&started[i], NULL, run_member, &members[i])) {
            perror("openmp.c cannot start a thread");
            abort();
        }
    run_member(&members[0]);
    for (int i = 1; i < team.threads; i++)
        pthread_join(started[i], NULL);
    pthread_barrier_destroy(&team.barrier);
    pthread_mutex_destroy(&team.lock);
}

void GOMP_barrier(void) { pthread_barrier_wait(&self.team->barrier); }

/* Take the next chunk of the current loop; returns whether there was one. */
_Bool GOMP_loop_nonmonotonic_dynamic_next(long *first, long *last)
{
    Loop *loop = &self.team->loops[self.loop];
    pthread_mutex_lock(&self.team->lock);
    const long left = (loop->end - loop->next) / loop->step;
    const long taken = left < loop->chunk ? left : loop->chunk;
    *first = loop->next;
    *last = loop->next += taken * loop->step;
    pthread_mutex_unlock(&self.team->lock);
    return taken > 0;
}

_Bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long *first, long *last)
{
    if (self.loop == MAX_LOOPS || step <= 0)                       /* no kernel counts down */
        abort();
    Loop *loop = &self.team->loops[self.loop];
    pthread_mutex_lock(&self.team->lock);
    if (!loop->begun) {
        const long iterations = end > start ? (end - start + step - 1) / step : 0;
        *loop = (Loop){ start, start + iterations * step, step, chunk, 1 };
    }
    pthread_mutex_unlock(&self.team->lock);
    return GOMP_loop_nonmonotonic_dynamic_next(first, last);
}

void GOMP_loop_end_nowait(void) { self.loop++; }

void GOMP_loop_end(void)
{
    GOMP_loop_end_nowait();
    GOMP_barrier();
}

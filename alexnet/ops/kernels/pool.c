/* Memory for arrays in Numba mode: freed blocks are kept and reused, to avoid page faults.
 *
 * Numba would allocate the output of each Op with malloc, which maps fresh pages for each large array.  Their first use
 * costs about as much as a memory-bound kernel.  A graph allocates the same sizes at each call, so a freed block mostly
 * fits exactly.  Blocks that are kept take at most as many bytes as were ever in use at once.  Large blocks use huge
 * pages where the system allows it.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { HEADER = 64, MAX_KEPT = 64 };                     /* bytes before a block, which keep it on a cache line; blocks */
enum { HUGE_PAGE = 1 << 21, GRAIN = 1 << 16 };           /* bytes */

typedef struct { size_t size; } Block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block *kept[MAX_KEPT];                            /* the oldest first */
static size_t n_kept, bytes_kept, bytes_used, peak_used;

static Block *remove_kept(size_t i)
{
    Block *block = kept[i];
    n_kept--;
    for (; i < n_kept; i++)
        kept[i] = kept[i + 1];
    bytes_kept -= block->size;
    return block;
}

/* The smallest kept block of at least `size` bytes that wastes at most an eighth, or null. */
static Block *find_kept(size_t size)
{
    size_t best = n_kept;
    for (size_t i = 0; i < n_kept; i++)
        if (kept[i]->size >= size && kept[i]->size - size <= size / 8 && (best == n_kept || kept[i]->size < kept[best]->size))
            best = i;
    return best < n_kept ? remove_kept(best) : 0;
}

static Block *new_block(size_t size)
{
    void *memory;
    if (posix_memalign(&memory, size >= HUGE_PAGE ? HUGE_PAGE : HEADER, size))
        return 0;
#ifdef MADV_HUGEPAGE
    if (size >= HUGE_PAGE)
        madvise(memory, size, MADV_HUGEPAGE);
#endif
    Block *block = memory;
    block->size = size;
    return block;
}

/* Return uninitialised memory, aligned to a cache line, or null. */
void *take_block(size_t bytes)
{
    const size_t size = (bytes + HEADER + GRAIN - 1) / GRAIN * GRAIN;
    pthread_mutex_lock(&lock);
    Block *block = find_kept(size);
    if (!block)
        block = new_block(size);
    if (block) {
        bytes_used += block->size;
        if (bytes_used > peak_used)
            peak_used = bytes_used;
    }
    pthread_mutex_unlock(&lock);
    return block ? (char *)block + HEADER : 0;
}

void give_block(void *memory)
{
    Block *block = (Block *)((char *)memory - HEADER);
    pthread_mutex_lock(&lock);
    bytes_used -= block->size;
    while (n_kept && (n_kept == MAX_KEPT || bytes_kept + block->size > peak_used))
        free(remove_kept(0));
    kept[n_kept++] = block;
    bytes_kept += block->size;
    pthread_mutex_unlock(&lock);
}

size_t kept_bytes(void) { return bytes_kept; }

/* The start of Numba's NRT_api_functions; source: numba/core/runtime/nrt_external.h. */
typedef struct {
    void *(*allocate)(size_t);
    void *(*allocate_external)(size_t, void *);
    void *(*manage_memory)(void *data, void (*destructor)(void *));
} NumbaMemory;

/* Return a reference-counted MemInfo of Numba for a block, which the last reference gives back; null without memory. */
void *take_counted(const NumbaMemory *numba, size_t bytes)
{
    void *memory = take_block(bytes);
    return memory ? numba->manage_memory(memory, give_block) : 0;
}

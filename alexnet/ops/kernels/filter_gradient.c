/* The gradient of a convolution with respect to its filters, in the c01b layout.
 *
 *     dw[c,i,j,o] = sum over y,x,b of  padded[c, y*stride + i, x*stride + j, b] * g[o,y,x,b]
 *
 * padded is the image with `pad` explicit zeros around it; an infinite g multiplied by padding gives NaN, as in a
 * direct sum.  A dense layer is a 1x1 image with a 1x1 filter.
 *
 * With r = (c,i,j) the sum is a matrix product, (r by terms) times (terms by o), where a term is a triple (y,x,b).
 *   - The loops vectorise over the output channels, so no sum is across the lanes of a vector.  g is transposed into
 *     panels of BLOCK channels, [panel][y][x][b][BLOCK].  Channels beyond the last are zeros, and their results are not
 *     stored.  If a task has all r of its panels, it transposes chunk by chunk what it uses, so that the panels do not
 *     go through memory; otherwise all of g is transposed once.
 *   - The elements of x are broadcast, and read in place or from a padded copy.  For each r the terms of one image row
 *     are contiguous if the stride is 1; otherwise they form segments of b terms.
 *   - The terms of an image row are split into chunks of at most DEPTH.  The chunk of a panel stays in the L1 cache
 *     during the loop over the tiles of r, and everything that a task reads of a chunk stays in the L2 cache.  A tile,
 *     GRADIENT_ROWS r by one panel, is summed over one chunk in registers and then added to dw.
 *   - A task is a range of tiles and of panels.  Its loops: image row y: chunk: panel: tile.
 *   - If dw is small, x and g are large, and tasks that divide dw would each read all of one of them.  The chunks are
 *     then divided into SPLITS, each with its own sum, and the sums are added in order.
 *
 * Each element of dw is summed in a fixed order that does not depend on the tasks, so the result does not depend on the
 * number of threads.
 *
 * If dw is used only to update the filters, a task is one tile high and all channels wide.  It sums its rows of dw in a
 * scratch buffer, which stays in the L2 cache, and passes them one by one to the update function.  dw is never written
 * to main memory, and the update accesses its arrays sequentially.  The data that the update will read is prefetched
 * panel by panel during the summation.
 */
#include <string.h>
#include "layer.h"
#include "micro_kernel.h"

enum { TASK_ROWS = 288, TASK_CHANNELS = 192 };      /* 216 KiB of dw, as much of g, and x, in an L2 cache */
enum { TASKS_PER_THREAD = 4 };
enum { SPLITS = 8, SPLIT_BYTES = 256 << 10, SPLIT_CHUNKS = 64 };      /* largest dw, fewest chunks */

typedef struct {
    long groups, c, o, all_o, b, pad, stride;                /* c and o of one group */
    long filter_width, filter_height, height, width, padded_height, padded_width, out_height, out_width;
    long rows, tiles, panels;                                /* of one group; rows: number of r = (c,i,j) */
    long segments, run, segment_stride;                      /* an image row: `segments` of `run` contiguous terms */
    long chunk_segments, chunk_run;
    long segment_chunks, run_chunks, splits;                 /* an image row: segment_chunks * run_chunks chunks */
    long task_tiles, task_panels, tile_ranges, panel_ranges;
    int updates;                                             /* whether dw is passed to an update */
} Plan;

typedef struct {
    const real *g;
    real *panels;               /* g transposed, or per thread a chunk of one panel */
    real *padded;               /* the padded copy of x, where pad > 0 */
    long *row_offset;            /* of row r in padded */
    real *scratch;              /* per thread, for updates: dw of one task */
    real *sums;                 /* dw of each split */
    char *end;
} Buffers;

/* Callback that receives a row of dw: n floats at offset `start` of arrays shaped like the filters. */
typedef void Receiver(void *const *arrays, const real *dw, long start, long n);

/* `arrays` is passed to the callback; `shaped` is a null-terminated list of real arrays shaped like the filters. */
typedef struct { Receiver *receive; void *const *arrays, *const *shaped; } Update;

static void choose_chunks(Plan *plan)
{
    int contiguous = plan->stride == 1;
    plan->segments = contiguous ? 1 : plan->out_width;
    plan->run = contiguous ? plan->out_width * plan->b : plan->b;
    plan->segment_stride = plan->stride * plan->b;
    plan->chunk_segments = ceil_div(plan->segments, ceil_div(plan->segments, max(DEPTH / plan->run, 1)));
    plan->chunk_run = ceil_div(plan->run, ceil_div(plan->run, DEPTH));
    plan->segment_chunks = ceil_div(plan->segments, plan->chunk_segments);
    plan->run_chunks = ceil_div(plan->run, plan->chunk_run);
}

static long chunks(const Plan *plan) { return plan->out_height * plan->segment_chunks * plan->run_chunks; }

static void choose_tasks(Plan *plan)
{
    long tasks = TASKS_PER_THREAD * omp_get_max_threads();
    long panel_ranges = ceil_div(plan->panels, max(TASK_CHANNELS / BLOCK, 1)), ranges = ceil_div(plan->rows, TASK_ROWS);
    int small = plan->rows * plan->panels * BLOCK * (long)sizeof(real) <= SPLIT_BYTES;
    if (small && chunks(plan) >= SPLIT_CHUNKS) {         /* a task has all of dw, unless there are many threads */
        plan->splits = SPLITS;
        panel_ranges = 1;
        ranges = ceil_div(tasks, 2 * SPLITS * plan->groups);
    } else if (ranges == 1 && plan->groups * plan->panels >= tasks) {           /* a task has all rows of its panels */
        panel_ranges = max(panel_ranges, ceil_div(tasks, plan->groups));
    } else {
        ranges = max(ranges, ceil_div(tasks, plan->groups * panel_ranges));
    }
    plan->task_panels = ceil_div(plan->panels, panel_ranges);
    plan->panel_ranges = ceil_div(plan->panels, plan->task_panels);
    plan->task_tiles = ceil_div(plan->tiles, min(ranges, plan->tiles));
    plan->tile_ranges = ceil_div(plan->tiles, plan->task_tiles);
}

static void choose_update_tasks(Plan *plan)
{
    plan->task_panels = plan->panels;
    plan->panel_ranges = 1;
    plan->task_tiles = 1;
    plan->tile_ranges = plan->tiles;
}

/* Whether a task transposes the panels that it uses. */
static int transposes_in_tasks(const Plan *plan) { return plan->tile_ranges == 1; }

static Plan gradient_plan(const Layer *l, int updates)
{
    Plan plan = { .groups = l->groups, .c = l->c / l->groups, .o = l->o / l->groups, .all_o = l->o, .b = l->b,
                  .pad = l->pad, .stride = l->stride, .filter_width = l->filter_width,
                  .filter_height = l->filter_height, .height = l->height, .width = l->width,
                  .padded_height = l->height + 2 * l->pad, .padded_width = l->width + 2 * l->pad,
                  .out_height = out_height(l), .out_width = out_width(l), .updates = updates, .splits = 1 };
    plan.rows = plan.c * l->filter_height * l->filter_width;
    plan.tiles = ceil_div(plan.rows, GRADIENT_ROWS);
    plan.panels = ceil_div(plan.o, BLOCK);
    choose_chunks(&plan);
    if (updates)
        choose_update_tasks(&plan);
    else
        choose_tasks(&plan);
    return plan;
}

static void pad_images(const Plan *plan, const real *x, real *padded)
{
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < plan->groups * plan->c * plan->padded_height; i++) {
        long c = i / plan->padded_height, row = i % plan->padded_height - plan->pad;
        long inner = plan->width * plan->b, edge = plan->pad * plan->b;
        real *to = padded + i * plan->padded_width * plan->b;
        if (row < 0 || row >= plan->height) {
            memset(to, 0, plan->padded_width * plan->b * sizeof(real));
            continue;
        }
        memset(to, 0, edge * sizeof(real));
        memcpy(to + edge, x + (c * plan->height + row) * inner, inner * sizeof(real));
        memset(to + edge + inner, 0, edge * sizeof(real));
    }
}

typedef real four __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));
typedef __typeof__(_Generic((real)0, float: (int32_t)0, double: (int64_t)0)) lane;
typedef lane four_lanes __attribute__((vector_size(4 * sizeof(real))));

/* Transpose some terms of one panel: from (channel, term) to (term, channel). */
static void transpose(const real *g, long channel_stride, long channels, long terms, real *panel)
{
    enum { SQUARE = 16 };
    if (channels < BLOCK)
        memset(panel, 0, terms * BLOCK * sizeof(real));
    for (long start = 0; start < terms; start += SQUARE) {
        long end = min(start + SQUARE, terms), fours = channels / 4 * 4, t = start;
        for (; t + 4 <= end; t += 4)
            for (long o = 0; o < fours; o += 4)
                TRANSPOSE_SQUARE(four, four_lanes, g + o * channel_stride + t, channel_stride, panel + t * BLOCK + o,
                                 BLOCK);
        for (long o = 0; o < channels; o++)
            for (long rest = o < fours ? t : start; rest < end; rest++)
                panel[rest * BLOCK + o] = g[o * channel_stride + rest];
    }
}

static void transpose_gradient(const Plan *plan, const real *g, real *panels)
{
    long terms = plan->out_width * plan->b, image = plan->out_height * terms;
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < plan->groups * plan->panels * plan->out_height; i++) {
        long y = i % plan->out_height, panel = i / plan->out_height % plan->panels;
        long group = i / plan->out_height / plan->panels;
        const real *from = g + (group * plan->o + panel * BLOCK) * image + y * terms;
        transpose(from, image, min(BLOCK, plan->o - panel * BLOCK), terms, panels + i * terms * BLOCK);
    }
}

/* The part of dw to which a tile is added; the first tile overwrites it. */
typedef struct { real *dw; long stride, rows, channels; int first; } Target;

static void add_to_edge(const real *sum, Target target)
{
    for (long r = 0; r < min(target.rows, GRADIENT_ROWS); r++)
        for (long o = 0; o < min(target.channels, BLOCK); o++) {
            real *dw = target.dw + r * target.stride + o;
            *dw = sum[r * BLOCK + o] + (target.first ? 0 : *dw);
        }
}

/* Sum GRADIENT_ROWS rows of x times one panel, over `segments` of `run` terms. */
NEVER_INLINE void add_tile(const real *const x[GRADIENT_ROWS], const real *panel, long segments, long run,
                           long segment_stride, Target target)
{
    vector sum[GRADIENT_ROWS][VECTORS], g[VECTORS];
    zero_tile(GRADIENT_ROWS, sum);
    for (long segment = 0; segment < segments; segment++) {
        const real *row[GRADIENT_ROWS];
        UNROLL
        for (int r = 0; r < GRADIENT_ROWS; r++)
            row[r] = x[r] + segment * segment_stride;
        for (long k = 0; k < run; k++, panel += BLOCK) {
            load_row(panel, g);
            UNROLL
            for (int r = 0; r < GRADIENT_ROWS; r++)
                add_product(sum[r], row[r][k], g);
        }
    }
    if (target.rows < GRADIENT_ROWS || target.channels < BLOCK) {
        real copy[GRADIENT_ROWS * BLOCK];
        store_tile(GRADIENT_ROWS, copy, BLOCK, 1, sum);
        add_to_edge(copy, target);
        return;
    }
    store_tile(GRADIENT_ROWS, target.dw, target.stride, target.first, sum);
}

typedef struct { long group, tile, tile_end, panel, panel_end, chunk, chunk_end; } Task;

/* Part of image row y: `segments` segments from `segment`, in each `run` terms from `term`; the first of a task? */
typedef struct { long y, segment, segments, term, run; int first; } Chunk;

/* The part of dw of one task, the distance between its rows, and the update that receives it, or null. */
typedef struct { real *dw; long stride; const Update *update; } TaskTarget;

static long chunk_terms(const Plan *plan) { return plan->chunk_segments * plan->chunk_run; }

/* Offset of a tile in dw. */
static long tile_offset(const Plan *plan, long group, long tile, long panel)
{
    return tile * GRADIENT_ROWS * plan->all_o + group * plan->o + panel * BLOCK;
}

/* Prefetch the arrays that an update reads and writes: during panel p of P, part p of P of the rows of a tile. */
static void prefetch_update(const Plan *plan, const Update *update, long tile, long panel)
{
    long floats = GRADIENT_ROWS * plan->all_o, start = tile * floats;
    long first = floats * panel / plan->panels, end = floats * (panel + 1) / plan->panels;
    for (void *const *array = update->shaped; *array; array++)
        for (long i = first; i < end; i += CACHE_LINE / sizeof(real))
            __builtin_prefetch((const real *)*array + start + i, 1, 2);
}

static void add_chunk(const Plan *plan, const Buffers *buffers, const Task *task, const real *x, Chunk chunk,
                      TaskTarget all)
{
    long terms = plan->out_width * plan->b;
    long first_term = chunk.y * terms + chunk.segment * plan->run + chunk.term;
    long x_start = chunk.y * plan->stride * plan->padded_width * plan->b + chunk.segment * plan->segment_stride
                   + chunk.term;
    const real *group_x = x + task->group * plan->c * plan->padded_height * plan->padded_width * plan->b + x_start;
    Target target = { .stride = all.stride, .first = chunk.first };
    for (long p = task->panel; p < task->panel_end; p++) {
        long panel_terms = (task->group * plan->panels + p) * plan->out_height * terms;
        const real *panel = buffers->panels + (panel_terms + first_term) * BLOCK;
        target.channels = plan->o - p * BLOCK;
        if (transposes_in_tasks(plan)) {
            long image = plan->out_height * terms, threads_part = omp_get_thread_num() * chunk_terms(plan) * BLOCK;
            const real *from = buffers->g + (task->group * plan->o + p * BLOCK) * image + first_term;
            transpose(from, image, min(BLOCK, target.channels), chunk.segments * chunk.run,
                      buffers->panels + threads_part);
            panel = buffers->panels + threads_part;
        }
        if (all.update && target.first)
            prefetch_update(plan, all.update, task->tile, p);
        for (long tile = task->tile; tile < task->tile_end; tile++) {
            const real *rows[GRADIENT_ROWS];
            for (long r = 0; r < GRADIENT_ROWS; r++)
                rows[r] = group_x + buffers->row_offset[min(tile * GRADIENT_ROWS + r, plan->rows - 1)];
            target.rows = plan->rows - tile * GRADIENT_ROWS;
            target.dw = all.dw + (tile - task->tile) * GRADIENT_ROWS * all.stride + (p - task->panel) * BLOCK;
            add_tile(rows, panel, chunk.segments, chunk.run, plan->segment_stride, target);
        }
    }
}

static void run_task(const Plan *plan, const Buffers *buffers, const Task *task, const real *x, TaskTarget all)
{
    for (long i = task->chunk; i < task->chunk_end; i++) {
        long y = i / plan->run_chunks / plan->segment_chunks, first = i == task->chunk;
        long segment = i / plan->run_chunks % plan->segment_chunks * plan->chunk_segments;
        long term = i % plan->run_chunks * plan->chunk_run;
        Chunk chunk = { y, segment, min(plan->chunk_segments, plan->segments - segment),
                        term, min(plan->chunk_run, plan->run - term), first };
        add_chunk(plan, buffers, task, x, chunk, all);
    }
}

static long scratch_stride(const Plan *plan) { return plan->panels * BLOCK + LANES; }     /* avoids cache conflicts */

static void update_task(const Plan *plan, const Buffers *buffers, const Task *task, const real *x,
                        const Update *update)
{
    long stride = scratch_stride(plan), start = tile_offset(plan, task->group, task->tile, 0);
    real *dw = buffers->scratch + omp_get_thread_num() * GRADIENT_ROWS * stride;
    run_task(plan, buffers, task, x, (TaskTarget){ dw, stride, update });
    for (long r = 0; r < min(GRADIENT_ROWS, plan->rows - task->tile * GRADIENT_ROWS); r++)
        update->receive(update->arrays, dw + r * stride, start + r * plan->all_o, plan->o);
}

static Buffers divide(const Plan *plan, char *workspace)
{
    long padded = plan->pad ? plan->groups * plan->c * plan->padded_height * plan->padded_width * plan->b : 0;
    long terms = plan->out_height * plan->out_width * plan->b;
    long scratch = plan->updates * omp_get_max_threads() * GRADIENT_ROWS * scratch_stride(plan);
    long panels = plan->groups * plan->panels * terms;
    if (transposes_in_tasks(plan))
        panels = omp_get_max_threads() * chunk_terms(plan);
    Buffers buffers = { 0 };
    buffers.panels = take(&workspace, panels * BLOCK * sizeof(real));
    buffers.padded = take(&workspace, padded * sizeof(real));
    buffers.row_offset = take(&workspace, plan->rows * sizeof(long));
    buffers.scratch = take(&workspace, scratch * sizeof(real));
    buffers.sums = take(&workspace, (plan->splits > 1 ? plan->splits * plan->rows * plan->all_o : 0) * sizeof(real));
    buffers.end = workspace;
    return buffers;
}

/* Run all tasks; write to dw, or call `update` if it is not null. */
static void run(const Plan *plan, char *workspace, const real *x, const real *g, real *dw, const Update *update)
{
    Buffers buffers = divide(plan, workspace);
    for (long r = 0; r < plan->rows; r++) {
        long j = r % plan->filter_width, i = r / plan->filter_width % plan->filter_height;
        long c = r / plan->filter_width / plan->filter_height;
        buffers.row_offset[r] = ((c * plan->padded_height + i) * plan->padded_width + j) * plan->b;
    }
    if (plan->pad)
        pad_images(plan, x, buffers.padded);
    buffers.g = g;
    if (!transposes_in_tasks(plan))
        transpose_gradient(plan, g, buffers.panels);
    const real *images = plan->pad ? buffers.padded : x;
    #pragma omp parallel for schedule(dynamic)
    for (long i = 0; i < plan->splits * plan->groups * plan->tile_ranges * plan->panel_ranges; i++) {
        long panels = i % plan->panel_ranges, tiles = i / plan->panel_ranges % plan->tile_ranges;
        long group = i / plan->panel_ranges / plan->tile_ranges % plan->groups;
        long split = i / plan->panel_ranges / plan->tile_ranges / plan->groups;
        Task task = { .group = group, .tile = tiles * plan->task_tiles, .panel = panels * plan->task_panels,
                      .chunk = chunks(plan) * split / plan->splits,
                      .chunk_end = chunks(plan) * (split + 1) / plan->splits };
        task.tile_end = min(task.tile + plan->task_tiles, plan->tiles);
        task.panel_end = min(task.panel + plan->task_panels, plan->panels);
        if (update) {
            update_task(plan, &buffers, &task, images, update);
        } else {
            real *sum = plan->splits > 1 ? buffers.sums + split * plan->rows * plan->all_o : dw;
            real *task_dw = sum + tile_offset(plan, task.group, task.tile, task.panel);
            run_task(plan, &buffers, &task, images, (TaskTarget){ task_dw, plan->all_o, 0 });
        }
    }
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < (plan->splits > 1 ? plan->rows * plan->all_o : 0); i++) {
        real sum = 0;
        for (long split = 0; split < plan->splits; split++)
            sum += buffers.sums[split * plan->rows * plan->all_o + i];
        dw[i] = sum;
    }
}

static int64_t plan_bytes(Plan plan) { return (int64_t)divide(&plan, 0).end + CACHE_LINE; }

/* Functions called from Python. */

int64_t filter_gradient_workspace(const Layer *layer) { return plan_bytes(gradient_plan(layer, 0)); }

int64_t filter_gradient_update_workspace(const Layer *layer) { return plan_bytes(gradient_plan(layer, 1)); }

void filter_gradient(const Layer *layer, const real *x, const real *g, real *dw, char *workspace)
{
    Plan plan = gradient_plan(layer, 0);
    run(&plan, workspace, x, g, dw, 0);
}

/* Several threads call receive(arrays, ...) concurrently with the rows of dw; for `shaped` see Update. */
void filter_gradient_update(const Layer *layer, const real *x, const real *g, Receiver *receive, void *const *arrays,
                            void *const *shaped, char *workspace)
{
    Plan plan = gradient_plan(layer, 1);
    run(&plan, workspace, x, g, 0, &(Update){ receive, arrays, shaped });
}

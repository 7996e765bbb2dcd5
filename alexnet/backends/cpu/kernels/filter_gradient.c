/* The gradient of a convolution with respect to its filters, in the c01b layout.
 *
 *     dw[c,i,j,o] = sum over y,x,b of  padded[c, y*stride + i, x*stride + j, b] * g[o,y,x,b]
 *
 * padded is the image with `pad` explicit zeros around it; an infinite g multiplied by padding gives NaN, as in a
 * direct sum.  A dense layer is a 1x1 image with a 1x1 filter.
 *
 * With r = (c,i,j) the sum is a matrix product, (r by terms) times (terms by o), where a term is a triple (y,x,b).
 *   - The loops vectorise over the output channels, so no sum is across the lanes of a vector.  g is transposed once
 *     into panels of LINE channels, [panel][y][x][b][LINE].  Channels beyond the last are zeros, and their results are
 *     not stored.
 *   - The elements of x are broadcast, and read in place or from a padded copy.  For each r the terms of one image row
 *     are contiguous if the stride is 1; otherwise they form segments of b terms.
 *   - The terms of an image row are split into chunks of at most DEPTH.  The chunk of a panel stays in the L1 cache
 *     during the loop over the tiles of r, and everything that a task reads of a chunk stays in the L2 cache.  A tile,
 *     GRADIENT_ROWS r by one panel, is summed over one chunk in registers and then added to dw.
 *   - A task is a range of tiles and of panels.  Its loops: image row y: chunk: panel: tile.
 *
 * Each element of dw is summed by one thread in a fixed order that does not depend on the tasks, so the result does not
 * depend on the number of threads.
 *
 * If dw is used only to update the filters, a task is one tile high and all channels wide.  It sums its rows of dw in a
 * scratch buffer, which stays in the L2 cache, and passes them one by one to the update function.  dw is never written
 * to main memory, and the update accesses its arrays sequentially.  The data that the update will read is prefetched
 * panel by panel during the summation.
 */
#include <stdint.h>
#include <string.h>
#include "tiles.h"

enum { TASK_ROWS = 288, TASK_CHANNELS = 192 };      /* 216 KiB of dw, as much of g, and x, in an L2 cache */
enum { TASKS_PER_THREAD = 4 };

typedef struct {
    long groups, c, o, all_o, b, pad, stride;                /* c and o of one group */
    long columns, rows, height, width, padded_height, padded_width, out_height, out_width;
    long filter_rows, tiles, panels;                         /* of one group */
    long segments, run, segment_step;                        /* an image row: `segments` of `run` contiguous terms */
    long chunk_segments, chunk_run;
    long task_tiles, task_panels, tile_ranges, panel_ranges;
} Sum;

typedef struct {
    float *panels;               /* g transposed */
    float *padded;               /* the padded copy of x, where pad > 0 */
    long *row_of;                /* offset of row r in padded */
    float *scratch;              /* per thread, for updates: dw of one task */
} Workspace;

/* Callback that receives a row of dw: n floats at offset `start` of arrays shaped like the filters. */
typedef void Receiver(void *const *arrays, const float *dw, long start, long n);

/* `arrays` is passed to the callback; `shaped` is a null-terminated list of float arrays shaped like the filters. */
typedef struct { Receiver *receive; void *const *arrays, *const *shaped; } Update;

static void choose_chunks(Sum *s)
{
    int contiguous = s->stride == 1;
    s->segments = contiguous ? 1 : s->out_width;
    s->run = contiguous ? s->out_width * s->b : s->b;
    s->segment_step = s->stride * s->b;
    s->chunk_segments = parts(s->segments, parts(s->segments, most(DEPTH / s->run, 1)));
    s->chunk_run = parts(s->run, parts(s->run, DEPTH));
}

static void choose_tasks(Sum *s)
{
    long wanted = TASKS_PER_THREAD * omp_get_max_threads();
    s->task_panels = parts(s->panels, parts(s->panels, most(TASK_CHANNELS / LINE, 1)));
    s->panel_ranges = parts(s->panels, s->task_panels);
    long ranges = most(parts(s->filter_rows, TASK_ROWS), parts(wanted, s->groups * s->panel_ranges));
    s->task_tiles = parts(s->tiles, least(ranges, s->tiles));
    s->tile_ranges = parts(s->tiles, s->task_tiles);
}

static void choose_update_tasks(Sum *s)
{
    s->task_panels = s->panels;
    s->task_tiles = s->panel_ranges = 1;
    s->tile_ranges = s->tiles;
}

static Sum gradient_sum(const Layer *l, int updates)
{
    Sum s = { .groups = l->groups, .c = l->c / l->groups, .o = l->o / l->groups, .all_o = l->o, .b = l->b,
              .pad = l->pad, .stride = l->stride, .columns = l->columns, .rows = l->rows, .height = l->height,
              .width = l->width, .padded_height = l->height + 2 * l->pad, .padded_width = l->width + 2 * l->pad };
    s.out_height = (s.padded_height - l->rows) / l->stride + 1;
    s.out_width = (s.padded_width - l->columns) / l->stride + 1;
    s.filter_rows = s.c * l->rows * l->columns;
    s.tiles = parts(s.filter_rows, GRADIENT_ROWS);
    s.panels = parts(s.o, LINE);
    choose_chunks(&s);
    if (updates)
        choose_update_tasks(&s);
    else
        choose_tasks(&s);
    return s;
}

static void pad_images(const Sum *s, const float *x, float *padded)
{
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < s->groups * s->c * s->padded_height; i++) {
        long c = i / s->padded_height, row = i % s->padded_height - s->pad;
        long inner = s->width * s->b, edge = s->pad * s->b;
        float *to = padded + i * s->padded_width * s->b;
        if (row < 0 || row >= s->height) {
            memset(to, 0, s->padded_width * s->b * sizeof(float));
            continue;
        }
        memset(to, 0, edge * sizeof(float));
        memcpy(to + edge, x + (c * s->height + row) * inner, inner * sizeof(float));
        memset(to + edge + inner, 0, edge * sizeof(float));
    }
}

/* Transpose some terms of one panel: from (channel, term) to (term, channel). */
static void transpose(const float *g, long channel_step, long channels, long terms, float *panel)
{
    enum { BLOCK = 16 };
    if (channels < LINE)
        memset(panel, 0, terms * LINE * sizeof(float));
    for (long start = 0; start < terms; start += BLOCK) {
        long end = least(start + BLOCK, terms);
        for (long o = 0; o < channels; o++)
            for (long t = start; t < end; t++)
                panel[t * LINE + o] = g[o * channel_step + t];
    }
}

static void transpose_gradient(const Sum *s, const float *g, float *panels)
{
    long terms = s->out_width * s->b, image = s->out_height * terms;
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < s->groups * s->panels * s->out_height; i++) {
        long y = i % s->out_height, panel = i / s->out_height % s->panels, group = i / s->out_height / s->panels;
        const float *from = g + (group * s->o + panel * LINE) * image + y * terms;
        transpose(from, image, least(LINE, s->o - panel * LINE), terms, panels + i * terms * LINE);
    }
}

/* The part of dw to which a tile is added; the first tile overwrites it. */
typedef struct { float *dw; long step, rows, channels; int first; } Target;

static void add_to_edge(const float *sum, Target t)
{
    for (long r = 0; r < least(t.rows, GRADIENT_ROWS); r++)
        for (long o = 0; o < least(t.channels, LINE); o++) {
            float *dw = t.dw + r * t.step + o;
            *dw = sum[r * LINE + o] + (t.first ? 0 : *dw);
        }
}

/* The inner loop: GRADIENT_ROWS rows of x times one panel, over `segments` of `run` terms. */
NEVER_INLINE void add_tile(const float *const x[GRADIENT_ROWS], const float *panel, long segments, long run,
                           long segment_step, Target t)
{
    vector sum[GRADIENT_ROWS][VECTORS];
    UNROLL
    for (int r = 0; r < GRADIENT_ROWS; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            sum[r][v] = (vector){ 0 };
    for (long segment = 0; segment < segments; segment++) {
        const float *row[GRADIENT_ROWS];
        UNROLL
        for (int r = 0; r < GRADIENT_ROWS; r++)
            row[r] = x[r] + segment * segment_step;
        for (long k = 0; k < run; k++, panel += LINE) {
            vector g[VECTORS];
            UNROLL
            for (int v = 0; v < VECTORS; v++)
                g[v] = *(const vector *)(panel + v * LANES);
            UNROLL
            for (int r = 0; r < GRADIENT_ROWS; r++)
                UNROLL
                for (int v = 0; v < VECTORS; v++)
                    sum[r][v] += row[r][k] * g[v];
        }
    }
    if (t.rows < GRADIENT_ROWS || t.channels < LINE) {
        float copy[GRADIENT_ROWS * LINE];
        UNROLL
        for (int r = 0; r < GRADIENT_ROWS; r++)
            UNROLL
            for (int v = 0; v < VECTORS; v++)
                *(vector *)(copy + r * LINE + v * LANES) = sum[r][v];
        add_to_edge(copy, t);
        return;
    }
    UNROLL
    for (int r = 0; r < GRADIENT_ROWS; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            vector *dw = (vector *)(t.dw + r * t.step + v * LANES);
            if (!t.first)
                sum[r][v] += *dw;
            *dw = sum[r][v];
        }
}

typedef struct { long group, tile, tile_end, panel, panel_end; } Task;

/* Part of image row y: `segments` segments from `segment`, in each `run` terms from `term`. */
typedef struct { long y, segment, segments, term, run; } Chunk;

/* The part of dw of one task, the distance between its rows, and the update that receives it, or null. */
typedef struct { float *dw; long step; const Update *update; } Piece;

/* Offset of a tile in dw. */
static long tile_start(const Sum *s, long group, long tile, long panel)
{
    return tile * GRADIENT_ROWS * s->all_o + group * s->o + panel * LINE;
}

/* Prefetch the arrays that an update reads and writes: for one panel, its share of the rows of a tile. */
static void fetch_share(const Sum *s, const Update *update, long tile, long panel)
{
    long floats = GRADIENT_ROWS * s->all_o, start = tile * floats;
    for (void *const *array = update->shaped; *array; array++)
        for (long i = floats * panel / s->panels; i < floats * (panel + 1) / s->panels; i += CACHE_LINE / sizeof(float))
            __builtin_prefetch((const float *)*array + start + i, 1, 2);
}

static void add_chunk(const Sum *s, const Workspace *w, const Task *task, const float *x, Chunk chunk, Piece piece)
{
    long terms = s->out_width * s->b;
    long first_term = chunk.y * terms + chunk.segment * s->run + chunk.term;
    long x_start = chunk.y * s->stride * s->padded_width * s->b + chunk.segment * s->segment_step + chunk.term;
    const float *group_x = x + task->group * s->c * s->padded_height * s->padded_width * s->b + x_start;
    Target t = { .step = piece.step, .first = first_term == 0 };
    for (long p = task->panel; p < task->panel_end; p++) {
        const float *panel = w->panels + ((task->group * s->panels + p) * s->out_height * terms + first_term) * LINE;
        t.channels = s->o - p * LINE;
        if (piece.update && t.first)
            fetch_share(s, piece.update, task->tile, p);
        for (long tile = task->tile; tile < task->tile_end; tile++) {
            const float *rows[GRADIENT_ROWS];
            for (long r = 0; r < GRADIENT_ROWS; r++)
                rows[r] = group_x + w->row_of[least(tile * GRADIENT_ROWS + r, s->filter_rows - 1)];
            t.rows = s->filter_rows - tile * GRADIENT_ROWS;
            t.dw = piece.dw + (tile - task->tile) * GRADIENT_ROWS * piece.step + (p - task->panel) * LINE;
            add_tile(rows, panel, chunk.segments, chunk.run, s->segment_step, t);
        }
    }
}

static void run_task(const Sum *s, const Workspace *w, const Task *task, const float *x, Piece piece)
{
    for (long y = 0; y < s->out_height; y++)
        for (long segment = 0; segment < s->segments; segment += s->chunk_segments)
            for (long term = 0; term < s->run; term += s->chunk_run) {
                Chunk chunk = { y, segment, least(s->chunk_segments, s->segments - segment),
                                term, least(s->chunk_run, s->run - term) };
                add_chunk(s, w, task, x, chunk, piece);
            }
}

static long scratch_step(const Sum *s) { return s->panels * LINE + LANES; }          /* avoids cache conflicts */

static void update_task(const Sum *s, const Workspace *w, const Task *task, const float *x, const Update *update)
{
    long step = scratch_step(s), start = tile_start(s, task->group, task->tile, 0);
    float *dw = w->scratch + omp_get_thread_num() * GRADIENT_ROWS * step;
    run_task(s, w, task, x, (Piece){ dw, step, update });
    for (long r = 0; r < least(GRADIENT_ROWS, s->filter_rows - task->tile * GRADIENT_ROWS); r++)
        update->receive(update->arrays, dw + r * step, start + r * s->all_o, s->o);
}

/* Divide a workspace into its pieces; returns its end, which is the size if start is 0. */
static char *lay_out(const Sum *s, char *start, Workspace *w, int updates)
{
    long padded = s->pad ? s->groups * s->c * s->padded_height * s->padded_width * s->b : 0;
    long terms = s->out_height * s->out_width * s->b;
    w->panels = piece(&start, s->groups * s->panels * LINE * terms * sizeof(float));
    w->padded = piece(&start, padded * sizeof(float));
    w->row_of = piece(&start, s->filter_rows * sizeof(long));
    w->scratch = piece(&start, updates * omp_get_max_threads() * GRADIENT_ROWS * scratch_step(s) * sizeof(float));
    return start;
}

/* Run all tasks; write to dw, or call `update` if it is not null. */
static void run(const Sum *s, const Workspace *w, const float *x, const float *g, float *dw, const Update *update)
{
    for (long r = 0; r < s->filter_rows; r++) {
        long j = r % s->columns, i = r / s->columns % s->rows, c = r / s->columns / s->rows;
        w->row_of[r] = ((c * s->padded_height + i) * s->padded_width + j) * s->b;
    }
    if (s->pad)
        pad_images(s, x, w->padded);
    transpose_gradient(s, g, w->panels);
    #pragma omp parallel for schedule(dynamic)
    for (long i = 0; i < s->groups * s->tile_ranges * s->panel_ranges; i++) {
        long panels = i % s->panel_ranges, tiles = i / s->panel_ranges % s->tile_ranges;
        Task task = { .group = i / s->panel_ranges / s->tile_ranges, .tile = tiles * s->task_tiles,
                      .panel = panels * s->task_panels };
        task.tile_end = least(task.tile + s->task_tiles, s->tiles);
        task.panel_end = least(task.panel + s->task_panels, s->panels);
        const float *images = s->pad ? w->padded : x;
        if (update)
            update_task(s, w, &task, images, update);
        else
            run_task(s, w, &task, images, (Piece){ dw + tile_start(s, task.group, task.tile, task.panel), s->all_o, 0 });
    }
}

static int64_t workspace_bytes(const Layer *l, int updates)
{
    Sum s = gradient_sum(l, updates);
    Workspace w;
    return (long)lay_out(&s, 0, &w, updates) + CACHE_LINE;
}

/* Functions called from Python. */

int64_t filter_gradient_workspace(const Layer *l) { return workspace_bytes(l, 0); }

int64_t filter_gradient_update_workspace(const Layer *l) { return workspace_bytes(l, 1); }

void filter_gradient(const Layer *l, const float *x, const float *g, float *dw, char *workspace)
{
    Sum s = gradient_sum(l, 0);
    Workspace w;
    lay_out(&s, aligned(workspace), &w, 0);
    run(&s, &w, x, g, dw, 0);
}

/* Several threads call receive(arrays, …) concurrently with the rows of dw; for `shaped` see Update. */
void filter_gradient_update(const Layer *l, const float *x, const float *g, Receiver *receive, void *const *arrays,
                            void *const *shaped, char *workspace)
{
    Sum s = gradient_sum(l, 1);
    Workspace w;
    lay_out(&s, aligned(workspace), &w, 1);
    run(&s, &w, x, g, 0, &(Update){ receive, arrays, shaped });
}

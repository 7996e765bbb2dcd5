/* Convolution in the c01b layout, and its gradient with respect to the input.
 *
 *     out[o,y,x,b] = sum over c,i,j of  filters[c,i,j,o] * padded[c, y*stride + i, x*stride + j, b]
 *
 * padded is x with `pad` explicit zeros around each image.  An infinite filter value multiplied by padding gives NaN,
 * as in a direct sum over the padded image.  A dense layer is a 1x1 image with a 1x1 filter.  The input gradient is
 * the same sum over other arrays,
 *
 *     dx[c,u,v,b] = sum over o,i,j of  filters[c, R-1-i, S-1-j, o] * padded[o, u + i, v + j, b]
 *
 * where padded is the gradient with stride-1 zeros between its pixels, shifted by R-1-pad and S-1-pad.
 * At stride 1 this has no overhead; all AlexNet layers that need an input gradient have stride 1.
 *
 * The loops.  With k = (c,i,j) the sum is a matrix product of filters (k by o) and images (k by positions), blocked as
 * in Goto and van de Geijn 2008.
 *   - The images are packed once, with the padding, into lines of LINE images, [image block][c][row][column][LINE].
 *     All vector loads are then full and aligned, the batch may have any size, and the lines of a position are not a
 *     power of two apart, which avoids cache conflicts.  Incomplete lines are padded with zeros, and the results for
 *     the padding are not stored.
 *   - k is split into equal passes of at most DEPTH terms.  A tile of the output, some channels by one line, is summed
 *     over one pass in registers.  The sums of the passes are accumulated in `partial`, in order.
 *   - pass: position: tile of channels.  The lines of one position and pass stay in the L1 cache; the filters, packed
 *     [pass][tile][k][channel], stream in order from the L2 cache.
 *   - A task is a range of positions (image block, y, x) and of tiles.  If there are few positions (dense layers), a
 *     task covers all of them, so only one task uses each filter.  The task packs the filters pass by pass or reads
 *     them in place.  Such layers are bound by the memory bandwidth of reading the filters once, and memory is
 *     fastest for long rows, so they use more channels and shorter passes.  Otherwise all filters are packed
 *     beforehand.
 *
 * Each output is summed by one thread in a fixed order that does not depend on the tasks, so the result does not depend
 * on the number of threads.
 */
#include <stdint.h>
#include <string.h>
#include "tiles.h"

enum { TASK_CHANNELS = 384 };            /* DEPTH * TASK_CHANNELS filters fill 3/8 of a 1 MiB L2 cache */
enum { PARTIAL_BYTES = 320 << 10 };      /* limit of the partial sums of a task, in the same cache */
enum { TASKS_PER_THREAD = 4 };

/* Used if there are few positions and the channels of a term are contiguous. */
enum { FEW_POSITIONS = 16, STREAM_CHANNELS = 1024, STREAM_DEPTH = DEPTH / 2, STREAM_PARTIAL_BYTES = 512 << 10 };
enum { STREAM_TASKS_PER_THREAD = 2 };

/* A sum of products: forward pass or input gradient.  Per group: c input channels, o output channels. */
typedef struct {
    long groups, c, o, b, depth;                        /* depth = c * rows * columns: terms of a sum */
    long rows, columns, stride;                         /* of the filters */
    long height, width, pad_r, pad_c, dilation;         /* of x: dilation - 1 zeros between its pixels */
    long padded_height, padded_width, plane;            /* plane: lines of one packed channel */
    long out_height, out_width, positions, blocks;      /* blocks of LINE images; positions of all blocks */
    long group_step, o_step;                            /* strides in filters */
    long tiles, large_tiles, packed_o;                  /* tiles: large_tiles of FORWARD_ROWS, then SMALL_ROWS */
    long passes, pass_depth;
    long task_positions, task_tiles, position_ranges, tile_ranges;
} Sum;

typedef struct {
    float *lines;                /* packed images */
    float *filters;              /* packed filters, or one part per thread */
    float *partial;              /* one per thread */
    long *line_of, *filter_of;   /* offsets of term k */
} Workspace;

/* Cover o channels by tiles with the least padding. */
static void choose_tiles(Sum *s)
{
    s->packed_o = s->o + FORWARD_ROWS;
    for (long small = 0; small < FORWARD_ROWS; small++) {
        long large = parts(most(s->o - small * SMALL_ROWS, 0), FORWARD_ROWS);
        long covered = large * FORWARD_ROWS + small * SMALL_ROWS;
        if (covered < s->packed_o) {
            s->packed_o = covered;
            s->large_tiles = large;
            s->tiles = large + small;
        }
    }
}

static long tile_start(const Sum *s, long tile)
{
    return tile * FORWARD_ROWS - most(tile - s->large_tiles, 0) * (FORWARD_ROWS - SMALL_ROWS);
}

static long pass_terms(const Sum *s, long pass) { return least(s->pass_depth, s->depth - pass * s->pass_depth); }

static int streams(const Sum *s) { return s->positions <= FEW_POSITIONS; }

/* Whether a tile reads its filters in place: only one task uses them, and the terms of a channel are contiguous. */
static int in_place(const Sum *s, long tile)
{
    int side_by_side = s->o_step > 1 && s->rows * s->columns == 1;
    return streams(s) && side_by_side && tile < s->large_tiles && tile_start(s, tile) + FORWARD_ROWS <= s->o;
}

static void choose_tasks(Sum *s)
{
    long position_bytes = LINE * sizeof(float);
    long channels = least(s->packed_o, TASK_CHANNELS), wanted = TASKS_PER_THREAD * omp_get_max_threads();
    s->task_positions = streams(s) ? s->positions : most(PARTIAL_BYTES / (channels * position_bytes), 8);
    if (streams(s) && s->o_step == 1) {
        channels = least(STREAM_CHANNELS, STREAM_PARTIAL_BYTES / (s->positions * position_bytes));
        wanted = STREAM_TASKS_PER_THREAD * omp_get_max_threads();
    }
    s->position_ranges = parts(s->positions, s->task_positions);
    s->task_positions = parts(s->positions, s->position_ranges);
    s->tile_ranges = most(parts(s->packed_o, channels), parts(wanted, s->groups * s->position_ranges));
    s->task_tiles = parts(s->tiles, least(s->tile_ranges, s->tiles));
    s->tile_ranges = parts(s->tiles, s->task_tiles);
}

static void choose_blocking(Sum *s)
{
    s->depth = s->c * s->rows * s->columns;
    s->plane = (s->padded_height * s->padded_width) | 1;        /* odd: spreads channels over the cache sets */
    s->blocks = parts(s->b, LINE);
    s->positions = s->blocks * s->out_height * s->out_width;
    s->passes = parts(s->depth, streams(s) && s->o_step == 1 ? STREAM_DEPTH : DEPTH);
    s->pass_depth = parts(s->depth, s->passes);
    choose_tiles(s);
    choose_tasks(s);
}

static Sum forward_sum(const Layer *l)
{
    Sum s = { .groups = l->groups, .c = l->c / l->groups, .o = l->o / l->groups, .b = l->b, .rows = l->rows,
              .columns = l->columns, .stride = l->stride, .height = l->height, .width = l->width, .pad_r = l->pad,
              .pad_c = l->pad, .dilation = 1, .padded_height = l->height + 2 * l->pad,
              .padded_width = l->width + 2 * l->pad, .group_step = l->o / l->groups, .o_step = 1 };
    s.out_height = (s.padded_height - l->rows) / l->stride + 1;
    s.out_width = (s.padded_width - l->columns) / l->stride + 1;
    choose_blocking(&s);
    return s;
}

static Sum input_gradient_sum(const Layer *l)
{
    Sum s = { .groups = l->groups, .c = l->o / l->groups, .o = l->c / l->groups, .b = l->b, .rows = l->rows,
              .columns = l->columns, .stride = 1, .height = (l->height + 2 * l->pad - l->rows) / l->stride + 1,
              .width = (l->width + 2 * l->pad - l->columns) / l->stride + 1, .pad_r = l->rows - 1 - l->pad,
              .pad_c = l->columns - 1 - l->pad, .dilation = l->stride, .padded_height = l->height + l->rows - 1,
              .padded_width = l->width + l->columns - 1, .out_height = l->height, .out_width = l->width,
              .group_step = l->o / l->groups, .o_step = l->rows * l->columns * l->o };
    choose_blocking(&s);
    return s;
}

/* The index in x of padded index i, or -1 for a zero. */
static long pixel(long i, long pad, long dilation, long size)
{
    long at = i - pad;
    return at >= 0 && at % dilation == 0 && at / dilation < size ? at / dilation : -1;
}

/* Pack one image row of all image blocks: from (column, b) to [image block][column][LINE]. */
static void pack_row(const Sum *s, const float *row, float *lines, long block_step)
{
    for (long column = 0; column < s->padded_width; column++) {
        long from = pixel(column, s->pad_c, s->dilation, s->width);
        for (long block = 0; block < s->blocks; block++) {
            float *line = lines + block * block_step + column * LINE;
            long images = row && from >= 0 ? least(s->b - block * LINE, LINE) : 0;
            if (images)
                memcpy(line, row + from * s->b + block * LINE, images * sizeof(float));
            if (images < LINE)
                memset(line + images, 0, (LINE - images) * sizeof(float));
        }
    }
}

static void pack_images(const Sum *s, const float *x, float *lines)
{
    long channels = s->groups * s->c, block_step = channels * s->plane * LINE;
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < channels * s->padded_height; i++) {
        long c = i / s->padded_height, row = i % s->padded_height, from = pixel(row, s->pad_r, s->dilation, s->height);
        const float *source = from < 0 ? 0 : x + (c * s->height + from) * s->width * s->b;
        pack_row(s, source, lines + (c * s->plane + row * s->padded_width) * LINE, block_step);
    }
}

/* Pack one tile over n terms to [k][rows], with zeros for channels beyond the last. */
ALWAYS_INLINE void pack_tile(const int rows, const float *filters, long o_step, const long *filter_of, long n,
                             long channels, float *packed)
{
    if (channels >= rows && o_step == 1) {
        for (long k = 0; k < n; k++)
            memcpy(packed + k * rows, filters + filter_of[k], rows * sizeof(float));
        return;
    }
    if (channels < rows)
        memset(packed, 0, n * rows * sizeof(float));
    for (long r = 0; r < least(rows, channels); r++)
        for (long k = 0; k < n; k++)
            packed[k * rows + r] = filters[filter_of[k] + r * o_step];
}

/* Pack the filters of some tiles for one pass.  The outer loop is over a few terms, the inner one over the tiles: the
 * channels of one term are contiguous in memory, but successive terms may be a power of two apart. */
static void pack_filters(const Sum *s, const Workspace *w, const float *filters, long pass, long tile, long tile_end,
                         float *packed)
{
    const long *filter_of = w->filter_of + pass * s->pass_depth;
    long n = pass_terms(s, pass), start = tile_start(s, tile), few = s->o_step == 1 ? 8 : n;
    for (long k = 0; k < n; k += few) {
        long terms = least(few, n - k);
        for (long t = tile; t < tile_end; t++) {
            if (in_place(s, t))
                continue;
            long o = tile_start(s, t);
            const float *from = filters + o * s->o_step;
            float *to = packed + (o - start) * n + k * (t < s->large_tiles ? FORWARD_ROWS : SMALL_ROWS);
            if (t < s->large_tiles)
                pack_tile(FORWARD_ROWS, from, s->o_step, filter_of + k, terms, s->o - o, to);
            else
                pack_tile(SMALL_ROWS, from, s->o_step, filter_of + k, terms, s->o - o, to);
        }
    }
}

static void pack_all_filters(const Sum *s, const Workspace *w, const float *filters)
{
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < s->groups * s->passes * s->tiles; i++) {
        long group = i / (s->passes * s->tiles), pass = i / s->tiles % s->passes, tile = i % s->tiles;
        float *packed = w->filters + (group * s->depth + pass * s->pass_depth) * s->packed_o;
        pack_filters(s, w, filters + group * s->group_step, pass, tile, tile + 1,
                     packed + tile_start(s, tile) * pass_terms(s, pass));
    }
}

/* Destination of the sums of a tile: `partial`, [channel][LINE], or `out` after the last pass. */
typedef struct { float *partial, *out; long out_step, channels, images; int first, last; } Target;

ALWAYS_INLINE void store_row(const vector *sum, float *out, long images)
{
    float edge[LINE];
    float *line = images < LINE ? edge : out;
    UNROLL
    for (int v = 0; v < VECTORS; v++)
        *(vector *)(line + v * LANES) = sum[v];
    if (images < LINE)
        memcpy(out, edge, images * sizeof(float));
}

/* The inner loop: `rows` channels by one line of images, over n terms; filters at [k * k_step + channel * o_step]. */
ALWAYS_INLINE void sum_tile(const int rows, const float *lines, const long *line_of, long n, const float *filters,
                            const long k_step, const long o_step, Target t)
{
    vector sum[FORWARD_ROWS][VECTORS];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            sum[r][v] = (vector){ 0 };
    for (long k = 0; k < n; k++, filters += k_step) {
        const float *line = lines + line_of[k];
        vector x[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            x[v] = *(const vector *)(line + v * LANES);
        UNROLL
        for (int r = 0; r < rows; r++)
            UNROLL
            for (int v = 0; v < VECTORS; v++)
                sum[r][v] += filters[r * o_step] * x[v];
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        vector *partial = (vector *)(t.partial + r * LINE);
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            if (!t.first)
                sum[r][v] += partial[v];
            if (!t.last)
                partial[v] = sum[r][v];
        }
        if (t.last && r < t.channels)
            store_row(sum[r], t.out + r * t.out_step, t.images);
    }
}

NEVER_INLINE void large_tile(const float *lines, const long *line_of, long n, const float *filters, Target t)
{
    sum_tile(FORWARD_ROWS, lines, line_of, n, filters, FORWARD_ROWS, 1, t);
}

NEVER_INLINE void small_tile(const float *lines, const long *line_of, long n, const float *filters, Target t)
{
    sum_tile(SMALL_ROWS, lines, line_of, n, filters, SMALL_ROWS, 1, t);
}

NEVER_INLINE void tile_in_place(const float *lines, const long *line_of, long n, const float *filters, long o_step,
                                Target t)
{
    sum_tile(FORWARD_ROWS, lines, line_of, n, filters, 1, o_step, t);
}

typedef struct {
    long group, position, position_end, tile, tile_end;
    const float *filters;                /* of the group, not packed */
    float *out;                          /* of the group */
} Task;

/* Compute all tiles of a task at one position, over one pass. */
static void sum_position(const Sum *s, const Workspace *w, const Task *task, long pass, long position,
                         const float *packed, float *partial)
{
    long image = s->out_height * s->out_width, block = position / image, pixel = position % image;
    long y = pixel / s->out_width, x = pixel % s->out_width, n = pass_terms(s, pass);
    long channel = (block * s->groups + task->group) * s->c;
    const float *lines = w->lines + (channel * s->plane + (y * s->padded_width + x) * s->stride) * LINE;
    const long *line_of = w->line_of + pass * s->pass_depth;
    Target t = { .out_step = image * s->b, .images = s->b - block * LINE, .first = pass == 0,
                 .last = pass == s->passes - 1 };
    long start = tile_start(s, task->tile);
    for (long tile = task->tile; tile < task->tile_end; tile++) {
        long o = tile_start(s, tile);
        t.partial = partial + (o - start) * LINE;
        t.out = task->out + o * t.out_step + pixel * s->b + block * LINE;
        t.channels = s->o - o;
        if (in_place(s, tile))
            tile_in_place(lines, line_of, n, task->filters + o * s->o_step + pass * s->pass_depth, s->o_step, t);
        else
            (tile < s->large_tiles ? large_tile : small_tile)(lines, line_of, n, packed + (o - start) * n, t);
    }
}

static void run_task(const Sum *s, const Workspace *w, const Task *task)
{
    long start = tile_start(s, task->tile), channels = tile_start(s, task->tile_end) - start;
    long thread = omp_get_thread_num(), task_channels = s->task_tiles * FORWARD_ROWS;
    float *partial = w->partial + thread * s->task_positions * task_channels * LINE;
    for (long pass = 0; pass < s->passes; pass++) {
        long n = pass_terms(s, pass);
        float *packed;
        if (streams(s)) {
            packed = w->filters + thread * s->pass_depth * task_channels;
            pack_filters(s, w, task->filters, pass, task->tile, task->tile_end, packed);
        } else {
            packed = w->filters + (task->group * s->depth + pass * s->pass_depth) * s->packed_o + start * n;
        }
        for (long position = task->position; position < task->position_end; position++)
            sum_position(s, w, task, pass, position, packed, partial + (position - task->position) * channels * LINE);
    }
}

static void run(const Sum *s, const Workspace *w, const float *x, const float *filters, float *out)
{
    pack_images(s, x, w->lines);
    if (!streams(s))
        pack_all_filters(s, w, filters);
    #pragma omp parallel for schedule(dynamic)
    for (long i = 0; i < s->groups * s->position_ranges * s->tile_ranges; i++) {
        long tiles = i % s->tile_ranges, positions = i / s->tile_ranges % s->position_ranges;
        Task task = { .group = i / s->tile_ranges / s->position_ranges,
                      .position = positions * s->task_positions, .tile = tiles * s->task_tiles };
        task.filters = filters + task.group * s->group_step;
        task.out = out + task.group * s->o * s->out_height * s->out_width * s->b;
        task.position_end = least(task.position + s->task_positions, s->positions);
        task.tile_end = least(task.tile + s->task_tiles, s->tiles);
        run_task(s, w, &task);
    }
}

/* Divide a workspace into its pieces; returns its end, which is the size if start is 0. */
static char *lay_out(const Sum *s, char *start, Workspace *w)
{
    long threads = omp_get_max_threads(), task_channels = s->task_tiles * FORWARD_ROWS;
    long filters = streams(s) ? threads * s->pass_depth * task_channels : s->groups * s->depth * s->packed_o;
    long partial = s->passes > 1 ? threads * s->task_positions * task_channels * LINE : 0;
    w->lines = piece(&start, s->blocks * s->groups * s->c * s->plane * LINE * sizeof(float));
    w->filters = piece(&start, filters * sizeof(float));
    w->partial = piece(&start, partial * sizeof(float));
    w->line_of = piece(&start, s->depth * sizeof(long));
    w->filter_of = piece(&start, s->depth * sizeof(long));
    return start;
}

static long workspace_bytes(Sum s)
{
    Workspace w;
    return (long)lay_out(&s, 0, &w) + CACHE_LINE;
}

static void line_offsets(const Sum *s, long *line_of)
{
    for (long k = 0; k < s->depth; k++) {
        long j = k % s->columns, i = k / s->columns % s->rows, c = k / s->columns / s->rows;
        line_of[k] = (c * s->plane + i * s->padded_width + j) * LINE;
    }
}

/* Functions called from Python. */

int64_t forward_workspace(const Layer *l) { return workspace_bytes(forward_sum(l)); }

int64_t input_gradient_workspace(const Layer *l) { return workspace_bytes(input_gradient_sum(l)); }

void forward(const Layer *l, const float *x, const float *filters, float *out, char *workspace)
{
    Sum s = forward_sum(l);
    Workspace w;
    lay_out(&s, aligned(workspace), &w);
    line_offsets(&s, w.line_of);
    for (long k = 0; k < s.depth; k++)
        w.filter_of[k] = k * l->o;
    run(&s, &w, x, filters, out);
}

void input_gradient(const Layer *l, const float *filters, const float *g, float *dx, char *workspace)
{
    Sum s = input_gradient_sum(l);
    Workspace w;
    lay_out(&s, aligned(workspace), &w);
    line_offsets(&s, w.line_of);
    for (long k = 0, taps = s.rows * s.columns; k < s.depth; k++)
        w.filter_of[k] = (taps - 1 - k % taps) * l->o + k / taps;
    run(&s, &w, g, filters, dx);
}

/* Convolution in the c01b layout, and its gradient with respect to the input.
 *
 *     out[o,y,x,b] = sum over c,i,j of  filters[c,i,j,o] * padded[c, y*stride + i, x*stride + j, b]
 *
 * padded is x with `pad` explicit zeros around each image.  An infinite filter value multiplied by padding gives NaN,
 * as in a direct sum over the padded image.  A dense layer is a 1x1 image with a 1x1 filter.  The input gradient is
 * the same sum over other arrays.  At stride 1,
 *
 *     dx[c,u,v,b] = sum over o,i,j of  filters[c, R-1-i, S-1-j, o] * padded[o, u + i, v + j, b]
 *
 * where padded is the gradient, shifted by R-1-pad and S-1-pad.  At stride s, each of the s * s phases of dx, pixels
 * (p + s u, q + s v), is such a sum with stride 1 over the taps (i,j) that reach it: those with i = p + pad modulo s,
 * j = q + pad modulo s.  A phase that no tap reaches is zero.
 *
 * The loops.  With k = (c,i,j) the sum is a matrix product of filters (k by o) and images (k by positions), blocked as
 * in Goto and van de Geijn 2008.
 *   - The images are packed once, with the padding, into pixels of BLOCK images, [image block][c][row][column][BLOCK].
 *     All vector loads are then full and aligned, the batch may have any size, and the pixels of a position are not a
 *     power of two apart, which avoids cache conflicts.  Incomplete blocks are padded with zeros, and the results for
 *     the padding are not stored.
 *   - If that needs fewer blocks, as with few images, a block is BLOCK consecutive elements (column, image) instead: the
 *     images are packed with the padding, [c][row][column][b], so the terms (c,i,j) of adjacent elements are adjacent,
 *     too.  The last columns of each padded row give results that are not stored.  With stride s, a channel is packed as
 *     s * s phases, [c][phase][row / s][column / s][b].  Each sum has the same terms in the same order in both cases.
 *   - If even fewer sums suffice with vectors of output channels, channel_vectors.h replaces the loops below.
 *   - Images of one pixel, which are also the pixels of a 1x1 convolution, are packed by the task that uses them, pass
 *     by pass, instead: they stay in the L2 cache and do not go through memory twice.
 *   - k is split into equal passes of at most DEPTH terms.  A tile of the output, some channels by one block of images,
 *     is summed over one pass in registers.  The sums of the passes are accumulated in `partial`, in order.
 *   - pass: position: tile of channels.  The pixels of one position and pass stay in the L1 cache; the filters, packed
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
#include <string.h>
#include "layer.h"
#include "micro_kernel.h"

enum { TASK_CHANNELS = 384 };            /* DEPTH * TASK_CHANNELS filters fill 3/8 of a 1 MiB L2 cache */
enum { PARTIAL_BYTES = 320 << 10 };      /* limit of the partial sums of a task, in the same cache */
enum { TASK_IMAGE_BYTES = 256 << 10 };   /* limit of the images that a task packs itself, in the same cache */
enum { TASKS_PER_THREAD = 4 };

/* Used if there are few positions and the channels of a term are contiguous. */
enum { FEW_POSITIONS = 16, STREAM_CHANNELS = 1024, STREAM_DEPTH = DEPTH / 2, STREAM_PARTIAL_BYTES = 512 << 10 };
enum { STREAM_TASKS_PER_THREAD = 2 };

/* A forward pass or an input gradient as a sum of products.  Per group: c input channels, o output channels. */
typedef struct {
    long groups, c, o, b, depth;                        /* depth: terms of a sum, c * filter_height * filter_width */
    long filter_height, filter_width, stride;
    long height, width, pad_top, pad_left;              /* of x */
    long padded_height, padded_width, plane;            /* plane: pixels of one packed channel */
    long out_height, out_width, positions, blocks;      /* blocks of BLOCK images; positions of all blocks */
    long out_step, out_start, out_row, out_plane;       /* in `out`: of a pixel, the first one, a row, a channel */
    long group_stride, o_stride;                        /* distances in filters */
    long first_tap, tap_step, tap_row;                  /* in filters: the first tap; between taps and rows of taps */
    long tiles, large_tiles, packed_o;                  /* tiles: large_tiles of FORWARD_ROWS, then SMALL_ROWS */
    long passes, pass_depth;
    long task_positions, task_tiles, position_ranges, tile_ranges;
    int rotated;                                        /* filters rotated by 180 degrees: input gradient */
    int interleaved;                                    /* a block, or a tile of channel_vectors.h, is elements
                                                           (column, image) of a row */
    long phase_height, phase_row;                       /* then: of one phase; elements of a row */
    long channel_blocks, row_tiles;                     /* of channel_vectors.h; channel_blocks: 0 if not used */
} Plan;

typedef struct {
    const real *x;              /* images that are not packed */
    real *images;               /* packed images, or those of one pass and task per thread */
    real *filters;              /* packed filters, or one part per thread */
    real *partial;              /* one per thread */
    long *image_offset;          /* of term k in packed images */
    long *filter_offset;         /* of term k in filters that are not packed */
    char *end;
} Buffers;

/* Cover o channels by tiles with the least padding. */
static void choose_tiles(Plan *plan)
{
    plan->packed_o = plan->o + FORWARD_ROWS;
    for (long small = 0; small < FORWARD_ROWS; small++) {
        long large = ceil_div(max(plan->o - small * SMALL_ROWS, 0), FORWARD_ROWS);
        long covered = large * FORWARD_ROWS + small * SMALL_ROWS;
        if (covered < plan->packed_o) {
            plan->packed_o = covered;
            plan->large_tiles = large;
            plan->tiles = large + small;
        }
    }
}

static long tile_start(const Plan *plan, long tile)
{
    return tile * FORWARD_ROWS - max(tile - plan->large_tiles, 0) * (FORWARD_ROWS - SMALL_ROWS);
}

static long pass_terms(const Plan *plan, long pass)
{
    return min(plan->pass_depth, plan->depth - pass * plan->pass_depth);
}

static int streams(const Plan *plan) { return plan->positions <= FEW_POSITIONS && !plan->channel_blocks; }

/* Whether a tile reads its filters in place: only one task uses them, and the terms of a channel are contiguous. */
static int in_place(const Plan *plan, long tile)
{
    int contiguous = plan->o_stride > 1 && plan->filter_height * plan->filter_width == 1;
    return streams(plan) && contiguous && tile < plan->large_tiles && tile_start(plan, tile) + FORWARD_ROWS <= plan->o;
}

/* Whether each task packs its images: an image is one pixel. */
static int packs_in_tasks(const Plan *plan)
{
    return plan->padded_height * plan->padded_width == 1 && !streams(plan) && !plan->interleaved;
}

static void choose_tasks(Plan *plan)
{
    long position_bytes = BLOCK * sizeof(real);
    long channels = min(plan->packed_o, TASK_CHANNELS);
    long tasks = TASKS_PER_THREAD * omp_get_max_threads();
    plan->task_positions = streams(plan) ? plan->positions : max(PARTIAL_BYTES / (channels * position_bytes), 8);
    if (streams(plan) && plan->o_stride == 1) {
        channels = min(STREAM_CHANNELS, STREAM_PARTIAL_BYTES / (plan->positions * position_bytes));
        tasks = STREAM_TASKS_PER_THREAD * omp_get_max_threads();
    }
    if (packs_in_tasks(plan))
        plan->task_positions = min(plan->task_positions, TASK_IMAGE_BYTES / (plan->pass_depth * position_bytes));
    plan->position_ranges = ceil_div(plan->positions, plan->task_positions);
    plan->task_positions = ceil_div(plan->positions, plan->position_ranges);
    long ranges = max(ceil_div(plan->packed_o, channels), ceil_div(tasks, plan->groups * plan->position_ranges));
    plan->task_tiles = ceil_div(plan->tiles, min(ranges, plan->tiles));
    plan->tile_ranges = ceil_div(plan->tiles, plan->task_tiles);
}

/* The tasks of channel_vectors.h: blocks of channels by ranges of tiles whose partial sums stay in the cache. */
static void choose_channel_tasks(Plan *plan)
{
    plan->row_tiles = ceil_div(plan->out_width * plan->b, ELEMENTS);
    long tiles = plan->out_height * plan->row_tiles, tile_bytes = ELEMENTS * BLOCK * sizeof(real);
    long tasks = ceil_div(TASKS_PER_THREAD * omp_get_max_threads(), plan->groups * plan->channel_blocks);
    long ranges = max(min(tasks, tiles), ceil_div(tiles, PARTIAL_BYTES / tile_bytes));
    plan->task_tiles = ceil_div(tiles, ranges);
    plan->tile_ranges = ceil_div(tiles, plan->task_tiles);
}

/* Whether vectors of channels compute fewer sums than blocks, counting those that are not stored.  Not for the input
 * gradient, whose channels are far apart in `filters`, and not for dense layers, which read filters in long rows. */
static int channel_vectors_pay(const Plan *plan)
{
    long pixels = plan->out_height * plan->out_width;
    return !plan->rotated && (pixels > 1 || plan->positions > FEW_POSITIONS)
           && ceil_div(plan->o, BLOCK) * BLOCK * pixels * plan->b < plan->packed_o * plan->positions * BLOCK;
}

/* Use blocks of (column, image) if fewer suffice, then vectors of channels if they pay. */
static void choose_blocks(Plan *plan)
{
    plan->phase_height = ceil_div(plan->padded_height, plan->stride);
    plan->phase_row = ceil_div(plan->padded_width, plan->stride) * plan->b;
    long interleaved = ceil_div((plan->out_height - 1) * plan->phase_row + plan->out_width * plan->b, BLOCK);
    plan->blocks = ceil_div(plan->b, BLOCK);
    plan->positions = plan->blocks * plan->out_height * plan->out_width;
    plan->plane = (plan->padded_height * plan->padded_width) | 1;        /* odd: spreads channels over the cache sets */
    plan->interleaved = interleaved < plan->positions;
    plan->positions = min(plan->positions, interleaved);
    if (channel_vectors_pay(plan)) {
        plan->channel_blocks = ceil_div(plan->o, BLOCK);
        plan->interleaved = 1;
    }
    if (plan->interleaved)
        plan->plane = plan->stride * plan->stride * plan->phase_height * plan->phase_row;
}

static void choose_blocking(Plan *plan)
{
    plan->depth = plan->c * plan->filter_height * plan->filter_width;
    choose_tiles(plan);
    choose_blocks(plan);
    plan->passes = ceil_div(plan->depth, streams(plan) && plan->o_stride == 1 ? STREAM_DEPTH : DEPTH);
    plan->pass_depth = ceil_div(plan->depth, plan->passes);
    if (plan->channel_blocks)
        choose_channel_tasks(plan);
    else
        choose_tasks(plan);
}

static Plan forward_plan(const Layer *l)
{
    Plan plan = { .groups = l->groups, .c = l->c / l->groups, .o = l->o / l->groups, .b = l->b,
                  .filter_height = l->filter_height, .filter_width = l->filter_width, .stride = l->stride,
                  .height = l->height, .width = l->width, .pad_top = l->pad, .pad_left = l->pad,
                  .padded_height = l->height + 2 * l->pad, .padded_width = l->width + 2 * l->pad,
                  .out_height = out_height(l), .out_width = out_width(l),
                  .out_step = l->b, .out_row = out_width(l) * l->b,
                  .out_plane = out_height(l) * out_width(l) * l->b,
                  .group_stride = l->o / l->groups, .o_stride = 1, .tap_step = 1, .tap_row = l->filter_width };
    choose_blocking(&plan);
    return plan;
}

/* One axis of a phase of the input gradient: the taps first, first + stride, ... of a filter reach it. */
typedef struct { long first, taps, pad, n; } Phase;

static Phase phase_of(long start, long n, long filter, long stride, long pad)
{
    long first = (start + pad) % stride, taps = first < filter ? ceil_div(filter - first, stride) : 0;
    return (Phase){ first, taps, taps - 1 - (start + pad) / stride, ceil_div(n - start, stride) };
}

/* The plan of a phase, numbered from 0 to stride^2 - 1.  `depth` is 0 if no tap reaches it, or if it has no pixels. */
static Plan input_gradient_plan(const Layer *l, long number)
{
    long row = number / l->stride, column = number % l->stride;
    Phase rows = phase_of(row, l->height, l->filter_height, l->stride, l->pad);
    Phase columns = phase_of(column, l->width, l->filter_width, l->stride, l->pad);
    Plan plan = { .groups = l->groups, .c = l->o / l->groups, .o = l->c / l->groups, .b = l->b,
                  .filter_height = rows.taps, .filter_width = columns.taps, .stride = 1,
                  .height = out_height(l), .width = out_width(l), .pad_top = rows.pad, .pad_left = columns.pad,
                  .padded_height = rows.n + rows.taps - 1, .padded_width = columns.n + columns.taps - 1,
                  .out_height = rows.n, .out_width = columns.n,
                  .out_step = l->stride * l->b, .out_start = (row * l->width + column) * l->b,
                  .out_row = l->stride * l->width * l->b, .out_plane = l->height * l->width * l->b,
                  .group_stride = l->o / l->groups, .o_stride = l->filter_height * l->filter_width * l->o,
                  .first_tap = rows.first * l->filter_width + columns.first, .tap_step = l->stride,
                  .tap_row = l->stride * l->filter_width, .rotated = 1 };
    if (min(rows.n, columns.n) > 0 && rows.taps * columns.taps > 0)
        choose_blocking(&plan);
    return plan;
}

/* The index in x of padded index i, or -1 for a zero. */
static long source_index(long i, long pad, long size) { return i >= pad && i - pad < size ? i - pad : -1; }

/* Pack one image row of all image blocks: from (column, b) to [image block][column][BLOCK]; a null row is zeros. */
static void pack_row(const Plan *plan, const real *row, real *packed, long block_stride)
{
    for (long column = 0; column < plan->padded_width; column++) {
        long source = source_index(column, plan->pad_left, plan->width);
        for (long block = 0; block < plan->blocks; block++) {
            real *pixel = packed + block * block_stride + column * BLOCK;
            long images = row && source >= 0 ? min(plan->b - block * BLOCK, BLOCK) : 0;
            if (images)
                memcpy(pixel, row + source * plan->b + block * BLOCK, images * sizeof(real));
            if (images < BLOCK)
                memset(pixel + images, 0, (BLOCK - images) * sizeof(real));
        }
    }
}

static void pack_images(const Plan *plan, const real *x, real *packed)
{
    long channels = plan->groups * plan->c, block_stride = channels * plan->plane * BLOCK;
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < channels * plan->padded_height; i++) {
        long c = i / plan->padded_height, row = i % plan->padded_height;
        long source = source_index(row, plan->pad_top, plan->height);
        const real *from = source < 0 ? 0 : x + (c * plan->height + source) * plan->width * plan->b;
        pack_row(plan, from, packed + (c * plan->plane + row * plan->padded_width) * BLOCK, block_stride);
    }
}

/* Pack one channel as phases. */
static void pack_phases(const Plan *plan, const real *x, real *packed)
{
    long b = plan->b, row_elements = plan->width * b;
    memset(packed, 0, plan->plane * sizeof(real));
    for (long row = 0; row < plan->padded_height; row++) {
        long source_row = source_index(row, plan->pad_top, plan->height);
        if (source_row < 0)
            continue;
        const real *from = x + source_row * row_elements;
        real *to = packed + (row % plan->stride * plan->stride * plan->phase_height + row / plan->stride)
                            * plan->phase_row;
        long phase = plan->phase_height * plan->phase_row;
        for (long column = 0; column < plan->padded_width; column++) {
            long source = source_index(column, plan->pad_left, plan->width);
            if (source >= 0 && plan->stride == 1) {                              /* all columns from here on */
                memcpy(to + column * b, from + source * b,
                       min(plan->width - source, plan->padded_width - column) * b * sizeof(real));
                break;
            }
            if (source >= 0)
                copy_few(to + column % plan->stride * phase + column / plan->stride * b, from + source * b, b);
        }
    }
}

static void pack_interleaved(const Plan *plan, const real *x, real *packed)
{
    long channels = plan->groups * plan->c;
    #pragma omp parallel for schedule(static)
    for (long c = 0; c < channels; c++)
        pack_phases(plan, x + c * plan->height * plan->width * plan->b, packed + c * plan->plane);
    memset(packed + channels * plan->plane, 0, BLOCK * sizeof(real));                /* read with the last block */
}

/* Pack one tile over n terms to [k][rows], with zeros for channels beyond the last. */
ALWAYS_INLINE void pack_tile(const int rows, const real *filters, long o_stride, const long *filter_offset, long n,
                             long channels, real *packed)
{
    if (channels >= rows && o_stride == 1) {
        for (long k = 0; k < n; k++)
            memcpy(packed + k * rows, filters + filter_offset[k], rows * sizeof(real));
        return;
    }
    if (channels < rows)
        memset(packed, 0, n * rows * sizeof(real));
    for (long r = 0; r < min(rows, channels); r++)
        for (long k = 0; k < n; k++)
            packed[k * rows + r] = filters[filter_offset[k] + r * o_stride];
}

/* Pack the filters of some tiles for one pass.  The outer loop is over a few terms, the inner one over the tiles: the
 * channels of one term are contiguous in memory, but successive terms may be a power of two apart. */
static void pack_filters(const Plan *plan, const Buffers *buffers, const real *filters, long pass, long tile,
                         long tile_end, real *packed)
{
    const long *filter_offset = buffers->filter_offset + pass * plan->pass_depth;
    long n = pass_terms(plan, pass), start = tile_start(plan, tile), few = plan->o_stride == 1 ? 8 : n;
    for (long k = 0; k < n; k += few) {
        long terms = min(few, n - k);
        for (long t = tile; t < tile_end; t++) {
            if (in_place(plan, t))
                continue;
            long o = tile_start(plan, t);
            const real *from = filters + o * plan->o_stride;
            real *to = packed + (o - start) * n + k * (t < plan->large_tiles ? FORWARD_ROWS : SMALL_ROWS);
            if (t < plan->large_tiles)
                pack_tile(FORWARD_ROWS, from, plan->o_stride, filter_offset + k, terms, plan->o - o, to);
            else
                pack_tile(SMALL_ROWS, from, plan->o_stride, filter_offset + k, terms, plan->o - o, to);
        }
    }
}

/* Start of the packed filters of a group from a pass on, if all filters are packed beforehand. */
static real *packed_pass(const Plan *plan, const Buffers *buffers, long group, long pass)
{
    return buffers->filters + (group * plan->depth + pass * plan->pass_depth) * plan->packed_o;
}

static void pack_all_filters(const Plan *plan, const Buffers *buffers, const real *filters)
{
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < plan->groups * plan->passes * plan->tiles; i++) {
        long group = i / (plan->passes * plan->tiles), pass = i / plan->tiles % plan->passes, tile = i % plan->tiles;
        real *packed = packed_pass(plan, buffers, group, pass);
        pack_filters(plan, buffers, filters + group * plan->group_stride, pass, tile, tile + 1,
                     packed + tile_start(plan, tile) * pass_terms(plan, pass));
    }
}

/* A block of elements (column, image): the sums from index `first` on.  Of each `row` elements the first `width` are
 * stored, b at a time, in `out` `step` apart in rows `out_row` apart. */
typedef struct { long first, row, width, height, b, step, out_row; } Elements;

/* Destination of the sums of a tile: `partial`, [channel][BLOCK], or `out` after the last pass. */
typedef struct {
    real *partial, *out;
    long out_stride, channels, images;
    int first, last;
    const Elements *elements;            /* null if a block is images */
} Target;

/* Store one channel; only the first `images` sums if the block is incomplete. */
ALWAYS_INLINE void store_images(const vector *sum, real *out, long images)
{
    real block[BLOCK];
    store_row(images < BLOCK ? block : out, sum);
    if (images < BLOCK)
        memcpy(out, block, images * sizeof(real));
}

/* Store one channel of a block of elements. */
NEVER_INLINE void store_elements(const real *block, real *out, const Elements *e)
{
    long row = e->first / e->row, at = e->first % e->row;
    for (long lane = 0; lane < BLOCK && row < e->height; row++, at = 0) {
        long n = min(e->row - at, BLOCK - lane), stored = min(e->width - at, n);
        real *to = out + row * e->out_row;
        for (long i = 0, run; i < stored; i += run) {
            long column = (at + i) / e->b, image = (at + i) % e->b;
            run = e->step == e->b ? stored : min(e->b - image, stored - i);          /* adjacent pixels are adjacent */
            copy_few(to + column * e->step + image, block + lane + i, run);
        }
        lane += n;
    }
}

/* Fetch the cache lines of one channel of a block of images, which are written after the sum. */
ALWAYS_INLINE void prefetch_row(const real *out)
{
    UNROLL
    for (int n = 0; n < BLOCK; n += CACHE_LINE / (int)sizeof(real))
        __builtin_prefetch(out + n, 1);
}

/* Sum `rows` channels by one block of images over n terms; filters are at [k * k_stride + channel * o_stride]. */
ALWAYS_INLINE void sum_tile(const int rows, const real *images, const long *image_offset, long n, const real *filters,
                            const long k_stride, const long o_stride, Target target)
{
    vector sum[FORWARD_ROWS][VECTORS], x[VECTORS];
    if (target.last && !target.elements)
        for (int r = 0; r < min(rows, target.channels); r++)
            prefetch_row(target.out + r * target.out_stride);
    zero_tile(rows, sum);
    for (long k = 0; k < n; k++, filters += k_stride) {
        load_row(images + image_offset[k], x);
        UNROLL
        for (int r = 0; r < rows; r++)
            add_product(sum[r], filters[r * o_stride], x);
    }
    if (!target.last) {
        store_tile(rows, target.partial, BLOCK, target.first, sum);
        return;
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            if (!target.first)
                sum[r][v] += load(target.partial + r * BLOCK + v * LANES);
        if (r < target.channels && target.elements) {
            real block[BLOCK];
            store_row(block, sum[r]);
            store_elements(block, target.out + r * target.out_stride, target.elements);
        } else if (r < target.channels) {
            store_images(sum[r], target.out + r * target.out_stride, target.images);
        }
    }
}

NEVER_INLINE void large_tile(const real *images, const long *image_offset, long n, const real *filters, Target target)
{
    sum_tile(FORWARD_ROWS, images, image_offset, n, filters, FORWARD_ROWS, 1, target);
}

NEVER_INLINE void small_tile(const real *images, const long *image_offset, long n, const real *filters, Target target)
{
    sum_tile(SMALL_ROWS, images, image_offset, n, filters, SMALL_ROWS, 1, target);
}

NEVER_INLINE void tile_in_place(const real *images, const long *image_offset, long n, const real *filters,
                                long o_stride, Target target)
{
    sum_tile(FORWARD_ROWS, images, image_offset, n, filters, 1, o_stride, target);
}

typedef struct {
    long group, position, position_end, tile, tile_end;
    const real *filters;                /* of the group, not packed */
    real *images;                       /* packed, if the task packs them */
    real *out;                          /* of the group */
} Task;

/* Compute all tiles of a task at one position, over one pass. */
static void sum_position(const Plan *plan, const Buffers *buffers, const Task *task, long pass, long position,
                         const real *packed, real *partial)
{
    long out_pixels = plan->out_height * plan->out_width, n = pass_terms(plan, pass);
    long block = position / out_pixels, y = position % out_pixels / plan->out_width, x = position % plan->out_width;
    long channel = (block * plan->groups + task->group) * plan->c, out = y * plan->out_row + x * plan->out_step;
    const real *images = buffers->images
                         + (channel * plan->plane + (y * plan->padded_width + x) * plan->stride) * BLOCK;
    const Elements elements = { position * BLOCK, plan->phase_row, plan->out_width * plan->b, plan->out_height,
                                plan->b, plan->out_step, plan->out_row };
    const long *image_offset = buffers->image_offset + pass * plan->pass_depth;
    Target target = { .out_stride = plan->out_plane, .images = plan->b - block * BLOCK, .first = pass == 0,
                      .last = pass == plan->passes - 1 };
    if (packs_in_tasks(plan))
        images = task->images + ((position - task->position) * n - pass * plan->pass_depth) * BLOCK;
    if (plan->interleaved) {
        images = buffers->images + task->group * plan->c * plan->plane + position * BLOCK;
        target.elements = &elements;
        block = out = 0;
    }
    long start = tile_start(plan, task->tile), in_place_offset = buffers->filter_offset[pass * plan->pass_depth];
    for (long tile = task->tile; tile < task->tile_end; tile++) {
        long o = tile_start(plan, tile);
        const real *filters = packed + (o - start) * n;
        target.partial = partial + (o - start) * BLOCK;
        target.out = task->out + o * target.out_stride + out + block * BLOCK;
        target.channels = plan->o - o;
        if (in_place(plan, tile))
            tile_in_place(images, image_offset, n, task->filters + o * plan->o_stride + in_place_offset,
                          plan->o_stride, target);
        else if (tile < plan->large_tiles)
            large_tile(images, image_offset, n, filters, target);
        else
            small_tile(images, image_offset, n, filters, target);
    }
}

/* Pack the images of a task over one pass, from [c][b] to [position][c][BLOCK]. */
static void pack_task(const Plan *plan, const Buffers *buffers, const Task *task, long pass)
{
    long n = pass_terms(plan, pass), first = task->position * BLOCK;
    long whole = min(task->position_end, plan->b / BLOCK) - task->position, rest = plan->b % BLOCK;
    for (long k = 0; k < n; k++) {
        const real *from = buffers->x + (task->group * plan->c + pass * plan->pass_depth + k) * plan->b + first;
        real *to = task->images + k * BLOCK;
        for (long position = 0; position < whole; position++)
            memcpy(to + position * n * BLOCK, from + position * BLOCK, BLOCK * sizeof(real));
        if (whole < task->position_end - task->position) {
            memset(to + whole * n * BLOCK, 0, BLOCK * sizeof(real));
            memcpy(to + whole * n * BLOCK, from + whole * BLOCK, rest * sizeof(real));
        }
    }
}

static void run_task(const Plan *plan, const Buffers *buffers, Task *task)
{
    long start = tile_start(plan, task->tile), channels = tile_start(plan, task->tile_end) - start;
    long thread = omp_get_thread_num(), task_channels = plan->task_tiles * FORWARD_ROWS;
    real *partial = buffers->partial + thread * plan->task_positions * task_channels * BLOCK;
    task->images = buffers->images + thread * plan->task_positions * plan->pass_depth * BLOCK;
    for (long pass = 0; pass < plan->passes; pass++) {
        real *packed;
        if (streams(plan)) {
            packed = buffers->filters + thread * plan->pass_depth * task_channels;
            pack_filters(plan, buffers, task->filters, pass, task->tile, task->tile_end, packed);
        } else {
            packed = packed_pass(plan, buffers, task->group, pass) + start * pass_terms(plan, pass);
        }
        if (packs_in_tasks(plan))
            pack_task(plan, buffers, task, pass);
        for (long position = task->position; position < task->position_end; position++)
            sum_position(plan, buffers, task, pass, position, packed,
                         partial + (position - task->position) * channels * BLOCK);
    }
}

#include "channel_vectors.h"

static void find_offsets(const Plan *plan, const Buffers *buffers)
{
    long taps = plan->filter_height * plan->filter_width;
    for (long k = 0; k < plan->depth; k++) {
        long c = k / taps, tap = k % taps, i = tap / plan->filter_width, j = tap % plan->filter_width;
        long phase = i % plan->stride * plan->stride + j % plan->stride;
        if (plan->interleaved)
            buffers->image_offset[k] = c * plan->plane + j / plan->stride * plan->b
                                       + (phase * plan->phase_height + i / plan->stride) * plan->phase_row;
        else
            buffers->image_offset[k] = (c * plan->plane + i * plan->padded_width + j) * BLOCK;
        if (plan->rotated) {
            long from = plan->first_tap + (plan->filter_height - 1 - i) * plan->tap_row
                        + (plan->filter_width - 1 - j) * plan->tap_step;
            buffers->filter_offset[k] = from * plan->groups * plan->group_stride + c;
        } else {
            buffers->filter_offset[k] = k * plan->groups * plan->group_stride;
        }
    }
}

static Buffers divide(const Plan *plan, char *workspace)
{
    long threads = omp_get_max_threads(), task_channels = plan->task_tiles * FORWARD_ROWS;
    long all_filters = plan->groups * plan->depth * plan->packed_o;
    long filters = streams(plan) ? threads * plan->pass_depth * task_channels : all_filters;
    long partial = plan->passes > 1 ? threads * plan->task_positions * task_channels * BLOCK : 0;
    if (plan->channel_blocks) {
        filters = threads * plan->pass_depth * BLOCK;
        partial = threads * plan->task_tiles * ELEMENTS * BLOCK;
    }
    long planes = plan->groups * plan->c * plan->plane;
    long images = plan->interleaved ? planes + BLOCK : plan->blocks * planes * BLOCK;
    if (packs_in_tasks(plan))
        images = threads * plan->task_positions * plan->pass_depth * BLOCK;
    Buffers buffers = { 0 };
    buffers.images = take(&workspace, images * sizeof(real));
    buffers.filters = take(&workspace, filters * sizeof(real));
    buffers.partial = take(&workspace, partial * sizeof(real));
    buffers.image_offset = take(&workspace, plan->depth * sizeof(long));
    buffers.filter_offset = take(&workspace, plan->depth * sizeof(long));
    buffers.end = workspace;
    return buffers;
}

static void run(const Plan *plan, const real *x, const real *filters, real *out, char *workspace)
{
    Buffers buffers = divide(plan, workspace);
    buffers.x = x;
    find_offsets(plan, &buffers);
    if (plan->interleaved)
        pack_interleaved(plan, x, buffers.images);
    else if (!packs_in_tasks(plan))
        pack_images(plan, x, buffers.images);
    if (plan->channel_blocks) {
        run_channel_tasks(plan, &buffers, filters, out);
        return;
    }
    if (!streams(plan))
        pack_all_filters(plan, &buffers, filters);
    #pragma omp parallel for schedule(dynamic)
    for (long i = 0; i < plan->groups * plan->position_ranges * plan->tile_ranges; i++) {
        long tiles = i % plan->tile_ranges, positions = i / plan->tile_ranges % plan->position_ranges;
        Task task = { .group = i / plan->tile_ranges / plan->position_ranges,
                      .position = positions * plan->task_positions, .tile = tiles * plan->task_tiles };
        task.filters = filters + task.group * plan->group_stride;
        task.out = out + plan->out_start + task.group * plan->o * plan->out_plane;
        task.position_end = min(task.position + plan->task_positions, plan->positions);
        task.tile_end = min(task.tile + plan->task_tiles, plan->tiles);
        run_task(plan, &buffers, &task);
    }
}

/* The number of elements in a block. */
int64_t block_size(void) { return BLOCK; }

#include "entry.h"

static long phases(const Layer *layer) { return layer->stride * layer->stride; }

int64_t input_gradient_workspace(const Layer *layer)
{
    int64_t bytes = CACHE_LINE;
    for (long phase = 0; phase < phases(layer); phase++) {
        Plan plan = input_gradient_plan(layer, phase);
        if (plan.depth)
            bytes = max(bytes, plan_bytes(plan));
    }
    return bytes;
}

static void zero(real *x, long n)
{
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i++)
        x[i] = 0;
}

void input_gradient(const Layer *layer, const real *filters, const real *g, real *dx, char *workspace)
{
    long zeros = 0;
    for (long phase = 0; phase < phases(layer); phase++)
        zeros += input_gradient_plan(layer, phase).depth == 0;
    if (zeros)
        zero(dx, layer->c * layer->height * layer->width * layer->b);
    for (long phase = 0; phase < phases(layer); phase++) {
        Plan plan = input_gradient_plan(layer, phase);
        if (plan.depth)
            run(&plan, g, filters, dx, workspace);
    }
}

/* The gradient of a convolution with respect to its filters, in the c01b layout, with Winograd transforms (winograd.h).
 *
 *     dw[c,i,j,o] = sum over y,x,b of  padded[c, y*stride + i, x*stride + j, b] * g[o,y,x,b]
 *
 * for filters of 3 x 3 or 5 x 5, which may be phases of a strided convolution.  The points of each tile of 4 x 4
 * gradients are multiplied by those of the pixels under it.  Only their sum over all tiles and images is transformed
 * to filters:
 *
 *     sums[point][c][o] = sum over tiles, b of  data[point][c][tile,b] * gradients[point][o][tile,b]
 *     dw = E_r' (sums / N) E_r
 *
 * The products vectorise over the output channels, so no sum is across the lanes of a vector.  Therefore the
 * gradients of a tile are transposed from blocks of images to blocks of channels before the transform.
 *
 * The loops.  A position is a tile of a block of BLOCK images, or several tiles of few images.  If the sums are small,
 * the positions are divided into splits, each with separate sums; the number of splits grows with the amount of work.
 * A split is processed in chunks of positions, whose points stay in the L3 cache unless the sums are larger than it:
 *   1. for each c, position: transform the pixels of the tile into data points;
 *      for each panel of BLOCK o, position: transform the gradients into points;
 *   2. for each point, panel, tile of GRADIENT_ROWS c: compute a product, summed over the chunk in registers, and
 *      add it to the sums.
 * Finally the sums of the splits are added and transformed to filters.  If there are at least as many splits as
 * threads, each thread processes whole splits without synchronisation.  Otherwise, for small batches and for sums
 * that would evict the points from the cache, all threads process one chunk together, with two barriers.  This is as
 * fast on an idle machine, but slow on a busy one.
 *
 * Splits and chunks do not depend on the number of threads, and each element is computed by one thread in a fixed
 * order, so the result does not depend on the number of threads.
 */
#include "winograd.h"

/* Bytes of points in the L3 cache: for one of several splits, and for a single split that all threads process. */
enum { CHUNK_BYTES = 4 << 20, SINGLE_CHUNK_BYTES = 8 << 20 };
enum { MIN_SPLIT_POSITIONS = 32, MAX_SPLITS = 8, MAX_SPLIT_BYTES = 8 << 20 };       /* bytes: of sums of all points */
enum { TERMS = 384 };                    /* of a product: 24 KiB of gradients in an L1 cache */
enum { TASKS_PER_THREAD = 8 };

typedef struct {
    Tiling tiling;
    long splits, split, chunk;           /* number of splits; positions per split and per chunk */
    long lanes;                          /* terms of a position */
    long panels, row_tiles;              /* of one group: panels of BLOCK o, tiles of GRADIENT_ROWS c */
    long data_stride, gradient_stride;   /* floats of one position: of a row tile, of a panel */
    long data_floats, gradient_floats;   /* of a chunk */
    long sums_floats;                    /* of a split */
} Plan;

enum { TILE_FLOATS = GRADIENT_ROWS * BLOCK };
enum { PANEL_FLOATS = (BLOCK | 1) * BLOCK };               /* odd number of rows: spreads points over the cache sets */

typedef struct {
    /* data and gradients: one chunk per team of threads */
    float *data;                         /* [group][row tile][position][point][GRADIENT_ROWS c][BLOCK images] */
    float *gradients;                    /* [group][panel][position][point][image][BLOCK channels] */
    float *sums;                         /* [split][point][group][panel][c][BLOCK channels] */
    char *end;
} Buffers;

static long sums_offset(const Plan *plan, long point, long panel)
{
    return (point * plan->tiling.groups * plan->panels + panel) * plan->row_tiles * TILE_FLOATS;
}

static Plan gradient_plan(const Layer *layer)
{
    Tiling t = make_tiling(layer);
    long lanes = t.mixed ? t.tile_rows * t.tile_columns * t.b : t.b;
    Plan plan = { .tiling = t, .lanes = min(BLOCK, lanes), .panels = ceil_div(t.o, BLOCK),
                  .row_tiles = ceil_div(t.c, GRADIENT_ROWS), .data_stride = t.points * TILE_FLOATS,
                  .gradient_stride = t.points * PANEL_FLOATS };
    long position_floats = t.groups * (plan.row_tiles * plan.data_stride + plan.panels * plan.gradient_stride);
    plan.sums_floats = sums_offset(&plan, t.points, 0);
    int can_split = plan.sums_floats * (long)sizeof(float) <= MAX_SPLIT_BYTES;
    plan.splits = can_split ? max(min(t.positions / MIN_SPLIT_POSITIONS, MAX_SPLITS), 1) : 1;
    long floats = CHUNK_BYTES / (long)sizeof(float);
    if (plan.splits == 1)                /* a chunk reads and writes all sums, which takes long if they are large */
        floats = max(SINGLE_CHUNK_BYTES / (long)sizeof(float), 2 * plan.sums_floats);
    long chunk = min(max(floats / position_floats, 1), max(TERMS / plan.lanes, 1));
    plan.split = ceil_div(t.positions, plan.splits);
    plan.chunk = ceil_div(plan.split, ceil_div(plan.split, chunk));
    plan.data_floats = t.groups * plan.row_tiles * plan.chunk * plan.data_stride;
    plan.gradient_floats = t.groups * plan.panels * plan.chunk * plan.gradient_stride;
    return plan;
}

/* Number of teams: one team per thread, or one team of all threads. */
static long teams(const Plan *plan) { return plan->splits >= omp_get_max_threads() ? omp_get_max_threads() : 1; }

/* ---- 1. gradients */

typedef int32_t lanes __attribute__((vector_size(4 * LANES)));

/* Element i of the result is element from[i] of the concatenation of a and b. */
ALWAYS_INLINE vector shuffle(vector a, vector b, lanes from)
{
#ifdef __clang__
    vector result;
    UNROLL
    for (int i = 0; i < LANES; i++)
        result[i] = from[i] < LANES ? a[from[i]] : b[from[i] - LANES];
    return result;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

/* Transpose LANES rows: log2(LANES) times, interleave the first half of the rows with the second half. */
ALWAYS_INLINE void transpose(vector *rows)
{
    lanes low, high;
    UNROLL
    for (int i = 0; i < LANES; i++) {
        low[i] = i / 2 + i % 2 * LANES;
        high[i] = low[i] + LANES / 2;
    }
    UNROLL
    for (int stage = 1; stage < LANES; stage *= 2) {
        vector shuffled[LANES];
        UNROLL
        for (int i = 0; i < LANES / 2; i++) {
            shuffled[2 * i] = shuffle(rows[i], rows[i + LANES / 2], low);
            shuffled[2 * i + 1] = shuffle(rows[i], rows[i + LANES / 2], high);
        }
        UNROLL
        for (int i = 0; i < LANES; i++)
            rows[i] = shuffled[i];
    }
}

/* Transpose one pixel of a panel from (channel, image) to (image, channel), images `stride` floats apart, with zeros
 * for channels and images beyond the last. */
static void transpose_pixel(const float *g, long channel_stride, long channels, long images, float *to, long stride)
{
    for (long o = 0; o < BLOCK; o += LANES)
        for (long b = 0; b < BLOCK; b += LANES) {
            vector rows[LANES];
            UNROLL
            for (int i = 0; i < LANES; i++) {
                const float *from = g + (o + i) * channel_stride + b;
                rows[i] = o + i < channels ? load_some(from, images - b) : (vector){ 0 };
            }
            transpose(rows);
            UNROLL
            for (int i = 0; i < LANES; i++)
                store(to + (b + i) * stride + o, rows[i]);
        }
}

ALWAYS_INLINE void transform_gradient(const int n, const float *g, float *points)
{
    for (long v = 0; v < BLOCK; v += LANES) {
        vector in[OUTPUTS * OUTPUTS], out[MAX_SQUARE];
        UNROLL
        for (int i = 0; i < OUTPUTS * OUTPUTS; i++)
            in[i] = load(g + i * BLOCK + v);
        evaluate_square(n, OUTPUTS, in, out);
        for (int i = 0; i < n * n; i++) {
            __builtin_prefetch(points + i * PANEL_FLOATS + v + 2 * BLOCK, 1);        /* two images ahead */
            store(points + i * PANEL_FLOATS + v, out[i]);
        }
    }
}

/* Copy pixel i of each tile of a position from `channels` channels to [channel][BLOCK], zeros outside the tiles. */
static void copy_gradients(const Tiling *t, const float *g, long channel_stride, long channels, long position, long i,
                           float *copy)
{
    memset(copy, 0, channels * BLOCK * sizeof(float));
    FOR_SEGMENTS(t, position, tile) {
        if (i / OUTPUTS >= tile.height || i % OUTPUTS >= tile.width)
            continue;
        long pixel = (tile.row + i / OUTPUTS) * t->out_width + tile.column + i % OUTPUTS;
        const float *from = g + pixel * t->b + tile.image;
        for (long o = 0; o < channels; o++)
            copy_few(copy + o * BLOCK + tile.lane, from + o * channel_stride, tile.lanes);
    }
}

/* Compute the points of one panel at one position. */
static void transform_panel(const Plan *plan, const float *g, long panel, long position, float *points)
{
    const Tiling *t = &plan->tiling;
    long group = panel / plan->panels, o = panel % plan->panels * BLOCK, channels = min(BLOCK, t->o - o);
    long channel_stride = t->out_height * t->out_width * t->b;
    const float *panel_g = g + (group * t->o + o) * channel_stride;
    float transposed[BLOCK][OUTPUTS * OUTPUTS][BLOCK], copy[BLOCK * BLOCK];
    Segment tile;
    find_segment(t, position, 0, &tile);
    for (long i = 0; i < OUTPUTS * OUTPUTS; i++) {
        float *to = transposed[0][i];
        if (t->mixed) {
            copy_gradients(t, panel_g, channel_stride, channels, position, i, copy);
            transpose_pixel(copy, BLOCK, channels, BLOCK, to, OUTPUTS * OUTPUTS * BLOCK);
            continue;
        }
        long pixel = (tile.row + i / OUTPUTS) * t->out_width + tile.column + i % OUTPUTS;
        int inside = i / OUTPUTS < tile.height && i % OUTPUTS < tile.width;
        transpose_pixel(panel_g + pixel * t->b + tile.image, channel_stride, inside ? channels : 0, tile.lanes, to,
                        OUTPUTS * OUTPUTS * BLOCK);
    }
    for (long lane = 0; lane < plan->lanes; lane++, points += BLOCK) {
        if (t->n == 6)
            transform_gradient(6, transposed[lane][0], points);
        else
            transform_gradient(8, transposed[lane][0], points);
    }
}

/* ---- 2. products */

/* Sum GRADIENT_ROWS channels c by one panel of o over the terms of the positions with the given indices. */
NEVER_INLINE void multiply_tile(const Plan *plan, const float *data, const float *gradients, const long *position,
                                long positions, int first, float *sums)
{
    vector sum[GRADIENT_ROWS][VECTORS], g[VECTORS];
    zero_tile(GRADIENT_ROWS, sum);
    for (long i = 0; i < positions; i++) {
        const float *x = data + position[i] * plan->data_stride;
        const float *panel = gradients + position[i] * plan->gradient_stride;
        for (const float *end = x + plan->lanes; x < end; x++, panel += BLOCK) {
            load_row(panel, g);
            UNROLL
            for (int r = 0; r < GRADIENT_ROWS; r++)
                add_product(sum[r], x[r * BLOCK], g);
        }
    }
    store_tile(GRADIENT_ROWS, sums, BLOCK, first, sum);
}

/* The positions from `start` to `end`, with their points and sums; the first chunk of a split overwrites the sums. */
typedef struct { long start, end; float *data, *gradients, *sums; int first; } Chunk;

/* Step 2 for one point of one panel. */
static void multiply_point(const Plan *plan, const Chunk *chunk, long point, long panel)
{
    long tile = panel / plan->panels * plan->row_tiles, position[TERMS], positions = 0;
    long tile_stride = plan->chunk * plan->data_stride;
    const float *data = chunk->data + tile * tile_stride + point * TILE_FLOATS;
    const float *gradients = chunk->gradients + panel * plan->chunk * plan->gradient_stride + point * PANEL_FLOATS;
    float *sums = chunk->sums + sums_offset(plan, point, panel);
    for (long p = chunk->start; p < chunk->end; p++)
        if (needs(&plan->tiling, p, point))
            position[positions++] = p - chunk->start;
    for (long i = 0; i < plan->row_tiles; i++, data += tile_stride, sums += TILE_FLOATS)
        multiply_tile(plan, data, gradients, position, positions, chunk->first, sums);
}

/* ---- 3. filters */

/* Compute the filters from one channel c to one panel of o. */
static void transform_sums(const Plan *plan, const Buffers *buffers, long panel, long c, float *dw)
{
    const Tiling *t = &plan->tiling;
    long group = panel / plan->panels, o = panel % plan->panels * BLOCK, channels = min(BLOCK, t->o - o);
    float sums[MAX_SQUARE * BLOCK], taps[MAX_SQUARE * BLOCK];
    for (long i = 0; i < t->points; i++)
        for (long k = 0; k < BLOCK; k++) {
            const float *of_split = buffers->sums + sums_offset(plan, i, panel) + c * BLOCK + k;
            float sum = *of_split;
            for (long split = 1; split < plan->splits; split++)
                sum += of_split[split * plan->sums_floats];
            sums[i * BLOCK + k] = sum * inverse(t->n, i / t->n) * inverse(t->n, i % t->n);
        }
    for (long v = 0; v < BLOCK; v += LANES) {
        if (t->n == 6)
            interpolate_square(6, 3, sums + v, taps + v);
        else
            interpolate_square(8, 5, sums + v, taps + v);
    }
    for (long i = 0; i < t->taps * t->taps; i++) {
        long tap = tap_index(t, c % t->phases / t->stride, c % t->stride, i / t->taps, i % t->taps);
        float *to = dw + (c / t->phases * t->size * t->size + tap) * t->groups * t->o + group * t->o + o;
        if (tap >= 0)
            memcpy(to, taps + i * BLOCK, channels * sizeof(float));
    }
}

/* ---- complete pass */

/* Called by all threads of a team. */
static void add_chunk(const Plan *plan, const float *x, const float *g, const Chunk *chunk)
{
    const Tiling *t = &plan->tiling;
    long length = chunk->end - chunk->start, channels = t->groups * t->c, panels = t->groups * plan->panels;
    #pragma omp for schedule(dynamic)
    for (long i = 0; i < channels + panels * length; i++) {
        if (i < channels) {
            long tile = i / t->c * plan->row_tiles + i % t->c / GRADIENT_ROWS, row = i % t->c % GRADIENT_ROWS;
            float *to = chunk->data + tile * plan->chunk * plan->data_stride + row * BLOCK;
            transform_channel(t, x, i, chunk->start, chunk->end, to, TILE_FLOATS, plan->data_stride);
        } else {
            long panel = (i - channels) / length, position = (i - channels) % length;
            float *to = chunk->gradients + (panel * plan->chunk + position) * plan->gradient_stride;
            transform_panel(plan, g, panel, chunk->start + position, to);
        }
    }
    long products = t->points * panels, task = max(products / (TASKS_PER_THREAD * omp_get_max_threads()), 1);
    #pragma omp for schedule(dynamic, task)
    for (long i = 0; i < products; i++)
        multiply_point(plan, chunk, i / panels, i % panels);
}

static void add_split(const Plan *plan, const Buffers *buffers, const float *x, const float *g, long split, long team)
{
    long first = split * plan->split, end = min(first + plan->split, plan->tiling.positions);
    for (long start = first; start < end; start += plan->chunk) {
        Chunk chunk = { start, min(start + plan->chunk, end), buffers->data + team * plan->data_floats,
                        buffers->gradients + team * plan->gradient_floats,
                        buffers->sums + split * plan->sums_floats, start == first };
        add_chunk(plan, x, g, &chunk);
    }
}

static void add_splits(const Plan *plan, const Buffers *buffers, const float *x, const float *g)
{
    if (teams(plan) == 1) {
        #pragma omp parallel
        for (long split = 0; split < plan->splits; split++)
            add_split(plan, buffers, x, g, split, 0);
        return;
    }
    #pragma omp parallel for schedule(dynamic)
    for (long split = 0; split < plan->splits; split++) {
        long team = omp_get_thread_num();
        #pragma omp parallel num_threads(1)                  /* a team of one thread for the inner loops */
        add_split(plan, buffers, x, g, split, team);
    }
}

static Buffers divide(const Plan *plan, char *workspace)
{
    Buffers buffers;
    buffers.data = take(&workspace, teams(plan) * plan->data_floats * sizeof(float));
    buffers.gradients = take(&workspace, teams(plan) * plan->gradient_floats * sizeof(float));
    buffers.sums = take(&workspace, plan->splits * plan->sums_floats * sizeof(float));
    buffers.end = workspace;
    return buffers;
}

/* Functions called from Python. */

int64_t filter_gradient_workspace(const Layer *layer)
{
    Plan plan = gradient_plan(layer);
    return (int64_t)divide(&plan, 0).end + CACHE_LINE;
}

void filter_gradient(const Layer *layer, const float *x, const float *g, float *dw, char *workspace)
{
    Plan plan = gradient_plan(layer);
    const Tiling *t = &plan.tiling;
    Buffers buffers = divide(&plan, workspace);
    add_splits(&plan, &buffers, x, g);
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < t->groups * plan.panels * t->c; i++)
        transform_sums(&plan, &buffers, i / t->c, i % t->c, dw);
}

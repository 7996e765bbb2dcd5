/* Convolution in the c01b layout with Winograd transforms (winograd.h), and its gradient with respect to the input.
 *
 *     out[o,y,x,b] = sum over c,i,j of  filters[c,i,j,o] * padded[c, y*stride + i, x*stride + j, b]
 *
 * The transforms support filters of 3 x 3 or 5 x 5 at stride 1.  A strided convolution is split into stride^2 phases,
 * with the pixels and taps (i*stride + p, j*stride + q), and becomes a convolution of stride 1 over channels
 * (c,p,q).  AlexNet's 11 x 11 filters at stride 4 become 3 x 3 filters over 48 channels, with some zero taps.  The
 * input gradient, at stride 1, is a convolution with the filters rotated by 180 degrees, the channels exchanged, and
 * padding R - 1 - pad.
 *
 * The n^2 points of a tile of 4 x 4 outputs are independent, and for each point the sum over c is a matrix product:
 *
 *     products[point][position][o] = sum over c of  filters[point][c][o] * data[point][position][c]
 *
 * A position is a tile of a block of BLOCK images; with few images, several tiles share a block.  Each scalar of the
 * formula is a block, so the transforms need no shuffles.  3 x 3 needs 36 multiplications instead of 144, 5 x 5 needs
 * 64 instead of 400.
 *
 * The loops.  Filters are transformed once, to [point][tile of FORWARD_ROWS channels][c][FORWARD_ROWS].  Then each
 * thread processes chunks of positions, whose points stay in the L3 cache:
 *   1. for each c, position: transform the pixels of the tile, read in place, into data points;
 *   2. for each point, position, tile of channels: compute a product, summed over c in registers;
 *   3. for each o, position: transform the products into outputs.
 * In step 2 the data of one position stay in the L1 cache, and the filters of one point in the L2 cache.  Parallel
 * loops within each step would need less memory, but all threads would wait for the slowest at each barrier.
 *
 * Each element is computed by one thread in a fixed order, so the result does not depend on the number of threads.
 */
#include "winograd.h"

enum { CHUNK_BYTES = 4 << 20 };          /* of data and products: the part of the L3 cache for one thread */
enum { CHUNKS_PER_THREAD = 4 };
enum { PREFETCH_DISTANCE = 8 };          /* for writing, in filters */

typedef struct {
    Tiling tiling;
    long chunk;                                         /* positions processed at a time */
    long channel_tiles, packed_o;                       /* register tiles of FORWARD_ROWS output channels */
    long point_stride;                                  /* filters: floats from one point to the next */
    long channel_stride;                                /* data and products: floats from one channel to the next */
    long data_floats, product_floats;                   /* of a chunk */
    int rotated;                                        /* filters rotated by 180 degrees: input gradient */
} Plan;

typedef struct {
    float *filters;              /* [point][group][channel tile][c][FORWARD_ROWS] */
    float *data;                 /* per thread, [group][position of the chunk][c][point][BLOCK] */
    float *products;             /* per thread, [group][position of the chunk][packed_o][point][BLOCK] */
    char *end;
} Buffers;

static Plan forward_plan(const Layer *layer)
{
    Tiling t = make_tiling(layer);
    Plan plan = { .tiling = t, .channel_tiles = ceil_div(t.o, FORWARD_ROWS) };
    plan.packed_o = plan.channel_tiles * FORWARD_ROWS;
    /* Odd numbers of blocks spread the filters of one channel, and the channels of one point, over the cache sets. */
    plan.point_stride = (ceil_div(t.groups * plan.packed_o * t.c, BLOCK) | 1) * BLOCK;
    plan.channel_stride = (t.points | 1) * BLOCK;
    long position_bytes = plan.channel_stride * t.groups * (t.c + plan.packed_o) * (long)sizeof(float);
    long chunks = max(ceil_div(t.positions, max(CHUNK_BYTES / position_bytes, 1)),
                      CHUNKS_PER_THREAD * omp_get_max_threads());
    plan.chunk = ceil_div(t.positions, min(chunks, t.positions));
    plan.data_floats = t.groups * plan.chunk * t.c * plan.channel_stride;
    plan.product_floats = t.groups * plan.chunk * plan.packed_o * plan.channel_stride;
    return plan;
}

/* The input gradient as a forward pass, from the output gradient with channels o to channels c. */
static Plan input_gradient_plan(const Layer *l)
{
    Layer exchanged = { .c = l->o, .height = l->height + 2 * l->pad - l->filter_height + 1,
                        .width = l->width + 2 * l->pad - l->filter_width + 1, .b = l->b, .o = l->c,
                        .filter_height = l->filter_height, .filter_width = l->filter_width, .stride = 1,
                        .pad = l->filter_height - 1 - l->pad, .groups = l->groups };
    Plan plan = forward_plan(&exchanged);
    plan.rotated = 1;
    return plan;
}

/* ---- filters: U = E g E' / N */

ALWAYS_INLINE void filter_points(const int n, const int taps, const vector *g, vector *out)
{
    evaluate_square(n, taps, g, out);
    for (int i = 0; i < n; i++)
        UNROLL
        for (int j = 0; j < n; j++)
            out[i * n + j] *= inverse(n, i) * inverse(n, j);
}

static void filter_square(const Tiling *t, const vector *g, vector *out)
{
    if (t->taps == 3)
        filter_points(6, 3, g, out);
    else
        filter_points(8, 5, g, out);
}

static long packed_offset(const Plan *plan, long point, long group, long tile, long c)
{
    return point * plan->point_stride + ((group * plan->channel_tiles + tile) * plan->tiling.c + c) * FORWARD_ROWS;
}

/* Transform the filters of the forward pass; a vector holds the channels of a tile. */
static void transform_filters(const Plan *plan, const float *filters, float *packed)
{
    const Tiling *t = &plan->tiling;
    long all_o = t->groups * t->o, size = t->size * t->size;
    #pragma omp for schedule(static)
    for (long i = 0; i < t->groups * plan->channel_tiles * t->c; i++) {
        long c = i % t->c, tile = i / t->c % plan->channel_tiles, group = i / t->c / plan->channel_tiles;
        vector taps[MAX_SQUARE], out[MAX_SQUARE];
        long p = c % t->phases / t->stride, q = c % t->stride, o = tile * FORWARD_ROWS;
        const float *filter = filters + c / t->phases * size * all_o + group * t->o + o;
        for (long row = 0, k = 0; row < t->taps; row++)
            for (long column = 0; column < t->taps; column++, k++) {
                long tap = tap_index(t, p, q, row, column);
                taps[k] = tap < 0 ? (vector){ 0 } : load_some(filter + tap * all_o, t->o - o);
            }
        filter_square(t, taps, out);
        for (long point = 0; point < t->points; point++) {
            float *to = packed + packed_offset(plan, point, group, tile, c);
            __builtin_prefetch(to + PREFETCH_DISTANCE * FORWARD_ROWS, 1);
            memcpy(to, out + point, FORWARD_ROWS * sizeof(float));
        }
    }
}

/* Transform the rotated filters of the input gradient; a vector holds LANES of the summed channels. */
static void transform_rotated_filters(const Plan *plan, const float *filters, float *packed)
{
    const Tiling *t = &plan->tiling;
    long all_c = t->groups * t->c, vectors = ceil_div(t->c, LANES), last = t->taps * t->taps - 1;
    #pragma omp for schedule(static)
    for (long i = 0; i < t->groups * plan->channel_tiles * vectors; i++) {
        long c = i % vectors * LANES, tile = i / vectors % plan->channel_tiles;
        long group = i / vectors / plan->channel_tiles;
        vector out[FORWARD_ROWS][MAX_SQUARE];
        for (long r = 0; r < FORWARD_ROWS; r++) {
            long o = tile * FORWARD_ROWS + r;
            vector taps[MAX_SQUARE];
            for (long tap = 0; tap <= last; tap++) {
                const float *from = filters + (o * (last + 1) + last - tap) * all_c + group * t->c + c;
                taps[tap] = o < t->o ? load_some(from, t->c - c) : (vector){ 0 };
            }
            filter_square(t, taps, out[r]);
        }
        for (long point = 0; point < t->points; point++) {
            float *to = packed + packed_offset(plan, point, group, tile, c);
            for (long lane = 0; lane < LANES; lane++)
                __builtin_prefetch(to + (LANES + lane) * FORWARD_ROWS, 1);
            for (long lane = 0; lane < min(LANES, t->c - c); lane++)
                for (long r = 0; r < FORWARD_ROWS; r++)
                    to[lane * FORWARD_ROWS + r] = out[r][point][lane];
        }
    }
}

/* ---- products */

/* Sum FORWARD_ROWS channels by one block of images over c; channels are `stride` floats apart. */
NEVER_INLINE void multiply_tile(const float *data, const float *filters, long c, long stride, float *products)
{
    vector sum[FORWARD_ROWS][VECTORS], x[VECTORS];
    zero_tile(FORWARD_ROWS, sum);
    for (long k = 0; k < c; k++, data += stride, filters += FORWARD_ROWS) {
        load_row(data, x);
        UNROLL
        for (int r = 0; r < FORWARD_ROWS; r++)
            add_product(sum[r], filters[r], x);
    }
    store_tile(FORWARD_ROWS, products, stride, 1, sum);
}

/* Prefetch part of what the next tiles use: data of the next position, and the next products. */
ALWAYS_INLINE void prefetch_next(const Plan *plan, const float *next_data, const float *next_products, long tile)
{
    long channels = plan->tiling.c, end = channels * (tile + 1) / plan->channel_tiles;
    for (long c = channels * tile / plan->channel_tiles; c < end; c++)
        __builtin_prefetch(next_data + c * plan->channel_stride);
    for (long r = 0; r < FORWARD_ROWS; r++)
        __builtin_prefetch(next_products + r * plan->channel_stride, 1);
}

/* Step 2 for one point of one group, for the positions of a chunk from `first`. */
static void multiply_point(const Plan *plan, const float *filters, long point, long group, long first, long end,
                           const float *data, float *products)
{
    const Tiling *t = &plan->tiling;
    long data_stride = t->c * plan->channel_stride, products_stride = plan->packed_o * plan->channel_stride;
    data += group * plan->chunk * data_stride + point * BLOCK;
    products += group * plan->chunk * products_stride + point * BLOCK;
    for (long p = first; p < end; p++, data += data_stride, products += products_stride) {
        if (!needs(t, p, point))
            continue;
        for (long tile = 0; tile < plan->channel_tiles; tile++) {
            float *to = products + tile * FORWARD_ROWS * plan->channel_stride;
            prefetch_next(plan, data + data_stride, to + FORWARD_ROWS * plan->channel_stride, tile);
            multiply_tile(data, filters + packed_offset(plan, point, group, tile, 0), t->c, plan->channel_stride, to);
        }
    }
}

/* ---- outputs: y = E' m E */

ALWAYS_INLINE void transform_products(const int n, const float *products, float *outputs)
{
    for (long v = 0; v < BLOCK; v += LANES)
        interpolate_square(n, OUTPUTS, products + v, outputs + v);
}

static void store_outputs(const Tiling *t, Segment tile, const float *outputs, float *image)
{
    for (long i = 0; i < tile.height; i++) {
        float *to = image + ((tile.row + i) * t->out_width + tile.column) * t->b + tile.image;
        for (long j = 0; j < tile.width; j++)
            copy_few(to + j * t->b, outputs + (i * OUTPUTS + j) * BLOCK + tile.lane, tile.lanes);
    }
}

/* Step 3 for one output channel of the chunk that starts at `first`. */
static void transform_outputs(const Plan *plan, const float *products, long channel, long first, long end, float *out)
{
    const Tiling *t = &plan->tiling;
    long group = channel / t->o, o = channel % t->o;
    float *image = out + channel * t->out_height * t->out_width * t->b;
    for (long position = first; position < end; position++) {
        long row = (group * plan->chunk + position - first) * plan->packed_o + o;
        float outputs[OUTPUTS * OUTPUTS * BLOCK];
        if (t->n == 6)
            transform_products(6, products + row * plan->channel_stride, outputs);
        else
            transform_products(8, products + row * plan->channel_stride, outputs);
        FOR_SEGMENTS(t, position, tile)
            store_outputs(t, tile, outputs, image);
    }
}

/* ---- complete passes */

static void run_chunk(const Plan *plan, const Buffers *buffers, const float *x, long first, float *out)
{
    const Tiling *t = &plan->tiling;
    long end = min(first + plan->chunk, t->positions), thread = omp_get_thread_num();
    float *data = buffers->data + thread * plan->data_floats;
    float *products = buffers->products + thread * plan->product_floats;
    for (long channel = 0; channel < t->groups * t->c; channel++) {
        long start = channel / t->c * plan->chunk * t->c + channel % t->c;
        transform_channel(t, x, channel, first, end, data + start * plan->channel_stride, BLOCK,
                          t->c * plan->channel_stride);
    }
    for (long point = 0; point < t->points; point++)
        for (long group = 0; group < t->groups; group++)
            multiply_point(plan, buffers->filters, point, group, first, end, data, products);
    for (long channel = 0; channel < t->groups * t->o; channel++)
        transform_outputs(plan, products, channel, first, end, out);
}

static Buffers divide(const Plan *plan, char *workspace)
{
    long threads = omp_get_max_threads();
    Buffers buffers;
    buffers.filters = take(&workspace, plan->tiling.points * plan->point_stride * sizeof(float));
    buffers.data = take(&workspace, threads * plan->data_floats * sizeof(float));
    buffers.products = take(&workspace, threads * plan->product_floats * sizeof(float));
    buffers.end = workspace;
    return buffers;
}

static void run(const Plan *plan, const float *x, const float *filters, float *out, char *workspace)
{
    Buffers buffers = divide(plan, workspace);
    #pragma omp parallel
    {
        if (plan->rotated)
            transform_rotated_filters(plan, filters, buffers.filters);
        else
            transform_filters(plan, filters, buffers.filters);
        #pragma omp for schedule(dynamic)
        for (long first = 0; first < plan->tiling.positions; first += plan->chunk)
            run_chunk(plan, &buffers, x, first, out);
    }
}

#include "entry.h"

int64_t input_gradient_workspace(const Layer *layer) { return plan_bytes(input_gradient_plan(layer)); }

void input_gradient(const Layer *layer, const float *filters, const float *g, float *dx, char *workspace)
{
    Plan plan = input_gradient_plan(layer);
    run(&plan, g, filters, dx, workspace);
}

/* The direct sums of few images with vectors along the output channels (convolution.c).
 *
 * A tile is up to ELEMENTS adjacent elements (column, image) of one output row by BLOCK channels, so no lane computes
 * an element that is not stored.  The images are packed as for blocks of (column, image).  A task is a block of
 * channels by a range of tiles.  Pass by pass, it packs its filters as [k][channel], which stay in the L1 cache, and
 * fetches those of the next pass into the L2 cache.  Each sum has the same terms in the same order as with the other
 * tiles.
 */
#ifndef CHANNEL_VECTORS_H
#define CHANNEL_VECTORS_H

/* Sum `elements` elements by BLOCK channels over n terms, in `partial`, [element][channel]. */
ALWAYS_INLINE void sum_elements(const int elements, const real *images, const long *image_offset, long n,
                                const real *filters, real *partial, int first)
{
    vector sum[ELEMENTS][VECTORS], x[VECTORS];
    zero_tile(elements, sum);
    for (long k = 0; k < n; k++) {
        load_row(filters + k * BLOCK, x);
        UNROLL
        for (int e = 0; e < elements; e++)
            add_product(sum[e], images[image_offset[k] + e], x);
    }
    store_tile(elements, partial, BLOCK, first, sum);
}

#define SUM_CASE(elements)                                                                                             \
    case elements:                                                                                                     \
        sum_elements(elements, images, image_offset, n, filters, partial, first);                                      \
        break;

NEVER_INLINE void element_tile(long elements, const real *images, const long *image_offset, long n,
                               const real *filters, real *partial, int first)
{
    switch (elements) {
    SUM_CASE(1) SUM_CASE(2) SUM_CASE(3) SUM_CASE(4)
#if !defined(TILE_PORTABLE) && !defined(TILE_NEON)
    SUM_CASE(5) SUM_CASE(6)
#endif
#if defined(TILE_AVX512)
    SUM_CASE(7) SUM_CASE(8) SUM_CASE(9) SUM_CASE(10) SUM_CASE(11) SUM_CASE(12) SUM_CASE(13) SUM_CASE(14)
#endif
    }
}

/* Store sums, [element][channel], as rows of elements `stride` apart. */
static void store_channels(const real *sums, long elements, long channels, real *out, long stride)
{
    for (long o = 0; o < channels; o++)
        for (long e = 0; e < elements; e++)
            out[o * stride + e] = sums[e * BLOCK + o];
}

typedef struct {
    long channels, tile, tile_end;
    const real *filters, *images;        /* of the first channel and of the group */
    real *out;                           /* of the first channel */
} ChannelTask;

/* Fetch part `i` of `parts` of the filters of a pass. */
static void prefetch_filters(const Plan *plan, const Buffers *buffers, const ChannelTask *task, long pass, long i,
                             long parts)
{
    const long *filter_offset = buffers->filter_offset + pass * plan->pass_depth;
    long n = pass_terms(plan, pass);
    for (long k = i * n / parts; k < (i + 1) * n / parts; k++)
        for (long o = 0; o < task->channels; o += CACHE_LINE / (long)sizeof(real))
            __builtin_prefetch(task->filters + filter_offset[k] + o, 0, 2);
}

static void run_channel_task(const Plan *plan, const Buffers *buffers, const ChannelTask *task)
{
    long thread = omp_get_thread_num(), width = plan->out_width * plan->b, tiles = task->tile_end - task->tile;
    real *packed = buffers->filters + thread * plan->pass_depth * BLOCK;
    real *partial = buffers->partial + thread * plan->task_tiles * ELEMENTS * BLOCK;
    for (long pass = 0; pass < plan->passes; pass++) {
        const int last = pass == plan->passes - 1;
        const long *image_offset = buffers->image_offset + pass * plan->pass_depth, n = pass_terms(plan, pass);
        pack_tile(BLOCK, task->filters, 1, buffers->filter_offset + pass * plan->pass_depth, n, task->channels, packed);
        for (long i = 0; i < tiles; i++) {
            long y = (task->tile + i) / plan->row_tiles, tile = (task->tile + i) % plan->row_tiles;
            long x = tile * width / plan->row_tiles, elements = (tile + 1) * width / plan->row_tiles - x;
            real *sums = partial + i * ELEMENTS * BLOCK;
            if (!last)
                prefetch_filters(plan, buffers, task, pass + 1, i, tiles);
            element_tile(elements, task->images + y * plan->phase_row + x, image_offset, n, packed, sums, pass == 0);
            if (last)
                store_channels(sums, elements, task->channels, task->out + y * plan->out_row + x,
                                           plan->out_plane);
        }
    }
}

static void run_channel_tasks(const Plan *plan, const Buffers *buffers, const real *filters, real *out)
{
    long tiles = plan->out_height * plan->row_tiles;
    #pragma omp parallel for schedule(dynamic)
    for (long i = 0; i < plan->groups * plan->channel_blocks * plan->tile_ranges; i++) {
        long range = i % plan->tile_ranges, block = i / plan->tile_ranges % plan->channel_blocks;
        long group = i / plan->tile_ranges / plan->channel_blocks, first = block * BLOCK;
        run_channel_task(plan, buffers, &(ChannelTask){
            .channels = min(plan->o - first, BLOCK),
            .tile = range * plan->task_tiles, .tile_end = min((range + 1) * plan->task_tiles, tiles),
            .filters = filters + group * plan->group_stride + first,
            .images = buffers->images + group * plan->c * plan->plane,
            .out = out + (group * plan->o + first) * plan->out_plane });
    }
}

#endif

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
 * A position is a tile of a block of LINE images.  Each scalar of the formula is a line of images, so the transforms
 * need no shuffles.  3 x 3 needs 36 multiplications instead of 144, 5 x 5 needs 64 instead of 400.
 *
 * The loops.  Filters are transformed once, to [point][tile of FORWARD_ROWS channels][c][FORWARD_ROWS].  Then each
 * thread processes chunks of positions, whose points stay in the L3 cache:
 *   1. for each c, position: transform the pixels of the tile, read in place, into data points;
 *   2. for each point, position, tile of channels: compute a product, summed over c in registers;
 *   3. for each o, position: transform the products into outputs.
 * In step 2 the lines of one position stay in the L1 cache, and the filters of one point in the L2 cache.  Parallel
 * loops within each step would need less memory, but all threads would wait for the slowest at each barrier.
 *
 * Each element is computed by one thread in a fixed order, so the result does not depend on the number of threads.
 */
#include "winograd.h"

enum { CHUNK_BYTES = 4 << 20 };          /* of data and products: the part of the L3 cache for one thread */
enum { CHUNKS_PER_THREAD = 4 };
enum { FETCHED = 8 };                    /* prefetch distance for writing, in filters */

typedef struct {
    Tiling t;
    long chunk;                                         /* positions processed at a time */
    long channel_tiles, packed_o;
    long filter_step;                                   /* floats from the filters of one point to those of the next */
} Sum;

typedef struct {
    float *filters;              /* [point][group][channel tile][c][FORWARD_ROWS] */
    float *data;                 /* per thread, [group][position of the chunk][c][point][LINE] */
    float *products;             /* per thread, [group][position of the chunk][packed_o][point][LINE] */
} Workspace;

static Sum forward_sum(const Layer *l)
{
    Tiling t = tiling(l);
    Sum s = { .t = t, .channel_tiles = parts(t.o, FORWARD_ROWS) };
    s.packed_o = s.channel_tiles * FORWARD_ROWS;
    s.filter_step = (parts(t.groups * s.packed_o * t.c, LINE) | 1) * LINE;         /* odd: see Tiling's step */
    long position_bytes = t.step * t.groups * (t.c + s.packed_o) * LINE * (long)sizeof(float);
    long chunks = most(parts(t.positions, most(CHUNK_BYTES / position_bytes, 1)),
                       CHUNKS_PER_THREAD * omp_get_max_threads());
    s.chunk = parts(t.positions, least(chunks, t.positions));
    return s;
}

/* The input gradient as a forward pass, from the output gradient with channels o to channels c. */
static Sum input_gradient_sum(const Layer *l)
{
    Layer turned = { .c = l->o, .height = l->height + 2 * l->pad - l->rows + 1, .rows = l->rows, .columns = l->columns,
                     .width = l->width + 2 * l->pad - l->columns + 1, .b = l->b, .o = l->c, .stride = 1,
                     .pad = l->rows - 1 - l->pad, .groups = l->groups };
    return forward_sum(&turned);
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

static void filter_square(const Sum *s, const vector *g, vector *out)
{
    if (s->t.taps == 3)
        filter_points(6, 3, g, out);
    else
        filter_points(8, 5, g, out);
}

static long packed_filter(const Sum *s, long point, long group, long tile, long c)
{
    return point * s->filter_step + ((group * s->channel_tiles + tile) * s->t.c + c) * FORWARD_ROWS;
}

/* Transform the filters of the forward pass; a vector holds the channels of a tile. */
static void transform_filters(const Sum *s, const float *w, float *filters)
{
    long all_o = s->t.groups * s->t.o, phases = s->t.stride * s->t.stride, size = s->t.size * s->t.size;
    #pragma omp for schedule(static)
    for (long i = 0; i < s->t.groups * s->channel_tiles * s->t.c; i++) {
        long c = i % s->t.c, tile = i / s->t.c % s->channel_tiles, group = i / s->t.c / s->channel_tiles;
        vector taps[MOST_POINTS * MOST_POINTS], out[MOST_POINTS * MOST_POINTS];
        long p = c % phases / s->t.stride, q = c % s->t.stride, o = tile * FORWARD_ROWS;
        const float *filter = w + c / phases * size * all_o + group * s->t.o + o;
        for (long i = 0, k = 0; i < s->t.taps; i++)
            for (long j = 0; j < s->t.taps; j++, k++) {
                long tap = tap_at(&s->t, p, q, i, j);
                taps[k] = tap < 0 ? (vector){ 0 } : load_some(filter + tap * all_o, s->t.o - o);
            }
        filter_square(s, taps, out);
        for (long point = 0; point < s->t.n * s->t.n; point++) {
            float *to = filters + packed_filter(s, point, group, tile, c);
            __builtin_prefetch(to + FETCHED * FORWARD_ROWS, 1);
            memcpy(to, out + point, FORWARD_ROWS * sizeof(float));
        }
    }
}

/* Transform the rotated filters of the input gradient; a vector holds LANES of the summed channels. */
static void transform_turned_filters(const Sum *s, const float *w, float *filters)
{
    long all_c = s->t.groups * s->t.c, vectors = parts(s->t.c, LANES), last = s->t.taps * s->t.taps - 1;
    #pragma omp for schedule(static)
    for (long i = 0; i < s->t.groups * s->channel_tiles * vectors; i++) {
        long c = i % vectors * LANES, tile = i / vectors % s->channel_tiles, group = i / vectors / s->channel_tiles;
        vector out[FORWARD_ROWS][MOST_POINTS * MOST_POINTS];
        for (long r = 0; r < FORWARD_ROWS; r++) {
            long o = tile * FORWARD_ROWS + r;
            vector taps[MOST_POINTS * MOST_POINTS];
            for (long t = 0; t <= last; t++) {
                const float *from = w + (o * (last + 1) + last - t) * all_c + group * s->t.c + c;
                taps[t] = o < s->t.o ? load_some(from, s->t.c - c) : (vector){ 0 };
            }
            filter_square(s, taps, out[r]);
        }
        for (long point = 0; point < s->t.n * s->t.n; point++) {
            float *to = filters + packed_filter(s, point, group, tile, c);
            for (long lane = 0; lane < LANES; lane++)
                __builtin_prefetch(to + (LANES + lane) * FORWARD_ROWS, 1);
            for (long lane = 0; lane < least(LANES, s->t.c - c); lane++)
                for (long r = 0; r < FORWARD_ROWS; r++)
                    to[lane * FORWARD_ROWS + r] = out[r][point][lane];
        }
    }
}

/* ---- products */

/* The inner loop: FORWARD_ROWS channels by one line of images, summed over c; channels are `step` floats apart. */
NEVER_INLINE void multiply_tile(const float *data, const float *filters, long c, long step, float *products)
{
    vector sum[FORWARD_ROWS][VECTORS];
    UNROLL
    for (int r = 0; r < FORWARD_ROWS; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            sum[r][v] = (vector){ 0 };
    for (long k = 0; k < c; k++, data += step, filters += FORWARD_ROWS) {
        vector x[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            x[v] = load(data + v * LANES);
        UNROLL
        for (int r = 0; r < FORWARD_ROWS; r++)
            UNROLL
            for (int v = 0; v < VECTORS; v++)
                sum[r][v] += filters[r] * x[v];
    }
    UNROLL
    for (int r = 0; r < FORWARD_ROWS; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            store(products + r * step + v * LANES, sum[r][v]);
}

/* Prefetch part of the data of the next tiles: lines of the next position, and the next products. */
ALWAYS_INLINE void fetch_ahead(const Sum *s, const float *next_data, const float *next_products, long tile, long step)
{
    for (long c = s->t.c * tile / s->channel_tiles; c < s->t.c * (tile + 1) / s->channel_tiles; c++)
        __builtin_prefetch(next_data + c * step);
    for (long r = 0; r < FORWARD_ROWS; r++)
        __builtin_prefetch(next_products + r * step, 1);
}

/* Step 2 for one point of one group, for the positions of a chunk from `first`. */
static void multiply_point(const Sum *s, const float *filters, long point, long group, long first, long end,
                           const float *data, float *products)
{
    long step = s->t.step * LINE;
    data += group * s->chunk * s->t.c * step + point * LINE;
    products += group * s->chunk * s->packed_o * step + point * LINE;
    for (long p = first; p < end; p++, data += s->t.c * step, products += s->packed_o * step) {
        if (!needs(&s->t, position_at(&s->t, p), point))
            continue;
        for (long tile = 0; tile < s->channel_tiles; tile++) {
            float *to = products + tile * FORWARD_ROWS * step;
            fetch_ahead(s, data + s->t.c * step, to + FORWARD_ROWS * step, tile, step);
            multiply_tile(data, filters + packed_filter(s, point, group, tile, 0), s->t.c, step, to);
        }
    }
}

/* ---- outputs: y = E' m E */

ALWAYS_INLINE void transform_products(const int n, const float *products, float *outputs)
{
    for (long v = 0; v < LINE; v += LANES)
        interpolate_square(n, TILE, products + v, outputs + v);
}

static void store_outputs(const Sum *s, Position at, const float *outputs, float *image)
{
    for (long i = 0; i < at.rows; i++)
        for (long j = 0; j < at.columns; j++) {
            float *to = image + ((at.row + i) * s->t.out_width + at.column + j) * s->t.b + at.block * LINE;
            long bytes = at.images == LINE ? sizeof(float[LINE]) : at.images * sizeof(float);   /* usually a constant */
            memcpy(to, outputs + (i * TILE + j) * LINE, bytes);
        }
}

/* Step 3 for one output channel of the chunk that starts at `first`. */
static void transform_outputs(const Sum *s, const float *products, long channel, long first, long end, float *out)
{
    long group = channel / s->t.o, o = channel % s->t.o;
    float *image = out + channel * s->t.out_height * s->t.out_width * s->t.b;
    for (long position = first; position < end; position++) {
        const float *from = products + ((group * s->chunk + position - first) * s->packed_o + o) * s->t.step * LINE;
        float outputs[TILE * TILE * LINE];
        if (s->t.n == 6)
            transform_products(6, from, outputs);
        else
            transform_products(8, from, outputs);
        store_outputs(s, position_at(&s->t, position), outputs, image);
    }
}

/* ---- complete passes */

static long data_floats(const Sum *s) { return s->t.groups * s->chunk * s->t.c * s->t.step * LINE; }
static long product_floats(const Sum *s) { return s->t.groups * s->chunk * s->packed_o * s->t.step * LINE; }

static void run_chunk(const Sum *s, const Workspace *w, const float *x, long first, float *out)
{
    long end = least(first + s->chunk, s->t.positions), points = s->t.n * s->t.n, thread = omp_get_thread_num();
    float *data = w->data + thread * data_floats(s), *products = w->products + thread * product_floats(s);
    for (long channel = 0; channel < s->t.groups * s->t.c; channel++) {
        long start = channel / s->t.c * s->chunk * s->t.c + channel % s->t.c;
        transform_channel(&s->t, x, channel, first, end, data + start * s->t.step * LINE, LINE,
                          s->t.c * s->t.step * LINE);
    }
    for (long point = 0; point < points; point++)
        for (long group = 0; group < s->t.groups; group++)
            multiply_point(s, w->filters, point, group, first, end, data, products);
    for (long channel = 0; channel < s->t.groups * s->t.o; channel++)
        transform_outputs(s, products, channel, first, end, out);
}

typedef void FilterTransform(const Sum *s, const float *w, float *filters);

static void run(const Sum *s, const Workspace *w, const float *x, const float *filters, FilterTransform *transform,
                float *out)
{
    #pragma omp parallel
    {
        transform(s, filters, w->filters);
        #pragma omp for schedule(dynamic)
        for (long first = 0; first < s->t.positions; first += s->chunk)
            run_chunk(s, w, x, first, out);
    }
}

/* Divide a workspace into its pieces; returns its end, which is the size if start is 0. */
static char *lay_out(const Sum *s, char *start, Workspace *w)
{
    long points = s->t.n * s->t.n, threads = omp_get_max_threads();
    w->filters = piece(&start, points * s->filter_step * sizeof(float));
    w->data = piece(&start, threads * data_floats(s) * sizeof(float));
    w->products = piece(&start, threads * product_floats(s) * sizeof(float));
    return start;
}

static long workspace_bytes(Sum s)
{
    Workspace w;
    return (long)lay_out(&s, 0, &w) + CACHE_LINE;
}

/* Functions called from Python. */

int64_t forward_workspace(const Layer *l) { return workspace_bytes(forward_sum(l)); }

int64_t input_gradient_workspace(const Layer *l) { return workspace_bytes(input_gradient_sum(l)); }

void forward(const Layer *l, const float *x, const float *filters, float *out, char *workspace)
{
    Sum s = forward_sum(l);
    Workspace w;
    lay_out(&s, aligned(workspace), &w);
    run(&s, &w, x, filters, transform_filters, out);
}

void input_gradient(const Layer *l, const float *filters, const float *g, float *dx, char *workspace)
{
    Sum s = input_gradient_sum(l);
    Workspace w;
    lay_out(&s, aligned(workspace), &w);
    run(&s, &w, g, filters, transform_turned_filters, dx);
}

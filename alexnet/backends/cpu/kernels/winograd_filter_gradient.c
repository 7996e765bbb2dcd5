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
 * gradients of a tile are transposed from lines of images to lines of channels before the transform.
 *
 * The loops.  A position is a tile of a block of LINE images.  If the sums are small, the positions are split into
 * shares, each with separate sums; the number of shares grows with the amount of work.  A share is processed in
 * chunks of positions, whose points stay in the L3 cache:
 *   1. for each c, position: transform the pixels of the tile into data points;
 *      for each line of o, position: transform the gradients into points;
 *   2. for each point, line of o, tile of GRADIENT_ROWS c: compute a product, summed over the chunk in registers, and
 *      add it to the sums.
 * Finally the sums of the shares are added and transformed to filters.  If there are at least as many shares as
 * threads, each thread processes whole shares without synchronisation.  Otherwise, for small batches and for sums
 * that would evict the points from the cache, all threads process one chunk together, with two barriers.  This is as
 * fast on an idle machine, but slow on a busy one.
 *
 * Shares and chunks do not depend on the number of threads, and each element is computed by one thread in a fixed
 * order, so the result does not depend on the number of threads.
 */
#include "winograd.h"

/* Bytes of points in the L3 cache: for one of several shares, and for a single share that all threads process. */
enum { CHUNK_BYTES = 4 << 20, ONLY_CHUNK_BYTES = 8 << 20 };
enum { SHARE_POSITIONS = 32, MOST_SHARES = 8, SHARE_SUMS_BYTES = 8 << 20 };      /* minimum; maximum; maximum */
enum { TERMS = 384 };                    /* of a product: 24 KiB of gradients in an L1 cache */
enum { TASKS_PER_THREAD = 8 };

typedef struct {
    Tiling t;
    long shares, share, chunk;           /* number of shares; positions per share and per chunk */
    long lanes;                          /* terms of a position: images of a block */
    long panels, row_tiles;              /* of one group: lines of o, tiles of c */
    long data_step, gradient_step;       /* floats of one position: of a row tile, of a panel */
} Sum;

enum { TILE_FLOATS = GRADIENT_ROWS * LINE };
enum { PANEL_FLOATS = (LINE | 1) * LINE };                 /* odd number of lines: spreads points over the cache sets */

typedef struct {
    /* data and gradients: one chunk per team of threads */
    float *data;                         /* [group][row tile][position][point][GRADIENT_ROWS c][LINE images] */
    float *gradients;                    /* [group][panel][position][point][image][LINE channels] */
    float *sums;                         /* [share][point][group][panel][c][LINE channels] */
} Workspace;

static long data_floats(const Sum *s) { return s->t.groups * s->row_tiles * s->chunk * s->data_step; }
static long gradient_floats(const Sum *s) { return s->t.groups * s->panels * s->chunk * s->gradient_step; }
static long sums_floats(const Sum *s) { return s->t.n * s->t.n * s->t.groups * s->panels * s->row_tiles * TILE_FLOATS; }

static Sum gradient_sum(const Layer *l)
{
    Tiling t = tiling(l);
    Sum s = { .t = t, .lanes = least(LINE, t.b), .panels = parts(t.o, LINE), .row_tiles = parts(t.c, GRADIENT_ROWS) };
    s.data_step = t.n * t.n * TILE_FLOATS;
    s.gradient_step = t.n * t.n * PANEL_FLOATS;
    long position_bytes = t.groups * (s.row_tiles * s.data_step + s.panels * s.gradient_step) * (long)sizeof(float);
    int worth = sums_floats(&s) * (long)sizeof(float) <= SHARE_SUMS_BYTES;
    s.shares = worth ? most(least(t.positions / SHARE_POSITIONS, MOST_SHARES), 1) : 1;
    long bytes = s.shares > 1 ? CHUNK_BYTES : ONLY_CHUNK_BYTES;
    long chunk = least(most(bytes / position_bytes, 1), most(TERMS / s.lanes, 1));
    s.share = parts(t.positions, s.shares);
    s.chunk = parts(s.share, parts(s.share, chunk));
    return s;
}

/* Number of teams: one team per thread, or one team of all threads. */
static long teams(const Sum *s) { return s->shares >= omp_get_max_threads() ? omp_get_max_threads() : 1; }

/* ---- 1. gradients */

typedef int32_t places __attribute__((vector_size(4 * LANES)));

/* Element i of the result is element from[i] of the concatenation of a and b. */
ALWAYS_INLINE vector shuffle(vector a, vector b, places from)
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
    places low, high;
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

/* Transpose one pixel of a panel from (channel, image) to (image, channel), images `step` floats apart; pads zeros. */
static void turn_over(const float *g, long channel_step, long channels, long images, float *turned, long step)
{
    for (long o = 0; o < LINE; o += LANES)
        for (long b = 0; b < LINE; b += LANES) {
            vector rows[LANES];
            UNROLL
            for (int i = 0; i < LANES; i++)
                rows[i] = o + i < channels ? load_some(g + (o + i) * channel_step + b, images - b) : (vector){ 0 };
            transpose(rows);
            UNROLL
            for (int i = 0; i < LANES; i++)
                store(turned + (b + i) * step + o, rows[i]);
        }
}

ALWAYS_INLINE void transform_gradient(const int n, const float *g, float *points)
{
    for (long v = 0; v < LINE; v += LANES) {
        vector in[TILE * TILE], out[MOST_POINTS * MOST_POINTS];
        UNROLL
        for (int i = 0; i < TILE * TILE; i++)
            in[i] = load(g + i * LINE + v);
        evaluate_square(n, TILE, in, out);
        for (int i = 0; i < n * n; i++) {
            __builtin_prefetch(points + i * PANEL_FLOATS + v + 2 * LINE, 1);         /* two images ahead */
            store(points + i * PANEL_FLOATS + v, out[i]);
        }
    }
}

/* Compute the points of one panel at one position. */
static void transform_panel(const Sum *s, const float *g, long panel, Position at, float *points)
{
    const Tiling *t = &s->t;
    long group = panel / s->panels, o = panel % s->panels * LINE, image = t->out_height * t->out_width * t->b;
    float turned[LINE][TILE * TILE][LINE];
    for (long i = 0; i < TILE * TILE; i++) {
        long row = at.row + i / TILE, column = at.column + i % TILE;
        int inside = i / TILE < at.rows && i % TILE < at.columns;
        const float *from = g + (group * t->o + o) * image + (row * t->out_width + column) * t->b + at.block * LINE;
        turn_over(from, image, inside ? least(LINE, t->o - o) : 0, at.images, turned[0][i], TILE * TILE * LINE);
    }
    for (long b = 0; b < s->lanes; b++, points += LINE) {
        if (t->n == 6)
            transform_gradient(6, turned[b][0], points);
        else
            transform_gradient(8, turned[b][0], points);
    }
}

/* ---- 2. products */

/* The inner loop: GRADIENT_ROWS channels c by one line of o, over the terms of the positions with the given indices. */
NEVER_INLINE void multiply_tile(const Sum *s, const float *data, const float *gradients, const long *position,
                                long positions, int fresh, float *sums)
{
    vector sum[GRADIENT_ROWS][VECTORS];
    UNROLL
    for (int r = 0; r < GRADIENT_ROWS; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            sum[r][v] = (vector){ 0 };
    for (long i = 0; i < positions; i++) {
        const float *x = data + position[i] * s->data_step, *g = gradients + position[i] * s->gradient_step;
        for (const float *end = x + s->lanes; x < end; x++, g += LINE) {
            vector line[VECTORS];
            UNROLL
            for (int v = 0; v < VECTORS; v++)
                line[v] = load(g + v * LANES);
            UNROLL
            for (int r = 0; r < GRADIENT_ROWS; r++)
                UNROLL
                for (int v = 0; v < VECTORS; v++)
                    sum[r][v] += x[r * LINE] * line[v];
        }
    }
    UNROLL
    for (int r = 0; r < GRADIENT_ROWS; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            float *to = sums + r * LINE + v * LANES;
            if (!fresh)
                sum[r][v] += load(to);
            store(to, sum[r][v]);
        }
}

static long sums_of(const Sum *s, long point, long panel)
{
    return (point * s->t.groups * s->panels + panel) * s->row_tiles * TILE_FLOATS;
}

/* The positions from `first` to `end`, with their points and sums; `fresh`: the first chunk, which sets the sums. */
typedef struct { long first, end; float *data, *gradients, *sums; int fresh; } Chunk;

/* Step 2 for one point of one panel. */
static void multiply_point(const Sum *s, const Chunk *chunk, long point, long panel)
{
    long tile = panel / s->panels * s->row_tiles, position[TERMS], positions = 0;
    const float *data = chunk->data + tile * s->chunk * s->data_step + point * TILE_FLOATS;
    const float *gradients = chunk->gradients + panel * s->chunk * s->gradient_step + point * PANEL_FLOATS;
    float *sums = chunk->sums + sums_of(s, point, panel);
    for (long p = chunk->first; p < chunk->end; p++)
        if (needs(&s->t, position_at(&s->t, p), point))
            position[positions++] = p - chunk->first;
    for (long i = 0; i < s->row_tiles; i++, data += s->chunk * s->data_step, sums += TILE_FLOATS)
        multiply_tile(s, data, gradients, position, positions, chunk->fresh, sums);
}

/* ---- 3. filters */

/* Compute the filters from one channel c to one panel of o. */
static void transform_sums(const Sum *s, const Workspace *w, long panel, long c, float *dw)
{
    const Tiling *t = &s->t;
    long phases = t->stride * t->stride, group = panel / s->panels, o = panel % s->panels * LINE;
    long channels = least(LINE, t->o - o);
    float sums[MOST_POINTS * MOST_POINTS * LINE], taps[MOST_POINTS * MOST_POINTS * LINE];
    for (long i = 0; i < t->n * t->n; i++)
        for (long k = 0; k < LINE; k++) {
            const float *share = w->sums + sums_of(s, i, panel) + c * LINE + k;
            float sum = *share;
            for (long n = 1; n < s->shares; n++)
                sum += share[n * sums_floats(s)];
            sums[i * LINE + k] = sum * inverse(t->n, i / t->n) * inverse(t->n, i % t->n);
        }
    for (long v = 0; v < LINE; v += LANES) {
        if (t->n == 6)
            interpolate_square(6, 3, sums + v, taps + v);
        else
            interpolate_square(8, 5, sums + v, taps + v);
    }
    for (long i = 0; i < t->taps * t->taps; i++) {
        long tap = tap_at(t, c % phases / t->stride, c % t->stride, i / t->taps, i % t->taps);
        float *to = dw + (c / phases * t->size * t->size + tap) * t->groups * t->o + group * t->o + o;
        if (tap >= 0)
            memcpy(to, taps + i * LINE, channels * sizeof(float));
    }
}

/* ---- complete pass */

/* Called by all threads of a team. */
static void add_chunk(const Sum *s, const float *x, const float *g, const Chunk *chunk)
{
    const Tiling *t = &s->t;
    long length = chunk->end - chunk->first, channels = t->groups * t->c, panels = t->groups * s->panels;
    #pragma omp for schedule(dynamic)
    for (long i = 0; i < channels + panels * length; i++) {
        if (i < channels) {
            long tile = i / t->c * s->row_tiles + i % t->c / GRADIENT_ROWS, row = i % t->c % GRADIENT_ROWS;
            float *to = chunk->data + tile * s->chunk * s->data_step + row * LINE;
            transform_channel(t, x, i, chunk->first, chunk->end, to, TILE_FLOATS, s->data_step);
        } else {
            long panel = (i - channels) / length, position = (i - channels) % length;
            float *to = chunk->gradients + (panel * s->chunk + position) * s->gradient_step;
            transform_panel(s, g, panel, position_at(t, chunk->first + position), to);
        }
    }
    long tasks = t->n * t->n * panels, together = most(tasks / (TASKS_PER_THREAD * omp_get_max_threads()), 1);
    #pragma omp for schedule(dynamic, together)
    for (long i = 0; i < tasks; i++)
        multiply_point(s, chunk, i / panels, i % panels);
}

static void add_share(const Sum *s, const Workspace *w, const float *x, const float *g, long share, long team)
{
    long first = share * s->share, end = least(first + s->share, s->t.positions);
    for (long start = first; start < end; start += s->chunk) {
        Chunk chunk = { start, least(start + s->chunk, end), w->data + team * data_floats(s),
                        w->gradients + team * gradient_floats(s), w->sums + share * sums_floats(s), start == first };
        add_chunk(s, x, g, &chunk);
    }
}

static void add_shares(const Sum *s, const Workspace *w, const float *x, const float *g)
{
    if (teams(s) == 1) {
        #pragma omp parallel
        for (long share = 0; share < s->shares; share++)
            add_share(s, w, x, g, share, 0);
        return;
    }
    #pragma omp parallel for schedule(dynamic)
    for (long share = 0; share < s->shares; share++) {
        long team = omp_get_thread_num();
        #pragma omp parallel num_threads(1)                  /* a team of one thread for the inner loops */
        add_share(s, w, x, g, share, team);
    }
}

/* Divide a workspace into its pieces; returns its end, which is the size if start is 0. */
static char *lay_out(const Sum *s, char *start, Workspace *w)
{
    w->data = piece(&start, teams(s) * data_floats(s) * sizeof(float));
    w->gradients = piece(&start, teams(s) * gradient_floats(s) * sizeof(float));
    w->sums = piece(&start, s->shares * sums_floats(s) * sizeof(float));
    return start;
}

/* Functions called from Python. */

int64_t filter_gradient_workspace(const Layer *l)
{
    Sum s = gradient_sum(l);
    Workspace w;
    return (long)lay_out(&s, 0, &w) + CACHE_LINE;
}

void filter_gradient(const Layer *l, const float *x, const float *g, float *dw, char *workspace)
{
    Sum s = gradient_sum(l);
    Workspace w;
    lay_out(&s, aligned(workspace), &w);
    add_shares(&s, &w, x, g);
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < s.t.groups * s.panels * s.t.c; i++)
        transform_sums(&s, &w, i / s.t.c, i % s.t.c, dw);
}

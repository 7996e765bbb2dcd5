/* The functions of convolution.c and winograd.c that Python calls.  Both files define
 *
 *     Plan forward_plan(const Layer *);
 *     long phases(const Layer *);                        the input gradient is computed in phases, one plan each
 *     Plan input_gradient_plan(const Layer *, long phase);
 *     int is_zero(const Plan *);                         whether a phase has no terms; its plan is then incomplete
 *     Buffers divide(const Plan *, char *workspace);                               see layer.h
 *     void run(const Plan *, const real *images, const real *filters, real *out, char *workspace);
 *
 * and then include this file.  `workspace` has at least the bytes that the function `..._workspace` returns. */

static int64_t plan_bytes(Plan plan) { return (int64_t)divide(&plan, 0).end + CACHE_LINE; }

int64_t forward_workspace(const Layer *layer) { return plan_bytes(forward_plan(layer)); }

int64_t input_gradient_workspace(const Layer *layer)
{
    int64_t bytes = CACHE_LINE;
    for (long phase = 0; phase < phases(layer); phase++) {
        Plan plan = input_gradient_plan(layer, phase);
        if (!is_zero(&plan))
            bytes = max(bytes, plan_bytes(plan));
    }
    return bytes;
}

void forward(const Layer *layer, const real *x, const real *filters, real *out, char *workspace)
{
    Plan plan = forward_plan(layer);
    run(&plan, x, filters, out, workspace);
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
    for (long phase = 0; phase < phases(layer); phase++) {
        Plan plan = input_gradient_plan(layer, phase);
        zeros += is_zero(&plan);
    }
    if (zeros)
        zero(dx, layer->c * layer->height * layer->width * layer->b);
    for (long phase = 0; phase < phases(layer); phase++) {
        Plan plan = input_gradient_plan(layer, phase);
        if (!is_zero(&plan))
            run(&plan, g, filters, dx, workspace);
    }
}

/* The functions of convolution.c and winograd.c that Python calls.  Both files define
 *
 *     Plan forward_plan(const Layer *), input_gradient_plan(const Layer *);
 *     Buffers divide(const Plan *, char *workspace);                               see layer.h
 *     void run(const Plan *, const real *images, const real *filters, real *out, char *workspace);
 *
 * and then include this file.  `workspace` has at least the bytes that the function `..._workspace` returns. */

static int64_t plan_bytes(Plan plan) { return (int64_t)divide(&plan, 0).end + CACHE_LINE; }

int64_t forward_workspace(const Layer *layer) { return plan_bytes(forward_plan(layer)); }

int64_t input_gradient_workspace(const Layer *layer) { return plan_bytes(input_gradient_plan(layer)); }

void forward(const Layer *layer, const real *x, const real *filters, real *out, char *workspace)
{
    Plan plan = forward_plan(layer);
    run(&plan, x, filters, out, workspace);
}

void input_gradient(const Layer *layer, const real *filters, const real *g, real *dx, char *workspace)
{
    Plan plan = input_gradient_plan(layer);
    run(&plan, g, filters, dx, workspace);
}

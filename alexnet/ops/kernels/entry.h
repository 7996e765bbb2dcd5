/* The functions of convolution.c and winograd.c that Python calls for a forward pass.  Both files define
 *
 *     Plan forward_plan(const Layer *);
 *     Buffers divide(const Plan *, char *workspace);                               see layer.h
 *     void run(const Plan *, const real *images, const real *filters, real *out, char *workspace);
 *
 * include this file, and define the functions of the input gradient.  `workspace` has at least the bytes that the
 * function `..._workspace` returns. */

static int64_t plan_bytes(Plan plan) { return (int64_t)divide(&plan, 0).end + CACHE_LINE; }

int64_t forward_workspace(const Layer *layer) { return plan_bytes(forward_plan(layer)); }

void forward(const Layer *layer, const real *x, const real *filters, real *out, char *workspace)
{
    Plan plan = forward_plan(layer);
    run(&plan, x, filters, out, workspace);
}

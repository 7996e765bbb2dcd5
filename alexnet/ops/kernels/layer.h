/* The arguments of the convolution kernels: the sizes of a layer, and a workspace that a kernel divides into buffers.
 *
 * A kernel defines `Buffers divide(const Plan *, char *workspace)`.  Buffers.end is the end of the last buffer.  If the
 * workspace starts at address 0, this is the size that the kernel needs, except for alignment.
 */
#ifndef LAYER_H
#define LAYER_H

#include <stdint.h>
#include "common.h"

/* The sizes of a convolution, as passed by Python; the filters are (c / groups, filter_height, filter_width, o). */
typedef struct { int64_t c, height, width, b, o, filter_height, filter_width, stride, pad, groups; } Layer;

static inline long out_height(const Layer *l) { return (l->height + 2 * l->pad - l->filter_height) / l->stride + 1; }
static inline long out_width(const Layer *l) { return (l->width + 2 * l->pad - l->filter_width) / l->stride + 1; }

/* Take a buffer from the start of the free part of a workspace. */
static inline void *take(char **workspace, long bytes)
{
    char *buffer = *workspace + -(unsigned long)*workspace % CACHE_LINE;
    *workspace = buffer + bytes;
    return buffer;
}

#endif

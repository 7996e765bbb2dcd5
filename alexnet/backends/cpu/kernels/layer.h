/* The arguments of the convolution kernels: the sizes of a layer, and a workspace that is divided into buffers. */
#ifndef LAYER_H
#define LAYER_H

#include <stdint.h>
#include "common.h"

/* The sizes of a convolution, as passed by Python; the filters are (c / groups, filter_height, filter_width, o). */
typedef struct { int64_t c, height, width, b, o, filter_height, filter_width, stride, pad, groups; } Layer;

static inline long out_height(const Layer *l) { return (l->height + 2 * l->pad - l->filter_height) / l->stride + 1; }
static inline long out_width(const Layer *l) { return (l->width + 2 * l->pad - l->filter_width) / l->stride + 1; }

enum { CACHE_LINE = 64 };                /* bytes; each buffer starts on a cache line */

/* Take a buffer from the start of the free part of a workspace. */
static inline void *take(char **workspace, long bytes)
{
    char *buffer = *workspace;
    *workspace = buffer + ceil_div(bytes, CACHE_LINE) * CACHE_LINE;
    return buffer;
}

static inline char *aligned(char *workspace)
{
    return workspace + (CACHE_LINE - (unsigned long)workspace % CACHE_LINE) % CACHE_LINE;
}

/* Bytes of a workspace whose buffers, divided from address 0, end at `end`; any start may have to be aligned. */
static inline int64_t workspace_bytes(const char *end) { return (int64_t)end + CACHE_LINE; }

#endif

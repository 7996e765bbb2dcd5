"""Slow, plain reference results in float64: one loop per index of the formula; only the batch is vectorised."""

from itertools import product

import numpy as np


def convolution_terms(x_shape, W_shape, stride, pad, groups):
    """Yield (o, r, s, c, i, j, channel, row, column): y[o, r, s] takes W[c, i, j, o] * x[channel, row, column]."""
    channels, height, width, _ = x_shape
    per_group, filter_height, filter_width, outputs = W_shape
    out_height = (height + 2 * pad - filter_height) // stride + 1
    out_width = (width + 2 * pad - filter_width) // stride + 1
    lengths = outputs, out_height, out_width, per_group, filter_height, filter_width
    for o, r, s, c, i, j in product(*map(range, lengths)):
        channel = o // (outputs // groups) * per_group + c
        row = r * stride + i - pad
        column = s * stride + j - pad
        if 0 <= row < height and 0 <= column < width:
            yield o, r, s, c, i, j, channel, row, column


def convolution(x, W, stride, pad, groups):
    out_height = (x.shape[1] + 2 * pad - W.shape[1]) // stride + 1
    out_width = (x.shape[2] + 2 * pad - W.shape[2]) // stride + 1
    y = np.zeros((W.shape[3], out_height, out_width, x.shape[3]))
    for o, r, s, c, i, j, channel, row, column in convolution_terms(x.shape, W.shape, stride, pad, groups):
        y[o, r, s] += np.float64(W[c, i, j, o]) * x[channel, row, column]
    return y


def convolution_gradients(x, W, g, stride, pad, groups):
    """Return the derivatives of sum(g * y) with respect to x and W."""
    dx = np.zeros(x.shape)
    dW = np.zeros(W.shape)
    for o, r, s, c, i, j, channel, row, column in convolution_terms(x.shape, W.shape, stride, pad, groups):
        dx[channel, row, column] += np.float64(W[c, i, j, o]) * g[o, r, s]
        dW[c, i, j, o] += np.float64(x[channel, row, column]) @ g[o, r, s]
    return dx, dW


def windows(n, size, stride, pad=0, ceil=False):
    """Return the first and last pixel of each window along an axis of n pixels, counted from the image's first."""
    starts = range(-pad, n if ceil else n + pad - size + 1, stride)
    if ceil:                                     # Caffe stops at the first window that reaches the end of the padding
        reach = next((at for at, start in enumerate(starts) if start + size >= n + pad), len(starts) - 1)
        starts = starts[: reach + 1]
    return [(max(start, 0), min(start + size, n) - 1, start) for start in starts]


def max_pool(x, size, stride, pad=0, ceil=False):
    """Return (y, index): the maximum of each window, and i * size + j of its first pixel; NaN counts as largest."""
    channels, height, width, batch = x.shape
    rows, columns = windows(height, size, stride, pad, ceil), windows(width, size, stride, pad, ceil)
    y = np.zeros((channels, len(rows), len(columns), batch), x.dtype)
    index = np.zeros(y.shape, int)
    for c, r, s, b in np.ndindex(y.shape):
        (top, bottom, row), (left, right, column) = rows[r], columns[s]
        pixels = list(product(range(top, bottom + 1), range(left, right + 1)))
        window = [x[c, i, j, b] for i, j in pixels]
        ranks = [np.inf if np.isnan(value) else value for value in window]
        first = ranks.index(max(ranks))
        index[c, r, s, b] = (pixels[first][0] - row) * size + pixels[first][1] - column
        y[c, r, s, b] = window[first]
    return y, index


def max_pool_gradient(x, g, size, stride, pad=0, ceil=False):
    _, index = max_pool(x, size, stride, pad, ceil)
    dx = np.zeros(x.shape)
    for c, r, s, b in np.ndindex(g.shape):
        i, j = divmod(index[c, r, s, b], size)
        dx[c, r * stride + i - pad, s * stride + j - pad, b] += g[c, r, s, b]
    return dx


def lrn(x, n, k, alpha, beta):
    return x * lrn_scale(x, n, k, alpha) ** -beta


def lrn_scale(x, n, k, alpha):
    """Return k + alpha * sum of x ** 2 over the channels at most n // 2 away."""
    scale = np.full(x.shape, k, np.float64)
    for c, j in product(range(len(x)), repeat=2):
        if abs(c - j) <= n // 2:
            scale[c] += alpha * x[j].astype(np.float64) ** 2
    return scale


def lrn_gradient(x, g, n, k, alpha, beta):
    """Return the derivative of sum(g * y), from those of y[j] with respect to x[c] for each pair of channels."""
    s = lrn_scale(x, n, k, alpha)
    x = x.astype(np.float64)
    dx = np.zeros(x.shape)
    for c, j in product(range(len(x)), repeat=2):
        derivative = s[j] ** -beta if c == j else 0
        if abs(c - j) <= n // 2:
            derivative = derivative - 2 * alpha * beta * x[c] * x[j] * s[j] ** (-beta - 1)
        dx[c] += g[j] * derivative
    return dx


def batch_norm(x, gamma, beta, epsilon, relu=False):
    """Return (y, mean, variance), one channel at a time."""
    x = x.astype(np.float64)
    y = np.empty(x.shape)
    for c, values in enumerate(x):
        deviation = np.sqrt(values.var() + epsilon)
        y[c] = gamma[c] * (values - values.mean()) / deviation + beta[c]
    return np.maximum(y, 0) if relu else y, x.mean((1, 2, 3)), x.var((1, 2, 3))


def batch_norm_gradient(x, gamma, beta, g, epsilon, relu=False):
    """Return (dx, dgamma, dbeta) from the Jacobian of the normalised values of one channel at a time."""
    y, *_ = batch_norm(x, gamma, beta, epsilon, relu)
    d = np.where(y > 0, g, 0) if relu else g.astype(np.float64)
    dx, dgamma = np.empty(x.shape), np.empty(len(x))
    for c, values in enumerate(x.astype(np.float64)):
        n = values.size
        deviation = np.sqrt(values.var() + epsilon)
        normalised = ((values - values.mean()) / deviation).ravel()
        jacobian = (np.eye(n) - 1 / n - np.outer(normalised, normalised) / n) / deviation
        dx[c] = (gamma[c] * jacobian @ d[c].ravel()).reshape(values.shape)
        dgamma[c] = normalised @ d[c].ravel()
    return dx, dgamma, d.sum((1, 2, 3))


def crop_mirror(images, mean, rows, columns, mirrors, size):
    out = np.zeros((images.shape[0], size, size, images.shape[3]))
    for c, r, s, b in np.ndindex(out.shape):
        row = rows[b] + r
        column = columns[b] + (size - 1 - s if mirrors[b] else s)
        out[c, r, s, b] = np.float64(images[c, row, column, b]) - mean[c, row, column]
    return out

"""The same AlexNet written directly in JAX for GPUs: the peer of the jax backend.

Images are (batch, row, column, channel) and filters (row, column, in, out), the fastest layout of XLA's convolutions on
GPUs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CONVOLUTIONS = (                                 # filters, size, stride, pad, groups, pooled, normalised
    (96, 11, 4, 0, 1, True, True),
    (256, 5, 1, 2, 2, True, True),
    (384, 3, 1, 1, 1, False, False),
    (384, 3, 1, 1, 2, False, False),
    (256, 3, 1, 1, 2, True, False),
)
DENSE = (4096, 4096, 1000)
DTYPES = {"float32": jnp.float32, "tf32": jnp.float32, "bfloat16": jnp.bfloat16}


def initial_parameters(seed=0):
    """Return a list of (weights, biases), float32."""
    rng, channels, found = np.random.default_rng(seed), 3, []
    for filters, size, _, _, groups, *_ in CONVOLUTIONS:
        found.append((rng.normal(0, 0.01, (size, size, channels // groups, filters)), np.zeros(filters)))
        channels = filters
    inputs = 6 * 6 * channels
    for outputs in DENSE:
        found.append((rng.normal(0, 0.005, (inputs, outputs)), np.full(outputs, 0.1)))
        inputs = outputs
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), found)


def logits_of(parameters, images, key, precision):
    """Return the logits (batch, class), float32, with dropout.

    The operands of convolutions and matrix products have the given precision; sums are accumulated in float32.
    """
    dtype = DTYPES[precision]
    how = {"precision": lax.Precision.HIGHEST if precision == "float32" else lax.Precision.DEFAULT}
    x = images.astype(dtype)
    for (w, b), (_, _, stride, pad, groups, pooled, normalised) in zip(parameters, CONVOLUTIONS, strict=False):
        layout = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(
            x, w.astype(dtype), (stride, stride), [(pad, pad)] * 2, dimension_numbers=layout,
            feature_group_count=groups, **how,
        )
        x = jax.nn.relu(x + b.astype(dtype))
        if pooled:
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        if normalised:
            x = normalise(x)
    x = x.reshape(x.shape[0], -1)
    for layer, (w, b) in enumerate(parameters[len(CONVOLUTIONS) :]):
        x = jnp.dot(x, w.astype(dtype), **how) + b.astype(dtype)
        if layer < len(DENSE) - 1:
            kept = jax.random.bernoulli(jax.random.fold_in(key, layer), 0.5, x.shape)
            x = jnp.where(kept, jax.nn.relu(x) * 2, 0)
    return x.astype(jnp.float32)


def normalise(x):
    """Local response normalisation over 5 channels: x / (2 + 1e-4 * sum of x**2) ** 0.75."""
    squares = jnp.pad(jnp.square(x.astype(jnp.float32)), ((0, 0), (0, 0), (0, 0), (2, 2)))
    sums = sum(squares[..., n : n + x.shape[3]] for n in range(5))
    return (x * (2 + 1e-4 * sums) ** -0.75).astype(x.dtype)


def make_step(precision, learning_rate=1e-3, momentum=0.9, weight_decay=5e-4):
    """Return a compiled step: (parameters, velocities, images, labels, key) -> parameters, velocities, cost.

    The step donates the buffers of parameters and velocities.
    """

    def cost_of(parameters, images, labels, key):
        log_probability = jax.nn.log_softmax(logits_of(parameters, images, key, precision))
        return -jnp.take_along_axis(log_probability, labels[:, None], axis=1).mean()

    def step(parameters, velocities, images, labels, key):
        cost, gradients = jax.value_and_grad(cost_of)(parameters, images, labels, key)
        moved = [
            (momentum * vw - learning_rate * (gw + weight_decay * w), momentum * vb - 2 * learning_rate * gb)
            for (w, _), (vw, vb), (gw, gb) in zip(parameters, velocities, gradients, strict=True)
        ]
        return jax.tree.map(jnp.add, parameters, moved), moved, cost

    return jax.jit(step, donate_argnums=(0, 1))

"""Train a small convolutional network in plain PyTensor: no training loop, layer or mode of this project.

    python examples/cnn.py

The images show stripes in one of four directions, in noise.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

from alexnet.ops import conv2d, max_pool2d

CLASSES, SIZE, BATCH, STEPS = 4, 32, 64, 60
rng = np.random.default_rng(0)


def stripes(n):
    """Return images (n, 3, SIZE, SIZE), float32, and their labels (n,): the direction of the stripes."""
    labels = rng.integers(0, CLASSES, n).astype("int32")
    angle = (labels * np.pi / CLASSES)[:, None, None]
    row, column = np.mgrid[:SIZE, :SIZE]
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    waves = np.sin(column * np.cos(angle) + row * np.sin(angle) + phase)
    return (waves[:, None] + rng.normal(size=(n, 3, SIZE, SIZE))).astype("float32"), labels


def parameter(*shape):
    """Return a shared variable of random weights with a static shape, which JAX mode needs."""
    fan_in = np.prod(shape[1:])
    return pytensor.shared((rng.normal(size=shape) / np.sqrt(fan_in)).astype("float32"), shape=shape)


x = pt.tensor("x", shape=(None, 3, SIZE, SIZE), dtype="float32")
labels = pt.ivector("labels")
W1, W2, W3 = parameters = parameter(16, 3, 5, 5), parameter(32, 16, 3, 3), parameter(CLASSES, 32 * 8 * 8)

h = max_pool2d(pt.maximum(conv2d(x, W1, padding="same"), 0), 2)                # 16 x 16 x 16
h = max_pool2d(pt.maximum(conv2d(h, W2, padding="same"), 0), 2)                # 32 x 8 x 8
log_probability = pt.special.log_softmax(h.flatten(2) @ W3.T, axis=1)
cost = -log_probability[pt.arange(labels.shape[0]), labels].mean()
error = pt.neq(log_probability.argmax(axis=1), labels).mean()

gradients = pytensor.grad(cost, parameters)
updates = [(p, p - np.float32(0.02) * g) for p, g in zip(parameters, gradients, strict=True)]
train = pytensor.function([x, labels], cost, updates=updates)                  # the default mode
test = pytensor.function([x, labels], error)

for step in range(1, STEPS + 1):
    cost_now = train(*stripes(BATCH))
    if step % 20 == 0:
        print(f"step {step}: cost {cost_now:.3f}")
print(f"error on new images: {test(*stripes(500)):.1%}")

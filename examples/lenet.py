"""LeNet as in the Theano tutorial (deeplearning.net/tutorial/lenet.html), on digits drawn by Pillow.

    python examples/lenet.py

Two lines of the tutorial's LeNetConvPoolLayer change:

    conv2d(input=input, filters=W, filter_shape=..., input_shape=...)      conv2d(input, W)
    pool.pool_2d(input=conv_out, ds=poolsize, ignore_border=True)          max_pool2d(conv_out, poolsize)

Theano flips the filters, as in the mathematical convolution; conv2d does not. For learned filters it is the same.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt
from PIL import Image, ImageDraw, ImageFont

from alexnet.ops import conv2d, max_pool2d

BATCH, EPOCHS, TRAINING, TEST = 50, 3, 3000, 1000
FONT = ImageFont.load_default(24)
rng = np.random.default_rng(23455)


def digits(n):
    """Return n images of 28 x 28 pixels, float32 (n, 784) in 0..1, and the digits on them, int32 (n,)."""
    labels = rng.integers(0, 10, n).astype("int32")
    images = np.empty((n, 28, 28), "float32")
    for image, digit in zip(images, labels, strict=True):
        page = Image.new("L", (28, 28))
        ImageDraw.Draw(page).text((7 + rng.integers(-4, 5), rng.integers(-4, 4)), str(digit), fill=255, font=FONT)
        image[:] = np.asarray(page.rotate(rng.uniform(-20, 20))) / 255
    return np.clip(images + 0.1 * rng.normal(size=images.shape), 0, 1).astype("float32").reshape(n, 784), labels


class LeNetConvPoolLayer:
    """Convolution, max pooling, bias and tanh."""

    def __init__(self, input, filter_shape, poolsize=(2, 2)):
        fan_in, fan_out = np.prod(filter_shape[1:]), filter_shape[0] * np.prod(filter_shape[2:]) / np.prod(poolsize)
        bound = np.sqrt(6.0 / (fan_in + fan_out))
        self.W = pytensor.shared(rng.uniform(-bound, bound, filter_shape).astype("float32"), shape=filter_shape)
        self.b = pytensor.shared(np.zeros(filter_shape[0], "float32"), shape=filter_shape[:1])
        pooled = max_pool2d(conv2d(input, self.W), poolsize)
        self.output = pt.tanh(pooled + self.b.dimshuffle("x", 0, "x", "x"))
        self.params = [self.W, self.b]


class DenseLayer:
    """tanh(input W + b); the tutorial's HiddenLayer."""

    def __init__(self, input, n_in, n_out):
        bound = np.sqrt(6.0 / (n_in + n_out))
        self.W = pytensor.shared(rng.uniform(-bound, bound, (n_in, n_out)).astype("float32"))
        self.b = pytensor.shared(np.zeros(n_out, "float32"))
        self.linear = input @ self.W + self.b
        self.output = pt.tanh(self.linear)
        self.params = [self.W, self.b]


x, y = pt.fmatrix("x"), pt.ivector("y")
layer0 = LeNetConvPoolLayer(x.reshape((-1, 1, 28, 28)), (20, 1, 5, 5))
layer1 = LeNetConvPoolLayer(layer0.output, (50, 20, 5, 5))
layer2 = DenseLayer(layer1.output.flatten(2), 50 * 4 * 4, 500)
layer3 = DenseLayer(layer2.output, 500, 10)
log_p = pt.special.log_softmax(layer3.linear, axis=1)
cost = -log_p[pt.arange(y.shape[0]), y].mean()
params = layer3.params + layer2.params + layer1.params + layer0.params
updates = [(param, param - np.float32(0.1) * grad) for param, grad in zip(params, pt.grad(cost, params), strict=True)]

train_model = pytensor.function([x, y], cost, updates=updates)
test_model = pytensor.function([x, y], pt.neq(log_p.argmax(axis=1), y).mean())

train_x, train_y = digits(TRAINING)
test_x, test_y = digits(TEST)
for epoch in range(EPOCHS):
    for i in range(0, TRAINING, BATCH):
        train_model(train_x[i : i + BATCH], train_y[i : i + BATCH])
    print(f"epoch {epoch + 1}, test error {test_model(test_x, test_y):.1%}")

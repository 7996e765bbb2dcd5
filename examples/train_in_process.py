"""Train AlexNet in this process: build, compile, and a loop that the reader owns. No loader, no launcher.

    python examples/train_in_process.py
"""

import numpy as np

from alexnet.data.augment import centre_crop, crop_stream, draw_crop
from alexnet.models.alexnet import AlexNet
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd

CLASSES, BATCH, EPOCHS = 2, 16, 3


def synthetic_images(rng, n):
    """Return uint8 images (3, 256, 256, n), dark or bright, and their int32 labels (n,), 0 or 1."""
    labels = rng.integers(0, CLASSES, n).astype(np.int32)
    noise = rng.integers(0, 128, (3, 256, 256, n))
    return (noise + 100 * labels).astype(np.uint8), labels


rng = np.random.default_rng(0)
images, labels = synthetic_images(rng, 6 * BATCH)
mean = images.mean(axis=3)
network = Network(AlexNet(rng, classes=CLASSES), mean, momentum_sgd)

step = 0
for epoch in range(EPOCHS):
    for first in range(0, len(labels), BATCH):
        batch = images[..., first : first + BATCH], labels[first : first + BATCH]
        crop = draw_crop(crop_stream(0, rank=0, iteration=step), BATCH, image_size=227)
        cost, error = network.train(batch[0], *crop, batch[1], np.float32(0.01))
        step += 1
        print(f"epoch {epoch}, step {step}: cost {cost:z.3f}, error {error:.0%}")

test_images, test_labels = synthetic_images(rng, BATCH)
cost, top1_error, *_ = network.validate(test_images, *centre_crop(BATCH, 227), test_labels)
print(f"validation: cost {cost:z.3f}, error {top1_error:.0%}")

"""What trained weights are assumed to take, as one line that every command prints."""

import numpy as np

from alexnet.pretrained.weights import Weights

RESIZED = {"squash": "whole images squashed to 256 x 256", "crop": "central squares resized to 256 x 256"}


def input_line(weights: Weights) -> str:
    """Return the colours, scale, mean image and resize method that the weights are assumed to take."""
    mean = "no mean image"
    if weights.mean is not None:
        form = "values" if np.ptp(weights.mean, axis=(1, 2)).max() == 0 else "image of means"
        mean = f"minus the mean {form} {channels(weights.mean.mean(axis=(1, 2)), 1)}"
    scale = scale_of(weights)
    factor = "" if scale == (1, 1, 1) else f", times {channels(scale, 4)}"
    return f"input: RGB, grey levels 0 to 255, {mean}{factor}; {RESIZED.get(weights.resize, weights.resize)}"


def scale_of(weights: Weights) -> tuple[float, float, float]:
    """Return the factor of each channel after the mean is subtracted, RGB; 1 if the weights have no such factors."""
    return getattr(weights, "scale", (1.0, 1.0, 1.0))


def channels(values: np.ndarray | tuple[float, float, float], digits: int) -> str:
    """Format a value per channel: R 122.7, G 116.7, B 104.0."""
    return ", ".join(f"{name} {value:.{digits}f}" for name, value in zip("RGB", values, strict=True))

"""A convolution inside a PyMC model: which 3 x 3 filter turned one set of images into another? Needs pymc.

    python examples/bayesian_filter.py

The posterior of the filter is sampled by NUTS, which uses the gradient of the convolution.
"""

import numpy as np
import pymc as pm

from alexnet.ops import conv2d

FILTER = np.array([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])     # finds edges
NOISE = 0.5


def main() -> None:
    rng = np.random.default_rng(1)
    images = rng.normal(size=(2, 1, 12, 12))
    sharp = conv2d(images, FILTER[None, None]).eval()
    observed = sharp + NOISE * rng.normal(size=sharp.shape)

    with pm.Model():
        weights = pm.Normal("filter", 0, 3, shape=(1, 1, 3, 3))
        sigma = pm.HalfNormal("sigma", 1)
        pm.Normal("observed", conv2d(images, weights), sigma, observed=observed)
        samples = pm.sample(300, tune=300, chains=2, cores=1, random_seed=1, progressbar=False).posterior

    found = samples["filter"].mean(("chain", "draw")).values[0, 0]
    print("filter:", np.array2string(found, precision=1, suppress_small=True).replace("\n", ""))
    print(f"noise: {float(samples['sigma'].mean()):.2f}, largest error {np.abs(found - FILTER).max():.2f}")


if __name__ == "__main__":
    main()

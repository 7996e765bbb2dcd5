"""The composite layer of SqueezeNet. Source: Iandola et al. 2016."""

from functools import partial

from alexnet.nn.containers import Concatenation, Sequential
from alexnet.nn.layers import Conv
from alexnet.nn.parameter import Rng, xavier


class Fire(Concatenation):
    """Fire module: 1x1 filters that reduce the channels, then 1x1 and 3x3 filters, whose outputs are concatenated.

    channels  channels of x
    squeeze   number of 1x1 filters on x
    expand    number of 1x1 filters, and of 3x3 filters, on the squeezed channels

    It counts as one layer. Source: Iandola et al. 2016, section 3.2 and figure 1.
    """

    depth = 1

    def __init__(self, rng: Rng, name: str, channels: int, squeeze: int, expand: int) -> None:
        conv = partial(Conv, rng, std=xavier)
        super().__init__(
            name,
            Sequential(conv(squeeze, expand, 1), names=(f"{name}.expand1x1",)),
            Sequential(conv(squeeze, expand, 3, pad=1), names=(f"{name}.expand3x3",)),
            stem=Sequential(conv(channels, squeeze, 1), names=(f"{name}.squeeze1x1",)),
        )

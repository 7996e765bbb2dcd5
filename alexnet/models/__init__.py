"""The networks, by the name that the setting `model` gives them."""

import difflib

from alexnet.config import ConfigError
from alexnet.models.alexnet import AlexNet
from alexnet.models.caffenet import BVLCAlexNet, CaffeNet
from alexnet.models.googlenet import GoogLeNet
from alexnet.models.vgg import VGG16

MODELS = {
    "alexnet": AlexNet,
    "caffenet": CaffeNet,
    "bvlc_alexnet": BVLCAlexNet,
    "googlenet": GoogLeNet,
    "vgg16": VGG16,
}


def model_class(name):
    """The class of MODELS; raises ConfigError for a name that is not there."""
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(name, MODELS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(MODELS)}"
    raise ConfigError(f"model: there is no network {name!r}; {hint}")

"""The networks, by their value of the setting `model`."""

from alexnet.config import check_known
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
    """Return the class of a name in MODELS. Raises ConfigError for an unknown name."""
    check_known(name, MODELS, "model: there is no network")
    return MODELS[name]

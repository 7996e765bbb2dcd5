"""The networks, by the name that the setting `model` gives them."""

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
    """The class of MODELS; raises ConfigError for a name that is not there."""
    check_known(name, MODELS, "model: there is no network")
    return MODELS[name]

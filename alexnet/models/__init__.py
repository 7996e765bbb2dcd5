"""The networks, a module each. `model=module:Class` selects one outside the package."""

from alexnet.models.alexnet import AlexNet
from alexnet.models.base import MODELS, Model, model_class
from alexnet.models.caffenet import BVLCAlexNet, CaffeNet
from alexnet.models.googlenet import GoogLeNet
from alexnet.models.vgg import VGG16

__all__ = ["MODELS", "AlexNet", "BVLCAlexNet", "CaffeNet", "GoogLeNet", "Model", "VGG16", "model_class"]

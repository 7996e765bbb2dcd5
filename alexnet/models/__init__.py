"""The networks, by the name that the setting `model` gives them."""

from alexnet.models.alexnet import AlexNet

MODELS = {"alexnet": AlexNet}

"""Layers and the networks made of them.

A layer is constructed once with its parameters and then called on a symbolic variable. Images are (channel, row,
column, batch); the features of dense layers are (feature, batch). There is no module state and no global training flag.
"""

from alexnet.nn.containers import Auxiliary, Named, Sequential
from alexnet.nn.layer import Chain, Layer, LayerSummary, Step, Training
from alexnet.nn.layers import LRN, AveragePool, BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, ReLU, relu
from alexnet.nn.parameter import Background, Parameter, Rng, Std, he, weights_and_biases, xavier

__all__ = [
    "LRN", "Auxiliary", "AveragePool", "Background", "BatchNorm", "Chain", "Conv", "Dense", "Dropout", "Flatten",
    "Layer", "LayerSummary", "MaxPool", "Named", "Parameter", "ReLU", "Rng", "Sequential", "Std", "Step", "Training",
    "he", "relu", "weights_and_biases", "xavier",
]

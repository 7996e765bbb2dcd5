"""Layers and the networks made of them.

A layer is constructed once with its parameters and then called on a symbolic variable. Images are (channel, row,
column, batch); the features of dense layers are (feature, batch). There is no module state and no global training flag.
"""

from alexnet.nn.containers import Auxiliary, Named, Sequential
from alexnet.nn.layer import Chain, Layer, LayerSummary, Noise, Step
from alexnet.nn.layers import LRN, AveragePool, Conv, Dense, Dropout, Flatten, MaxPool, relu
from alexnet.nn.parameter import Background, Parameter, Rng, Std, weights_and_biases, xavier

__all__ = [
    "LRN", "Auxiliary", "AveragePool", "Background", "Chain", "Conv", "Dense", "Dropout", "Flatten", "Layer",
    "LayerSummary", "MaxPool", "Named", "Noise", "Parameter", "Rng", "Sequential", "Std", "Step", "relu",
    "weights_and_biases", "xavier",
]

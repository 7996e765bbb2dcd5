"""The exponential moving average of the weights, which validation, evaluation and exports use instead of the weights.

With decay d, weights w_t after step t, and the average a_t:

    a_t <- a_(t-1) + (1 - d) / (1 - d**t) * (w_t - a_(t-1))

This is the mean of w_1 ... w_t with the factors d**(t-1) ... d, 1. The divisor 1 - d**t corrects the bias of an average
that starts at zero, so no initial value enters.

Source: Polyak and Juditsky 1992; Szegedy et al. 2016, section 8, for the moving average; Kingma and Ba 2015, section 3,
for the correction.
"""

import math
from collections.abc import Mapping, Sequence

import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable

from alexnet.config import Section
from alexnet.config.fields import Share
from alexnet.nn import Parameter

AVERAGE = "average"                              # conv1.W.average is the average of conv1.W


class WeightAverageSettings(Section):
    """The decay of the average per step; 0: no average."""

    ema_decay: Share


def update_averages(
    averages: Sequence[SharedVariable], parameters: Sequence[Parameter],
    new_values: Mapping[SharedVariable, TensorVariable], steps: Variable, decay: float,
) -> list[tuple[SharedVariable, TensorVariable]]:
    """Return the pairs (average, new value) of a step.

    Args:
        new_values: of the parameters that the same function updates; the others have their values already.
        steps: number of steps including this one, an integer scalar.
        decay: greater than 0 and less than 1.
    """
    pairs = []
    for average, parameter in zip(averages, parameters, strict=True):
        real = parameter.real
        # 1 - decay**steps without cancellation
        divisor = -pt.expm1(real(math.log(decay)) * steps.astype(parameter.variable.type.dtype))
        w = new_values.get(parameter.variable, parameter.variable)
        pairs.append((average, average + real(1 - decay) / divisor * (w - average)))
    return pairs

"""Flips in the memory of a training process: what the workers of a small training run hold between two operations."""

import numpy as np

from alexnet.training.loop import Diverged, InputLost
from experiments.corruption.outcome import Outcome, flip_array, relative_change, same_bits
from experiments.corruption.replicas import STEPS, Replicas
from multigpu.communicator import StateDamaged

# name -> (what is exchanged, the moments at which the bit flips, the array)
PLACES = {
    "images in shared memory": (None, ("before",), "images"),
    "weight, one worker": (None, ("before", "computed", "ended"), "weights"),
    "velocity, one worker": (None, ("before", "computed", "ended"), "velocities"),
    "weight, gradients exchanged": ("gradients", ("before", "computed", "ended"), "weights"),
    "velocity, gradients exchanged": ("gradients", ("before", "computed", "ended"), "velocities"),
    "gradient before the exchange": ("gradients", ("computed",), "gradients"),
    "exchange buffer after the reduction": ("gradients", ("averaged",), "buffer"),
    "weight, weights and momentum exchanged": ("weights_and_momentum", ("before", "computed", "ended"), "weights"),
    "velocity, weights and momentum exchanged": ("weights_and_momentum", ("before", "computed", "ended"), "velocities"),
    "exchange buffer after the reduction, weights and momentum": ("weights_and_momentum", ("averaged",), "buffer"),
}


def trials(name, seeds, checks):
    """Yield the Outcome of a flip in the place `name` for each seed.

    Args:
        checks: whether the workers compare the sums of their state and of their images.
    """
    what, moments, kind = PLACES[name]
    replicas = Replicas(what, checks)
    reference = replicas.train(lambda *moment: None)
    error = replicas.error_of(reference)
    for seed in seeds:
        yield trial(replicas, moments, kind, reference, error, np.random.default_rng((seed, len(name))))


def trial(replicas, moments, kind, reference, error, rng):
    """Return the Outcome of one flip."""
    chosen = str(rng.choice(moments)), int(rng.integers(replicas.size)), int(rng.integers(1, STEPS + 1))
    if chosen[0] == "ended":
        chosen = chosen[0], 0, STEPS             # after the last step, before rank 0 saves
    step = f"{chosen[0]} step {chosen[2]}"

    def act(moment, rank, step, array):
        if (moment, rank, step) == chosen:
            flip_one(replicas.networks[rank], kind, array, rng)

    try:
        found = replicas.train(act)
    except (StateDamaged, Diverged, InputLost) as message:
        return Outcome("detected", step, str(message))
    if same_bits(found, reference):
        return Outcome("harmless", step)
    return Outcome("silent", step, "", relative_change(found, reference), replicas.error_of(found) - error)


def flip_one(network, kind, array, rng):
    """Flip a bit of an array of this kind, each with a probability in proportion to its size."""
    if kind in ("images", "buffer"):
        flip_array(array, rng)
        return
    n = len(network.trainable_parameters)
    variables = {
        "weights": network.parameters_and_velocities[:n], "velocities": network.parameters_and_velocities[n:],
        "gradients": network.gradients,
    }[kind]
    arrays = [variable.get_value(borrow=True) for variable in variables]
    sizes = np.array([array.size for array in arrays])
    flip_array(arrays[rng.choice(len(arrays), p=sizes / sizes.sum())], rng)

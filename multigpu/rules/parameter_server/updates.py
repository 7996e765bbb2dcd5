"""Server updates of rule asgd: pure functions that work in place on one-dimensional pieces.

A push D is the sum of a client's updates since its last push, so -D takes the role of a gradient:

    plain      W <- W + c D                                     Paine et al. 2013; c = 1: Dean et al. 2012, "Downpour"
    adagrad    G <- G + D**2,  W <- W + c D / (sqrt(G) + epsilon)                     Duchi et al. 2011, equation 1
    adadelta   E[D^2] <- rho E[D^2] + (1 - rho) D**2,  d = sqrt(E[d^2] + epsilon) / sqrt(E[D^2] + epsilon) D,
               E[d^2] <- rho E[d^2] + (1 - rho) d**2,  W <- W + c d                   Zeiler 2012, algorithm 1
    nesterov   m <- beta m + c D,  W <- W + beta m + c D                              Liu et al. 2024, equation 4
    delayed_nesterov                                                                  Liu et al. 2024, algorithm 3
               d = c D / N,  B <- B + d,  and W <- W + a beta m + d, but on each N-th push instead
               m <- beta m + B,  B <- 0,  W <- W + (1 - a N + a) beta m + d

Common arguments:

push, center  D and W: float arrays of the same length and dtype, without shared memory
squares, ...  accumulators of the rule for each weight, with the shape of center; initially zero
scale         c, or the value that by_staleness returns for it
back          whether the new values of center overwrite push, for a client that fetches them; otherwise the content
              of push is undefined afterwards

If a C compiler is available, updates.c makes one pass over the arrays. Otherwise NumPy works block by block, with the
same bits. On one core, C is limited by memory bandwidth, and NumPy takes two to five times as long.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from alexnet.native import compiler
from multigpu.exchange.flat_buffer import blocks

SOURCE = Path(__file__).with_suffix(".c").read_text(encoding="utf-8")
SIGNATURES = {
    "plain": "aanfn", "adagrad": "aaanffn", "adadelta": "aaaanffffn", "nesterov": "aaanffn",
    "delayed_nesterov": "aaaanfffnn",
}


def plain(push: np.ndarray, center: np.ndarray, scale: float, back: bool = True) -> None:
    """W <- W + scale * D; each product and each sum is rounded separately."""
    scale = center.dtype.type(scale)
    if function := compiled("plain", push, center):
        function(push, center, center.size, scale, back)
        return
    for d, w, scratch in blocks(push, center):
        w += np.multiply(d, scale, out=scratch)
        if back:
            np.copyto(d, w)


def adagrad(
    push: np.ndarray, center: np.ndarray, squares: np.ndarray, scale: float, epsilon: float, back: bool = True
) -> None:
    """G <- G + D**2,  W <- W + scale * D / (sqrt(G) + epsilon)."""
    scale, epsilon = map(center.dtype.type, (scale, epsilon))
    if function := compiled("adagrad", push, center, squares):
        function(push, center, squares, center.size, scale, epsilon, back)
        return
    for d, w, g, scratch in blocks(push, center, squares):
        g += np.multiply(d, d, out=scratch)
        np.sqrt(g, out=scratch)
        scratch += epsilon
        np.divide(d, scratch, out=scratch)
        scratch *= scale
        w += scratch
        if back:
            np.copyto(d, w)


def adadelta(
    push: np.ndarray, center: np.ndarray, squares: np.ndarray, steps: np.ndarray, scale: float, rho: float,
    epsilon: float, back: bool = True,
) -> None:
    """E[D^2] <- rho E[D^2] + (1 - rho) D**2,  d = sqrt((E[d^2] + epsilon) / (E[D^2] + epsilon)) D,
    E[d^2] <- rho E[d^2] + (1 - rho) d**2,  W <- W + scale * d.

    squares, steps  E[D^2] and E[d^2]
    """
    scale, rho, rest, epsilon = map(center.dtype.type, (scale, rho, 1 - rho, epsilon))
    if function := compiled("adadelta", push, center, squares, steps):
        function(push, center, squares, steps, center.size, scale, rho, rest, epsilon, back)
        return
    for d, w, of_pushes, of_steps, scratch in blocks(push, center, squares, steps):
        update_mean(of_pushes, d, rho, rest, scratch)
        np.add(of_pushes, epsilon, out=scratch)
        np.divide(of_steps + epsilon, scratch, out=scratch)
        d *= np.sqrt(scratch, out=scratch)
        update_mean(of_steps, d, rho, rest, scratch)
        w += np.multiply(d, scale, out=scratch)
        if back:
            np.copyto(d, w)


def nesterov(
    push: np.ndarray, center: np.ndarray, velocity: np.ndarray, scale: float, momentum: float, back: bool = True
) -> None:
    """m <- beta m + scale * D,  W <- W + beta m + scale * D.

    With a constant scale this is PyTorch's SGD(nesterov=True) for the gradient -D, where m is -scale times its buffer.
    The scale is a factor of the push, not of the step, so a stale push has less weight in m, too.

    Args:
        velocity: m.
        momentum: beta. With 0, the update equals plain.

    Source: Liu et al. 2024, "Asynchronous Local-SGD Training for Language Modeling", equation 4.
    """
    scale, momentum = map(center.dtype.type, (scale, momentum))
    if function := compiled("nesterov", push, center, velocity):
        function(push, center, velocity, center.size, scale, momentum, back)
        return
    for d, w, m, scratch in blocks(push, center, velocity):
        d *= scale
        m *= momentum
        m += d
        np.multiply(m, momentum, out=scratch)
        scratch += d
        w += scratch
        if back:
            np.copyto(d, w)


def delayed_nesterov(
    push: np.ndarray, center: np.ndarray, velocity: np.ndarray, buffer: np.ndarray, scale: float, momentum: float,
    period: int, activation: float, last: bool, back: bool = True,
) -> None:
    """B <- B + d with d = scale * D / N. On the N-th push m <- beta m + B and B <- 0. Then W <- W + x beta m + d.

    x is a, and 1 - a N + a on the N-th push. The factors of N pushes add up to 1.

    Args:
        velocity: m.
        buffer: B.
        momentum: beta. With 0, the update equals plain with scale / N.
        period: N. With 1, the update equals nesterov.
        activation: a, in [0, 1 / N]; the paper's c.
        last: whether this is the N-th push since B was 0.

    Source: Liu et al. 2024, algorithm 3; the code of Kim et al. 2025, "HALoS", computes the same.
    """
    weight = momentum * (1 - activation * (period - 1) if last else activation)
    scale, momentum, weight = map(center.dtype.type, (scale / period, momentum, weight))
    if function := compiled("delayed_nesterov", push, center, velocity, buffer):
        function(push, center, velocity, buffer, center.size, scale, momentum, weight, last, back)
        return
    for d, w, m, b, scratch in blocks(push, center, velocity, buffer):
        d *= scale
        b += d
        if last:
            m *= momentum
            m += b
            b[:] = 0
        np.multiply(m, weight, out=scratch)
        scratch += d
        w += scratch
        if back:
            np.copyto(d, w)


def update_mean(mean: np.ndarray, values: np.ndarray, rho: float, rest: float, scratch: np.ndarray) -> None:
    """Apply mean <- rho * mean + rest * values**2 in place."""
    np.multiply(values, values, out=scratch)
    scratch *= rest
    mean *= rho
    mean += scratch


@cache
def library() -> dict[str, Callable[..., None]]:
    """Return {name: function} of updates.c; empty if C cannot be compiled."""
    try:
        loaded = compiler.load(SOURCE, "server_updates")
    except compiler.CompileError:
        return {}
    for name, letters in SIGNATURES.items():
        getattr(loaded, name).argtypes = [compiler.ARGUMENTS[letter] for letter in letters]
        getattr(loaded, name).restype = None
    return {name: getattr(loaded, name) for name in SIGNATURES}


def compiled(name: str, *arrays: np.ndarray) -> Callable[..., None] | None:
    """Return the C function for these arrays, or None if there is none; C supports only float32."""
    if any(array.size != arrays[0].size or array.ndim != 1 for array in arrays):
        raise ValueError(f"a server's update needs arrays of equal length, got {[array.shape for array in arrays]}")
    return library().get(name) if {array.dtype.name for array in arrays} == {"float32"} else None


def by_staleness(scale: float, staleness: int, power: float = 1.0) -> float:
    """Return the scale of a push, reduced for stale weights: scale / (1 + staleness)**power.

    staleness is the number of versions between the fetch and the push. power 0 leaves the scale unchanged.
    Source: Zhang et al. 2016, "Staleness-aware async-SGD", which divides by the staleness unless it is 0.
    """
    return scale / (1 + staleness) ** power

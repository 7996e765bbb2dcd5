"""Engines: each turns the Ops of a graph into the code of one kind of machine.

cpu        C kernels, compiled at first use for this machine's processor; without a compiler, the references
reference  the Ops' own NumPy code, float32 or float64, for tests
"""

from alexnet.dispatch.cpu import cpu_mode, reference_mode

ENGINES = {"cpu": cpu_mode, "reference": reference_mode}


def mode_of(engine):
    """Return the PyTensor mode of an engine's name; raises ValueError for an unknown one."""
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    return ENGINES[engine]()

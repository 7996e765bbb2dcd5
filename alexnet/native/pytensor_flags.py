"""Flags of PyTensor for the processes of this program. Importing the package sets none of them.

cxx, blas__ldflags   empty: no backend uses a C++ compiler or BLAS, and searching for them takes a second
floatX               float32: the default type of variables that a model or an update rule of a user creates; those of
                     this package do not depend on it
"""

import os
import sys

NAME = "PYTENSOR_FLAGS"
BEFORE = "blas__ldflags=,cxx="                   # the last of equal flags wins, so the user may set these
AFTER = "floatX=float32"


def pytensor_flags() -> str:
    """Return the value of PYTENSOR_FLAGS for a process of this program, which contains the user's flags."""
    flags = os.environ.get(NAME, "")
    return flags if flags.startswith(BEFORE) else ",".join(filter(None, [BEFORE, flags, AFTER]))


def set_pytensor_flags() -> None:
    """Set the flags of this process and of those that it starts, unless PyTensor has been imported.

    Call it in a program, not in a library, because every user of PyTensor in the process is affected.
    """
    if "pytensor" not in sys.modules:
        os.environ[NAME] = pytensor_flags()

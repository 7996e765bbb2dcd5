"""Networks as PyTensor graphs: ops -> dispatch -> layers -> models -> compile -> training.

ops       what PyTensor cannot say: meaning, gradient, NumPy reference
dispatch  the same Ops on one engine (cpu: C kernels, jax: XLA)
models    AlexNet and its kin, each as the paper's table
compile   model and update rule -> train, validate and predict functions
training  the one loop

Importing this package makes float32 PyTensor's floating type, and keeps PyTensor from searching for a BLAS library
and a C++ compiler, which no engine here uses; PyTensor itself is imported only where a graph is built.
"""

import os
import sys

if "pytensor" in sys.modules:
    sys.modules["pytensor"].config.floatX = "float32"
else:
    _flags = ["blas__ldflags=,cxx=", os.environ.get("PYTENSOR_FLAGS", ""), "floatX=float32"]     # later ones win
    os.environ["PYTENSOR_FLAGS"] = ",".join(filter(None, _flags))

"""The environment of every test and of every process that it starts; imported before NumPy and PyTensor."""

import os

from alexnet.native.pytensor_flags import NAME, set_pytensor_flags

set_pytensor_flags()
# By default PyTensor logs a traceback and continues when a graph rewrite fails.
FLAGS = os.environ[NAME] = f"{os.environ[NAME]},on_opt_error=raise"

# Tests run several processes with several threads each on few cores, where threads that spin while they wait delay the
# others. OpenBLAS otherwise lets them spin for 2**26 cycles, 4 is the smallest value: even a process that only imports
# NumPy takes 0.1 s more.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

"""Sets the flags of PyTensor under which every test and every process that it starts runs; imported before PyTensor."""

import os

from alexnet.native.pytensor_flags import NAME, set_pytensor_flags

set_pytensor_flags()
# By default PyTensor logs a traceback and continues when a graph rewrite fails.
FLAGS = os.environ[NAME] = f"{os.environ[NAME]},on_opt_error=raise"

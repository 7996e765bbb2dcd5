"""benchmarks.mpi.scaling for the tiny network of tests/tiny.py, which is imported only by the ranks."""

import sys

from benchmarks.mpi import scaling
from tests import tiny

if __name__ == "__main__":
    assert tiny.Tiny in tiny.MODELS.values()
    sys.exit(scaling.main())

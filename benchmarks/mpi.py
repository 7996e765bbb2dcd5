"""How to start an MPI job: the path of mpiexec and its environment variables."""

import importlib.util
import shutil
import sys
from pathlib import Path

NEEDED = "mpi4py and an MPI are needed: pip install mpi4py mpich"
# Open MPI: allow root, and more ranks than cores
VARIABLES = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def mpiexec():
    """Return the path of mpiexec, or None if mpi4py or mpiexec is not installed.

    Search next to the Python executable first, where the MPICH and Open MPI wheels install it, then on PATH.
    """
    if importlib.util.find_spec("mpi4py") is None:
        return None
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")

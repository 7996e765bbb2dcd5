"""What it takes to start ranks of an MPI job: mpiexec, and its variables."""

import importlib.util
import shutil
import sys
from pathlib import Path

NEEDED = "mpi4py and an MPI are needed: pip install mpi4py mpich"
# Open MPI: as root, on few cores
VARIABLES = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}  # fmt: skip


def mpiexec():
    """The path of mpiexec: beside this Python, as the wheels of MPICH and Open MPI put it, or on PATH; None: none."""
    if importlib.util.find_spec("mpi4py") is None:
        return None
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")

"""How to start an MPI job: the path of mpiexec, its environment variables, and a benchmark's ranks."""

import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

from benchmarks.harness import report
from benchmarks.harness.program import TOP, environment

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
    beside = pathlib.Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def open_communicator():
    """Return the MpiCommunicator of this rank.

    MPICH's shared memory is a file until MPI_Finalize, which a rank that is killed or aborts never reaches. The file is
    therefore unlinked here, as in jobs of train.py.
    """
    from multigpu.mpi.communicator import MpiCommunicator, leave_no_files  # initialises MPI, which only ranks may do

    comm = MpiCommunicator()
    leave_no_files()
    return comm


def rows_of_ranks(module, ranks, plan):
    """Run a benchmark's worker(plan as JSON, path of the rows) in an MPI job; return the rows that rank 0 wrote.

    The environment variable MPIEXEC, a command, replaces mpiexec, for example to start the ranks on several hosts.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = pathlib.Path(folder, "rows")
        program = [sys.executable, "-m", "mpi4py", "-m", module, "--worker", json.dumps(plan), str(rows)]
        variables = environment() | VARIABLES | {"OMP_NUM_THREADS": "1"}
        start = shlex.split(os.environ.get("MPIEXEC", "")) or [mpiexec()]
        subprocess.run([*start, "-n", str(ranks), *program], check=True, env=variables, cwd=TOP)
        return report.read(rows)

"""Training as an MPI job: the communicator, the job, and the wrapper of elastic ranks."""

from importlib.util import find_spec

from alexnet.native.packages import install


def why_no_mpi() -> str:
    """Return why this process cannot be a rank of an MPI job, or an empty string; MPI is not imported."""
    if find_spec("mpi4py") is None:
        return f"mpiexec starts an MPI job, which needs mpi4py, and that is not installed: {install('mpi')}"
    return ""

"""The wrapper of an elastic rank under MPICH's mpiexec, without MPI: the test plays mpiexec's part."""

import os
import signal
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.mpi

RANK = """
import os, signal, sys
from multigpu.mpi import rank_wrapper
rank_wrapper.wrap_rank()
{}
"""


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("sys.exit(3)", 3, b""),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, b""),
        ("rank_wrapper.report_detached(); os.kill(os.getpid(), signal.SIGKILL)", 0, b"cmd=finalize\n"),
        ("rank_wrapper.report_detached(); os.kill(os.getppid(), signal.SIGTERM); signal.pause()", 0, b"cmd=finalize\n"),
        ("rank_wrapper.report_detached(); sys.exit(3)", 3, b"cmd=finalize\n"),
    ],
)
def test_wrapper_ends_as_its_rank(code, status, message):
    hydra, rank = socket.socketpair()
    hydra.sendall(b"." * len(message))               # the reply to an expected message; unread bytes would be an error
    environment = os.environ | {"MPI_LOCALRANKID": "0", "PMI_FD": str(rank.fileno())}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", RANK.format(code)]
    with hydra:
        assert subprocess.run(command, env=environment, pass_fds=[rank.fileno()], timeout=30).returncode == status
        rank.close()
        assert hydra.recv(1024) == message

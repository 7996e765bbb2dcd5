"""Commands about devices and jobs.

    python -m multigpu devices                  list the devices: memory, IPC, peer access, the backend of devices=auto
    python -m multigpu restart mpiexec ...      run an MPI job, and start it again after a failure: max_restarts
"""

import argparse
import sys
from collections.abc import Sequence

from alexnet.native.console import protect
from alexnet.native.packages import begin, ended_by_ctrl_c


def main(arguments: Sequence[str]) -> int:
    begin("multigpu", arguments)
    parser = argparse.ArgumentParser(prog="python -m multigpu", description="Commands about devices and jobs.")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("devices", help="list the devices, and the backend of devices=auto")
    restart = commands.add_parser("restart", help="run an MPI job, and start it again after a failure: max_restarts")
    restart.add_argument("job", nargs=argparse.REMAINDER, metavar="mpiexec ...", help="the command of the job")
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return 0
    if given.command == "restart":
        return start_job(restart, given.job)
    with ended_by_ctrl_c():
        from multigpu.device.report import report  # imports packages that may be missing

    print(report())
    return 0


def start_job(parser: argparse.ArgumentParser, command: Sequence[str]) -> int:
    """Run the command of an MPI job under a supervisor; return the exit status."""
    with ended_by_ctrl_c():
        from multigpu.mpi.supervisor import supervise  # imports packages that may be missing
        from multigpu.train import started_by_mpi  # likewise

    if not command:
        parser.error("give the command of the job, such as mpiexec -n 4 python -m mpi4py train.py max_restarts=3")
    if started_by_mpi():
        parser.error("mpiexec has started this command; write `python -m multigpu restart mpiexec ...`")
    protect()
    try:
        return supervise(command)
    except OSError as error:
        print(f"{parser.prog}: {command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Commands about this machine.

    python -m multigpu devices      list the devices: memory, IPC, peer access, and the backend of devices=auto
"""

import argparse
import sys
from collections.abc import Sequence

from alexnet.native.packages import begin


def main(arguments: Sequence[str]) -> int:
    begin("multigpu", arguments)
    parser = argparse.ArgumentParser(prog="python -m multigpu", description="Commands about this machine.")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("devices", help="list the devices, and the backend of devices=auto")
    if parser.parse_args(arguments).command is None:
        parser.print_help()
        return 0
    from multigpu.device.report import report  # imports packages that may be missing

    print(report())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

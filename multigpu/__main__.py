"""Commands about this machine.

    python -m multigpu devices      list the devices: memory, IPC, peer access, and the backend of devices=auto
"""

import argparse
import sys
from collections.abc import Sequence

from multigpu.device.report import report


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m multigpu", description="Commands about this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("devices", help="list the devices, and the backend of devices=auto")
    parser.parse_args(arguments)
    print(report())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

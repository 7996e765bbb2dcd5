"""Commands about this machine.

    python -m multigpu devices      list the devices: memory, IPC, peer access, and the backend of devices=auto
"""

import argparse
import sys

from multigpu.device.report import report


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m multigpu", description="About this machine's devices.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("devices", help="what there is to compute on, and which backend devices=auto would use")
    parser.parse_args(arguments)
    print(report())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

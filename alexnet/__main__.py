"""Command line for networks, trained weights and runs.

    python -m alexnet summary | plot | evaluate | predict | export     (each accepts --help)
"""

import argparse
import pkgutil
import sys

from alexnet.commands import COMMANDS


def main(arguments):
    """Run a command and return its exit status: 0, 1 (partial failure), 2 (invalid input) or 130 (Ctrl-C)."""
    listing = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    top = argparse.ArgumentParser(
        prog="python -m alexnet",
        description="About networks, trained weights and runs.",
        epilog=f"commands, each with --help:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    chosen = top.parse_args(arguments[:1]).command
    command = pkgutil.resolve_name(f"alexnet.commands.{chosen}")
    parser = argparse.ArgumentParser(
        prog=f"{top.prog} {chosen}", description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.configure(parser)
    try:
        return command.run(parser.parse_args(arguments[1:]))
    except (OSError, ValueError) as error:       # includes file, setting, weight and device errors
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Command line for networks, trained weights and runs: the console script `alexnet`, or python -m alexnet.

    alexnet train key=value ...                                        (train.py documents it)
    alexnet lr-find key=value ...                                      find a learning rate for these settings
    alexnet summary | plot | report | diagnose | evaluate | predict | export       (each accepts --help)
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet import commands
from alexnet.native import console
from alexnet.native.packages import begin, ended_by_ctrl_c
from alexnet.native.pytensor_flags import set_pytensor_flags

if TYPE_CHECKING:                                # the list of commands needs no packages
    from alexnet.config import Config

TRAIN = "train"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 (partial failure), 2 (invalid input) or 130 (Ctrl-C).

    Args:
        arguments: without the program's name; None for those of the process.
    """
    console.escape()
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if arguments[0] not in ("--help", "-h"):     # the list of commands needs no packages
        begin("alexnet", arguments)
    listed = {TRAIN: "Train a network.", **descriptions()}
    top = argparse.ArgumentParser(
        prog="alexnet",
        description="Networks, trained weights and runs.",
        epilog="commands, each with --help:\n" + "\n".join(f"  {name:<10} {text}" for name, text in listed.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("command", metavar="COMMAND", help="one of those below")
    top.add_argument("--version", "-v", action="store_true", help="print the versions and exit")
    name = top.parse_args(arguments[:1]).command
    if name not in listed:
        print(f"alexnet: {unknown(name, listed)}", file=sys.stderr)
        return 2
    set_pytensor_flags()
    if name == TRAIN:
        with ended_by_ctrl_c():
            from multigpu.train import main as train  # upwards: this module is an entry point, as train.py is

        return train(arguments[1:])
    return run(name, arguments[1:])


def unknown(name: str, known: Iterable[str]) -> str:
    """Return the message for a command that does not exist."""
    if "=" in name:
        return f"settings belong to the command train: alexnet train {name} ..."
    close = difflib.get_close_matches(name, known, n=1)
    return f"there is no command {name!r}; " + (
        f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    )


def descriptions() -> dict[str, str]:
    """Return name -> description of the commands. The modules are parsed, because importing matplotlib is slow."""
    names = (module.name for module in pkgutil.iter_modules(commands.__path__))
    files = [Path(commands.__path__[0], f"{name}.py") for name in names if not name.startswith("_")]
    return {
        file.stem.replace("_", "-"): (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]
        for file in files
    }


def run(name: str, arguments: Sequence[str]) -> int:
    """Run the command in a module of alexnet.commands and return its exit status."""
    module = name.replace("-", "_")
    with ended_by_ctrl_c():
        command = import_module(f"{commands.__name__}.{module}")     # only this one: matplotlib is slow to import
    parser = argparse.ArgumentParser(
        prog=f"alexnet {name}", description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(with_data=with_data)
    command.configure(parser)
    try:
        return command.run(parser.parse_intermixed_args(arguments))
    except BrokenPipeError:                      # the reader of the output has exited, for example head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as error:       # includes file, setting, weight and device errors
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130


def with_data(config: Config) -> Config:
    """Return the settings with the data set of a training; without data, the synthetic set is made if necessary."""
    from multigpu import train  # upwards, as in main()

    return train.with_data(config)


if __name__ == "__main__":
    raise SystemExit(main())

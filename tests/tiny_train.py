"""train.py for the tiny network of tests/tiny.py, which is imported only by the workers."""

import sys

from multigpu import train


def work(*arguments):
    """Run a worker; the import is here because neither the launcher nor a loader needs PyTensor."""
    from tests.tiny import tiny_work

    tiny_work(*arguments)


if __name__ == "__main__":
    sys.exit(train.main(sys.argv[1:], work))

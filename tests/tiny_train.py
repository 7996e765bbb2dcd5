"""train.py for the tiny network of tests/tiny.py, which is imported only by the workers."""

import os
import sys

from multigpu import train


def work(*arguments):
    """Run a worker; the import is here because neither the launcher nor a loader needs PyTensor."""
    from multigpu import loader
    from tests.tiny import tiny_work

    for name in ("STALLED", "PATIENCE"):         # seconds, for tests that do not wait as long as a user
        setattr(loader, name, float(os.environ.get(name, getattr(loader, name))))
    tiny_work(*arguments)


if __name__ == "__main__":
    sys.exit(train.main(sys.argv[1:], work))

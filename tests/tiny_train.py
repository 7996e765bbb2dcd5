"""train.py for the tiny network of tests/tiny.py, which is imported only by the workers."""

import os
import sys
import time

from multigpu import train


def work(*arguments):
    """Run a worker; the import is here because neither the launcher nor a loader needs PyTensor."""
    from alexnet.run import checkpoint
    from multigpu import loader
    from tests.tiny import tiny_work

    for name in ("STALLED", "PATIENCE"):         # seconds, for tests that do not wait as long as a user
        setattr(loader, name, float(os.environ.get(name, getattr(loader, name))))
    seconds = float(os.environ.get("SLOW_SAVE", 0))
    save = checkpoint.save

    def slow_save(*arguments):
        time.sleep(seconds)
        save(*arguments)

    checkpoint.save = slow_save
    tiny_work(*arguments)


if __name__ == "__main__":
    sys.exit(train.main(sys.argv[1:], work))

"""train.py for the tiny network of tests/tiny.py, which is imported only by the workers."""

import sys

from multigpu import train

if __name__ == "__main__":
    sys.exit(train.main(sys.argv[1:], "tests.tiny:tiny_work"))

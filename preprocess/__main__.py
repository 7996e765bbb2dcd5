"""python -m preprocess folders | synthetic | verify"""

import sys

if __name__ == "__main__":                       # worker processes import this file too, but do not need it
    from preprocess.command import main

    sys.exit(main())

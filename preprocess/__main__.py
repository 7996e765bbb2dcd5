"""python -m preprocess folders | synthetic | verify"""

import sys

from alexnet.native.packages import begin

if __name__ == "__main__":                       # worker processes import this file too, but do not need it
    begin("preprocess", sys.argv[1:])
    from preprocess.command import main  # imports packages that may be missing

    sys.exit(main(sys.argv[1:] or ["--help"]))

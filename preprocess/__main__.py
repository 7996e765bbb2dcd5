"""python -m preprocess folders | synthetic | verify"""

import sys

from alexnet.native.packages import begin, ended_by_ctrl_c

if __name__ == "__main__":                       # worker processes import this file too, but do not need it
    begin("preprocess", sys.argv[1:])
    with ended_by_ctrl_c():
        from preprocess.command import main  # imports packages that may be missing

    sys.exit(main(sys.argv[1:] or ["--help"]))

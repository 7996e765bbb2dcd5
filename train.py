"""Train a network.

    python train.py                                  # a first run: makes a small data set, trains, plots the curves
    python train.py data=/scratch/ilsvrc12           # on a folder made by `python -m preprocess`, or upstream's
    python train.py resume_train=latest              # continue the newest run
    python train.py data=flowers weights=caffenet.caffemodel model=caffenet learning_rate=0.001 layer_rates=fc8:10
                                                     # fine-tune trained weights on other classes
    python train.py devices=cuda0,cuda1              # a worker on each of two GPUs; devices=cpu,cpu needs none
    python train.py rank=0 size=2 device=cuda0       # the same by hand: this, and rank=1 size=2 device=cuda1, with the
                                                     # same other settings in another terminal
    mpiexec -n 4 python -m mpi4py train.py rule=bsp exchange=asa16                   # an MPI job: one rank per worker
    python train.py devices=cpu,cpu max_restarts=3   # restart after a killed process; over MPI: docs/environment.md
    python train.py --help                           # every setting, with its default, unit and source

The run's folder, runs/DATE_TIME, contains the settings, the log, one JSON line and one CSV line per record, curves and
filters as PNG, and checkpoints.  Exit status: 0 done, 2 invalid settings or files, 130 or 143 stopped and saved, 1 a
process died.
"""

import sys

from alexnet.native.packages import begin, ended_by_ctrl_c

if __name__ == "__main__":                       # worker processes import this file too, but do not need it
    begin("train.py", sys.argv[1:])
    with ended_by_ctrl_c():
        from multigpu.train import main  # imports packages that may be missing

    raise SystemExit(main(sys.argv[1:]))

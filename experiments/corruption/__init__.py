"""What a flipped bit does: one random bit at a random moment, and whether the program reports it.

    outcome     outcomes of a flip, and helpers that flip a bit
    replicas    workers of rule bsp as threads of this process, with a small network
    memory      flips in weights, velocities, gradients, exchange buffers and images during a training
    files       flips in checkpoints, data sets, compiled kernels, files of a run and exported weights
    messages    flips in arrays that the ranks of an MPI job exchange
    ranks       the ranks of that job

python -m experiments.corruption prints the table of docs/corruption.md.
"""

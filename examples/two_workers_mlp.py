"""Two workers train one network: the idea of Ding et al. 2014, section 2.2 and figure 2, on one page.

    python examples/two_workers_mlp.py [cpu,cpu | cuda0,cuda1 | cuda0,cuda0]

Both start with the same multilayer perceptron.  In each step each worker updates its replica on its batch, copies the
weights and momentum of the other replica from the other's memory, and continues from the average of the two.
"""

import sys
import zlib
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt

sys.path.insert(0, str(Path(__file__).parents[1]))               # location of multigpu, if it is not installed
from multigpu.communicator import BufferHandle, Closed, PeerDied, PipeCommunicator, Ready, Totals
from multigpu.device import DeviceError, open_device
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.exchange.peer import PairwiseAverage
from multigpu.launch.process import CONTEXT

STEPS, BATCH, RATE, MOMENTUM = 200, 64, np.float32(0.1), np.float32(0.9)


def make_mlp():
    """Return a step of a 2-32-1 perceptron, (points, labels of -1 and 1) -> cost, and its weights and momentum."""
    rng, points, labels = np.random.default_rng(0), pt.fmatrix("points"), pt.fvector("labels")
    values = [np.array(rng.normal(size=shape), "float32") for shape in ((2, 32), (32,), (32,), ())]
    W1, b1, W2, b2 = weights = [pytensor.shared(value) for value in values]
    momentum = [pytensor.shared(np.zeros_like(value)) for value in values]
    cost = pt.softplus(-labels * (pt.tanh(points @ W1 + b1) @ W2 + b2)).mean()
    moved = [MOMENTUM * v - RATE * g for v, g in zip(momentum, pytensor.grad(cost, weights), strict=True)]
    updates = [*zip(momentum, moved, strict=True), *((w, w + v) for w, v in zip(weights, moved, strict=True))]
    return pytensor.function([points, labels], cost, updates=updates, mode="FAST_COMPILE"), weights + momentum


def train(rank, device, comm):
    """Run one worker.  Copies are asynchronous, so the order is always: copy, synchronise, message."""
    (step, state), rng = make_mlp(), np.random.default_rng(rank + 1)
    flat = FlatBuffer(device, [variable.get_value().shape for variable in state])      # one buffer that
    handles = comm.allgather(BufferHandle(0, flat.buffer.handle))                       # the other opens
    theirs = device.open(handles[1 - rank].handle)
    exchange = PairwiseAverage(device, comm, flat.buffer, {1 - rank: theirs})
    for n in range(1, STEPS + 1):
        points = rng.normal(size=(BATCH, 2)).astype("float32")
        cost = step(points, np.sign(points.prod(axis=1)))                        # 1. update on this worker's batch
        flat.pack(state)
        device.synchronise()
        costs = [ready.cost for ready in comm.allgather(Ready(n, float(cost), 0.0, False))]
        exchange.average(n)                                                      # 2. exchange   3. average
        flat.unpack(state)
        if rank == 0 and n % 40 == 0:
            print(f"step {n}: cost {sum(costs) / 2:.4f}", flush=True)
    bits = zlib.crc32(b"".join(variable.get_value().tobytes() for variable in state))
    one, other = comm.allgather(Totals(n, (bits,), False))
    print(f"worker {rank}: weights and momentum are {'identical' if one == other else 'DIFFERENT'} in both\n", end="")
    theirs.close()                                                               # before the other frees it
    comm.allgather(Closed(n))


def work(rank, name, pipe):
    """Entry point of a worker's process, given the name of its device and a pipe to the other worker."""
    try:
        with open_device(name) as device:
            train(rank, device, PipeCommunicator(rank, {1 - rank: pipe}))
    except (DeviceError, PeerDied) as error:
        sys.exit(f"worker {rank}: {error}")


if __name__ == "__main__":
    devices = (sys.argv[1] if sys.argv[1:] else "cpu,cpu").split(",")
    if len(devices) != 2:
        sys.exit(f"two devices are needed, as in cpu,cpu or cuda0,cuda1, got {sys.argv[1]}")
    workers = [CONTEXT.Process(target=work, args=each) for each in zip((0, 1), devices, CONTEXT.Pipe(), strict=True)]
    for worker in workers:
        worker.start()                           # closes this end of the pipe: a death is then an EOF
    sys.exit(any(worker.join() or worker.exitcode for worker in workers))

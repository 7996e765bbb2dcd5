"""Rank functions of tests/multigpu/rules/test_easgd.py: rank 0 is the server, the others are clients."""

from functools import partial

import numpy as np

from alexnet.training.loop import Position
from alexnet.training.timing import Lap
from multigpu.device import open_device
from multigpu.mpi.channel import PIECE, Channel
from multigpu.rules import easgd
from multigpu.rules.parameter_server.protocol import Leave, Push, message_decoder
from tests.multigpu.rules import fakes
from tests.multigpu.rules.fakes import RATE, RecordingRecorder, ToyNetwork, toy_settings, training

LONG = 2 * PIECE + 77                            # floats: three pieces, the last one partial


joined = partial(fakes.joined, "easgd")


def serve(comm, network, recorder, config, exchange, stop_after=None, begin=Position()):
    """Run the server until the end; return (position, [(position, values) of each save])."""
    saved = []
    run = training(network, exchange, recorder, 0, comm.size - 1, config, saved, stop_after)
    return exchange.run(run, begin), saved


def exchange_in_order(comm, alpha, weights, order, on_host):
    """Let clients with these weights exchange in this order.

    Return the values of this rank after each of its exchanges; on rank 0, those of the center variable at the end.
    """
    network, recorder, found = ToyNetwork(LONG), RecordingRecorder(), []
    network.set(0, velocity=5)                   # as from a checkpoint of another rule
    with joined(comm, network, recorder, on_host, easgd_alpha=alpha, easgd_tau=1) as (config, exchange):
        if comm.rank == 0:
            return serve(comm, network, recorder, config, exchange)[1][-1][1]
        network.set(weights[comm.rank - 1], velocity=comm.rank)
        for turn, client in enumerate(order, 1):
            if client == comm.rank - 1:
                exchange.after_step(turn, 0.0, 0.0, RATE, False, False)
                found.append(network.values())
            comm.client_barrier()
        exchange.leave(len(order))
    return found


def exchange_in_turns(comm, *arguments):
    """Run exchange_in_order with a separate barrier for the clients."""
    clients = comm.mpi.Split(comm.rank > 0, comm.rank)
    comm.client_barrier = clients.Barrier
    try:
        return exchange_in_order(comm, *arguments)
    finally:
        clients.Free()


def random_walks(comm, exchanges):
    """Let clients perform random walks and exchange after each step.

    Return (sum of this rank's numbers, sum of what its own steps added); on the server, the sum of the center variable
    and 0.
    """
    network, recorder = ToyNetwork(11), RecordingRecorder()
    with joined(comm, network, recorder, easgd_alpha=0.3, easgd_tau=1) as (config, exchange):
        if comm.rank == 0:
            (*_, (_, values)) = serve(comm, network, recorder, config, exchange)[1]
            return float(values[0].sum(dtype=float)), 0.0
        rng, added = np.random.default_rng(comm.rank), 0.0
        weights = network.parameters_and_velocities[0].get_value(borrow=True)
        for step in range(1, exchanges + 1):
            before = weights.sum(dtype=float)
            weights += rng.normal(size=11).astype("float32")
            added += weights.sum(dtype=float) - before
            exchange.after_step(step, 0.0, 0.0, RATE, False, False)
        exchange.leave(exchanges)
        return float(weights.sum(dtype=float)), added


def train(comm, delays, changes, stops=None, begin=Position()):
    """Run a whole training; return a dict of what this rank observed.

    delays  {rank: seconds per step}      stops  {rank: number of the stop_requested() call that first returns True}
    """
    rank, stops = comm.rank, stops or {}
    recorder, network = RecordingRecorder(rank), ToyNetwork(delay=delays.get(rank, 0), pull=0.125)
    with joined(comm, network, recorder, **changes) as (config, exchange):
        if rank == 0:
            network.mark = lambda: len(recorder.trained)
            position, saved = serve(comm, network, recorder, config, exchange, stops.get(0), begin)
            return {
                "position": position, "saved": saved, "trained": recorder.trained, "validated": network.validated,
                "marks": network.marks, "validations": recorder.validations, "step": int(network.step.get_value()),
            }
        run = training(network, exchange, recorder, rank - 1, comm.size - 1, config, None, stops.get(rank))
        return {"position": exchange.run(run, begin), "steps": network.steps}


def resume(comm, update, step):
    """Connect after `step` steps and leave; return the server's warnings."""
    network, recorder = ToyNetwork(), RecordingRecorder()
    config = toy_settings(rule="easgd", update=update)
    rule = easgd.EasgdRule()
    with open_device("cpu") as device, rule.connect(config, network, device, comm, recorder, step) as exchange:
        if comm.rank:
            return exchange.leave(step)
        serve(comm, network, recorder, config, exchange)
    return recorder.warnings


def report_laps(comm):
    """Each client finishes two laps at different times; return the laps that the server recorded."""
    network, recorder = ToyNetwork(), RecordingRecorder()
    with joined(comm, network, recorder, easgd_tau=1) as (config, exchange):
        if comm.rank == 0:
            serve(comm, network, recorder, config, exchange)
            return recorder.recorded_laps
        for step in (comm.rank, 5 + comm.rank):
            exchange.gather(Lap(step // 5, 0.5, 5120, float(comm.rank), 0, 0, 0, 0))
            exchange.after_step(step, 0.0, 0.0, RATE, False, False)
        exchange.leave(10)


def violate_protocol(comm, case):
    """Client 1 sends an invalid message and client 2 leaves; the server detects the error."""
    network, recorder = ToyNetwork(), RecordingRecorder()
    with open_device("cpu") as device:
        config = toy_settings(rule="easgd", easgd_tau=1)
        exchange = easgd.EasgdRule().connect(config, network, device, comm, recorder)
        if comm.rank == 0:
            return serve(comm, network, recorder, config, exchange)
        if comm.rank == 2:
            return exchange.leave(1)
        exchange.after_step(3, 0.0, 0.0, RATE, False, False)
        wrong = {
            "the same step again": Push(3, 1, b"", []),
            "another's name": Leave(4, 2, b"", [], False),
        }[case]
        Channel(comm, message_decoder()).send(wrong, 0)

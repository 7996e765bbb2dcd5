"""Virtual time: a server and its clients, the code that runs over MPI, in one process and on a clock of given costs.

    Simulation   of rule asgd or easgd: who comes when, and what each has of the shared network     simulation.py
    Costs        seconds of a step, a copy, a transfer and an update of the centre                  post.py
    measured     the Costs of this machine                                                          measure.py

A client computes, comes to the server, waits until those who came before are served, and goes on:

    ended   = begun + steps x costs.step x its pace          arrived = ended + costs.copy
    turn    = max(arrived, when the server is free)          served  = turn + transfers + costs.apply
    begun   = served + costs.copy                            of its next stretch of steps

So its steps take costs.step + (copies, transfers, update and waiting) / n_sync each.  Nothing depends on the machine or
on chance that is not seeded: the same settings give the same bits.  One to thousands of clients share one compiled
network.

Source: Paine et al. 2013, sections 2.3 and 3.
"""

from multigpu.virtual.measure import measured
from multigpu.virtual.post import Costs
from multigpu.virtual.simulation import Simulation, Stretch, order_of

__all__ = ["Costs", "Simulation", "Stretch", "measured", "order_of"]

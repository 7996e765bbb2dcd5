"""Virtual time: simulates a server and its clients in one process, with the code that runs over MPI and given costs.

    Simulation   of rule asgd or easgd: order of the contacts, and each client's arrays       simulation.py
    Costs        seconds of a step, a copy, a transfer and an update of the center variable   channel.py
    measured     the Costs of this machine                                                    measure.py

A client computes, contacts the server, waits until earlier contacts have been served, and continues:

    ended   = begun + steps x costs.step x its pace          arrived = ended + costs.copy
    turn    = max(arrived, time at which the server is free) served  = turn + transfers + costs.apply
    begun   = served + costs.copy                            of its next interval of steps

One step therefore takes costs.step + (copies, transfers, update and waiting) / n_sync.  The result depends neither on
the machine nor on unseeded random numbers: the same settings give the same bits.  One to thousands of clients share
one compiled network.

Source: Paine et al. 2013, sections 2.3 and 3.
"""

from experiments.asgd.channel import Costs
from experiments.asgd.measure import measured
from experiments.asgd.simulation import Interval, Simulation, order_of

__all__ = ["Costs", "Simulation", "Interval", "measured", "order_of"]

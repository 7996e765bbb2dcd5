"""Exchange strategies: how the arrays of all workers are averaged.

When workers exchange, and with whom, is decided by the rule (multigpu.rules).

    peer             direct access to the memory of the other workers; one machine only       peer.py
    ar               MPI's Allreduce                                                          allreduce.py
    asa32, asa16     alltoall, local sum of one slice per rank, allgather                     asa.py
    copper, copper16 binary tree                                                              copper.py
    nccl32, nccl16   NCCL's allreduce on the GPUs                                             nccl.py

All strategies except peer move arrays between the ranks of an MPI job. Names that end in 16 transfer float16.
base.py states the interface Strategy. A strategy over MPI starts from mpi_strategy.py, which has an example. A class
outside this package is selected by its address: exchange=my_package.my_module:MyStrategy.
"""

from multigpu.exchange.base import (
    STRATEGIES,
    ExchangeContext,
    ExchangeSettings,
    Strategy,
    strategy_of,
    strategy_settings,
)

__all__ = ["STRATEGIES", "ExchangeContext", "ExchangeSettings", "Strategy", "strategy_of", "strategy_settings"]

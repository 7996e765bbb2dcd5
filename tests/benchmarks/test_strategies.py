"""The benchmark of the strategies: its hand-written exchange, which is the peer of all others, computes the mean."""

import numpy as np
import pytest

from benchmarks.mpi.strategies import by_hand
from tests.mpi import needs_mpi, results, team_of
from tests.multigpu.exchange import ranks

pytestmark = [pytest.mark.mpi, needs_mpi]
team = team_of(2)


def exchange_by_hand(comm, n):
    """Run by each rank: return the mean."""
    array = ranks.random_values("all", comm.rank, n)
    by_hand(comm.mpi, array, 1)
    return array


@pytest.mark.parametrize("n", [1, 257, 700_000])
def test_hand_written_exchange_computes_the_mean(team, n):
    expected = ranks.in_rank_order([ranks.random_values("all", rank, n) for rank in range(2)], 2)
    for found in results(team.run("tests.benchmarks.test_strategies:exchange_by_hand", n)):
        np.testing.assert_array_equal(found, expected)

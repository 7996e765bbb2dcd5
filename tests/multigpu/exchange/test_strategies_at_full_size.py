"""The strategies over MPI with as many floats as AlexNet has parameters, between two ranks."""

import pytest

from tests.mpi import needs_mpi, results, team_of

pytestmark = [pytest.mark.slow, pytest.mark.mpi, needs_mpi]
pair = team_of(2)                                # a separate team: no other ranks wait next to it


@pytest.mark.parametrize("name", ["ar", "asa32", "asa16", "copper", "copper16"])
def test_mean_of_alexnet_is_bit_exact(pair, name):
    found = pair.run("tests.multigpu.exchange.ranks:reduce_alexnet", name, 60_965_224, seconds=300)
    assert results(found) == [True, True]

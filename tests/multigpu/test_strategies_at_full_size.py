"""The strategies over MPI on as many floats as AlexNet has parameters, between two ranks."""

import pytest

from tests.mpi import MpiTeam, needs_mpi, results

pytestmark = [pytest.mark.mpi, needs_mpi]


@pytest.fixture(scope="module")
def pair():
    """Two ranks, and no others that wait beside them."""
    pair = MpiTeam(2)
    yield pair
    pair.close()


@pytest.mark.parametrize("name", ["ar", "asa32", "asa16", "copper", "copper16"])
def test_a_mean_of_all_of_alexnet_is_right_to_the_bit(pair, name):
    found = pair.run("tests.multigpu.strategy_tasks:reduce_alexnet", name, 60_965_224, seconds=300)
    assert results(found) == [True, True]

"""The benchmark of the parameter server: every update has a row, with and without MPI; the tests measure nothing."""

import pytest

from benchmarks.mpi import server
from tests.mpi import needs_mpi

pytestmark = pytest.mark.mpi


def test_every_update_is_compared_with_memcpy():
    memcpy, *updates = server.apply_rows(floats=1000, runs=2)
    assert memcpy["name"] == "apply, memcpy" and "ratio" not in memcpy
    assert [row["name"] for row in updates] == [f"apply, {name}" for name in server.KINDS if name != server.MPI_ONLY]
    for row in updates:
        assert (row["peer"], row["peer_is"], row["runs"]) == (memcpy["value"], "memcpy", 2)
        assert row["ratio"] == pytest.approx(row["value"] / memcpy["value"])


@pytest.mark.mpi
@needs_mpi
def test_server_reports_every_kind_of_push():
    rows = server.serve_rows(2, server.Plan(1000, 3, tuple(server.KINDS)))
    assert [row["name"] for row in rows] == [f"2 clients, 0.0 MB, {kind}" for kind in server.KINDS]
    assert all(row["value"] > 0 and 0 < row["busy"] <= 1 and row["bytes"] == 4000 for row in rows)

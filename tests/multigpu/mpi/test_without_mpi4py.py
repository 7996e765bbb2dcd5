"""mpiexec without mpi4py: rank 0 prints one sentence with the remedy, all ranks exit with status 2."""

import pytest

from multigpu import train


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
@pytest.mark.parametrize("variables", [("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")])
def test_missing_mpi4py_is_one_sentence_of_rank_0(variables, rank, lines, monkeypatch, capsys):
    for name, value in zip(variables, ("2", rank), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("multigpu.mpi.find_spec", lambda name: None)
    assert train.main(["data=nowhere"]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == lines
    assert all("needs mpi4py" in line and 'pip install -e ".[mpi]"' in line for line in printed)

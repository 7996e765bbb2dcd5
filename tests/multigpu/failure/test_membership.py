"""Rule asgd: clients join late, leave and die while others continue; a run resumes after its server has died."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from alexnet.run import checkpoint_format
from multigpu.launch.signals import stop_notice
from tests import tiny, tiny_train
from tests.mpi import Job, needs_mpi
from tests.multigpu.failure.messages import MESSAGES, NAME, TIMEOUT
from tests.multigpu.fakes import elastic_job
from tests.multigpu.fakes.several_workers import STEPS

pytestmark = [pytest.mark.mpi, needs_mpi]

SCRIPT, TINY = Path(elastic_job.__file__), Path(tiny_train.__file__)
EPOCHS = 4
GONE = 10                                        # seconds within which a job without its server must end
LEFT = {3: "1 client is left", 4: "2 clients are left"}          # by number of ranks, after one rank has died

# (how client 2 dies, where, at which visit of that point, number of ranks, expected MESSAGE); one exchange reaches
# "moving" four times
DEATHS = [
    ("killed", "joining", 1, 3, "died"),
    ("killed", "moving", 6, 4, "died"),
    ("left", "computing", 3, 3, "died"),
    ("killed", "loading", 3, 3, "lost its loader"),
    ("stopped", "moving", 6, 3, "silent"),
    ("hung", "loading", 3, 4, "stalled"),
]


def given(**settings):
    return [f"{key}={value}" for key, value in settings.items()]


def started(folder, fault=None, size=4, n_epochs=EPOCHS, **more):
    """Start a job of the fakes."""
    (folder / "runs" / "run").mkdir(parents=True)
    settings = {"output": folder / "runs", "run_name": "run", "n_epochs": n_epochs, "n_sync": 2}
    settings |= {"heartbeat_timeout": 60} | more
    variables = {"FAULT": fault, "WENT": str(folder / "went")} if fault else {}
    return Job(folder, size, SCRIPT, *given(**settings), **variables)


def told(folder, name):
    return json.loads((folder / "runs" / name).read_text())


def lines_of(folder):
    return (folder / "runs" / "run" / "log.txt").read_text().splitlines()


def trained_to_the_end(folder, clients, n_epochs=EPOCHS):
    """Assert that these clients did all their steps and that the last checkpoint counts all of them.

    Return (the steps recorded of each client, the sum of all pushes).
    """
    iteration, recorded, center = told(folder, "saved")
    assert iteration == n_epochs * STEPS
    for client in clients:
        assert told(folder, f"ended{client}") == [iteration, iteration, 0]
        assert recorded[str(client - 1)] == list(range(1, iteration + 1))
    return recorded, center


@pytest.mark.parametrize(("how", "where", "at", "size", "message"), DEATHS)
def test_dead_client_is_dropped_and_others_finish(tmp_path, how, where, at, size, message):
    job = started(tmp_path, f"{how},{where},2,{at}", size, heartbeat_timeout=TIMEOUT)
    status, output = job.finish()
    assert status == 0, output
    expected = MESSAGES[message].format(rank=2) + "; it is dropped, and " + LEFT[size]
    found = [line for line in output.splitlines() if line.startswith("rank ")]
    assert len(found) == 1 and re.fullmatch(expected, found[0]), output
    assert any(re.fullmatch(rf"\d+-\d+-\d+ \d+:\d+:\d+ {expected}", line) for line in lines_of(tmp_path))
    recorded, center = trained_to_the_end(tmp_path, {1, 3} & set(range(size)))
    rest, gone = (size - 2) * EPOCHS * STEPS, len(recorded.get("1", []))
    assert abs(center - rest - gone) <= 1        # its last push reports one step less, and may be incomplete
    assert not (tmp_path / "runs" / "ended2").exists()


def test_client_with_a_bug_ends_job(tmp_path):
    status, output = started(tmp_path, "bug,computing,2,3", 3).finish()
    assert status == 1
    assert re.search(f"^{MESSAGES['bug'].format(rank=2)}$", output, re.MULTILINE)


def test_death_of_last_client_saves_and_ends_job(tmp_path):
    job = started(tmp_path, "killed,computing,1,9", size=2, n_epochs=10**6)
    status, output = job.finish()
    assert status == 1
    expected = MESSAGES["died"].format(rank=1) + "; it is dropped, and no client is left"
    assert re.search(f"^{expected}$", output, re.MULTILINE), output
    iteration, recorded, center = told(tmp_path, "saved")
    assert re.search(f"^{NAME.format(rank=0)}: no client is left; all is saved after {iteration} iterations$", output,
                     re.MULTILINE), output
    assert (iteration, center) == (7, 8)         # a push reports the steps before it
    assert recorded["0"] == list(range(1, iteration + 1))


def test_late_client_starts_from_server_state(tmp_path):
    """Client 3 joins after another client's step 12 and ends with the others."""
    status, output = started(tmp_path, "late,joining,3,1").finish()
    assert (status, output) == (0, "")
    (joined,) = [line for line in lines_of(tmp_path) if "has joined" in line]
    at = int(re.fullmatch(r"rank 3 has joined at iteration (\d+)", joined)[1])
    assert elastic_job.LATER_STEPS // 2 - 2 <= at < EPOCHS * STEPS        # a mean: the other may be at 0
    iteration, steps, first = told(tmp_path, "ended3")
    assert (iteration, steps) == (EPOCHS * STEPS, EPOCHS * STEPS - at)
    assert first >= at                           # includes what the others had pushed
    recorded, center = trained_to_the_end(tmp_path, (1, 2))
    assert recorded["2"] == list(range(at + 1, iteration + 1)) and center == 2 * iteration + steps


def test_stopped_client_delivers_last_push_and_leaves(tmp_path):
    epochs = 40
    job = started(tmp_path, n_epochs=epochs, n_sync=7)
    job.wait_for((tmp_path / "runs" / "begun2").exists)
    os.kill(pid := told(tmp_path, "worker2"), signal.SIGTERM)
    job.wait_for(lambda: pid not in job.processes())         # immediately, while the others continue
    assert not (tmp_path / "runs" / "ended1").exists()
    assert job.finish() == (0, "")
    (line,) = [line for line in lines_of(tmp_path) if "was asked to stop" in line]
    at, steps, _ = told(tmp_path, "ended2")
    assert line == f"rank 2 was asked to stop, and has left after step {at}; 2 clients are left" and at == steps
    recorded, center = trained_to_the_end(tmp_path, (1, 3), epochs)
    assert recorded["1"] == list(range(1, at + 1)) and center == 2 * epochs * STEPS + at


def test_signal_to_mpiexec_stops_all_ranks(tmp_path):
    job = started(tmp_path, n_epochs=10**6)
    job.wait_for((tmp_path / "runs" / "begun2").exists)
    os.kill(job.process.pid, signal.SIGUSR1)
    assert job.finish() == (138, f"{stop_notice(signal.SIGUSR1)}\nstopped by SIGUSR1\n")
    recorded = told(tmp_path, "saved")[1]
    assert {client: told(tmp_path, f"ended{client}")[1] for client in (1, 2, 3)} == {
        int(worker) + 1: len(steps) for worker, steps in recorded.items()
    }


# ---- with a network and its checkpoints


def test_killed_server_ends_job_and_run_resumes(tmp_path):
    data = tiny.make_data(tmp_path / "set", train=24, validation=9)
    common = {"data": data, "output": tmp_path / "runs", "model": "tiny", "batch_size": 2, "print_freq": 1,
              "rule": "asgd", "n_sync": 2, "para_load": "false"}
    folder = tmp_path / "runs" / "run"
    job = Job(tmp_path, 3, TINY, *given(**common, run_name="run", n_epochs=10**6))
    job.wait_for(lambda: len(checkpoint_format.snapshots(folder)) > 1 if folder.exists() else False)
    (pid,) = [pid for pid in job.processes("tiny_train.py") if rank_of(pid) == 0]
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    status, output = job.finish(GONE)
    assert time.monotonic() - began < GONE and status not in (0, None)
    assert re.search(f"^{MESSAGES['died'].format(rank=0)}$", output, re.MULTILINE) and f"pid {pid}" in output
    assert re.search(MESSAGES["died"].format(rank=0) + r"\n\Z", (folder / "log.txt").read_text())

    _, _, metadata = checkpoint_format.load_latest(folder)
    epochs = metadata["position"]["epoch"] + 1
    job = Job(tmp_path, 3, TINY, *given(resume_train=folder, n_epochs=epochs))
    assert job.finish() == (0, "")
    assert checkpoint_format.load_latest(folder)[2]["position"]["iteration"] == 6 * epochs
    assert f"finished {epochs} epoch" in (folder / "log.txt").read_text()


def rank_of(pid):
    """Return the rank of a process that has a rank wrapper; None if it has none or is one."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = dict(each.split(b"=", 1) for each in variables if b"=" in each)
    return int(found[b"PMI_RANK"]) if b"RANK_WRAPPER_FD" in found else None


DYING = """
import os, signal, sys
from multigpu.mpi.rank_wrapper import wrap_rank
wrap_rank()
from multigpu.failure.heartbeat import HeartbeatClient
from multigpu.mpi import job
from multigpu.train import settings_of_run

class Client(HeartbeatClient):
    def finish(self, status):
        super().finish(status)
        if self._comm.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

job.HeartbeatClient = Client
sys.exit(job.run(lambda: settings_of_run(sys.argv[1:]), lambda config, device, link, comm: comm.detach()))
"""


def test_client_that_dies_after_the_end_does_not_keep_the_others(tmp_path):
    """They would wait for it in MPI_Finalize."""
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    began = time.monotonic()
    assert Job(tmp_path, 3, script, *given(rule="asgd", data="none", output=tmp_path)).finish() == (0, "")
    assert time.monotonic() - began < 60

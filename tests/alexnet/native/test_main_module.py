"""A program that starts processes from an unguarded or unreadable main module gets one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

pytestmark = pytest.mark.slow
TOP = Path(__file__).parents[3]
PROGRAM = """
import sys
from multigpu.train import main
sys.exit(main(['data={data}', 'batch_size=4', 'n_iterations=1']))
"""


def run(*command, cwd, **options):
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, **options
    )


def test_training_without_a_main_guard_names_the_cure(tmp_path):
    (tmp_path / "mine.py").write_text(PROGRAM.format(data=tiny.make_data(tmp_path / "data")))
    done = run("mine.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"{tmp_path / 'mine.py'} starts processes when it is imported, as each of them does: put its calls under "
        '`if __name__ == "__main__":`'
    ]
    assert not (tmp_path / "runs").exists()


def test_program_on_standard_input_cannot_start_processes(tmp_path):
    done = run("-", cwd=tmp_path, input=PROGRAM.format(data="nowhere"))
    assert (done.returncode, done.stderr) == (
        2, "train.py: a program read from <stdin> cannot start processes, which would import it: save it in a file\n",
    )


def test_synthetic_data_without_a_main_guard_names_the_cure(tmp_path):
    program = "from preprocess.synthetic import make_synthetic\nmake_synthetic('out', 20, 10)\n"
    (tmp_path / "mine.py").write_text(program)
    done = run("mine.py", cwd=tmp_path)
    assert done.stderr.count("Traceback") == 1           # of this library call; the processes print nothing
    assert "put its calls under `if __name__" in done.stderr.splitlines()[-1]

"""Standard output and error that cannot end a program, whatever happens to the pipe, the terminal or the encoding."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from alexnet.native import console
console.protect()
for _ in range(3):
    print("rate fc8 10" + chr(215), flush=True)
console.say("the end")
open(sys.argv[1], "w", encoding="utf-8").write("survived")
"""


def run(tmp_path, redirection, **environment):
    """Run PROGRAM with redirected output; return its exit status, what it printed, and whether it survived."""
    command = f"{sys.executable} -c '{PROGRAM}' {tmp_path / 'mark'} {redirection}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, encoding="utf-8", env=environment
    )
    return done.returncode, done.stdout + done.stderr, (tmp_path / "mark").exists()


@pytest.mark.parametrize("redirection, shown", [
    ("2>&1 | true", ""), (">&- 2>&-", ""), (">/dev/full 2>/dev/full", ""), ("2>/dev/null", "rate fc8 10\u00d7\n" * 3),
])
def test_lost_output_does_not_end_a_program(tmp_path, redirection, shown):
    assert run(tmp_path, redirection, PYTHONIOENCODING="utf-8") == (0, shown, True)


@pytest.mark.parametrize("environment", [
    {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
])
def test_letter_outside_the_encoding_is_escaped(tmp_path, environment):
    status, shown, survived = run(tmp_path, "2>/dev/null", **environment)
    assert (status, shown, survived) == (0, "rate fc8 10\\xd7\n" * 3, True)

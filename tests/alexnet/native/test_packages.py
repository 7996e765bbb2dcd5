"""The first sentence of each program: its version, missing packages, and how to install them."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from alexnet import __version__
from alexnet.native import packages

TOP = Path(__file__).parents[3]
PROGRAMS = (
    ["-m", "alexnet", "summary"], ["-m", "alexnet", "train"], ["-m", "multigpu", "devices"],
    ["-m", "preprocess", "verify", "x"], [str(TOP / "train.py")],
)


def run(*command, **options):
    """Run Python without the packages of this environment: -S leaves out site-packages."""
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: " ".join(program[-2:]).replace(str(TOP), "."))
def test_missing_packages_are_one_sentence_with_the_remedy(program, tmp_path):
    done = run("-S", *program, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "PyTensor and 8 other packages are not installed" in line and "pip install -e ." in line


def test_commands_are_listed_without_any_package(tmp_path):
    done = run("-S", "-m", "alexnet", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  predict    Print the most" in done.stdout


def test_version_names_project_pytensor_and_python(capsys):
    with pytest.raises(SystemExit, match="0"):
        packages.begin("alexnet", ["--version"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"alexnet-pytensor {__version__}, PyTensor ")
    assert printed.endswith(f", Python {sys.version.split()[0]}\n")


def test_virtual_environment_of_the_checkout_is_named(monkeypatch, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    monkeypatch.setattr(packages, "TOP", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert packages.remedy() == "run `. .venv/bin/activate` first, or `pip install -e .`"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert packages.remedy() == "pip install -e ."


def test_old_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert packages.problem_of_python().startswith("Python 3.11 or newer is needed, got 3.9.2 (")


def test_hints_fit_a_checkout_and_an_installed_wheel(monkeypatch):
    assert packages.install("onnx") == 'pip install -e ".[onnx]"'
    monkeypatch.setattr(packages, "IN_CHECKOUT", False)
    assert packages.install("onnx") == 'pip install "alexnet-pytensor[onnx]"'
    assert packages.install() == "pip install alexnet-pytensor"


def test_names_agree_with_pyproject():
    project = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == packages.PROJECT
    assert project["requires-python"] == f">={packages.OLDEST_PYTHON[0]}.{packages.OLDEST_PYTHON[1]}"
    required = {requirement.split(">")[0].lower() for requirement in project["dependencies"]}
    assert {name.lower() for name in packages.PACKAGES.values()} <= required


SIGNAL_IN_CALLBACK = """
import importlib.abc, os, signal, sys, weakref

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            signalled = type("", (), {{}})()
            reference = weakref.ref(signalled, lambda _: os.kill(os.getpid(), signal.SIGINT))
            del signalled

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: " ".join(program[-2:]).replace(str(TOP), "."))
@pytest.mark.parametrize("module", ["pydantic", "numpy.random"])
def test_ctrl_c_ends_a_program_that_imports_packages(program, module, tmp_path):
    # An exception in a callback of a weak reference, such as importlib has, is only printed.
    (tmp_path / "sitecustomize.py").write_text(SIGNAL_IN_CALLBACK.format(module=module))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{TOP}"}
    done = subprocess.run([sys.executable, *program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")

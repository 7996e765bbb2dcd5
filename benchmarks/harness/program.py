"""Programs that are measured in turn: each is a separate process that runs one step on request.

All programs run under the same machine conditions, startup time is not measured, and peak memory is per program.
"""

import contextlib
import os
import pathlib
import resource
import subprocess
import sys
import time

from alexnet.native.cores import cores
from alexnet.native.pytensor_flags import NAME, pytensor_flags

CORES = cores()
TOP = pathlib.Path(__file__).parents[2]          # the checkout


def environment():
    """Return this process's environment with the flags of PyTensor.

    It lacks the variables that select OpenBLAS kernels of another processor.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    return kept | {NAME: pytensor_flags()}


def last_line(text):
    """Return the last line that is not blank; in a traceback, this is the error message."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


class Program:
    """A process that runs `python -m module arguments`, whose main function ends in serve().

    Args:
        module: name of the module.
        arguments: command line arguments.
        threads: value of OMP_NUM_THREADS.
        variables: environment variables to add.
        python: path of the interpreter.
        folder: working directory of the process.
    """

    def __init__(self, module, *arguments, threads=CORES, variables=None, python=sys.executable, folder=None):
        variables = {"OMP_NUM_THREADS": str(threads), **(variables or {})}
        command = [python, "-m", module, *map(str, arguments)]
        self.errors = os.memfd_create("errors")          # an anonymous file, freed when this process exits
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, env=environment() | variables, cwd=folder, text=True, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.close()

    def step(self, kind):
        """Run one step and return (seconds, peak memory so far in MiB).

        Raises:
            RuntimeError: the program has failed.
        """
        self.begin(kind)
        return self.end()

    def begin(self, kind):
        """Start a step without waiting for it."""
        with contextlib.suppress(BrokenPipeError):       # end() reports the reason
            self.process.stdin.write(kind + "\n")
            self.process.stdin.flush()

    def end(self):
        """Wait for the end of the step; return and raise as step() does."""
        answer = self.process.stdout.readline()
        if not answer:
            status = self.process.wait()
            message = last_line(os.pread(self.errors, 1 << 20, 0).decode(errors="replace"))
            raise RuntimeError(f"{' '.join(self.process.args[1:])} exited with status {status}: {message}")
        return tuple(map(float, answer.split()))

    def close(self):
        if not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            os.close(self.errors)


def serve(steps):
    """Run the step named by each line of standard input; print its seconds and the peak memory in MiB."""
    for line in sys.stdin:
        began = time.perf_counter()
        steps[line.strip()]()
        print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


def warm_up(programs, kind):
    """Run one step of each program concurrently. The times are not used."""
    for program in programs:
        program.begin(kind)
    for program in programs:
        program.end()


def take_turns(programs, kind, runs):
    """Run one step of each program per round; return {name: `runs` times in seconds} and {name: peak memory in MiB}."""
    seconds, memory = {name: [] for name in programs}, {}
    for _ in range(runs):
        for name, program in programs.items():
            taken, memory[name] = program.step(kind)
            seconds[name].append(taken)
    return seconds, memory


def run(command, **more):
    """Run a command in the measured environment; return its standard output.

    Raises:
        RuntimeError: the command has failed; contains the last line of its standard error.
    """
    command = list(map(str, command))
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, **more)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with status {done.returncode}: {last_line(done.stderr)}")
    return done.stdout

"""Programs that take turns: each a process of its own that makes a step when told to.

So all of them see the same machine, one pays for no other's start, and each one's peak memory is its own.
"""

import contextlib
import os
import resource
import subprocess
import sys
import time

from alexnet.cores import cores

CORES = cores()


def environment():
    """This process's, without the variables by which OpenBLAS would be given another processor's kernels."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}


def last_line(text):
    """The last line with something in it: of an error, what was wrong."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


class Program:
    """A process that runs `python -m module arguments`, whose main ends in serve().

    variables join its environment; python is its interpreter, folder where it is started.
    """

    def __init__(self, module, *arguments, threads=CORES, variables=None, python=sys.executable, folder=None):
        variables = {"OMP_NUM_THREADS": str(threads), **(variables or {})}
        command = [python, "-m", module, *map(str, arguments)]
        self.errors = os.memfd_create("errors")          # a file that ends with this process
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, env=environment() | variables, cwd=folder, text=True, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.close()

    def step(self, kind):
        """(seconds, peak memory so far in MiB) of one step; raises RuntimeError when the program has failed."""
        self.begin(kind)
        return self.end()

    def begin(self, kind):
        """Let the step begin."""
        with contextlib.suppress(BrokenPipeError):       # end() says why
            self.process.stdin.write(kind + "\n")
            self.process.stdin.flush()

    def end(self):
        """Wait for the step to end, and answer as step() does."""
        answer = self.process.stdout.readline()
        if not answer:
            status = self.process.wait()
            said = last_line(os.pread(self.errors, 1 << 20, 0).decode(errors="replace"))
            raise RuntimeError(f"{' '.join(self.process.args[1:])} ended with status {status}: {said}")
        return tuple(map(float, answer.split()))

    def close(self):
        if not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            os.close(self.errors)


def serve(steps):
    """Make the step that each line of standard input names; answer with its seconds and the peak memory in MiB."""
    for line in sys.stdin:
        began = time.perf_counter()
        steps[line.strip()]()
        print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


def warm_up(programs, kind):
    """One step of each program, side by side, because it does not count."""
    for program in programs:
        program.begin(kind)
    for program in programs:
        program.end()


def take_turns(programs, kind, runs):
    """name -> list of `runs` times in seconds, and name -> peak MiB: each program makes a step, then the next round."""
    seconds, memory = {name: [] for name in programs}, {}
    for _ in range(runs):
        for name, program in programs.items():
            taken, memory[name] = program.step(kind)
            seconds[name].append(taken)
    return seconds, memory

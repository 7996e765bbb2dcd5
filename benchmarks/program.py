"""Programs that take turns: each a process of its own that makes a step when told to.

So all of them see the same machine, one pays for no other's start, and each one's peak memory is its own.
"""

import os
import resource
import subprocess
import sys
import time

CORES = len(os.sched_getaffinity(0))


class Program:
    """A process that runs `python -m module arguments`, whose main ends in serve()."""

    def __init__(self, module, *arguments, threads=CORES):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
        environment |= {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", module, *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def step(self, kind):
        """(seconds, peak memory so far in MiB) of one step; raises RuntimeError when the program has failed."""
        self.process.stdin.write(kind + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if not answer:
            raise RuntimeError(f"{' '.join(self.process.args)} ended with status {self.process.wait()}")
        return tuple(map(float, answer))

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve(steps):
    """Make the step that each line of standard input names; answer with its seconds and the peak memory in MiB."""
    for line in sys.stdin:
        began = time.perf_counter()
        steps[line.strip()]()
        print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


def take_turns(programs, kind, runs, warm_up):
    """name -> list of `runs` times in seconds, and name -> peak MiB: each program makes a step, then the next round."""
    seconds, memory = {name: [] for name in programs}, {}
    for run in range(warm_up + runs):
        for name, program in programs.items():
            taken, memory[name] = program.step(kind)
            if run >= warm_up:
                seconds[name].append(taken)
    return seconds, memory

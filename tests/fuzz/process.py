"""A process that fuzzes one target with atheris: python -m tests.fuzz.process TARGET FINDINGS FLAG ... CORPUS ...

The flags and folders are those of libFuzzer. An input that breaks a rule is stored as NAME, with NAME.txt, in the
folder FINDINGS: the shortest for each place in the program. The fuzzing continues. A hang, or a crash of a library
written in C, ends the process, and libFuzzer stores the input. Every second FINDINGS/status.json is written.
"""

import hashlib
import json
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random

import atheris

# not yaml, for its speed
INSTRUMENTED = ["alexnet", "multigpu.messages", "preprocess", "pickletools", "tarfile", "zipfile"]
with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.fuzz.target import HOLE, Runner, Target, Violation
    from tests.fuzz.targets import TARGETS, prepared

ROOT = Path(__file__).resolve().parents[2]
ADDRESS_SPACE = 4 << 30                          # bytes beside those after the imports; more fails with MemoryError
LEAKED = 700                                     # MiB beside those after the imports; more starts a new process
AGAIN = 3                                        # exit status that asks for it


def place_of(violation: Violation) -> str:
    """Return what identifies a violation: its type, and where in this repository it occurs."""
    error = violation.__cause__ or violation
    frames = traceback.extract_tb(error.__traceback__)
    packages = tuple(str(ROOT / name) for name in ("alexnet", "multigpu", "preprocess"))
    inside = [frame for frame in frames if frame.filename.startswith(packages)]
    frame = (inside or frames)[-1]
    text = f"{type(error).__name__} {Path(frame.filename).name}:{frame.lineno}"
    what = "" if violation.__cause__ else str(violation).partition(":")[0][:60]
    return " ".join(filter(None, (text, what.translate(str.maketrans("", "", "0123456789,")))))


class Findings:
    """The violations that a process has found, and how much it has done."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lengths: dict[str, int] = {}        # place -> length of the shortest input
        for report in folder.glob("*.txt"):
            place = report.read_text(encoding="utf-8").partition("\n")[0]
            self.lengths[place] = report.with_suffix("").stat().st_size
        self.begin = self.written = time.monotonic()

    def add(self, data: bytes, violation: Violation) -> None:
        """Store a violation, if it is new or its input is shorter."""
        place = place_of(violation)
        if len(data) >= self.lengths.get(place, sys.maxsize):
            return
        self.lengths[place] = len(data)
        path = self.folder / hashlib.sha256(place.encode()).hexdigest()[:12]
        path.write_bytes(data)
        text = "".join(traceback.format_exception(violation))
        path.with_suffix(".txt").write_text(f"{place}\n\n{text}", encoding="utf-8", errors="backslashreplace")

    def write_status(self, runner: Runner) -> bool:
        """Write the number of executions and the peak of the memory, once in a second. Return whether it was time."""
        now = time.monotonic()
        if now - self.written < 1 and runner.executions > 1:
            return False
        self.written = now
        status = {"executions": runner.executions, "seconds": now - self.begin, "peak": runner.peak}
        (self.folder / "status.json").write_text(json.dumps(status), encoding="ascii")
        return True


def memory_in_use() -> int:
    """Return the memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() >> 20


def mutator(target: Target):
    """Return the mutator of libFuzzer for a target."""

    def mutated(data: bytes, largest: int, seed: int) -> bytes:
        random = Random(seed)
        hole = bool(target.hole) and data.endswith(HOLE) and random.random() < 0.9
        data = data.removesuffix(HOLE) if hole else data
        if target.structure and random.random() < 0.5:
            data = target.structure(bytes(data), random)
        else:
            data = atheris.Mutate(data, largest)
        if random.random() < 0.9:
            data = target.repair(bytes(data))
        return (data[: largest - len(HOLE)] + HOLE if hole else data)[:largest]

    return mutated


def main() -> None:
    name, findings_folder, *flags = sys.argv[1:]
    target = TARGETS[name]
    warnings.simplefilter("ignore")
    with prepared(), tempfile.TemporaryDirectory() as folder:
        runner = Runner(target, Path(folder))
        runner.warm_up()
        findings = Findings(Path(findings_folder))
        used = memory_in_use()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        def read(data: bytes) -> None:
            try:
                runner.run(data)
            except Violation as violation:
                findings.add(data, violation)
            if findings.write_status(runner) and memory_in_use() > used + LEAKED:
                os._exit(AGAIN)                  # atheris leaks the results of comparisons of arrays

        arguments = [sys.argv[0], *flags, f"-rss_limit_mb={used + 2 * LEAKED}"]
        atheris.Setup(arguments, read, custom_mutator=mutator(target))
        atheris.Fuzz()


if __name__ == "__main__":
    main()

"""Fuzz the readers of foreign files, with coverage of the code as the guide: make fuzz.

    python -m tests.fuzz                                         every target for 15 seconds, about 10 minutes in all
    python -m tests.fuzz pth image --seconds 120                 two targets for two minutes each
    python -m tests.fuzz --runs 500000 --corpus FOLDER --jobs 2  continue with the inputs of an earlier campaign

For each target: executions, executions per second, crashes (inputs that break a rule of tests/fuzz/target.py), hangs
(10 seconds), the largest memory that an input took, and the lines of its reader that the inputs reach. The inputs of
findings are in build/fuzz/TARGET; store a fixed one in tests/fuzz/corpus/TARGET, which make test reads. The exit status
is 1 if there are findings.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.targets import TARGETS

HERE = Path(__file__).parent
TIMEOUT = 10                                     # seconds for one input
MOST_RESTARTS = 200                              # after hangs and crashes of libraries
SECONDS = 15.0
OF_LIBFUZZER = ("crash-", "timeout-", "oom-", "leak-")


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all; {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, help=f"for each target (default: {SECONDS:g})")
    parser.add_argument("--runs", type=int, help="executions of each target; with --seconds, the first limit counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument("--corpus", type=Path, metavar="FOLDER", help="read and extend the inputs in FOLDER/TARGET")
    parser.add_argument("--findings", type=Path, metavar="FOLDER", default=Path("build/fuzz"))
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time (default: 1)")
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - TARGETS.keys():
        parser.error(f"there is no target {min(unknown)}; there are {', '.join(TARGETS)}")
    return options


def fuzzed(name: str, options: argparse.Namespace) -> dict:
    """Fuzz a target and return its results."""
    findings = options.findings / name
    shutil.rmtree(findings, ignore_errors=True)
    findings.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus / name if options.corpus else Path(folder, "corpus")
        seeds = Path(folder, "seeds")
        for place in (corpus, seeds):
            place.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(TARGETS[name].seeds()):
            (seeds / f"{number:03d}").write_bytes(seed)
        given = [str(corpus), str(seeds), *map(str, HERE.glob(f"corpus/{name}"))]
        result = campaign(name, options, findings, given)
        result["coverage"] = replayed(name, given)
        result["inputs"] = len(list(corpus.iterdir()))
    reports = [report.read_text(encoding="utf-8").partition("\n")[0] for report in sorted(findings.glob("*.txt"))]
    hard = sorted(path.name for path in findings.iterdir() if path.name.startswith(OF_LIBFUZZER))
    result["crashes"] = reports + [name for name in hard if not name.startswith("timeout-")]
    result["hangs"] = [name for name in hard if name.startswith("timeout-")]
    if not result["crashes"] + result["hangs"]:
        shutil.rmtree(findings)
    return result


def campaign(name: str, options: argparse.Namespace, findings: Path, given: list[str]) -> dict:
    """Run processes of libFuzzer until the time or the number of executions is reached; return what they did."""
    total = {"executions": 0, "seconds": 0.0, "peak": 0}
    seconds = options.seconds if options.seconds or options.runs else SECONDS
    begin = time.monotonic()
    for _ in range(MOST_RESTARTS):
        left = None if seconds is None else seconds - (time.monotonic() - begin)
        runs = None if options.runs is None else options.runs - total["executions"]
        if (left is not None and left < 1) or (runs is not None and runs < 1):
            break
        flags = [f"-timeout={TIMEOUT}", f"-max_len={TARGETS[name].longest}", f"-artifact_prefix={findings}/"]
        flags += [f"-max_total_time={int(left)}"] if left is not None else []
        flags += [f"-runs={runs}"] if runs is not None else []
        (findings / "status.json").unlink(missing_ok=True)
        with (findings / "log").open("ab") as log:
            command = [sys.executable, "-m", "tests.fuzz.process", name, str(findings), *flags, *given]
            status = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        if not (findings / "status.json").exists():
            raise RuntimeError(f"{name}: the process has failed, see {findings / 'log'}")
        done = json.loads((findings / "status.json").read_text(encoding="ascii"))
        counted = re.findall(rb"^Done (\d+) runs", (findings / "log").read_bytes()[-1000:], re.MULTILINE)
        total["executions"] += int(counted[-1]) if counted and status == 0 else done["executions"]
        total["seconds"] += done["seconds"]
        total["peak"] = max(total["peak"], done["peak"])
        if status == 0:
            break
    (findings / "status.json").unlink(missing_ok=True)
    return total


def replayed(name: str, given: list[str]) -> dict:
    """Return module -> its lines that read, and those of them that no input reaches."""
    command = [sys.executable, "-m", "tests.fuzz.replay", name, *given]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def line_of(name: str, result: dict) -> str:
    """Return the results of a target as a line."""
    lines = sum(len(each["lines"]) for each in result["coverage"].values())
    missing = sum(len(each["missing"]) for each in result["coverage"].values())
    rate = result["executions"] / max(result["seconds"], 1e-9)
    return (
        f"{name:15} {result['executions']:11,} {rate:8,.0f} {len(result['crashes']):8} {len(result['hangs']):6} "
        f"{result['peak'] / 2**20:9.1f} {100 * (1 - missing / max(lines, 1)):8.1f} {result['inputs']:7,}"
    )


def modules_of(results: dict[str, dict]) -> dict[str, tuple[int, int]]:
    """Return module -> number of its lines that read and that any target reaches, and of all its lines that read."""
    wanted: dict[str, set[int]] = {}
    missing: dict[str, set[int]] = {}
    for result in results.values():
        for module, each in result["coverage"].items():
            wanted[module] = set(each["lines"])
            missing[module] = missing.get(module, wanted[module]) & set(each["missing"])
    return {module: (len(lines) - len(missing[module]), len(lines)) for module, lines in wanted.items()}


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    names = options.targets or list(TARGETS)
    results = {}
    print(f"{'target':15} {'executions':>11} {'per s':>8} {'crashes':>8} {'hangs':>6} {'peak MiB':>9} {'lines %':>8} "
          f"{'inputs':>7}", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for name, result in zip(names, pool.map(lambda name: fuzzed(name, options), names), strict=True):
            results[name] = result
            print(line_of(name, result), flush=True)
            for finding in result["crashes"] + result["hangs"]:
                print(f"    {finding}  ({options.findings / name})", flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"\n{'module':45} lines %   (of the functions that read, by the inputs of all these targets)")
    for module, (covered, lines) in sorted(modules_of(results).items()):
        print(f"{module.partition(':')[0]:45} {100 * covered / max(lines, 1):7.1f}")
    return int(any(result["crashes"] or result["hangs"] for result in results.values()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

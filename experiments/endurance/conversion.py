"""Kills of `python -m preprocess` at random moments: a second run continues, to the same bytes."""

import hashlib
import os
import random
import shutil
import signal
import sys
import time

from experiments.endurance.inputs import make_images
from experiments.endurance.journal import NO_PROCESS
from experiments.endurance.processes import Program

SERIES, COUNT = ("",), 200
TRAIN, VALIDATION, BATCH = 120, 24, 8            # images; images in a batch file
LIMIT = 60.0                                     # seconds


def command(images, out):
    words = "preprocess", "folders", images / "train", images / "val", out, "--batch-size", BATCH, "--workers", 1
    return [sys.executable, "-m", *words]


def prepare(series, folder):
    """Return (the images, the sums of an undisturbed run, its seconds, the folder of the trials)."""
    images = make_images(folder / "images", TRAIN, VALIDATION)
    out = folder / "undisturbed" / "out"
    with Program(command(images, out), folder / "undisturbed") as program:
        status = program.end(LIMIT)
        if status != 0:
            raise RuntimeError(f"preprocess ended with status {status}: {program.said()}")
        return images, sums(out), time.monotonic() - program.began, folder


def sums(folder):
    """Return {path within a folder: SHA-256} of all its files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }


def trial(shared, number):
    """Kill the program or its worker, run it again, and compare the files."""
    images, expected, duration, folder = shared
    draw = random.Random(f"preprocess {number}")
    victim, moment = draw.choice(("launcher", "worker")), draw.uniform(0, duration)
    place = folder / f"trial{number}"
    out = place / "out"
    began = time.perf_counter()
    with Program(command(images, out), place / "first") as program:
        time.sleep(moment)
        killed = [each for each in program.find(victim) if program.process.poll() is None]
        for process in killed:
            os.kill(process.pid, signal.SIGKILL)
        status = program.end(LIMIT)
        wrong = program.left()
        # a child whose parent is killed while it starts ends with a traceback of multiprocessing
        if status is None or (victim == "worker" and "Traceback" in program.said()):
            wrong.append(f"after the kill status {status}: {program.said()}")
    finished = len(list(out.glob("*_hkl*/*.hkl")))
    with Program(command(images, out), place / "second") as program:
        if (second := program.end(LIMIT)) != 0:
            wrong.append(f"the second run ended with status {second}: {program.said()}")
        wrong += program.left()
    found = sums(out) if out.exists() else {}
    differing = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    wrong += [f"{name} differs from that of an undisturbed run" for name in sorted(differing)]
    if not wrong:
        shutil.rmtree(place)
    return {"kind": victim if killed else NO_PROCESS, "outcome": "killed" if killed else "none was running",
            "moment": round(moment, 3), "status": status, "finished": finished,
            "seconds": time.perf_counter() - began, "wrong": wrong}

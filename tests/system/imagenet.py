"""Preprocessing of a synthetic ImageNet at full size: memory, time, restart after ten kills, and verification.

python -m tests.system.imagenet [--quick] [--json FILE] [--images N] [--kills 10] [--workers N] [--folder DIR]

The input is 1,281,167 + 50,000 images under ImageNet's names (synthetic_imagenet.py). `python -m preprocess imagenet`
runs on them twice: once without interruption, and once killed with SIGKILL and restarted --kills times. The kills hit
the command, one of its workers, or all processes, at random times during the listing, during the last files, and in
between. Both results must be identical, byte for byte, and every image must be stored under its label. `verify` must
report a flipped bit, a missing file and reordered labels, and nothing else.

The real set has 262 GB. The files written here consist almost entirely of zeros, which are deallocated as soon as a
file is finished (`fallocate --dig-holes` of util-linux). Sizes and checksums are unchanged, and 2 GB of disk are used.
preprocess therefore runs with --ignore-space. DIR must be on a file system with sparse files (ext4, XFS, btrfs, tmpfs);
it is not deleted.

Memory is the sum of the peaks of all processes (VmHWM), which counts shared memory more than once.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

from alexnet.data import batch_file
from alexnet.data.image_listing import find_images
from alexnet.native.cores import cores
from preprocess.batches import IMAGE_BYTES
from preprocess.journal import JOURNAL
from tests.system.synthetic_imagenet import (
    CMYK_VALIDATION,
    INSIDE,
    TRAIN,
    VALIDATION,
    label_of,
    make_tree,
    special_images,
    wnids,
)

DIGGER = ("fallocate", "--dig-holes")                        # of util-linux
ROOT = pathlib.Path(__file__).parents[2]
LISTING, MEMORY = 60, 1536                                   # limits: seconds, MiB
FAR = 128                                                    # row and column of a pixel outside the coloured square
AFTER = 0.5                                                  # maximum seconds between the chosen file and the kill
PAUSE = 0.2                                                  # seconds between polls; less for small sets


class Options(NamedTuple):
    """Options shared by all runs."""

    folder: pathlib.Path
    images: int
    validation: int
    batch_size: int
    workers: int
    kills: int
    seed: int
    dig: bool                                                # the file system supports sparse files

    @property
    def files(self):
        """Number of batch files of the whole set."""
        return sum(-(-images // self.batch_size) for images in (self.images, self.validation))


class Run:
    """A process `python -m preprocess imagenet TREE OUT` with all its workers, in a separate session.

    peaks:  {process id: (whether it is the command, peak MiB)}, updated by look()
    dug:    files whose zeros are deallocated, including those of earlier runs
    """

    def __init__(self, tree, out, options, dug=()):
        self.out, self.dig, self.peaks, self.dug = out, options.dig, {}, set(dug)
        self.pause = min(PAUSE, options.files / 2000)
        command = [sys.executable, "-m", "preprocess", "imagenet", tree.train, tree.validation, os.fspath(out),
                   "--batch-size", str(options.batch_size), "--workers", str(options.workers), "--ignore-space"]
        with open(options.folder / "log.txt", "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.kill(self.session())

    def look(self):
        """Record the memory of all processes and deallocate the zeros of new files."""
        for process in self.session():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for line in pathlib.Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
                    if line.startswith("VmHWM"):
                        self.peaks[process] = process == self.process.pid, int(line.split()[1]) / 1024
        for folder in self.out.glob("*_hkl*") if self.dig else ():
            found = {os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".hkl")}
            for file in found - self.dug:
                subprocess.run([*DIGGER, file], check=True)
            self.dug |= found

    def session(self):
        """Return the ids of the live processes: the command and its workers."""
        alive = []
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    alive.append(int(stat.parent.name))
        return alive

    def finished(self):
        """Return the number of batch files in the journal, or 0 before it exists."""
        journal = self.out / JOURNAL
        return max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else 0

    def wait(self, until=lambda: False):
        """Poll until the command ends or until() is true. Return whether the command is still running."""
        while self.process.poll() is None:
            if until():
                return True
            self.look()
            time.sleep(self.pause)
        self.look()
        return False

    def victims(self, kind, draw):
        """Return the ids of the processes to kill.

        Args:
            kind: "command"; "worker", a random worker, or the command if there is none; or "all".
            draw: random.Random that selects the worker.
        """
        workers = [process for process in self.session() if is_worker(process)]
        if kind == "worker" and workers:
            return [draw.choice(workers)]
        return self.session() if kind == "all" else [self.process.pid]

    def kill(self, processes):
        """Send SIGKILL to some processes of the session and wait until all have ended; the others must exit too."""
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()
        while self.session():
            time.sleep(0.01)


def is_worker(process):
    """Return whether a process is a worker of the command, not multiprocessing's resource tracker."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return b"spawn_main" in pathlib.Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def unbroken(tree, out, options):
    """Preprocess without interruption and yield the rows."""
    began = time.perf_counter()
    with Run(tree, out, options) as run:
        run.wait()
    seconds = time.perf_counter() - began
    expect(run.process.returncode == 0, f"preprocess ended with status {run.process.returncode}: see log.txt")
    images = options.images + options.validation
    command = max(peak for itself, peak in run.peaks.values() if itself)
    others = [peak for itself, peak in run.peaks.values() if not itself]
    files = [file.stat() for file in out.rglob("*") if file.is_file()]
    yield fact("preprocess, start to end", seconds, "s")
    yield fact(f"preprocess, {options.workers} processes", images / seconds, "images/s")
    yield fact("peak memory of the command", command, "MiB")
    yield fact("peak memory of its largest worker", max(others), "MiB")
    yield fact("peak memory of all together", command + sum(others), "MiB", peer=MEMORY)
    yield fact("size of the set", sum(file.st_size for file in files) / 1e9, "GB")
    yield fact("of it on disk", sum(file.st_blocks for file in files) * 512 / 1e9, "GB")


def killed(tree, out, options):
    """Preprocess with kills and restarts and yield the rows."""
    draw = random.Random(options.seed)
    between = sorted(draw.randint(1, options.files - 1) for _ in range(options.kills - 2))
    began, kills, dug = time.perf_counter(), 0, ()
    for number, place in enumerate([0, *between, options.files]):
        kind = ("command", "worker", "all")[number % 3]
        with Run(tree, out, options, dug) as run:
            if run.wait(lambda run=run, place=place: run.finished() >= place):
                time.sleep(draw.uniform(0, min(AFTER, options.files / 2000)))
            if run.process.poll() is None:
                print(f"    kill {kind} with {run.finished():,} of {options.files:,} files finished", flush=True)
                run.kill(run.victims(kind, draw))
                kills += 1
        dug = run.dug
    with Run(tree, out, options, dug) as run:
        run.wait()
    expect(run.process.returncode == 0, f"the last run ended with status {run.process.returncode}: see log.txt")
    yield fact("kills", kills, "times", peer=options.kills)
    yield fact("killed and started again, start to end", time.perf_counter() - began, "s")


def identical_files(one, other):
    """Return the row with the number of identical files in two folders.

    Batch files are compared by the checksums in the manifests, which verify compares with the files. All other files
    are compared byte for byte.

    Raises:
        RuntimeError: the folders differ.
    """
    names = [sorted(os.fspath(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
             for folder in (one, other)]
    expect(names[0] == names[1], f"files in only one set: {sorted(set(names[0]) ^ set(names[1]))[:5]}")
    small = [name for name in names[0] if not name.endswith(".hkl")]
    different = [name for name in small if (one / name).read_bytes() != (other / name).read_bytes()]
    expect(not different, f"files that differ: {different}")
    return fact("identical files, uninterrupted and killed", len(names[0]), "files", peer=len(names[1]))


def verify(out, options):
    """Run python -m preprocess verify. Return its seconds, exit status and lines of stderr."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "preprocess", "verify", os.fspath(out), "--workers", str(options.workers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return time.perf_counter() - began, done.returncode, done.stderr.splitlines()


def whole(out, options):
    """Return the row of verify on an undamaged set."""
    seconds, status, sentences = verify(out, options)
    expect(status == 0 and not sentences, f"verify ended with status {status}: {sentences[:3]}")
    return fact("verify", seconds, "s")


def damaged(out, options):
    """Return the row of verify on a set with a flipped bit, a missing file and reordered labels; undo the damage."""
    draw = random.Random(options.seed)
    flipped, missing = draw.sample(sorted(out.glob("train_hkl*/*.hkl")), 2)
    labels = out / "labels" / "val_labels.npy"
    before = labels.read_bytes()
    place, bit = draw.randrange(flipped.stat().st_size), 1 << draw.randrange(8)
    flip(flipped, place, bit)
    missing.rename(missing.with_suffix(".away"))
    np.save(labels, np.roll(np.load(labels), 1))
    _, status, sentences = verify(out, options)
    flip(flipped, place, bit)
    missing.with_suffix(".away").rename(missing)
    labels.write_bytes(before)
    found = [file for file in (flipped, missing, labels) if any(os.fspath(file) in each for each in sentences)]
    expect(status == 1 and len(found) == len(sentences) == 3, f"verify ended with status {status}: {sentences[:5]}")
    return fact("found of a flipped bit, a missing file, other labels", len(found), "of 3", peer=3)


def flip(file, place, bit):
    with open(file, "r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([byte ^ bit]))


def right(tree, out):
    """Yield the rows with the number of images that have the correct label and the correct colours."""
    names = [name.decode() for name in np.load(out / "misc" / "shuffled_train_filenames.npy").tolist()]
    label = {wnid: number for number, wnid in enumerate(wnids())}
    truths = {"train": np.array([label[name.split("/")[0]] for name in names]), "val": tree.validation_labels}
    labels = {}
    for half, truth in truths.items():
        squares, far = corners(sorted(out.glob(f"{half}_hkl*/*.hkl")))
        labels[half] = label_of(squares)
        good = (labels[half] == truth) | (labels[half] == -1)            # a grey image encodes no label
        stored = np.load(out / "labels" / f"{half}_labels.npy")
        expect(good.all() and not far.any() and (stored == truth).all(), f"{half}: {(~good).sum()} images are wrong")
        yield fact(f"{half}: images under their label", int(good.sum()), "images", peer=len(truth))
    places = {name.split("/")[1].removesuffix(".JPEG"): place for place, name in enumerate(names)}
    shown = [name for name in special_images() if labels["train"][places[name]] == truths["train"][places[name]]]
    wrong = sorted(special_images().keys() - set(shown))
    expect(not wrong, f"special images in wrong colours: {wrong}")
    expect(len(labels["val"]) < CMYK_VALIDATION or labels["val"][CMYK_VALIDATION - 1] >= 0, "validation's CMYK image")
    yield fact("CMYK images and the PNG in their colours", len(shown), "images", peer=len(special_images()))


def corners(files):
    """Return the colours of all images inside the square and outside it, each uint8 (3, images)."""
    inside, far = [], []
    for file in files:
        with batch_file.opened(file, 256) as opened:
            inside.append(opened.dataset[:, INSIDE, INSIDE])
            far.append(opened.dataset[:, FAR, FAR])
    return np.concatenate(inside, axis=1), np.concatenate(far, axis=1)


def expect(holds, sentence):
    """Raise RuntimeError if a condition does not hold."""
    if not holds:
        raise RuntimeError(sentence)


def fact(name, value, unit, peer=None):
    """Return the row of a single measurement, with the expected value as peer if there is one."""
    return {"name": name, "value": value, "unit": unit} | ({} if peer is None else {"peer": peer})


def listing(tree, options):
    """Return the row of listing and shuffling all names."""
    began = time.perf_counter()
    sources = find_images(tree.train, tree.validation)
    seconds = time.perf_counter() - began
    counts = len(sources.train.names), len(sources.validation.names)
    expect(counts == (options.images, options.validation), f"{counts} images were listed")
    expect((np.bincount(sources.train.labels) == tree.counts).all(), "the classes do not have the expected sizes")
    return fact("listing and shuffling", seconds, "s", peer=LISTING)


def supports_sparse_files(folder):
    """Return whether the file system of a folder can deallocate zeros."""
    if shutil.which(DIGGER[0]) is None:
        return False
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(bytes(8192))
        file.flush()
        return subprocess.run([*DIGGER, file.name], capture_output=True).returncode == 0


def rows(options):
    """Yield all rows as they are measured.

    Raises:
        RuntimeError: a check failed.
    """
    need = 2 * (options.images + options.validation) * IMAGE_BYTES
    free = shutil.disk_usage(options.folder).free
    reason = f"{options.folder} supports no sparse files and has less than {need / 1e9:.1f} GB free"
    expect(options.dig or need < free, reason)
    began = time.perf_counter()
    tree = make_tree(os.fspath(options.folder / "tree"), options.images, options.validation)
    yield fact("making the tree", time.perf_counter() - began, "s")
    yield listing(tree, options)
    one, other = options.folder / "unbroken", options.folder / "killed"
    yield from unbroken(tree, one, options)
    yield from right(tree, one)
    yield from killed(tree, other, options)
    yield identical_files(one, other)
    yield whole(other, options)
    yield damaged(one, options)


def options_of(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.system.imagenet", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute: 2,000 images, 4 kills")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write one JSON object per row")
    parser.add_argument("--images", type=int, default=TRAIN, help="of training; validation has its share (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=cores(), help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="at least 2 (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills (%(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, metavar="DIR", help="a new folder, to keep (a temporary one)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.batch_size, options.kills = 2000, 64, 4
    if options.kills < 2 or options.images < 1000:
        parser.error(f"needs at least 2 kills and 1000 images, got {options.kills} and {options.images}")
    return options


def main(arguments=None):
    options = options_of(arguments)
    with tempfile.TemporaryDirectory() if options.folder is None else new_folder(options.folder) as folder:
        validation = max(options.images * VALIDATION // TRAIN, 1)
        found, failure = [], None
        settings = Options(pathlib.Path(folder), options.images, validation, options.batch_size, options.workers,
                       options.kills, options.seed, supports_sparse_files(folder))
        try:
            for row in rows(settings):
                found.append(row)
                against = f"of {row['peer']:,}" if "peer" in row else ""
                print(f"{row['name']:54} {row['value']:12,.1f} {row['unit']:8} {against}", flush=True)
        except RuntimeError as error:
            failure = error
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    if failure:
        print(failure, file=sys.stderr)
    return int(failure is not None)


@contextlib.contextmanager
def new_folder(folder):
    """Create a folder that must not exist yet; it is not deleted."""
    folder.mkdir(parents=True)
    yield folder


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))          # so that its child processes are ended too
    raise SystemExit(main())

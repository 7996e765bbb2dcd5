"""Images -> batch files, labels, mean image and manifest: parallel, resumable, reproducible to the byte.

A job is one batch file.  Its bytes depend only on its images.  The result is therefore independent of the number of
processes and of interruptions.  Files that an earlier run has finished are verified by their checksum, and kept.
"""

import contextlib
import io
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.data import batch_file
from alexnet.data.augment import IMAGE_SIZE
from alexnet.data.batch_file import DataError, file_sha256, name_of, sums_crc32
from alexnet.data.image_listing import Sources
from alexnet.data.images import BadImage, read_image, read_member, transpose_into
from alexnet.data.layout import Manifest, read_manifest
from alexnet.data.progress import Progress, duration, quantity
from alexnet.native.atomic import remove_partial
from alexnet.native.console import note
from preprocess.journal import JOURNAL, Journal, Record, opened_journal, refuse_difference
from preprocess.manifest import HALVES, counted, folder_name, write_manifest
from preprocess.remarks import remarks_on, remarks_on_skipped
from preprocess.workers import results

IMAGE_BYTES = 3 * IMAGE_SIZE * IMAGE_SIZE
PIECE = 64                                       # images transposed at a time: a cache line of the batch file
HEADER_BYTES = 16 * 1024                         # of a batch file, at most
SAMPLE = 32                                      # images read for the estimate
WRITING = 1e-3                                   # core seconds to transpose, write and sum an image
REREADING = 4e-4                                 # core seconds to verify an image of an earlier run


class Settings(NamedTuple):
    """The settings that determine the bytes of a data set, besides its images."""

    batch_size: int = 256                        # images in a batch file
    resize: str = "squash"                       # or "crop"
    seed: int = 1                                # of the shuffle; upstream: 1
    limit: int | None = None                     # images of each half, for a trial
    on_bad_image: str = "fail"                   # or "skip"
    decode: str = "exact"                        # or "fast": see alexnet.data.images.DECODE


class Job(NamedTuple):
    """One batch file to make."""

    half: str                                    # "train" or "validation"
    number: int
    path: Path
    root: str
    names: tuple[str, ...]
    extents: np.ndarray | None                   # of a tar file: offset and size of each image
    resize: str
    on_bad_image: str
    decode: str
    record: Record | None                        # record of an earlier run, if it finished this file


def make_batch(job: Job) -> tuple[Record, np.ndarray | None]:
    """Make one batch file, or verify a finished one; return its record and the sum of its training images, uint32.

    Raises DataError for bad images if on_bad_image is "fail".
    """
    record = job.record
    images = None
    if record is None or not still_there(job.path, record):
        record, images = written(job)
    elif record["images"]:
        images = np.empty((3, IMAGE_SIZE, IMAGE_SIZE, record["images"]), np.uint8)
        batch_file.read_into(job.path, images)
    if job.half != "train" or not record["images"] or images is None:
        return record, None
    return record, images.sum(axis=3, dtype=np.uint32)


def still_there(path: Path, record: Record) -> bool:
    """Return whether the file of an earlier run is unchanged."""
    if not {"images", "bytes", "sha256", "bad"} <= record.keys():
        return False
    if record["images"] == 0:
        return True
    if not path.is_file() or (path.stat().st_size, file_sha256(path)) != (record["bytes"], record["sha256"]):
        return False
    return batch_file.check(path)[3] == record["images"]


def written(job: Job) -> tuple[Record, np.ndarray]:
    """Read, resize and write the images of a job; return its record and the images."""
    images = np.empty((3, IMAGE_SIZE, IMAGE_SIZE, len(job.names)), np.uint8)
    good = 0
    bad: list[tuple[str, str]] = []
    for first in range(0, len(job.names), PIECE):
        piece, faults = read_piece(job, range(first, min(first + PIECE, len(job.names))))
        transpose_into(piece, images[..., good:good + len(piece)])
        good += len(piece)
        bad += faults
    if bad and job.on_bad_image == "fail":
        listed = "; ".join(f"{name_of(name)} {reason}" for name, reason in bad)
        raise DataError(f"{listed}; --on-bad-image skip leaves such images out")
    images = np.ascontiguousarray(images[..., :good])
    record: Record = {"half": job.half, "number": job.number, "images": good, "bytes": 0, "sha256": "", "bad": bad}
    if good:
        batch_file.write(job.path, images)
        record |= {
            "bytes": job.path.stat().st_size, "sha256": file_sha256(job.path), "sums_crc32": sums_crc32(images),
        }
    return record, images


def read_piece(job: Job, indices: Sequence[int]) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Return the readable images, uint8 (image, row, column, channel), and (name, reason) of the bad ones."""
    images = np.empty((len(indices), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    good = 0
    bad = []
    for index in indices:
        try:
            images[good] = read_image(source_of(job, index), job.resize, job.decode)
            good += 1
        except BadImage as error:
            bad.append((job.names[index], str(error)))
    return images[:good], bad


def source_of(job: Job, index: int) -> str | io.BytesIO:
    """Return the path of an image, or its bytes if it is in a tar file. Raises BadImage."""
    if job.extents is None:
        return os.path.join(job.root, job.names[index])
    with open(job.root, "rb", buffering=0) as file:
        return read_member(file, *map(int, job.extents[index]))


def make_batches(
    sources: Sources, out: str | Path, settings: Settings, workers: int, ignore_space: bool = False
) -> Manifest:
    """Preprocess Sources into a data set in folder out, and return its manifest.

    An interrupted run is continued; if the set is already complete, nothing is done.  Raises DataError, for example
    if the set does not fit on the disk, before anything is written and unless ignore_space is given.
    """
    out = Path(out)
    signature = settings._asdict() | {"sources": sources.digest()}
    manifest = read_manifest(out)
    if manifest is not None:
        refuse_difference(out, manifest.get("settings", {}), signature)
        (out / JOURNAL).unlink(missing_ok=True)              # left over by a run that was killed at its end
        print(f"{name_of(out)} is complete: {counted(manifest)}; nothing to do")
        return manifest
    if not (out / JOURNAL).exists() and any(out.glob("*_hkl*/*.hkl")):
        raise DataError(f"{name_of(out)} holds batch files of unknown origin; choose another folder")
    signature["versions"] = versions()                       # versions do not matter for a complete set
    for remark in remarks_on(sources):
        note(remark)
    with opened_journal(out / JOURNAL, signature) as journal:
        jobs = list_jobs(sources, out, settings, journal.finished)
        estimate(sources, out, jobs, workers, ignore_space)
        records, mean = run(jobs, journal, workers)
        manifest = write_manifest(sources, out, records, mean, signature)
        journal.remove()
    for remark in remarks_on_skipped(manifest):
        note(remark)
    print(f"{name_of(out)}: {counted(manifest)}")
    return manifest


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect the bytes. simplejpeg's pixels are those of Pillow."""
    return {name: version(name) for name in ("pillow", "hickle", "h5py", "numpy")}


def list_jobs(
    sources: Sources, out: Path, settings: Settings, finished: Mapping[tuple[str, int], Record]
) -> list[Job]:
    """Return the jobs of both halves, in order; create their folders."""
    jobs = []
    for half, images in (("train", sources.train), ("validation", sources.validation)):
        folder = out / folder_name(half, settings.batch_size)
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        for number, start in enumerate(range(0, len(images.names), settings.batch_size)):
            names = images.names[start:start + settings.batch_size]
            extents = None if images.extents is None else images.extents[start:start + settings.batch_size]
            jobs.append(Job(
                half, number, folder / f"{number:04d}.hkl", images.root, names, extents,
                settings.resize, settings.on_bad_image, settings.decode, finished.get((half, number)),
            ))
    return jobs


def estimate(sources: Sources, out: Path, jobs: Sequence[Job], workers: int, ignore_space: bool) -> None:
    """Print size and time of the work to be done; raise DataError if it does not fit on the disk."""
    waiting = [job for job in jobs if job.record is None]
    images = sum(len(job.names) for job in waiting)
    kept = sum(len(job.names) for job in jobs) - images
    need = images * IMAGE_BYTES + len(waiting) * HEADER_BYTES
    free = shutil.disk_usage(out).free
    seconds = (images * (reading_time(waiting) + WRITING) + kept * REREADING) / workers
    complete = f"; {quantity(len(jobs) - len(waiting), 'file')} already complete" if len(waiting) < len(jobs) else ""
    print(
        f"{len(sources.train.names):,} training and {len(sources.validation.names):,} validation images of "
        f"{len(sources.class_names)} classes -> {name_of(out)}: writing {quantity(len(waiting), 'batch file')} "
        f"({need / 1e9:.2f} GB; {free / 1e9:.1f} GB free), about {duration(seconds)} with "
        f"{workers} process{'es' if workers > 1 else ''}{complete}",
        flush=True,
    )
    if need > free and not ignore_space:
        raise DataError(
            f"{name_of(out)} has {free / 1e9:.1f} GB free, but {need / 1e9:.2f} GB are to be written; "
            "--ignore-space writes them anyway, for file systems that compress"
        )


def reading_time(jobs: Sequence[Job]) -> float:
    """Measure the seconds to read and resize one image of these jobs, as the mean over a sample."""
    sample = jobs[::len(jobs) // SAMPLE + 1]
    began = time.perf_counter()
    for job in sample:
        with contextlib.suppress(BadImage):                  # reported when its batch is made
            read_image(source_of(job, 0), job.resize, job.decode)
    return (time.perf_counter() - began) / max(len(sample), 1)


def run(
    jobs: Sequence[Job], journal: Journal, workers: int
) -> tuple[dict[tuple[str, int], Record], np.ndarray]:
    """Run all jobs; return {(half, number): record} and the exact mean training image, float64."""
    records = {}
    total = np.zeros((3, IMAGE_SIZE, IMAGE_SIZE), np.int64)
    progress = Progress("preprocess", sum(len(job.names) for job in jobs))
    with progress:
        for job, (record, part) in results(make_batch, jobs, workers):
            key = job.half, job.number
            if record != job.record:
                journal.append(record)
            records[key] = record
            if part is not None:
                total += part
            progress.add(len(job.names))
    images = {half: sum(r["images"] for (h, _), r in records.items() if h == half) for half in HALVES}
    for half, number in images.items():
        if number == 0:
            raise DataError(f"no usable {half} images")
    return records, total / images["train"]

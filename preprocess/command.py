"""Preprocess images into a data set, make a synthetic one, or verify one."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from alexnet.data.augment import RESIZES
from alexnet.data.batch_file import DataError, name_of
from alexnet.data.dataset import open_dataset
from alexnet.data.image_listing import find_images
from alexnet.data.images import DECODE
from alexnet.data.progress import Progress
from alexnet.data.tar_listing import is_tar
from alexnet.native.console import protect
from alexnet.native.cores import cores
from preprocess.batches import Settings, make_batches
from preprocess.synthetic import BATCH, TRAIN, VALIDATION, make_synthetic
from preprocess.verify import Check, Finding, checks, examine, faults
from preprocess.workers import results


def folders(arguments: argparse.Namespace) -> int:
    """Preprocess class folders of images, or ILSVRC's tars, into a data set in OUT. The name imagenet is equivalent."""
    a = arguments
    for folder in (a.train_dir, a.val_dir):
        if not (Path(folder).is_dir() or is_tar(folder)):
            raise DataError(f"{name_of(folder)} is neither a folder of images nor a tar file")
    sources = find_images(a.train_dir, a.val_dir, a.seed, a.limit, a.ground_truth, a.synsets)
    settings = Settings(a.batch_size, a.resize, a.seed, a.limit, a.on_bad_image, a.decode)
    make_batches(sources, a.out, settings, a.workers, a.ignore_space)
    return 0


def synthetic(arguments: argparse.Namespace) -> int:
    """Make a synthetic data set of ten classes and preprocess it into OUT."""
    a = arguments
    make_synthetic(a.out, a.train, a.validation, a.seed, a.batch_size, a.workers)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Compare every file of OUT with its manifest; exit status 1 if any differs."""
    out = arguments.out
    listed = checks(out)
    progress = Progress("verify", sum(check.images for check in listed))
    findings: dict[Check, Finding] = {}
    with progress:
        for check, finding in results(examine, listed, arguments.workers):
            progress.add(check.images)
            findings[check] = finding
    if messages := faults(out, findings):
        print("\n".join(messages), file=sys.stderr)
        return 1
    open_dataset(out)
    print(f"{name_of(out)}: all {len(listed)} files match the manifest")
    return 0


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def seed(text: str) -> int:
    """Parse a seed for NumPy."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"must be in 0 to 2**32 - 1, got {number}")
    return number


def parser() -> argparse.ArgumentParser:
    """Return the parser of the commands and their options."""
    top = argparse.ArgumentParser(prog="python -m preprocess", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="folders | synthetic | verify")

    def command(run: Callable[[argparse.Namespace], int], *aliases: str) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__, aliases=aliases, help=run.__doc__, description=run.__doc__)
        added.set_defaults(run=run)
        added.add_argument("--workers", type=positive, default=cores(), help="processes (%(default)s)")
        return added

    made = command(folders, "imagenet")
    made.add_argument("train_dir", metavar="TRAIN_DIR", help="a folder for each class, or ILSVRC2012_img_train.tar")
    made.add_argument("val_dir", metavar="VAL_DIR", help="likewise, or ILSVRC's flat folder or ILSVRC2012_img_val.tar")
    made.add_argument("out", metavar="OUT")
    made.add_argument("--resize", choices=RESIZES, default="squash",
                      help="squash to 256 x 256 as upstream, or crop the central square (%(default)s)")
    made.add_argument("--decode", choices=tuple(DECODE), default="exact",
                      help="fast decodes large JPEGs at a half to an eighth of their size; its pixels differ by 0.1 "
                      "grey levels in the mean (%(default)s)")
    made.add_argument("--limit", type=positive, metavar="N", help="only N images of each half, for a trial")
    made.add_argument("--on-bad-image", choices=("fail", "skip"), default="fail", help="(%(default)s)")
    made.add_argument("--ground-truth", metavar="FILE", help="of a flat VAL_DIR: ILSVRC's ground truth, Caffe's "
                      "val.txt, Kaggle's LOC_val_solution.csv, or a wnid per line")
    made.add_argument("--synsets", metavar="FILE", help="the devkit's meta.mat, or lines of id, wnid and words")
    made.add_argument("--ignore-space", action="store_true",
                      help="write even if the disk seems too small, for example because it compresses (ZFS, btrfs)")
    drawn = command(synthetic)
    drawn.add_argument("out", metavar="OUT")
    drawn.add_argument("--train", type=positive, default=TRAIN, metavar="N", help="training images (%(default)s)")
    drawn.add_argument("--validation", type=positive, default=VALIDATION, metavar="N", help="(%(default)s)")
    for added, size in ((made, Settings().batch_size), (drawn, BATCH)):
        added.add_argument("--batch-size", type=positive, default=size, metavar="N",
                           help="images in a batch file (%(default)s)")
        added.add_argument("--seed", type=seed, default=1, help="of the shuffle, and of synthetic images (%(default)s)")
    command(verify).add_argument("out", metavar="OUT")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, 1 (verify found damage), 2 (refused) or 130 (Ctrl-C).

    Args:
        arguments: without the program's name; None for those of the process.
    """
    protect()
    parsed = parser().parse_args(arguments)
    try:
        return parsed.run(parsed)
    except (DataError, OSError, RuntimeError) as error:
        print(f"preprocess: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("preprocess: interrupted; the same command resumes where this stopped", file=sys.stderr)
        return 130

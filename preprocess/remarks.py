"""Remarks on the images of a data set that is made: what is left out, and what its user may not have meant."""

import os
from collections.abc import Iterator

from alexnet.data.batch_file import DataError, name_of
from alexnet.data.image_listing import Sources
from alexnet.data.layout import Manifest
from alexnet.data.omissions import sentence
from alexnet.data.plausibility import remark_on_validation, remarks_on_labels
from alexnet.data.progress import quantity

SHOWN = 10                                       # bad images shown; the manifest lists all


def remarks_on(sources: Sources) -> Iterator[str]:
    """Yield remarks on the images before they are read. Raises DataError if there is a single class."""
    train, validation = sources.train, sources.validation
    if len(sources.class_names) < 2:
        raise DataError(
            f"{name_of(train.root)} holds the single class {sources.class_names[0]}; a classifier needs at least two"
        )
    for half in (train, validation):
        if remark := sentence(half.root, half.omitted):
            yield remark
    if os.path.samefile(train.root, validation.root):
        yield f"the validation images are the training images of {name_of(train.root)}; the error will be too low"
    labels = train.labels, validation.labels, len(sources.class_names), sources.class_names
    yield from remarks_on_labels(*labels)
    if remark := remark_on_validation(*labels):
        yield remark


def remarks_on_skipped(manifest: Manifest) -> Iterator[str]:
    """Yield a remark that names the bad images of each half that were skipped."""
    for half in ("train", "validation"):
        if skipped := manifest[half]["skipped"]:
            shown = "; ".join(f"{name_of(name)} {reason}" for name, reason in skipped[:SHOWN])
            more = f"; and {len(skipped) - SHOWN:,} more, see the manifest" if len(skipped) > SHOWN else ""
            yield f"skipped {quantity(len(skipped), 'bad image')} of {half}: {shown}{more}"

"""Labels of a flat folder of images, from a file: ILSVRC's ground truth with the devkit's table, and other lists.

A line of the file is one of:

    490                                          ILSVRC's class id, which the devkit's table maps to a wnid
    n03995372                                    wnid, or name of a class folder; line n belongs to image n
    ILSVRC2012_val_00000001.JPEG 65              image and label, which counts from 0: Caffe's val.txt
    ILSVRC2012_val_00048981,n03995372 85 1 499   image and wnid: Kaggle's LOC_val_solution.csv, val_annotations.txt
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet.data.batch_file import DataError, name_of, one_line
from alexnet.data.omissions import Omissions, nfc

GROUND_TRUTHS = ("ILSVRC2012_validation_ground_truth.txt", "ILSVRC2014_clsloc_validation_ground_truth.txt",
                 "LOC_val_solution.csv", "val_annotations.txt")
TABLES = ("meta.mat", "meta_clsloc.mat", "synsets.txt", "map_clsloc.txt")
PLACES = (".", "..", "data", "../data", "devkit/data", "../devkit/data",
          "ILSVRC2012_devkit_t12/data", "../ILSVRC2012_devkit_t12/data")
ENDING = re.compile(r"\.[A-Za-z]{3,4}$")
NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})\.")
WNID = re.compile(r"(n[0-9]{8})\b *(.*)", re.DOTALL)        # a synset's WordNet number and words
UTF16 = (b"\xff\xfe", b"\xfe\xff")                          # byte order marks

Synsets = Mapping[int, tuple[str, str]]                     # ILSVRC id -> (wnid, words)


class Line(NamedTuple):
    """A line of a ground-truth file."""

    number: int                                  # from 1
    image: str | None                            # file name, perhaps without its ending; None: the n-th image
    value: str                                   # class id, label, wnid or name of a class folder


class Classes(NamedTuple):
    """The classes that labels refer to."""

    label_of: Mapping[str, int]                  # by name of the class folder, or wnid
    known: str                                   # what they are, for error messages: "the training folder"
    synset_of: Synsets


def labels_from(
    file: Path, root: str | Path, names: Sequence[str], classes: Classes, omissions: Omissions
) -> list[int]:
    """Return the label of each image of a flat folder.

    Args:
        names: the images of folder root, sorted.
        omissions: receives the lines that have no image.

    Raises:
        DataError: the file is no such list, or does not fit the images or the classes.
    """
    lines = read_lines(file, classes)
    if lines[0].image is None:
        lines = in_order(file, root, names, lines)
    else:
        lines = by_name(file, root, names, lines, omissions)
    if lines[0].image is not None and all(is_number(line.value) for line in lines) \
            and lines[0].value not in classes.label_of:
        return counted_labels(file, lines, classes)
    return [label_of(file, line, root, classes) for line in lines]


def read_lines(file: Path, classes: Classes) -> list[Line]:
    """Return the Lines of a ground-truth file. Raises DataError unless all are of one kind."""
    texts = read_text(file).splitlines()
    lines = [parsed(number, text.strip(), classes) for number, text in enumerate(texts, start=1) if text.strip()]
    if len(lines) > 1 and lines[1].image is not None and not is_value(lines[0].value, classes):
        lines = lines[1:]                                    # the header of a CSV file
    if not lines:
        raise DataError(f"{name_of(file)} is empty; a ground truth has a line for each image")
    for line in lines:
        if not is_value(line.value, classes) or (line.image is None) != (lines[0].image is None):
            text = " ".join(filter(None, (line.image, line.value)))
            hint = "; is it a table of synsets, for --synsets?" if WNID.match(text) else ""
            raise DataError(
                f"{name_of(file)} is no ground truth: line {line.number} is {text[:60]!r}, but each line must be a "
                f"class id, a wnid, or the name of an image with its label or wnid{hint}"
            )
    return lines


def parsed(number: int, text: str, classes: Classes) -> Line:
    """Return the Line of a text: its value, or an image's name and the value that follows it."""
    name, _, rest = re.sub(r"[\t,]", "\0", text, count=1).partition("\0")
    if rest.strip() and is_value(value := re.split(r"[\s,]", rest.strip())[0], classes):
        return Line(number, name.strip(), value)
    *names, value = text.rsplit(maxsplit=1)
    return Line(number, names[0] if names else None, value)


def is_value(text: str, classes: Classes) -> bool:
    """Return whether a text may be the value of a Line."""
    return is_number(text) or nfc(text) in classes.label_of or WNID.fullmatch(text) is not None


def is_number(text: str) -> bool:
    """Return whether a text is a whole number of at most 18 digits."""
    return text.isascii() and text.isdecimal() and len(text) <= 18


def in_order(file: Path, root: str | Path, names: Sequence[str], lines: list[Line]) -> list[Line]:
    """Return the lines of a list without names, one for each image. Raises DataError if images are missing."""
    if len(lines) != len(names):
        raise DataError(f"{name_of(file)} holds {len(lines)} labels for {len(names)} images in {name_of(root)}")
    for place, name in enumerate(names, start=1):
        numbered = NUMBERED.match(name)
        if numbered and int(numbered[1]) != place:
            raise DataError(f"{name_of(Path(root, name))} is image {place} of its folder; one is missing")
    return lines


def by_name(
    file: Path, root: str | Path, names: Sequence[str], lines: list[Line], omissions: Omissions
) -> list[Line]:
    """Return the line of each image of a list with names. Raises DataError if an image has none, or two labels."""
    with_ending = ENDING.search(lines[0].image or "") is not None
    line_of: dict[str, Line] = {}
    for line in lines:
        other = line_of.setdefault(key_of(line.image or "", with_ending), line)
        if other.value != line.value:
            raise DataError(f"lines {other.number} and {line.number} of {name_of(file)} give {line.image} two labels")
    keys = [key_of(name, with_ending) for name in names]
    for name, key in zip(names, keys, strict=True):
        if key not in line_of:
            raise DataError(f"{name_of(file)} has no line for image {name_of(name)} of {name_of(root)}")
    kept = set(keys)
    for key, line in line_of.items():
        if key not in kept:
            omissions.add("lines of the ground truth without an image", line.image or "")
    return [line_of[key] for key in keys]


def key_of(name: str, with_ending: bool) -> str:
    """Return the name of an image without folders, and without its ending unless with_ending."""
    base = nfc(name).rpartition("/")[2]
    return base if with_ending else ENDING.sub("", base)


def counted_labels(file: Path, lines: Sequence[Line], classes: Classes) -> list[int]:
    """Return labels that count the sorted class folders from 0. Raises DataError if they do not."""
    labels = [int(line.value) for line in lines]
    count = len(set(classes.label_of.values()))
    if max(labels) >= count:
        hint = "; do they start at 1? Labels count from 0" if min(labels) > 0 else ""
        raise DataError(
            f"{name_of(file)} holds labels {min(labels)} to {max(labels)} for the {count} classes of "
            f"{classes.known}{hint}"
        )
    return labels


def label_of(file: Path, line: Line, root: str | Path, classes: Classes) -> int:
    """Return the label of a line with a wnid, a class folder's name or ILSVRC's class id. Raises DataError."""
    value = nfc(line.value)
    if value in classes.label_of:
        return classes.label_of[value]
    if not is_number(value):
        raise DataError(f"line {line.number} of {name_of(file)} is {value}, which is no class of {classes.known}")
    if int(value) == 0:
        raise DataError(
            f"line {line.number} of {name_of(file)} is 0, but ILSVRC's class ids count from 1; are these labels that "
            "count from 0? Then write the name of the image before each, as in Caffe's val.txt"
        )
    if not classes.synset_of:
        raise DataError(f"the devkit's synset table (meta.mat) is not near {name_of(root)}; pass --synsets FILE")
    wnid = classes.synset_of.get(int(value), ("unknown", ""))[0]
    if wnid not in classes.label_of:
        raise DataError(
            f"line {line.number} of {name_of(file)} is {value}, synset {wnid}, which is no class of {classes.known}"
        )
    return classes.label_of[wnid]


def read_text(file: Path) -> str:
    """Return the text of a file in UTF-8 or UTF-16, without a byte order mark. Raises DataError."""
    try:
        content = file.read_bytes()
        return content.decode("utf-16" if content[:2] in UTF16 else "utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{name_of(file)} is not readable text: {one_line(error)}") from error


def synset_table(
    folder: str | Path, ground_truth: str | Path | None = None, synsets: str | Path | None = None
) -> Synsets:
    """Return {ILSVRC id: (wnid, words)} from the given file or the devkit's next to a folder or file; else empty."""
    table = find_beside(synsets, TABLES, folder, ground_truth)
    return read_synsets(table) if table else {}


def find_beside(
    given: str | Path | None, names: Sequence[str], folder: str | Path, neighbour: str | Path | None = None
) -> Path | None:
    """Return the given file, or the first of `names` found near a folder (or next to a file); None if none is found."""
    if given is not None:
        if not Path(given).is_file():
            raise DataError(f"{name_of(given)} is not a file")
        return Path(given)
    folder = Path(folder)
    near = folder.parent if folder.is_file() else folder                 # a tar file is treated as a folder beside it
    around = [near / place for place in PLACES] + ([Path(neighbour).parent] if neighbour else [])
    return next((place / name for place in around for name in names if (place / name).is_file()), None)


def read_synsets(path: Path) -> Synsets:
    """Return {ILSVRC id: (wnid, words)} from the devkit's meta.mat, or from text lines "id wnid words".

    The id may be the second field, as in map_clsloc.txt. A table without ids is refused, because its order differs.
    """
    try:
        if path.suffix == ".mat":
            from alexnet.data.ilsvrc_devkit import read_meta  # scipy imports in 0.1 s and is rarely needed

            return read_meta(path)
        fields = [line.split(maxsplit=2) for line in read_text(path).splitlines() if line.strip()]
        without_id = next((f for f in fields if not (is_number(f[0]) or is_number(f[1]))), None)
        if without_id:
            raise ValueError(f"the line of {without_id[0]} has no id")
        pairs = [(f[:2] if is_number(f[0]) else f[1::-1], f[2] if len(f) > 2 else "") for f in fields]
        return {int(number): (wnid, words) for (number, wnid), words in pairs}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{name_of(path)} is neither the devkit's meta.mat nor lines of id, wnid and words: {one_line(error)}"
        ) from error

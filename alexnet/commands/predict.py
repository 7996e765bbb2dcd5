"""Print the most probable classes of images, with their WordNet IDs, words and probabilities.

An IMAGE is a JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF file, a folder of them (with its subfolders, sorted), or -:
names from standard input, one on each line, or an image itself:

    curl -L URL | python -m alexnet predict --weights W -

Results are printed in the order of the images, after each batch. An unusable image is reported on standard error; the
remaining images are still processed, and the exit status is 1.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader
from itertools import chain
from typing import cast

from alexnet.commands._options import add_machine, add_weights, network_of, positive, weights_of
from alexnet.data.batch_file import name_of
from alexnet.data.image_formats import FORMATS, HEAD, image_format
from alexnet.data.images import BadImage, ImageSource
from alexnet.inference.evaluate import CROPS
from alexnet.inference.predict import BATCH_SIZE, Guess, Predictor, entries_below
from alexnet.native.console import note
from alexnet.pretrained.assumptions import input_line

STDIN = "-"
LARGEST = 1 << 30                                # bytes of an image from standard input

Prediction = Sequence[Guess] | BadImage


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_weights(parser)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="file or folder; -: standard input")
    parser.add_argument("--stdin", action="store_true", help="names from standard input, too, one on each line")
    parser.add_argument("-0", "--null", action="store_true", help="those names end with NUL, as of find -print0")
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="classes for each image (%(default)s)")
    parser.add_argument("--crops", type=int, choices=CROPS, default=1, help="10: the mean over the paper's ten crops")
    parser.add_argument("--batch-size", type=positive, default=BATCH_SIZE, metavar="N", help="images that the network "
                        "takes together (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object on a line for each image")
    add_machine(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if not (options.images or options.stdin):
        raise ValueError("no images given; name some, or pass - to read their names from standard input")
    weights = weights_of(options)
    note(name_of(weights.origin))
    note(input_line(weights))
    predictor = Predictor(weights, options.crops, network_of(weights, options))
    return write(predictor.each(sources(options), options.top, options.batch_size), options.json)


def write(predictions: Iterable[tuple[ImageSource, Prediction]], as_json: bool) -> int:
    """Print each prediction as soon as it is available; returns 1 if an image was bad, else 0."""
    status = 0
    for source, prediction in predictions:
        name = name_of(source) if isinstance(source, str) else STDIN
        if as_json:
            print(json_of(name, prediction), flush=True)
        elif not isinstance(prediction, BadImage):
            print(text_of(name, prediction), flush=True)
        if isinstance(prediction, BadImage):
            print(f"{name} {prediction}", file=sys.stderr, flush=True)
            status = 1
    return status


def sources(options: argparse.Namespace) -> Iterator[ImageSource]:
    """Return the images: names, folders replaced by the images below them, or an image read from standard input.

    The content of standard input replaces -, or comes last.
    """
    given = [*options.images, STDIN] if options.stdin and STDIN not in options.images else options.images
    stdin = cast(BufferedReader, sys.stdin.buffer)
    found = chain.from_iterable(stdin_sources(stdin, options.null) if name == STDIN else [name] for name in given)
    return chain.from_iterable(expanded(source) for source in found)


def expanded(source: ImageSource) -> Sequence[ImageSource]:
    """Return the images below a folder, and print which files are left out; any other source is returned as it is.

    A folder without images is returned too: reading it as an image reports it.
    """
    if not isinstance(source, str) or not os.path.isdir(source):
        return [source]
    images, others = entries_below(source)
    if others:
        files = "file that is not named as an image is" if len(others) == 1 else "files not named as images are"
        note(f"{len(others):,} {files} left out of {name_of(source)}; the first: {name_of(others[0])}")
    return images or [source]


def stdin_sources(stream: BufferedReader, null: bool) -> Iterator[ImageSource]:
    """Yield the image in a binary stream, or else the names in it as they arrive; empty names are skipped.

    Args:
        null: the stream contains names that end with NUL, not lines, and not an image.
    """
    separator = b"\0" if null else b"\n"
    data = stream.read1() if null else head_of(stream)
    if not null and image_format(data) in FORMATS:
        yield io.BytesIO(data + stream.read(LARGEST))
        return
    rest = b""
    while data:
        *whole, rest = (rest + data).split(separator)
        yield from (os.fsdecode(name) for name in whole if name)
        data = stream.read1()
    if rest:
        yield os.fsdecode(rest)


def head_of(stream: BufferedReader) -> bytes:
    """Read from a stream until its content is known to be an image, or to start with a name, or HEAD bytes."""
    head = b""
    while len(head) < HEAD and image_format(head) not in FORMATS and not starts_with_name(head):
        data = stream.read1()
        if not data:
            break
        head += data
    return head


def starts_with_name(head: bytes) -> bool:
    """Whether the first line is complete and printable."""
    line, separator, _ = head.partition(b"\n")
    return bool(separator) and line.decode(errors="replace").isprintable()


def text_of(name: str, guesses: Sequence[Guess]) -> str:
    """Return the result for an image as text: its name, and one line per guess."""
    lines = (f"  {guess.probability:6.1%}".replace("%", " %") + "".join(f"  {word}" for word in guess[2:] if word)
             for guess in guesses)
    return "\n".join((name, *lines))


def json_of(name: str, prediction: Prediction) -> str:
    """Return the result for an image as one line of JSON."""
    if isinstance(prediction, BadImage):
        return json.dumps({"image": name, "error": str(prediction)})
    return json.dumps({"image": name, "top": [guess._asdict() for guess in prediction]})

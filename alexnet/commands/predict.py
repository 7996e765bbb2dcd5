"""Print the most probable classes of images, with their WordNet IDs, words and probabilities.

Results are printed in the order of the images, after each batch. An unusable image is reported on standard error; the
remaining images are still processed, and the exit status is 1.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader
from itertools import chain
from typing import cast

from alexnet.commands._options import add_machine, add_weights, network_of, positive, weights_of
from alexnet.data.batch_file import name_of
from alexnet.data.images import BadImage
from alexnet.inference.evaluate import CROPS
from alexnet.inference.predict import BATCH_SIZE, Guess, Predictor

STDIN = "-"

Prediction = Sequence[Guess] | BadImage


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_weights(parser)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="JPEG or PNG file; -: names from standard input")
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
    predictor = Predictor(weights, options.crops, network_of(weights, options))
    print(f"note: {name_of(weights.origin)}", file=sys.stderr, flush=True)
    try:
        return write(predictor.each(names(options), options.top, options.batch_size), options.json)
    except BrokenPipeError:                      # the reader of the output has exited, for example head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def write(predictions: Iterable[tuple[str, Prediction]], as_json: bool) -> int:
    """Print each prediction as soon as it is available; returns 1 if an image was bad, else 0."""
    status = 0
    for path, prediction in predictions:
        name = name_of(path)
        if as_json:
            print(json_of(name, prediction), flush=True)
        elif not isinstance(prediction, BadImage):
            print(text_of(name, prediction), flush=True)
        if isinstance(prediction, BadImage):
            print(f"{name} {prediction}", file=sys.stderr, flush=True)
            status = 1
    return status


def names(options: argparse.Namespace) -> Iterator[str]:
    """Return the names of the images. Names from standard input replace -, or come last."""
    given = [*options.images, STDIN] if options.stdin and STDIN not in options.images else options.images
    separator = b"\0" if options.null else b"\n"
    stdin = cast(BufferedReader, sys.stdin.buffer)
    return chain.from_iterable(listed(stdin, separator) if name == STDIN else [name] for name in given)


def listed(stream: BufferedReader, separator: bytes) -> Iterator[str]:
    """Yield the names in a binary stream as they arrive, split at the separator; empty names are skipped."""
    rest = b""
    while data := stream.read1():
        *whole, rest = (rest + data).split(separator)
        yield from (os.fsdecode(name) for name in whole if name)
    if rest:
        yield os.fsdecode(rest)


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

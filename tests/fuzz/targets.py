"""All targets of fuzzing by name, and what they change in the program."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from alexnet.data import images
from tests.fuzz import data_files, message_targets, run_files, weights_files
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = (
    data_files.TARGETS | weights_files.TARGETS | run_files.TARGETS | message_targets.TARGETS
)
MOST_PIXELS = 1 << 20                            # of an image, so that no image takes seconds


@contextmanager
def prepared() -> Iterator[None]:
    """Add small networks, switch off imports by settings, and lower the limit of an image, within a with block."""
    with ExitStack() as stack:
        stack.enter_context(weights_files.small_networks())
        stack.enter_context(run_files.no_extensions())
        stack.enter_context(patch.object(images, "MOST_PIXELS", MOST_PIXELS))
        yield

"""Plans of random data sets: which images each worker gets in each step of an epoch, and after a resume."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.config import load_config
from alexnet.data.dataset import DataError, Split, file_order
from alexnet.training.loop import Position, epoch_batches
from tests.fuzz.drawing import drawn

CONFIG = load_config(["data=none"])
COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=12)            # images of each file
WORKERS, BATCHES, SEEDS, EPOCHS = st.integers(1, 6), st.integers(1, 24), st.integers(0, 2**32 - 1), st.integers(0, 99)


def split_of(counts):
    """Return a Split in which the label of an image is its number."""
    files = tuple(Path(f"{n:04d}.hkl") for n in range(len(counts)))
    return Split(files, np.array(counts), np.arange(sum(counts), dtype=np.int32))


def images_of(split, segments):
    """Return the numbers of the images in pieces of files, and check that each piece is in its file."""
    numbers = []
    for segment in segments:
        file = split.files.index(segment.path)
        assert 0 <= segment.start < segment.stop <= split.counts[file]
        begin = int(split.counts[:file].sum())
        numbers += range(begin + segment.start, begin + segment.stop)
    return numbers


def batches_of(split, *arguments, **options):
    """Return the images of each batch of a plan, whose labels are those of its images."""
    batches = []
    for segments, labels in split.plan(*arguments, **options):
        batches.append(images_of(split, segments))
        assert labels.dtype == np.int32 and labels.tolist() == batches[-1]
    return batches


@drawn(150)
@given(COUNTS, WORKERS, BATCHES, SEEDS, EPOCHS, st.booleans())
def test_an_epoch_uses_each_image_once(counts, workers, batch, seed, epoch, shuffle):
    split, step = split_of(counts), workers * batch
    order = file_order(seed, epoch, len(counts), shuffle)
    shards = [split.shard(rank, workers) for rank in range(workers)]
    if split.n < step:
        for shard in shards:
            with pytest.raises(DataError, match=f"batch size {step} is larger than the set of {split.n} images"):
                shard.plan(batch, order)
        return
    plans = [batches_of(shard, batch, order) for shard in shards]
    assert all(len(images) == batch for plan in plans for images in plan)
    together = [sum(parts, []) for parts in zip(*plans, strict=True)]
    assert together == batches_of(split, step, order)                     # those of one worker
    used = sum(together, [])
    assert len(set(used)) == len(used) == split.n - shards[0].dropped(batch)
    assert used == images_of(split, split.segments(order, 0, len(used)))  # the files are read in this order


@drawn(100)
@given(COUNTS, WORKERS, BATCHES, st.integers(1, 6), st.booleans())
def test_micro_batches_are_parts_of_the_batches(counts, workers, size, parts, keep_last):
    split, batch = split_of(counts).shard(workers - 1, workers), size * parts
    if split.n < workers * batch and not keep_last:
        return
    whole = batches_of(split, batch, keep_last=keep_last)
    divided = batches_of(split, batch, keep_last=keep_last, parts=parts)
    assert sum(divided, []) == sum(whole, [])
    if not keep_last:
        assert [len(images) for images in divided] == [size] * (parts * len(whole))


@drawn(100)
@given(COUNTS, WORKERS, BATCHES)
def test_validation_includes_the_last_batch(counts, workers, batch):
    split = split_of(counts)
    plans = [batches_of(split.shard(rank, workers), batch, keep_last=True) for rank in range(workers)]
    seen = sorted(image for plan in plans for images in plan for image in images)
    assert seen == list(range(split.n))
    assert all(0 < len(images) <= batch for plan in plans for images in plan)
    assert all(len(images) == batch for plan in plans for images in plan[: split.n // (workers * batch)])


@drawn(60)
@given(COUNTS, st.integers(1, 3), st.integers(1, 6), st.integers(1, 3), SEEDS, EPOCHS, st.data())
def test_a_resumed_epoch_is_the_rest_of_the_epoch(counts, workers, size, parts, seed, epoch, data):
    """Images, labels and crops of each micro-batch are those of an uninterrupted epoch."""
    split = split_of(counts).shard(data.draw(st.integers(0, workers - 1)), workers)
    batch = size * parts
    if split.n < workers * batch:
        return
    config = CONFIG.model_copy(update={
        "random_seed": seed, "batch_size": batch, "micro_batch_size": size, "shuffle": data.draw(st.booleans()),
        "use_data_layer": data.draw(st.booleans()), "rand_crop": data.draw(st.booleans()),
    })
    before = epoch * (split.n // (workers * batch))
    whole, steps = epoch_batches(config, split, 227, Position(epoch, 0, before), split.rank)
    done = data.draw(st.integers(0, steps))
    rest, same_steps = epoch_batches(config, split, 227, Position(epoch, done, before + done), split.rank)
    expected = list(whole)[done * parts :]
    resumed = list(rest)
    assert steps == same_steps == len(split.plan(batch)) and len(resumed) == len(expected) == (steps - done) * parts
    for one, other in zip(resumed, expected, strict=True):
        assert one.request.segments == other.request.segments and one.position == other.position
        np.testing.assert_array_equal(one.labels, other.labels)
        for drawn_now, drawn_before in zip(one.crop, other.crop, strict=True):
            assert len(drawn_now) == size
            np.testing.assert_array_equal(drawn_now, drawn_before)
    assert [batch.position for batch in resumed] == list(range(parts)) * (steps - done)


@drawn(60)
@given(COUNTS, BATCHES, st.lists(WORKERS, min_size=2, max_size=4), SEEDS)
def test_the_number_of_workers_does_not_change_the_order_of_the_images(counts, batch, sizes, seed):
    """Between two epochs a run may continue with another number of workers."""
    split, epochs = split_of(counts), []
    for epoch, workers in enumerate(sizes):
        order = file_order(seed, epoch, len(counts))
        if split.n >= workers * batch:
            plans = [batches_of(split.shard(rank, workers), batch, order) for rank in range(workers)]
            used = [image for parts in zip(*plans, strict=True) for images in parts for image in images]
            epochs.append((order, used))
    for order, used in epochs:
        files = [np.searchsorted(np.cumsum(split.counts), image, side="right") for image in used]
        changes = [files[0], *(later for earlier, later in pairwise(files) if later != earlier)] if files else []
        assert changes == order[: len(changes)].tolist()

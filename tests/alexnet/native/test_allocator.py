"""The CPU backend's allocator reuses memory, but never while another array refers to it."""

import gc

import numpy as np
import pytest

from alexnet.native.allocator import SMALL, Allocator

LARGE = (1024, 1024)


@pytest.fixture
def allocator():
    return Allocator()


def test_memory_is_reused_after_the_last_view_is_deleted(allocator):
    array = allocator.empty(LARGE, np.float32)
    address, view = array.ctypes.data, array[3:5].T
    del array
    assert allocator.empty(LARGE, np.float32).ctypes.data != address
    del view
    gc.collect()
    assert allocator.empty(LARGE, np.float32).ctypes.data == address


def test_arrays_in_use_do_not_overlap(allocator):
    arrays = [allocator.empty((100, 100, n), np.float32) for n in (3, 4, 7)]
    for value, array in enumerate(arrays):
        array[...] = value
    assert [set(array.ravel()) for array in arrays] == [{0}, {1}, {2}]


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int32", "float64"])
def test_arrays_are_aligned_contiguous_and_writable(allocator, dtype):
    array = allocator.empty((3, SMALL, 5), dtype)
    assert array.dtype == dtype and array.shape == (3, SMALL, 5)
    assert array.ctypes.data % 64 == 0
    assert array.flags.c_contiguous and array.flags.writeable


def test_bytes_held_do_not_grow_with_repetition(allocator):
    def use():
        arrays = [allocator.empty(LARGE, np.float32) for _ in range(3)]
        return len(arrays)

    use()
    held = allocator.bytes_held
    assert held >= 3 * 4 * 1024 * 1024
    for _ in range(5):
        use()
    assert allocator.bytes_held == held


def test_adjacent_freed_arrays_are_merged(allocator):
    first, second, kept = (allocator.empty(LARGE, np.float32) for _ in range(3))
    start, held = first.ctypes.data, allocator.bytes_held
    del first, second
    small = [allocator.empty((512, 1024), np.uint8) for _ in range(2)]
    large = allocator.empty((1792, 1024), np.float32)
    assert [array.ctypes.data - start for array in (*small, large)] == [0, 512 << 10, 1 << 20]
    assert allocator.bytes_held == held and not np.shares_memory(large, kept)


def test_arrays_larger_than_a_region(allocator, monkeypatch):
    monkeypatch.setattr("alexnet.native.allocator.REGION", 1 << 20)
    arrays = [allocator.empty(LARGE, np.uint8), allocator.empty(LARGE, np.float32), allocator.empty((SMALL,), np.uint8)]
    for value, array in enumerate(arrays):
        array[...] = value
    assert [np.unique(array).tolist() for array in arrays] == [[0], [1], [2]]


def test_numpy_allocates_small_and_empty_arrays(allocator):
    assert allocator.empty((0, 5), np.float32).shape == (0, 5)
    assert allocator.empty((), np.float32).shape == ()
    assert allocator.bytes_held == 0

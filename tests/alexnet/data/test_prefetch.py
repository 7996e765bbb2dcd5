"""Prefetching: results in order, bounded depth, and clean termination in every case."""

import threading
import time
from contextlib import closing
from itertools import count

import pytest

from alexnet.data.prefetch import in_order


def slow_square(number):
    time.sleep(0.002 * (number % 3))                     # later calls finish before earlier ones
    return number**2


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (1, 2), (4, 6)])
@pytest.mark.parametrize("jobs", [0, 1, 5, 20])
def test_results_are_in_job_order(threads, ahead, jobs):
    assert list(in_order(slow_square, range(jobs), threads, ahead)) == [n**2 for n in range(jobs)]


def test_prefetching_is_bounded():
    begun = []
    with closing(in_order(begun.append, count(), threads=3, ahead=5)) as results:
        for taken in range(1, 8):
            next(results)
            time.sleep(0.01)
            assert taken <= len(begun) <= taken + 5


def test_error_is_raised_in_order_and_ends_threads():
    def fail(number):
        if number == 3:
            raise ValueError("the third")
        return number

    taken = []
    with pytest.raises(ValueError, match="the third"):
        for number in in_order(fail, count(), threads=2, ahead=8):
            taken.append(number)
    assert taken == [0, 1, 2]


def test_closing_early_leaves_no_thread():
    with pytest.raises(KeyboardInterrupt), closing(in_order(slow_square, count(), 4, 8)) as results:
        next(results)
        raise KeyboardInterrupt

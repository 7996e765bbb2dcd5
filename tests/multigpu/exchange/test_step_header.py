"""The integrity header of a reduction, and the space for its lanes in a flat buffer."""

import numpy as np
import pytensor
import pytest

from multigpu.communicator import DesyncError
from multigpu.device.host import HostDevice
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.exchange.step_header import (
    HEADER_BYTES,
    LANES,
    Overflow,
    OverflowInfo,
    StepHeader,
    check_headers,
    check_lanes,
    write_lanes,
)


@pytest.mark.parametrize("steps", [(5, 6), (6, 6, 3), (4095, 4096), (1, 2**30 - 1), (64, 1)])
def test_header_lanes_detect_different_steps(steps):
    sums = np.zeros(LANES, np.float32)
    for step in steps:
        one = np.empty(LANES, np.float32)
        write_lanes(one, step)
        sums += one
    for expected in {*steps, round(sum(steps) / len(steps))}:
        with pytest.raises(DesyncError, match="whose steps are not the same"):
            check_lanes(sums, "ar", expected, len(steps))


@pytest.mark.parametrize("size", [1, 2, 1000, 4000])
@pytest.mark.parametrize("step", [0, 1, 4095, 10**6, 2**30 - 1])
def test_header_lanes_of_equal_steps_are_exact(step, size):
    one, sums = np.empty(LANES, np.float32), np.zeros(LANES, np.float32)
    write_lanes(one, step)
    for _ in range(size):
        sums += one
    check_lanes(sums, "ar", step, size)


def test_header_reports_the_lowest_rank_with_overflow():
    header = StepHeader(3, 3).with_overflow(5, OverflowInfo(True, False, 10**12, -1e38))
    message = np.zeros(HEADER_BYTES, np.uint8)
    header.write(message)
    assert StepHeader.read(message) == header
    combined = header.combine(StepHeader(3, 3).with_overflow(2, OverflowInfo(False, False, 4, 7e4)), StepHeader(3, 3))
    with pytest.raises(Overflow, match="a value of rank 2 is 70000"):
        check_headers([combined], "asa16", 3, 3)
    with pytest.raises(DesyncError, match="got step 3 of 3 ranks"):
        check_headers([combined], "asa16", 3, 4)


@pytest.mark.parametrize("n", [1, 1007, 1008, 1009, 1023, 1024])
def test_extra_floats_of_flat_buffer_are_in_no_array(n):
    variables = [pytensor.shared(np.full(n, 3, np.float32))]
    with HostDevice() as device:
        flat = FlatBuffer(device, [(n,)], LANES)
        flat.pack(variables)
        flat.array()[-LANES:] = 9
        flat.unpack(variables)
        np.testing.assert_array_equal(variables.pop().get_value(borrow=False), 3)
        flat.close()

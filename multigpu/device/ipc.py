"""Tests whether another process can open memory of a device, as a loader and other workers do.

In some containers a driver exports handles that no process can open, so only a trial shows it.
"""

from multiprocessing.connection import Connection

from multigpu.device import Device, DeviceError, open_device
from multigpu.device.handles import Handle
from multigpu.launch import clock
from multigpu.launch.process import CONTEXT, end

TIMEOUT = 60.0                                   # seconds that the other process gets


def why_no_ipc(device: Device) -> str | None:
    """Return None if another process can open memory of the device, else a sentence."""
    obstacle = device.can_reach(device.name)
    if obstacle:
        return obstacle
    buffer = device.allocate(4)
    pipe, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=try_to_open, args=(theirs, device.name, buffer.handle), daemon=True)
    process.start()
    theirs.close()
    try:
        timed_out = f"no other process opened memory of {device.name} within {TIMEOUT:g} s"
        obstacle = pipe.recv() if clock.poll(pipe, TIMEOUT) else timed_out
    except EOFError:
        obstacle = f"the process that was to open memory of {device.name} died"
    end(process, TIMEOUT)                       # it has closed the buffer before this one frees it
    buffer.close()
    return obstacle


def try_to_open(pipe: Connection, name: str, handle: Handle) -> None:
    """Entry point of a process that opens a handle and sends the error message, or None."""
    try:
        with open_device(name) as device:
            device.open(handle)
    except DeviceError as error:
        pipe.send(str(error))
    else:
        pipe.send(None)

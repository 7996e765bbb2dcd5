"""Tests whether another process can open memory of a device, as a loader and other workers do.

In some containers a driver exports handles that no process can open, so only a trial shows it.
"""

from multigpu.device import DeviceError, open_device
from multigpu.process import CONTEXT, end

PATIENCE = 60.0                                  # seconds that the other process gets


def why_no_ipc(device):
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
        late = f"no other process opened memory of {device.name} within {PATIENCE:g} s"
        obstacle = pipe.recv() if pipe.poll(PATIENCE) else late
    except EOFError:
        obstacle = f"the process that was to open memory of {device.name} died"
    end(process, PATIENCE)                       # it has closed the buffer before this one frees it
    buffer.close()
    return obstacle


def try_to_open(pipe, name, handle):
    """Entry point of a process that opens a handle and sends the error message, or None."""
    try:
        with open_device(name) as device:
            device.open(handle)
    except DeviceError as error:
        pipe.send(str(error))
    else:
        pipe.send(None)

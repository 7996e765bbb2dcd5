"""Devices: where buffers lie, and how another process sees them.

A device is six verbs, the same on each:

    allocate(nbytes) -> buffer          buffer.handle can be sent to another process, which there calls
    open(handle) -> buffer              the same bytes; close it before its owner closes the original
    buffer.array(shape, dtype)          the bytes as an array
    copy(destination, source)           between two buffers of one size; may end later than the call
    synchronise()                       wait for every copy; only then tell another process of it
    close()                             of one buffer, or of the device with all its buffers

A copy on a GPU does not wait for the host, so the order is always copy, synchronise, message.

Source: Ding et al. 2014, section 4.3.
"""


class DeviceError(RuntimeError):
    """A buffer that cannot be had, or may not be used; the message is one sentence."""

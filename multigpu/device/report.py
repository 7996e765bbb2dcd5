"""The computing devices of this machine, as text: `python -m multigpu devices`.

    device  name         memory     free       compute  IPC
    cpu     AMD EPYC     23.4 GiB   22.0 GiB            yes
    cuda0   NVIDIA H200  139.8 GiB  139.1 GiB  9.0      yes

IPC is tested: another process opens memory of the device, as a loader or another worker does.
"""

import os
from contextlib import ExitStack, suppress
from pathlib import Path

from alexnet.native.cores import cores
from alexnet.training.network import describe_backend
from multigpu.device import DeviceError, cuda_home, open_device, why_no_jax
from multigpu.device.ipc import why_no_ipc


def report():
    """Return the text: a table of devices, a table of peer access between GPUs, and the effect of devices=auto."""
    rows, notes = [("device", "name", "memory", "free", "compute", "IPC"), cpu_row()], []
    with ExitStack() as stack:
        gpus = open_gpus(stack, notes)
        for gpu in gpus:
            obstacle = why_no_ipc(gpu)
            about = gpu.about()
            shared = "no" if obstacle else "yes"
            rows.append((gpu.name, about.model, size(about.memory), size(about.free), about.capability, shared))
            notes += [f"{obstacle}."] * bool(obstacle)
        tables = [table(rows)]
        if len(gpus) > 1:
            tables.append(table(peer_rows(gpus)))
    return "\n\n".join([*tables, "\n".join([*notes, automatic(gpus)])])


def open_gpus(stack, notes):
    """Return the CudaDevices that can be opened, closed with the stack; add the errors of the others to the notes."""
    gpus = []
    try:
        count = cuda_home("cuda0").count()
    except DeviceError as error:
        notes.append(f"There is no GPU to use: {error}.")
        return gpus
    for number in range(count):
        try:
            gpus.append(stack.enter_context(open_device(f"cuda{number}")))
        except DeviceError as error:
            notes.append(f"{error}.")
    return gpus


def automatic(gpus):
    """Return a sentence that names the device and backend of devices=auto."""
    obstacle = why_no_jax()
    if gpus and gpus[0].name == "cuda0" and not obstacle:
        return f"devices=auto computes on cuda0, backend {describe_backend('auto', 'cuda0')}."
    reason = f"; {obstacle}" if gpus and obstacle else ""
    return f"devices=auto computes on the cpu, backend {describe_backend('auto', 'cpu')}{reason}."


def cpu_row():
    name = field_of("/proc/cpuinfo", "model name") or "this machine's processor"
    memory, free = (field_of("/proc/meminfo", key) for key in ("MemTotal", "MemAvailable"))
    shared = "yes" if hasattr(os, "memfd_create") else "no"
    return "cpu", f"{name}, {cores()} cores", kibibytes(memory), kibibytes(free), "", shared


def field_of(path, key):
    """Return the value of a line `key : value` of a file; None if there is no such file or line."""
    with suppress(OSError):
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return None


def peer_rows(gpus):
    """Return for each GPU whether it can read and write the memory of each other GPU."""
    names = [gpu.name for gpu in gpus]
    return [("peer access", *names)] + [(gpu.name, *(reaches(gpu, name) for name in names)) for gpu in gpus]


def reaches(gpu, name):
    return "itself" if name == gpu.name else "yes" if gpu.has_peer_access(name) else "no"


def kibibytes(text):
    """Convert a size as /proc writes it, "1024 kB", to GiB."""
    return size(1024 * int(text.split()[0])) if text else ""


def size(nbytes):
    return f"{nbytes / 2**30:.1f} GiB"


def table(rows):
    """Format rows of text as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

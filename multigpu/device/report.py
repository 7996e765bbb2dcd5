"""The computing devices of this machine, as text: `python -m multigpu devices`.

    device  name         memory     free       compute  IPC
    cpu     AMD EPYC     23.4 GiB   22.0 GiB            yes
    cuda0   NVIDIA H200  139.8 GiB  139.1 GiB  9.0      yes

IPC is tested: another process opens memory of the device, as a loader or another worker does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.native.cores import cores
from alexnet.training.network import describe_backend
from multigpu.device import DeviceError, cuda_home, why_no_jax
from multigpu.device.ipc import why_no_ipc

if TYPE_CHECKING:
    from multigpu.device.cuda import CudaDevice


def report() -> str:
    """Return the text: a table of devices, a table of peer access between GPUs, and the effect of devices=auto."""
    rows = [("device", "name", "memory", "free", "compute", "IPC"), cpu_row()]
    notes: list[str] = []
    with ExitStack() as stack:
        gpus = open_gpus(stack, notes)
        for gpu in gpus:
            obstacle = why_no_ipc(gpu)
            if obstacle:
                notes.append(f"{obstacle}.")
            info = gpu.info()
            has_ipc = "no" if obstacle else "yes"
            rows.append((gpu.name, info.model, size(info.memory), size(info.free), info.capability, has_ipc))
        tables = [table(rows)]
        if len(gpus) > 1:
            tables.append(table(peer_rows(gpus)))
    return "\n\n".join([*tables, "\n".join([*notes, automatic(gpus)])])


def open_gpus(stack: ExitStack, notes: list[str]) -> list[CudaDevice]:
    """Return the CudaDevices that can be opened, closed with the stack; add the errors of the others to the notes."""
    gpus: list[CudaDevice] = []
    try:
        cuda = cuda_home("cuda0")
        count = cuda.count()
    except DeviceError as error:
        notes.append(f"There is no GPU to use: {error}.")
        return gpus
    for number in range(count):
        try:
            gpus.append(stack.enter_context(cuda.CudaDevice(number)))
        except DeviceError as error:
            notes.append(f"{error}.")
    return gpus


def automatic(gpus: Sequence[CudaDevice]) -> str:
    """Return a sentence that names the device and backend of devices=auto."""
    obstacle = why_no_jax()
    if gpus and gpus[0].name == "cuda0" and not obstacle:
        return f"devices=auto computes on cuda0, backend {describe_backend('auto', 'cuda0')}."
    reason = f"; {obstacle}" if gpus and obstacle else ""
    return f"devices=auto computes on the cpu, backend {describe_backend('auto', 'cpu')}{reason}."


def cpu_row() -> tuple[str, ...]:
    """Return the row of the host in the table of devices."""
    name = field_of("/proc/cpuinfo", "model name") or "this machine's processor"
    memory = kibibytes(field_of("/proc/meminfo", "MemTotal"))
    free = kibibytes(field_of("/proc/meminfo", "MemAvailable"))
    has_ipc = "yes" if hasattr(os, "memfd_create") else "no"
    return "cpu", f"{name}, {cores()} cores", memory, free, "", has_ipc


def field_of(path: str, key: str) -> str | None:
    """Return the value of a line `key : value` of a file; None if there is no such file or line."""
    with suppress(OSError):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return None


def peer_rows(gpus: list[CudaDevice]) -> list[tuple[str, ...]]:
    """Return for each GPU whether it can read and write the memory of each other GPU."""
    names = [gpu.name for gpu in gpus]
    return [("peer access", *names), *((gpu.name, *(access(gpu, name) for name in names)) for gpu in gpus)]


def access(gpu: CudaDevice, name: str) -> str:
    """Return whether a GPU has peer access to the named one, as text."""
    return "itself" if name == gpu.name else "yes" if gpu.has_peer_access(name) else "no"


def kibibytes(text: str | None) -> str:
    """Convert a size as /proc writes it, "1024 kB", to GiB; None to an empty text."""
    return size(1024 * int(text.split()[0])) if text else ""


def size(nbytes: int) -> str:
    """Format a number of bytes in GiB."""
    return f"{nbytes / 2**30:.1f} GiB"


def table(rows: list[tuple[str, ...]]) -> str:
    """Format rows of text as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

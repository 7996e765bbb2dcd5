"""Properties of the machine that results depend on: processor, caches, memory, system and versions."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess

from alexnet.native import compiler

CPUINFO = pathlib.Path("/proc/cpuinfo")
CACHES = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")
VECTOR_SETS = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}                # widest first
PACKAGES = {"pytensor": "PyTensor", "numpy": "NumPy", "torch": "PyTorch", "pillow": "Pillow"}


def cpuinfo():
    """Return {field: value} of the first core in /proc/cpuinfo; empty if the file does not exist."""
    if not CPUINFO.exists():
        return {}
    first = CPUINFO.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def instruction_sets():
    """Return the names of the processor's instruction sets, as Linux spells them."""
    fields = cpuinfo()
    return set((fields.get("flags") or fields.get("Features") or "").split())


def processor():
    fields = cpuinfo()
    name = fields.get("model name") or platform.processor() or platform.machine()
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return name + family


def instructions_used():
    """Return the name of the vector instruction set that the kernels are compiled for."""
    isa = os.environ.get("ALEXNET_ISA", "auto")
    sets = instruction_sets()
    widest = next((text for flag, text in VECTOR_SETS.items() if flag in sets), "unknown")
    return f"{widest}, the widest this processor has" if isa == "auto" else f"ALEXNET_ISA={isa}"


def caches():
    """Return the data and unified caches of the first core, for example 'L1 32 KiB, L2 1024 KiB'."""
    found = []
    for place in sorted(CACHES.glob("index*")):
        level, kind, size = ((place / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found.append(f"L{level} {size.removesuffix('K')} KiB" if size.endswith("K") else f"L{level} {size}")
    return ", ".join(found) or "unknown"


def memory():
    """Return the memory of the whole machine, in GiB."""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def system():
    release = platform.freedesktop_os_release() if pathlib.Path("/etc/os-release").exists() else {}
    return f"{release.get('PRETTY_NAME', platform.system())}, kernel {platform.release().split('-')[0]}"


def compiler_version():
    command = compiler.compiler()
    if command is None:
        return "none"
    return subprocess.run([*command, "--version"], capture_output=True, text=True).stdout.splitlines()[0]


def versions():
    """Return the versions of Python and of the relevant packages, in one line."""
    found = [f"Python {platform.python_version()}"]
    for package, name in PACKAGES.items():
        try:
            found.append(f"{name} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def commit():
    """Return the short hash of the measured commit, followed by "with changes" if the checkout is modified."""
    git = ["git", "-C", os.fspath(pathlib.Path(__file__).parent)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    if not name:
        return "not a git checkout"
    changed = subprocess.run([*git, "status", "--porcelain", "--", ":/"], capture_output=True, text=True).stdout
    changed = [line for line in changed.splitlines() if not line.endswith("RESULTS.md")]
    return f"{name}, with changes" if changed else name


def facts():
    """Return {property: value} for the head of the results."""
    return {
        "processor": processor(),
        "cores used": str(len(os.sched_getaffinity(0))),
        "instructions": instructions_used(),
        "caches of a core": caches(),
        "memory": memory(),
        "system": system(),
        "versions": versions(),
        "C compiler": compiler_version(),
        "commit": commit(),
    }

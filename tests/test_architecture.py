"""The architecture: which package imports which, where third-party libraries are used, and what every file contains."""

import ast
import re
import sys
from pathlib import Path

import pytest

from alexnet.config.schema import Config

ROOT = Path(__file__).resolve().parent.parent
OWN = ("alexnet", "multigpu", "preprocess")
SOURCES = sorted(path for room in OWN for path in (ROOT / room).rglob("*.py")) + [ROOT / "train.py"]
BESIDES = ("tests", "benchmarks", "examples")
EVERYTHING = SOURCES + sorted(path for room in BESIDES for path in (ROOT / room).rglob("*.py"))

TOP_LEVEL = {
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", ".ci", "setup.py", "pyproject.toml",
    "config.yaml", "train.py", "alexnet", "multigpu", "preprocess", "tests", "benchmarks", "docs", "examples",
}

# A package of alexnet imports only from earlier lines.
ORDER = (
    ("config", "native"),
    ("ops",),
    ("backends",),
    ("nn",),
    ("models",),
    ("data",),
    ("training",),
    ("run",),
    ("pretrained",),
    ("inference",),
    ("plots",),
    ("commands",),
    ("__main__",),
)

HOMES = {
    "numpy": OWN,
    "pytensor": ("alexnet",),
    "yaml": ("alexnet/config",),
    "pydantic": ("alexnet/config",),
    "h5py": ("alexnet/data/batch_file.py",),
    "hickle": ("alexnet/data/batch_file.py",),
    "safetensors": ("alexnet/run/checkpoint_format.py",),
    "matplotlib": ("alexnet/plots",),
    "tqdm": ("alexnet/run/recorder.py", "alexnet/data/progress.py"),
    "PIL": ("alexnet/data/images.py", "preprocess"),
    "scipy": ("alexnet/data/ilsvrc_devkit.py",),
    "google": ("alexnet/pretrained/protobuf.py",),
    "onnx": ("alexnet/pretrained/onnx",),
    "jax": ("alexnet/backends/jax", "multigpu/device/cuda.py"),
    "pycuda": ("multigpu/device/cuda.py",),
    "mpi4py": ("multigpu/mpi/communicator.py",),
    "nccl": ("multigpu/exchange/nccl.py",),
    # From the standard library: the C compiler, processes, and modules that must not be used.
    "subprocess": ("alexnet/native",),
    "multiprocessing": ("multigpu", "preprocess/workers.py"),
    "pickle": (),
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree):
    """Yield the dotted names of the modules that `tree` imports; `from a import b` counts as a and as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(sources, allowed):
    """Return one message for each import of `sources` that `allowed` (file, module) rejects."""
    found = ((name_of(path), module) for path in sources for module in imports(parsed(path)))
    return sorted({f"{file} imports {module}" for file, module in found if not allowed(file, module)})


def room_of(file):
    """Return the package of a file or dotted module of alexnet: ops for alexnet/ops/lrn.py and alexnet.ops.lrn."""
    parts = re.split(r"[./]", file.removesuffix(".py"))
    return parts[1] if len(parts) > 1 else None


def test_the_top_level_is_as_drawn():
    assert TOP_LEVEL - {path.name for path in ROOT.iterdir()} == set()


def test_each_house_imports_only_those_below_it():
    below = {
        "train": {"multigpu", "alexnet", "preprocess"},
        "multigpu": {"multigpu", "alexnet"},
        "alexnet": {"alexnet"},
        "preprocess": {"preprocess", "alexnet"},
    }

    def allowed(file, module):
        house, other = re.split(r"[./]", file)[0], module.split(".")[0]
        return other not in below or other in below[house]

    assert violations(SOURCES, allowed) == []


def test_preprocess_imports_only_the_data_package_of_alexnet():
    def allowed(file, module):
        return not module.startswith("alexnet.") or room_of(module) == "data"

    assert violations([path for path in SOURCES if name_of(path).startswith("preprocess/")], allowed) == []


def test_rooms_of_alexnet_import_only_earlier_ones():
    rank = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
    inside = [path for path in SOURCES if name_of(path).startswith("alexnet/") and room_of(name_of(path)) != "__init__"]
    assert {room_of(name_of(path)) for path in inside} - rank.keys() == set()

    def allowed(file, module):
        room, other = room_of(file), room_of(module)
        return not module.startswith("alexnet.") or room == other or rank[other] < rank[room]

    assert violations(inside, allowed) == []


def test_each_foreign_library_has_one_home():
    def allowed(file, module):
        library = module.split(".")[0]
        if library in HOMES:
            return any(file == home or file.startswith(f"{home}/") for home in HOMES[library])
        return library in sys.stdlib_module_names or library in OWN

    assert violations(SOURCES, allowed) == []


def test_only_the_network_imports_backends():
    def allowed(file, module):
        own = file.startswith("alexnet/backends/") or file == "alexnet/training/network.py"
        return not module.startswith("alexnet.backends") or own

    assert violations(SOURCES, allowed) == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_are_absolute_and_at_the_top(path):
    tree = parsed(path)
    relative = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = [
        node.lineno for each in functions for node in ast.walk(each) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert (relative, inside) == ([], [])


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_every_file_says_what_it_is(path):
    tree = parsed(path)
    assert not tree.body or ast.get_docstring(tree)


@pytest.mark.parametrize("path", [path for path in EVERYTHING if path != Path(__file__).resolve()], ids=name_of)
def test_no_file_has_loose_ends(path):
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|except Exception|except:|# noqa|type: ignore")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if marks.search(line)] == []


def test_every_setting_is_used():
    readers = [path for path in SOURCES if name_of(path) != "alexnet/config/schema.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in readers)
    unused = [setting for setting in Config.model_fields if not re.search(rf"config\.{setting}\b", text)]
    assert unused == []

"""The house: who may import whom, where each foreign library lives, and what no file says.

Source: docs/architecture.md.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

from alexnet.config import Config

ROOT = Path(__file__).resolve().parent.parent
OWN = ("alexnet", "multigpu", "preprocess")
SOURCES = sorted(path for room in OWN for path in (ROOT / room).rglob("*.py")) + [ROOT / "train.py"]
BESIDES = ("tests", "benchmarks", "examples")
EVERYTHING = SOURCES + sorted(path for room in BESIDES for path in (ROOT / room).rglob("*.py"))

TOP_LEVEL = {
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", ".ci", "setup.py", "pyproject.toml",
    "config.yaml", "train.py", "alexnet", "multigpu", "preprocess", "tests", "benchmarks", "docs", "examples",
}  # fmt: skip

# a room of alexnet imports from earlier lines alone
ORDER = (
    ("config", "cores", "ahead", "progress", "stopwatch"),
    ("ops",),
    ("dispatch",),
    ("layers",),
    ("models",),
    ("objectives", "updates", "schedules", "augment"),
    ("hkl",),
    ("folders", "images", "devkit"),
    ("data", "sources"),
    ("compile", "labelled"),
    ("checkpoint", "recorder"),
    ("pretrained",),
    ("plots", "training"),
    ("snapshots", "evaluate"),
    ("predict", "start"),
    ("commands",),
    ("__main__",),
)
# what preprocess may know of alexnet
FILE_FORMAT = {"progress", "augment", "hkl", "folders", "images", "sources", "data"}

HOMES = {
    "numpy": OWN,
    "pytensor": ("alexnet",),
    "yaml": ("alexnet/config.py",),
    "pydantic": ("alexnet/config.py",),
    "h5py": ("alexnet/hkl.py",),
    "hickle": ("alexnet/hkl.py",),
    "safetensors": ("alexnet/checkpoint.py",),
    "matplotlib": ("alexnet/plots",),
    "tqdm": ("alexnet/recorder.py", "alexnet/progress.py"),
    "PIL": ("alexnet/images.py", "preprocess"),
    "scipy": ("alexnet/devkit.py",),
    "google": ("alexnet/pretrained/protobuf.py",),
    "onnx": tuple(f"alexnet/pretrained/onnx{part}.py" for part in ("", "_export", "_tensors", "_zoo")),
    "jax": ("alexnet/dispatch/jax", "multigpu/device/cuda.py"),
    "pycuda": ("multigpu/device/cuda.py",),
    "mpi4py": ("multigpu/mpi.py",),
    "nccl": ("multigpu/exchange/nccl.py",),
    # of the standard library: the C compiler, processes, and what must never be
    "subprocess": ("alexnet/dispatch/cpu",),
    "multiprocessing": ("multigpu", "preprocess/workers.py"),
    "pickle": (),
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree):
    """Names of the modules that `tree` imports, dotted; `from a import b` counts as a and as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(sources, allowed):
    """Sentences, one for each import of `sources` that `allowed` (file, module) says no to."""
    found = ((name_of(path), module) for path in sources for module in imports(parsed(path)))
    return sorted({f"{file} imports {module}" for file, module in found if not allowed(file, module)})


def room_of(file):
    """The room of alexnet that a file or dotted module lies in: alexnet/ops/lrn.py and alexnet.ops.lrn in ops."""
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


def test_preprocess_knows_only_the_file_format_of_alexnet():
    def allowed(file, module):
        return not module.startswith("alexnet.") or room_of(module) in FILE_FORMAT

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


def test_only_compile_knows_of_engines():
    def allowed(file, module):
        have_c = ("multigpu/exchange/half.py", "multigpu/rules/server_updates.py")
        knows = room_of(file) in ("compile", "dispatch") or file in have_c
        return not module.startswith("alexnet.dispatch") or knows

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
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if name_of(path) != "alexnet/config.py")
    unused = [setting for setting in Config.model_fields if not re.search(rf"config\.{setting}\b", text)]
    assert unused == []

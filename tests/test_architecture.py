"""The architecture: which package imports which, where third-party libraries are used, and what every file contains."""

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from alexnet.config import DEFAULTS, read_settings

ROOT = Path(__file__).resolve().parent.parent
OWN = ("alexnet", "multigpu", "preprocess")
PROGRAMS = ("train.py", "alexnet/__main__.py")           # what a user starts; they may import everything
SOURCES = sorted(path for package in OWN for path in (ROOT / package).rglob("*.py")) + [ROOT / "train.py"]
BESIDES = ("tests", "benchmarks", "experiments", "examples")
EVERYTHING = SOURCES + sorted(path for folder in BESIDES for path in (ROOT / folder).rglob("*.py"))

TOP_LEVEL = {
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "Makefile", ".ci", "setup.py",
    "pyproject.toml", "config.yaml", "train.py", "alexnet", "multigpu", "preprocess", "tests", "benchmarks",
    "experiments", "docs", "examples", "configs",
}

# A package of alexnet imports only from earlier lines.
ORDER = (
    ("native",),
    ("config",),
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
)

# arguments of update rules
CONSTANTS = ("momentum", "adagrad_epsilon", "adadelta_rho", "adadelta_epsilon", "lars_trust")

HOMES = {
    "numpy": OWN,
    "pytensor": ("alexnet",),
    "yaml": ("alexnet/config",),
    "pydantic": ("alexnet/config",),
    "h5py": ("alexnet/data/batch_file.py",),
    "hickle": ("alexnet/data/batch_file.py",),
    "safetensors": ("alexnet/run/checkpoint_format.py",),
    "matplotlib": ("alexnet/plots",),
    "PIL": ("alexnet/data/images.py", "alexnet/data/resize.py", "preprocess"),
    "scipy": ("alexnet/data/ilsvrc_devkit.py",),
    "google": ("alexnet/pretrained/protobuf.py",),
    "onnx": ("alexnet/pretrained/onnx",),
    "jax": ("alexnet/ops/lowerings", "alexnet/backends/jax", "multigpu/device"),
    "simplejpeg": ("alexnet/data/images.py",),
    "numba": ("alexnet/ops/numba_kernels.py",),
    "llvmlite": ("alexnet/ops/numba_kernels.py",),
    "pycuda": ("multigpu/device/cuda.py",),
    "mpi4py": ("multigpu/mpi",),
    "nccl": ("multigpu/exchange/nccl.py",),
    # From the standard library: the C compiler, the job monitor, processes, and modules that must not be used.
    "subprocess": ("alexnet/native", "multigpu/mpi"),
    "multiprocessing": ("multigpu", "preprocess/workers.py", "alexnet/native/main_module.py"),
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


def package_of(file):
    """Return the package of a file or dotted module of alexnet: ops for alexnet/ops/crop.py and alexnet.ops.crop."""
    parts = re.split(r"[./]", file.removesuffix(".py"))
    return parts[1] if len(parts) > 1 else None


def library_sources(package):
    """Return the files of a package without the programs."""
    return [path for path in SOURCES if name_of(path).startswith(f"{package}/") and name_of(path) not in PROGRAMS]


def run_time_imports(path, modules):
    """Yield the `modules` that a file imports when it is imported itself: not in functions, not for type checkers."""
    statements = list(parsed(path).body)
    while statements:
        node = statements.pop()
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & modules or {node.module} & modules
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & modules
        elif isinstance(node, ast.If | ast.Try | ast.With) and "TYPE_CHECKING" not in ast.dump(node):
            statements += ast.iter_child_nodes(node)


def test_top_level_is_complete():
    assert TOP_LEVEL - {path.name for path in ROOT.iterdir()} == set()


@pytest.mark.parametrize(("package", "limit"), [("alexnet", 16), ("multigpu", 14), ("benchmarks", 16)])
def test_package_is_small_enough_to_survey(package, limit):
    assert len([path for path in (ROOT / package).iterdir() if path.name != "__pycache__"]) <= limit


def test_packages_import_only_lower_ones():
    below = {
        "multigpu": {"multigpu", "preprocess", "alexnet"},
        "preprocess": {"preprocess", "alexnet"},
        "alexnet": {"alexnet"},
    }

    def allowed(file, module):
        package, other = re.split(r"[./]", file)[0], module.split(".")[0]
        return other not in below or other in below[package]

    assert violations([path for package in OWN for path in library_sources(package)], allowed) == []


def test_preprocess_imports_only_data_and_native():
    def allowed(file, module):
        return not module.startswith("alexnet.") or package_of(module) in ("data", "native")

    assert violations(library_sources("preprocess"), allowed) == []


def test_packages_of_alexnet_import_only_earlier_ones():
    rank = {package: level for level, packages in enumerate(ORDER) for package in packages}
    inside = [path for path in library_sources("alexnet") if package_of(name_of(path)) != "__init__"]
    assert {package_of(name_of(path)) for path in inside} - rank.keys() == set()

    def allowed(file, module):
        package, other = package_of(file), package_of(module)
        return not module.startswith("alexnet.") or package == other or rank[other] < rank[package]

    assert violations(inside, allowed) == []


def test_imports_have_no_cycle():
    modules = {name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for path in SOURCES}
    graph = {name: set(run_time_imports(path, modules.keys())) for name, path in modules.items()}
    list(TopologicalSorter(graph).static_order())                 # raises CycleError


def test_every_class_name_is_unique():
    names = [
        node.name for path in SOURCES for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert {name for name in names if names.count(name) > 1} == set()


def test_each_library_has_one_home():
    def allowed(file, module):
        library = module.split(".")[0]
        if library in HOMES:
            return any(file == home or file.startswith(f"{home}/") for home in HOMES[library])
        return library in sys.stdlib_module_names or library in OWN or file in PROGRAMS

    assert violations(SOURCES, allowed) == []


def test_benchmarks_and_experiments_are_independent_of_tests():
    """Only the tests that mirror a folder import from it."""
    mirrored = {"benchmarks", "experiments"}

    def allowed(file, module):
        other = module.split(".")[0]
        if file.split("/")[0] == "tests":
            return other not in mirrored or file.startswith(f"tests/{other}/")
        return other != "tests" and (other not in mirrored or other == file.split("/")[0])

    assert violations([path for path in EVERYTHING if path not in SOURCES], allowed) == []


def test_only_the_network_imports_backends():
    def allowed(file, module):
        own = file.startswith("alexnet/backends/") or file == "alexnet/training/network.py"
        return not module.startswith("alexnet.backends") or own

    assert violations(SOURCES, allowed) == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_are_absolute_and_local_ones_explained(path):
    """An import inside a function needs a comment with the reason, on its line or the one above."""
    tree = parsed(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    relative = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {
        node.lineno for each in functions for node in ast.walk(each) if isinstance(node, ast.Import | ast.ImportFrom)
    }
    without_reason = {n for n in inside if "#" not in lines[n - 1] and not lines[n - 2].lstrip().startswith("#")}
    assert (relative, without_reason) == ([], set())


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_every_file_has_a_docstring(path):
    tree = parsed(path)
    assert not tree.body or ast.get_docstring(tree)


@pytest.mark.parametrize("path", [path for path in EVERYTHING if path != Path(__file__).resolve()], ids=name_of)
def test_no_file_has_unfinished_code(path):
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|except Exception|except:|# noqa|type: ignore")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if marks.search(line)] == []


def test_text_files_are_read_and_written_with_an_encoding():
    """Otherwise the locale decides. ruff's PLW1514 finds open(), but not every read_text() and write_text()."""
    positional = {"read_text": 1, "write_text": 2}           # number of arguments with the encoding
    calls = ((name_of(path), node) for path in SOURCES for node in ast.walk(parsed(path)) if isinstance(node, ast.Call))
    without = [
        f"{file}:{call.lineno}" for file, call in calls
        if len(call.args) < positional.get(getattr(call.func, "attr", ""), 0)
        and "encoding" not in [keyword.arg for keyword in call.keywords]
    ]
    assert without == []


def test_every_setting_is_used():
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    settings = read_settings(DEFAULTS)
    del settings["first_run"]
    assert [name for name in settings if not re.search(rf"\.{name}\b", text) and name not in CONSTANTS] == []

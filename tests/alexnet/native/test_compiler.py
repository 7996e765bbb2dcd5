"""The C compiler: how it is found, the cache of compiled libraries, and running without a compiler."""

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from alexnet.native import compiler

pytestmark = pytest.mark.slow

needs_compiler = pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")
DOUBLE_IT = "void run(const float *x, float *y, long n) { for (long i = 0; i < n; i++) y[i] = 2 * x[i]; }"


def in_new_process(program, **environment):
    """Run a Python program with extra environment variables; return its output, fail if it exits with an error."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(autouse=True)
def forget():
    """Forget which libraries this process has loaded, and the warnings about the cache."""
    yield
    for function in (compiler._load, compiler.warn_of_fallback, compiler.temporary_folder):
        function.cache_clear()


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path))
    return tmp_path


@needs_compiler
def test_source_is_compiled_to_one_cached_file(empty_cache):
    double = compiler.function(DOUBLE_IT + "//once", "run", "aan", name="double")
    x, y = np.arange(5, dtype="float32"), np.empty(5, "float32")
    double(x, y, 5)
    assert y.tolist() == [0, 2, 4, 6, 8]
    assert [path.suffix for path in empty_cache.iterdir()] == [".so"]


@needs_compiler
def test_strided_array_is_refused(empty_cache):
    double = compiler.function(DOUBLE_IT, "run", "aan", name="double")
    with pytest.raises(ctypes.ArgumentError, match="C-contiguous array"):
        double(np.zeros(10, "float32")[::2], np.zeros(5, "float32"), 5)


@needs_compiler
def test_another_process_loads_the_cached_library(empty_cache):
    program = f"from alexnet.native import compiler; compiler.load({DOUBLE_IT!r}, 'double')"
    in_new_process(program)
    (compiled,) = empty_cache.iterdir()
    before = compiled.stat().st_mtime_ns
    in_new_process(program)
    assert [path.stat().st_mtime_ns for path in empty_cache.iterdir()] == [before]


@needs_compiler
def test_processes_compile_the_same_source_concurrently(empty_cache):
    program = f"from alexnet.native import compiler; compiler.load({DOUBLE_IT!r}, 'double'); print('loaded')"
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["loaded\n"] * 3
    assert len(list(empty_cache.iterdir())) == 1


@needs_compiler
def test_partial_library_never_has_the_final_name(tmp_path):
    """The fake compiler first writes a partial file and fails if one is visible under a final name."""
    cache, slow = tmp_path / "cache", tmp_path / "slow-cc"
    tear = 'for last; do [ "$previous" = -o ] && echo torn > "$last"; previous="$last"; done'
    look = f'for found in {cache}/*.so; do [ -e "$found" ] && exit 1; done'
    slow.write_text(f'#!/bin/sh\n{tear}\n{look}\nexec {compiler.compiler()[0]} "$@"\n')
    slow.chmod(0o755)
    program = f"from alexnet.native import compiler; print(compiler.load({DOUBLE_IT!r}, 'double').run)"
    assert "FuncPtr" in in_new_process(program, ALEXNET_CACHE=str(cache), CC=str(slow))


@needs_compiler
def test_compile_error_contains_the_compiler_output(empty_cache):
    with pytest.raises(compiler.CompileError, match="(?s)C compiler failed on broken.*no_such_type"):
        compiler.load("no_such_type x;", "broken")
    assert not list(empty_cache.iterdir())


@needs_compiler
def test_each_isa_is_compiled_separately(empty_cache):
    source = "int tile(void) {\n#ifdef TILE_PORTABLE\nreturn 1;\n#else\nreturn 0;\n#endif\n}"
    try:
        isa = [compiler.load(source, "tile").tile()]
        compiler.use_isa("portable")
        isa.append(compiler.load(source, "tile").tile())
    finally:
        compiler.use_isa("auto")
    assert isa == [0, 1]


def test_invalid_settings_are_refused_with_the_value():
    with pytest.raises(ValueError, match="auto, avx512, avx2, neon, portable, got 'sse'"):
        compiler.use_isa("sse")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        compiler.use_threads(0)


def test_threads_default_to_omp_num_threads_then_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert compiler.threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert compiler.threads() == len(os.sched_getaffinity(0))


COUNT_THREADS = """
int threads(void)
{
    int n = 0;
    #pragma omp parallel reduction(+ : n)
    n += 1;
    return n;
}
"""


@needs_compiler
def test_precompiled_kernels_run_on_the_requested_threads():
    """OpenMP stores the number of threads per calling thread, and precompile loads libraries in worker threads."""
    compiler.use_threads(3)
    try:
        compiler.request(COUNT_THREADS, "threads")
        compiler.precompile()
        assert compiler.load(COUNT_THREADS, "threads").threads() == 3
    finally:
        compiler.use_threads(None)


NO_COMPILER = """
import warnings
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    import numpy as np
    import alexnet
    import pytensor, pytensor.tensor as pt
    from alexnet.backends import mode_of
    from alexnet.ops import Convolution, InvertedDropout, LocalResponseNorm, MaxPool2D

    rng = np.random.default_rng(0)
    W = pytensor.shared(rng.normal(size=(3, 3, 3, 8), scale=.1).astype("float32"))
    V = pytensor.shared(rng.normal(size=(8, 4), scale=.1).astype("float32"))
    x, labels = pt.tensor("x", shape=(3, 9, 9, None)), pt.ivector("labels")
    h = pt.maximum(LocalResponseNorm()(MaxPool2D(3, 2)(Convolution()(x, W))[0]), 0).mean(axis=(1, 2))
    p = pt.special.log_softmax(V.T @ InvertedDropout(.1)(h, 1, 2), axis=0)
    cost = -p[labels, pt.arange(labels.shape[0])].mean()
    updates = [(w, w - np.float32(1) * g) for w, g in zip((W, V), pytensor.grad(cost, [W, V]))]
    train = pytensor.function([x, labels], cost, updates=updates, mode=mode_of("cpu"))
    validate = pytensor.function([x, labels], cost, mode=mode_of("cpu"))
    labels = np.arange(12, dtype="int32") % 4
    images = (rng.normal(size=(3, 9, 9, 12)) + labels).astype("float32")
    costs = [float(train(images, labels)) for _ in range(30)]
assert costs[-1] < 0.8 * costs[0], costs
print([str(one.message) for one in caught])
"""


@pytest.mark.parametrize("missing", [{"CC": "/nonexistent"}, {"PATH": "", "CC": ""}])
def test_training_without_a_compiler_warns_once(missing, tmp_path):
    output = in_new_process(NO_COMPILER, ALEXNET_CACHE=str(tmp_path), **missing)
    assert output.count("no C compiler was found") == 1 and output.count("', '") == 0
    assert "install gcc" in output
    assert not list(tmp_path.iterdir())


OPS = "tests/alexnet/ops"


@needs_compiler
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_op_tests_pass_with_each_isa(isa):
    if isa == "avx2" and "avx2" not in compiler.processor():
        pytest.skip("this processor has no AVX2")
    program = f"import pytest, sys; sys.exit(pytest.main(['-q', '-k', 'cpu', '{OPS}', '-p', 'no:cacheprovider']))"
    assert " passed" in in_new_process(program, ALEXNET_ISA=isa)


@needs_compiler
def test_compiler_without_openmp_is_used_with_one_warning(tmp_path):
    """The fake compiler rejects -fopenmp, like a compiler without the OpenMP library."""
    plain = tmp_path / "cc-without-openmp"
    plain.write_text(f'#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec {compiler.compiler()[0]} "$@"\n')
    plain.chmod(0o755)
    program = f"""
from alexnet.native import compiler
for name in ("one", "two"):
    assert compiler.load({DOUBLE_IT!r} + "//" + name, name).run
"""
    output = in_new_process(program, ALEXNET_CACHE=str(tmp_path / "cache"), CC=str(plain))
    assert output.count("kernels run on one thread") == 1


def test_broken_compiler_is_a_compile_error(tmp_path):
    program = """
import numpy as np, pytensor, pytensor.tensor as pt
from alexnet.backends import mode_of
from alexnet.native.compiler import CompileError
from alexnet.ops import LocalResponseNorm
x = pt.tensor4("x")
try:
    pytensor.function([x], LocalResponseNorm()(x), mode=mode_of("cpu"))(np.ones((1, 1, 1, 1), "float32"))
except CompileError as error:
    print(error)
"""
    assert "the C compiler failed on lrn-" in in_new_process(program, ALEXNET_CACHE=str(tmp_path), CC="false")


@needs_compiler
def test_unwritable_cache_falls_back_with_one_warning(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "file"))          # for root, permissions do not apply
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="cannot be cached in .*file .*set ALEXNET_CACHE to a folder") as warned:
        for name in ("one", "two"):
            compiler.load(DOUBLE_IT, name)
    assert len(warned) == 1
    folder = tmp_path / f"alexnet-{os.getuid()}"
    assert len(list(folder.glob("*.so"))) == 2 and folder.stat().st_mode & 0o777 == 0o700


@needs_compiler
@pytest.mark.parametrize("prepare", [
    lambda path, other: path.touch(), lambda path, other: (path.mkdir(), path.chmod(0o777)),
    lambda path, other: (other.mkdir(), path.symlink_to(other)), lambda path, other: path.symlink_to(other),
], ids=["a file", "a folder of others", "a link", "a link to nothing"])
def test_fallback_that_another_user_has_prepared_is_not_used(tmp_path, monkeypatch, prepare):
    (tmp_path / "file").touch()
    name = f"alexnet-{os.getuid()}"
    prepare(tmp_path / name, tmp_path / "other")
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="set ALEXNET_CACHE to a folder"):
        assert compiler.load(DOUBLE_IT, "prepared").run
    (folder,) = tmp_path.glob(f"{name}-*")
    assert folder.stat().st_mode & 0o777 == 0o700 and len(list(folder.glob("*.so"))) == 1
    compiler.temporary_folder(name).cleanup()
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
def test_no_place_for_the_cache_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with (pytest.warns(RuntimeWarning, match="set ALEXNET_CACHE"),
          pytest.raises(compiler.CacheError, match="stored neither in .* nor below TMPDIR .*: set ALEXNET_CACHE")):
        compiler.load(DOUBLE_IT, "refused")


@needs_compiler
@pytest.mark.parametrize(("place", "mode"), [
    ("above/cache", 0o777), ("above/cache", 0o1777), ("above/cache", 0o775), ("above", 0o777),
])
def test_cache_that_others_may_write_is_not_used(tmp_path, monkeypatch, place, mode):
    """A library in it would run as code of this process."""
    cache = tmp_path / "above" / "cache"
    monkeypatch.setenv("ALEXNET_CACHE", str(cache))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compiler._compiled(DOUBLE_IT, "planted", "auto", cache)
    (tmp_path / place).chmod(mode)
    with pytest.warns(RuntimeWarning, match=f"others may write to it: chmod go-w {tmp_path / place}"):
        used = compiler.load(DOUBLE_IT, "planted")
    assert Path(used._name).parent == tmp_path / f"alexnet-{os.getuid()}"


def test_new_cache_is_private(tmp_path):
    assert compiler.private(tmp_path / "above" / "cache").stat().st_mode & 0o777 == 0o700


@needs_compiler
@pytest.mark.parametrize("damage", [
    lambda whole: b"", lambda whole: whole[:3000], lambda whole: whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
], ids=["empty", "cut off", "changed"])
def test_damaged_library_is_compiled_again(empty_cache, damage):
    program = f"from alexnet.native import compiler; compiler.load({DOUBLE_IT!r}, 'double'); print('loaded')"
    in_new_process(program)
    (compiled,) = empty_cache.iterdir()
    whole = compiled.read_bytes()
    compiled.write_bytes(damage(whole))
    assert in_new_process(program) == "loaded\n"
    assert compiled.read_bytes() == whole


@needs_compiler
def test_full_disk_is_an_error_of_the_cache(empty_cache, monkeypatch):
    """The compiler reports it in its output only."""
    failed = subprocess.CompletedProcess([], 1, "", "ld: final link failed: No space left on device")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(OSError, match="No space left on device"):
        compiler._run([], empty_cache)


@pytest.mark.parametrize("home, folder", [("/", "/.cache/alexnet"), (None, None), ("~", "/.cache/alexnet")])
def test_cache_has_a_place_without_a_home(home, folder, monkeypatch):
    for name in ("ALEXNET_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home:
        monkeypatch.setenv("HOME", home)
    assert compiler.cache_folder().is_absolute()
    assert folder in (None, str(compiler.cache_folder()))

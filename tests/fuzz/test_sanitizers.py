"""The sanitizers find an error in a kernel: see sanitizers.py, which runs the kernels of the package."""

import subprocess
import sys

import pytest

from tests.fuzz import sanitizers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sanitizers.available(), reason="needs gcc with its sanitizers"),
]

PROGRAM = """
import sys
import numpy as np
from alexnet.native import compiler
compiler.function(sys.argv[1], "kernel", "an", name="wrong")(np.zeros(8, "float32"), 8)
"""
KERNELS = {
    "address": ("x[n] = 1;", "heap-buffer-overflow"),
    "undefined": ("x[0] = 1 << (int)n * 4;", "shift exponent 32 is too large"),
    "thread": ('_Pragma("omp parallel") for (long i = 0; i < n; i++) x[0] += i;', "data race"),
    "none": ('_Pragma("omp parallel for schedule(dynamic)") for (long i = 0; i < n; i++) x[i] += i;', ""),
}


@pytest.mark.parametrize(("sanitizer", "name"), [
    ("address", "address"), ("address", "undefined"), ("address", "none"), ("thread", "thread"), ("thread", "none"),
])
def test_error_is_found(sanitizer, name, tmp_path):
    statement, message = KERNELS[name]
    source = f"void kernel(float *x, long n) {{ {statement} }}"
    command, variables = sanitizers.prepared(sanitizer, [sys.executable, "-c", PROGRAM, source], tmp_path, "auto")
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode == 0) == (name == "none"), done.stderr
    assert message in done.stderr

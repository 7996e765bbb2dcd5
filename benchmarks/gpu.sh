#!/bin/sh
# On a bare CUDA machine, run what only a GPU can show: the tests marked `gpu` and benchmarks/gpu.py.
#
#     benchmarks/gpu.sh --list [INSTALLED]     print the packages to bring, without those in INSTALLED
#     benchmarks/gpu.sh WHEELS [RESULTS]       install what is missing from the folder WHEELS, then run
#     benchmarks/gpu.sh registry [RESULTS]     the same with packages from pip's registry
#     benchmarks/gpu.sh --cpu WHEELS|registry [RESULTS]     try this script without a GPU: an emulated CUDA driver,
#                                                           JAX on the CPU, small sizes
#
# INSTALLED is what `python3 -m pip freeze` prints on the machine. PYTHON (default: python3) is the interpreter. Packages
# are installed into its environment; a Python outside a virtual environment gets one, build/gpu, which sees the
# packages that the machine has. PyCUDA is compiled once, in under a minute, and kept there.
#
# RESULTS (default: gpu_results) gets versions.txt, install.log, tests.log, tests.xml, gpu.log and gpu.json. Everything
# ends within LIMIT seconds (default: 600). Exit status: 0 all passed, 1 a test failed or a row was not measured, 2 the
# script could not run.
set -eu
here=$PWD
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-600}
began=$(date +%s)

fail() {
    echo "gpu.sh: $1" >&2
    exit 2
}

# A path of the command line, which is relative to the folder that the script was started in.
absolute() {
    case $1 in
        /*) echo "$1" ;;
        *) echo "$here/$1" ;;
    esac
}

# Seconds left of LIMIT, at least one.
left() {
    seconds=$((LIMIT - $(date +%s) + began))
    echo $((seconds > 1 ? seconds : 1))
}

# The requirements in pyproject.toml, and those of the tests.
requirements() {
    "$PYTHON" - <<'EOF'
import tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["dependencies"], "pytest>=8", "pytest-timeout", sep="\n")
EOF
}

# What PyCUDA needs, and what its source archive is built with. PyCUDA itself has no wheel.
pycuda_list=tests/cuda_emulator/requirements.txt
pycuda_requirements() {
    grep -v -e '^#' -e '^pycuda' "$pycuda_list"
    printf '%s\n' setuptools wheel
}

# Resolved for Python 3.12 on x86-64 Linux, which most CUDA machines have. JAX, PyTorch and CUDA's libraries belong to
# the machine.
list_packages() {
    platforms=$(printf -- '--platform=manylinux_2_%s_x86_64 ' 39 35 34 31 28 27 24 17)
    target="--python-version=3.12 --implementation=cp $platforms--platform=manylinux2014_x86_64"
    echo "# python3 -m pip download --no-deps -d WHEELS -r THIS_LIST $target"
    report=$(mktemp)
    { requirements; pycuda_requirements; } >"$report.txt"
    # shellcheck disable=SC2086
    "$PYTHON" -m pip install --quiet --dry-run --ignore-installed --target=unused --only-binary=:all: $target \
        --report "$report" -r "$report.txt" >&2 || fail "pip found no set of packages"
    "$PYTHON" - "$report" "$report.txt" "$1" "$(sed -n 's/^pycuda==//p' "$pycuda_list")" <<'EOF'
import json, sys
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name
report, given, freeze = (open(path, encoding="utf-8").read() for path in sys.argv[1:4])
found = [each["metadata"] for each in json.loads(report)["install"]]
packages = {canonicalize_name(each["name"]): each["version"] for each in found} | {"pycuda": sys.argv[4]}
installed = dict(line.split("==") for line in freeze.splitlines() if "==" in line)
installed = {canonicalize_name(name): version for name, version in installed.items()}
texts = given.splitlines() + [text for each in found for text in each.get("requires_dist", [])]
needs = [need for need in map(Requirement, texts) if need.marker is None or need.marker.evaluate({"extra": ""})]
unmet = {canonicalize_name(need.name) for need in needs
         if not need.specifier.contains(installed.get(canonicalize_name(need.name), "0"), prereleases=True)}
print(*(f"{name}=={packages[name]}" for name in sorted(packages) if name in unmet or name not in installed), sep="\n")
EOF
    rm "$report" "$report.txt"
}

device=cuda0
case ${1:-} in
    --list) list_packages "$(absolute "${2:-/dev/null}")"; exit ;;
    --cpu) device=cpu; shift ;;
esac
wheels=${1:-}
results=$(absolute "${2:-gpu_results}")
case $wheels in
    "" | -*) fail "expected --list, a folder of wheels, or registry; the head of this file explains them" ;;
    registry) ;;
    *)
        PIP_NO_INDEX=1
        PIP_FIND_LINKS=$(absolute "$wheels")
        [ -d "$PIP_FIND_LINKS" ] || fail "there is no folder $wheels; --list prints what it must hold"
        export PIP_NO_INDEX PIP_FIND_LINKS
        ;;
esac
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed, got $PYTHON"
[ $device = cpu ] || "$PYTHON" -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2>/dev/null ||
    fail "there is no CUDA driver (libcuda.so.1); --cpu tries this script without a GPU"
mkdir -p "$results"

# ---- install

if "$PYTHON" -c 'import sys; sys.exit(sys.prefix != sys.base_prefix)'; then
    "$PYTHON" -m venv --system-site-packages build/gpu || fail "$PYTHON -m venv build/gpu failed"
    PYTHON=$PWD/build/gpu/bin/python
fi

install() {
    timeout "$(left)" "$PYTHON" -m pip install --disable-pip-version-check "$@" >>"$results/install.log" 2>&1 ||
        fail "pip could not install the packages: $(tail -n 1 "$results/install.log")"
}

jax_works() {
    "$PYTHON" -c "import jax; jax.devices('${device%0}')" >>"$results/install.log" 2>&1
}

: >"$results/install.log"
requirements >"$results/requirements.txt"
install -r "$results/requirements.txt"
rm "$results/requirements.txt"
if ! jax_works; then
    case $device in
        cpu) install "jax>=0.8" ;;
        *) install "jax[cuda13]>=0.8" ;;
    esac
    jax_works || fail "JAX finds no ${device%0} device: $(tail -n 1 "$results/install.log")"
fi

# The PyCUDA that the emulator's builder compiles uses whichever libcuda.so.1 the process finds: the driver's, unless
# the emulator's environment names its own.
if [ $device = cpu ] || ! "$PYTHON" -c 'import pycuda.driver' 2>/dev/null; then
    "$PYTHON" -m tests.cuda_emulator.build >>"$results/install.log" 2>&1
    environment=$("$PYTHON" - $device 2>>"$results/install.log" <<'EOF'
import os, shlex, sys
from tests.cuda_emulator import find, path_before
emulator = find()
settings = {"PYTHONPATH": path_before(emulator.packages, "PYTHONPATH")}
if sys.argv[1] == "cpu":
    settings = emulator.environment(devices=2)
print("export", *(f"{name}={shlex.quote(value)}" for name, value in settings.items()))
EOF
    ) || fail "PyCUDA could not be built: $(tail -n 1 "$results/install.log")"
    eval "$environment"
fi

# ---- run

# Run a command within the given seconds; its output goes to the terminal and to RESULTS/NAME.log.
run() {
    name=$1
    seconds=$2
    shift 2
    { timeout -k 5 "$seconds" "$@" 2>&1 || echo "$?" >"$results/status"; } | tee "$results/$name.log"
    if [ -e "$results/status" ]; then
        status=$(cat "$results/status")
        rm "$results/status"
        failed="$failed $name (status $status)"
    fi
}

{
    git log -1 --format='commit %h of %cs' 2>/dev/null || true
    nvidia-smi 2>/dev/null || true
    "$PYTHON" --version
    "$PYTHON" -m pip freeze --disable-pip-version-check
} >"$results/versions.txt"

failed=
quick=
[ $device = cuda0 ] || quick="--quick --devices cpu"
export GPU_TESTS_DEVICE=$device PYTHONUNBUFFERED=1
marked=$(grep -rl --include='test_*.py' 'pytest\.mark\.gpu' tests)         # others import what is not installed
run tests $(($(left) / 2)) "$PYTHON" -m pytest -m gpu $marked -p no:cacheprovider --junitxml="$results/tests.xml"
run gpu "$(left)" "$PYTHON" -m benchmarks.gpu $quick --json "$results/gpu.json"
echo "gpu.sh: $(($(date +%s) - began)) s; results in $results"
[ -z "$failed" ] || { echo "gpu.sh: not passed:$failed" >&2; exit 1; }

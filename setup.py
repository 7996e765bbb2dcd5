"""The package, its dependencies and extras.

    pip install -e ".[test]"

PyCUDA is an extra, `cuda`: it can be neither built nor imported without CUDA.
"""

from pathlib import Path
from shutil import copyfile

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithDefaults(build_py):
    """Copies config.yaml into the package, where an installed one looks for it; a source tree has it at the top."""

    def run(self):
        super().run()
        if not self.editable_mode:
            copyfile("config.yaml", Path(self.build_lib, "alexnet", "config.yaml"))


setup(
    name="alexnet-pytensor",
    version="0.1.0",
    description="AlexNet on PyTensor: a port of theano_alexnet that trains with parallel data loading",
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    packages=find_packages(include=["alexnet", "alexnet.*", "multigpu", "multigpu.*", "preprocess", "preprocess.*"]),
    package_data={"": ["*.c", "*.h", "*.cu", "*.ptx", "*.txt"]},
    cmdclass={"build_py": BuildWithDefaults},
    install_requires=[
        "pytensor>=3.0.7,<3.4",          # 3.0.7, 3.1.3, 3.2.4, 3.3.0 and 3.3.8 are tested
        "numpy",
        "pillow",
        "scipy",
        "hickle>=5",
        "h5py>=3",
        "pyyaml",
        "pydantic>=2.5",
        "safetensors>=0.4",
        "tqdm",
        "matplotlib>=3.7",
        "protobuf>=4.22",
    ],
    extras_require={
        "cuda": ["pycuda", "jax[cuda13]>=0.8"],
        "mpi": ["mpi4py"],
        "nccl": ["nccl4py"],
        "tensorboard": ["tensorboardX"],
        "onnx": ["onnx>=1.16"],
        "bench": ["torch"],
        "test": [
            "jax>=0.8", "mpi4py>=4", "mpich", "onnx>=1.16", "onnxruntime", "pytest>=8", "pytest-timeout",
            "pytest-xdist>=3.7", "mypy>=1.13", "ruff",
        ],
    },
)

"""Build step that pyproject.toml cannot express: the package gets a copy of config.yaml."""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithDefaults(build_py):
    """Copies config.yaml into the package, where an installed one looks for it; a source tree has it at the top."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copyfile("config.yaml", Path(self.build_lib, "alexnet", "config.yaml"))


setup(cmdclass={"build_py": BuildWithDefaults})

"""Puts conf/, a folder of the repository, into the package of a wheel. Everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # an editable install reads conf/ where it is
            target = Path(self.build_lib, "blink_exp", "conf")
            shutil.rmtree(target, ignore_errors=True)  # build/ may hold files of an earlier build that the tree no longer has
            shutil.copytree("conf", target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithConf})

"""What pyproject.toml cannot say: the settings at the top of the repository ship in the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSettings(build_py):
    """Copies pipeline.toml into the wheel; an editable installation reads the repository's own."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copyfile("pipeline.toml", Path(self.build_lib, "hfnet_distill", "pipeline.toml"))


setup(cmdclass={"build_py": BuildWithSettings})

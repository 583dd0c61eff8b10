"""What a wheel holds of `mt_dnn`: the methods and the Trainer, for people with training code of their own.

The other files need folders of this checkout (`tasks`, `module`, `data_utils`, `experiments`), whose names are no
library's to take.
"""

from setuptools import setup
from setuptools.command.build_py import build_py

AT_THE_TOP = ("__init__", "hf_trainer")


class BuildLibrary(build_py):
    """Leaves out of the top of `mt_dnn` what is not for a library."""

    def find_package_modules(self, package, package_dir):  # type: ignore[no-untyped-def]
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if package != "mt_dnn" or module[1] in AT_THE_TOP]


setup(cmdclass={"build_py": BuildLibrary})

"""Selects what the wheel holds of `mt_dnn`: the methods and the Trainer, for users with their own training code.

The other files of `mt_dnn` import folders of the checkout (`tasks`, `module`, `data_utils`), whose names are too
general to be installed into an environment.
"""

from setuptools import setup
from setuptools.command.build_py import build_py

TOP_FILES = ("__init__", "hf_trainer")


class BuildLibrary(build_py):
    """Leaves out the top-level files of `mt_dnn` that are not part of the library."""

    def find_package_modules(self, package, package_dir):  # type: ignore[no-untyped-def]
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if package != "mt_dnn" or module[1] in TOP_FILES]


setup(cmdclass={"build_py": BuildLibrary})

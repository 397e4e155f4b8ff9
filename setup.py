"""Builds the optional CPU kernels; everything else stands in pyproject.toml.

Each level of instructions becomes one plain shared library beside its loader, without Python's or torch's symbols in
it: a wheel serves every Python 3. Where no C++ compiler is found, or it fails, the package is installed without.
"""

from __future__ import annotations

import copy
import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

KERNELS = Path("foveate/ops/native/kernels")
#: Flags by architecture and level. -ffast-math is left out on purpose: linked into a shared library it changes how the
#: whole process treats denormal numbers.
LEVELS = {
    "x86_64": {  # what compiles longest goes first: levels are compiled side by side
        "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        "v3": ["-march=x86-64-v3"],
        "v2": ["-march=x86-64-v2"],
    },
    "aarch64": {"armv8": ["-march=armv8-a"]},
}
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
# Python asks for debug information (-g), which takes the compiler three times as long as the code.
FLAGS += ["-g0", "-Wno-psabi", "-Wno-maybe-uninitialized"]


def extensions() -> list[Extension]:
    """One for each level of this architecture; none where the compiler is not GCC or Clang."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if sys.platform == "win32":
        return []
    # macOS's compiler has no OpenMP: the kernels then run on one thread.
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    return [
        Extension(
            f"foveate.ops.native._kernels_{level}",
            sources=sorted(str(source) for source in KERNELS.glob("*.cpp")),
            depends=sorted(str(header) for header in KERNELS.glob("*.h")),
            language="c++",
            extra_compile_args=[*FLAGS, *flags, *openmp],
            extra_link_args=openmp,
            optional=True,
        )
        for level, flags in LEVELS.get(machine, {}).items()
    ]


class Build(build_ext):
    """Plain shared libraries: no module function to export, no Python version in the name; levels side by side."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext: Extension) -> None:
        # Objects are named by their sources, which all levels share: in one folder, levels that are built at the same
        # time would link each other's.
        own = copy.copy(self)
        own.build_temp = str(Path(self.build_temp, ext.name))
        super(Build, own).build_extension(ext)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + (".dll" if sys.platform == "win32" else ".so")


class Wheel(bdist_wheel):
    """One wheel for every Python 3 of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=extensions(), cmdclass={"build_ext": Build, "bdist_wheel": Wheel})

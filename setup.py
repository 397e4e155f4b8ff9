"""Builds the optional CPU kernels; everything else stands in pyproject.toml.

Each level of instructions becomes one plain shared library beside its loader, without Python's or torch's symbols in
it: a wheel serves every Python 3. Where no C++ compiler is found, or it fails, the package is installed without.
"""

from __future__ import annotations

import copy
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Semaphore
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

KERNELS = Path("foveate/ops/native/kernels")
#: Compilers that may run at a time, of all levels together.
SLOTS = Semaphore(os.cpu_count() or 1)
#: "all": build every level into a source tree too, not only that of this processor.
ENVIRONMENT_VARIABLE = "FOVEATE_LEVELS"
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


def level_here(compiler: str) -> str | None:
    """The best level that this x86-64 processor runs, by what its compiler takes for native; None: it does not say."""
    if shutil.which(compiler) is None:
        return None
    asked = [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    defined = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("#define ")}
    if {f"__AVX512{part}__" for part in ("F", "BW", "CD", "DQ", "VL")} <= defined:
        return "v4"
    return "v3" if {"__AVX2__", "__FMA__", "__BMI2__"} <= defined else "v2"


class Build(build_ext):
    """Plain shared libraries: no module function to export, no Python version in the name; levels side by side.

    Wheels hold all levels, a source tree the one of the processor that it is built on: a third of the time.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        self.in_tree = self.inplace or self.editable_mode  # setuptools forgets the first while it builds
        super().run()

    def build_extensions(self) -> None:
        if self.in_tree and os.environ.get(ENVIRONMENT_VARIABLE) != "all":
            compiler = getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_cxx
            level = level_here(compiler[0])
            here = [ext for ext in self.extensions if ext.name.endswith(f"_{level}")]
            self.extensions = here or self.extensions
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        # distutils compiles one source after the other.
        own_compiler = copy.copy(self.compiler)

        def compiled(source: str, **options: Any) -> list[str]:
            with SLOTS:
                return type(own_compiler).compile(own_compiler, [source], **options)

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return list(chain.from_iterable(pool.map(partial(compiled, **options), sources)))

        # Objects are named by their sources, which all levels share: in one folder, levels that are built at the same
        # time would link each other's.
        own = copy.copy(self)
        own.compiler = own_compiler
        own_compiler.compile = compile_all
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

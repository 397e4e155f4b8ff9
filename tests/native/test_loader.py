"""Which kernels are loaded, and that nothing needs them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foveate.errors import InvalidValue
from foveate.ops import backend, native
from tests.agreement import needs_kernels

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)


WITHOUT = """
import torch
from foveate.ops import native, backend
from foveate.ops.selective_scan import selective_scan
assert not native.AVAILABLE and native.chosen() == ""
u, A, B, C = torch.randn(1, 4, 9), -torch.rand(4, 3), torch.randn(1, 3, 9), torch.randn(1, 3, 9)
y = selective_scan(u, u.abs(), A, B, C)
with backend("reference"):
    torch.testing.assert_close(y, selective_scan(u, u.abs(), A, B, C))
try:
    backend("native").__enter__()
except ValueError as error:
    print(error)
"""


def test_without_kernels_everything_runs_and_native_says_so():
    done = python(WITHOUT, FOVEATE_NATIVE="none")
    assert done.returncode == 0, done.stderr
    assert "no kernels" in done.stdout


def test_what_is_missing_has_its_cost_and_a_way_out():
    done = python("from foveate.ops import native; print(native.state())", FOVEATE_NATIVE="none")
    assert "unset FOVEATE_NATIVE" in done.stdout
    assert "slower" in done.stdout


def test_an_unknown_level_is_refused_by_name():
    done = python("import foveate.ops", FOVEATE_NATIVE="v9")
    assert "FOVEATE_NATIVE='v9' is not built here" in done.stderr


@needs_kernels
@pytest.mark.parametrize("level", sorted(native.built().keys() - {native.chosen()}))
def test_every_other_level_that_runs_here_agrees(level: str):
    if level == "v4" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("this processor has no AVX-512")
    tests = [str(ROOT / "tests" / "native" / f"test_{name}.py") for name in native.kernels()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FOVEATE_NATIVE": level, "FOVEATE_EXAMPLES": "15"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "equals", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@needs_kernels
@pytest.mark.skipif(shutil.which("objdump") is None, reason="binutils are not installed")
@pytest.mark.parametrize("level", sorted(native.built().keys() & {"v2", "v3"}))
def test_a_library_holds_instructions_of_its_own_level_only(level: str):
    """Levels are built at the same time: objects of another level, once linked, crash older processors."""
    code = subprocess.run(["objdump", "-d", native.built()[level]], capture_output=True, text=True, check=True).stdout
    assert "%xmm" in code
    assert "%zmm" not in code
    assert level == "v3" or "%ymm" not in code


@needs_kernels
def test_denormal_numbers_are_left_alone():
    """A library linked with -ffast-math would have the whole process flush them to zero."""
    assert float(torch.tensor(1e-40) * 1.0) != 0.0


@needs_kernels
def test_kernels_run_on_torchs_own_threads():
    """One OpenMP runtime in the process: two would fight over the cores."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("this system does not list what a process has loaded")
    code = "import foveate.ops, pathlib; print(pathlib.Path('/proc/self/maps').read_text())"
    files = {Path(line.split()[-1]).name for line in python(code).stdout.splitlines() if "/" in line}
    assert any("_kernels_" in name for name in files)
    assert len({name for name in files if "omp" in name}) == 1, files


def test_native_without_kernels_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "AVAILABLE", False)
    with pytest.raises(InvalidValue, match="no kernels are built"), backend("native"):
        pass


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("g++"), reason="levels are those of x86-64")
@pytest.mark.parametrize(
    ("command", "levels", "count"),
    [("build_ext --inplace", "", 1), ("build_ext --inplace", "all", 3), ("bdist_wheel", "", 3)],
)
def test_a_source_tree_has_one_level_and_a_wheel_all(tmp_path: Path, command: str, levels: str, count: int):
    sources(tmp_path)
    asked, compiler = tmp_path / "asked", tmp_path / "compiler"
    real = shutil.which("g++")
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *-dM*) exec {real} "$@";; esac\necho "$*" >> {asked}\nexit 1\n')
    compiler.chmod(0o755)
    environment = {**os.environ, "CC": str(compiler), "CXX": str(compiler), "FOVEATE_LEVELS": levels}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *command.split()], cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0
    assert len(set(re.findall(r"-march=x86-64-(v\d)", asked.read_text()))) == count


def sources(folder: Path) -> None:
    """What the kernels are built from, without libraries."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    own = Path("foveate", "ops", "native")
    shutil.copytree(ROOT / own, folder / own, ignore=shutil.ignore_patterns("*.so"))


@pytest.mark.skipif(shutil.which("make") is None, reason="the build is tried from a source tree")
def test_a_failing_compiler_leaves_a_package_without_kernels(tmp_path: Path):
    sources(tmp_path)
    environment = {**os.environ, "CC": "false", "CXX": "false"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("_kernels_*"))

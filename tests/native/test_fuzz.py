"""The fuzz binary: random cases of every kernel under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = "-std=c++17 -g1 -march=x86-64-v3 -fno-math-errno -fno-trapping-math -ffp-contract=fast -fopenmp -Wall -Wextra"
FLAGS += " -Werror -Wno-psabi -Wno-maybe-uninitialized -Wno-unknown-pragmas"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None or os.uname().machine != "x86_64", reason="no C++ compiler for x86-64 here"
)


def build(place: Path, optimization: str) -> Path:
    sources = sorted(FUZZ.glob("*.cpp"))

    def compiled(source: Path) -> Path:
        target = place / f"{source.stem}.o"
        made = ["-c", str(source), "-o", str(target)]
        subprocess.run([COMPILER, optimization, *FLAGS.split(), *SANITIZE, *made], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = [str(o) for o in pool.map(compiled, sources)]
    subprocess.run([COMPILER, *SANITIZE, "-fopenmp", *objects, "-o", str(place / "fuzz")], check=True)
    return place / "fuzz"


def run(binary: Path, cases: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}  # others may want the cores
    done = subprocess.run([binary, str(cases)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1:] + done.stderr.splitlines()[:30]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)  # compiling under sanitizers takes minutes where others want the cores
def test_random_cases_have_no_finding(tmp_path: Path):
    ended = run(build(tmp_path, "-O0"), 300)  # few cases: compiling is what takes long
    for source in FUZZ.glob("*.cpp"):
        assert source.stem == "main" or f"{source.stem}: 300 cases without a finding" in ended


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_cases_have_no_finding(tmp_path: Path):
    run(build(tmp_path, "-O1"), 100_000)

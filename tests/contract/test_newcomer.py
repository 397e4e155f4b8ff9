"""Registering is all it takes: the mixer of docs/add-a-system.md, as a plug-in, is listed and tested as it is."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foveate.mixers import Mixer

from .cases import MixerCase
from .checks import checks_for, run_check

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add-a-system.md"


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """An installed distribution, as importlib.metadata sees it, whose one module holds the page's first example."""
    source = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert source, "the page has no example"
    assert len(source[1].splitlines()) < 60, "adding a mixer takes 60 lines or more"
    (tmp_path / "newcomer.py").write_text(source[1], encoding="utf-8")
    record = tmp_path / "newcomer-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: newcomer\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[foveate.plugins]\nnewcomer = newcomer\n")
    return tmp_path


def run(plugin: Path, *command: str) -> str:
    """Run a command with the plug-in installed; its output."""
    path = os.pathsep.join(p for p in (str(plugin), os.environ.get("PYTHONPATH", "")) if p)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_a_newcomer_is_listed_and_collected(plugin: Path) -> None:
    listed = run(plugin, "-c", "import foveate; print(foveate.list_names('mixer', streaming=True, causal=True))")
    assert "token_shift" in listed
    chosen = ("tests/contract/test_mixers.py", "tests/contract/test_models.py", "-k", "token_shift")
    collected = run(plugin, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *chosen)
    for test in (
        "test_mixer[token_shift-the_future_does_not_matter]",
        "test_mixer[token_shift-streaming_equals_forward]",
        "test_mixer[token_shift-refuses_a_context]",
        "test_mixer_as_a_model[token_shift-forecast-every_parameter_learns]",
    ):
        assert test in collected


def test_the_example_of_the_contracts_page_runs() -> None:
    text = (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert examples
    for source in examples:
        exec(compile(source, "docs/contracts.md", "exec"), {"__name__": "example"})


def test_the_pages_example_keeps_its_promises(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("newcomer", plugin / "newcomer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "newcomer", module)
    spec.loader.exec_module(module)
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Mixer) and c is not Mixer]
    (cls,) = classes
    results = [run_check(one, MixerCase(cls.__name__, cls)) for one in checks_for("mixer", cls.spec)]
    assert not [r for r in results if r.status != "passed"]

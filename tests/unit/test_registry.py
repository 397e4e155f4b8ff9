"""The registry: names without torch, nearest names, options, plug-ins, system records."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import foveate
from foveate import registry
from foveate.errors import nearest

TORCH_FREE = """
import sys, foveate
names = foveate.list_names(task="forecast", causal=True)
foveate.list_systems(); foveate.get_system("lightning_attention")
assert names, "nothing is listed"
assert "torch" not in sys.modules, "torch was imported"
assert "numpy" not in sys.modules, "numpy was imported"
"""


def test_listing_imports_nothing_heavy():
    subprocess.run([sys.executable, "-c", TORCH_FREE], check=True)


def test_filters():
    assert "mamba" in foveate.list_names("mixer", causal=True, streaming=True, rank=1)
    assert "mamba" not in foveate.list_names("mixer", causal=False)
    assert "timesnet" in foveate.list_names(task="forecast")
    assert "timesnet" not in foveate.list_names("mixer")
    assert foveate.list_names("mixer", rank=3) == [e.name for e in registry.entries("mixer") if 3 in e.spec.ranks]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: foveate.create("mambo", "mixer", dim=8), LookupError, "unknown mixer 'mambo': did you mean 'mamba'"),
        (lambda: foveate.create("mamba", "mixer", dim=8, heads=2), TypeError, "'mamba' has no option 'heads'"),
        (lambda: foveate.create("mamba", "mixer"), TypeError, "'mamba' needs dim: give it"),
        (lambda: foveate.create("softmax_attention", "mixer", dim=8, num_heads=3), ValueError, "must divide dim=8"),
        (lambda: foveate.create("softmax_attention", dim=8), LookupError, "say kind='mixer' or kind='op'"),
        (lambda: foveate.create("selective_scan", dim=8), TypeError, "takes tensors when called"),
        (lambda: foveate.list_names("mixr"), LookupError, "unknown kind 'mixr'"),
        (lambda: foveate.list_names(task="forcast"), LookupError, "unknown task 'forcast': did you mean 'forecast'"),
        (lambda: foveate.get_system("timesnt"), LookupError, "did you mean 'timesnet'"),
        (lambda: registry.register("thing", "x"), ValueError, "kind='thing' cannot be registered"),
    ],
)
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_plug_in_joins_without_being_imported(tmp_path, monkeypatch):
    (tmp_path / "other.py").write_text(
        "raise RuntimeError('imported')\n"
        "@register('mixer', 'others_own')\n"
        "class Own(Mixer):\n"
        "    '''Somebody else's mixer.'''\n"
        "    spec = MixerSpec(causal='strict', ranks=(1, 2), order=Order(flops=1.5))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint("mine", "other", "foveate.plugins")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == "foveate.plugins" else [])
    registry._table.cache_clear()
    try:
        entry = registry.find("others_own")
        assert entry.spec.order.flops == 1.5
        assert entry.summary == "Somebody else's mixer."
        assert entry.file == tmp_path / "other.py"
    finally:
        registry._table.cache_clear()


def test_the_same_name_twice_is_refused(tmp_path):
    file = tmp_path / "twice.py"
    file.write_text("@register('op', 'a')\ndef f():\n    pass\n@register('op', 'a')\ndef g():\n    pass\n")
    assert [e.attribute for e in registry.scan_file(file, "twice")] == ["f", "g"]


def test_a_system_knows_its_files_and_whether_there_is_more_than_a_record():
    for slug in foveate.list_systems():
        system = foveate.get_system(slug)
        assert all(file.exists() for file in system.files), slug
        assert system.planned == (not system.provides and slug != "beyond_llms"), (
            slug
        )  # it analyses and registers nothing


def test_nearest_names_forgive_typos_and_find_parts():
    assert nearest("timesnt", ["timesnet", "mamba"]) == ["timesnet"]
    assert "softmax_attention" in nearest("softmax", ["softmax_attention", "mamba"])
    assert nearest("zzz", ["timesnet"]) == []

"""The registry: names without torch, nearest names, options, systems and what finds them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import foveate
from foveate import registry
from foveate.errors import nearest

TORCH_FREE = """
import sys, foveate
names = foveate.list_names(task="forecast", causal=True)
assert foveate.list_systems("linear attention", kind="mixer")
foveate.list_systems(status="working")
system = foveate.get_system("lightning_attention")
system.status, system.measured, system.checks, foveate.cite("mamba2")
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


def test_a_system_knows_its_files_and_whether_there_is_more_than_a_record():
    for slug in foveate.list_systems():
        system = foveate.get_system(slug)
        assert all(file.exists() for file in system.files), slug
        assert system.planned == (not system.provides and slug != "beyond_llms")  # which analyses, registers nothing


def test_nearest_names_forgive_typos_and_find_parts():
    assert nearest("timesnt", ["timesnet", "mamba"]) == ["timesnet"]
    assert "softmax_attention" in nearest("softmax", ["softmax_attention", "mamba"])
    assert nearest("zzz", ["timesnet"]) == []


# Systems ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "among", "not_among"),
    [
        ({}, "titans mamba2 theta", "forecast"),
        ({"status": "planned"}, "", "mamba2 beyond_llms"),
        ({"family": "state space"}, "mamba2 lamamba_diff", "titans"),
        ({"kind": "op"}, "mamba2", "gru"),
        ({"kind": "model"}, "timesnet", "mamba2"),
        ({"task": "forecast"}, "timesnet mamba2 aaren titans", "mvbench"),
        ({"task": "forecast", "kind": "mixer"}, "mamba2", "timesnet"),
        ({"task": "forecast-m4"}, "theta mamba", "linear_interpolation"),
        ({"task": "classify-images"}, "davit dinat", "mamba2"),
        ({"task": "classify-images", "rank": 2}, "softmax_attention", "mamba"),
        ({"causal": True}, "mamba2", "timesnet"),
        ({"causal": False}, "softmax_attention gru", "mamba2"),
        ({"streaming": True}, "mamba2", "timesnet"),
        ({"streaming": False}, "timesnet", "mamba"),
        ({"rank": 3, "causal": False}, "softmax_attention", "gru"),
        ({"family": "series", "task": "impute"}, "patchtst", "dlinear mamba2"),
        ({"search": "long video", "family": "video"}, "lingen", "mamba2 storm"),
    ],
    ids=str,
)
def test_systems_are_found_by_what_they_are(filters, among, not_among):
    found = foveate.list_systems(**filters)
    assert set(among.split()) <= set(found)
    assert not set(not_among.split()) & set(found)
    assert len(found) == len(set(found))
    if "search" not in filters:
        assert found == sorted(found)


def test_a_search_comes_best_first_whatever_is_filtered():
    everywhere = foveate.list_systems("long video")
    video = foveate.list_systems("long video", family="video")
    assert video == [slug for slug in everywhere if slug in video]
    assert [s.slug for s, _ in registry.find_systems("long video", family="video")] == video
    scores = [score for _, score in registry.find_systems("long video")]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"status": "workin"}, "unknown status 'workin': did you mean 'working'"),
        ({"family": "spikng"}, "unknown family 'spikng': did you mean 'spiking'"),
        ({"task": "clasify-images"}, "unknown task 'clasify-images': did you mean 'classify-images'"),
        ({"kind": "mixr"}, "unknown kind 'mixr': did you mean 'mixer'"),
    ],
    ids=str,
)
def test_an_unknown_filter_is_named(filters, message):
    with pytest.raises(LookupError, match=message):
        foveate.list_systems(**filters)


def test_a_name_that_is_no_system_says_where_it_belongs():
    with pytest.raises(LookupError, match="'ssd': the op of this name belongs to 'mamba2'"):
        foveate.get_system("ssd")
    with pytest.raises(LookupError, match="'forecast': it is a task, see foveate compare forecast --help"):
        foveate.get_system("forecast")


def test_citing():
    both = foveate.cite("mamba2", "gru", "mamba2")
    assert both == foveate.cite("mamba2") + "\n\n" + foveate.cite("gru")
    assert foveate.cite("gru").startswith("@inproceedings{")
    with pytest.raises(LookupError, match="unknown system 'mambo': did you mean 'mamba'"):
        foveate.cite("gru", "mambo")

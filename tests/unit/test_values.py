"""Values that arrive on the command line as text."""

from __future__ import annotations

import pytest

from foveate.cli.values import assignments, duration, names, numbers, read_toml


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("45", 45), ("1.5m", 90)]
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "-3m", "0s", "3x"])
def test_bad_durations_are_refused(text):
    with pytest.raises(ValueError, match="is not a duration: write it as 90s, 30m, 2h or 1h30m"):
        duration(text)


def test_lists():
    assert names(" a, b,,c ") == ("a", "b", "c")
    assert numbers("1e-3,0.01", "learning_rates") == (0.001, 0.01)
    with pytest.raises(ValueError, match="learning_rates='fast' is not a list of numbers"):
        numbers("fast", "learning_rates")


def test_options_of_systems():
    base = {"mamba": {"dim": 16}}
    given = ["mamba.dim=32", "timesnet.embed=fixed", "my.module:Net.flag=true"]
    assert assignments(given, base) == {
        "mamba": {"dim": 32},
        "timesnet": {"embed": "fixed"},
        "my.module:Net": {"flag": True},
    }
    assert base == {"mamba": {"dim": 16}}
    with pytest.raises(ValueError, match=r"--set 'mamba' is not possible: write it as SYSTEM\.OPTION=VALUE"):
        assignments(["mamba"], {})


def test_configuration_files(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("steps = 3\n[options.mamba]\ndim = 8\n")
    assert read_toml(file) == {"steps": 3, "options": {"mamba": {"dim": 8}}}
    file.write_text("steps = = 3")
    with pytest.raises(ValueError, match="not a TOML file"):
        read_toml(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_toml(tmp_path / "absent.toml")

"""``foveate list``, ``show`` and ``cite``: what they print at which width, and what they say when there is nothing."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import foveate
from foveate import systems
from foveate.catalog import FAMILIES
from foveate.cli.cards import BEST
from foveate.cli.main import app


@pytest.fixture(autouse=True)
def _nothing_is_measured(monkeypatch):
    monkeypatch.setattr(systems, "_results", dict)


def cli(*words: str, width: int | None = 120, status: int = 0) -> str:
    env = {"COLUMNS": str(width) if width else None}
    result = CliRunner().invoke(app, list(words), env=env, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


def slugs(text: str) -> list[str]:
    """The systems of a printed list, in order."""
    return re.findall(r"^[●◐○✗] ([a-z][a-z0-9_]*)", text, re.MULTILINE)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 300, None])
def test_every_system_is_one_line_that_fits(width):
    listed = cli("list", width=width)
    assert sorted(slugs(listed)) == foveate.list_systems()
    assert max(map(len, listed.splitlines())) <= (width or 140)
    headings = [line.strip() for line in listed.splitlines() if line.strip() in FAMILIES]
    assert headings == list(FAMILIES)
    assert ("…" in listed) == (width != 300), "what does not fit ends in dots"
    assert "\x1b" not in listed, "control characters although not a terminal"


def test_what_is_provided_is_shown_where_there_is_room_or_it_was_asked_for():
    def line(*words: str, width: int) -> str:
        return next(x for x in cli("list", *words, width=width).splitlines() if x.startswith("◐ mamba2 "))

    assert "mixer, op gated_rms_norm s" in line(width=120)
    assert "mixer" not in line(width=80)
    assert line("--kind", "op", width=80).rstrip().endswith("gated_rms_norm, ssd")
    assert "streaming" not in line("--streaming", width=80)
    assert "mixer, op gated" in line("--streaming", width=80)


@pytest.mark.parametrize("width", [80, 120])
def test_a_search_shows_the_best_first(width):
    listed = cli("list", "--search", "linear attention for long video", width=width)
    found = foveate.list_systems("linear attention for long video")
    assert slugs(listed) == found[:BEST]
    assert f"and {len(found) - BEST} that fit less (--json has all)" in listed
    assert ("diffusion control" in listed) == (width == 120)


def test_json_has_all_facts():
    rows = json.loads(cli("list", "--json"))
    assert [row["slug"] for row in rows] == foveate.list_systems()
    mamba = next(row for row in rows if row["slug"] == "mamba2")
    assert (mamba["year"], mamba["family"], mamba["status"]) == (2024, "state space", "working")
    (mixer,) = [e for e in mamba["provides"] if e["kind"] == "mixer"]
    assert mixer["spec"]["streaming"] == "exact"
    assert "score" not in mamba
    found = json.loads(cli("list", "--search", "mamba2", "--json"))
    assert found[0]["slug"] == "mamba2"
    assert found[0]["score"] > found[1]["score"] > 0


def test_tasks_are_listed_when_asked_for():
    assert slugs(cli("list", "--kind", "task").replace("classify-series", "classify_series")) != []
    assert "forecast-m4" in cli("list", "--kind", "task")
    assert "forecast-m4 " not in cli("list")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--family", "spiking", "--rank", "3"),
            "Nothing is found by --rank 3 --family spiking: without --rank 3 there are 3, without --family spiking the",
        ),
        (
            ("--search", "qqqqq zzzz"),
            "Nothing is found by --search 'qqqqq zzzz': foveate list alone shows all systems.",
        ),
        (
            ("--family", "graph", "--bidirectional", "--rank", "9", "--search", "qqqqq"),
            "Nothing is found by --search qqqqq --rank 9 --bidirectional --family graph: leave out more than one",
        ),
        (("--kind", "mixer", "--status", "planned"), "Nothing is found by --kind mixer --status planned: without"),
    ],
)
def test_nothing_is_said_in_one_sentence_with_what_to_loosen(words, sentence):
    said = cli("list", *words)
    assert said.startswith(sentence)
    assert said.count("\n") == 1


def test_nothing_in_json_is_an_empty_list():
    result = CliRunner().invoke(app, ["list", "--search", "qqqqq", "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == []
    assert "Nothing is found by --search qqqqq" in result.stderr


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("slug", ["mamba2", "circuit_reuse", "beyond_llms", "linear_interpolation"])
def test_a_card_says_everything_and_fits(slug, width):
    system = foveate.get_system(slug)
    card = cli("show", slug, width=width)
    plain = re.sub(r"\s+", " ", card)
    for text in (system.title, system.when, system.when_not, system.cost, system.licence):
        assert not width >= 120 or len(text) > 90 or text in plain
    for text in (system.summary, system.title):
        assert re.sub(r"\s+", " ", text) in plain
    for claim in system.claims:
        assert claim.says.split()[0] in plain
    for check in system.checks:
        assert check.says.split()[0] in plain
    for heading in ("Use", "Claims, as published") if system.claims else ("Use",):
        assert f"\n{heading}" in card
    files = [line for line in card.replace("\n           ", "").splitlines() if line.startswith("  file")]
    assert len(files) == len(system.files)
    assert max(map(len, card.splitlines())) <= width


def test_a_card_holds_brackets_as_they_are(monkeypatch):
    from foveate.cli import browse

    system = foveate.get_system("mamba2")
    changed = dataclasses.replace(system, summary="[bold] [/x] [].", when="[bold] [/y] [].")
    monkeypatch.setattr(browse, "get_system", lambda slug: changed)
    card = cli("show", "mamba2")
    assert "[bold] [/x] []." in card
    assert "[bold] [/y] []." in card


def test_cite():
    assert cli("cite", "mamba2", "gru") == foveate.cite("mamba2", "gru") + "\n"
    both = json.loads(cli("cite", "mamba2", "gru", "--json"))
    assert both == {"mamba2": foveate.cite("mamba2"), "gru": foveate.cite("gru")}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("show", "mambo"), "unknown system 'mambo': did you mean 'mamba'"),
        (("cite", "gru", "mambo"), "unknown system 'mambo': did you mean 'mamba'"),
        (("cite", "linear_interpolation"), "linear_interpolation has no publication to cite"),
        (("list", "--status", "workin"), "unknown status 'workin': did you mean 'working'?"),
        (("list", "--family", "spikng"), "unknown family 'spikng': did you mean 'spiking'"),
        (("list", "--task", "forcast"), "unknown task 'forcast': did you mean 'forecast'"),
    ],
)
def test_what_is_unknown_is_named(words, sentence):
    with pytest.raises((LookupError, ValueError), match=re.escape(sentence)):
        cli(*words)


BARE = """
import sys
sys.argv = ["foveate", *{words!r}]
from foveate.cli import main
try:
    main()
except SystemExit as end:
    assert end.code in (None, {status}), end.code
heavy = {{"torch", "numpy", "pandas", "psutil"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["list"], 0),
        (["list", "--search", "atention for long vidoe", "--status", "working", "--task", "forecast", "--json"], 0),
        (["show", "mamba2"], 0),
        (["show", "mamba2", "--json"], 0),
        (["cite", "mamba2"], 0),
        (["show", "mambo"], 2),
    ],
)
def test_needs_nothing_heavy(words, status):
    code = BARE.format(words=words, status=status)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_card_shows_sizes_and_weights_with_their_licences():
    told = " ".join(cli("show", "swin").split())
    assert "swin_tiny 29 M parameters, 4.5 G multiply-adds at 224 px" in told
    assert "Weights foveate.create(NAME, pretrained=REPO)" in told
    assert "swin_tiny timm/swin_tiny_patch4_window7_224.ms_in1k timm MIT" in told

"""Measured claims: what their file may hold, how far a system is because of it, and how both look."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import foveate
from foveate import systems
from foveate.catalog.results import RESULTS, read_results, sources_digest
from foveate.cli.main import app

RUN = {
    "date": "2026-11-27T04:00:00Z",
    "foveate": "1.2.3",
    "machine": {"cpu": "A Processor", "cores": 2},
    "versions": {"python": "3.11", "torch": "2.6"},
}
Results = dict[str, Any]


def measured(slug: str = "mamba2", **changes: dict[str, Any]) -> Results:
    """What ``foveate verify`` would write if everything of a system held; ``changes`` are those of single checks."""
    system = foveate.get_system(slug)
    claims = {
        check.name: {
            "says": check.says,
            "kind": check.kind,
            "result": "not checked" if check.kind == "needs-pretrained" else "holds",
            "value": 1.5,
            "threshold": 2.0,
            "detail": "in units.",
            "seconds": 0.5,
            "run": 0,
        }
        | changes.get(check.name, {})
        for check in system.checks
    }
    return {"format": 1, "systems": {slug: {"sources": sources_digest(system), "claims": claims}}, "runs": [RUN]}


def first(kind: str, slug: str = "mamba2") -> str:
    """The first check of a kind."""
    return next(check.name for check in foveate.get_system(slug).checks if check.kind == kind)


@pytest.fixture
def published(tmp_path, monkeypatch) -> Callable[[Results], Path]:
    """Publish foveate with these results."""

    def write(results: Results) -> Path:
        file = tmp_path / "claims.json"
        file.write_text(json.dumps(results))
        monkeypatch.setattr(systems, "_results", lambda: read_results(file))
        return file

    return write


# The file -----------------------------------------------------------------------------------------------------------


def test_what_was_measured_is_read_with_its_run(tmp_path):
    file = tmp_path / "mine.json"
    broken = first("scaling")
    file.write_text(json.dumps(measured(**{broken: {"result": "error", "value": None, "threshold": None}})))
    found = {m.check: m for m in read_results(file)["mamba2"].claims}
    assert set(found) == {check.name for check in foveate.get_system("mamba2").checks}
    assert (found[broken].result, found[broken].value, found[broken].failed) == ("error", None, True)
    one = found[first("exact")]
    assert (one.result, one.value, one.threshold, one.failed) == ("holds", 1.5, 2.0, False)
    assert (one.date, one.foveate, one.machine["cpu"]) == ("2026-11-27T04:00:00Z", "1.2.3", "A Processor")
    assert {m.result for m in found.values()} <= set(RESULTS)


def test_before_the_first_run_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("foveate.catalog.results.PUBLISHED", tmp_path / "claims.json")
    assert read_results() == {}
    monkeypatch.setattr(systems, "_results", read_results)
    assert foveate.get_system("mamba2").measured == ()
    assert foveate.list_systems(status="verified") == []


def spoil(**changes: Any) -> str:
    return json.dumps(measured() | changes)


def spoil_claim(**changes: Any) -> str:
    return json.dumps(measured(**{first("exact"): changes}))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (lambda: "{", "Expecting property name"),
        (lambda: "[]", "list indices must be integers"),
        (lambda: spoil(format=2), "its format is 2, and this version reads 1"),
        (lambda: '{"format": 1, "runs": []}', "'systems' is missing"),
        (lambda: spoil(runs=[]), "list index out of range"),
        (lambda: spoil_claim(result="maybe"), "has the result 'maybe'"),
        (lambda: spoil_claim(value="much"), "has a value or threshold that is no number"),
        (lambda: spoil_claim(run="x"), "list indices must be integers"),
        (lambda: spoil_claim(run=7), "list index out of range"),
        (lambda: spoil(systems={"mamba2": {"claims": {}}}), "'sources' is missing"),
        (lambda: spoil(systems=[1]), "no attribute 'items'"),
    ],
)
def test_a_damaged_file_is_named(text, reason, tmp_path):
    file = tmp_path / "claims.json"
    file.write_text(text())
    with pytest.raises(ValueError, match="write them anew with foveate verify --all") as raised:
        read_results(file)
    assert str(file) in str(raised.value)
    assert reason in str(raised.value)
    assert str(raised.value).count("\n") == 0


def test_a_file_that_is_asked_for_exists(tmp_path):
    with pytest.raises(ValueError, match=r"none.json is no file: write it with foveate verify --all --out"):
        read_results(tmp_path / "none.json")


# Sources ------------------------------------------------------------------------------------------------------------


def sources(folder: Path, **files: bytes) -> SimpleNamespace:
    """A system with these source files, by name, and a record."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_bytes(text)
    (folder / "record.toml").write_bytes(b"title")
    return SimpleNamespace(files=[*(folder / f"{name}.py" for name in files), folder / "record.toml"])


def test_the_digest_is_that_of_the_sources(tmp_path):
    digest = sources_digest(sources(tmp_path / "a", x=b"1\n2\n", y=b"3\n"))
    assert len(digest) == 64
    (tmp_path / "other").mkdir()
    assert digest == sources_digest(sources(tmp_path / "other" / "a", y=b"3\r\n", x=b"1\r\n2\r\n"))
    for other in (
        {"x": b"1\n2\n"},
        {"x": b"1\n2\n", "y": b"4\n"},
        {"x": b"1\n2\n3\n", "y": b""},
        {"x": b"1\n2\n", "z": b"3\n"},
    ):
        assert digest != sources_digest(sources(tmp_path / "a", **other)), other


def test_a_record_is_no_source(tmp_path):
    system = sources(tmp_path, x=b"1")
    before = sources_digest(system)
    (tmp_path / "record.toml").write_bytes(b"another title")
    assert sources_digest(system) == before


# Status -------------------------------------------------------------------------------------------------------------


def test_all_exact_and_scaling_claims_hold(published):
    published(measured())
    system = foveate.get_system("mamba2")
    assert (system.status, system.failing, system.outdated) == ("verified", (), False)
    assert foveate.list_systems(status="verified") == ["mamba2"]
    assert "mamba2" not in foveate.list_systems(status="working")
    assert foveate.get_system("gru").status == "working"
    planned = foveate.list_systems(status="planned")
    assert [slug for slug in foveate.list_systems() if foveate.get_system(slug).planned] == planned


@pytest.mark.parametrize("kind", ["exact", "scaling"])
@pytest.mark.parametrize("result", ["fails", "error", "not checked"])
def test_one_that_does_not_hold_is_enough(kind, result, published):
    name = first(kind)
    published(measured(**{name: {"result": result}}))
    system = foveate.get_system("mamba2")
    assert system.status == "working"
    assert system.failing == (() if result == "not checked" else (name,))


@pytest.mark.parametrize(
    ("kind", "result", "status"),
    [
        ("learned", "not checked", "verified"),
        ("learned", "fails", "working"),
        ("needs-pretrained", "not checked", "verified"),
    ],
)
def test_other_claims_must_only_not_fail(kind, result, status, published):
    published(measured(**{first(kind): {"result": result}}))
    assert foveate.get_system("mamba2").status == status


@pytest.mark.parametrize("kind", ["exact", "scaling"])
def test_one_that_was_not_measured_is_enough(kind, published):
    results = measured()
    del results["systems"]["mamba2"]["claims"][first(kind)]
    published(results)
    assert foveate.get_system("mamba2").status == "working"


def test_what_was_measured_on_earlier_sources_verifies_nothing(published):
    results = measured()
    results["systems"]["mamba2"]["sources"] = "0" * 64
    published(results)
    system = foveate.get_system("mamba2")
    assert (system.status, system.outdated) == ("working", True)
    assert len(system.measured) == len(system.checks)


def test_a_system_that_has_nothing_to_verify_is_not_verified(published):
    results = measured("mamba2")
    results["systems"]["mamba2"]["claims"] = {}
    published(results)
    assert foveate.get_system("mamba2").status == "working"


# How it looks -------------------------------------------------------------------------------------------------------


def cli(*words: str, width: int = 120) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": str(width)}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_show_lays_checks_beside_what_was_measured(published):
    name = first("exact")
    file = published(measured(**{name: {"result": "fails", "value": 0.123456}}))
    shown = cli("show", "mamba2")
    assert "working, 1 claim fails" in shown
    assert "measured 2026-11-27 on A Processor, foveate 1.2.3" in shown
    assert "exact, measured 0.1235 against 2: in units." in shown
    verdicts = [line.split("  ")[1] for line in shown.splitlines() if re.match("  (holds|fails|not checked)  ", line)]
    assert verdicts == [m["result"] for m in json.loads(file.read_text())["systems"]["mamba2"]["claims"].values()]
    assert "earlier sources" not in shown
    facts = json.loads(cli("show", "mamba2", "--json"))
    assert facts["failing"] == [name]
    check = next(c for c in facts["checks"] if c["name"] == name)
    assert check["measured"]["value"] == 0.123456
    assert check["measured"]["machine"]["cpu"] == "A Processor"


def test_show_says_when_results_are_old_or_of_several_runs(published):
    results = measured(**{first("exact"): {"run": 1}})
    results["systems"]["mamba2"]["sources"] = "0" * 64
    results["systems"]["mamba2"]["claims"]["gone"] = {
        **results["systems"]["mamba2"]["claims"][first("exact")],
        "says": "It was.",
        "run": 0,
    }
    results["runs"].append(RUN | {"date": "2026-12-24T00:00:00Z"})
    published(results)
    shown = cli("show", "mamba2")
    assert "working: measured on earlier sources" in shown
    assert "last measured 2026-12-24" in shown
    assert "2026-11-27 on A Processor" in shown
    assert "It was." in shown


def test_the_list_says_that_a_claim_fails(published):
    published(measured(**{first("exact"): {"result": "fails"}, first("learned"): {"result": "error"}}))
    listed = cli("list", "--family", "state space")
    (line,) = [line for line in listed.splitlines() if " mamba2 " in line]
    assert line.startswith("✗ mamba2")
    assert "2 claims fail; Mamba by matrix products" in line
    assert "✗ 1 with claims that fail" in listed
    facts = {row["slug"]: row for row in json.loads(cli("list", "--json"))}
    assert set(facts["mamba2"]["failing"]) == {first("exact"), first("learned")}
    assert facts["gru"]["failing"] == []


def test_a_damaged_file_ends_the_listing_in_one_sentence(published):
    file = published({"format": 1})
    with pytest.raises(ValueError, match=str(file)):
        cli("list")

"""Verification: how checks end, what is kept of earlier results, the page, and the results that come with foveate."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import foveate
from foveate import verification
from foveate.claims import Measurement, claims_of
from foveate.cli.main import app
from foveate.sources import Check
from foveate.verification import page, results, runner, worker
from foveate.verification.display import Display, counted, number, tables

ROOT = Path(__file__).parents[2]
SHIPPED = Path(foveate.__file__).parent / "catalog" / "claims.json"
AGAIN = "foveate verify {} --out foveate/catalog/claims.json --page docs/claims.md"


def made(name: str, kind: str = "exact", **options) -> Check:
    return Check("toy", name, kind, f"Claim {name}.", **options)  # type: ignore[arg-type]


# ----- a check in its process


def holds() -> Measurement:
    assert torch.get_num_threads() == 1
    print("something that must not reach the terminal")
    return Measurement.at_most(torch.initial_seed(), 0, "the seed; at most")


def ends(name: str) -> object:
    """Checks that end in different ways."""
    if name == "raises":
        raise ValueError("the first line\nand a second")
    if name == "dies":
        os.write(2, b"terminate called\n")
        os.kill(os.getpid(), signal.SIGABRT)
    if name == "sleeps":
        time.sleep(600)
    return {
        "holds": holds,
        "fails": lambda: Measurement.at_most(2, 1, "off by"),
        "nan": lambda: Measurement.at_most(math.nan, 1, "off by"),
        "absent": lambda: Measurement(math.nan, 1, False, "not measured: it needs a file."),
        "claims to pass": lambda: Measurement(0, 1, True, "points above; not measured: it needs weights."),
        "nothing": lambda: None,
    }[name]()


def work(claim, config, send) -> None:
    """The worker, with the checks of this file."""
    worker._check = lambda claim: lambda: ends(claim.name)  # type: ignore[assignment]
    worker.work(claim, config, send)


@pytest.fixture
def toys(monkeypatch):
    """The runner over checks of this file, by name."""
    monkeypatch.setattr(runner, "work", work)

    def run(*checks: Check, workers: int = 2, timeout: float = 60.0, timed: bool = True):
        events: list[dict] = []
        found = {c.name: f for c, f in runner.run(checks, timed, workers, timeout, events.append)}
        return found, events

    return run


def test_every_end_of_a_check_is_told(toys):
    kinds = {"claims to pass": "needs-pretrained"}
    names = ("holds", "fails", "nan", "absent", "claims to pass", "nothing", "raises", "dies")
    found, events = toys(*(made(name, kinds.get(name, "exact")) for name in names))
    assert {name: f["result"] for name, f in found.items()} == {
        "holds": "holds",
        "fails": "fails",
        "nan": "fails",
        "absent": "not checked",
        "claims to pass": "not checked",
        "nothing": "error",
        "raises": "error",
        "dies": "error",
    }
    assert (found["fails"]["value"], found["fails"]["threshold"]) == (2, 1)
    assert (found["nan"]["value"], found["nan"]["detail"]) == (None, "off by (the value is nan)")
    assert (found["absent"]["value"], found["absent"]["detail"]) == (None, "not measured: it needs a file.")
    assert found["nothing"]["detail"] == "the check returned NoneType, no Measurement."
    assert found["raises"]["detail"] == "ValueError: the first line and a second"
    assert found["dies"]["detail"] == "the worker was killed by SIGABRT. It said: terminate called"
    json.dumps(found, allow_nan=False)
    assert [e["type"] for e in events].count("ended") == len(names)


def test_an_error_names_its_place(tmp_path):
    told: list[dict] = []
    missing = Check("timesnet", "no_such_check", "exact", "?")
    torch_threads = torch.get_num_threads()
    try:
        worker.work(missing, {"output": str(tmp_path / "said")}, told.append)
    finally:
        torch.set_num_threads(torch_threads)
    assert told[0]["result"] == "error"
    with pytest.raises(foveate.errors.InvalidValue) as error:  # type: ignore[attr-defined]
        foveate.create("mamba2", "mixer", dim=-1)
    assert re.search(r"^InvalidValue: .* \(foveate/mixers/\w+\.py:\d+\)$", worker._sentence(error.value))


def test_a_check_that_takes_too_long_is_ended(toys):
    found, _ = toys(made("sleeps"), timeout=2)
    assert found["sleeps"]["result"] == "error"
    assert found["sleeps"]["detail"] == "exceeded the time limit of 2 s."
    assert 2 <= found["sleeps"]["seconds"] < 200


def test_checks_that_compare_times_run_alone_and_last(toys):
    checks = [made("holds", timed=True), made("fails", timed=True), made("nan"), made("absent", "learned")]
    found, events = toys(*checks, workers=4)
    assert len(found) == 4
    running: set[Check] = set()
    order = []
    for event in events[1:]:
        if event["type"] == "started":
            running.add(event["check"])
            order.append(event["check"].name)
        else:
            running.discard(event["check"])
        assert len(running) == 1 or not any(c.timed for c in running), running
    assert order == ["nan", "absent", "holds", "fails"]


def test_checks_that_compare_times_can_be_left_out(toys):
    found, _ = toys(made("holds", timed=True), timed=False)
    assert found["holds"]["result"] == "not checked"
    assert found["holds"]["detail"] == runner.LEFT_OUT


# ----- listing and choosing


def test_the_source_lists_what_importing_registers():
    registered = {(c.slug, c.name, c.kind, c.says, c.timed, c.check.__doc__ is not None) for c in claims_of()}
    assert {(c.slug, c.name, c.kind, c.says, c.timed, bool(c.about)) for c in verification.choose()} == registered
    assert [c.name for c in verification.choose("dlinear")] == [c.name for c in claims_of("dlinear")]


def test_choosing():
    everything = verification.choose()
    assert len({c.slug for c in everything}) > 20
    assert verification.choose("dlinear", ["learned"]) == verification.choose(["dlinear", "dlinear"], ["learned"])
    assert [c.name for c in verification.choose("dlinear", ["learned"])] == ["forecasts_etth1"]
    timed, others = verification.choose(timed=True), verification.choose(timed=False)
    assert all(c.timed for c in timed)
    assert len(timed) + len(others) == len(everything)
    with pytest.raises(LookupError, match=r"unknown system 'dlinaer': did you mean 'dlinear'"):
        verification.choose(["dlinaer"])
    with pytest.raises(LookupError, match=r"unknown kind of claim 'exakt': did you mean 'exact'"):
        verification.choose(kinds=["exakt"])


def test_python_measures_and_returns_the_form_of_the_file(tmp_path):
    events: list[dict] = []
    file = tmp_path / "claims.json"
    found = foveate.verify("dlinear", ["exact"], workers=2, out=file, progress=events.append)
    assert json.loads(file.read_text()) == found
    assert {c["result"] for c in found["systems"]["dlinear"]["claims"].values()} == {"holds"}
    assert set(found["runs"][0]) == {"date", "foveate", "machine", "versions"}
    assert found["runs"][0]["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["runs"][0]["date"])
    assert [e["type"] for e in events].count("started") == 3
    before = file.read_text()
    again = foveate.verify("dlinear", ["exact"], missing=True, out=file)
    assert again == results.empty()
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "workers=0 is not possible"),
        ({"timeout": 0.0}, "timeout=0.0 is not possible"),
        ({"missing": True}, "missing=True is not possible without out"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        foveate.verify("dlinear", **options)


# ----- the file


def entry(result: str = "holds", run: int = 0, **more) -> dict:
    base = {"says": "It is so.", "kind": "exact", "result": result, "value": 1.0, "threshold": 2.0}
    return {**base, "detail": "how; at most", "seconds": 0.1, "run": run, **more}


def a_run(day: int) -> dict:
    machine = {"cpu": "A CPU", "cores": 2, "memory_bytes": 2**34, "os": "An OS", "gpus": []}
    return {"date": f"2026-11-{day:02}T00:00:00Z", "foveate": "0.1", "machine": machine, "versions": {"torch": "2.6"}}


def record(runs: list[dict], **systems: dict) -> dict:
    made = {slug: {"sources": claims.pop("sources", "s"), "claims": claims} for slug, claims in systems.items()}
    return {"format": 1, "systems": made, "runs": runs}


KNOWN = {"one": ["a", "b", "c"], "two": ["a"]}


def test_new_results_replace_old_ones_and_runs_that_nothing_names_go():
    old = record([a_run(1), a_run(2)], one={"a": entry(run=0), "b": entry(run=1)}, two={"a": entry(run=1)})
    new = record([a_run(3)], one={"c": entry(), "a": entry("fails")})
    before = copy.deepcopy((old, new))
    found = results.merged(old, new, KNOWN)
    assert (old, new) == before
    assert found["runs"] == [a_run(2), a_run(3)]
    assert found["systems"]["one"]["claims"] == {"a": entry("fails", 1), "b": entry(run=0), "c": entry(run=1)}
    assert list(found["systems"]["one"]["claims"]) == ["a", "b", "c"]
    assert found["systems"]["two"]["claims"] == {"a": entry(run=0)}


def test_what_says_nothing_about_the_present_goes():
    old = record([a_run(1)], one={"a": entry(), "b": entry(), "sources": "old"}, two={"a": entry(), "gone": entry()})
    old["systems"]["three"] = {"sources": "s", "claims": {"a": entry()}}
    changed = results.merged(old, record([a_run(2)], one={"a": entry(), "sources": "new"}), KNOWN)
    assert changed["systems"]["one"] == {"sources": "new", "claims": {"a": entry(run=1)}}
    assert changed["systems"]["two"]["claims"] == {"a": entry(run=0)}
    assert set(changed["systems"]) == {"one", "two"}


def test_not_checked_replaces_no_measurement_on_the_same_sources():
    old = record([a_run(1)], one={"a": entry("fails"), "b": entry("error")})
    new = record([a_run(2)], one={"a": entry("not checked"), "b": entry("not checked")})
    found = results.merged(old, new, KNOWN)["systems"]["one"]["claims"]
    assert [c["result"] for c in found.values()] == ["fails", "not checked"]
    new["systems"]["one"]["sources"] = "others"
    found = results.merged(old, new, KNOWN)["systems"]["one"]["claims"]
    assert [c["result"] for c in found.values()] == ["not checked", "not checked"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("my notes", "is not a file of results"),
        ("[1]", "is not a file of results"),
        ('{"format": 1}', "is not a file of results"),
        ('{"format": 2, "systems": {}, "runs": []}', "has format 2, this version knows 1"),
        ('{"format": 1, "systems": {"dlinear": {}}, "runs": []}', "are damaged"),
    ],
)
def test_files_that_are_something_else_are_left_alone(tmp_path, content, words):
    file = tmp_path / "claims.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=words):
        foveate.verify("dlinear", out=file)
    assert file.read_text() == content


def test_targets_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path, tmp_path / "file" / "claims.json"):
        for check in (results.check_target, results.check_page):
            with pytest.raises(ValueError, match="cannot be written"):
                check(target)
    (tmp_path / "mine.md").write_text("# My page")
    with pytest.raises(ValueError, match=r"mine\.md is a page that `foveate verify` has not made"):
        results.check_page(tmp_path / "mine.md")


# ----- pages and tables


def test_the_page_has_what_fails_first_and_what_was_not_checked_last():
    need = "not measured: it needs a GPU."
    made = record(
        [a_run(1), a_run(2)],
        one={"a": entry(), "b": entry("fails", 1, value=3.0, detail="off | by; at most")},
        two={"a": entry("not checked", value=None, threshold=None, detail=need), "b": entry("error", detail="E: x_y")},
    )
    text = page.markdown(made)
    assert "**4 checks of 2 systems**: 1 fails, 1 ended in an error, 1 holds and 1 was not checked." in text
    order = ["## What does not hold", "[one](#one)", "[two](#two)", "## By system", "### one", "### two"]
    order += ["## What could not be checked", need, "## Where it was measured", "- 2026-11-01: A CPU, 2 cores"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    said = "It is so. (`b`)<br><small>exact, 2026-11-02: off \\| by; at most</small>"
    assert f"| [one](#one) | {said} | 3 | 2 |" in text
    assert "| **ERROR** | It is so.<br><small>exact, 2026-11-01: E: x\\_y</small> |" in text
    assert (
        "| not checked | It is so.<br><small>exact; [what it would need](#what-could-not-be-checked)</small> |" in text
    )
    assert results.MARK in text
    everything = page.markdown(record([a_run(1)], one={"a": entry()}))
    assert "Of what was checked, everything holds." in everything
    assert "Nothing." in everything
    assert "**0 checks of 0 systems**: none." in page.markdown(results.empty())


def test_numbers_and_counts_are_short():
    assert [number(v) for v in (None, 0.0, 1e-4, 3_152_896.0, 0.95, 1.7763568394002505e-15, 1e300)] == [
        "–",
        "0",
        "0.0001",
        "3,152,896",
        "0.95",
        "1.776e-15",
        "1e300",
    ]
    assert counted(["holds", "fails", "holds"]) == "1 fails and 2 hold"


def test_progress_in_plain_lines_and_live():
    checks = [made("a"), made("b")]
    found = [entry("fails", detail="off by"), entry("error", detail="the worker\x1b[2J died")]
    for terminal in (False, True):
        file = io.StringIO()
        console = Console(file=file, width=100, height=20, force_terminal=terminal, legacy_windows=False)
        with Display(console) as display:
            display.event({"type": "plan", "checks": checks})
            for check, result in zip(checks, found, strict=True):
                display.event({"type": "started", "check": check})
                picture = Console(width=60, file=io.StringIO())
                picture.print(display.frame())
                shown = picture.file.getvalue()  # type: ignore[attr-defined]
                assert "/2 claims" in shown
                assert f"toy {check.name} (exact)" in shown
                assert max(map(len, shown.splitlines())) <= 60
                display.event({"type": "ended", "check": check, "found": result})
        if not terminal:
            assert file.getvalue().splitlines() == [
                "[1/2] toy a: FAILS after 0.1 s: measured 1 against 2",
                "[2/2] toy b: ERROR after 0.1 s: the worker�[2J died",
            ]


def test_tables_fit_the_terminal():
    shown = Console(width=80, file=io.StringIO())
    shown.print(tables(record([a_run(1)], one={"a": entry("fails", says="A long claim. " * 20)})))
    lines = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "one: 1 fails"
    assert lines[2].split()[:4] == ["FAILS", "exact", "1", "2"]
    assert max(map(len, lines)) <= 80


# ----- the command


def test_an_interruption_leaves_what_was_measured(tmp_path, monkeypatch):
    def broken_off(checks, *options):
        options[-1]({"type": "plan", "checks": checks})
        found = {"result": "holds", "value": 1.0, "threshold": 2.0, "detail": "", "seconds": 0.1}
        options[-1]({"type": "ended", "check": checks[0], "found": found})
        yield checks[0], found
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", broken_off)
    out = tmp_path / "new" / "claims.json"
    result = CliRunner().invoke(app, ["verify", "dlinear", "--out", str(out)])
    assert result.exit_code == 130
    assert "interrupted: 1 of 4 claims are checked, with results in" in result.stderr
    assert list(results.read(out)["systems"]["dlinear"]["claims"]) == ["continues_line_and_season"]


def test_the_exit_status_tells_of_failures(tmp_path, monkeypatch):
    for result, status in (("holds", 0), ("not checked", 0), ("fails", 1), ("error", 1)):
        found = {"result": result, "value": None, "threshold": None, "detail": "", "seconds": 0.1}
        monkeypatch.setattr(runner, "run", lambda checks, *options, found=found: ((c, found) for c in checks))
        ended = CliRunner().invoke(app, ["verify", "dlinear", "--out", str(tmp_path / result), "--json"])
        assert ended.exit_code == status, ended.output


# ----- what comes with foveate


def test_shipped_results_name_only_checks_that_exist():
    if not SHIPPED.exists():
        pytest.skip("no results come with this tree: `make claims` makes them")
    known = {(c.slug, c.name): (c.says, c.kind) for c in verification.choose()}
    for slug, system in results.read(SHIPPED)["systems"].items():
        for name, result in system["claims"].items():
            again = f"measure it again: {AGAIN.format(slug)}"
            assert (slug, name) in known, f"{slug} has no check {name} any more; {again}"
            assert (result["says"], result["kind"]) == known[slug, name], f"{slug} {name} claims otherwise now; {again}"
            assert result["result"] in verification.RESULTS


def test_the_page_is_what_the_shipped_results_give():
    if not SHIPPED.exists():
        pytest.skip("no results come with this tree: `make claims` makes them")
    written = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert written == page.markdown(results.read(SHIPPED)), f"make the page again: {AGAIN.format('')}"

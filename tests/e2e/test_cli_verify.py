"""``foveate verify`` as a user meets it: results in a file and on a page, exit statuses, one sentence for mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}


def foveate_verify(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``foveate verify`` in a folder."""
    command = [sys.executable, "-m", "foveate", "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, timeout=240)


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit status 2 and one sentence that has all the parts."""
    assert result.returncode == 2, result.stderr or result.stdout
    (line,) = result.stderr.strip().splitlines()
    for part in parts:
        assert part in line, line


def test_systems_are_measured_merged_and_put_on_a_page(tmp_path):
    first = foveate_verify("dlinear", "seasonal_naive", "--kind", "exact,scaling", cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "dlinear: 3 hold" in first.stdout
    assert "[5/5] " in first.stderr
    assert "\x1b" not in first.stdout + first.stderr, "control characters although not a terminal"
    file = tmp_path / "foveate-runs" / "claims.json"
    assert set(json.loads(file.read_text())["systems"]) == {"dlinear", "seasonal_naive"}
    second = foveate_verify(
        "gru", "--kind", "exact", "--kind", "needs-pretrained", "--page", "page.md", "--json", cwd=tmp_path
    )
    assert second.returncode == 0, second.stderr
    assert set(json.loads(second.stdout)["systems"]) == {"gru"}
    merged = json.loads(file.read_text())
    assert set(merged["systems"]) == {"dlinear", "seasonal_naive", "gru"}
    assert len(merged["runs"]) == 2
    assert merged["systems"]["gru"]["claims"]["phrase_scores"]["result"] == "not checked"
    text = (tmp_path / "page.md").read_text()
    assert "**8 checks of 3 systems**: 7 hold and 1 was not checked." in text
    nothing = foveate_verify("gru", "--kind", "exact", "--missing", cwd=tmp_path)
    assert nothing.stdout == "Nothing is missing.\n"
    (tmp_path / "page.md").unlink()
    assert foveate_verify("--page", "page.md", cwd=tmp_path).returncode == 0
    assert (tmp_path / "page.md").read_text() == text


def test_a_system_without_such_checks_says_so(tmp_path):
    result = foveate_verify("previous_value", "--kind", "needs-pretrained", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout == "There are no such claims: nothing was checked.\n"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ["give systems, or --all"]),
        (("dlinear", "--all"), ["--all", "dlinear"]),
        (("dlinear", "timesnt"), ["timesnt", "timesnet"]),
        (("dlinear", "--kind", "exact,scalling"), ["scalling", "scaling"]),
        (("dlinear", "--workers", "0"), ["workers=0"]),
        (("dlinear", "--timeout", "soon"), ["--timeout", "soon", "90s"]),
        (("dlinear", "--out", "."), ["cannot be written", "folder"]),
        (("dlinear", "--out", "thesis.tex/claims.json"), ["cannot be written"]),
        (("dlinear", "--out", "thesis.tex"), ["thesis.tex", "not a file of results"]),
        (("dlinear", "--out", "mine.json"), ["mine.json", "not a file of results"]),
        (("dlinear", "--page", "thesis.tex"), ["thesis.tex", "has not made"]),
        (("--page", "page.md"), ["page.md", "claims.json does not exist"]),
    ],
)
def test_bad_input_ends_in_one_sentence_before_anything_is_measured(arguments, parts, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "mine.json").write_text('{"systems": []}')
    refused(foveate_verify(*arguments, cwd=tmp_path), *parts)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert not list(tmp_path.rglob("claims.json"))


def test_an_interruption_keeps_what_was_measured_and_leaves_nobody(tmp_path):
    # A system whose checks take a while: the signal must find some that are left, however slow the machine.
    command = [sys.executable, "-m", "foveate", "verify", "aaren", "--workers", "1", "--out", "claims.json"]
    running = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where tests run in the background
    )
    file = tmp_path / "claims.json"
    while not file.exists() and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert running.stderr is not None
    told = running.stderr.read()
    assert running.wait() == 130, told
    assert "Traceback" not in told
    assert "foveate: interrupted: " in told
    found = json.loads(file.read_text())["systems"]["aaren"]["claims"]
    assert {claim["result"] for claim in found.values()} == {"holds"}

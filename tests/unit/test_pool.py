"""Worker processes: what becomes of one whose parent is gone."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveate.compare import pool


def tell(job: str, config: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
    """Say something, and write down how that went, as workers do with whatever Python raises."""
    try:
        send({"type": "progress"})
    except Exception as error:
        Path(config["file"]).write_text(repr(error), encoding="utf-8")
        return
    Path(config["file"]).write_text("told", encoding="utf-8")


def run(file: Path, listening: bool) -> int | None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    if not listening:
        receiver.close()
    process = context.Process(target=pool._work, args=(tell, "job", {"file": str(file)}, sender))
    process.start()
    process.join()
    return process.exitcode


def test_a_worker_that_nobody_listens_to_ends_without_a_result(tmp_path: Path):
    assert run(tmp_path / "result", listening=False) == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


def test_a_worker_that_is_heard_goes_on(tmp_path: Path):
    assert run(tmp_path / "result", listening=True) == 0
    assert (tmp_path / "result").read_text(encoding="utf-8") == "told"

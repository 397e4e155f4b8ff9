"""Worker processes: how jobs end, and what becomes of a worker whose parent is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

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
    ours, theirs = context.Pipe()
    process = context.Process(target=pool._work, args=(tell, theirs))
    process.start()
    theirs.close()
    ours.send(("job", {"file": str(file)}))
    if not listening:
        ours.close()
    process.join()
    return process.exitcode


def test_a_worker_that_nobody_listens_to_ends_without_a_result(tmp_path: Path):
    assert run(tmp_path / "result", listening=False) == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


def test_a_worker_that_is_heard_goes_on(tmp_path: Path):
    assert run(tmp_path / "result", listening=True) == 0
    assert (tmp_path / "result").read_text(encoding="utf-8") == "told"


def work(job: str, config: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
    """Jobs that end in different ways."""
    send({"job": job, "process": os.getpid()})
    if job == "stays":
        threading.Thread(target=time.sleep, args=(600,)).start()
    if job == "leaves":
        os._exit(3)
    if job == "dies":
        os.kill(os.getpid(), signal.SIGKILL)


def test_how_jobs_ended_and_that_nobody_is_left():
    told: list[dict[str, Any]] = []
    ended = {}
    with pool.Pool(work, workers=1, memory_limit=1e6, on_event=lambda job, event: told.append(event)) as workers:
        for job in ("well", "stays", "leaves", "dies", "well again"):
            workers.submit(job, {})
            assert not workers.free
            (end,) = workers.wait()
            ended[end.job] = end.error
            assert workers.free
        processes = {event["process"] for event in told} | {workers._next.process.pid}
    assert ended == {
        "well": "",
        "stays": "",
        "leaves": "the worker ended itself with status 3.",
        "dies": "the worker was killed by SIGKILL (the system kills so when memory runs out).",
        "well again": "",
    }
    assert [event["job"] for event in told] == list(ended)
    assert len(processes) == 6
    assert not any(psutil.pid_exists(process) for process in processes)


def test_a_worker_that_is_gone_before_its_job_comes_is_told_apart():
    with pool.Pool(work, workers=1, memory_limit=1e6, on_event=lambda job, event: None) as workers:
        workers.submit("well", {})
        workers.wait()
        assert workers._next is not None
        workers._next.process.kill()
        workers._next.process.join()
        workers.submit("never begun", {})
        (end,) = workers.wait()
    assert end.error.startswith("the worker was killed by SIGKILL")

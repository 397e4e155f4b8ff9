"""Worker processes: one for each job, forked from a server that has torch loaded, watched from outside.

A trial may diverge, exhaust the memory or crash the interpreter; nothing of that may reach the others. So every job has
a process of its own. It is forked from a "forkserver" that imported torch once and has run nothing (threads and forks
do not mix), which takes milliseconds instead of the seconds of a fresh import. The parent watches the resident memory
and the time of each worker and kills the one that passes a limit; a worker kills itself, and whatever it started, when
its parent is gone, so that not even ``kill -9`` leaves anyone behind.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any

import psutil

MIB = 2.0**20
#: Seconds between two looks at the workers' memory.
WATCH_EVERY = 0.05
#: Seconds that a worker which has finished may take to leave.
LEAVE_SECONDS = 1.0
#: What the fork server imports.
PRELOAD = "foveate.compare.preload"

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a worker process ended.

    Attributes:
        job: what was submitted.
        error: why it did not finish, one sentence; "" if it did.
        peak: largest resident memory seen, MiB.
    """

    job: Any
    error: str
    peak: float


@dataclass(slots=True)
class _Worker:
    """A worker process.

    Attributes:
        watch: to see its memory by; None when it ended before it could be watched.
        job: what it does; None while it waits for a job.
        begun: when it was given the job, by the monotonic clock.
        open: whether it can still be heard.
        finished: whether it said that the job is done.
    """

    process: Any
    connection: Connection
    watch: psutil.Process | None
    job: Any = None
    begun: float = field(default_factory=time.monotonic)
    peak: float = 0.0
    error: str = ""
    open: bool = True
    finished: bool = False


class Pool:
    """Runs ``target(job, config, send)`` in one process per job. Use it as a context manager.

    Args:
        target: module-level function; what it gives to ``send`` are its events.
        workers: processes at once.
        memory_limit: MiB of resident memory that one may hold.
        on_event: called with the job and each event of its worker.
        time_limit: seconds that one may take.
    """

    def __init__(
        self,
        target: Callable[[Any, dict[str, Any], Callable[[Event], None]], None],
        *,
        workers: int,
        memory_limit: float,
        on_event: Callable[[Any, Event], None],
        time_limit: float = math.inf,
    ) -> None:
        self.target, self.workers, self.memory_limit, self.on_event = target, workers, memory_limit, on_event
        self.time_limit = time_limit
        self._running: list[_Worker] = []
        self._next: _Worker | None = None
        self._leaving: list[_Worker] = []
        self._context = start_server()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        waiting = [] if self._next is None else [self._next]
        for worker in (*self._running, *waiting):
            self._kill(worker)
            worker.process.join()
            worker.connection.close()
        for worker in self._leaving:
            worker.process.join(LEAVE_SECONDS)
            self._kill(worker)
            worker.process.join()

    @property
    def free(self) -> int:
        """Number of jobs that can be submitted now."""
        return self.workers - len(self._running)

    def submit(self, job: Any, config: dict[str, Any]) -> None:
        """Start a worker on a job."""
        worker, self._next = self._next or self._start(), None
        worker.job, worker.begun = job, time.monotonic()
        self._running.append(worker)
        with suppress(OSError):  # it has been killed: waiting for it will tell
            worker.connection.send((job, config))
        self._next = self._start()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process: Any = self._context.Process(target=_work, args=(self.target, theirs))  # type: ignore[attr-defined]
        with _no_main_module():
            process.start()
        theirs.close()
        try:
            watch = psutil.Process(process.pid)
        except psutil.NoSuchProcess:  # it has ended already
            watch = None
        return _Worker(process, ours, watch)

    def wait(self) -> list[Ended]:
        """Pass on events and watch memory and time until at least one worker has ended; returns those."""
        while self._running:
            ready = wait([r.connection for r in self._running if r.open], timeout=WATCH_EVERY)
            for worker in self._running:
                if worker.connection in ready:
                    self._receive(worker)
                self._watch(worker)
            ended = [w for w in self._running if w.finished or not w.open or not w.process.is_alive()]
            if ended:
                return [self._end(worker) for worker in ended]
        return []

    def _receive(self, worker: _Worker) -> None:
        try:
            while not worker.finished and worker.connection.poll():
                event = worker.connection.recv()
                if event is None:
                    worker.finished = True
                else:
                    self.on_event(worker.job, event)
        except (EOFError, OSError):  # closed, or broken off in the middle of a message: the worker is going
            worker.open = False

    def _watch(self, worker: _Worker) -> None:
        if worker.watch is None or worker.error:
            return
        try:
            resident = worker.watch.memory_info().rss / MIB
        except psutil.Error:  # it has ended
            return
        worker.peak = max(worker.peak, resident)
        if resident > self.memory_limit:
            worker.error = (
                f"exceeded the memory limit of {self.memory_limit:.0f} MiB (it held {resident:.0f} MiB); "
                f"memory_limit raises it."
            )
            self._kill(worker)
        elif time.monotonic() - worker.begun > self.time_limit:
            worker.error = f"exceeded the time limit of {self.time_limit:.0f} s."
            self._kill(worker)

    def _end(self, worker: _Worker) -> Ended:
        reason = ""
        if worker.finished:
            self._leaving = [w for w in (*self._leaving, worker) if w.process.is_alive()]
        else:
            worker.process.join()
            self._receive(worker)  # its last words
            reason = _reason(worker.process.exitcode)
        worker.connection.close()
        self._running.remove(worker)
        return Ended(worker.job, worker.error or reason, worker.peak)

    def _kill(self, worker: _Worker) -> None:
        if hasattr(os, "killpg") and worker.process.is_alive():
            # A worker leads a group of its own, unless it has ended or has not come so far yet.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.kill()


def _reason(code: int | None) -> str:
    if code == 0:
        return ""
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        memory = " (the system kills so when memory runs out)" if -code == getattr(signal, "SIGKILL", None) else ""
        return f"the worker was killed by {name}{memory}."
    return f"the worker ended itself with status {code}."


def _work(target: Callable[..., None], connection: Connection) -> None:
    """First function of a worker process: wait for a job, do it, say so."""
    gc.freeze()  # what the fork server imported stays: looking through it for garbage would copy its pages
    gc.enable()
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Ctrl-C in the terminal is the parent's affair; the group dies together
    threading.Thread(target=_follow_parent, name="foveate-parent", daemon=True).start()

    def send(event: Event | None) -> None:
        try:
            connection.send(event)
        except OSError:  # nobody listens any more; the thread that follows the parent may be a moment late
            _end_now()

    try:
        job, config = connection.recv()
    except (EOFError, OSError):  # no job came, and none will
        return
    target(job, config, send)
    send(None)


def _follow_parent() -> None:
    """End this process, and what it started, when the parent ends in whatever way."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    _end_now()


def _end_now() -> None:
    """End this process and what it started, and write nothing more: whoever starts again decides what was done."""
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Keep multiprocessing from importing the user's script in every worker.

    It does so to find functions defined there. Ours are not, and a script without ``if __name__ == "__main__"`` would
    start comparisons within comparisons.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def start_server(modules: Sequence[str] = ()) -> BaseContext:
    """Start the fork server, unless it is running; it imports while the caller goes on.

    Importing torch takes seconds, so call this first, before the caller's own imports.

    Args:
        modules: to be imported besides :data:`PRELOAD`, such as the contestants'.

    Returns:
        The context to make processes in.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")  # Windows has no fork: there every worker imports torch anew
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD, *modules])
    with _no_main_module():
        forkserver.ensure_running()
    return context


def default_memory_limit(workers: int) -> float:
    """MiB for each of ``workers``: its share of 80 % of what is free now."""
    return 0.8 * psutil.virtual_memory().available / workers / MIB

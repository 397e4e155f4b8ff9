"""``python -m foveate`` without the seconds that its imports take: forks of a process that has them behind it.

Every call is a process with its own arguments, folder, environment and exit status, as a user's is.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path
from typing import NoReturn

VERBS = ("main", "compare", "export", "generate", "look", "predict", "verify")
#: Seconds after which a call is ended.
LIMIT = 240


def run(arguments: list[str], cwd: Path | None, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``python -m foveate`` with these arguments, and nothing but this environment."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "stdout"), Path(folder, "stderr")
        order = {"arguments": arguments, "cwd": str(cwd or Path.cwd()), "environment": environment}
        server.stdin.write(json.dumps({**order, "texts": list(map(str, texts))}) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, *(text.read_text() for text in texts))


@cache
def _server() -> subprocess.Popen[str]:
    """Ends with this process, when nobody writes to it any more."""
    command = [sys.executable, __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # no threads: a fork would lose them
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def serve() -> None:
    """Fork for each line of standard input, and answer with its exit status."""
    del sys.path[0]  # this folder
    _imports()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(order)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, file=answers, flush=True)


def _imports() -> None:
    from foveate.registry import entries

    for name in ("pandas", "torch", "foveate.compare", *(f"foveate.cli.{verb}" for verb in VERBS)):
        importlib.import_module(name)
    for kind in ("task", "model"):
        for entry in entries(kind):
            entry.load()


def _become(order: dict) -> NoReturn:
    """The command itself; what it prints goes into files."""
    signal.alarm(LIMIT)
    for number, path in enumerate(("/dev/null", *order["texts"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    sys.path.insert(0, order["cwd"])
    sys.argv = ["foveate", *order["arguments"]]
    sys.stdin = open(0)  # noqa: SIM115
    status = 0
    try:
        runpy.run_module("foveate", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status or 0)  # taking all modules apart takes seconds


if __name__ == "__main__":
    serve()

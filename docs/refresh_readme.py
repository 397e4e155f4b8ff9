"""Put a finished comparison's leaderboard and a picture of its report into the README.

    make demo && .venv/bin/python docs/refresh_readme.py foveate-runs/demo

The picture needs a Chromium on the PATH.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from foveate.compare.tables import table

HERE = Path(__file__).parent
MARKED = re.compile(r"(<!-- leaderboard -->\n).*?(<!-- /leaderboard -->)", re.DOTALL)


def main(run: Path) -> None:
    """Refresh README.md and docs/images/report.png from the comparison in ``run``."""
    board = json.loads((run / "leaderboard.json").read_text(encoding="utf-8"))
    console = Console(width=110, record=True, no_color=True, file=io.StringIO())
    console.print(table(board, console))
    machine = board["machine"]
    text = "\n".join(line.rstrip() for line in console.export_text().splitlines())
    where = f"Made by `make demo` on {machine.get('cpu', 'this machine')}, {machine.get('cores', '?')} cores."
    readme = HERE.parent / "README.md"
    block = f"```text\n{text.strip()}\n```\n\n{where}\n"
    readme.write_text(MARKED.sub(lambda m: m[1] + block + m[2], readme.read_text(encoding="utf-8")), encoding="utf-8")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium found: the leaderboard is refreshed, the picture is not")
    (HERE / "images").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1500",
                f"--user-data-dir={profile}", f"--screenshot={HERE / 'images' / 'report.png'}",
                (run / "report.html").resolve().as_uri(),
            ],
            check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))

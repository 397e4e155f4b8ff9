"""Image backbones at small width on handwritten digits: accuracy of each within one budget.

    python benchmarks/digits.py MNIST              # train all, then print the section of the page
    python benchmarks/digits.py MNIST --systems swin,vit
    python benchmarks/digits.py MNIST --write      # put the section into benchmarks/digits.md

MNIST is a folder with the 10,000 test images as IDX files: 7,000 train, 1,000 choose, 2,000 are scored once. One
``foveate compare classify-images`` over the backbones in the form that they take for small images by themselves. Killed
at any moment, the same command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from marked import told, write_section

from foveate.compare import Settings, run

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "digits.md"
SYSTEMS = (
    "swin",
    "dinat",
    "focalnet",
    "davit",
    "maxvit",
    "mambaout",
    "biformer",
    "vsa",
    "dependency_vit",
    "sparsifiner",
    "polarized_self_attention",
    "vit",
    "convnext",
)
STEPS, BATCH, RATE = 3000, 32, 1e-3
#: Accuracy that a network should have learned by then.
ENOUGH = 0.97


def settings(source: Path, out: Path, systems: tuple[str, ...], workers: int) -> Settings:
    """The comparison."""
    return Settings(
        task="classify-images",
        data={"source": str(source)},
        systems=systems,
        out=str(out),
        steps=STEPS,
        batch_size=BATCH,
        learning_rates=(RATE,),
        seeds=1,
        patience=0,
        refit=False,
        threads=1,
        workers=workers,
    )


def section(board: dict[str, Any]) -> str:
    """The Markdown of the leaderboard."""
    lines = ["| system | test accuracy | validation | parameters | MFLOPs an image | minutes |", "|---|" + "---:|" * 5]
    done = [row for row in board["rows"] if row["status"] == "done"]
    for row in sorted(done, key=lambda row: -row["test"]["accuracy"]["mean"]):
        test, val = (row[split]["accuracy"]["mean"] for split in ("test", "val"))
        flops = f"{row['flops'] / 1e6:.1f}" if row["flops"] else "-"
        lines.append(
            f"| {row['system']} | {test:.2%} | {val:.2%} | {row['parameters']:,} | {flops} | "
            f"{row['seconds'] / 60:.1f} |"
        )
    lines += [f"\n{row['system']}: {row['reason']}" for row in board["rows"] if row["status"] != "done"]
    short = [row["system"] for row in done if not row["baseline"] and row["test"]["accuracy"]["mean"] < ENOUGH]
    lines += ["", f"Below {ENOUGH:.0%}: {', '.join(short)}." if short else f"All networks reach {ENOUGH:.0%}."]
    lines += [
        "",
        f"{STEPS:,} steps of {BATCH} images, a learning rate of {RATE:g}, shifts of up to 4 pixels, one thread. "
        "Minutes are of a machine that may have done other work. "
        f"Made with torch {board['versions']['torch']} on {board['machine']['cpu']} by:",
        "",
        "    python benchmarks/digits.py mnist_test --write",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--systems", help="names by commas; default: all that there are")
    parser.add_argument("--workers", type=int, default=1, help="trials at once")
    parser.add_argument("--out", type=Path, default=ROOT / "foveate-runs" / "digits", help="folder of the comparison")
    parser.add_argument("--write", action="store_true", help=f"put the section into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.write and options.systems:
        parser.error("--write needs everything: leave out --systems")
    systems = tuple(options.systems.split(",")) if options.systems else SYSTEMS
    chosen = settings(options.source.resolve(), options.out.resolve(), systems, options.workers)
    text = section(run(chosen, on_event=told))
    print(text)
    if options.write:
        write_section(PAGE, "digits", text)


if __name__ == "__main__":
    main()

"""Segmentation of scenes and volumes of handwritten digits: Dice and IoU within one budget.

    python benchmarks/scenes.py MNIST              # both comparisons, and print their sections of the page
    python benchmarks/scenes.py MNIST --only volumes
    python benchmarks/scenes.py MNIST --write      # put the sections into benchmarks/scenes.md

MNIST is a folder with the 10,000 test images as IDX files: 7,000 digits stand in training scenes, 1,000 in those that
choose, 2,000 in those that are scored once. The scenes are drawn as ``foveate compare segment`` draws its own, written
as PNG and NIfTI files, and read back from there by one ``foveate compare segment`` each. Killed at any moment, the same
command goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from marked import write_section
from PIL import Image

from foveate.tasks.classify_images.arrays import idx_pairs, read_idx
from foveate.tasks.segment.scenes import draw_cases

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "scenes.md"
PARTS = ("train", "val", "test")
#: Dice by which a network should be ahead of the better baseline.
AHEAD = 0.2


@dataclass(frozen=True)
class Comparison:
    """One table.

    Attributes:
        title: above it.
        volumes: whether scenes have three axes.
        counts: of training, validation and test scenes.
        systems, steps, batch, rate: of ``foveate compare``.
    """

    title: str
    volumes: bool
    counts: tuple[int, int, int]
    systems: tuple[str, ...]
    steps: int
    batch: int
    rate: float


RUNS = {
    "scenes": Comparison(
        title="Scenes of 48 x 48 pixels",
        volumes=False,
        counts=(1200, 60, 120),
        systems=("psa_hrnet", "plain_hrnet:PlainHRNet", "swin", "convnext"),
        steps=200,
        batch=16,
        rate=1e-2,
    ),
    "volumes": Comparison(
        title="Volumes of 32 x 32 x 32 voxels",
        volumes=True,
        counts=(400, 20, 40),
        systems=("swin_unetr",),
        steps=1200,
        batch=2,
        rate=3e-3,
    ),
}


def write_scenes(comparison: Comparison, digits: Path, folder: Path) -> None:
    """Draw the scenes and write them, with a folder for each part, unless they are there."""
    if (folder / "written").exists():
        return
    found = read_idx(idx_pairs(digits)[:1], str(digits), True)
    images = np.stack([found.load(i)[0][..., 0] for i in range(len(found.names))])
    labels = np.array(list(map(int, found.classes or ())))
    cases, parts = draw_cases(images, labels, comparison.counts, comparison.volumes, seed=0)
    for name in PARTS:
        for inner in ("images", "masks"):
            (folder / name / inner).mkdir(parents=True, exist_ok=True)
    for case, part in zip(cases, parts, strict=True):
        assert case.label is not None  # drawn with it
        pairs = (("images", case.image[0]), ("masks", case.label.astype(np.uint8)))
        for inner, values in pairs:
            path = folder / PARTS[part] / inner / case.name
            if comparison.volumes:
                nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path.with_suffix(".nii"))
            else:
                Image.fromarray(values).save(path.with_suffix(".png"))
    (folder / "written").touch()


def command(name: str, out: str) -> list[str]:
    """The words of a comparison."""
    run = RUNS[name]
    words = ["compare", "segment", f"{out}/{name}-data", "--systems", ",".join(run.systems), "--seeds", "1"]
    words += ["--steps", str(run.steps), "--batch-size", str(run.batch), "--patience", "0", "--no-refit"]
    return [*words, "--learning-rates", f"{run.rate:g}", "--out", f"{out}/{name}"]


def leaderboard(name: str, digits: Path, out: Path, workers: int) -> dict[str, Any]:
    """Run it, or what is missing of it."""
    write_scenes(RUNS[name], digits, out / f"{name}-data")
    words = [*command(name, str(out)), "--workers", str(workers), "--json"]
    here = Path(__file__).parent  # where the control is found by its name
    program = [sys.executable, "-m", "foveate", *words]
    found = subprocess.run(program, cwd=here, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        sys.exit(f"foveate {' '.join(words)} ended with status {found.returncode}")
    return json.loads(found.stdout)


def table(name: str, board: dict[str, Any]) -> list[str]:
    """The lines of one comparison."""
    run, done = RUNS[name], [row for row in board["rows"] if row["status"] == "done"]
    lines = [f"## {run.title}", ""]
    lines += [
        "| system | test Dice | test IoU | validation Dice | parameters | MFLOPs forward | learning rate | minutes |",
        "|---|" + "---:|" * 7,
    ]
    for row in sorted(done, key=lambda row: -row["test"]["dice"]["mean"]):
        dice, iou = (row["test"][metric]["mean"] for metric in ("dice", "iou"))
        flops = f"{row['flops'] / 1e6:.3g}" if row["flops"] else "-"
        rate = f"{row['learning_rate']:g}" if row["learning_rate"] else "-"
        lines.append(
            f"| {row['system'].rpartition(':')[2]} | {dice:.3f} | {iou:.3f} | {row['val']['dice']['mean']:.3f} | "
            f"{row['parameters']:,} | {flops} | {rate} | {row['seconds'] / 60:.1f} |"
        )
    lines += [f"\n{row['system']}: {row['reason']}" for row in board["rows"] if row["status"] != "done"]
    least = max(row["test"]["dice"]["mean"] for row in done if row["baseline"]) + AHEAD
    short = [row["system"] for row in done if not row["baseline"] and row["test"]["dice"]["mean"] < least]
    train, val, test = run.counts
    lines += [
        "",
        f"Less than {AHEAD:g} ahead of the better baseline: {', '.join(short)}."
        if short
        else f"All networks are more than {AHEAD:g} ahead of the better baseline.",
        f"{train:,} scenes train, {val} choose, {test} are scored. {run.steps} steps of {run.batch}, one seed.",
    ]
    return lines


def section(name: str, board: dict[str, Any]) -> str:
    """The Markdown of one comparison."""
    lines = [
        *table(name, board),
        "",
        "One learning rate for all of a table. Minutes are of a machine that may have done other work. Made with "
        f"torch {board['versions']['torch']} on {board['machine']['cpu']}, one thread, by:",
        "",
        f"    python benchmarks/scenes.py mnist_test --only {name} --write",
        "",
        "that is, after the files of `OUT` were drawn and written:",
        "",
        f"    foveate {' '.join(command(name, 'OUT'))}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("digits", type=Path, metavar="MNIST")
    parser.add_argument("--only", choices=RUNS, help="one comparison")
    parser.add_argument("--workers", type=int, default=1, help="trials at once")
    parser.add_argument("--out", type=Path, default=ROOT / "foveate-runs" / "scenes", help="folder of the comparisons")
    parser.add_argument("--write", action="store_true", help=f"put the sections into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    for name in [options.only] if options.only else list(RUNS):
        board = leaderboard(name, options.digits.resolve(), options.out.resolve(), options.workers)
        text = section(name, board)
        print(text)
        if options.write:
            write_section(PAGE, name, text)


if __name__ == "__main__":
    main()

"""Trees of patches over two handwritten digits: does DependencyViT's keep each digit in a subtree, and a plain ViT's?

    python benchmarks/dependency_trees.py MNIST              # train both networks, three seeds, and print the section
    python benchmarks/dependency_trees.py MNIST --seeds 1 --steps 200
    python benchmarks/dependency_trees.py MNIST --write      # put the section into benchmarks/dependency_trees.md
    python benchmarks/dependency_trees.py MNIST --picture trees.png

MNIST is a folder with the 10,000 test images as IDX files: 8,000 stand in training scenes, 2,000 in those that are
measured. The networks, their training and the measure stand in foveate/claims/_trees.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from marked import write_section
from torch import Tensor

from foveate.analysis.looking.draw import panels
from foveate.analysis.looking.trace import Seen
from foveate.claims._trees import (
    GRID,
    PATCH,
    SIDE,
    Draw,
    Found,
    Names,
    Network,
    apart,
    learn,
    measure,
    network,
    trees,
)
from foveate.measure.machine import cpu_name
from foveate.mixers.look import Look
from foveate.tasks.classify_images.arrays import idx_pairs, read_idx

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "dependency_trees.md"
FORMS = ("dependency_vit", "vit")
#: Seeds, by what is named: alone from what is in the image neither network's trees learn, which one seed shows.
SEEDS: dict[Names, int] = {"patches": 3, "image": 1}
STEPS, BATCH = 1200, 32
TRAINING = 8000
#: Pixels of a digit, which begins at a patch.
DIGIT = 16
#: What is named, and the network.
Key = tuple[Names, str]
#: Mean ink from which a patch belongs to a digit, of 1.
INK = 0.05
#: Deviation of the noise, of ink from 0 to 1, and the factor by which both are scaled.
NOISE, CONTRAST = 0.15, 5.0
#: What the paper's sentence is asked for: purity of DependencyViT at least, of a plain ViT at most.
PURE, PLAIN = 0.75, 0.55


def digits(source: Path) -> tuple[Tensor, Tensor]:
    """The images, 16 x 16 pixels from 0 to 1, and their labels."""
    found = read_idx(idx_pairs(source)[:1], str(source), True)
    images = torch.from_numpy(np.stack([found.load(i)[0][..., 0] for i in range(len(found.names))]))
    inside = images[:, None, 4:24, 4:24].float() / 255  # the files leave four pixels on every side
    return F.interpolate(inside, (DIGIT, DIGIT), mode="area")[:, 0], torch.tensor([int(c) for c in found.classes or ()])


def scenes(images: Tensor, labels: Tensor) -> Draw:
    """Scenes of two digits of different classes on noise, whose boxes of 16 x 16 pixels do not overlap."""

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chosen = apart(
            count,
            lambda n: torch.randint(len(images), (n, 2), generator=generator),
            lambda found: labels[found[:, 0]] == labels[found[:, 1]],
        )
        ends = (SIDE - DIGIT) // PATCH + 1
        corners = PATCH * apart(
            count,
            lambda n: torch.randint(ends, (n, 2, 2), generator=generator),
            lambda found: (found.diff(dim=1).abs() < DIGIT // PATCH).all(-1).squeeze(1),
        )
        along = corners[..., None] + torch.arange(DIGIT)
        each = torch.zeros(count, 2, SIDE, SIDE)
        at = torch.arange(count)[:, None, None, None], torch.arange(2)[:, None, None]
        each[(*at, along[:, :, 0, :, None], along[:, :, 1, None, :])] = images[chosen]
        ink, owner = F.avg_pool2d(each, PATCH).flatten(2).max(1)
        x = each.sum(1, keepdim=True) + NOISE * torch.randn(count, 1, SIDE, SIDE, generator=generator)
        return x * CONTRAST, labels[chosen], owner.masked_fill(ink < INK, -1)

    return draw


def picture(models: dict[str, Network], draw: Draw, path: Path, count: int = 3) -> None:
    """Trees of the first seed over new scenes, a row for each way to read a network."""
    from PIL import Image

    x, *_ = draw(count, torch.Generator().manual_seed(12345))
    rows = []
    for form in FORMS:
        for parents in trees(models[form], x).values():
            row = []
            for image, tree in zip(x[:, 0], parents, strict=True):
                grey = (image / CONTRAST).clamp(0, 1).mul(255).byte().numpy()
                pixels = grey[..., None].repeat(3, 2).repeat(8, 0).repeat(8, 1)
                seen = Seen(
                    "all layers", form, (GRID, GRID), (PATCH, PATCH), None, (Look("tree", tree[None], form),), 0.0, ""
                )
                row.append(np.asarray(panels(seen, pixels, (SIDE, SIDE))[0].image))
            rows.append(np.concatenate(row, 1))
    Image.fromarray(np.concatenate(rows)).quantize(16).save(path, optimize=True)


def run(draw: Draw, test: Draw, most: int, steps: int) -> tuple[dict[Key, list[Found]], dict[str, Network], float]:
    """What was found, by what networks are trained to name, network and seed; the networks of the first seed that name
    patches; and processor minutes."""
    found: dict[Key, list[Found]] = {(names, form): [] for names in SEEDS for form in FORMS}
    models: dict[str, Network] = {}
    started = time.process_time()
    for (names, form), several in found.items():
        for seed in range(min(most, SEEDS[names])):
            model = network(form, 1, 10, seed)
            learn(model, draw, steps, seed, names, BATCH)
            several.append(measure(model, test, names, 512))
            if names == "patches":
                models.setdefault(form, model)
            print(names, form, seed, several[-1], file=sys.stderr, flush=True)
    return found, models, (time.process_time() - started) / 60


def each(values: list[float]) -> str:
    """The mean and, in brackets, the values of all seeds."""
    return f"{sum(values) / len(values):.2f} ({', '.join(f'{v:.2f}' for v in values)})"


def section(found: dict[Key, list[Found]], models: dict[str, Network], steps: int, minutes: float) -> str:
    """The Markdown of what was found."""
    lines = ["| names | network | tree | purity | trees of other scenes | with background | named rightly |"]
    lines += ["|---|---|---|---:|---:|---:|---:|"]
    for (names, form), seeds in found.items():
        for reading in seeds[0].purity:
            cells = [each([one.purity[reading][i] for one in seeds]) for i in range(3)]
            named = each([one.named for one in seeds])
            lines.append(f"| {names} | {form} | {reading} | {' | '.join(cells)} | {named} |")
    lines.append("")
    for names in SEEDS:
        ours, plain = ([one.best for one in found[names, form]] for form in FORMS)
        gates = [one.gates for one in found[names, FORMS[0]] if one.gates is not None]
        more = sum(a > b for a, b in zip(ours, plain, strict=True))
        lower = sum(a > b for a, b in gates)
        what = "every patch" if names == "patches" else "what is in the image"
        lines.append(
            f"- Trained to name {what}: DependencyViT's trees are purer than the plain ViT's, at its better reading, "
            f"in {more} of {len(ours)} seeds. Its purity is at least {PURE}: {_holds(min(ours) >= PURE)} (least "
            f"{min(ours):.2f}); the plain ViT's at most {PLAIN}: "
            f"{_holds(max(plain) <= PLAIN)} (largest {max(plain):.2f}). Background's mean gate behind the last layer "
            f"is below the digits' in {lower} of {len(gates)} seeds "
            f"({', '.join(f'{b:.3f} to {a:.3f}' for a, b in gates)})."
        )
    lines += [
        "",
        f"{steps:,} steps of {BATCH} scenes, each seed in brackets, measured on 512 new scenes; "
        f"{' and '.join(f'{sum(p.numel() for p in m.parameters()):,}' for m in models.values())} parameters. Made in "
        f"{minutes:.0f} processor minutes with torch {torch.__version__} on {cpu_name()}, one thread, by:",
        "",
        "    python benchmarks/dependency_trees.py mnist_test --write",
    ]
    return "\n".join(lines)


def _holds(so: bool) -> str:
    return "holds" if so else "**does not hold**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--seeds", type=int, default=max(SEEDS.values()), help="at most")
    parser.add_argument("--steps", type=int, default=STEPS, help="of every training")
    parser.add_argument("--write", action="store_true", help=f"put the section into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--picture", type=Path, help="draw trees into this file")
    options = parser.parse_args()
    if options.write and (options.seeds, options.steps) != (max(SEEDS.values()), STEPS):
        parser.error("--write needs everything: leave out --seeds and --steps")
    torch.set_num_threads(1)
    images, labels = digits(options.source.resolve())
    draw, test = (scenes(images[part], labels[part]) for part in (slice(TRAINING), slice(TRAINING, None)))
    found, models, minutes = run(draw, test, options.seeds, options.steps)
    text = section(found, models, options.steps, minutes)
    print(text)
    if options.write:
        write_section(PAGE, "trees", text)
    if options.picture:
        picture(models, test, options.picture)


if __name__ == "__main__":
    main()

"""Make the pictures of docs/guides/look.md and of the pages of image backbones.

    python docs/look_pictures.py [RUN]

Trains a small Sparsifiner on the embedded digits (a minute of one core) and looks at one that it was not shown. RUN is
the folder of a comparison. Of image backbones, such as benchmarks/digits.py leaves, each looks at a digit of its test
data; of segmentation (benchmarks/scenes.py) those show their masks that have no other picture.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from foveate.analysis import look
from foveate.errors import InvalidType
from foveate.models.base import Model
from foveate.models.vision.sparsifiner import Sparsifiner
from foveate.registry import find
from foveate.tasks.classify_images.task import ClassifyImagesTask
from foveate.tasks.io import load_tensors
from foveate.tasks.sparsified import Sparsified
from foveate.tasks.trainer import train

OUT = Path(__file__).parent / "images" / "look"
STEPS = 900


def trained() -> tuple[ClassifyImagesTask, Model]:
    """A small Sparsifiner that reads the embedded digits."""
    task = ClassifyImagesTask.prepare(augment="shift")
    torch.manual_seed(0)
    model = Sparsifiner.for_task(task.info)
    with tempfile.TemporaryDirectory() as folder:
        told = train(
            model, Sparsified(task), task, steps=STEPS, lr=4e-3, seed=0, folder=Path(folder), validate_every=100
        )
    print(told.val, task.evaluate(model, "test").metrics)
    return task, model


def picture(task: ClassifyImagesTask, model: Model, name: str, query: tuple[int, int]) -> None:
    """Write what the first and the last layer read of the test data's first 8."""
    labels = task.batch("test", torch.arange(task.size("test")))["y"]
    eight = int((labels == task.info.class_names.index("8")).nonzero()[0])
    packaged: Any = task.package(model.eval())
    batch = task.batch("test", torch.tensor([eight]))["x"][0]
    pixels = (batch * packaged.scale[:, None, None] + packaged.mean[:, None, None]) * 255
    image = pixels.round().clamp(0, 255).to(torch.uint8).movedim(0, -1).numpy()
    found = look(packaged, image, layer=[0, -1], query=query, detail=128)
    print(name, found.likely())
    found.sheet().quantize(96).save(OUT / f"{name}.png", optimize=True)


def backbones(run: Path) -> None:
    """Pictures of all networks of a comparison that tell what they look at."""
    task = ClassifyImagesTask.prepare(json.loads((run / "foveate.json").read_text())["data"]["source"])
    for folder in sorted((run / "trials").iterdir()):
        trial = json.loads((folder / "config.json").read_text())
        if trial["kind"] != "model" or trial["system"] == "sparsifiner":
            continue
        model = find(trial["system"], "model").load().for_task(task.info, **trial["options"])
        model.load_state_dict(load_tensors(folder / "best.safetensors")[0])
        try:
            picture(task, model, trial["system"], (9, 15))
        except InvalidType as nothing:
            print(nothing)


def masks(board: dict[str, Any]) -> None:
    """Images, true masks and answers, as the comparison's report has them."""
    for row in board["rows"]:
        name = row["system"]
        if row["baseline"] or not row["examples"] or ":" in name or (OUT / f"{name}.png").exists():
            continue
        lines = [[image[key] for key in ("image", "truth", "answer")] for image in row["examples"]["images"]]
        cells = [[Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB") for png in line] for line in lines]
        wide, gap, head = 160, 8, 24
        sheet = Image.new("RGB", (3 * (wide + gap) + gap, head + len(lines) * (wide + gap)), "#ffffff")
        pen = ImageDraw.Draw(sheet)
        for column, title in enumerate(("image", "true mask", "answer")):
            left = gap + column * (wide + gap)
            pen.text((left, 4), title, fill="#17191c", font_size=13)
            for number, line in enumerate(cells):
                shown = line[column].resize((wide, wide), Image.Resampling.NEAREST)
                sheet.paste(shown, (left, head + number * (wide + gap)))
        sheet.quantize(96).save(OUT / f"{name}_masks.png", optimize=True)
        print(name, row["test"]["dice"]["mean"])


def main() -> None:
    """Write docs/images/look/*.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", nargs="?", type=Path, help="the folder of a comparison")
    run = parser.parse_args().run
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    if run is None:
        picture(*trained(), "sparsifiner", (15, 15))
        return
    board = json.loads((run / "leaderboard.json").read_text())
    masks(board) if board["task"] == "segment" else backbones(run)


if __name__ == "__main__":
    main()

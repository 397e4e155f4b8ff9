"""Make the pictures of docs/guides/look.md.

    python docs/look_pictures.py

Trains a small Sparsifiner on the embedded digits (a minute of one core) and looks at one that it was not shown.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from foveate.analysis import look
from foveate.models.vision.sparsifiner import Sparsifiner
from foveate.tasks.classify_images.task import ClassifyImagesTask
from foveate.tasks.sparsified import Sparsified
from foveate.tasks.trainer import train

OUT = Path(__file__).parent / "images" / "look"
STEPS = 900


def main() -> None:
    """Write docs/images/look/*.png."""
    torch.set_num_threads(1)
    task = ClassifyImagesTask.prepare(augment="shift")
    torch.manual_seed(0)
    model = Sparsifiner.for_task(task.info)
    with tempfile.TemporaryDirectory() as folder:
        told = train(
            model, Sparsified(task), task, steps=STEPS, lr=4e-3, seed=0, folder=Path(folder), validate_every=100
        )
    print(told.val, task.evaluate(model, "test").metrics)
    labels = task.batch("test", torch.arange(task.size("test")))["y"]
    eight = int((labels == task.info.class_names.index("8")).nonzero()[0])
    packaged = task.package(model.eval())
    batch = task.batch("test", torch.tensor([eight]))["x"][0]
    pixels = (batch * packaged.scale[:, None, None] + packaged.mean[:, None, None]) * 255
    image = pixels.round().clamp(0, 255).to(torch.uint8).movedim(0, -1).numpy()
    found = look(packaged, image, layer=[0, -1], query=(15, 15), detail=128)
    print(found.likely())
    OUT.mkdir(parents=True, exist_ok=True)
    found.sheet().quantize(96).save(OUT / "sparsifiner.png", optimize=True)


if __name__ == "__main__":
    main()

"""``foveate look`` as a user meets it: a trained model, a photo, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_cli import foveate_command, refused

from foveate import checkpoint
from foveate.models.vision.sparsifiner import Sparsifiner
from foveate.tasks.classify_images.task import ClassifyImagesTask

Image = pytest.importorskip("PIL.Image")

OPTIONS = {"patch_size": 2, "embed_dim": 8, "depth": 2, "num_heads": 2, "stem_width": 4, "coef_topk": 4}


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """A folder like ``best/``, with a model of the embedded digits, and a photo."""
    folder = tmp_path_factory.mktemp("look")
    task = ClassifyImagesTask.prepare(image_size=8)
    torch.manual_seed(0)
    model = Sparsifiner.for_task(task.info, reduce_n_factor=1, **OPTIONS)
    config = {"task": "classify-images", "system": "sparsifiner", "options": {**OPTIONS, "reduce_n_factor": 1}}
    made = task.package(model)
    checkpoint.save(folder / "best", made, {**config, "package": made.config})
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


def test_a_page_and_pictures_are_written(packaged, tmp_path):
    out = tmp_path / "out"
    made = foveate_command("look", packaged / "best", packaged / "photo.png", "--out", out, "--query", "10,20")
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    assert "photo.png, read as 8 x 8 pixels: " in made.stdout
    assert "model.blocks.1.attn  sparsifiner  4 x 4   attention, links" in made.stdout
    assert f"wrote {out / 'index.html'} and 2 pictures" in made.stdout
    assert {f.name for f in out.iterdir()} == {
        "index.html", "00_model.blocks.0.attn.png", "01_model.blocks.1.attn.png",
    }  # fmt: skip
    again = foveate_command("look", packaged / "best", packaged / "photo.png", "--out", out)
    assert again.returncode == 2
    assert again.stderr == f"foveate: --out {out} exists: choose another name, or replace it with --force.\n"
    forced = foveate_command("look", packaged / "best", packaged / "photo.png", "--out", out, "--force", "--json")
    facts = json.loads(forced.stdout)
    assert [layer["grid"] for layer in facts["layers"]] == [[4, 4], [4, 4]]
    assert facts["likely"][0]["probability"] >= facts["likely"][1]["probability"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["best", "photo.png", "--query", "48,0"], "query=48,0 is outside of photo.png: rows go from 0 to 47"),
        (["best", "photo.png", "--query", "middle"], "a pixel as ROW,COLUMN, or class, is needed"),
        (["best", "photo.png", "--layer", "7"], "layer=7 does not exist"),
        (["best", "best/config.json"], "is not an image that can be read"),
        (["best", "none.png"], "cannot be read (No such file or directory)"),
        (["best", "photo.png", "--size", "16"], "this model was trained on 8 x 8 pixels"),
        (["best", "photo.png", "--out", "no/where.html"], "the folder no does not exist"),
        (["mambaot_tiny", "photo.png"], "unknown model of images 'mambaot_tiny'"),
    ],
)
def test_bad_input_is_one_sentence(packaged, arguments, says):
    refused(foveate_command("look", *arguments, cwd=packaged), says)

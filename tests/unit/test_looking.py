"""Pictures of what models attend to: queries, grids, kinds of looks, files, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import foveate
from foveate.analysis import look
from foveate.analysis.looking.draw import panels, root_of
from foveate.analysis.looking.trace import Seen
from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.mixers import Look
from foveate.models import MixerNet
from foveate.models.vision.sparsifiner import Sparsifiner

Image = pytest.importorskip("PIL.Image")

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def sparsifiner(**options) -> Sparsifiner:
    torch.manual_seed(0)
    given = {"img_size": (32, 24), "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return Sparsifiner(**{**given, "reduce_n_factor": 1, "coef_topk": 4, **options}).eval()


def seen(*looks: Look) -> Seen:
    return Seen("attn", "toy", (3, 4), (8.0, 8.0), (1, 2), looks, 0.0, "(1, 2)")


BOXES = torch.tensor([[[[0.0, 0, 2, 2]], [[1, 1, 3, 3]]]])


def drawn(look: Look):
    return panels(seen(look), np.full((48, 64, 3), 100, np.uint8), (24, 32))


def test_every_layer_is_asked_about_the_place_of_the_query():
    found = look(sparsifiner(attn_keep_rate=1.0), PIXELS, query=(39, 59 - 16))
    assert [one.path for one in found.layers] == ["blocks.0.attn", "blocks.1.attn"]
    one = found.layers[0]
    assert (one.mixer, one.grid, one.stride) == ("sparsifiner", (4, 3), (8.0, 8.0))
    assert one.query == (3, 2)  # the crop to 3 : 4 takes 15 columns off each side
    weights = one.looks[0].values
    assert weights.shape == (1, 2, 4, 3)
    assert 0 < one.beside < 1
    assert float(weights.sum((2, 3)).mean()) == pytest.approx(1 - one.beside, abs=1e-6)
    assert 1 <= one.spread() <= 12
    assert 0 <= one.distance() <= 40


def test_weights_are_those_of_the_model():
    model = sparsifiner()
    found = look(model, PIXELS, layer=0, query=(0, 30))
    kept = []
    model.blocks[0].attn.register_forward_pre_hook(lambda m, given: kept.append(given[0]))
    model(found.image.input)
    q, k, _ = model.blocks[0].attn.project(kept[0])
    attn = model.blocks[0].attn
    weights = attn.sparse_map(q, k, attn.mask_predictor(q, k).mask)
    place = 1 + found.layers[0].query[0] * 3 + found.layers[0].query[1]
    torch.testing.assert_close(found.layers[0].looks[0].values.flatten(2), weights[:, :, place, 1:].detach())


def test_the_class_token_can_be_asked():
    found = look(sparsifiner(), PIXELS, query="class")
    assert found.layers[0].query is None
    assert np.isnan(found.layers[0].distance())
    assert found.layers[0].looks[1].values.all()  # it links to everything


def test_networks_around_a_mixer_are_looked_into():
    model = MixerNet("sparsifiner", reads="image", answers="classes", size=(16, 24), channels=1, outputs=3, patch=4)
    found = look(model, PIXELS)
    assert [one.grid for one in found.layers] == [(4, 6), (4, 6)]
    assert found.image.input.shape == (1, 1, 16, 24)
    assert [p for _, p in found.likely()] == sorted((p for _, p in found.likely()), reverse=True)


def test_layers_are_chosen_by_number_or_path():
    model = sparsifiner()
    for layer, paths in ((-1, ["blocks.1.attn"]), (["blocks.1.attn", 0], ["blocks.0.attn", "blocks.1.attn"])):
        assert [one.path for one in look(model, PIXELS, layer=layer).layers] == paths
    with pytest.raises(InvalidValue, match="layer=2 does not exist: Sparsifiner has 2 that can be looked at, 0 to 1"):
        look(model, PIXELS, layer=2)
    with pytest.raises(UnknownName, match=r"unknown layer 'blocks.1.attm': did you mean 'blocks.1.attn'"):
        look(model, PIXELS, layer="blocks.1.attm")


@pytest.mark.parametrize(
    ("one", "titles"),
    [
        (Look("weights", torch.rand(1, 2, 3, 4), "attention"), ["attention, mean of 2 heads", "head 1", "head 2"]),
        (Look("weights", torch.rand(1, 1, 3, 4), "attention"), ["attention"]),
        (Look("visible", torch.rand(1, 1, 3, 4) > 0.5, "window"), ["window"]),
        (Look("boxes", BOXES, "areas"), ["areas", "areas, head 1", "areas, head 2"]),
        (Look("tree", torch.tensor([[-1, 0, 0, 1, 1, 2, 3, 3, -1, 8, 9, 10]]), "tree"), ["tree"]),
        (Look("gate", torch.randn(1, 5, 3, 4), "gate"), ["gate, mean of 5 channels"]),
    ],
)
def test_every_kind_is_drawn(one, titles):
    found = drawn(one)
    assert [p.title for p in found] == titles
    for panel in found:
        assert panel.image.size == (64, 48)
        assert len(np.unique(np.asarray(panel.image).reshape(-1, 3), axis=0)) > 3


def test_what_is_not_visible_is_dark_and_what_is_read_is_hot():
    visible = torch.zeros(1, 1, 3, 4, dtype=torch.bool)
    visible[..., 0, 0] = True
    image = np.asarray(drawn(Look("visible", visible, "window"))[0].image).astype(int)
    assert image[8, 8].mean() > 2 * image[40, 56].mean()
    weights = torch.zeros(1, 1, 3, 4)
    weights[..., 2, 3] = 1.0
    image = np.asarray(drawn(Look("weights", weights, "attention"))[0].image).astype(int)
    assert image[40, 56].mean() > image[8, 8].mean() + 60


def test_trees_with_circles_are_drawn_too():
    assert root_of([1, 2, 0, 0], 3) == 0
    assert drawn(Look("tree", torch.tensor([[1, 2, 0, 0, *[-1] * 8]]), "tree"))


def test_files_are_written_and_never_over_others(tmp_path):
    found = look(sparsifiner(), PIXELS)
    files = found.save(tmp_path / "out")
    assert [f.name for f in files] == ["index.html", "00_blocks.0.attn.png", "01_blocks.1.attn.png"]
    page = files[0].read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "blocks.1.attn" in page
    assert page.count("data:image/") > 8
    with Image.open(files[1]) as sheet:
        assert sheet.width > 2 * found.image.pixels.shape[1]
    with pytest.raises(InvalidValue, match=r"index.html exists: choose another place, or replace it with force"):
        found.save(tmp_path / "out")
    assert found.save(tmp_path / "out", force=True) == files
    assert found.save(tmp_path / "one.png") == [tmp_path / "one.png"]
    assert found.save(tmp_path / "one.html") == [tmp_path / "one.html"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidValue, match="it is a file"):
        found.save(tmp_path / "file", force=True)
    json.dumps(found.facts(), allow_nan=False)


def test_random_weights_of_a_name_are_the_same_each_time():
    options = {"depth": 1, "embed_dim": 24, "num_heads": 3}
    state = torch.random.get_rng_state()
    first, second = (look("sparsifiner_small", PIXELS, options=options) for _ in range(2))
    assert torch.equal(first.answer, second.answer)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.subject.random


@pytest.mark.parametrize("query", [(40, 0), (0, 60), (-1, 5)])
def test_queries_outside_of_the_image_are_refused(query):
    with pytest.raises(InvalidValue, match="is outside of the image: rows go from 0 to 39, columns to 59"):
        look(sparsifiner(), PIXELS, query=query)


def test_other_queries_are_refused():
    with pytest.raises(InvalidValue, match="query=20,0 is not seen by the model: its crop of the image leaves it out"):
        look(sparsifiner(), PIXELS, query=(20, 0))
    with pytest.raises(InvalidValue, match=r"query='all' is not possible: a pixel \(row, column\) or 'class'"):
        look(sparsifiner(), PIXELS, query="all")
    model = MixerNet("sparsifiner", reads="image", answers="classes", size=(16, 24), channels=1, outputs=3, patch=4)
    with pytest.raises(InvalidValue, match="query='class' is not possible: no layer of MixerNet has a class token"):
        look(model, PIXELS, query="class")


def test_what_cannot_be_looked_into_is_refused(tmp_path):
    with pytest.raises(InvalidType, match="none of its mixers tells what it attends to"):
        look(nn.Conv2d(3, 4, 3), PIXELS)
    with pytest.raises(InvalidType, match="reads no images"):
        look(MixerNet("softmax_attention"), PIXELS)
    with pytest.raises(UnknownName, match=r"unknown model of images 'sparsifiner_smal'.*'sparsifiner_small'"):
        look("sparsifiner_smal", PIXELS)
    sparsifiner().save_pretrained(tmp_path / "saved")
    assert look(tmp_path / "saved", PIXELS).subject.size == (32, 24)
    with pytest.raises(InvalidValue, match="holds a model with its weights"):
        look(tmp_path / "saved", PIXELS, pretrained="x")


def test_what_is_no_image_is_refused(tmp_path):
    model = sparsifiner()
    text, empty = tmp_path / "a.png", tmp_path / "b.png"
    text.write_text("no picture")
    empty.touch()
    for image, says in (
        (text, "is not an image that can be read"),
        (empty, "is empty"),
        (tmp_path, "is a folder: name one image in it"),
        (tmp_path / "c.png", "cannot be read"),
    ):
        with pytest.raises(InvalidValue, match=says):
            look(model, image)
    with pytest.raises(InvalidType, match=r"the image has shape \(4, 4, 2\) and type uint8"):
        look(model, PIXELS[:4, :4, :2])
    with pytest.raises(InvalidType, match="and type float32"):
        look(model, PIXELS.astype(np.float32))


def test_pictures_show_what_the_model_sees(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    found = look(foveate.load(_saved(tmp_path)), tmp_path / "photo.png", detail=64)
    assert found.image.name == "photo.png"
    assert found.image.pixels.shape == (64, 48, 3)  # the model's 32 x 24, in twice the detail


def _saved(folder):
    sparsifiner().save_pretrained(folder / "model")
    return folder / "model"

"""ViT: tokens, positions of other sizes, pooling, weights, looks."""

from __future__ import annotations

import pytest
import torch

from foveate.errors import InvalidValue
from foveate.mixers.softmax_attention import SoftmaxAttention
from foveate.models.official import load_official
from foveate.models.vision.parts import wave_positions
from foveate.models.vision.vit import ViT

SMALL = {"num_classes": 3, "size": 16, "patch_size": 4, "dim": 12, "depth": 2, "num_heads": 2}


@torch.no_grad()
def test_tokens_and_maps():
    model, x = ViT(**SMALL).eval(), torch.randn(2, 3, 18, 12)
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 1 + 5 * 3, 12)
    maps = model.pyramid(x)
    assert [tuple(m.shape) for m in maps] == [(2, 12, 5, 3)] * 2
    torch.testing.assert_close(model.norm(maps[-1].movedim(1, -1)).flatten(1, 2), tokens[:, 1:])
    assert model.forward_head(tokens, pre_logits=True).equal(tokens[:, 0])


def test_positions_of_the_own_grid_are_the_table():
    model = ViT(**SMALL)
    assert model.positions((4, 4)) is model.pos_embed
    assert model.positions((3, 7)).shape == (1, 22, 12)
    assert model.positions((3, 7))[:, :1].equal(model.pos_embed[:, :1])


def test_positions_of_a_narrow_network_begin_as_waves():
    """Every place has its own, near ones alike; the class token has none."""
    model = ViT(**{**SMALL, "dim": 16}, init="fan_in")
    own, places = model.pos_embed[0].detach().split((1, 16))
    assert own.abs().max() < 0.1
    apart = torch.cdist(places, places) + 10 * torch.eye(16)
    assert apart.min() > 1
    assert set(apart[0].topk(2, largest=False).indices.tolist()) == {1, 4}
    assert wave_positions(2, 3, 6).shape == (2, 3, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, "pool='max' is not possible: it must be one of token, avg"),
        ({"class_token": False}, "class_token=False is not possible: pool='token' classifies the class token"),
        ({"num_heads": 5}, "it must divide dim=12"),
        ({"init": "zeros"}, "init='zeros' is not possible: it must be one of published, fan_in"),
    ],
)
def test_illegal_options(options, message):
    with pytest.raises(InvalidValue, match=message):
        ViT(**{**SMALL, **options})


def test_names_of_transformers_repos():
    """Those that its own classes rename when they load, with a pooler that classifiers do not use."""
    names = {
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "blocks.": "vit.encoder.layer.",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.q_proj": "attention.attention.query",
        "attn.k_proj": "attention.attention.key",
        "attn.v_proj": "attention.attention.value",
        "attn.out_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "head.": "classifier.",
    }
    model, other, found = ViT(**SMALL), ViT(**SMALL), {}
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        found[f"vit.layernorm.{key[5:]}" if key.startswith("norm.") else key] = value
    load_official(other, {**found, "vit.pooler.dense.weight": torch.zeros(12, 12)}, "transformers")
    for name, value in model.state_dict().items():
        assert value.equal(other.state_dict()[name]), name


@pytest.mark.parametrize("position", ["none", "rope", "alibi"])
@pytest.mark.parametrize("causal", [False, True])
def test_looks_of_its_attention(position, causal):
    mixer = SoftmaxAttention(12, num_heads=2, causal=causal, position=position)
    grid = (3, 5) if position == "none" else (15,)
    x = torch.randn(2, *grid, 12)
    place = (1, 2) if position == "none" else (7,)
    (one,), (mean,) = mixer.look(x, place), mixer.look(x)
    assert one.values.shape == mean.values.shape == (2, 2, *grid)
    torch.testing.assert_close(one.values.flatten(2).sum(2), torch.ones(2, 2))
    torch.testing.assert_close(mean.values.flatten(2).sum(2), torch.ones(2, 2))
    behind = one.values.flatten(2)[:, :, 8:]
    assert bool((behind == 0).all()) == causal
    if position == "none" and not causal:
        q, k = (mixer._heads(project(x.flatten(1, 2))) for project in (mixer.q_proj, mixer.k_proj))
        torch.testing.assert_close(one.values.flatten(2), (q @ k.mT / 6**0.5).softmax(-1)[:, :, 7])

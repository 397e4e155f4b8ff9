"""Sparsifiner: links, phases, pruning, loading, training, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import foveate
from foveate.errors import InvalidType, InvalidValue
from foveate.mixers import aux_losses
from foveate.mixers.sparsifiner import SparsifinerAttention
from foveate.models.official import load_official
from foveate.models.vision.sparsifiner import Sparsifiner

TINY = {"img_size": (32, 24), "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
TINY |= {"reduce_n_factor": 1, "coef_topk": 4}


def tiny(**options) -> Sparsifiner:
    torch.manual_seed(0)
    return Sparsifiner(**{**TINY, **options}).eval()


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 24, generator=torch.Generator().manual_seed(1))


def test_rows_of_threshold_links_may_be_of_any_length():
    layer = SparsifinerAttention(16, num_heads=2, num_tokens=24, score_topk=False, score_threshold=0.01, coef_topk=2)
    x = torch.randn(2, 24, 16)
    q, k, _ = layer.project(x)
    found = layer.mask_predictor(q, k)
    assert torch.equal(found.mask, found.guess > 0.01)
    assert len(found.mask.sum(-1).unique()) > 1


def test_the_shared_projection_is_one_parameter():
    layer = SparsifinerAttention(16, num_heads=2, num_tokens=24, share_inout_proj=True, coef_topk=4)
    assert "mask_predictor.proj_back_n" not in layer.state_dict()
    twice = {**layer.state_dict(), "mask_predictor.proj_back_n": layer.mask_predictor.proj_n}
    load_official(layer, twice)


def test_links_of_masked_tokens_are_few_where_few_are_left():
    layer = SparsifinerAttention(16, num_heads=2, num_tokens=24, attn_keep_rate=0.5, coef_topk=4).eval()
    x, mask = torch.randn(1, 24, 16), torch.arange(24)[None] < 5
    q, k, _ = layer.project(x, mask)
    links = layer.connect(q, k, mask).mask
    assert torch.equal(links[0, 0, 0], mask[0])  # a budget of 12, and 5 tokens


def test_rows_of_pruned_tokens_can_be_cleared():
    layer = SparsifinerAttention(16, num_heads=2, num_tokens=24, prune_rows=True, coef_topk=4, class_token=True).eval()
    x, mask = torch.randn(1, 24, 16), torch.arange(24)[None] % 3 == 0
    q, k, _ = layer.project(x, mask)
    links = layer.connect(q, k, mask).mask
    assert links[0, :, ~mask[0]].sum() == 0
    assert links[0, :, 0].all()


def test_phases():
    x = images()
    model = tiny(attn_keep_rate=0.2)
    sparse = model(x)
    model.set_phase("dense")
    dense = model(x)
    model.set_phase("reconstruct")
    assert torch.equal(model(x), sparse)  # in evaluation it is sparse
    model.train()
    torch.testing.assert_close(model(x), dense)
    assert not torch.allclose(sparse, dense)
    assert set(aux_losses(model)) == {"connectivity"}
    model.set_phase("sparse", 0.0)
    model(x)
    assert aux_losses(model) == {}


def test_only_the_guess_teaches_the_predictor():
    model = tiny(self_distil=0.0).train()
    model(images()).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if "mask_predictor" in name}
    assert grads
    assert all(g is None for g in grads.values())


def test_pruned_tokens_are_zero_and_stay_so():
    model = tiny(token_prune_layers=(0, 2), token_keep_rate=(0.5, 0.25))
    tokens, alive = model.tokens(images())
    assert alive is not None
    assert alive.sum(1).tolist() == [4, 4]  # the class token and a quarter of 12
    left = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, given, y: left.append((y[0] != 0).any(-1).sum(1)[0].item()))
    model(images())
    assert left == [7, 7, 4]
    assert tokens.shape == (2, 13, 16)


def test_no_token_is_pruned_while_attention_is_dense():
    model = tiny(token_prune_layers=(0,), token_keep_rate=0.5)
    model.set_phase("dense")
    assert model.tokens(images())[1] is None


def test_pyramid_and_heads():
    model = tiny(representation_size=20)
    (found,) = model.features_only()(images())
    assert found.shape == (2, 16, 4, 3)
    assert (model.feature_info[0].channels, model.feature_info[0].reduction) == (16, 8)
    tokens = model.forward_features(images())
    torch.testing.assert_close(found[:, :, 1, 2], tokens[:, 1 + 1 * 3 + 2])
    assert model.forward_head(tokens, pre_logits=True).shape == (2, 20)
    model.reset_classifier(7)
    assert model(images()).shape == (2, 7)
    model.reset_classifier(0)
    assert model(images()).shape == (2, 20)


def test_a_dense_head_speaks_in_evaluation_alone():
    model = tiny(stem="conv", dense_head=True, divisor=2.0)
    tokens = model.forward_features(images())
    own = model.head(tokens[:, 0])
    torch.testing.assert_close(model.forward_head(tokens), own + 0.5 * model.aux_head(tokens[:, 1:]).amax(1))
    model.train()
    torch.testing.assert_close(model.forward_head(tokens), own)
    model.reset_classifier(3)
    assert model.aux_head.out_features == 3


@pytest.mark.parametrize("size", [(31, 24), (33, 29), (40, 35)])
def test_both_stems_cover_odd_sizes(size):
    for stem in ("patch", "conv"):
        model = tiny(stem=stem, img_size=size)
        assert model(torch.randn(1, 3, *size)).shape == (1, 5)


def test_a_dense_network_gives_its_weights():
    """DeiT has no predictors, and positions of another square grid are interpolated."""
    model, teacher = tiny(img_size=32), tiny(img_size=24, attn_keep_rate=1.0)
    given = {k: v for k, v in teacher.state_dict().items() if "mask_predictor" not in k}
    own = model.blocks[1].attn.mask_predictor.proj_n.clone()
    load_official(model, given, "deit")
    assert torch.equal(model.blocks[1].attn.mask_predictor.proj_n, own)
    assert torch.equal(model.pos_embed[:, 0], teacher.pos_embed[:, 0])
    torch.testing.assert_close(model.pos_embed[0, 1], teacher.pos_embed[0, 1])  # a corner
    same = tiny(img_size=24, attn_keep_rate=1.0)
    load_official(same, given, "deit")
    x = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(same(x), teacher(x))
    with pytest.raises(InvalidValue, match=r"missing .*blocks\.0\.attn\.mask_predictor"):
        load_official(model, given)


def test_published_sizes_are_known_by_name():
    with torch.device("meta"):
        model = foveate.create("sparsifiner_lvvit_small")
    assert (len(model.blocks), model.patch_embed.conv1.out_channels) == (16, 64)
    assert [a.mask_predictor.budget for a in (b.attn for b in model.blocks)] == [50] * 16


def test_a_published_size_for_a_task_has_the_images_size():
    info = SimpleNamespace(task="classify-images", size=(224, 160), channels=3, classes=4)
    with torch.device("meta"):
        model = Sparsifiner.for_task(info, configuration="sparsifiner_small")
    assert model.grid == (14, 10)


def test_looks_show_what_is_linked():
    layer = SparsifinerAttention(16, num_heads=2, num_tokens=(4, 6), coef_topk=4).eval()
    weights, visible = layer.look(torch.randn(2, 4, 6, 16), (3, 5))
    assert (weights.kind, weights.values.shape) == ("weights", (2, 2, 4, 6))
    assert (visible.values.sum((2, 3)) == 6).all()
    assert ((weights.values > 0) == visible.values).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attn_keep_rate": 0.0}, "attn_keep_rate=0.0 is not possible: it must be above 0 and at most 1"),
        ({"attn_keep_rate": (0.5, 0.5)}, "one share, or one for each of the 3 blocks"),
        ({"coef_topk": 14}, "coef_topk=14 is not possible: it must be between 1 and 13"),
        ({"reduce_n_factor": 14}, "reduce_n_factor=14 is not possible: no basis is left of 13 tokens"),
        ({"reduce_c_factor": 9}, "reduce_c_factor=9 is not possible: no channel is left of a head of 8"),
        ({"score_topk": False, "score_threshold": 0.0}, "score_threshold=0.0 is not possible"),
        ({"num_heads": 3}, "num_heads=3 is not possible: it must divide dim=16"),
        ({"token_prune_layers": (3,)}, r"token_prune_layers=\(3,\) is not possible: rising numbers of blocks, 0 to 2"),
        ({"token_prune_layers": (0, 1), "token_keep_rate": (0.3, 0.6)}, "a later block cannot leave more tokens"),
        ({"token_prune_layers": (0,), "token_keep_rate": 1.5}, "token_keep_rate=1.5 is not possible"),
        ({"img_size": (32, 7)}, "each of the two sides needs at least 8 pixels"),
        ({"stem": "conv", "patch_size": 7}, "patch_size=7 is not possible: the stem of convolutions needs an even one"),
        ({"stem": "none"}, "stem='none' is not possible: it must be one of patch, conv"),
        ({"phase": "none"}, "phase='none' is not possible"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(InvalidValue, match=says):
        tiny(**options)


def test_other_images_are_refused():
    model = tiny()
    with pytest.raises(InvalidValue, match="an image of 24 x 32 pixels is not possible: it was built for 32 x 24"):
        model(torch.randn(1, 3, 24, 32))
    with pytest.raises(InvalidType, match="must be floating point"):
        model(torch.zeros(1, 3, 32, 24, dtype=torch.uint8))


def test_another_number_of_tokens_is_refused():
    layer = SparsifinerAttention(16, num_heads=2, num_tokens=24, coef_topk=4)
    with pytest.raises(InvalidValue, match=r"grid \(25,\) is not possible: it must be \(24,\)"):
        layer(torch.randn(1, 25, 16))
    with pytest.raises(InvalidValue, match="has no class token"):
        layer.class_scores(torch.randn(1, 24, 16))
    with pytest.raises(InvalidValue, match="has no place for it"):
        SparsifinerAttention(16, num_heads=2, num_tokens=(4, 6), class_token=True)

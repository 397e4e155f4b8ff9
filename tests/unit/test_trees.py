"""The measure of benchmarks/dependency_trees.md and of DependencyViT's learned claim, and what it is measured on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foveate.claims._trees import (
    GRID,
    PARTS,
    Names,
    attention,
    learn,
    measure,
    network,
    patch_kinds,
    patch_scores,
    purity,
    two_part_objects,
)
from foveate.mixers.dependency_vit import extract_tree, subtrees
from foveate.models.vision.vit import ViT


def pair_by_pair(parents: Tensor, owner: Tensor, background: bool) -> float:
    """Purity of one tree, by its definition."""
    below = subtrees(parents[None])[0]
    means = []
    for kind in range(int(owner.max()) + 1):
        members = (owner == kind).nonzero().flatten().tolist()
        shares = []
        for i in members:
            for j in members:
                if i != j:
                    both = below[below[:, i] & below[:, j]]
                    smallest = both[both.sum(1).argmin()]
                    inside = smallest if background else smallest & (owner >= 0)
                    shares.append(float((owner[inside] == kind).float().mean()))
        means.append(sum(shares) / len(shares))
    return sum(means) / len(means)


@pytest.mark.parametrize("background", [False, True])
def test_purity_is_that_of_all_pairs(background: bool):
    generator = torch.Generator().manual_seed(0)
    parents = extract_tree(torch.rand(4, 14, 14, generator=generator))
    owner = torch.rand(4, 14, generator=generator).argsort(1) % 3 - 1
    wanted = [pair_by_pair(*pair, background) for pair in zip(parents, owner, strict=True)]
    torch.testing.assert_close(purity(parents, owner, background), torch.tensor(wanted, dtype=torch.float64))


def test_objects_with_subtrees_of_their_own_are_pure_and_a_chain_through_both_is_not():
    parents = torch.tensor([[-1, 0, 1, 1, 0, 4, 4]])  # under the root: 1 with 2 and 3, 4 with 5 and 6
    assert purity(parents, torch.tensor([[-1, 0, 0, 0, 1, 1, 1]])) == 1
    assert purity(parents, torch.tensor([[-1, 0, 0, 1, 1, 1, 0]])) < 0.7
    assert purity(parents, torch.tensor([[-1, -1, 0, 0, -1, 1, 1]])) == 1
    assert purity(parents, torch.tensor([[-1, -1, 0, 0, -1, 1, 1]]), background=True) == pytest.approx(2 / 3)


def test_an_object_is_one_part_above_another():
    x, kinds, owner = two_part_objects(64, torch.Generator().manual_seed(0))
    assert x.shape == (64, 3, 32, 32)
    assert kinds.shape == (64, 2)
    assert set(kinds.flatten().tolist()) == set(range(PARTS**2))
    for number in range(2):
        where = (owner == number).unflatten(1, (GRID, GRID))
        assert (where.sum((1, 2)) == 8).all()
        assert (where.any(2).sum(1) == 4).all()
        assert (where.any(1).sum(1) == 2).all()


def test_both_networks_are_measured_and_alike_in_size():
    sizes = {}
    for form, readings in (("dependency_vit", {"dependencies"}), ("vit", {"by rows", "by messages"})):
        model = network(form, 3, PARTS**2, seed=0)
        found = measure(model, two_part_objects, count=8)
        assert set(found.purity) == readings
        assert 0 < found.best <= 1
        assert (found.gates is None) == (form == "vit")
        sizes[form] = sum(p.numel() for p in model.parameters())
    assert sizes["dependency_vit"] == pytest.approx(sizes["vit"], rel=0.1)


@pytest.mark.parametrize("names", ["patches", "image"])
def test_both_networks_learn_to_name(names: Names):
    """Two objects again and again, which a few steps suffice for."""

    def same(count: int, _generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(part[:1].expand(count, *part.shape[1:]) for part in image)  # type: ignore[return-value]

    image = two_part_objects(1, torch.Generator().manual_seed(3))
    for form in ("dependency_vit", "vit"):
        model = network(form, 3, PARTS**2, seed=0)
        learn(model, same, 25, seed=0, names=names, batch=2)
        assert measure(model, same, names, count=2).named == 1


def test_patches_have_the_class_of_their_object():
    kinds, owner = torch.tensor([[3, 1]]), torch.tensor([[-1, 0, 1, 1]])
    assert patch_kinds(kinds, owner, background=4).tolist() == [[4, 3, 1, 1]]
    model = network("dependency_vit", 3, 4, seed=0).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(patch_scores(model, x).mean(1), model(x))
    assert patch_scores(network("vit", 3, 4, seed=0), x).shape == (2, GRID**2, 5)


def test_attention_is_what_the_layers_use():
    model = network("vit", 3, 4, seed=0).eval()
    assert isinstance(model, ViT)
    x = torch.randn(2, 3, 32, 32)
    found = attention(model, x)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 4, GRID**2))
    layer = model.get_submodule("blocks.0.attn")
    told = []
    layer.register_forward_hook(lambda mixer, given, _made: told.append(mixer.look(given[0], (5,))[0].values))
    model(x)
    torch.testing.assert_close(found[:, 0, 5], told[0].mean(1))

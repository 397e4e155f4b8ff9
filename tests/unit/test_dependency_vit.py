"""DependencyViT: the layer by the paper's steps, trees, parts, pruning, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers.dependency_vit import DependencyAttention, extract_tree, part_segments, subtrees
from foveate.models.vision.dependency_vit import DependencyViT
from foveate.ops import backend
from foveate.ops import reversed_attention as module
from foveate.ops.arborescence import maximum_arborescence
from foveate.ops.reversed_attention import reversed_attention


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def dense(mixer: DependencyAttention, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Output and dependency matrix, head by head and child by child."""
    heads, width = mixer.num_heads, mixer.head_dim
    q, k, v = mixer.qkv(x).chunk(3, -1)
    shares = (mixer.head_selector(x) / mixer.head_temperature).softmax(-1)
    sent = gate * torch.sigmoid(mixer.message_controller(x))[..., 0]
    y, found = torch.zeros_like(x), x.new_zeros(len(x), x.shape[1], x.shape[1])
    for b, h, i in itertools.product(range(len(x)), range(heads), range(x.shape[1])):
        part = slice(h * width, (h + 1) * width)
        weights = (k[b, :, part] @ q[b, i, part] / width**0.5).softmax(0) * shares[b, i, h] * sent[b, i]
        y[b, :, part] += weights[:, None] * v[b, i, part]
        found[b, :, i] += weights
    return mixer.proj(y), found


def test_the_layer_is_what_the_paper_says() -> None:
    mixer = DependencyAttention(12, num_heads=3, gate_start=0.0).double()
    x, gate = torch.randn(2, 3, 4, 12, dtype=torch.float64), torch.rand(2, 3, 4, dtype=torch.float64)
    y, after = mixer.send(x, gate)
    expected, found = dense(mixer, x.flatten(1, 2), gate.flatten(1))
    torch.testing.assert_close(y.flatten(1, 2), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mixer.dependency(x, gate), found, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.sum(1), after.flatten(1), rtol=1e-10, atol=1e-12)
    *_, received = mixer.send_and_weigh(x, gate)
    torch.testing.assert_close(received.flatten(1), found.sum(2), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_tiles_equal_the_definition(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_NUMBERS", 2 * 37 * 16)  # three tiles of children, one sample at a time
    q, k, v = (torch.randn(3, 2, n, e, dtype=torch.float64).requires_grad_() for n, e in ((41, 6), (37, 6), (41, 5)))
    mask = torch.rand(3, 37) < 0.6 if masked else None
    if mask is not None:
        mask[0] = False
    answers = []
    for form in ("reference", "torch"):
        with backend(form):
            o = reversed_attention(q, k, v, mask=mask, scale=0.7)
        answers.append((o, *torch.autograd.grad(o.sin().sum(), (q, k, v))))
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"q": torch.zeros(1, 2, 3)}, InvalidValue, "4 axes"),
        ({"v": torch.zeros(1, 2, 4, 5)}, InvalidValue, "must agree"),
        ({"k": torch.zeros(1, 2, 0, 5)}, InvalidValue, "empty"),
        ({"k": torch.zeros(1, 2, 3, 5).double()}, InvalidType, "one floating dtype"),
        ({"mask": torch.ones(1, 3)}, InvalidType, "must be bool"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, InvalidValue, r"\(1, 3\)"),
    ],
)
def test_the_op_refuses(change: dict[str, Tensor], error: type[Exception], says: str) -> None:
    given = {name: torch.zeros(1, 2, 3, 5) for name in "qkv"} | change
    with pytest.raises(error, match=says):
        reversed_attention(**given)


def best_tree(weights: Tensor, root: int) -> float:
    """The largest sum of any spanning tree, by trying all."""
    count, best = len(weights), -float("inf")
    for choice in itertools.product(range(count), repeat=count - 1):
        parents = list(choice)
        parents.insert(root, -1)
        for start in range(count):
            node = start
            for _ in range(count):
                node = parents[node] if node >= 0 else -1
            if node >= 0:
                break
        else:
            best = max(best, sum(float(weights[p, i]) for i, p in enumerate(parents) if p >= 0))
    return best


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_arborescences_are_the_largest(count: int) -> None:
    for _ in range(12):
        weights, root = torch.randn(1, count, count, dtype=torch.float64), int(torch.randint(count, ()))
        parents = maximum_arborescence(weights, root)[0].tolist()
        assert parents[root] == -1
        total = sum(float(weights[0, p, i]) for i, p in enumerate(parents) if p >= 0)
        assert total == pytest.approx(best_tree(weights[0], root))


def test_arborescences_refuse() -> None:
    for weights, root, says in (
        (torch.zeros(2, 3), 0, r"\(batch, n, n\)"),
        (torch.full((1, 2, 2), torch.nan), 0, "finite"),
        (torch.zeros(1, 2, 2), 2, "root=2"),
    ):
        with pytest.raises(InvalidValue, match=says):
            maximum_arborescence(weights, root)
    with pytest.raises(InvalidType, match="floating"):
        maximum_arborescence(torch.zeros(1, 2, 2, dtype=torch.int64), 0)


def test_subtrees_and_parts() -> None:
    parents = torch.tensor([[-1, 0, 1, 1, 0, 4, 4]])
    below = subtrees(parents)[0]
    assert below[0].all()
    assert below[1].tolist() == [False, True, True, True, False, False, False]
    assert below[5].nonzero().flatten().tolist() == [5]
    parts = part_segments(parents, 3)[0]
    assert len(parts.unique()) == 3
    assert parts[0] == 0
    assert len({int(parts[i]) for i in (1, 2, 3)}) == 1
    assert len({int(parts[i]) for i in (4, 5, 6)}) == 1
    assert part_segments(parents, 1).sum() == 0
    assert len(part_segments(parents, 7).unique()) == 7
    with pytest.raises(InvalidValue, match="k=8"):
        part_segments(parents, 8)


def test_the_root_receives_most() -> None:
    dependency = torch.rand(4, 9, 9)
    parents = extract_tree(dependency)
    assert torch.equal((parents < 0).long().argmax(1), dependency.sum(2).argmax(1))
    with pytest.raises(InvalidValue, match=r"\(batch, n, n\)"):
        extract_tree(dependency[0])


def network(**options: object) -> DependencyViT:
    given = {"embed_dim": 24, "depth": 4, "num_heads": 3, "init_values": 1.0, "gate_start": 0.5, "num_classes": 5}
    return DependencyViT(40, 8, **{**given, **options}).eval()


@pytest.mark.parametrize("by", ["sent", "received"])
def test_pruning_leaves_the_best(by: str) -> None:
    model = network(prune_layers=(2, 3), prune_ratio=0.2, prune_by=by)
    assert model.pruned(25) == [25, 20, 15, 15]
    x = torch.randn(2, 3, 40, 40)
    matrices, gates = model.dependencies(x)
    (features,) = model.pyramid(x)
    assert ((features != 0).any(1).flatten(1).sum(1) == 15).all()
    score = gates[:, 1] if by == "sent" else matrices[:, 1].sum(2)
    kept = gates[:, 2] > 0
    assert (kept.sum(1) == 20).all()
    lowest = score.masked_fill(~kept, torch.inf).amin(1)
    assert (score.masked_fill(kept, -torch.inf).amax(1) <= lowest).all()
    torch.testing.assert_close(model(x), model.forward_head(features))
    # The mean of the patches that are left, not of all places.
    pooled = features.flatten(2).sum(2) / 15
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)


def test_gates_travel_through_the_network() -> None:
    model = network()
    x = torch.randn(1, 3, 40, 40)
    _, gates = model.dependencies(x)
    assert (gates[:, 1:] < gates[:, :-1]).all()
    y = model(x)
    with torch.no_grad():
        model.blocks[0].attn.message_controller.fc2.bias.fill_(-1e4)
    assert model.dependencies(x)[1].max() == 0
    assert not torch.allclose(model(x), y)


def test_trees_of_images() -> None:
    parents = network().tree(torch.randn(3, 3, 36, 50))
    assert parents.shape == (3, 5 * 7)
    assert ((parents < 0).sum(1) == 1).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prune_layers": (5,)}, "prune_layers"),
        ({"prune_layers": (3, 2)}, "prune_layers"),
        ({"prune_layers": (1, 2), "prune_ratio": 0.5}, "prune_ratio"),
        ({"prune_by": "luck"}, "prune_by"),
        ({"init": "zeros"}, "init"),
        ({"head_temperature": 0.0}, "head_temperature"),
        ({"num_heads": 5}, "num_heads"),
    ],
)
def test_illegal_options(options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        network(**options)


def test_gates_that_do_not_fit() -> None:
    mixer, x = DependencyAttention(12, num_heads=3), torch.randn(2, 5, 12)
    with pytest.raises(InvalidValue, match="gate has shape"):
        mixer.send(x, torch.ones(2, 4))
    with pytest.raises(InvalidType, match="gate must be floating"):
        mixer.send(x, torch.ones(2, 5, dtype=torch.int64))
    with pytest.raises(InvalidValue, match="gate must lie in"):
        mixer.send(x, torch.full((2, 5), 1.5))


def test_looks() -> None:
    looks = DependencyAttention(12, num_heads=3).look(torch.randn(2, 3, 4, 12), (1, 2))
    assert [look.kind for look in looks] == ["weights", "weights", "tree", "gate"]
    for look in looks[:2]:
        sums = look.values.flatten(2).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))

"""Whether the tree that a vision transformer makes of an image's patches keeps each object together; no claims in here.

The measure is dendrogram purity (Heller and Ghahramani, "Bayesian Hierarchical Clustering", ICML 2005): of two patches
of one object, drawn at random, take the smallest subtree that has both; purity is the share of this object among the
patches of objects in it, on average. It is 1 where every object has a subtree of its own. Chance is what trees of other
images give: it knows where patches lie, and not what is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers.dependency_vit import extract_tree, subtrees
from ..mixers.softmax_attention import SoftmaxAttention
from ..models.vision.dependency_vit import DependencyViT
from ..models.vision.parts import to_channels_last
from ..models.vision.vit import ViT

#: Pixels along an image and along a patch, and patches along an image.
SIDE, PATCH = 32, 4
GRID = SIDE // PATCH
#: Kinds of parts. An object is one part above another, and its class is both.
PARTS = 2

#: Images ``(count, channels, SIDE, SIDE)``, the classes of their objects, int64 ``(count, objects)``, and the object of
#: every patch, int64 ``(count, GRID^2)``, -1 for background; from a count and a generator.
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor]]
Network = DependencyViT | ViT
#: What a network is trained to name: all classes in the "image", or the class of every one of its "patches".
Names = Literal["image", "patches"]


# Trees and their purity -----------------------------------------------------------------------------------------------


def purity(parents: Tensor, owner: Tensor, background: bool = False) -> Tensor:
    """Purity of objects in trees, mean over the objects of each image: ``(batch,)``.

    Args:
        parents: int64 ``(batch, n)``, the parent of every patch, -1 for the root.
        owner: int64 ``(batch, n)``, the object of every patch, -1 for background; each has two patches at least.
        background: background in a subtree counts against its purity; else it is left out.
    """
    below = subtrees(parents).double()
    member = (owner[..., None] == torch.arange(int(owner.max()) + 1, device=owner.device)).double()
    held = below @ member  # [node, object]
    # Pairs that first meet at a node are those that its subtree holds and no subtree of its children does.
    met = (held.square() * (parents >= 0)[..., None], parents.clamp(min=0)[..., None].expand_as(held))
    pairs = held.square() - torch.zeros_like(held).scatter_add_(1, met[1], met[0]) - member
    inside = below.sum(2) if background else held.sum(2)
    found = (pairs * held / inside[..., None].clamp(min=1)).sum(1) / pairs.sum(1)
    return found.mean(1)


@torch.no_grad()
def attention(model: ViT, x: Tensor) -> Tensor:
    """The weights of every block, mean over heads: ``(batch, depth, n, n)`` at ``[query, key]``; no class token."""
    found: list[Tensor] = []

    def keep(mixer: nn.Module, given: tuple[Tensor, ...], _made: Tensor) -> None:
        assert isinstance(mixer, SoftmaxAttention)
        q, k = (p(given[0]).unflatten(-1, (mixer.num_heads, -1)).transpose(1, 2) for p in (mixer.q_proj, mixer.k_proj))
        found.append((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).mean(1))

    handles = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, SoftmaxAttention)]
    model(x)
    for handle in handles:
        handle.remove()
    return torch.stack(found, 1)


@torch.no_grad()
def trees(model: Network, x: Tensor) -> dict[str, Tensor]:
    """Trees of the weights of all layers, by how these are read: int64 ``(batch, n)``, the parent of every patch.

    Ordinary attention is read both ways: "by rows", which sum to one over a child's parents as those of reversed
    attention do, and "by messages", which go from keys (children) to queries (parents).
    """
    if isinstance(model, DependencyViT):
        return {"dependencies": model.tree(x)}
    found = attention(model, x).sum(1)
    return {"by rows": extract_tree(found.mT), "by messages": extract_tree(found)}


@dataclass(frozen=True)
class Found:
    """What a trained network was measured to do.

    Attributes:
        named: share of images whose classes all score above all others, or of objects' patches that are named rightly.
        purity: of its trees, by how weights are read; the same with trees of other images; and with background counted.
        gates: mean gate behind the last layer, of patches of objects and of background; None: it has none.
    """

    named: float
    purity: dict[str, tuple[float, float, float]]
    gates: tuple[float, float] | None

    @property
    def best(self) -> float:
        """The largest purity, background left out."""
        return max(found for found, *_ in self.purity.values())


@torch.no_grad()
def measure(model: Network, draw: Draw, names: Names = "patches", count: int = 256) -> Found:
    """On new images."""
    model.eval()
    x, kinds, owner = draw(count, torch.Generator().manual_seed(12345))
    if names == "patches":
        named = float((patch_scores(model, x).argmax(-1) == patch_kinds(kinds, owner))[owner >= 0].float().mean())
    else:
        scores = model(x)
        there = F.one_hot(kinds, scores.shape[1]).amax(1).bool()
        worst = scores.masked_fill(~there, torch.inf).amin(1)
        named = float((worst > scores.masked_fill(there, -torch.inf).amax(1)).float().mean())
    found = {}
    for reading, parents in trees(model, x).items():
        ways = purity(parents, owner), purity(parents.roll(1, 0), owner), purity(parents, owner, background=True)
        found[reading] = tuple(float(way.mean()) for way in ways)
    gates = None
    if isinstance(model, DependencyViT):
        last, front = model.dependencies(x)[1][:, -1], owner >= 0
        gates = float(last[front].mean()), float(last[~front].mean())
    return Found(named, found, gates)  # type: ignore[arg-type]


# Networks and their training ------------------------------------------------------------------------------------------


def network(form: str, channels: int, classes: int, seed: int) -> Network:
    """Four layers of 64 channels: "dependency_vit", whose gates start at 0.88, or "vit" without a class token.

    It has one score more than classes, for background.
    """
    torch.manual_seed(seed)
    if form == "dependency_vit":
        options = {"embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0, "init_values": 1.0, "gate_start": 2.0}
        return DependencyViT(SIDE, PATCH, channels, classes + 1, **options, init="fan_in")
    options = {"dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0, "pool": "avg", "class_token": False}
    return ViT(channels, classes + 1, size=SIDE, patch_size=PATCH, **options, init="fan_in")


def patch_scores(model: Network, x: Tensor) -> Tensor:
    """Scores of every patch, by the classifier of the whole image: ``(batch, n, classes + 1)``."""
    tokens = to_channels_last(model.pyramid(x)[-1]).flatten(1, 2)
    return model.head(model.fc_norm(tokens) if isinstance(model, ViT) else tokens)


def patch_kinds(kinds: Tensor, owner: Tensor, background: int = -1) -> Tensor:
    """The class of every patch, int64 ``(batch, n)``."""
    return kinds.gather(1, owner.clamp(min=0)).masked_fill(owner < 0, background)


def learn(
    model: Network, draw: Draw, steps: int, seed: int, names: Names = "patches", batch: int = 32, rate: float = 2e-3
) -> None:
    """Train to name classes; the rate rises for 50 steps and falls over the last third."""
    model.train()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.99), weight_decay=0.05)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * min(1, (step + 1) / 50, 3 * (steps - step) / steps)
        x, kinds, owner = draw(batch, generator)
        if names == "patches":
            scores = patch_scores(model, x)
            loss = F.cross_entropy(scores.flatten(0, 1), patch_kinds(kinds, owner, scores.shape[2] - 1).flatten())
        else:
            scores = model(x)
            loss = F.binary_cross_entropy_with_logits(scores, F.one_hot(kinds, scores.shape[1]).amax(1).float())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


# Images of two objects ------------------------------------------------------------------------------------------------


def two_part_objects(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Two objects on noise, 16 pixels tall and 8 wide; a part is a square of one texture. See :data:`Draw`.

    Both objects are made of the same few parts: which classes there are is known only to who knows which parts belong
    together, and which one is above.
    """
    textures = torch.randn(PARTS, 3, PATCH, PATCH, generator=torch.Generator().manual_seed(1)).repeat(1, 1, 2, 2)
    places = apart(count, lambda n: torch.randint(12, (n, 2), generator=generator), _overlap)
    kinds = torch.randint(PARTS, (count, 2, 2), generator=generator)
    x = 0.3 * torch.randn(count, 3, 4, 8, 4, 8, generator=generator)
    owner, image = torch.full((count, 4, 4), -1), torch.arange(count)
    for number in range(2):
        row, column = places[:, number] // 4, places[:, number] % 4
        for part in range(2):
            x[image, :, row + part, :, column] += textures[kinds[:, number, part]]
            owner[image, row + part, column] = number
    owner = owner.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    return x.reshape(count, 3, SIDE, SIDE), kinds[..., 0] * PARTS + kinds[..., 1], owner


def _overlap(places: Tensor) -> Tensor:
    rows, columns = (places // 4).diff(dim=1), (places % 4).diff(dim=1)
    return ((rows.abs() < 2) & (columns == 0)).squeeze(1)


def apart(count: int, places: Callable[[int], Tensor], overlap: Callable[[Tensor], Tensor]) -> Tensor:
    """Draw places of two objects ``(count, 2, ...)`` again until they do not overlap."""
    found = places(count)
    while (bad := overlap(found)).any():
        found[bad] = places(int(bad.sum()))
    return found

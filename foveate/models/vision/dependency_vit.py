"""DependencyViT: a vision transformer whose patches send instead of gather, and in which a tree of patches emerges.

Ding et al., "Visual Dependency Transformers" (CVPR 2023, arXiv 2304.03282). Patches and learned positions as in ViT,
no class token, and blocks with layer scales g and a gate m (one for each patch) that travels through them::

    y, m <- send(norm(x), m);    x <- x + g y;    x <- x + g' mlp(norm(x))

The answer is read from the mean of ``norm(x) m`` over patches. The Lite form leaves out, behind the attention of some
layers, the patches that matter least, so that later layers have fewer. No code was released: what the paper leaves open
follows an unofficial module, and gates start open (:class:`~foveate.mixers.dependency_vit.DependencyAttention`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import invalid
from ...mixers.dependency_vit import DependencyAttention, extract_tree
from ...registry import register
from ...spec import ModelSpec
from .backbone import Backbone, Feature, make_classifier
from .parts import INITS, DropPath, Init, Mlp, drop_path_rates, init_transformer, to_channels_first, wave_positions

PruneBy = Literal["sent", "received"]


class _LayerScale(nn.Module):
    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(start)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, dim: int, hidden: int, scale: float, drop_path: float, options: dict[str, Any]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DependencyAttention(dim, **options)
        self.ls1 = _LayerScale(dim, scale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)
        self.ls2 = _LayerScale(dim, scale)
        self.drop_path = DropPath(drop_path)

    def attend(self, x: Tensor, gate: Tensor | None, weigh: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens after the attention, gates, and what every token received (if asked, else the gates)."""
        if weigh:
            y, gate, mass = self.attn.send_and_weigh(self.norm1(x), gate)
        else:
            y, gate = self.attn.send(self.norm1(x), gate)
            mass = gate
        return x + self.drop_path(self.ls1(y)), gate, mass

    def feed(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


@register("model", "dependency_vit")
class DependencyViT(Backbone):
    """DependencyViT, by default T/16.

    Images of any size: sides that the patch does not divide are padded with zeros at the right and bottom, and
    positions are interpolated (bicubic, antialiased).

    Args:
        img_size: pixels of a side, or (height, width), that the positions are learned for.
        patch_size: pixels of a patch's side.
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        embed_dim: channels of a token.
        depth: blocks.
        num_heads: must divide ``embed_dim``.
        mlp_ratio: inner width of the feed-forwards, in channels.
        qkv_bias, head_temperature, gate_start: see :class:`~foveate.mixers.dependency_vit.DependencyAttention`.
        init_values: where layer scales start.
        prune_layers: blocks, counted from 1, behind whose attention patches are left out; none: the full form.
        prune_ratio: share of the first number of patches that each of them leaves out.
        prune_by: which go first: those that "sent" least (by the gate), or that "received" least.
        drop_path_rate: of the last block; earlier ones have less.
        init: "published": linear layers and positions of deviation 0.02; "fan_in": linear layers but head selectors of
            variance 1 / inputs, and positions that begin as waves, with which a network of few channels learns several
            times faster.

    Raises:
        InvalidValue: an option that is not legal, or nothing is left behind the last pruning.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",))
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "dependency_vit_tiny": {"embed_dim": 192},
        "dependency_vit_small": {"embed_dim": 384},
        "dependency_vit_lite_tiny": {"embed_dim": 192, "prune_layers": (2, 5, 8, 11)},
    }

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        head_temperature: float = 0.1,
        gate_start: float = 4.0,
        init_values: float = 1e-6,
        prune_layers: Sequence[int] = (),
        prune_ratio: float = 0.16,
        prune_by: PruneBy = "sent",
        drop_path_rate: float = 0.0,
        init: Init = "published",
    ) -> None:
        super().__init__()
        if not isinstance(patch_size, int) or patch_size < 1:
            raise invalid("patch_size", patch_size, "a positive whole number is needed")
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if len(size) != 2 or min(size) < 1:
            raise invalid("img_size", img_size, "pixels of a side, or (height, width), are needed")
        layers = list(prune_layers)
        if layers != sorted(set(layers)) or any(not 1 <= layer <= depth for layer in layers):
            raise invalid("prune_layers", tuple(layers), f"blocks from 1 to {depth}, rising, are needed")
        if prune_ratio <= 0 or len(layers) * prune_ratio >= 1:
            raise invalid("prune_ratio", prune_ratio, f"{len(layers)} prunings must leave some of the patches")
        for name, value, legal in (("prune_by", prune_by, PruneBy), ("init", init, Init)):
            if value not in get_args(legal):
                raise invalid(name, value, f"it must be one of {', '.join(get_args(legal))}")
        self.patch_size, self.in_chans, self.num_classes, self.num_features = (
            patch_size,
            in_chans,
            num_classes,
            embed_dim,
        )
        self.prune_layers, self.prune_ratio, self.prune_by = layers, prune_ratio, prune_by
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        grid = [-(-side // patch_size) for side in size]
        self.pos_embed = nn.Parameter(torch.randn(1, *grid, embed_dim) * 0.02)
        options = {"num_heads": num_heads, "qkv_bias": qkv_bias}
        options |= {"head_temperature": head_temperature, "gate_start": gate_start}
        rates, hidden = drop_path_rates(drop_path_rate, [depth])[0], int(embed_dim * mlp_ratio)
        self.blocks = nn.ModuleList(_Block(embed_dim, hidden, init_values, rate, options) for rate in rates)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = make_classifier(embed_dim, num_classes)
        self.apply(INITS[init])
        for block in self.layers:
            init_transformer(block.attn.head_selector)  # at their temperature larger ones would choose for good
            nn.init.constant_(block.attn.message_controller.fc2.bias, gate_start)
        if init == "fan_in":
            with torch.no_grad():
                self.pos_embed.copy_(wave_positions(grid[0], grid[1], embed_dim))
        self.feature_info = (Feature("norm", embed_dim, patch_size),)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Four blocks of 64 channels on at most about 64 patches, 0.2 M parameters."""
        patch = max(2, -(-max(info.size) // 8))
        options: dict[str, Any] = {"img_size": tuple(info.size), "patch_size": patch, "embed_dim": 64, "depth": 4}
        return options | {"num_heads": 4, "mlp_ratio": 2.0, "init_values": 1.0, "init": "fan_in"}

    @property
    def layers(self) -> list[_Block]:
        """The blocks, in order."""
        return list(self.blocks)  # type: ignore[arg-type]

    def no_weight_decay(self) -> list[nn.Parameter]:
        """The positions."""
        return [self.pos_embed]

    def tokens(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to patches with positions, ``(B, h, w, embed_dim)``."""
        patch = self.patch_size
        x = F.pad(x, (0, -x.shape[3] % patch, 0, -x.shape[2] % patch))
        x = self.patch_embed(x).movedim(1, -1)
        positions = self.pos_embed
        if positions.shape[1:3] != x.shape[1:3]:
            wide = F.interpolate(positions.movedim(-1, 1), x.shape[1:3], mode="bicubic", antialias=True)
            positions = wide.movedim(1, -1)
        return x + positions

    def pruned(self, count: int) -> list[int]:
        """How many of ``count`` patches every block's feed-forward still has."""
        left, done = [], 0
        for layer in range(1, len(self.blocks) + 1):
            if layer in self.prune_layers:
                done += 1
                count = int(count * (1 - done * self.prune_ratio) / (1 - (done - 1) * self.prune_ratio) + 1e-9)
                count = max(1, count)
            left.append(count)
        return left

    def mix(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """All blocks.

        Args:
            x: ``(B, n, embed_dim)``.

        Returns:
            ``(B, k, embed_dim)`` and gates ``(B, k)`` of the patches that are left, and which they are, int64
            ``(B, k)``, None: all.
        """
        gate: Tensor | None = None
        kept: Tensor | None = None
        left = self.pruned(x.shape[1])
        for index, block in enumerate(self.layers):
            prunes = left[index] < x.shape[1]
            x, gate, mass = block.attend(x, gate, weigh=prunes and self.prune_by == "received")
            if prunes:
                best = mass.detach().topk(left[index], dim=1).indices.sort(1).values
                x = x.gather(1, best[..., None].expand(-1, -1, x.shape[2]))
                gate = gate.gather(1, best)
                kept = best if kept is None else kept.gather(1, best)
            x = block.feed(x)
        assert gate is not None  # there is at least one block
        return x, gate, kept

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The one map: gated tokens after the last norm, zeros where a patch was pruned; see :class:`Backbone`."""
        x = self.tokens(x)
        grid = x.shape[1:3]
        x, gate, kept = self.mix(x.flatten(1, 2))
        x = self.norm(x) * gate[..., None]
        if kept is not None:
            whole = x.new_zeros(x.shape[0], math.prod(grid), x.shape[2])
            x = whole.scatter(1, kept[..., None].expand_as(x), x)
        return [to_channels_first(x.unflatten(1, grid))]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The mean over the patches that are left, classified; see :class:`Backbone`."""
        places = features.shape[2] * features.shape[3]
        pooled = features.mean((2, 3)) * (places / self.pruned(places)[-1])
        return pooled if pre_logits else self.head(pooled)

    def dependencies(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What patches send each other, layer by layer.

        Args:
            x: ``(B, in_chans, H, W)``.

        Returns:
            ``(B, depth, n, n)`` at ``[parent, child]`` and gates ``(B, depth, n)``, of n patches row by row; zeros for
            those that were pruned before a layer.
        """
        self.check_images(x)
        x = self.tokens(x).flatten(1, 2)
        batch, count = x.shape[:2]
        kept = torch.arange(count, device=x.device).expand(batch, -1)
        gate: Tensor | None = None
        matrices, gates, left = [], [], self.pruned(count)
        for index, block in enumerate(self.layers):
            found = block.attn.dependency(block.norm1(x), gate)
            prunes = left[index] < x.shape[1]
            x, gate, mass = block.attend(x, gate, weigh=prunes and self.prune_by == "received")
            rows = x.new_zeros(batch, count, found.shape[2]).scatter(1, kept[..., None].expand_as(found), found)
            whole = x.new_zeros(batch, count, count)
            matrices.append(whole.scatter(2, kept[:, None].expand_as(rows), rows))
            gates.append(x.new_zeros(batch, count).scatter(1, kept, gate))
            if prunes:
                best = mass.topk(left[index], dim=1).indices.sort(1).values
                x = x.gather(1, best[..., None].expand(-1, -1, x.shape[2]))
                gate, kept = gate.gather(1, best), kept.gather(1, best)
            x = block.feed(x)
        return torch.stack(matrices, 1), torch.stack(gates, 1)

    def tree(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor:
        """The tree over patches: int64 ``(B, n)``, the parent of every patch row by row, -1 for the root.

        Args:
            x: ``(B, in_chans, H, W)``.
            layers: whose dependency matrices are added; None: all.
        """
        found = self.dependencies(x)[0]
        return extract_tree((found if layers is None else found[:, list(layers)]).sum(1))

"""Sparsifiner: a vision transformer whose attention computes the pairs that a predictor picks, and may prune tokens.

Wei et al., "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers" (CVPR 2023,
arXiv 2303.13755), as released. It is DeiT (arXiv 2012.12877), or LV-ViT (arXiv 2104.10858: a stem of convolutions,
halved branches, a classifier for every token), with :class:`~foveate.mixers.sparsifiner.SparsifinerAttention`::

    x = x + attention(norm(x)) / s;   x = x + mlp(norm(x)) / s;   pruned tokens are set to 0

It starts from a trained dense network and learns from it; :class:`~foveate.tasks.sparsified.Sparsified` does all of it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidValue, invalid
from ...mixers.parts import Linear
from ...mixers.sparsifiner import SparsifinerAttention
from ...mixers.sparsifiner.attention import Phase
from ...mixers.ssm import check_positive
from ...registry import register
from ...spec import ModelSpec
from .backbone import Backbone, Feature, make_classifier
from .parts import DropPath, Mlp, drop_path_rates, init_transformer

Stem = Literal["patch", "conv"]


class PatchEmbed(nn.Module):
    """One convolution whose stride is its edge: ``(B, C, H, W)`` to ``(B, h * w, dim)``."""

    def __init__(self, in_chans: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ConvEmbed(nn.Module):
    """LV-ViT's: three convolutions with batch norms, the first of stride 2, then one whose stride is its edge."""

    def __init__(self, in_chans: int, dim: int, patch: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.proj = nn.Conv2d(width, dim, patch // 2, patch // 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, h * w, dim)``."""
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        return self.proj(x).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and a feed-forward, each behind a norm; prunes tokens where it is told to.

    Args:
        attn: the attention.
        mlp: the feed-forward.
        eps: of the norms.
        drop_path: rate of stochastic depth.
        divisor: of both branches.
        keep: tokens left by this block, by what the class token reads; None: it prunes none.
    """

    def __init__(
        self, attn: SparsifinerAttention, mlp: Mlp, eps: float, drop_path: float, divisor: float, keep: int | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(attn.dim, eps=eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(attn.dim, eps=eps)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)
        self.divisor, self.keep = divisor, keep

    def forward(self, x: Tensor, alive: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """``(B, 1 + n, dim)`` in and out, and bool ``(B, 1 + n)``: the tokens that are left; None: all."""
        normed = self.norm1(x)
        y = self.attn(normed, mask=alive)
        if self.keep is not None and not self.attn.is_dense:
            with torch.no_grad():
                alive = self._prune(self.attn.class_scores(normed, alive), alive)
        x = x + self.drop_path(y) / self.divisor
        x = x + self.drop_path(self.mlp(self.norm2(x))) / self.divisor
        return (x if alive is None else x.masked_fill(~alive[..., None], 0)), alive

    def _prune(self, scores: Tensor, alive: Tensor | None) -> Tensor:
        scores = scores if alive is None else scores.masked_fill(~alive[:, 1:], -math.inf)
        places = scores.topk(self.keep, sorted=False)[1]  # type: ignore[arg-type]
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, places, True)
        return torch.cat([torch.ones_like(kept[:, :1]), kept], 1)


@register("model", "sparsifiner")
class Sparsifiner(Backbone):
    """Sparsifiner, by default on DeiT-S with a quarter of the pairs and all tokens.

    Of one size of image, given when it is built; what the patches do not cover of it is not read.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        img_size: pixels along both sides, or height and width.
        patch_size: edge of a patch; even for the stem of convolutions.
        embed_dim: channels of a token.
        depth: blocks.
        num_heads, qkv_bias, qk_scale: of the attention.
        mlp_ratio: inner width of the feed-forwards, in channels.
        attn_keep_rate: share of the tokens that each one links to; one for all blocks, or one for each.
        token_prune_layers: blocks, counted from 0, that prune tokens.
        token_keep_rate: share of all tokens that the first of them leaves, its square the second, and so on; or one
            share for each.
        reduce_n_factor, reduce_c_factor, share_inout_proj: of
            :class:`~foveate.mixers.sparsifiner.predictor.ConnectivityPredictor`.
        basis_threshold, coef_topk, coef_threshold, score_topk, score_threshold: of the same.
        prune_rows, phase, self_distil: of :class:`~foveate.mixers.sparsifiner.SparsifinerAttention`.
        stem: "patch" (DeiT's), or "conv" (LV-ViT's) of width ``stem_width``.
        stem_width: see there.
        divisor: of all residual branches.
        dense_head: in evaluation half of each class's largest logit over all tokens, by a classifier of their own, is
            added to the class token's.
        representation_size: channels of a layer with a tanh before the classifier; None: there is none.
        norm_eps: of all norms.
        drop_rate: dropout behind the positions and in the feed-forwards.
        drop_path_rate: of the last block; earlier ones have less.

    Raises:
        InvalidValue: an option that is not legal.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",))
    recipe: ClassVar[str] = "foveate.tasks.sparsified.Sparsified"
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "sparsifiner_small": {},
        "sparsifiner_small_pruned": {"token_prune_layers": (3, 6, 9), "token_keep_rate": 0.7},
        "sparsifiner_lvvit_small": {
            "depth": 16,
            "mlp_ratio": 3.0,
            "qkv_bias": False,
            "stem": "conv",
            "divisor": 2.0,
            "dense_head": True,
            "norm_eps": 1e-5,
        },
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {"sparsifiner": {r"(.+)": r"\1"}, "deit": {r"(.+)": r"\1"}}

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_keep_rate: float | Sequence[float] = 0.25,
        token_prune_layers: Sequence[int] = (),
        token_keep_rate: float | Sequence[float] = 0.7,
        reduce_n_factor: int = 6,
        reduce_c_factor: int = 2,
        share_inout_proj: bool = False,
        basis_threshold: float = 0.02,
        coef_topk: int | None = 8,
        coef_threshold: float = 0.0,
        score_topk: bool = True,
        score_threshold: float = 1e-4,
        prune_rows: bool = False,
        phase: Phase = "sparse",
        self_distil: float = 0.05,
        stem: Stem = "patch",
        stem_width: int = 64,
        divisor: float = 1.0,
        dense_head: bool = False,
        representation_size: int | None = None,
        norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(patch_size=patch_size, depth=depth, stem_width=stem_width)
        if stem not in get_args(Stem):
            raise invalid("stem", stem, f"it must be one of {', '.join(get_args(Stem))}")
        if stem == "conv" and patch_size % 2:
            raise invalid("patch_size", patch_size, "the stem of convolutions needs an even one")
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        # The first of the convolutions rounds up.
        cells = [-(-n // 2) // (patch_size // 2) if stem == "conv" else n // patch_size for n in self.img_size]
        if len(cells) != 2 or min(cells) < 1:
            raise invalid("img_size", img_size, f"each of the two sides needs at least {patch_size} pixels, a patch")
        self.grid = (cells[0], cells[1])
        patches = cells[0] * cells[1]
        rates = _per_layer("attn_keep_rate", attn_keep_rate, depth)
        keeps = _kept_tokens(token_prune_layers, token_keep_rate, depth, patches)
        self.in_chans, self.num_classes = in_chans, num_classes
        self.num_features = representation_size or embed_dim
        self.feature_info = (Feature("norm", embed_dim, patch_size),)
        self.patch_embed = (
            PatchEmbed(in_chans, embed_dim, patch_size)
            if stem == "patch"
            else ConvEmbed(in_chans, embed_dim, patch_size, stem_width)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList()
        left: int | None = None
        for i, drop_path in enumerate(drop_path_rates(drop_path_rate, [depth])[0]):
            attn = SparsifinerAttention(
                embed_dim,
                num_heads=num_heads,
                num_tokens=1 + patches,
                class_token=True,
                attn_keep_rate=rates[i],
                links_at_most=left,
                reduce_n_factor=reduce_n_factor,
                reduce_c_factor=reduce_c_factor,
                share_inout_proj=share_inout_proj,
                basis_threshold=basis_threshold,
                coef_topk=coef_topk,
                coef_threshold=coef_threshold,
                score_topk=score_topk,
                score_threshold=score_threshold,
                prune_rows=prune_rows,
                phase=phase,
                self_distil=self_distil,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
            )
            mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio), drop_rate)
            self.blocks.append(Block(attn, mlp, norm_eps, drop_path, divisor, keeps.get(i)))
            left = keeps.get(i, left)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        pre = [("fc", Linear(embed_dim, self.num_features)), ("act", nn.Tanh())] if representation_size else []
        self.pre_logits = nn.Sequential(OrderedDict(pre))
        self.head = make_classifier(self.num_features, num_classes)
        self.aux_head = make_classifier(embed_dim, num_classes) if dense_head else None
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(init_transformer)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Four narrow blocks behind a small stem of convolutions, a quarter of the pairs."""
        edge = next(p for p in (4, 8, 16, 32) if (min(info.size) // p) ** 2 <= 128 or p == 32)
        cells = [-(-n // 2) // (edge // 2) for n in info.size]
        options = SparsifinerAttention.options_for((1 + cells[0] * cells[1],))
        return {
            "img_size": tuple(info.size),
            "patch_size": edge,
            "embed_dim": 64,
            "depth": 4,
            "num_heads": 4,
            "mlp_ratio": 2.0,
            "stem": "conv",
            "stem_width": 16,
            "reduce_n_factor": options["reduce_n_factor"],
            "coef_topk": options["coef_topk"],
        }

    @classmethod
    def for_task(cls, info: Any, configuration: str = "", **options: Any) -> Self:
        """As :meth:`Backbone.for_task`, for the size of the images."""
        return super().for_task(info, configuration, **{"img_size": tuple(info.size), **options})

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Class token and positions."""
        return [self.cls_token, self.pos_embed]

    def set_phase(self, phase: Phase, self_distil: float | None = None) -> None:
        """Set phase and, unless it is None, ``self_distil`` of all blocks."""
        for block in self.blocks:
            mixer: Any = block.attn
            mixer.phase = phase
            if self_distil is not None:
                mixer.self_distil = self_distil

    def check_images(self, x: Tensor) -> None:
        """Refuse anything but float images of the right channels and size.

        Raises:
            InvalidValue: another shape.
            InvalidType: whole numbers.
        """
        super().check_images(x)
        if tuple(x.shape[2:]) != self.img_size:
            raise InvalidValue(
                f"Sparsifiner: an image of {x.shape[2]} x {x.shape[3]} pixels is not possible: it was built for "
                f"{self.img_size[0]} x {self.img_size[1]}; resize it, or give another img_size."
            )

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """All tokens after the last norm, ``(B, 1 + n, embed_dim)``, the class token first; and which ones are left.

        Returns:
            The tokens, and bool ``(B, 1 + n)``, or None where all are left.
        """
        x = self.patch_embed(x)
        x = self.pos_drop(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed)
        alive = None
        for block in self.blocks:
            x, alive = block(x, alive)
        return self.norm(x), alive

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to the tokens of :meth:`tokens`; the input of :meth:`forward_head`."""
        return self.tokens(x)[0]

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The one map that there is, of the patches: ``(B, embed_dim, h, w)``."""
        return [self.forward_features(x)[:, 1:].transpose(1, 2).unflatten(-1, self.grid)]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, 1 + n, embed_dim)`` to logits ``(B, num_classes)``, or to what the classifier reads."""
        x = self.pre_logits(features[:, 0])
        if pre_logits:
            return x
        x = self.head(x)
        if self.aux_head is None or self.training or not self.num_classes:
            return x
        return x + 0.5 * self.aux_head(features[:, 1:]).amax(1)

    def reset_classifier(self, num_classes: int) -> None:
        """Put fresh linear layers in the classifiers' places; 0 classes: identities."""
        super().reset_classifier(num_classes)
        if self.aux_head is not None:
            self.aux_head = make_classifier(self.pos_embed.shape[-1], num_classes).to(self.pos_embed)

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Positions of another square grid are interpolated, as the release does; of DeiT's the predictors are left.

        A shared projection, which the release holds twice, is taken once.
        """
        own = self.state_dict()
        found = {key: value for key, value in state_dict.items() if not _is_copy(key, own)}
        found["pos_embed"] = self._resized(state_dict["pos_embed"]) if "pos_embed" in found else own["pos_embed"]
        if source == "deit":
            found |= {key: value for key, value in own.items() if ".mask_predictor." in key}
        return found

    def _resized(self, positions: Tensor) -> Tensor:
        """Positions ``(1, 1 + n, dim)`` of a square grid, for this one."""
        if positions.ndim != 3 or positions.shape[1] == self.pos_embed.shape[1]:
            return positions
        edge = math.isqrt(positions.shape[1] - 1)
        if edge * edge != positions.shape[1] - 1:
            return positions
        grid = positions[:, 1:].unflatten(1, (edge, edge)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, self.grid, mode="bilinear").flatten(2).transpose(1, 2)
        return torch.cat([positions[:, :1], grid], 1)


def _is_copy(key: str, own: Mapping[str, Tensor]) -> bool:
    return key.endswith("mask_predictor.proj_back_n") and key not in own


def _per_layer(name: str, value: float | Sequence[float], depth: int) -> list[float]:
    values = [float(value)] * depth if isinstance(value, int | float) else list(value)
    if len(values) != depth:
        raise invalid(name, value, f"one share, or one for each of the {depth} blocks, is needed")
    return values


def _kept_tokens(layers: Sequence[int], rate: float | Sequence[float], depth: int, patches: int) -> dict[int, int]:
    """How many tokens each block that prunes leaves."""
    if list(layers) != sorted(set(layers)) or any(not 0 <= i < depth for i in layers):
        raise invalid("token_prune_layers", tuple(layers), f"rising numbers of blocks, 0 to {depth - 1}, are needed")
    rates = [rate ** (i + 1) for i in range(len(layers))] if isinstance(rate, int | float) else list(rate)
    if len(rates) != len(layers) or any(not 0 < r <= 1 for r in (*rates, rate if isinstance(rate, float) else 1)):
        legal = "a share above 0 and at most 1, or one for each block that prunes, is needed"
        raise invalid("token_keep_rate", rate, legal)
    kept = {i: math.ceil(r * patches) for i, r in zip(layers, rates, strict=True)}
    if any(a < b for a, b in zip(list(kept.values()), list(kept.values())[1:], strict=False)):
        raise invalid("token_keep_rate", rate, "a later block cannot leave more tokens than an earlier one")
    return kept

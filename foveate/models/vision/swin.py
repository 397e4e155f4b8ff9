"""Swin Transformer: a pyramid of maps whose tokens attend inside shifted windows.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (ICCV 2021, arXiv 2103.14030).
Patches of 4 x 4 pixels become tokens; four stages of blocks, each stage on a map half as large as the one before and
with twice the channels; the mean of the last map, normed, is classified. The layer is
:class:`~foveate.mixers.swin.ShiftedWindows`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ...errors import invalid
from ...mixers.base import Mixer
from ...mixers.swin import ShiftedWindows
from ...mixers.vsa import VariedSizeWindowAttention
from ...registry import register
from ...spec import ModelSpec
from .backbone import Backbone, Feature, make_classifier
from .parts import INITS, Init, check_stages, drop_path_rates, to_channels_first, to_channels_last
from .swin_stage import PatchEmbed, SwinStage

Rules = Literal["official", "timm"]
Attention = Literal["shifted", "vsa"]

_STAGE = r"layers\.(\d+)\."
_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_IN_BLOCK = r"(norm[12]\.\w+|attn\.(?:qkv|proj)\.\w+|attn\.relative_position_bias_table|mlp\.fc[12]\.\w+)"
_THEIRS = r"(?:swin\.)?encoder\.layers\.(\d+)\.blocks\.(\d+)\."


@register("model", "swin")
class Swin(Backbone):
    """Swin: windows of attention that shift from block to block, on a pyramid of maps.

    Images of any size: pixels, windows and merged places are padded behind their ends.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        size: pixels (height, width, or both) of the images it is for: a stage whose map is no larger than a window
            there has windows of the map's size, which its tables of biases belong to.
        patch_size: pixels along a token.
        embed_dim: channels of the first stage; each further one has twice as many.
        depths: blocks by stage.
        num_heads: heads by stage.
        window: tokens along a window.
        mlp_ratio: hidden channels of the feed-forwards, in those of their stage.
        qkv_bias: queries, keys and values have biases.
        dropout: of tokens, behind feed-forwards and before the classifier.
        drop_path_rate: of the last block; it rises from 0 linearly.
        rules: where windows do not fit a map, "official" pads before shifting and shifts no map that one window covers
            along either axis, as the release and transformers do; "timm" pads after shifting, and shifts along the axes
            that ``size`` says. The same on images of ``size`` whose maps the windows divide.
        always_partition: windows keep their size and shift on small maps too, as in detectors.
        attention: "shifted": Swin's; "vsa": varied-size windows in every block, none of them shifted, behind a
            depthwise convolution (:class:`~foveate.mixers.vsa.VariedSizeWindowAttention`; Zhang et al., arXiv
            2204.08446, whose Swin was not released). Maps must be at least as large as a window.
        init: "published": linear layers and tables of biases of deviation 0.02; "fan_in": linear layers of variance
            1 / inputs and tables of variance 1, with which a network of few channels learns several times faster.

    Raises:
        InvalidValue: an option that is not possible.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",))
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "swin_tiny": {
            "embed_dim": 96,
            "depths": (2, 2, 6, 2),
            "num_heads": (3, 6, 12, 24),
            "drop_path_rate": 0.2,
        },
        "swin_small": {
            "embed_dim": 96,
            "depths": (2, 2, 18, 2),
            "num_heads": (3, 6, 12, 24),
            "drop_path_rate": 0.3,
        },
        "swin_tiny_vsa": {
            "embed_dim": 96,
            "depths": (2, 2, 6, 2),
            "num_heads": (3, 6, 12, 24),
            "drop_path_rate": 0.2,
            "attention": "vsa",
        },
        "swin_small_vsa": {
            "embed_dim": 96,
            "depths": (2, 2, 18, 2),
            "num_heads": (3, 6, 12, 24),
            "drop_path_rate": 0.3,
            "attention": "vsa",
        },
        "swin_base": {
            "embed_dim": 128,
            "depths": (2, 2, 18, 2),
            "num_heads": (4, 8, 16, 32),
            "drop_path_rate": 0.5,
        },
        "swin_base_384": {
            "size": 384,
            "window": 12,
            "embed_dim": 128,
            "depths": (2, 2, 18, 2),
            "num_heads": (4, 8, 16, 32),
            "drop_path_rate": 0.5,
        },
        "swin_large": {
            "embed_dim": 192,
            "depths": (2, 2, 18, 2),
            "num_heads": (6, 12, 24, 48),
            "drop_path_rate": 0.2,
        },
        "swin_large_384": {
            "size": 384,
            "window": 12,
            "embed_dim": 192,
            "depths": (2, 2, 18, 2),
            "num_heads": (6, 12, 24, 48),
            "drop_path_rate": 0.2,
        },
    }
    published_costs: ClassVar[dict[str, tuple[float, float, int]]] = {
        "swin_tiny": (29, 4.5, 224),
        "swin_small": (50, 8.7, 224),
        "swin_base": (88, 15.4, 224),
        "swin_base_384": (88, 47.0, 384),
        "swin_large": (197, 34.5, 224),
        "swin_large_384": (197, 103.9, 384),
    }
    cost_differences: ClassVar[dict[str, str]] = {
        "swin_tiny": "the paper's table rounds 28.3 million up to 29; the release says 28."
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "official": {  # and timm before 0.9; stages' numbers are moved by convert_official
            rf"{_BLOCK}(?:attn\.relative_position_index|attn_mask)": "",
            rf"{_BLOCK}{_IN_BLOCK}": r"layers.\1.blocks.\2.\3",
            rf"{_STAGE}downsample\.(norm|reduction)\.(\w+)": r"layers.\1.downsample.\2.\3",
            r"(patch_embed\.(?:proj|norm)|norm|head)\.(\w+)": r"\1.\2",
        },
        "timm": {
            rf"{_BLOCK}(?:attn\.relative_position_index|attn_mask)": "",
            rf"{_BLOCK}{_IN_BLOCK}": r"layers.\1.blocks.\2.\3",
            rf"{_STAGE}downsample\.(norm|reduction)\.(\w+)": r"layers.\1.downsample.\2.\3",
            r"(patch_embed\.(?:proj|norm)|norm)\.(\w+)": r"\1.\2",
            r"head\.fc\.(\w+)": r"head.\1",
        },
        "transformers": {  # queries, keys and values are joined by convert_official
            r".*\.relative_position_index": "",
            r"(?:swin\.)?embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
            r"(?:swin\.)?embeddings\.norm\.(\w+)": r"patch_embed.norm.\1",
            rf"{_THEIRS}attention\.qkv\.(\w+)": r"layers.\1.blocks.\2.attn.qkv.\3",
            rf"{_THEIRS}attention\.(?:o_proj|output\.dense)\.(\w+)": r"layers.\1.blocks.\2.attn.proj.\3",
            rf"{_THEIRS}attention\.(?:self|relative_position_bias)\.relative_position_bias_table": (
                r"layers.\1.blocks.\2.attn.relative_position_bias_table"
            ),
            rf"{_THEIRS}layernorm_before\.(\w+)": r"layers.\1.blocks.\2.norm1.\3",
            rf"{_THEIRS}layernorm_after\.(\w+)": r"layers.\1.blocks.\2.norm2.\3",
            rf"{_THEIRS}(?:mlp\.fc1|intermediate\.dense)\.(\w+)": r"layers.\1.blocks.\2.mlp.fc1.\3",
            rf"{_THEIRS}(?:mlp\.fc2|output\.dense)\.(\w+)": r"layers.\1.blocks.\2.mlp.fc2.\3",
            r"(?:swin\.)?encoder\.layers\.(\d+)\.downsample\.(\w+)\.(\w+)": r"layers.\1.downsample.\2.\3",
            r"(?:swin\.)?layernorm\.(\w+)": r"norm.\1",
            r"classifier\.(\w+)": r"head.\1",
        },
    }

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        drop_path_rate: float = 0.1,
        rules: Rules = "official",
        always_partition: bool = False,
        attention: Attention = "shifted",
        init: Init = "published",
    ) -> None:
        super().__init__()
        for name, value, legal in (("rules", rules, Rules), ("attention", attention, Attention), ("init", init, Init)):
            if value not in get_args(legal):
                raise invalid(name, value, f"it must be one of {', '.join(get_args(legal))}")
        check_stages("Swin", depths=depths, num_heads=num_heads)
        self.in_chans, self.num_classes = in_chans, num_classes
        self.rules, self.always_partition = rules, always_partition
        self.window, self.qkv_bias, self.attention = window, qkv_bias, attention
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size)
        self.dropout = nn.Dropout(dropout)
        pixels = (size, size) if isinstance(size, int) else tuple(size)
        rates = drop_path_rates(drop_path_rate, depths)
        stages: list[SwinStage] = []
        features = []
        for i, heads in enumerate(num_heads):
            dim, reduction = embed_dim * 2**i, patch_size * 2**i
            grid = (-(-pixels[0] // reduction), -(-pixels[1] // reduction))
            make = self._mixers(dim, heads, grid)
            in_dim = dim // 2 if i else None
            stages.append(SwinStage(dim, make, rates[i], in_dim, mlp_ratio, dropout, cpe=attention == "vsa"))
            features.append(Feature(f"layers.{i}", dim, reduction))
        self.layers = nn.ModuleList(stages)
        self.num_features, self.feature_info = features[-1].channels, tuple(features)
        self.norm = nn.LayerNorm(self.num_features)
        self.head = make_classifier(self.num_features, num_classes)
        self.apply(INITS[init])
        for module in self.modules():
            if isinstance(module, VariedSizeWindowAttention):  # rectangles begin as windows
                module.reset_windows()
            if init == "fan_in" and isinstance(module, ShiftedWindows):
                nn.init.normal_(module.relative_position_bias_table)

    def _mixers(self, dim: int, heads: int, grid: tuple[int, int]) -> Any:
        """What makes the mixers of a stage whose maps are like ``grid``."""
        window = (self.window, self.window)
        if not self.always_partition:
            window = tuple(min(w, size) for w, size in zip(window, grid, strict=True))
            if self.rules == "official":
                window = (min(window),) * 2
        half = tuple(w // 2 for w in window)
        if self.rules == "timm" and not self.always_partition:
            half = tuple(0 if size <= w else s for s, w, size in zip(half, window, grid, strict=True))

        def make(index: int) -> Mixer:
            if self.attention == "vsa":
                own: dict[str, Any] = {"window_size": min(window), "qkv_bias": self.qkv_bias}
                return VariedSizeWindowAttention(dim, num_heads=heads, **own)
            return ShiftedWindows(
                dim,
                num_heads=heads,
                window=window,
                shift=half if index % 2 else 0,
                qkv_bias=self.qkv_bias,
                always_shift=self.always_partition or self.rules == "timm",
                pad_first=self.rules == "official",
            )

        return make

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Three stages of two blocks; patches of 2 pixels below 64."""
        return {
            "size": tuple(info.size),
            "patch_size": 2 if min(info.size) < 64 else 4,
            "embed_dim": 32,
            "depths": (2, 2, 2),
            "num_heads": (2, 4, 8),
            "drop_path_rate": 0.0,
            "init": "fan_in",
        }

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages before the next merging, without the last norm; see :class:`Backbone`."""
        x, maps = self.dropout(self.patch_embed(x)), []
        for stage in self.layers:
            x = stage(x)
            maps.append(to_channels_first(x))
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to the last map, normed, ``(B, num_features, h, w)``."""
        x = self.dropout(self.patch_embed(x))
        for stage in self.layers:
            x = stage(x)
        return to_channels_first(self.norm(x))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The mean of the map, classified; see :class:`Backbone`."""
        mean = self.dropout(to_channels_last(features).mean((1, 2)))
        return mean if pre_logits else self.head(mean)

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Move mergings from the end of a stage to the beginning of the next; join transformers' parts."""
        if source == "transformers":
            state_dict = _joined(state_dict)
        if source not in ("official", "transformers"):
            return dict(state_dict)

        def moved(match: re.Match[str]) -> str:
            return f"layers.{int(match[1]) + 1}.downsample."

        return {re.sub(r"layers\.(\d+)\.downsample\.", moved, key): value for key, value in state_dict.items()}


def _joined(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' queries, keys and values as one projection, ``attention.qkv``."""
    pattern = re.compile(r"(.*\.attention)\.(?:self\.)?(q_proj|k_proj|v_proj|query|key|value)\.(weight|bias)")
    found, parts = {}, {}
    for key, value in state_dict.items():
        match = pattern.fullmatch(key)
        if match:
            parts.setdefault((match[1], match[3]), {})[match[2][0]] = value
        else:
            found[key] = value
    for (stem, kind), given in parts.items():
        if set(given) == {"q", "k", "v"}:
            found[f"{stem}.qkv.{kind}"] = torch.cat([given[name] for name in "qkv"])
        else:
            found |= {f"{stem}.{name}_proj.{kind}": value for name, value in given.items()}
    return found

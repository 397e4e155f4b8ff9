"""ViTAEv2 with varied-size windows (VSA, ECCV 2022, arXiv 2204.08446; ViTAEv2, arXiv 2202.10108, section 3).

Every stage begins with a reduction cell, in which convolutions of several dilations are attended to and a second branch
of convolutions is added, and goes on with normal cells::

    reduction  y = attention(norm(p + depthwise 7x7(p))) + convolutions(x),      p = the dilated convolutions of x
    normal     y = x + attention(norm(x + depthwise 7x7(x))) + convolutions(x)
    both       y + MLP(norm(y))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import invalid
from ...mixers.parts import Conv2d
from ...mixers.vsa import VariedSizeWindowAttention
from ...registry import register
from ...spec import ModelSpec
from .backbone import Backbone, Feature, make_classifier
from .parts import DropPath, Mlp, check_stages, feed, init_transformer, to_channels_first, to_channels_last


def _convolutions(widths: Sequence[int], strides: Sequence[int], groups: int) -> nn.Sequential:
    """Three convolutions 3x3 with batch norms and SiLU between them (the parallel branch)."""
    layers: list[nn.Module] = []
    for i, stride in enumerate(strides):
        layers.append(nn.Conv2d(widths[i], widths[i + 1], 3, stride, 1, groups=groups))
        if i + 1 < len(strides):
            layers += [nn.BatchNorm2d(widths[i + 1]), nn.SiLU()]
    return nn.Sequential(*layers)


class _Cell(nn.Module):
    """What both cells share: position convolution, norms, attention, MLP, the parallel branch."""

    def __init__(
        self, dim: int, out: int, hidden: int, eps: float, cpe: bool, drop_path: float, **attention: Any
    ) -> None:
        super().__init__()
        self.pos = Conv2d(dim, dim, 7, 1, 3, groups=dim) if cpe else None
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(out, eps=eps)
        self.attn = VariedSizeWindowAttention(dim, out_dim=out, **attention)
        self.mlp = Mlp(out, hidden)
        self.drop_path = DropPath(drop_path)

    def attend(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` to ``(B, H, W, out)``."""
        if self.pos is not None:
            x = x + to_channels_last(self.pos(to_channels_first(x)))
        return self.attn(self.norm1(x))

    def feed(self, x: Tensor) -> Tensor:
        """The MLP added."""
        return feed(x, self.norm2, self.mlp, self.drop_path)


class _ReductionCell(_Cell):
    def __init__(
        self,
        in_chans: int,
        embed: int,
        out: int,
        ratio: int,
        kernel: int,
        dilations: Sequence[int],
        groups: int,
        wide: bool,
        cpe: bool,
        **attention: Any,
    ) -> None:
        super().__init__(embed * len(dilations), out, out, 1e-5, cpe, 0.0, **attention)
        self.convs = nn.ModuleList(
            nn.Conv2d(in_chans, embed, kernel, ratio, math.ceil(((kernel - 1) * d + 1 - ratio) / 2), d)
            for d in dilations
        )
        strides = [2 if ratio >= 2**i else 1 for i in range(1, 4)]
        between = 2 * out if wide else embed
        self.pcm = _convolutions((in_chans, between, between, out), strides, groups)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, H / ratio, W / ratio, out)``."""
        pyramid = torch.cat([F.gelu(conv(x)) for conv in self.convs], 1)
        y = self.attend(to_channels_last(pyramid.contiguous(memory_format=torch.channels_last)))
        return self.feed(y + self.drop_path(to_channels_last(self.pcm(x))))


class _NormalCell(_Cell):
    def __init__(self, dim: int, hidden: int, groups: int, cpe: bool, drop_path: float, **attention: Any) -> None:
        super().__init__(dim, dim, hidden, 1e-6, cpe, drop_path, **attention)
        self.pcm = _convolutions((dim, hidden, dim, dim), (1, 1, 1), groups)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` in and out."""
        beside = to_channels_last(self.pcm(to_channels_first(x)))
        return self.feed(x + self.drop_path(self.attend(x)) + self.drop_path(beside))


class _Stage(nn.Module):
    def __init__(self, reduction: _ReductionCell, normal: list[_NormalCell]) -> None:
        super().__init__()
        self.rc, self.nc = reduction, nn.Sequential(*normal)

    def forward(self, x: Tensor) -> Tensor:
        """Maps in and out, channels first."""
        return to_channels_first(self.nc(self.rc(x)))


@register("model", "vsa")
class ViTAEv2(Backbone):
    """The image classifier and backbone ViTAEv2, with varied-size windows in all stages.

    Images are padded with zeros behind their ends to multiples of the product of ``downsample_ratios``, as the
    release's detectors have them padded; every map must be at least as large as a window.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        embed_dims: channels of each of the dilated convolutions, by stage.
        token_dims: channels of each stage.
        downsample_ratios: of each stage: 1, 2, 4 or 8.
        kernel_sizes: of the dilated convolutions, by stage.
        dilations: of them, by stage.
        rc_heads, nc_heads: heads in reduction and normal cells, by stage.
        rc_groups, nc_groups: groups of the parallel branches' convolutions, by stage.
        depths: normal cells of each stage.
        wide_pcm: the parallel branch of reduction cells is twice as wide as the stage.
        mlp_ratio: of normal cells; that of reduction cells is 1.
        window_size: see :class:`~foveate.mixers.vsa.VariedSizeWindowAttention`.
        cpe: a depthwise convolution 7x7 comes before attention.
        zero_init: see there; the release begins with rectangles anywhere.
        drop_path_rate: largest rate; reduction cells have none. As released, the rates of a stage start at the number
            of cells of the stage before it, not of all before it.
        form: see there.

    Raises:
        InvalidValue: an illegal option, or lists of different lengths.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",))
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "vitaev2_vsa_s": {},
        "vitaev2_vsa_wide_s": {"rc_heads": (2, 4, 8, 16), "wide_pcm": True},
        "vitaev2_vsa_48m": {
            "embed_dims": (96, 96, 192, 384),
            "token_dims": (96, 192, 384, 768),
            "rc_heads": (3, 6, 12, 24),
            "nc_heads": (3, 6, 12, 24),
            "depths": (2, 2, 11, 2),
            "wide_pcm": True,
        },
        "vitaev2_vsa_b": {
            "embed_dims": (128, 128, 256, 512),
            "token_dims": (128, 256, 512, 1024),
            "rc_heads": (4, 8, 16, 32),
            "nc_heads": (4, 8, 16, 32),
            "depths": (2, 2, 12, 2),
            "wide_pcm": True,
        },
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "ViTAE-VSA": {
            r"layers\.(\d+)\.RC\.PRM\.convs\.(\d+)\.0\.(.+)": r"stages.\1.rc.convs.\2.\3",
            r"layers\.(\d+)\.RC\.PCM\.(.+)": r"stages.\1.rc.pcm.\2",
            r"layers\.(\d+)\.RC\.attn\.sampling_offsets\.2\.(.+)": r"stages.\1.rc.attn.offsets.\2",
            r"layers\.(\d+)\.RC\.attn\.sampling_scales\.2\.(.+)": r"stages.\1.rc.attn.scales.\2",
            r".+\.relative_position_index": "",
            r"layers\.(\d+)\.RC\.(.+)": r"stages.\1.rc.\2",
            r"layers\.(\d+)\.NC\.(\d+)\.PCM\.(.+)": r"stages.\1.nc.\2.pcm.\3",
            r"layers\.(\d+)\.NC\.(\d+)\.attn\.sampling_offsets\.2\.(.+)": r"stages.\1.nc.\2.attn.offsets.\3",
            r"layers\.(\d+)\.NC\.(\d+)\.attn\.sampling_scales\.2\.(.+)": r"stages.\1.nc.\2.attn.scales.\3",
            r"layers\.(\d+)\.NC\.(\d+)\.(.+)": r"stages.\1.nc.\2.\3",
            r"(head\..+)": r"\1",
        },
    }

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        embed_dims: Sequence[int] = (64, 64, 128, 256),
        token_dims: Sequence[int] = (64, 128, 256, 512),
        downsample_ratios: Sequence[int] = (4, 2, 2, 2),
        kernel_sizes: Sequence[int] = (7, 3, 3, 3),
        dilations: Sequence[Sequence[int]] = ((1, 2, 3, 4), (1, 2, 3), (1, 2), (1, 2)),
        rc_heads: Sequence[int] = (2, 2, 4, 8),
        nc_heads: Sequence[int] = (2, 4, 8, 16),
        rc_groups: Sequence[int] = (1, 16, 32, 64),
        nc_groups: Sequence[int] = (1, 32, 64, 128),
        depths: Sequence[int] = (2, 2, 8, 2),
        wide_pcm: bool = False,
        mlp_ratio: float = 4.0,
        window_size: int = 7,
        cpe: bool = True,
        zero_init: bool = True,
        drop_path_rate: float = 0.0,
        form: str = "classification",
    ) -> None:
        super().__init__()
        check_stages(
            "ViTAEv2",
            token_dims=token_dims,
            embed_dims=embed_dims,
            downsample_ratios=downsample_ratios,
            kernel_sizes=kernel_sizes,
            dilations=dilations,
            rc_heads=rc_heads,
            nc_heads=nc_heads,
            rc_groups=rc_groups,
            nc_groups=nc_groups,
            depths=depths,
        )
        if any(ratio not in (1, 2, 4, 8) for ratio in downsample_ratios):
            raise invalid("downsample_ratios", tuple(downsample_ratios), "each must be 1, 2, 4 or 8")
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, token_dims[-1]
        self.reduction, self.window_size = math.prod(downsample_ratios), window_size
        # Padding makes up for less than one place of the last map.
        self.minimum_size = (max(2, window_size) - 1) * self.reduction + 1
        total = sum(depths)
        rates = [drop_path_rate * i / max(1, total - 1) for i in range(total)]
        self.stages, before, reduction, features = nn.ModuleList(), in_chans, 1, []
        attention: dict[str, Any] = {"window_size": window_size, "zero_init": zero_init, "form": form}
        for i, dim in enumerate(token_dims):
            first = _ReductionCell(
                before,
                embed_dims[i],
                dim,
                downsample_ratios[i],
                kernel_sizes[i],
                dilations[i],
                rc_groups[i],
                wide_pcm,
                cpe,
                num_heads=rc_heads[i],
                **attention,
            )
            start = min(depths[i - 1], total - depths[i]) if i else 0
            cells = [
                _NormalCell(dim, int(mlp_ratio * dim), nc_groups[i], cpe, rate, num_heads=nc_heads[i], **attention)
                for rate in rates[start : start + depths[i]]
            ]
            self.stages.append(_Stage(first, cells))
            before, reduction = dim, reduction * downsample_ratios[i]
            features.append(Feature(f"stages.{i}", dim, reduction))
        self.feature_info = tuple(features)
        self.head = make_classifier(token_dims[-1], num_classes)
        self.apply(init_transformer)
        if zero_init:
            for module in self.modules():
                if isinstance(module, VariedSizeWindowAttention):
                    module.reset_windows()

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Two stages of width 32 and 64 with one normal cell each, a quarter of the pixels along each side, or less."""
        ratios = (2, 2) if min(info.size) < 64 else (4, 2)
        last = min(-(-length // math.prod(ratios)) for length in info.size)
        return {
            "embed_dims": (16, 32),
            "token_dims": (32, 64),
            "downsample_ratios": ratios,
            "kernel_sizes": (5, 3) if ratios[0] == 2 else (7, 3),
            "dilations": ((1, 2), (1, 2)),
            "rc_heads": (2, 2),
            "nc_heads": (2, 4),
            "rc_groups": (1, 8),
            "nc_groups": (8, 16),
            "depths": (1, 1),
            "mlp_ratio": 2.0,
            "window_size": max(2, min(7, last)),
        }

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Convolutions of one place in the attention are linear layers."""
        return {key: m.flatten(1) if ".attn." in key and m.ndim == 4 else m for key, m in state_dict.items()}

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages, ``(B, channels, h, w)``, of the padded image, in channels-last memory."""
        spare = [-length % self.reduction for length in x.shape[2:]]
        x = F.pad(x, (0, spare[1], 0, spare[0])) if any(spare) else x
        x, maps = x.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The mean of ``(B, num_features, h, w)`` over the map, classified: ``(B, num_classes)``."""
        x = features.mean((2, 3))
        return x if pre_logits else self.head(x)

"""ViM2: a pyramid whose blocks scan the places of a map in several orders, and its channels from both ends.

Behrouz, Santacatterina and Zabih, "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel
Selection", arXiv 2403.19888 (version 1), section 3.4. Patches of 4 x 4 pixels, then four stages, a merging of 2 x 2
places between them; a mean of the normed last map is classified. A stage::

    token mixer      VMamba's block: a convolution 3 x 3 and a cross-scan         each behind a LayerNorm
    channel mixer    S6 along the channels, behind every second token mixer
    each mixer reads learned averages of all outputs before it in this stage (foveate.mixers.weighted_average)

No code of the authors is public; what is chosen here is in ``docs/systems/mamba_mixer.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from ...errors import invalid
from ...mixers.mamba_mixer import CWLinear, GridChannelMixer, GridTokenMixer
from ...mixers.ssm import check_positive
from ...mixers.weighted_average import MambaMixerBlock, MambaMixerStack
from ...registry import register
from ...spec import ModelSpec
from .backbone import Backbone, Feature, make_classifier
from .parts import Mlp, check_stages, to_channels_first
from .swin_stage import PatchEmbed, PatchMerging

ChannelMixing = Literal["selective", "mlp", "none"]


class Stage(nn.Module):
    """Mixers of one width joined by averages, from the second stage on behind a merging of four places."""

    def __init__(self, downsample: PatchMerging | None, stack: MambaMixerStack) -> None:
        super().__init__()
        self.downsample = downsample
        self.stack = stack

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, h, w, dim)``."""
        return self.stack(x if self.downsample is None else self.downsample(x))


class Head(nn.Module):
    """A norm of every place, the mean over the map, and the classifier."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc = make_classifier(dim, num_classes)


@register("model", "vim2", system="mamba_mixer")
class ViM2(Backbone):
    """The image classifier and backbone of MambaMixer.

    Images may have any size, except with ``cw_linear="all_tokens"``; sides that the strides do not divide are padded.
    ``vim2_mlp`` is the paper's ablation, whose layout it does not print: here Small's, with inner channels that make
    its 40 million parameters.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        depths: token mixers of each stage.
        dims: channels of each stage.
        channel_every: a channel mixer stands behind every so many token mixers of a stage; in the published sizes 2.
        channel_mixer: "selective", the published one; "mlp": two linear layers over the channels; "none".
        averaging: mixers read learned averages of all earlier outputs of their stage; False: the output before.
        residual: add what a mixer reads to what it says. The paper does not say; see ``docs/systems/mamba_mixer.md``.
        scans: orders of the token mixers, names of :data:`~foveate.mixers.mamba_mixer.grid_scans.GRID_SCANS`. None:
            rows and columns, each from both ends.
        cw_linear: how the channel mixers' linear layers are read, see
            :class:`~foveate.mixers.mamba_mixer.GridChannelMixer`.
        img_size: pixels along both sides of the image, which "all_tokens" is built for; the others do not read it.
        mlp_ratio: inner channels of "mlp" are ``int(mlp_ratio * channels)``.
        patch_size: pixels along a patch: 4, or 2 for small images, an addition.
        d_state: numbers N kept per inner channel, of all mixers.
        expand: inner channels per channel, of the token mixers.
        dropout: behind each mixer.

    Raises:
        InvalidValue: an illegal option, or lists of several lengths.
        UnknownName: a scan that does not exist.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",), export_note="its unrolled scans are slow to convert")
    classifier: ClassVar[str] = "head.fc"
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "vim2_tiny": {"depths": (2, 2, 6, 2), "dims": (96, 192, 384, 768)},
        "vim2_small": {"depths": (2, 2, 18, 2), "dims": (96, 192, 384, 768)},
        "vim2_base": {"depths": (2, 2, 18, 2), "dims": (128, 256, 512, 1024)},
        "vim2_mlp": {
            "depths": (2, 2, 18, 2),
            "dims": (96, 192, 384, 768),
            "channel_mixer": "mlp",
            "averaging": False,
        },
    }
    published_costs: ClassVar[dict[str, tuple[float, float | None, int]]] = {
        "vim2_tiny": (20, None, 224),
        "vim2_small": (43, None, 224),
        "vim2_base": (74, None, 224),
        "vim2_mlp": (40, None, 224),
    }
    cost_differences: ClassVar[dict[str, str]] = dict.fromkeys(
        ("vim2_tiny", "vim2_small", "vim2_base", "vim2_mlp"),
        "the paper does not explain the linear layers of its channel mixers, and prints no layout of the MLP variant; "
        "of the readings of `cw_linear` this alone is within 15 % of all three sizes (docs/systems/mamba_mixer.md).",
    )

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        channel_every: int = 2,
        channel_mixer: ChannelMixing = "selective",
        averaging: bool = True,
        residual: bool = True,
        scans: tuple[str, ...] | None = None,
        cw_linear: CWLinear = "channels",
        img_size: int = 224,
        mlp_ratio: float = 2.0,
        patch_size: int = 4,
        d_state: int = 16,
        expand: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_stages("ViM2", depths=depths, dims=dims)
        check_positive(
            channel_every=channel_every, img_size=img_size, **{f"depths[{i}]": d for i, d in enumerate(depths)}
        )
        if channel_mixer not in get_args(ChannelMixing):
            raise invalid("channel_mixer", channel_mixer, f"it must be one of {', '.join(get_args(ChannelMixing))}")
        if patch_size not in (2, 4):
            raise invalid("patch_size", patch_size, "it must be 4, as published, or 2")
        if not mlp_ratio > 0:
            raise invalid("mlp_ratio", mlp_ratio, "it must be positive")
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dims[-1]
        self.stem = PatchEmbed(in_chans, dims[0], patch_size)

        def channels(dim: int, side: int) -> nn.Module | None:
            if channel_mixer == "selective":
                return GridChannelMixer(dim, cw_linear=cw_linear, grid=(side, side), d_state=d_state)
            return Mlp(dim, int(mlp_ratio * dim)) if channel_mixer == "mlp" else None

        self.stages = nn.ModuleList()
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            side = -(-img_size // (patch_size * 2**i))
            blocks = [
                MambaMixerBlock(
                    dim,
                    GridTokenMixer(dim, scans=scans, d_state=d_state, expand=expand, norm=True),
                    channels(dim, side) if layer % channel_every == 0 else None,
                    residual=residual,
                    dropout=dropout,
                )
                for layer in range(1, depth + 1)
            ]
            down = PatchMerging(dims[i - 1], dim) if i else None
            self.stages.append(Stage(down, MambaMixerStack(blocks, averaging=averaging)))
        self.feature_info = tuple(Feature(f"stages.{i}", dim, patch_size * 2**i) for i, dim in enumerate(dims))
        self.head = Head(dims[-1], num_classes)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Two stages of width 32 and 64 with a channel mixer each, and patches of 2 for images below 64 pixels."""
        return {"depths": (2, 2), "dims": (32, 64), "patch_size": 2 if min(info.size) < 64 else 4, "d_state": 8}

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of all stages, ``(B, channels, h, w)``, in channels-last memory."""
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(to_channels_first(x))
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, num_features, h, w)`` to logits ``(B, num_classes)``, or to the mean that they are read from."""
        x = self.head.norm(features.movedim(1, -1)).mean((1, 2))
        return x if pre_logits else self.head.fc(x)

"""Vision Transformer: an image as a sequence of patches, read by a plain transformer.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale" (ICLR 2021, arXiv
2010.11929); the tiny and small sizes are DeiT's (Touvron et al. 2021, arXiv 2012.12877). A class token goes first,
every token gets a learned position, and pre-norm blocks of attention
(:class:`~foveate.mixers.softmax_attention.SoftmaxAttention`) and feed-forwards follow. Positions of other grids are
interpolated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import invalid
from ...mixers.softmax_attention import SoftmaxAttention
from ...registry import register
from ...spec import ModelSpec
from .backbone import Backbone, Feature, make_classifier
from .parts import INITS, Init, drop_path_rates, to_channels_first, wave_positions
from .swin_stage import PatchEmbed, SwinBlock

Pool = Literal["token", "avg"]

_THEIRS = r"(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\."


@register("model", "vit")
class ViT(Backbone):
    """ViT: patches as tokens, softmax attention between all of them.

    Images of any size: they are padded behind their ends to whole patches, and positions are interpolated. Every block
    gives a map of the pyramid, all of one size.

    Args:
        in_chans: channels of the image.
        num_classes: 0: no classifier.
        size: pixels (height, width, or both) whose grid of patches the learned positions are for.
        patch_size: pixels along a token.
        dim: channels of a token.
        depth: blocks.
        num_heads: heads of the attention.
        mlp_ratio: hidden channels of the feed-forwards, in ``dim``.
        qkv_bias: queries, keys and values have biases.
        pool: "token": the class token is classified; "avg": the mean of all patches.
        class_token: there is one.
        norm_eps: of the layer norms; transformers has 1e-12.
        antialias: positions of smaller and larger grids are resampled as in timm; False: by plain bicubic
            interpolation, as in transformers.
        dropout: of tokens, behind feed-forwards and before the classifier.
        drop_path_rate: of the last block; it rises from 0 linearly.
        init: "published": linear layers and positions of deviation 0.02; "fan_in": linear layers of variance
            1 / inputs, and positions that begin as waves, with which a network of few channels learns several times
            faster.

    Raises:
        InvalidValue: an option that is not possible.
    """

    spec = ModelSpec(reads="image", tasks=("classify-images",))
    configurations: ClassVar[dict[str, dict[str, Any]]] = {
        "vit_tiny": {"dim": 192, "depth": 12, "num_heads": 3, "drop_path_rate": 0.1},
        "vit_small": {"dim": 384, "depth": 12, "num_heads": 6, "drop_path_rate": 0.1},
        "vit_base": {"dim": 768, "depth": 12, "num_heads": 12, "drop_path_rate": 0.1},
        "vit_base_384": {"size": 384, "dim": 768, "depth": 12, "num_heads": 12, "drop_path_rate": 0.1},
        "vit_base_patch32": {"patch_size": 32, "dim": 768, "depth": 12, "num_heads": 12, "drop_path_rate": 0.1},
        "vit_large": {"dim": 1024, "depth": 24, "num_heads": 16, "drop_path_rate": 0.1},
        "vit_large_384": {"size": 384, "dim": 1024, "depth": 24, "num_heads": 16, "drop_path_rate": 0.1},
        "vit_large_patch32": {"patch_size": 32, "dim": 1024, "depth": 24, "num_heads": 16, "drop_path_rate": 0.1},
    }
    #: As Swin's table 1 (arXiv 2103.14030) and PVT's table 2 (arXiv 2102.12122, the tiny size) print them.
    published_costs: ClassVar[dict[str, tuple[float, float, int]]] = {
        "vit_tiny": (5.7, 1.3, 224),
        "vit_small": (22, 4.6, 224),
        "vit_base": (86, 17.5, 224),
        "vit_base_384": (86, 55.4, 384),
        "vit_large_384": (307, 190.7, 384),
    }
    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "timm": {  # convert_official divides queries, keys and values
            r"(cls_token|pos_embed|(?:patch_embed\.proj|norm|fc_norm|head)\.\w+)": r"\1",
            r"(blocks\.\d+\.attn\.[qkv]_proj\.\w+)": r"\1",
            r"(blocks\.\d+)\.attn\.proj\.(\w+)": r"\1.attn.out_proj.\2",
            r"(blocks\.\d+\.(?:norm[12]|mlp\.fc[12])\.\w+)": r"\1",
        },
        "transformers": {
            r"(?:vit\.)?embeddings\.cls_token": "cls_token",
            r"(?:vit\.)?embeddings\.mask_token": "",
            r"(?:vit\.)?embeddings\.position_embeddings": "pos_embed",
            r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
            rf"{_THEIRS}attention\.(q|k|v)_proj\.(\w+)": r"blocks.\1.attn.\2_proj.\3",
            rf"{_THEIRS}attention\.attention\.query\.(\w+)": r"blocks.\1.attn.q_proj.\2",
            rf"{_THEIRS}attention\.attention\.key\.(\w+)": r"blocks.\1.attn.k_proj.\2",
            rf"{_THEIRS}attention\.attention\.value\.(\w+)": r"blocks.\1.attn.v_proj.\2",
            rf"{_THEIRS}attention\.(?:o_proj|output\.dense)\.(\w+)": r"blocks.\1.attn.out_proj.\2",
            rf"{_THEIRS}layernorm_before\.(\w+)": r"blocks.\1.norm1.\2",
            rf"{_THEIRS}layernorm_after\.(\w+)": r"blocks.\1.norm2.\2",
            rf"{_THEIRS}(?:mlp\.fc1|intermediate\.dense)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
            rf"{_THEIRS}(?:mlp\.fc2|output\.dense)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
            r"(?:vit\.)?layernorm\.(\w+)": r"norm.\1",
            r"(?:vit\.)?pooler\.dense\.\w+": "",  # classifiers do not use it
            r"classifier\.(\w+)": r"head.\1",
        },
    }

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        pool: Pool = "token",
        class_token: bool = True,
        norm_eps: float = 1e-6,
        antialias: bool = True,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        init: Init = "published",
    ) -> None:
        super().__init__()
        for name, value, legal in (("pool", pool, Pool), ("init", init, Init)):
            if value not in get_args(legal):
                raise invalid(name, value, f"it must be one of {', '.join(get_args(legal))}")
        if pool == "token" and not class_token:
            raise invalid("class_token", class_token, "pool='token' classifies the class token")
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dim
        self.pool, self.antialias = pool, antialias
        pixels = (size, size) if isinstance(size, int) else tuple(size)
        self.grid = (-(-pixels[0] // patch_size), -(-pixels[1] // patch_size))
        self.patch_embed = PatchEmbed(in_chans, dim, patch_size, norm=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, class_token + self.grid[0] * self.grid[1], dim))
        self.dropout = nn.Dropout(dropout)
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        self.blocks = nn.Sequential(
            *(
                SwinBlock(
                    dim,
                    SoftmaxAttention(dim, num_heads=num_heads, bias=qkv_bias, out_bias=True),
                    mlp_ratio,
                    rate,
                    dropout,
                    norm_eps,
                )
                for rate in rates
            )
        )
        self.norm = nn.LayerNorm(dim, norm_eps) if pool == "token" else nn.Identity()
        self.fc_norm = nn.LayerNorm(dim, norm_eps) if pool == "avg" else nn.Identity()
        self.head = make_classifier(dim, num_classes)
        self.feature_info = tuple(Feature(f"blocks.{i}", dim, patch_size) for i in range(depth))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        self.apply(INITS[init])
        if init == "fan_in":
            with torch.no_grad():
                self.pos_embed[:, self._prefix :] = wave_positions(*self.grid, dim).flatten(0, 1)

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """Four blocks on about 7 x 7 patches, or on patches of 16 pixels of large images."""
        patch = min(16, max(2, min(info.size) // 7))
        return {
            "size": tuple(info.size),
            "patch_size": patch,
            "dim": 64,
            "depth": 4,
            "num_heads": 4,
            "pool": "avg",
            "class_token": False,
            "init": "fan_in",
        }

    def no_weight_decay(self) -> set[str]:
        """Positions and the class token."""
        return {"pos_embed", "cls_token"}

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The patches' tokens behind every block, ``(B, dim, h, w)``, not normed; see :class:`Backbone`."""
        tokens, grid = self._embed(x)
        maps = []
        for block in self.blocks:
            tokens = block(tokens)
            maps.append(to_channels_first(tokens[:, self._prefix :].unflatten(1, grid)))
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W)`` to all tokens ``(B, class token + patches, dim)``, as in timm."""
        return self.norm(self.blocks(self._embed(x)[0]))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The class token or the patches' mean, classified; see :class:`Backbone`."""
        pooled = features[:, 0] if self.pool == "token" else features[:, self._prefix :].mean(1)
        pooled = self.dropout(self.fc_norm(pooled))
        return pooled if pre_logits else self.head(pooled)

    @property
    def _prefix(self) -> int:
        """Tokens in front of the patches'."""
        return 0 if self.cls_token is None else 1

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens with their positions, and the grid of patches."""
        tokens = self.patch_embed(x)
        h, w = tokens.shape[1:3]
        tokens = tokens.flatten(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1)
        return self.dropout(tokens + self.positions((h, w))), (h, w)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions of a grid of patches, ``(1, class token + patches, dim)``, resampled in float32."""
        if grid == self.grid:
            return self.pos_embed
        own, patches = self.pos_embed[:, : self._prefix], self.pos_embed[:, self._prefix :]
        table = to_channels_first(patches.unflatten(1, self.grid)).float()
        table = F.interpolate(table, grid, mode="bicubic", align_corners=False, antialias=self.antialias)
        return torch.cat([own, table.flatten(2).mT.to(own.dtype)], 1)

    def convert_official(self, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """timm has queries, keys and values in one projection."""
        if source != "timm":
            return dict(state_dict)
        found = {}
        for key, value in state_dict.items():
            match = re.fullmatch(r"(blocks\.\d+\.attn)\.qkv\.(\w+)", key)
            if match and len(value) % 3 == 0:
                found |= {
                    f"{match[1]}.{n}_proj.{match[2]}": part for n, part in zip("qkv", value.chunk(3), strict=True)
                }
            else:
                found[key] = value
        return found

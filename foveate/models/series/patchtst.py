"""PatchTST: a series is worth 64 words (Nie et al., ICLR 2023, arXiv:2211.14730).

Every variable is read alone, by the same network: its window, normalised by its own mean and deviation, is cut into
overlapping patches of L steps, each of them a token; a transformer mixes the tokens, and one linear layer maps all of
them together to the answer::

    tokens = W patches(pad((x - mean) / deviation)) + positions         about T / stride instead of T
    y      = (W_head flatten(encoder(tokens)) + b) * deviation + mean

Two releases of the network are in use, and published numbers belong to one of them each:

- "PatchTST", the authors' (yuqinie98/PatchTST, supervised): batch norm in every layer, attention scores handed on from
  layer to layer, learned positions; small, for windows of 336 and 512 steps.
- "Time-Series-Library", which later papers compare with at 96 steps: layer norm in every layer and one batch norm at
  the end, fixed positions, 512 channels; with heads for imputation, classification and anomaly detection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue, invalid, unknown_name
from ...mixers.parts import Linear
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model, check_series
from ..published import Published
from .patches import PatchEmbedding, PatchLayer, TokenBatchNorm, patch_count
from .patchtst_recipes import PUBLISHED, USUAL, published_recipe

TASKS = ("forecast", "impute", "classify-series", "detect-anomalies")
RELEASES = ("PatchTST", "Time-Series-Library")


@register("model", "patchtst")
class PatchTST(Model):
    """PatchTST: each variable alone, patches as tokens, one linear head over all of them.

    Args:
        task: "forecast", "impute", "classify-series" or "detect-anomalies".
        seq_len: steps T of the input, at least ``patch_len``.
        enc_in: variables C.
        pred_len: steps P to forecast; 0 in the other tasks.
        num_class: classes, for classification only; its head reads the tokens of all variables.
        d_model, n_heads, d_ff, e_layers: width, heads (they divide it), feed-forward width, layers.
        patch_len, stride: steps of a patch, and from one patch to the next.
        dropout: everywhere but in the attention's weights and the head, where only the library drops as well.
        release: which network, see the module's docstring.
        residual: attention scores are handed on from layer to layer; None: as the release does (the authors' does).
        affine: a learned scale and shift of every variable inside the normalisation (RevIN's; the authors leave it
            off).

    Raises:
        UnknownName: ``task`` or ``release`` is none of those.
        InvalidValue: a size below 1, ``n_heads`` that does not divide ``d_model``, ``patch_len`` above ``seq_len``,
            ``pred_len`` or ``num_class`` that does not fit the task.
    """

    spec = ModelSpec(reads="series", tasks=("forecast", "classify-series", "impute", "detect-anomalies"), onnx=True)
    official_keys = {
        "PatchTST": {
            r"model\.revin_layer\.affine_(weight|bias)": r"affine_\1",
            r"model\.backbone\.W_pos": r"embedding.positions",
            r"model\.backbone\.W_P\.(weight|bias)": r"embedding.value.\1",
            r"model\.backbone\.encoder\.layers\.(\d+)\.self_attn\.W_Q\.(.+)": r"layers.\1.query.\2",
            r"model\.backbone\.encoder\.layers\.(\d+)\.self_attn\.W_K\.(.+)": r"layers.\1.key.\2",
            r"model\.backbone\.encoder\.layers\.(\d+)\.self_attn\.W_V\.(.+)": r"layers.\1.value.\2",
            r"model\.backbone\.encoder\.layers\.(\d+)\.self_attn\.sdp_attn\.scale": "",  # a constant
            r"model\.backbone\.encoder\.layers\.(\d+)\.self_attn\.to_out\.0\.(.+)": r"layers.\1.out.\2",
            r"model\.backbone\.encoder\.layers\.(\d+)\.norm_attn\.1\.(.+)": r"layers.\1.attention_norm.\2",
            r"model\.backbone\.encoder\.layers\.(\d+)\.ff\.0\.(.+)": r"layers.\1.up.\2",
            r"model\.backbone\.encoder\.layers\.(\d+)\.ff\.3\.(.+)": r"layers.\1.down.\2",
            r"model\.backbone\.encoder\.layers\.(\d+)\.norm_ffn\.1\.(.+)": r"layers.\1.feed_norm.\2",
            r"model\.head\.linear\.(weight|bias)": r"head.\1",
        },
        "Time-Series-Library": {
            r"patch_embedding\.position_embedding\.pe": "",
            r"patch_embedding\.value_embedding\.weight": r"embedding.value.weight",
            r"encoder\.attn_layers\.(\d+)\.attention\.(query|key|value|out)_projection\.(.+)": r"layers.\1.\2.\3",
            r"encoder\.attn_layers\.(\d+)\.conv1\.(.+)": r"layers.\1.up.\2",
            r"encoder\.attn_layers\.(\d+)\.conv2\.(.+)": r"layers.\1.down.\2",
            r"encoder\.attn_layers\.(\d+)\.norm1\.(.+)": r"layers.\1.attention_norm.\2",
            r"encoder\.attn_layers\.(\d+)\.norm2\.(.+)": r"layers.\1.feed_norm.\2",
            r"encoder\.norm\.1\.(.+)": r"norm.\1",
            r"head\.linear\.(weight|bias)": r"head.\1",
            r"projection\.(weight|bias)": r"head.\1",
        },
    }

    def __init__(
        self,
        *,
        task: str,
        seq_len: int,
        enc_in: int,
        pred_len: int = 0,
        num_class: int | None = None,
        d_model: int = 128,
        n_heads: int = 16,
        d_ff: int = 256,
        e_layers: int = 3,
        patch_len: int = 16,
        stride: int = 8,
        dropout: float = 0.2,
        release: Literal["PatchTST", "Time-Series-Library"] = "PatchTST",
        residual: bool | None = None,
        affine: bool = False,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise unknown_name("task", task, TASKS)
        if release not in RELEASES:
            raise unknown_name("release", release, RELEASES)
        sizes = {"seq_len": seq_len, "enc_in": enc_in, "d_model": d_model, "n_heads": n_heads, "d_ff": d_ff}
        for option, size in (*sizes.items(), ("e_layers", e_layers), ("patch_len", patch_len), ("stride", stride)):
            if size < 1:
                raise invalid(option, size, "it must be at least 1")
        if d_model % n_heads:
            raise invalid("n_heads", n_heads, f"it must divide d_model={d_model}")
        if patch_len > seq_len:
            raise invalid("patch_len", patch_len, f"a window has {seq_len} steps")
        if (pred_len < 1) if task == "forecast" else (pred_len != 0):
            legal = "at least 1 step is forecast" if task == "forecast" else f"task={task!r} forecasts nothing"
            raise invalid("pred_len", pred_len, legal)
        if (num_class is None or num_class < 2) if task == "classify-series" else (num_class is not None):
            legal = "at least 2 classes are needed" if task == "classify-series" else f"task={task!r} has no classes"
            raise invalid("num_class", num_class, legal)

        self.task, self.release, self.seq_len, self.enc_in = task, release, seq_len, enc_in
        authors = release == "PatchTST"
        # Made in the order of the official code, so that a seed gives the official initial weights.
        if affine:
            self.affine_weight, self.affine_bias = (nn.Parameter(f(enc_in)) for f in (torch.ones, torch.zeros))
        else:
            self.affine_weight = self.affine_bias = None
        self.embedding = PatchEmbedding(seq_len, patch_len, stride, d_model, authors, dropout)
        self.layers = nn.ModuleList(
            PatchLayer(
                d_model,
                n_heads,
                d_ff,
                batch_norm=authors,
                residual=authors if residual is None else residual,
                dropout=dropout,
                attention_dropout=0.0 if authors else dropout,
                projection_dropout=dropout if authors else 0.0,
            )
            for _ in range(e_layers)
        )
        self.norm = nn.Identity() if authors else TokenBatchNorm(d_model)
        wide = d_model * patch_count(seq_len, patch_len, stride)
        self.head = Linear(wide, pred_len or seq_len) if num_class is None else Linear(wide * enc_in, num_class)
        self.head_dropout = nn.Dropout(dropout if num_class is not None or not authors else 0.0)

    @classmethod
    def for_task(cls, info: Any, published: str | None = None, **options: Any) -> Self:
        """The network for ``info.task``, in a published size unless options say else.

        Patches are shortened where a window is shorter than one.

        Args:
            info: what the task knows of the data: lookback, channels, and horizon or classes.
            published: a name of :data:`PUBLISHED`; None: the authors' smallest, which they use on ETTh1.
            options: constructor options that replace the published ones.
        """
        published = USUAL if published is None else published
        if published not in PUBLISHED:
            raise unknown_name("published configuration", published, PUBLISHED)
        known: dict[str, Any] = {"task": info.task, "seq_len": info.lookback, "enc_in": info.channels}
        if info.task == "forecast":
            known["pred_len"] = info.horizon
        if info.task == "classify-series":
            known["num_class"] = info.classes
        settings = {"patch_len": 16, "stride": 8, **PUBLISHED[published], **options, **known}
        if "patch_len" not in options:
            settings["patch_len"] = min(settings["patch_len"], info.lookback)
        if "stride" not in options:
            settings["stride"] = min(settings["stride"], max(1, settings["patch_len"] // 2))
        check_options("patchtst", cls, settings)
        return cls(**settings)

    @classmethod
    def published(cls, info: Any, dataset: str) -> Published | None:
        """The library's scripts for windows below 336 steps, the authors' for longer ones."""
        return published_recipe(info, dataset)

    def forward(self, x: Tensor, marks: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Run the task the model was built for.

        Args:
            x: float ``(B, seq_len, enc_in)``.
            marks: time features; taken because every model of series is given them, and not read.
            mask: bool, True = observed or real. Imputation needs ``(B, seq_len, enc_in)``, classification takes
                ``(B, seq_len)``; what ``x`` holds elsewhere has no influence (the tokens see the variable's mean).

        Returns:
            ``(B, pred_len, enc_in)`` forecast, ``(B, seq_len, enc_in)`` imputed or reconstructed series,
            ``(B, num_class)`` logits.

        Raises:
            InvalidValue: wrong shapes, a missing or superfluous ``mask``.
            InvalidType: ``x`` is not floating point, ``mask`` is not bool.
        """
        check_series("PatchTST", x, self.seq_len, self.enc_in)
        mean, deviation, normal = self._normalise(x, self._check_mask(x, mask))
        if self.affine_weight is not None and self.affine_bias is not None:
            normal = normal * self.affine_weight + self.affine_bias
        tokens = self.features(normal)
        if self.task == "classify-series":
            return self.head(self.head_dropout(tokens.flatten(1)))
        y = self.head_dropout(self.head(tokens.flatten(2))).transpose(1, 2)
        if self.affine_weight is not None and self.affine_bias is not None:
            y = (y - self.affine_bias) / (self.affine_weight + 1e-10)
        return y * deviation + mean

    def features(self, x: Tensor) -> Tensor:
        """Normalised ``(B, seq_len, enc_in)`` to encoded tokens ``(B, enc_in, d_model, patches)``."""
        h, scores = self.embedding(x.transpose(1, 2).flatten(0, 1)), None
        for layer in self.layers:
            h, scores = layer(h, scores)
        return self.norm(h).unflatten(0, (-1, self.enc_in)).transpose(2, 3)

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Squared reconstruction error of every step, averaged over variables: ``(B, seq_len)``.

        Raises:
            InvalidType: the model was built for another task.
        """
        if self.task != "detect-anomalies":
            raise InvalidType(f"PatchTST: task={self.task!r} has no anomaly score: build it for 'detect-anomalies'.")
        return (self(x) - x).square().mean(-1)

    @staticmethod
    def convert_official(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The library's feed-forward parts are convolutions of width 1: as linear layers; see ``load_official``."""
        return {
            key: value.squeeze(-1) if re.search(r"\.conv[12]\.weight$", key) and value.ndim == 3 else value
            for key, value in state_dict.items()
        }

    def _normalise(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        # Gradients as published: only the library, and not in imputation, lets them through the deviation.
        if mask is None:
            mean = x.mean(1, keepdim=True).detach()
            x = x - mean
            deviation = (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        else:
            count = mask.sum(1, keepdim=True).clamp_min(1)
            mean = (x.masked_fill(~mask, 0).sum(1, keepdim=True) / count).detach()
            x = (x - mean).masked_fill(~mask, 0)
            deviation = (x.square().sum(1, keepdim=True) / count + 1e-5).sqrt()
        if self.release == "PatchTST" or self.task == "impute":
            deviation = deviation.detach()
        return mean, deviation, x / deviation

    def _check_mask(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            if self.task == "impute":
                raise InvalidValue("PatchTST: task='impute' needs a mask: bool like x, True = observed.")
            return None
        if self.task not in ("impute", "classify-series"):
            raise InvalidValue(f"PatchTST: task={self.task!r} takes no mask: leave it out.")
        if mask.dtype != torch.bool:
            raise InvalidType(f"PatchTST: mask must be bool (True = observed or real), not {mask.dtype}.")
        legal = tuple(x.shape) if self.task == "impute" else tuple(x.shape[:2])
        if mask.shape != legal:
            raise InvalidValue(f"PatchTST: mask has shape {tuple(mask.shape)}; it must be {legal}.")
        return mask if self.task == "impute" else mask[..., None]

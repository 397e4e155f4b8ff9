"""TSM2: a multivariate series mixed selectively along time and along its variates (arXiv 2403.19888, section 3.4).

Behrouz, Santacatterina and Zabih, "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel
Selection", version 1. Every variate is cut into patches, and each patch is a token of width d::

    x (B, T, M)    normalise each window and variate, cut into N patches, embed, add places       (B, M, N, d)
    token mixer    a Mamba along the N patches of each variate, causal
    channel mixer  a Mamba in both directions along the M variates of each patch
    repeat, each mixer reading learned averages of all outputs before it; norm; flatten (N, d); linear to the horizon

Static variables S and variables Z that are known ahead are mapped to T steps each and join the series: x || Z || S is
cut into patches. No code of the authors is public; what is chosen here is in ``docs/systems/tsm2.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue, invalid, unknown_name
from ...mixers.mamba_mixer import SelectiveChannelMixer, SelectiveTokenMixer
from ...mixers.parts import Linear
from ...mixers.weighted_average import MambaMixerBlock, MambaMixerStack
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model, check_series
from ..outlook import levels_of
from ..quantiles import QuantileOrder
from ..readers import learned_positions

TASKS = ("forecast", "impute", "classify-series", "detect-anomalies")
MIXERS = ("selective", "mlp", "none")


class AlongPatches(nn.Module):
    """A mixer of sequences on the patches of each variate: ``(B, M, N, d)`` in and out."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix; ``mask`` is bool ``(B, N)``."""
        rows = None if mask is None else mask.unsqueeze(1).expand(-1, x.shape[1], -1).flatten(0, 1)
        return self.mixer(x.flatten(0, 1), mask=rows).unflatten(0, x.shape[:2])


class AlongVariates(nn.Module):
    """A mixer of the last axis, handed ``(batch, features, M)``, on the variates of each patch: ``(B, M, N, d)``."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix; patches do not see each other, so that a mask over them changes nothing."""
        turned = x.permute(0, 2, 3, 1)
        return self.mixer(turned.flatten(0, 1)).unflatten(0, turned.shape[:2]).permute(0, 3, 1, 2)


class Patches(nn.Module):
    """Cut ``(..., steps)`` into ``(..., patches, length)``, the last patch at the end; the first value fills the front.

    Args:
        steps, length, stride: of the series, of a patch, and between the starts of two patches.
    """

    def __init__(self, steps: int, length: int, stride: int) -> None:
        super().__init__()
        self.length, self.stride = length, stride
        self.count = -(-(steps - length) // stride) + 1
        self.missing = (self.count - 1) * stride + length - steps

    def forward(self, x: Tensor) -> Tensor:
        if self.missing:
            x = torch.cat([x[..., :1].expand(*x.shape[:-1], self.missing), x], -1)
        return x.unfold(-1, self.length, self.stride)


@register("model", "tsm2")
class TSM2(Model):
    """TSM2: Mamba along time and in both directions along the variates, joined by weighted averages of earlier outputs.

    One backbone with a thin head for each task: forecasts, filled gaps and reconstructions from the flattened patches
    of a variate, classes from the mean patches of all variates.

    Args:
        num_variates: variables M of the input.
        lookback: steps T of the input.
        horizon: steps to forecast; 0 in the other tasks.
        task: "forecast", "impute", "classify-series" or "detect-anomalies", which reconstructs its input.
        num_class: classes, for classification only.
        patch_len: steps of a patch.
        stride: steps between the starts of two patches.
        d_model: width of a patch's token.
        layers: pairs of a token mixer and a channel mixer.
        use_revin: normalise every window and variate by its own mean and deviation, and undo it at the end; not in
            classification, which needs the levels.
        static_dim: variables that do not change within a series, for forecasts; None: there are none.
        future_dim: variables that are known ahead, for forecasts; None: there are none.
        future_steps: steps for which these are given; None: lookback and horizon.
        channel_mixer: "selective", the published one; "mlp": two linear layers along the variates (TSM2-MLP in the
            paper's ablation); "none": variates are apart.
        averaging: mixers read averages of all earlier outputs; False: the output of the mixer before.
        residual: add what a mixer reads to what it says. The paper does not say; on ETTh1 it helps validation.
        d_state, d_conv, expand: of both mixers, see :class:`~foveate.mixers.mamba_mixer.SelectiveTokenMixer`.
        dropout: behind the embedding, behind each mixer and before the head.
        quantiles: levels of a forecast, rising, 0.5 among them: the head then answers each of them; none: one number.

    Raises:
        UnknownName: ``task`` or ``channel_mixer`` is none of those listed.
        InvalidValue: a size below 1, ``patch_len`` above ``lookback``, ``horizon``, ``num_class``, covariates or
            quantiles that do not fit the task, illegal levels.
    """

    spec = ModelSpec(
        reads="series",
        tasks=("forecast", "impute", "classify-series", "detect-anomalies"),
        quantiles=True,
        covariates=True,
        export_note="its unrolled scans are slow to convert",
    )

    def __init__(
        self,
        num_variates: int,
        lookback: int,
        horizon: int = 0,
        *,
        task: str = "forecast",
        num_class: int | None = None,
        patch_len: int = 16,
        stride: int = 8,
        d_model: int = 32,
        layers: int = 2,
        use_revin: bool = True,
        static_dim: int | None = None,
        future_dim: int | None = None,
        future_steps: int | None = None,
        channel_mixer: Literal["selective", "mlp", "none"] = "selective",
        averaging: bool = True,
        residual: bool = True,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dropout: float = 0.1,
        quantiles: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise unknown_name("task", task, TASKS)
        if channel_mixer not in MIXERS:
            raise unknown_name("channel mixer", channel_mixer, MIXERS)
        sizes = {"num_variates": num_variates, "lookback": lookback, "patch_len": patch_len, "stride": stride}
        sizes |= {"d_model": d_model, "layers": layers}
        extras = {"static_dim": static_dim, "future_dim": future_dim, "future_steps": future_steps}
        for option, size in (sizes | {name: size for name, size in extras.items() if size is not None}).items():
            if not isinstance(size, int) or size < 1:
                raise invalid(option, size, "a positive whole number is needed")
        if patch_len > lookback:
            raise invalid("patch_len", patch_len, f"a patch has at most the lookback's {lookback} steps")
        _check_task(task, horizon, num_class, extras)
        if quantiles and task != "forecast":
            raise invalid("quantiles", tuple(quantiles), f"task={task!r} forecasts nothing")

        self.task, self.num_variates, self.lookback, self.horizon = task, num_variates, lookback, horizon
        self.use_revin = use_revin and task != "classify-series"
        inner: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand}
        self.static = None if static_dim is None else Linear(static_dim, lookback)
        self.future_mixer = None
        if future_dim is not None:
            self.future_steps = lookback + horizon if future_steps is None else future_steps
            self.future_dim = future_dim
            self.future_mixer = SelectiveChannelMixer(num_variates, seq_len=future_dim, **inner)
            self.future = Linear(self.future_steps * future_dim, lookback)
        parts = 1 + (static_dim is not None) + (future_dim is not None)
        self.patches = Patches(parts * lookback, patch_len, stride)
        self.embed = Linear(patch_len * (2 if task == "impute" else 1), d_model)
        self.positions = learned_positions((self.patches.count,), d_model)
        self.variates = learned_positions((num_variates, 1), d_model)
        self.dropout = nn.Dropout(dropout)

        def mixer_of_variates() -> nn.Module | None:
            if channel_mixer == "selective":
                return AlongVariates(SelectiveChannelMixer(num_variates, seq_len=d_model, **inner))
            hidden = expand * d_model
            layers = [Linear(num_variates, hidden), nn.GELU(), Linear(hidden, num_variates)]
            return AlongVariates(nn.Sequential(*layers)) if channel_mixer == "mlp" else None

        self.stack = MambaMixerStack(
            [
                MambaMixerBlock(
                    d_model,
                    AlongPatches(SelectiveTokenMixer(d_model, causal=True, **inner)),
                    mixer_of_variates(),
                    residual=residual,
                    dropout=dropout,
                )
                for _ in range(layers)
            ],
            averaging=averaging,
        )
        if task == "classify-series":
            self.norm = nn.LayerNorm(d_model)
            self.head = Linear(num_variates * d_model, num_class or 2)
        else:
            self.norm = nn.LayerNorm([self.patches.count, d_model])
            self.head = Linear(self.patches.count * d_model, (horizon or lookback) * max(1, len(quantiles)))
        self.order = QuantileOrder(quantiles) if quantiles else None

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The network for ``info.task``; a patch has at most the lookback's steps.

        A forecaster reads the covariates of ``info``, and answers its quantiles.
        """
        known: dict[str, Any] = {"task": info.task, "num_variates": info.channels, "lookback": info.lookback}
        if info.task == "forecast":
            known |= {"horizon": info.horizon, "quantiles": levels_of(info)}
            known |= {"future_dim": getattr(info, "known", 0) or None, "static_dim": getattr(info, "static", 0) or None}
        if info.task == "classify-series":
            known["num_class"] = info.classes
        settings = {"patch_len": min(16, info.lookback), **options, **known}
        check_options("tsm2", cls, settings)
        return cls(**settings)

    def forward(
        self,
        x: Tensor,
        marks: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        known: Tensor | None = None,
        static: Tensor | None = None,
    ) -> Tensor:
        """Run the task the model was built for.

        Args:
            x: float ``(B, lookback, num_variates)``.
            marks: time features; taken because every forecaster is given them, and not read.
            mask: bool, True = observed or real: ``(B, lookback, num_variates)`` to impute, ``(B, lookback)`` to
                classify; None: all is. What ``x`` holds elsewhere has no influence. Not for forecasts.
            known: ``(B, future_steps, num_variates, future_dim)``, or ``(B, future_steps, future_dim)``, the same for
                all variates.
            static: ``(B, num_variates, static_dim)``, or ``(B, static_dim)``, likewise.

        Returns:
            ``(B, horizon, num_variates)`` forecast, with quantiles ``(B, horizon, num_variates, levels)``,
            ``(B, lookback, num_variates)`` filled or reconstructed series, ``(B, num_class)`` logits.

        Raises:
            InvalidValue: a shape that does not fit, a mask or covariates that are missing or out of place.
            InvalidType: ``x`` is not floating point, ``mask`` is not bool.
        """
        check_series("TSM2", x, self.lookback, self.num_variates)
        mask = self._check_mask(x, mask)
        if self.task == "classify-series":
            x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)
            real = None if mask is None else self.patches(mask).any(-1)
            h = self.norm(self.mix(self.patches(x.transpose(1, 2)), real))
            weight = torch.ones_like(h[:, 0, :, 0]) if real is None else real.to(h.dtype)
            mean = (h * weight[:, None, :, None]).sum(2) / weight.sum(1).clamp_min(1)[:, None, None]
            return self.head(self.dropout(mean.flatten(1)))
        mean, deviation, x = self._normalise(x, mask)
        series = [x.transpose(1, 2), *self._covariates(x, known, static)]
        patches = self.patches(torch.cat(series, -1))
        if self.task == "impute":
            seen = torch.ones_like(x) if mask is None else mask.to(x.dtype)
            patches = torch.cat([patches, self.patches(seen.transpose(1, 2))], -1)
        y = self.head(self.dropout(self.norm(self.mix(patches)).flatten(2)))
        if self.order is not None:
            y = self.order(y.unflatten(2, (self.horizon, -1)))
            mean, deviation = mean[..., None], deviation[..., None]
        return y.transpose(1, 2) * deviation + mean

    def mix(self, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        """The backbone without normalisation and head: ``(B, M, N, patch features)`` to ``(B, M, N, d_model)``."""
        return self.stack(self.dropout(self.embed(patches) + self.positions + self.variates), mask)

    def _normalise(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and deviation of the observed steps ``(B, 1, M)``, and the series in their units, zero in gaps."""
        if not self.use_revin:
            return x.new_zeros(()), x.new_ones(()), x if mask is None else x.masked_fill(~mask, 0)
        if mask is None:
            mean = x.mean(1, keepdim=True)
            deviation = (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            return mean, deviation, (x - mean) / deviation
        count = mask.sum(1, keepdim=True).clamp_min(1)
        mean = x.masked_fill(~mask, 0).sum(1, keepdim=True) / count
        x = (x - mean).masked_fill(~mask, 0)
        deviation = (x.square().sum(1, keepdim=True) / count + 1e-5).sqrt()
        return mean, deviation, x / deviation

    def _covariates(self, x: Tensor, known: Tensor | None, static: Tensor | None) -> list[Tensor]:
        """What stands behind the series, ``(B, M, lookback)`` each: of what is known ahead, then of what is static."""
        found = []
        if self.future_mixer is not None:
            turned = self._check_covariate("known", known, (len(x), self.future_steps, self.future_dim)).transpose(2, 3)
            mixed = self.future_mixer(turned.flatten(0, 1)).unflatten(0, turned.shape[:2])
            found.append(self.future(mixed.permute(0, 3, 1, 2).flatten(2)))
        elif known is not None:
            raise InvalidValue("TSM2: built without future_dim, it takes no known variables.")
        if self.static is not None:
            found.append(self.static(self._check_covariate("static", static, (len(x), self.static.in_features))))
        elif static is not None:
            raise InvalidValue("TSM2: built without static_dim, it takes no static variables.")
        return found

    def _check_covariate(self, name: str, given: Tensor | None, shared: tuple[int, ...]) -> Tensor:
        """Covariates of every variate, ``(..., M, features)``, of these or of ``(..., features)``, shared by all."""
        whole = (*shared[:-1], self.num_variates, shared[-1])
        if given is None or tuple(given.shape) not in (shared, whole):
            came = "none came" if given is None else f"not {tuple(given.shape)}"
            raise InvalidValue(f"TSM2: {name} must be {whole} or, the same for all variates, {shared}; {came}.")
        return given if tuple(given.shape) == whole else given.unsqueeze(-2).expand(whole)

    def _check_mask(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        if self.task not in ("impute", "classify-series"):
            raise InvalidValue(f"TSM2: task={self.task!r} takes no mask: fill missing values before.")
        if mask.dtype != torch.bool:
            raise InvalidType(f"TSM2: mask must be bool (True = observed or real), not {mask.dtype}.")
        legal = tuple(x.shape) if self.task == "impute" else tuple(x.shape[:2])
        if tuple(mask.shape) != legal:
            raise InvalidValue(f"TSM2: mask has shape {tuple(mask.shape)}; it must be {legal}.")
        return mask


def _check_task(task: str, horizon: int, num_class: int | None, extras: dict[str, int | None]) -> None:
    """Refuse what a task needs and lacks, or does not have."""
    if (horizon < 1) if task == "forecast" else (horizon != 0):
        legal = "at least 1 step is forecast" if task == "forecast" else f"task={task!r} forecasts nothing, leave it 0"
        raise invalid("horizon", horizon, legal)
    if task == "classify-series" and (num_class is None or num_class < 2):
        raise invalid("num_class", num_class, "classification needs at least 2 classes")
    if task != "classify-series" and num_class is not None:
        raise invalid("num_class", num_class, f"task={task!r} has no classes")
    given = [name for name, size in extras.items() if size is not None]
    if given and task != "forecast":
        raise invalid(given[0], extras[given[0]], f"task={task!r} has no covariates, leave it out")
    if extras["future_steps"] is not None and extras["future_dim"] is None:
        raise invalid("future_steps", extras["future_steps"], "without future_dim there are no future variables")

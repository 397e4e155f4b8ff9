"""TimesNet: temporal 2D-variation modelling for general time series (Wu et al., ICLR 2023, arXiv:2210.02186).

A series with several periods is hard to read as a line: what belongs together lies one cycle apart. A TimesBlock takes
the k strongest frequencies f_i of its input h (B, L, N) from the spectrum, folds h into one map per period
p_i = L // f_i (rows = cycles, columns = phase), runs one small 2D inception network over every map, unfolds, and mixes
the k results by the softmax of the spectrum's amplitudes (eq. 1 to 6)::

    A     = mean over channels of |rfft(h)|                      f_1..f_k = the k largest of A[1:], batch-averaged
    y_i   = unfold(inception(gelu(inception(fold(h, p_i)))))     block(h) = h + sum_i softmax(A[f_1..f_k])_i * y_i

Differences between paper and official code follow the code: p_i is the floor, not the ceiling, of L / f_i, and the
frequencies are chosen from the spectrum of the whole batch, so that a sample's output depends on its batch mates
(``periods="sample"`` chooses per sample).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InvalidType, InvalidValue, invalid, unknown_name
from ...mixers.parts import Linear
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model, check_series
from ..outlook import levels_of
from ..published import Published
from ..quantiles import QuantileOrder
from .embedding import FREQ_MARKS, SeriesEmbedding
from .periods import InceptionBlock2d, amplitudes_at, batch_frequencies, conv2d_same, fft_periods, fold, unfold
from .timesnet_recipes import PUBLISHED, USUAL, published_recipe

TASKS = ("forecast", "impute", "classify-series", "detect-anomalies")


class TimesBlock(nn.Module):
    """One residual block: fold by the dominant periods, 2D inception over every map, mix by amplitude.

    Args:
        d_model, d_ff: channels of the series and of the hidden maps.
        top_k: number of periods.
        num_kernels: kernel sizes in each inception block.
        periods: "batch": periods of the batch-averaged spectrum, as published; "sample": each sample's own.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        top_k: int = 5,
        num_kernels: int = 6,
        periods: Literal["batch", "sample"] = "batch",
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.periods: Literal["batch", "sample"] = periods
        #: Frequencies that stay as they are, see :meth:`TimesNet.freeze_periods`; None: chosen anew from every input.
        self.frozen: tuple[int, ...] | None = None
        self.expand = InceptionBlock2d(d_model, d_ff, num_kernels)
        self.reduce = InceptionBlock2d(d_ff, d_model, num_kernels)

    def forward(self, h: Tensor) -> Tensor:
        """``(B, L, d_model)`` to the same shape."""
        if self.frozen is not None:
            return self._with_frozen(h, self.frozen)
        periods, amplitudes = fft_periods(h, self.top_k, self.periods)
        weights = amplitudes.softmax(1).to(h.dtype)
        kernels = self.expand.fused(), self.reduce.fused()  # once per call, not once per period
        out = h
        for period in periods.unique().tolist():
            chosen = periods == period  # (k,) or (B, k): several frequencies may share a period, one map serves them
            share = (weights * chosen).sum(1)[:, None, None]
            if self.periods == "batch":
                out = out + share * unfold(self.mix(fold(h, period), kernels), h.shape[1])
            else:
                rows = chosen.any(1).nonzero().squeeze(1)
                mixed = unfold(self.mix(fold(h[rows], period), kernels), h.shape[1])
                out = out.index_add(0, rows, share[rows] * mixed)
        return out

    def _with_frozen(self, h: Tensor, frequencies: tuple[int, ...]) -> Tensor:
        weights = amplitudes_at(h, frequencies).softmax(1).to(h.dtype)
        kernels = self.expand.fused(), self.reduce.fused()
        periods, out = [h.shape[1] // f for f in frequencies], h
        for period in sorted(set(periods)):
            share = sum(weights[:, i] for i, own in enumerate(periods) if own == period)[:, None, None]  # type: ignore
            out = out + share * unfold(self.mix(fold(h, period), kernels), h.shape[1])
        return out

    def mix(self, maps: Tensor, kernels: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """The 2D network over one map ``(B, d_model, cycles, period)``, with the two fused kernels."""
        expand, reduce = kernels
        return conv2d_same(F.gelu(conv2d_same(maps, *expand)), *reduce)


@register("model", "timesnet")
class TimesNet(Model):
    """TimesNet: finds the dominant periods by FFT and models the series as 2D maps, one per period.

    One backbone with a thin head for each task. Forecasting, imputation and anomaly detection normalise every window
    and variable by its own mean and standard deviation and undo it at the end; classification does not.

    Args:
        task: "forecast", "impute", "classify-series" or "detect-anomalies".
        seq_len: steps T of the input.
        enc_in: variables C of the input.
        pred_len: steps P to forecast; 0 in the other tasks. The blocks work on L = T + P steps.
        c_out: variables of the output; None, or the same as ``enc_in``.
        d_model, d_ff: channels of the series and of the hidden maps.
        e_layers: number of blocks; they share one LayerNorm.
        top_k: number of periods in a block, at most L // 2.
        num_kernels: convolutions in an inception block, of kernel 1, 3, ..., 2 * num_kernels - 1.
        dropout: after the embedding, and before the classification head.
        embed: what time marks are: "timeF", real-valued features through a linear map; "fixed" or "learned", integer
            calendar columns (month, day, weekday, hour, and minute // 15 with ``freq="t"``) through tables.
        freq: frequency letter, one of h, t, s, m, a, w, d, b: it says how many time features there are.
        marks: number of "timeF" columns where ``freq`` does not fit; 0: the series has none.
        num_class: classes, for classification only.
        periods: "batch": the periods of the batch-averaged spectrum, as published, so that outputs depend on batch
            mates; "sample": each window's own, which makes predictions independent of the batch.
        quantiles: levels of a forecast, rising, 0.5 among them: the last layer then answers each of them; none: one
            number, as published.

    Raises:
        UnknownName: ``task`` is none of the four.
        InvalidValue: a size below 1, ``top_k`` above L // 2, ``pred_len`` that does not fit the task, ``c_out`` other
            than ``enc_in``, ``num_class`` missing or out of place, an unknown ``embed``, ``freq`` or ``periods``,
            illegal levels or levels of something else than a forecast.
    """

    spec = ModelSpec(
        reads="series",
        tasks=("forecast", "classify-series", "impute", "detect-anomalies"),
        batch_independent=False,
        compile=False,
        export=False,
        export_note="its periods follow the data: freeze them with calibration data",
        quantiles=True,
    )
    official_keys = {
        "Time-Series-Library": {
            r"enc_embedding\.position_embedding\.pe": "",
            r"enc_embedding\.value_embedding\.tokenConv\.weight": r"embedding.value.weight",
            r"enc_embedding\.temporal_embedding\.embed\.weight": r"embedding.time.weight",
            r"enc_embedding\.temporal_embedding\.(\w+)_embed(?:\.emb)?\.weight": r"embedding.time.\1.weight",
            r"predict_linear\.(weight|bias)": r"extend.\1",
            r"model\.(\d+)\.conv\.0\.(.+)": r"blocks.\1.expand.\2",
            r"model\.(\d+)\.conv\.2\.(.+)": r"blocks.\1.reduce.\2",
            r"layer_norm\.(weight|bias)": r"norm.\1",
            r"projection\.(weight|bias)": r"head.\1",
        }
    }

    def __init__(
        self,
        *,
        task: str,
        seq_len: int,
        enc_in: int,
        pred_len: int = 0,
        c_out: int | None = None,
        d_model: int = 64,
        d_ff: int = 64,
        e_layers: int = 2,
        top_k: int = 5,
        num_kernels: int = 6,
        dropout: float = 0.1,
        embed: str = "timeF",
        freq: str = "h",
        marks: int | None = None,
        num_class: int | None = None,
        periods: Literal["batch", "sample"] = "batch",
        quantiles: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise unknown_name("task", task, TASKS)
        sizes = {"seq_len": seq_len, "enc_in": enc_in, "d_model": d_model, "d_ff": d_ff, "e_layers": e_layers}
        for option, size in (*sizes.items(), ("num_kernels", num_kernels)):
            if size < 1:
                raise invalid(option, size, "it must be at least 1")
        if (pred_len < 1) if task == "forecast" else (pred_len != 0):
            legal = (
                "at least 1 step is forecast" if task == "forecast" else f"task={task!r} forecasts nothing, leave it 0"
            )
            raise invalid("pred_len", pred_len, legal)
        length = seq_len + pred_len
        if not 1 <= top_k <= length // 2:
            raise invalid("top_k", top_k, f"{length} steps have frequencies 1 to {length // 2}")
        if task == "classify-series" and (num_class is None or num_class < 2):
            raise invalid("num_class", num_class, "classification needs at least 2 classes")
        if task != "classify-series" and num_class is not None:
            raise invalid("num_class", num_class, f"task={task!r} has no classes")
        if c_out not in (None, enc_in):
            raise invalid("c_out", c_out, f"the output has the variables of the input, enc_in={enc_in}")
        if quantiles and task != "forecast":
            raise invalid("quantiles", tuple(quantiles), f"task={task!r} forecasts nothing")
        for option, value, legal in (
            ("embed", embed, ("timeF", "fixed", "learned")),
            ("freq", freq, tuple(FREQ_MARKS)),
            ("periods", periods, ("batch", "sample")),
        ):
            if value not in legal:
                raise invalid(option, value, f"it must be one of {', '.join(legal)}")

        self.task, self.seq_len, self.pred_len, self.enc_in = task, seq_len, pred_len, enc_in
        # Made in the order of the official code, so that a seed gives the official initial weights.
        self.blocks = nn.ModuleList(TimesBlock(d_model, d_ff, top_k, num_kernels, periods) for _ in range(e_layers))
        columns = FREQ_MARKS[freq] if marks is None else marks
        self.embedding = SeriesEmbedding(enc_in, d_model, seq_len, embed, freq, columns, dropout)
        self.norm = nn.LayerNorm(d_model)
        if task == "forecast":
            self.extend = Linear(seq_len, length)
        self.dropout = nn.Dropout(dropout)
        self.order = QuantileOrder(quantiles) if quantiles else None
        answers = enc_in * max(1, len(quantiles))
        self.head = Linear(d_model, answers) if num_class is None else Linear(d_model * seq_len, num_class)

    @classmethod
    def for_task(cls, info: Any, published: str | None = None, **options: Any) -> Self:
        """The network for ``info.task``, in a published size unless options say else.

        Args:
            info: what the task knows of the data: lookback, channels, marks, and horizon or classes.
            published: a name of :data:`PUBLISHED`; None: the task's lightest of the paper's main tables.
            options: constructor options that replace the published ones.
        """
        published = USUAL[info.task] if published is None else published
        if published not in PUBLISHED:
            raise unknown_name("published configuration", published, PUBLISHED)
        if options.get("embed", "timeF") != "timeF":
            raise invalid("embed", options["embed"], f"the {info.task} task gives time features, which need 'timeF'")
        known: dict[str, Any] = {"task": info.task, "seq_len": info.lookback, "enc_in": info.channels}
        if info.task == "forecast":
            known |= {"pred_len": info.horizon, "quantiles": levels_of(info)}
        if info.task == "classify-series":
            known["num_class"] = info.classes
        settings = {**PUBLISHED[published], "marks": info.marks, **options, **known}
        if "top_k" not in options:
            settings["top_k"] = min(settings["top_k"], max(1, (info.lookback + known.get("pred_len", 0)) // 2))
        check_options("timesnet", cls, settings)
        return cls(**settings)

    @classmethod
    def published(cls, info: Any, dataset: str) -> Published | None:
        """The scripts of Time-Series-Library."""
        return published_recipe(info, dataset)

    def forward(self, x: Tensor, marks: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Run the task the model was built for.

        Args:
            x: float ``(B, seq_len, enc_in)``.
            marks: ``(B, seq_len, columns)``: time features in [-0.5, 0.5] ("timeF") or calendar columns (tables); None:
                the series has no time stamps. Only forecasting and imputation read them.
            mask: bool, True = observed or real. Imputation needs ``(B, seq_len, enc_in)``: what ``x`` holds elsewhere
                (zeros, NaN, the hidden truth) has no influence. Classification takes ``(B, seq_len)``: padded steps do
                not reach the head, but the blocks see what ``x`` holds there (zeros, as published).

        Returns:
            ``(B, pred_len, enc_in)`` forecast, with quantiles ``(B, pred_len, enc_in, levels)``,
            ``(B, seq_len, enc_in)`` imputed or reconstructed series, ``(B, num_class)`` logits.

        Raises:
            InvalidValue: wrong shapes, a missing or superfluous ``mask`` or ``marks``, NaN or infinite values, a
                variable without any observed value in a window.
            InvalidType: ``x`` is not floating point, ``mask`` is not bool.
        """
        check_series("TimesNet", x, self.seq_len, self.enc_in)
        self._check_marks(x, marks)
        mask = self._check_mask(x, mask)
        if self.task == "impute" and mask is not None:
            x = x.masked_fill(~mask, 0)
        if not torch.compiler.is_compiling() and not bool(x.isfinite().all()):
            raise InvalidValue("TimesNet: x holds NaN or infinite values: fill them, or impute them with a mask.")
        if self.task == "classify-series":
            h = self.dropout(F.gelu(self.features(x)))
            return self.head((h if mask is None else h * mask[..., None]).flatten(1))
        mean, deviation, normal = self._normalise(x, mask)
        h = self.features(normal, marks)[:, -self.pred_len :]  # pred_len 0: all of it
        y = self.head(h)
        if self.order is not None:
            y = self.order(y.unflatten(-1, (self.enc_in, -1)))
            mean, deviation = mean[..., None], deviation[..., None]
        return y * deviation + mean

    def features(self, x: Tensor, marks: Tensor | None = None) -> Tensor:
        """The backbone without normalisation and head: ``(B, seq_len, enc_in)`` to ``(B, L, d_model)``."""
        h = self.embedding(x, marks)
        if self.task == "forecast":
            h = self.extend(h.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            h = self.norm(block(h))
        return h

    def freeze_periods(self, x: Tensor, marks: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Keep, from now on, the periods that the blocks find in these inputs, whatever the model reads later.

        Answers then no longer depend on batch mates, nor the network's form on the data, so that it can be exported.
        The frequencies of each block are those of the spectrum averaged over all of ``x``; see :attr:`frozen_periods`.

        Args:
            x, marks, mask: as for :meth:`forward`; many windows of what the model will meet.
        """

        def freeze(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            block.frozen = batch_frequencies(inputs[0], block.top_k)  # type: ignore[assignment, arg-type]

        training = self.training
        for block in self.blocks:
            block.frozen = None  # type: ignore[assignment]
        hooks = [block.register_forward_pre_hook(freeze) for block in self.blocks]
        try:
            with torch.no_grad():
                self.eval()(x, marks, mask)
        finally:
            self.train(training)
            for hook in hooks:
                hook.remove()
        self.spec = replace(type(self).spec, batch_independent=True, export=True, onnx=True, export_note="")

    @property
    def frozen_periods(self) -> list[list[int]] | None:
        """The periods of each block, strongest first, once they are frozen; None before."""
        length = self.seq_len + self.pred_len
        frozen: list[tuple[int, ...] | None] = [block.frozen for block in self.blocks]  # type: ignore[misc]
        return None if None in frozen else [[length // f for f in block or ()] for block in frozen]

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Squared reconstruction error of every step, averaged over variables: ``(B, seq_len)``.

        Raises:
            InvalidType: the model was built for another task.
        """
        if self.task != "detect-anomalies":
            raise InvalidType(f"TimesNet: task={self.task!r} has no anomaly score: build it for 'detect-anomalies'.")
        return (self(x) - x).square().mean(-1)

    def _normalise(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        # Gradients as published: the mean is a constant everywhere, the deviation in imputation only.
        if mask is None:
            mean = x.mean(1, keepdim=True).detach()
            x = x - mean
            deviation = (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        else:
            count = mask.sum(1, keepdim=True)
            mean = (x.sum(1, keepdim=True) / count).detach()
            x = (x - mean).masked_fill(~mask, 0)
            deviation = (x.square().sum(1, keepdim=True) / count + 1e-5).sqrt().detach()
        return mean, deviation, x / deviation

    def _check_marks(self, x: Tensor, marks: Tensor | None) -> None:
        if marks is None:
            return
        if self.task not in ("forecast", "impute"):
            raise InvalidValue(f"TimesNet: task={self.task!r} reads no marks: leave them out.")
        columns = self.embedding.marks
        if marks.shape != (*x.shape[:2], columns):
            raise InvalidValue(
                f"TimesNet: marks have shape {tuple(marks.shape)}; they must be {(*x.shape[:2], columns)}."
            )

    def _check_mask(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            if self.task == "impute":
                raise InvalidValue("TimesNet: task='impute' needs a mask: bool like x, True = observed.")
            return None
        if self.task not in ("impute", "classify-series"):
            raise InvalidValue(f"TimesNet: task={self.task!r} takes no mask: leave it out.")
        if mask.dtype != torch.bool:
            raise InvalidType(f"TimesNet: mask must be bool (True = observed or real), not {mask.dtype}.")
        legal = tuple(x.shape) if self.task == "impute" else tuple(x.shape[:2])
        if mask.shape != legal:
            raise InvalidValue(f"TimesNet: mask has shape {tuple(mask.shape)}; it must be {legal}.")
        if self.task == "impute" and not torch.compiler.is_compiling() and not bool(mask.any(1).all()):
            row, variable = (~mask.any(1)).nonzero()[0].tolist()
            raise InvalidValue(
                f"TimesNet: variable {variable} of window {row} has no observed value: drop it or widen the window."
            )
        return mask

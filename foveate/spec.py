"""What a mixer or a model promises about itself.

A spec is data, free of torch, written as literals in the class body, so that it can be read from the source without
importing anything heavy (:mod:`foveate.registry`). Every field is a promise that the contract suite checks in both
directions: what the spec says yes to works, what it says no to is refused with the right error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Causal = Literal["strict", "values", "never"]
Streaming = Literal["no", "exact", "own"]
Padding = Literal["none", "masked", "as_published"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Which token grids are accepted, per axis.

    Attributes:
        minimum: smallest legal size of every axis.
        multiple_of: every axis must be a multiple of this.
        fixed: the one legal grid, or None.
    """

    minimum: int = 1
    multiple_of: int = 1
    fixed: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Claimed growth in the number of tokens n, as the exponent of n (1 = linear, 2 = quadratic)."""

    flops: float = 1.0
    memory: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerSpec:
    """Promises of a mixer.

    Attributes:
        ranks: legal ranks of the token grid: 1 (length), 2 (height, width), 3 (time, height, width).
        grid: legal sizes of the grid.
        causal: with ``causal=True``, "strict": nothing at or before t depends on anything after t; "values": values
            never leak, but which tokens are selected may look ahead; "never": ``causal=True`` is refused.
        bidirectional: ``causal=False`` is possible.
        streaming: "exact": prefill and step equal ``forward``; "own": they follow the system's own streaming rule and
            equal ``forward`` where its budget covers everything; "no": refused.
        cross: accepts ``context``, a second token sequence to read from.
        masks: accepts ``mask``.
        padding: what the mixer's own padding does: "none" (never pads), "masked" (pads, padding has no influence),
            "as_published" (pads as the official code does, padding may leak).
        layout: reads ``layout`` (positions, segments or special tokens); False: a layout with any of these is refused.
        segments: honours ``layout.segments``: nothing, states included, crosses a document border.
        batch_independent: a sample's output does not depend on the others of its batch (in eval mode).
        deterministic: two calls in eval mode give the same bits.
        order: claimed growth of cost.
        compile: ``torch.compile(fullgraph=True)`` works.
        export: the file that :func:`foveate.export` writes in the format "pt2", for batches of any size, gives the same
            numbers wherever there is torch, without foveate.
        onnx: so does its ONNX file in onnxruntime.
        dynamic_length: one such file serves every legal grid; False: a file serves the grid it was made for.
        export_note: what keeps it from those of the three promises above that it does not make: half a sentence, which
            errors and the documentation show.
    """

    ranks: tuple[int, ...] = (1,)
    grid: Grid = field(default_factory=Grid)
    causal: Causal = "never"
    bidirectional: bool = True
    streaming: Streaming = "no"
    cross: bool = False
    masks: bool = True
    padding: Padding = "none"
    layout: bool = False
    segments: bool = False
    batch_independent: bool = True
    deterministic: bool = True
    order: Order = field(default_factory=Order)
    compile: bool = True
    export: bool = True
    onnx: bool = False
    dynamic_length: bool = False
    export_note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Promises of a complete model.

    Attributes:
        reads: the kind of input: "series" (B, T, C), "image" (B, C, H, W), "video" (B, C, T, H, W), "tokens" (B, L)
            int64, "events", "graph", "signal".
        tasks: the tasks it can be built for by ``for_task``.
        streaming: as in :class:`MixerSpec`.
        trains: False for a system without parameters or gradients (its recipe defines ``fit``, or nothing is fitted).
        baseline: True for a trivial reference that every leaderboard shows.
        quantiles: a forecaster built with ``info.quantiles`` answers ``(B, horizon, C, levels)``, in order; False: one
            number per value, and quantiles are put around it (:mod:`foveate.models.outlook`).
        covariates: a forecaster takes ``known`` and ``static`` and needs no help with them.
        batch_independent, deterministic, compile, export, onnx, dynamic_length, export_note: as in :class:`MixerSpec`.
            For a model of tokens the length is their number; a model that holds mixers promises what all of them do.
    """

    reads: str
    tasks: tuple[str, ...]
    streaming: Streaming = "no"
    trains: bool = True
    baseline: bool = False
    quantiles: bool = False
    covariates: bool = False
    batch_independent: bool = True
    deterministic: bool = True
    compile: bool = True
    export: bool = True
    onnx: bool = False
    dynamic_length: bool = False
    export_note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What a task works on.

    Attributes:
        reads: the kind of input its models read, see :attr:`ModelSpec.reads`.
        rank: rank of the token grid that a mixer sees in it.
        metrics: names of the metrics; the first one decides (validation selects by it).
        higher_is_better: direction of that first metric.
        test_metrics: names of the metrics on test where they are others than on validation (only test has labels); the
            first one ranks. Empty: test cannot be scored, rows are ranked on validation. None: ``metrics``.
        test_higher_is_better: direction of the first of ``test_metrics``; None: ``higher_is_better``.
        baselines: trivial models that are always among the contestants.
        shortlist: default contestants: models and mixers.
        models_of: the task whose models and mixers take part, for a task that differs in its rules alone; "": its own.
        heads_on: the task whose models take part too, with a head of this task on them; "": none.
    """

    reads: str
    rank: int
    metrics: tuple[str, ...]
    higher_is_better: bool = False
    test_metrics: tuple[str, ...] | None = None
    test_higher_is_better: bool | None = None
    baselines: tuple[str, ...] = ()
    shortlist: tuple[str, ...] = ()
    models_of: str = ""
    heads_on: str = ""

    @property
    def ranked_on(self) -> str:
        """The split whose first metric ranks systems: "test", or "val" where test cannot be scored."""
        return "val" if self.test_metrics == () else "test"

    @property
    def ranking_metrics(self) -> tuple[str, ...]:
        """Names of the metrics of :attr:`ranked_on`; the first one ranks."""
        return self.test_metrics or self.metrics

    @property
    def ranking_higher_is_better(self) -> bool:
        """Direction of the first of :attr:`ranking_metrics`."""
        if not self.test_metrics or self.test_higher_is_better is None:
            return self.higher_is_better
        return self.test_higher_is_better


def model_fits(spec: ModelSpec, task: TaskSpec, name: str) -> bool:
    """Whether a model can do the task of this name, by itself or with a head on it."""
    with_head = bool(task.heads_on) and task.heads_on in spec.tasks and not spec.baseline
    return (task.models_of or name) in spec.tasks or with_head


def mixer_fits(spec: MixerSpec, task: TaskSpec, *, flattened: bool) -> bool:
    """Whether a mixer can be given a task's token grids: where next tokens are asked for, it must be strictly causal.

    Args:
        flattened: a grid of a rank that it does not take may be read as a sequence.
    """
    ranks = {1, task.rank} if flattened else {task.rank}
    return bool(ranks & set(spec.ranks)) and (task.reads != "tokens" or spec.causal == "strict")

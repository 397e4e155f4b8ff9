"""The contracts of tasks and recipes."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidType
from ..mixers.base import aux_losses
from ..spec import TaskSpec
from .schedules import learning_rate_factor

Batch = dict[str, Tensor]


@dataclass(slots=True)
class Evaluation:
    """Scores of one model on one split.

    Attributes:
        metrics: name to value, in the order of ``TaskSpec.metrics`` (on test of ``TaskSpec.test_metrics``, if given).
        per_sample: float64 ``(samples,)``: each sample's part of the first metric, whose mean it is, in the split's
            order, for paired tests. A task that scores steps gives one for each scored step.
        examples: small arrays for pictures (task-specific; the report of the task knows them).
    """

    metrics: dict[str, float]
    per_sample: Tensor
    examples: dict[str, Any] = field(default_factory=dict)


class Task(abc.ABC):
    """A task over one data set: prepared once, then read by every contestant.

    Everything that a model may need to know for being built is in :attr:`info`, a frozen dataclass of plain values.
    A task writes itself to a folder and reads itself back, so that workers never touch the user's file again.

    A model that serves several tasks tells them apart by ``info.task``, the task's registered name. A batch may carry
    entries without a sample axis, such as a table of node features: :meth:`apply` knows which are which.
    """

    #: Literals in the class body; what changes a promise (other metrics, no labels) sets it on the instance.
    spec: TaskSpec
    info: Any
    #: How many neighbouring samples of a split are scored on the same values (windows of a series: horizon / stride);
    #: 1 where samples are independent. The significance tests need it.
    overlap: int = 1
    #: Tokens in one training sample (a window of a series: its lookback), for budgets in tokens.
    sample_tokens: int = 1

    def sample_groups(self, split: str) -> Tensor | None:
        """int64 ``(samples,)``: samples with the same number were taken at the same time (windows of several series),
        smaller numbers earlier, so that significance tests do not count them as independent; None: each is its own."""
        return None

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts of the data on record: source, hash, rows, channels, missing values, split borders (JSON values)."""

    @abc.abstractmethod
    def size(self, split: str) -> int:
        """Number of samples in "train", "val" or "test"."""

    def scoring_size(self, split: str) -> int:
        """Number of samples that :meth:`evaluate` reads to score a split: more than :meth:`size` where a threshold is
        taken from other splits. Time budgets and predictions of time need it."""
        return self.size(split)

    @abc.abstractmethod
    def batch(self, split: str, index: Tensor) -> Batch:
        """The samples ``index`` (int64) of a split as a batch of tensors."""

    @abc.abstractmethod
    def apply(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's prediction for a batch: the one place that knows which entries are its inputs."""

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss of a batch (a scalar)."""

    def after_fit(self, model: nn.Module) -> None:  # noqa: B027 (a hook that most tasks leave alone)
        """Called once after a system without gradients was fitted: what it is wrapped in may still need the data."""

    @abc.abstractmethod
    def evaluate(self, model: nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        """Score a model in eval mode; deterministic for a fixed thread count."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Write the prepared data (safetensors and JSON)."""

    @classmethod
    @abc.abstractmethod
    def load(cls, folder: Path) -> Task:
        """Read back what :meth:`save` wrote."""

    @abc.abstractmethod
    def package(self, model: nn.Module) -> nn.Module:
        """Wrap a trained model so that it works in the user's units: what ``best/`` ships and ``load`` returns.

        The wrapper's ``config``, plain values, is all that :meth:`unpack` needs to make it anew; its
        ``example_inputs(batch, seed)``, named random inputs as :meth:`predict` gives them, is what export needs.
        """

    @classmethod
    def unpack(cls, config: dict[str, Any], build: Callable[[Any], nn.Module]) -> nn.Module:
        """The wrapper of :meth:`package` made anew, its weights still to be loaded.

        Args:
            config: the wrapper's ``config``.
            build: makes the model from :attr:`info`.
        """
        raise NotImplementedError(f"{cls.__name__} cannot unpack what it packaged.")

    def whole(self) -> Task | None:
        """The same task with the samples of all splits in "train", scaled by the statistics of all of them.

        On it the winner of a comparison is trained once more before it is shipped. :attr:`info` stays as it is, since
        the winner is built from it; "val" and "test" stay as well, but a model of the whole has seen them: what it
        scores there can only tell that training diverged.

        Returns:
            None, the default: winners are shipped as they were scored.
        """
        return None

    @staticmethod
    def predict(packaged: Any, /, source: Any = None, *, time: str | None = None, id: str | None = None) -> Any:
        """Use what :meth:`package` made on new data: what ``foveate predict`` writes.

        Args:
            packaged: the wrapper.
            source: anything :class:`Task` subclasses prepare from, without the truth; None: the embedded data.
            time, id: names of the time and id columns of a table; None: as in training, or found.

        Returns:
            A DataFrame in the user's units and names.
        """
        raise InvalidType("this task has no predictions of its own: open the model with foveate.load.")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands when a recipe's hook is called.

    Attributes:
        step, steps: optimiser steps done and in total in this stage (``steps`` is 0 under a time budget).
        epoch, batch, batches: pass over the data, batch inside it, batches per pass.
        stage: index of the current stage.
        fraction: share of the budget used, in [0, 1].
    """

    step: int
    steps: int
    epoch: int
    batch: int
    batches: int
    stage: int = 0
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: shown in logs.
        share: share of the budget.
        prepare: called with the model when the stage begins; may freeze, snapshot a teacher, add a head. On resume it
            is called for every stage up to the current one before weights are loaded, so what it builds must depend
            on the stage alone.
        samples: which training samples belong to the stage (int64), None for all (a task increment, a curriculum).
    """

    name: str = "train"
    share: float = 1.0
    prepare: Callable[[nn.Module], None] | None = None
    samples: Tensor | None = None


class Recipe:
    """How a system is trained. The trainer owns loop, clock, seeds and checkpoints; a recipe fills in the rest.

    The defaults serve most systems: AdamW, the task's loss plus auxiliary losses, samples in random order, gradients
    clipped to norm 1. Teachers, averages, masks and memories are buffers or submodules of the model, so that
    kill-and-resume covers them; anything else (a teacher that is not shipped) goes through :meth:`state_dict`.

    The hooks reach into the model: a module that defines ``before_step(progress)``, ``after_step(progress)`` or
    ``on_epoch(progress)`` is called by the hook of that name, so that a mechanism that trains in its own way does so
    inside any network; a recipe that replaces a hook calls ``super()`` to keep this.
    """

    #: Largest gradient norm; None: no clipping.
    clip_norm: float | None = 1.0
    weight_decay: float = 0.01
    #: Whether a validation equal to the best one counts as a gain: later weights are kept, patience starts anew.
    ties_gain: bool = False

    def __init__(self, task: Task) -> None:
        self.task = task

    def stages(self) -> list[Stage]:
        """The stages in order; their shares sum to 1."""
        return [Stage()]

    def optimizers(self, model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
        """Optimisers, made anew at each stage. Biases, gains and other vectors get no weight decay."""
        params = [p for p in model.parameters() if p.requires_grad]
        exempt = {id(p) for m in model.modules() for p in getattr(m, "no_weight_decay", list)()}
        decay = [p for p in params if p.ndim >= 2 and id(p) not in exempt]
        plain = [p for p in params if p.ndim < 2 or id(p) in exempt]
        groups = [
            {"params": decay, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return [torch.optim.AdamW([g for g in groups if g["params"]], lr=lr)]

    def schedule(self, fraction: float, progress: Progress) -> float:
        """Share of the peak learning rate at the next step; by default linear warm-up under half a cosine.

        Args:
            fraction: share of the stage's budget used, in [0, 1].
            progress: where training stands, for schedules that go by passes over the data.
        """
        return learning_rate_factor(fraction)

    def scored_at_once(self, batch_size: int) -> int:
        """Samples in a batch of validation and test; it matters to models that are not ``batch_independent``."""
        return 4 * batch_size

    def order(self, samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        """Order of the training samples in an epoch, int64; chronological recipes return them as they are."""
        return torch.randperm(samples, generator=generator)

    def losses(
        self, model: nn.Module, batch: Batch, generator: torch.Generator, progress: Progress
    ) -> dict[str, Tensor]:
        """Named losses; their sum is minimised."""
        return {"loss": self.task.loss(model, batch), **aux_losses(model)}

    def before_step(self, model: nn.Module, progress: Progress) -> None:
        """After backward, before clipping and the optimisers: mask or compensate gradients."""
        _call_modules(model, "before_step", progress)

    def after_step(self, model: nn.Module, progress: Progress) -> None:
        """After the optimisers: moving averages, clustering, clamps, writing memories."""
        _call_modules(model, "after_step", progress)

    def on_epoch(self, model: nn.Module, progress: Progress) -> None:
        """Before each pass over the data: reset memories."""
        _call_modules(model, "on_epoch", progress)

    def eval_form(self, model: nn.Module, split: str) -> nn.Module:
        """The model that is scored and shipped: an average, a merged or quantised form, without teachers.

        A memory that runs on from split to split is brought there here (``self.task`` has the splits before this one).
        The trainer restores buffers afterwards.
        """
        return model

    def fit(self, model: nn.Module, seconds: float | None) -> None:
        """Fit a system without gradients (``spec.trains`` False); called once instead of the loop."""

    def state_dict(self) -> dict[str, Tensor]:
        """What must survive a kill and is not in the model."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave."""


def asked_at_once(model: nn.Module, batch_size: int) -> int:
    """Samples that ``predict`` gives a model at once: one, if its outputs depend on the others of the batch.

    So the answer for a window never depends on what else the user asked for at the same time.
    """
    spec = getattr(model, "spec", None)
    return batch_size if spec is None or spec.batch_independent else 1


def _call_modules(model: nn.Module, hook: str, progress: Progress) -> None:
    for module in model.modules():
        method = getattr(module, hook, None)
        if callable(method):
            method(progress)

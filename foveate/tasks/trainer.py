"""The training loop: one for every system and every task.

The trainer owns loop, clock, seeds and checkpoints; what differs between systems is in its
:class:`~foveate.tasks.base.Recipe`. Under a step budget everything follows from the arguments: samples are drawn in an
order that depends on (seed, epoch), the learning rate on the share of the budget used, validation comes at fixed steps.
So a run that is killed and started again gives the same bits as an undisturbed one (with the same number of threads).
Under a time budget the clock decides; time spent up to the last checkpoint before a kill counts.

Only the validation split chooses: the weights kept are the best by the task's deciding metric, and training stops early
when that has not improved for some validations.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..files import append_line, plain, read_jsonl, write_jsonl
from .base import Progress, Recipe, Stage, Task
from .budget import Budget, default_validate_every
from .state import Checkpoint, Position, evaluate, model_state, seed_everything, seed_from

LOG = "log.jsonl"
#: A loss this many times the first one of its stage (or 1, if that is larger) counts as diverged.
BLOW_UP = 1e4
#: Seconds between progress events.
PROGRESS_EVERY = 0.2

Event = dict[str, Any]


class Diverged(RuntimeError):
    """The loss or the validation metric is not finite, or blew up."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training gave; the model holds the best weights by validation.

    Attributes:
        val: metrics on the validation split of those weights.
        best_step: the step they are from.
        steps, samples: optimiser steps and training samples, over all stages.
        stopped: "budget", "early" (validation stopped improving) or "fit" (a system without gradients).
        curve: ``[step, mean training loss since the last validation, deciding metric]`` per validation.
        train_seconds: in the bare loop, over all resumes; evaluation and checkpoints are not in it.
        evaluate_seconds, checkpoint_seconds: in those.
        meters: the caller's numbers, at their maximum over all resumes.
    """

    val: dict[str, float]
    best_step: int
    steps: int
    samples: int
    stopped: str
    curve: list[list[float | None]]
    train_seconds: float
    evaluate_seconds: float
    checkpoint_seconds: float
    meters: dict[str, float]


def train(
    model: nn.Module,
    recipe: Recipe,
    task: Task,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    lr: float,
    seed: int,
    folder: Path,
    batch_size: int = 32,
    validate_every: int | None = None,
    patience: int | None = None,
    checkpoint_every: float = 5.0,
    reserve: float = 0.0,
    on_event: Callable[[Event], None] | None = None,
    meters: Callable[[], dict[str, float]] | None = None,
) -> TrainResult:
    """Train ``model`` in place, or go on where an earlier call on the same folder was killed.

    Args:
        model: freshly built, with the seed's initial weights.
        steps: budget in optimiser steps, shared out over the recipe's stages; exactly one of it and ``seconds``.
        seconds: budget in seconds of this process, validations and checkpoints included.
        lr: peak learning rate.
        seed: decides sample order and dropout.
        folder: receives ``log.jsonl``, ``checkpoint.safetensors`` and ``best.safetensors``; made if absent. The other
            arguments must be those of the earlier call.
        validate_every: steps between validations; None: :func:`default_validate_every`. Under a time budget
            validations are spread over the time, at most :data:`VALIDATIONS`.
        patience: stop a stage after so many validations without improvement; None: never.
        checkpoint_every: least seconds between checkpoints, which also stay below 1 % of the time; 0: after every step.
        reserve: under a time budget, leave time for so many more validations at the end.
        on_event: called with "progress" (at most five a second), "validated", "checkpoint" and "resumed" events.
        meters: called before each checkpoint for numbers to keep, such as peak memory.

    Raises:
        Diverged: see there; the message says where.
        InvalidValue: budgets or sizes are illegal, or the checkpoint is damaged.
    """
    if batch_size < 1:
        raise invalid("batch_size", batch_size, "at least one sample is needed")
    folder.mkdir(parents=True, exist_ok=True)
    stages = recipe.stages()
    budget = Budget(steps, seconds, tuple(s.share for s in stages), reserve)
    if validate_every is None and steps is not None:
        validate_every = default_validate_every(steps, batch_size, task.size("val"))
    return _Run(
        model=model,
        recipe=recipe,
        task=task,
        stages=stages,
        budget=budget,
        lr=lr,
        seed=seed,
        folder=folder,
        batch_size=batch_size,
        validate_every=validate_every or 1,
        patience=patience,
        checkpoint_every=checkpoint_every,
        emit=on_event or (lambda event: None),
        meters=meters or dict,
    ).train()


@dataclass(kw_only=True)
class _Run:
    """One training run: the arguments of :func:`train`, and its loop cut into readable pieces."""

    model: nn.Module
    recipe: Recipe
    task: Task
    stages: list[Stage]
    budget: Budget
    lr: float
    seed: int
    folder: Path
    batch_size: int
    validate_every: int
    patience: int | None
    checkpoint_every: float
    emit: Callable[[Event], None]
    meters: Callable[[], dict[str, float]]

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(seed_from("losses", self.seed))
        self.checkpoint = Checkpoint(self.folder)
        self.position = Position()
        self.best: dict[str, Tensor] | None = None
        self.optimizers: list[torch.optim.Optimizer] = []
        self.trained: list[Tensor] = []
        self.order = torch.empty(0, dtype=torch.int64)  # of the current epoch; empty until drawn
        self.last_progress = self.last_checkpoint = time.perf_counter()
        self.checkpoint_cost = 0.0  # seconds of the last one
        self.validated_at = 0.0  # share of the budget used at the last validation

    # ----- the loop

    def train(self) -> TrainResult:
        loaded = self.checkpoint.load()
        if loaded is None:
            seed_everything("train", self.seed)
            self._log_from_here()
        else:
            self.position, self.best = loaded.position, loaded.best
        if getattr(getattr(self.model, "spec", None), "trains", True):
            for index, stage in enumerate(self.stages):
                if index < self.position.stage:
                    self._prepare(stage)
                    continue
                self._begin(index, stage)
                if loaded is not None:
                    loaded.restore(self.model, self.optimizers, self.recipe, self.generator)
                    self._log_from_here()
                    self.emit({"type": "resumed", "step": self.position.step})
                    self.last_checkpoint = time.perf_counter()
                    self.validated_at = self._fraction()
                    loaded = None
                self._run_stage(stage)
            reason = "early" if self._out_of_patience() else "budget"
        else:
            reason = self._fit()
        return self._finish(reason)

    def _prepare(self, stage: Stage) -> None:
        if stage.prepare is not None:
            stage.prepare(self.model)

    def _begin(self, index: int, stage: Stage) -> None:
        """Enter a stage: prepare the model, make its optimisers, start its counters unless they were loaded."""
        position = self.position
        if index > position.stage:
            position.stage, position.stage_step = index, 0
            position.epoch, position.batch = position.epoch + (position.batch > 0), 0
            position.best_step, position.best, position.stale, position.first_loss = -1, {}, 0, None
            # What an earlier stage validated was another task or another form of the model.
            self.best = None
        self.model.train()  # before prepare, which may put a teacher into eval mode
        self._prepare(stage)
        self.order = self.order[:0]
        self.optimizers = self.recipe.optimizers(self.model, self.lr)
        self.trained = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])

    def _run_stage(self, stage: Stage) -> None:
        position = self.position
        while not self._stage_done():
            started = time.perf_counter()
            if position.batch == 0 or self.order.numel() == 0:
                self._draw_order(stage)
            if position.batch == 0:
                self.recipe.on_epoch(self.model, self._progress())
            self._step()
            position.train_seconds += time.perf_counter() - started
            if self.budget.validation_due(position, self.validate_every, self.validated_at):
                self._validate()
            self._maybe_checkpoint()

    def _draw_order(self, stage: Stage) -> None:
        samples = self.task.size("train") if stage.samples is None else stage.samples.numel()
        generator = torch.Generator().manual_seed(seed_from("order", self.seed, self.position.epoch))
        order = self.recipe.order(samples, self.position.epoch, generator)
        if order.numel() == 0:
            raise InvalidValue(f"stage {stage.name!r} has no training samples.")
        self.order = order if stage.samples is None else stage.samples[order]

    @property
    def _batches(self) -> int:
        # The rest of a pass that fills no batch is left out: every step sees the same number of samples.
        return max(1, self.order.numel() // self.batch_size)

    def _step(self) -> None:
        position, model, progress = self.position, self.model, self._progress()
        factor = self.recipe.schedule(self.budget.stage_fraction(position), progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.zero_grad(set_to_none=True)
        begin = position.batch * self.batch_size
        index = self.order[begin : begin + self.batch_size]
        losses = self.recipe.losses(model, self.task.batch("train", index), self.generator, progress)
        loss = functools.reduce(torch.add, losses.values())
        value = loss.item()
        self._check_loss(value)
        loss.backward()
        self.recipe.before_step(model, progress)
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained, self.recipe.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        position.step += 1
        position.stage_step += 1
        position.samples += index.numel()
        position.loss_sum += value
        position.loss_count += 1
        self.recipe.after_step(model, self._progress())
        position.batch += 1
        if position.batch >= self._batches:
            position.epoch, position.batch = position.epoch + 1, 0
        now = time.perf_counter()
        if now - self.last_progress >= PROGRESS_EVERY:
            self.last_progress = now
            self._report("progress", loss=value, lr=self.lr * factor)

    def _check_loss(self, value: float) -> None:
        position = self.position
        where = f"at step {position.step + 1} with learning rate {self.lr:g}"
        if not math.isfinite(value):
            raise Diverged(f"diverged: the training loss was {value} {where}.")
        if position.first_loss is None:
            position.first_loss = value
        if abs(value) > BLOW_UP * max(abs(position.first_loss), 1.0):
            raise Diverged(f"diverged: the training loss rose from {position.first_loss:.3g} to {value:.3g} {where}.")

    # ----- the budget

    def _stage_done(self) -> bool:
        position = self.position
        if position.stopped or self._out_of_patience():
            return True
        # At least one step and one validation, however small a time budget.
        return self.budget.used_up(position) and position.best_step >= 0

    def _out_of_patience(self) -> bool:
        return self.patience is not None and self.position.stale >= self.patience

    def _fraction(self) -> float:
        return self.budget.fraction(self.position)

    def _progress(self) -> Progress:
        p = self.position
        return Progress(
            p.stage_step, self.budget.stage_steps(p.stage), p.epoch, p.batch, self._batches, p.stage, self._fraction()
        )

    # ----- validation and checkpoints

    def _validate(self) -> None:
        position = self.position
        started = time.perf_counter()
        at_once = self.recipe.scored_at_once(self.batch_size)
        metrics = evaluate(self.model, self.recipe, self.task, "val", at_once).metrics
        name = self.task.spec.metrics[0]
        value = metrics[name]
        if not math.isfinite(value):
            raise Diverged(
                f"diverged: the validation {name} was {value} at step {position.step} with learning rate {self.lr:g}."
            )
        sign = -1.0 if self.task.spec.higher_is_better else 1.0
        before = position.best.get(name, sign * math.inf)
        if sign * value < sign * before or (self.recipe.ties_gain and value == before):
            position.best_step, position.best, position.stale = position.step, dict(metrics), 0
            self.best = {k: v.detach().clone() for k, v in model_state(self.model).items()}
        else:
            position.stale += 1
        mean_loss = position.loss_sum / position.loss_count if position.loss_count else None
        position.loss_sum, position.loss_count = 0.0, 0
        position.curve.append([position.step, mean_loss, value])
        position.evaluate_seconds += time.perf_counter() - started
        self.validated_at = self._fraction()
        line = {"step": position.step, "stage": self.stages[position.stage].name, "epoch": position.epoch}
        line |= {"loss": mean_loss, "val": plain(metrics), "best_step": position.best_step, "seconds": position.seconds}
        append_line(self.folder / LOG, line)
        self._report("validated", loss=mean_loss, val=metrics, best=position.best_step == position.step)

    def _maybe_checkpoint(self) -> None:
        since = time.perf_counter() - self.last_checkpoint
        if not self.checkpoint_every or since >= max(self.checkpoint_every, 100.0 * self.checkpoint_cost):
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        started = time.perf_counter()
        for name, value in self.meters().items():
            self.position.meters[name] = max(value, self.position.meters.get(name, value))
        self.checkpoint.save(self.position, self.model, self.best, self.optimizers, self.recipe, self.generator)
        self.last_checkpoint = time.perf_counter()
        self.checkpoint_cost = self.last_checkpoint - started
        self.position.checkpoint_seconds += self.checkpoint_cost
        self.emit({"type": "checkpoint", "step": self.position.step, "seconds": self.checkpoint_cost})

    def _log_from_here(self) -> None:
        """Drop log lines of steps after the checkpoint: they will be done again."""
        path = self.folder / LOG
        lines = read_jsonl(path, repair=True)
        kept = [line for line in lines if line["step"] <= self.position.step and self.position.step > 0]
        if len(kept) < len(lines):
            write_jsonl(path, kept)

    def _report(self, kind: str, **values: Any) -> None:
        position = self.position
        event = {"type": kind, "step": position.step, "steps": self.budget.steps, "fraction": self._fraction()}
        self.emit({**event, "stage": self.stages[position.stage].name, **values})

    def _fit(self) -> str:
        """A system without gradients: its recipe fits it, once, and it is validated as it is."""
        if not self.position.stopped:
            started = time.perf_counter()
            self.recipe.fit(self.model, self.budget.seconds)
            self.task.after_fit(self.model)
            self.position.train_seconds += time.perf_counter() - started
            self._validate()
        return "fit"

    def _finish(self, reason: str) -> TrainResult:
        position = self.position
        if not position.stopped:
            position.stopped = reason
            self._save_checkpoint()
        assert self.best is not None  # every stage ends with a validation
        self.model.load_state_dict(self.best)
        self.model.eval()
        return TrainResult(
            val=dict(position.best),
            best_step=position.best_step,
            steps=position.step,
            samples=position.samples,
            stopped=position.stopped,
            curve=position.curve,
            train_seconds=position.train_seconds,
            evaluate_seconds=position.evaluate_seconds,
            checkpoint_seconds=position.checkpoint_seconds,
            meters=position.meters,
        )

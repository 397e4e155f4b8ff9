"""The whole state of a training run, as one file, and the guard around evaluation.

A run that is killed and resumed must give the bits of an undisturbed one, so a checkpoint holds everything that the
next step depends on: model, optimisers, every random generator, what the recipe keeps for itself, the best weights so
far and where the loop stands. It is one safetensors file, replaced atomically. The best weights change seldom, so they
have a file of their own, named by their step; the checkpoint says which one belongs to it, and files that no checkpoint
needs any more are deleted only after it is on the disk. No kill can leave the two contradicting each other.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue
from .base import Evaluation, Recipe, Task
from .io import flatten, load_tensors, save_tensors, unflatten

CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"


@dataclass(slots=True)
class Position:
    """Where a training run stands: plain values only, written into every checkpoint.

    Attributes:
        step: optimiser steps done, over all stages.
        stage, stage_step: current stage and the steps done in it.
        epoch, batch: pass over the data (counted over all stages) and batches done in it.
        samples: training samples seen.
        best_step: step of the best validation of this stage; -1 before the first.
        best: metrics of that validation.
        stale: validations since then.
        first_loss: first loss of the stage, what a blow-up is measured against.
        loss_sum, loss_count: training losses since the last validation.
        curve: ``[step, mean training loss since the last validation, deciding metric]`` per validation.
        train_seconds, evaluate_seconds, checkpoint_seconds: time spent.
        meters: further numbers of the caller's, kept at their maximum over kills.
        stopped: why training ended: "" while it runs, "budget" or "early".
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    epoch: int = 0
    batch: int = 0
    samples: int = 0
    best_step: int = -1
    best: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    first_loss: float | None = None
    loss_sum: float = 0.0
    loss_count: int = 0
    curve: list[list[float | None]] = field(default_factory=list)
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    meters: dict[str, float] = field(default_factory=dict)
    stopped: str = ""

    @property
    def seconds(self) -> float:
        """Time spent on everything."""
        return self.train_seconds + self.evaluate_seconds + self.checkpoint_seconds

    @property
    def validation_cost(self) -> float:
        """Mean seconds of a validation so far."""
        return self.evaluate_seconds / max(len(self.curve), 1)


def seed_from(*parts: object) -> int:
    """A seed in [0, 2**63) that differs whenever a part differs, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(*parts: object) -> None:
    """Seed the global random generators of torch, numpy and Python."""
    seed_generators(seed_from(*parts))


def seed_generators(seed: int) -> None:
    """Seed the global random generators with this very number."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_state() -> dict[str, Tensor]:
    """The state of every random generator that training code may draw from without being handed one."""
    version, inner, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    if version != 3 or name != "MT19937":
        raise InvalidType(f"the random generators of this Python cannot be stored: {name}, version {version}.")
    return {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(inner, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*map(int, keys), int(position), int(has_gauss)], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Take back what :func:`random_state` gave."""
    torch.set_rng_state(state["torch"])
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    *keys, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, state["numpy_gauss"].item()))


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Undo what happens to buffers, modes and random generators inside the block: evaluation leaves no trace."""
    generators = random_state()
    modes = [(m, m.training) for m in model.modules()]
    buffers = [(m, k, b, None if b is None else b.clone()) for m in model.modules() for k, b in m._buffers.items()]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                if buffer is not None and value is not None:
                    buffer.copy_(value)  # written in place
                module._buffers[name] = buffer  # or replaced
        for module, mode in modes:
            module.training = mode
        set_random_state(generators)


def evaluate(model: nn.Module, recipe: Recipe, task: Task, split: str, batch_size: int) -> Evaluation:
    """Score the form of the model that its recipe wants scored; model, modes and random generators stay as they are."""
    with undisturbed(model), torch.no_grad():
        form = recipe.eval_form(model, split)
        form.eval()
        return task.evaluate(form, split, batch_size)


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict, refusing what is not a tensor."""
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InvalidType(
                f"{type(model).__name__} keeps {name}, a {type(value).__name__}, in its state dict: "
                f"only tensors can be stored; make it a buffer."
            )
    return state


def _flags(model: nn.Module) -> dict[str, list[bool]]:
    """Modes and frozen parameters, which hooks may change on the way."""
    return {
        "training": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
    }


class Checkpoint:
    """The training state of one run in its folder.

    Args:
        folder: of the run; must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / CHECKPOINT
        self._best_on_disk = -1

    def save(
        self,
        position: Position,
        model: nn.Module,
        best: Mapping[str, Tensor] | None,
        optimizers: list[torch.optim.Optimizer],
        recipe: Recipe,
        generator: torch.Generator,
    ) -> None:
        """Write everything; a kill at any moment leaves the checkpoint before, whole, or this one."""
        best_file = None
        if best is not None:
            finished = bool(position.stopped)
            best_file = BEST if finished else f"best-{position.best_step}.safetensors"
            if finished or self._best_on_disk != position.best_step:
                save_tensors(self.folder / best_file, best, {"step": position.best_step, "metrics": position.best})
                self._best_on_disk = position.best_step
        tensors: dict[str, Tensor] = {}
        structure = {
            "model": flatten(model_state(model), tensors, "model"),
            "optimizers": flatten([o.state_dict() for o in optimizers], tensors, "optimizers"),
            "flags": _flags(model),
            "recipe": flatten(recipe.state_dict(), tensors, "recipe"),
            "random": flatten({**random_state(), "generator": generator.get_state()}, tensors, "random"),
        }
        save_tensors(self.path, tensors, {"position": asdict(position), "best": best_file, "state": structure})
        for stale in self.folder.glob("best-*.safetensors"):
            if stale.name != best_file:
                stale.unlink()

    def load(self) -> Loaded | None:
        """The last checkpoint, or None if there is none yet.

        Raises:
            InvalidValue: it is damaged or of another version.
        """
        if not self.path.exists():
            return None
        tensors, metadata = load_tensors(self.path)
        try:
            position = Position(**metadata["position"])
            state = unflatten(metadata["state"], tensors)
            best_file = metadata["best"]
        except (KeyError, TypeError) as error:
            raise InvalidValue(f"{self.path} was not written by this version of foveate: {error}.") from error
        best = None
        if best_file is not None:
            best, _ = load_tensors(self.folder / best_file)
            self._best_on_disk = position.best_step
        return Loaded(position, state, best)


@dataclass(slots=True)
class Loaded:
    """What a checkpoint held: see :meth:`Checkpoint.save`."""

    position: Position
    state: dict[str, Any]
    best: dict[str, Tensor] | None

    def restore(
        self,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        recipe: Recipe,
        generator: torch.Generator,
    ) -> None:
        """Put everything back; random generators last, because building and loading may draw from them."""
        model.load_state_dict(self.state["model"])
        for module, training in zip(model.modules(), self.state["flags"]["training"], strict=True):
            module.training = training
        for parameter, trained in zip(model.parameters(), self.state["flags"]["requires_grad"], strict=True):
            parameter.requires_grad_(trained)
        for optimizer, state in zip(optimizers, self.state["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        recipe.load_state_dict(self.state["recipe"])
        generator.set_state(self.state["random"]["generator"])
        set_random_state(self.state["random"])

"""A task that trains in milliseconds, and contestants for it: good ones, and every kind of bad one.

The task: predict one number from eight, by regression on made-up data.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from foveate.errors import InvalidValue
from foveate.models.base import Model
from foveate.models.published import Published
from foveate.spec import ModelSpec, TaskSpec
from foveate.tasks.base import Batch, Evaluation, Progress, Recipe, Stage, Task
from foveate.tasks.io import load_tensors, save_tensors

INPUTS = 8


@dataclass(frozen=True)
class ToyInfo:
    task: str = "toy"
    inputs: int = INPUTS


class ToyTask(Task):
    spec = TaskSpec(reads="vectors", rank=1, metrics=("mse", "mae"), baselines=("tests.toy:Mean",))
    info = ToyInfo()
    sample_tokens = 4

    def __init__(self, samples: int, noise: float) -> None:
        self.samples, self.noise = samples, noise
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(2 * samples, INPUTS, generator=generator)
        weights = torch.randn(INPUTS, 1, generator=generator)
        self.y = (0.3 * self.x @ weights).tanh() + noise * torch.randn(2 * samples, 1, generator=generator)

    @classmethod
    def prepare(cls, samples: int = 256, noise: float = 0.1) -> Self:
        if samples < 8:
            raise InvalidValue(f"samples={samples} is not possible: at least 8 are needed.")
        return cls(samples, noise)

    def whole(self) -> Whole | None:
        return Whole(self.samples, self.noise)

    def describe(self) -> dict[str, Any]:
        return {"source": "made up", "samples": self.samples, "noise": self.noise}

    def size(self, split: str) -> int:
        return self.samples if split == "train" else self.samples // 2

    def _begin(self, split: str) -> int:
        return {"train": 0, "val": self.samples, "test": self.samples + self.samples // 2}[split]

    def batch(self, split: str, index: Tensor) -> Batch:
        place = self._begin(split) + index
        return {"x": self.x[place], "y": self.y[place]}

    def apply(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return (self.apply(model, batch) - batch["y"]).square().mean()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        model.eval()
        errors = []
        for index in torch.arange(self.size(split)).split(batch_size):
            batch = self.batch(split, index)
            errors.append((self.apply(model, batch) - batch["y"]).double()[:, 0])
        error = torch.cat(errors)
        squares = error.square()
        return Evaluation(
            {"mse": float(squares.mean()), "mae": float(error.abs().mean())}, squares, {"first": error[:3]}
        )

    def save(self, folder: Path) -> None:
        save_tensors(folder / "toy.safetensors", {}, {"samples": self.samples, "noise": self.noise})

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(**load_tensors(folder / "toy.safetensors")[1])

    def package(self, model: nn.Module) -> nn.Module:
        return Packaged(model)


class Whole(ToyTask):
    """All samples in "train", which are twice as many."""

    def size(self, split: str) -> int:
        return 2 * self.samples if split == "train" else super().size(split)


class Undivided(ToyTask):
    """A task whose winners are shipped as they were scored."""

    def whole(self) -> None:
        return None


class Packaged(nn.Module):
    """The user's units are the model's."""

    config: dict[str, Any] = {}

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Toy(Model):
    """Base of the toys: built for the toy task without options."""

    spec = ModelSpec(reads="vectors", tasks=("toy",))

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        return cls(**options)


class Mean(Toy):
    """Baseline: a constant."""

    spec = ModelSpec(reads="vectors", tasks=("toy",), trains=False, baseline=True)
    recipe = "tests.toy.MeanRecipe"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.mean.expand(len(x), 1)


class MeanRecipe(Recipe):
    def fit(self, model: nn.Module, seconds: float | None) -> None:
        model.mean.copy_(self.task.batch("train", torch.arange(self.task.size("train")))["y"].mean(0))  # type: ignore


class MLP(Toy):
    """Dropout and batch statistics: everything that a careless resume or evaluation would disturb."""

    def __init__(self, width: int = 16, dropout: float = 0.2) -> None:
        super().__init__()
        if width < 1:
            raise InvalidValue(f"width={width} is not possible: it must be positive.")
        self.net = nn.Sequential(
            nn.Linear(INPUTS, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Recorded(MLP):
    """Has a published recipe for one data set."""

    @classmethod
    def published(cls, info: Any, dataset: str) -> Published | None:
        if dataset != "ETTh1":
            return None
        options = {"width": 24, "dropout": 0.1}
        rules = {"learning_rate": 0.02, "batch_size": 16, "epochs": 4, "patience": 3}
        return Published(source="made up", options=options, optimizer="radam", **rules)


class Linear(MLP):
    """Also draws from the random generators of numpy and Python."""

    def __init__(self) -> None:
        Toy.__init__(self)
        self.net = nn.Sequential(nn.Linear(INPUTS, 1))

    def forward(self, x: Tensor) -> Tensor:
        import random

        import numpy as np

        return self.net(x) + (1e-3 * (random.gauss(0, 1) + np.random.randn()) if self.training else 0.0)


class Bad(Linear):
    """Trains well for ``steps`` steps, then does what it was told."""

    steps = 10

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def act(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.training:
            self.count += 1
            if self.count > self.steps:
                y = self.act(y)
        return y


class Diverging(Bad):
    def act(self, y: Tensor) -> Tensor:
        return y * float("nan")


class BlowingUp(Bad):
    def act(self, y: Tensor) -> Tensor:
        return y * 1e6


class Raising(Bad):
    def act(self, y: Tensor) -> Tensor:
        raise KeyError("the thing it needs")


class Exiting(Bad):
    def act(self, y: Tensor) -> Tensor:
        os._exit(3)


class Killed(Bad):
    def act(self, y: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGSEGV)
        return y


class Hungry(Bad):
    def act(self, y: Tensor) -> Tensor:
        self.hoard = []
        while True:
            self.hoard.append(torch.ones(2**22))  # 16 MiB each
            time.sleep(0.005)


class Refusing(Toy):
    def __init__(self) -> None:
        super().__init__()
        raise InvalidValue("Refusing needs at least 9 inputs; this data has 8.")


class Loud(Linear):
    def forward(self, x: Tensor) -> Tensor:
        print("hear me")
        return super().forward(x)


class Staged(MLP):
    recipe = "tests.toy.StagedRecipe"


class StagedRecipe(Recipe):
    """Two stages with other samples and optimisers, a moving average, a state of its own, and a log of every hook."""

    def __init__(self, task: Task, called: Callable[..., None] | None = None) -> None:
        super().__init__(task)
        self.called = called or (lambda *what: None)
        self.total = torch.zeros((), dtype=torch.float64)

    def stages(self) -> list[Stage]:
        half = torch.arange(self.task.size("train") // 2)
        return [
            Stage("warm", 0.25, prepare=self._freeze, samples=half),
            Stage("main", 0.75, prepare=self._thaw),
        ]

    def _freeze(self, model: nn.Module) -> None:
        self.called("prepare", "warm")
        model.register_buffer("average", torch.zeros(1))
        model.net[0].requires_grad_(False)  # type: ignore[index]

    def _thaw(self, model: nn.Module) -> None:
        self.called("prepare", "main")
        model.requires_grad_(True)

    def optimizers(self, model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
        self.called("optimizers")
        groups = [p for p in model.parameters() if p.requires_grad]
        return [torch.optim.AdamW(groups[:1], lr=lr), torch.optim.SGD(groups[1:], lr=0.1 * lr, momentum=0.9)]

    def order(self, samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        self.called("order", epoch, samples)
        return super().order(samples, epoch, generator)

    def losses(
        self, model: nn.Module, batch: Batch, generator: torch.Generator, progress: Progress
    ) -> dict[str, Tensor]:
        self.called("losses", progress.stage, progress.step, progress.steps, progress.epoch, progress.batch)
        noise = torch.randn(batch["x"].shape, generator=generator)
        return super().losses(model, {**batch, "x": batch["x"] + 0.01 * noise}, generator, progress)

    def before_step(self, model: nn.Module, progress: Progress) -> None:
        self.called(
            "before_step", progress.step, all(p.grad is not None for p in model.parameters() if p.requires_grad)
        )

    def after_step(self, model: nn.Module, progress: Progress) -> None:
        self.called("after_step", progress.step)
        weight = model.net[-1].weight.detach()  # type: ignore[index]
        model.average.mul_(0.9).add_(0.1 * weight.mean())  # type: ignore[operator]
        self.total += weight.double().sum()

    def on_epoch(self, model: nn.Module, progress: Progress) -> None:
        self.called("on_epoch", progress.epoch, progress.batches)

    def eval_form(self, model: nn.Module, split: str) -> nn.Module:
        self.called("eval_form", split)
        model.average.add_(1.0)  # type: ignore[operator]
        torch.rand(3)
        return model

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.total = state["total"]


class Slow(MLP):
    """Takes a few milliseconds a step, so that there is time to kill it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            time.sleep(0.003)
        return super().forward(x)


class Overfull(Linear):
    """Diverges once it is given more than the training samples: in the refit."""

    recipe = "tests.toy.OverfullRecipe"


class OverfullRecipe(Recipe):
    def losses(
        self, model: nn.Module, batch: Batch, generator: torch.Generator, progress: Progress
    ) -> dict[str, Tensor]:
        found = super().losses(model, batch, generator, progress)
        return {k: v * float("nan") for k, v in found.items()} if isinstance(self.task, Whole) else found


class BreaksAlone(Linear):
    """Ends the process that asks about one sample without having trained: the one that measures latencies."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1 and not any(p.grad is not None for p in self.parameters()):
            os._exit(4)
        return super().forward(x)

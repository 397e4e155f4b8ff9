"""How a Sparsifiner is trained: dense, then its predictors against its own maps, then sparse under a teacher.

Wei et al. 2023 (arXiv 2303.13755), as its driver does it. There the dense network is a published DeiT or LV-ViT; here
it is the first stage's, which becomes the teacher.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.vision.sparsifiner import Sparsifiner
from .base import Batch, Progress, Recipe, Stage, Task

#: Weights of the losses beside that of the task, as published.
RECONSTRUCTION, LOGITS, TOKENS = 0.01, 0.5, 0.5
#: Learning rate of the last stage, as a share of the predictors'.
FINE_TUNING = 8e-5 / 3e-4


class Sparsified(Recipe):
    """Three stages: "dense", all but the predictors; "reconstruct", the predictors alone; "sparse", all but them.

    In the last one a frozen copy of the dense network answers the same images. Beside the task's loss stand half of
    the Kullback-Leibler divergence from its logits, and half of the mean squared distance from its last tokens of those
    that were not pruned.
    """

    weight_decay = 0.05

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.teacher: Sparsifiner | None = None
        self._stage = "dense"

    def stages(self) -> list[Stage]:
        """Shares of the budget: the driver's 5 to 45 passes, behind as much as both for what was published before."""
        stages = {"dense": 0.5, "reconstruct": 0.05, "sparse": 0.45}
        return [Stage(name, share, functools.partial(self._enter, name)) for name, share in stages.items()]

    def _enter(self, stage: str, model: nn.Module) -> None:
        assert isinstance(model, Sparsifiner)
        self._stage = stage
        if stage == "sparse":
            self.teacher = copy.deepcopy(model)
            self.teacher.set_phase("dense", 0.0)
            self.teacher.requires_grad_(False).eval()
        # While predictors alone learn, the dense network is its own teacher.
        weight = RECONSTRUCTION / len(model.blocks) if stage == "reconstruct" else 0.0
        model.set_phase(stage, weight)  # type: ignore[arg-type]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_((".mask_predictor." in name) == (stage == "reconstruct"))

    def optimizers(self, model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
        """AdamW; the last stage fine-tunes."""
        return super().optimizers(model, lr * FINE_TUNING if self._stage == "sparse" else lr)

    def losses(
        self, model: nn.Module, batch: Batch, generator: torch.Generator, progress: Progress
    ) -> dict[str, Tensor]:
        """Those of the stage; see the class."""
        if self._stage != "sparse":
            found = super().losses(model, batch, generator, progress)
            return found if self._stage == "dense" else {"reconstruction": found["connectivity"]}
        assert self.teacher is not None
        seen: dict[str, Any] = {}
        blocks: Any = model.blocks
        hooks = [
            model.register_forward_hook(lambda m, given, y: seen.update(x=given[0], logits=y)),
            model.norm.register_forward_hook(lambda m, given, y: seen.update(tokens=y[:, 1:])),  # type: ignore[union-attr]
            blocks[-1].register_forward_hook(lambda m, given, y: seen.update(alive=y[1])),
        ]
        try:
            loss = self.task.loss(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        with torch.no_grad():
            tokens = self.teacher.forward_features(seen["x"])
            logits = self.teacher.forward_head(tokens)
        apart = F.kl_div(seen["logits"].log_softmax(-1), logits.log_softmax(-1), reduction="batchmean", log_target=True)
        error = (seen["tokens"] - tokens[:, 1:]).square()
        if seen["alive"] is not None:
            error = error[seen["alive"][:, 1:]]
        return {"loss": loss, "logits": LOGITS * apart, "tokens": TOKENS * error.mean()}

    def state_dict(self) -> dict[str, Tensor]:
        """The teacher."""
        return {} if self.teacher is None else self.teacher.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the teacher back."""
        if self.teacher is not None:
            self.teacher.load_state_dict(state)

"""``best/``: the winner, trained once more on all data before it is shipped.

Scores need data that training has not seen; a model in use is better for having seen all of it. So the winner is
trained anew on the rows of all splits, with its seed, learning rate and batch size, for as many steps as its best
weights had, and nothing chooses any more: the weights of the last step are shipped. What was scored stays in the folder
of its trial.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidValue
from ..files import read_json, write_json
from ..hub import CARD, is_ours
from ..tasks.base import Task
from . import worker
from .contestants import Job
from .folder import RESULT, Folder
from .pool import Event, Pool
from .record import record
from .settings import Settings

REFITTING = "refitting the winner on all data"
SCORED = "scored"


def refits(settings: Settings, task: Task) -> bool:
    """Whether the winner will be trained once more."""
    return settings.refit and task.whole() is not None


class Shipping:
    """Makes ``best/`` out of a finished trial.

    Args:
        settings, task, folder, pool: of the comparison.
        emit: called with "phase" events while the winner is trained, and with a "warning" if that fails.
    """

    def __init__(
        self, settings: Settings, task: Task, folder: Folder, pool: Pool, emit: Callable[[Event], None]
    ) -> None:
        self.settings, self.task, self.folder, self.pool, self.emit = settings, task, folder, pool, emit

    def ship(self, leaderboard: Mapping[str, Any]) -> dict[str, Any]:
        """Refit the winner, unless that is done or not wanted, and replace ``best/``, with its model card.

        Args:
            leaderboard: from :func:`foveate.compare.leaderboard.summarise`; its "best" is shipped, its scores are what
                the card tells.

        Returns:
            For the record: "refit" (bool), "refit_steps", "refit_reason" (why not, "" if it was) and "scored", where in
            the comparison's folder the scored weights are.

        Raises:
            InvalidValue: the model cannot be written.
        """
        system, seed = leaderboard["best"]["system"], leaderboard["best"]["seed"]
        trial = self.folder.trial(system, seed)
        result = self.folder.result(trial) or {}
        config = self.folder.trial_config(system, seed)
        config |= {k: result.get(k) for k in ("val", "test", "seed", "learning_rate", "batch_dependence")}
        config |= {"refit": False, "note": "The weights are those that val and test are the scores of."}
        about = {"comparison": record(leaderboard, result)}
        steps, reason = max(1, result["best_step"]), ""
        if not self.settings.refit:
            reason = "that was not wanted."
        elif self.task.whole() is None:
            reason = "the task has no form for it."
        else:
            reason = self._refit(system, seed, {**config, "steps": steps, "validate_every": steps})
        if reason:
            self._write(system, seed, {**config, **about}, self.folder.best)
            return {"refit": False, "refit_steps": None, "refit_reason": reason, "scored": self.folder.best.name}
        scored = trial / SCORED
        if not scored.exists():
            self._write(system, seed, config, scored)
        place = str(scored.relative_to(self.folder.path).as_posix())
        note = (
            f"val and test are the scores of weights that were trained on the training split alone ({place}); the "
            f"weights here were trained anew for {steps} steps on all data and have no score."
        )
        place_of_refit = str(self.folder.refit(system, seed))
        refitted = {"folder": place_of_refit, "whole": True, "refit": True, "refit_steps": steps, "note": note}
        self._write(system, seed, {**config, **about, **refitted}, self.folder.best)
        return {"refit": True, "refit_steps": steps, "refit_reason": "", "scored": place}

    def _refit(self, system: str, seed: int, config: dict[str, Any]) -> str:
        """Train in the refit's own folder, or go on there; returns why it failed, "" if it did not."""
        place = self.folder.refit(system, seed)
        config = {**config, "folder": str(place.resolve()), "data": str(self.folder.data.resolve())}
        config |= {"whole": True, "seconds": None}
        about = {k: config[k] for k in ("steps", "learning_rate", "batch_size", "seed", "threads")}
        known, found = place / "config.json", self.folder.result(place)
        failed = found is not None and found["status"] != "done"
        if (known.exists() and read_json(known) != about) or (failed and self.settings.retry_failed):
            self.folder.forget(place)
        result = self.folder.result(place)
        if result is None:
            self.emit({"type": "phase", "text": REFITTING})
            place.mkdir(parents=True, exist_ok=True)
            write_json(known, about)
            job = Job("refit", system, seed)
            self.pool.submit(job, config)
            (ended,) = self.pool.wait()
            result = self.folder.result(place)
            if result is None:
                reason = ended.error or "the worker ended without a result."
                result = worker.unfinished(job, config, "failed", reason, seconds=0.0)
                write_json(place / RESULT, result)
        if result["status"] == "done":
            return ""
        self.emit(
            {"type": "warning", "text": f"best/ holds the scored weights, for the refit failed: {result['reason']}"}
        )
        return result["reason"]

    def _write(self, system: str, seed: int, config: dict[str, Any], target: Path) -> None:
        """Write a trained system into a folder, whole or not at all."""
        unfinished = target.with_name(f"{target.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        self.pool.submit(Job("package", system, seed), {**config, "target": str(unfinished)})
        (ended,) = self.pool.wait()
        if ended.error:
            raise InvalidValue(f"{system} won, but its model could not be written: {ended.error}")
        card = target / CARD
        if card.exists() and not is_ours(card.read_text(encoding="utf-8", errors="replace")):
            shutil.copyfile(card, unfinished / CARD)
            self.emit({"type": "warning", "text": f"{card} was changed by hand: it stays, and no new card was written"})
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unfinished, target)

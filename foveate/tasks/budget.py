"""How much a run may train, how it is shared out over the stages of a recipe, and what follows from the share used."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InvalidValue, invalid
from .state import Position

#: Validations in a run; fewer where a validation is dear beside the training.
VALIDATIONS = 20


def default_validate_every(steps: int, batch_size: int, val_size: int) -> int:
    """Steps between validations: VALIDATIONS in a run, fewer (down to 4) if they cost over a quarter of the training.

    A training step is counted as three forward passes. The rule looks at sizes, never at clocks, so that it gives the
    same answer in a resumed run.
    """
    affordable = 0.25 * 3 * steps * batch_size / max(val_size, 1)
    return max(1, math.ceil(steps / min(VALIDATIONS, max(4, int(affordable)))))


@dataclass(frozen=True)
class Budget:
    """A budget in steps or in seconds of the whole run.

    Attributes:
        steps, seconds: the budget; exactly one is given.
        shares: share of each stage (any positive numbers).
        reserve: under a time budget, time for so many validations is kept free after the last one.

    Raises:
        InvalidValue: not exactly one budget, one that is not positive, or too few steps for the stages.
    """

    steps: int | None
    seconds: float | None
    shares: tuple[float, ...]
    reserve: float = 0.0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise InvalidValue(f"steps={self.steps!r} and seconds={self.seconds!r}: exactly one budget is needed.")
        if self.seconds is not None and not self.seconds > 0:
            raise invalid("seconds", self.seconds, "a positive time is needed")
        if not self.shares or min(self.shares) <= 0:
            raise InvalidValue(f"the stages' shares {self.shares} are not possible: all must be positive.")
        if self.steps is not None and min(self.stage_steps(i) for i in range(len(self.shares))) < 1:
            raise invalid("steps", self.steps, f"each of the {len(self.shares)} stages needs at least one step")

    def _end(self, stage: int) -> float:
        """Share of the budget at which a stage ends."""
        return sum(self.shares[: stage + 1]) / sum(self.shares)

    def stage_steps(self, stage: int) -> int:
        """Steps of a stage; 0 under a time budget."""
        steps = self.steps or 0
        return round(steps * self._end(stage)) - round(steps * self._end(stage - 1))

    def fraction(self, position: Position) -> float:
        """Share of the whole budget used, in [0, 1]."""
        if self.steps is not None:
            return position.step / self.steps
        return min(1.0, position.seconds / (self.seconds or 1.0))

    def stage_fraction(self, position: Position) -> float:
        """Share of the current stage's part used, in [0, 1]."""
        if self.steps is not None:
            return position.stage_step / self.stage_steps(position.stage)
        begin, end = self._end(position.stage - 1), self._end(position.stage)
        return min(1.0, max(0.0, self.fraction(position) - begin) / (end - begin))

    def used_up(self, position: Position) -> bool:
        """Whether the current stage has had its part."""
        if self.steps is not None:
            return position.stage_step >= self.stage_steps(position.stage)
        last = position.stage == len(self.shares) - 1
        kept = (1.0 + self.reserve) * position.validation_cost if last else 0.0
        return position.seconds >= (self.seconds or 0.0) * self._end(position.stage) - kept

    def validation_due(self, position: Position, validate_every: int, validated_at: float) -> bool:
        """Whether to validate after this step.

        Args:
            validate_every: steps between validations, under a step budget.
            validated_at: :meth:`fraction` at the last validation, under a time budget.
        """
        if self.used_up(position):
            return True
        if self.steps is not None:
            return position.stage_step % validate_every == 0
        # Validations take at most a fifth of the time.
        gap = max(1.0 / VALIDATIONS, 4.0 * position.validation_cost / (self.seconds or 1.0))
        return self.fraction(position) - validated_at >= gap

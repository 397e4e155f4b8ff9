"""The rules of the M4 competition (Makridakis, Spiliotis and Assimakopoulos 2020), and what they leave open.

A series ends with ``horizon`` test values; all before them is known. Models look back over ``2 * horizon`` steps and
are trained on windows cut at random places among the last ``history * horizon`` steps (Oreshkin et al. 2020, and after
them the Time-Series-Library). Here the last ``horizon`` known steps validate: no training window sees them.

Every window has a scale of its own, the mean and standard deviation of the steps that it looks back over: levels differ
a thousandfold between series, and a series that was never trained on must be forecast like the others. The scale knows
nothing of what is forecast, it is the same for all contestants, the baselines are indifferent to it, and models that
scale windows themselves see what they would have made of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidType, InvalidValue, invalid
from ..forecast.protocol import check_count
from .metrics import mase, naive2, naive_error, smape
from .read import Ragged

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the competition fixes for a frequency.

    Attributes:
        horizon, season: steps to forecast, steps per season.
        history: training windows are cut among the last ``history * horizon`` steps.
        freq: pandas alias of the step; "" where it is not known.
    """

    horizon: int
    season: int
    history: float
    freq: str


FREQUENCIES = {
    "Yearly": Rules(6, 1, 1.5, "YE"),
    "Quarterly": Rules(8, 4, 1.5, "QE"),
    "Monthly": Rules(18, 12, 1.5, "ME"),
    "Weekly": Rules(13, 1, 10.0, "W"),
    "Daily": Rules(14, 1, 10.0, "D"),
    "Hourly": Rules(48, 24, 10.0, "h"),
}


def rules_for(name: str, horizon: int | None, season: int | None, history: float | None) -> Rules:
    """The rules that a file's name stands for, with options in their place.

    Args:
        name: of the source; it begins with a frequency of M4, or ``horizon`` and ``season`` are given.

    Raises:
        InvalidType, InvalidValue: an option is illegal, or what the name does not say is not given.
    """
    found = re.match("|".join(FREQUENCIES), Path(name).name, re.IGNORECASE)
    usual = FREQUENCIES[found[0].capitalize()] if found else Rules(0, 0, 10.0, "")
    lacking = [option for option, value in (("horizon", horizon), ("season", season)) if value is None and not found]
    if lacking:
        raise InvalidValue(
            f"{name!r} does not say its frequency: give {' and '.join(lacking)}, or a name that begins with "
            f"{', '.join(FREQUENCIES)}."
        )
    if isinstance(history, bool) or not isinstance(history, int | float | None):
        raise InvalidType(f"history={history!r} is not possible: a number is needed.")
    if history is not None and not 0 < history < float("inf"):
        raise invalid("history", history, "a positive number of horizons is needed")
    return Rules(
        check_count("horizon", horizon, usual.horizon),
        check_count("season", season, usual.season),
        usual.history if history is None else float(history),
        usual.freq,
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """Series as one block of steps, the test values of each behind what is known.

    Attributes:
        names: ``S`` ids.
        values: float64 ``(R,)``.
        offsets: int64 ``(S + 1,)``: first step of every series, and ``R``.
        naive_error: float64 ``(S, 2)``: what MASE divides by in validation and in test; NaN where it is undefined.
        naive2: sMAPE and MASE of Naive2, by split: ``{"val": (12.3, 1.2), "test": ...}``.
        notes: sentences about what was left out.
    """

    names: tuple[str, ...]
    values: np.ndarray
    offsets: np.ndarray
    naive_error: np.ndarray
    naive2: dict[str, tuple[float, float]]
    notes: list[str]


def prepare_series(known: Ragged, test: Ragged | None, rules: Rules) -> Prepared:
    """Join every series with its test values, and score Naive2.

    Args:
        test: what follows; None: the last ``horizon`` values of every series are its test values.

    Raises:
        InvalidValue: the two do not belong together, or no series is long enough.
    """
    values = list(known.values) if test is None else _joined(known, test, rules.horizon)
    # The training part must show what a scaled error is divided by: one change over a season.
    needed = max(rules.season, 1) + 1 + 2 * rules.horizon
    kept = [i for i, v in enumerate(values) if len(v) >= needed]
    own = needed if test is None else needed - rules.horizon
    if not kept:
        longest = max(map(len, known.values))
        raise InvalidValue(
            f"{known.label!r} is too short: its longest series has {longest} values, with horizon={rules.horizon} and "
            f"season={rules.season} {own} are needed (every row is a series, from its oldest value on)."
        )
    notes = []
    if len(kept) < len(values):
        first = next(n for n, v in zip(known.names, values, strict=True) if len(v) < needed)
        notes.append(
            f"{len(values) - len(kept)} series have fewer than {own} values and are left out, the first is {first!r}."
        )
    values = [values[i] for i in kept]
    errors, scores = [], {}
    for split, behind in (("val", 2 * rules.horizon), ("test", rules.horizon)):
        past = [v[: len(v) - behind] for v in values]
        truth = np.stack([v[len(v) - behind :][: rules.horizon] for v in values])
        errors.append(np.array([naive_error(v, rules.season) for v in past]))
        forecast = np.stack([naive2(v, rules.horizon, rules.season) for v in past])
        scores[split] = (float(smape(truth, forecast).mean()), mase(truth, forecast, errors[-1]))
    return Prepared(
        names=tuple(known.names[i] for i in kept),
        values=np.concatenate(values),
        offsets=np.cumsum([0, *map(len, values)]).astype(np.int64),
        naive_error=np.stack(errors, axis=1),
        naive2=scores,
        notes=notes,
    )


def _joined(known: Ragged, test: Ragged, horizon: int) -> list[np.ndarray]:
    follows = dict(zip(test.names, test.values, strict=True))
    for name, values in follows.items():
        if len(values) != horizon:
            raise InvalidValue(
                f"{test.label!r}, series {name!r} has {len(values)} test values: exactly {horizon}, the horizon, are "
                f"needed."
            )
    for one, other in ((known, test), (test, known)):
        absent = set(one.names) - set(other.names)
        if absent:
            first = next(name for name in one.names if name in absent)
            raise InvalidValue(
                f"{other.label!r} has no series {first!r}, which {one.label!r} has: both need the same ids."
            )
    return [np.concatenate([v, follows[name]]) for name, v in zip(known.names, known.values, strict=True)]


def window_scale(x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the real steps of windows, the scale in which models see them.

    Args:
        x: float ``(B, T, C)``, finite everywhere.
        real: bool ``(B, T, 1)``, at least one step of every window.

    Returns:
        Two ``(B, 1, C)``. A window without any change has a hundredth of its level as its scale (1 at level 0).
    """
    count = real.sum(1, keepdim=True)
    mean = torch.where(real, x, 0).sum(1, keepdim=True) / count
    deviation = (torch.where(real, x - mean, 0).square().sum(1, keepdim=True) / count).sqrt()
    low, high = (torch.where(real, x, bound) for bound in (torch.inf, -torch.inf))
    flat = low.amin(1, keepdim=True) == high.amax(1, keepdim=True)
    level = torch.where(mean == 0, 1, mean.abs() / 100)
    return mean, torch.where(flat, level, deviation)

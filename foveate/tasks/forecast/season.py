"""The season of a series: given, or guessed from the calendar and looked for in the training rows."""

from __future__ import annotations

import numpy as np

from ...errors import invalid
from .frequency import season_of
from .protocol import ForecastInfo, Prepared, SplitRule, check_count
from .read import SeriesTable


def season_steps(
    season: int | None, table: SeriesTable, rule: SplitRule, lookback: int, horizon: int
) -> tuple[int, list[str]]:
    """The season in steps: as given, else guessed from the frequency; with a note if the guess was given up.

    Raises:
        InvalidType, InvalidValue: ``season`` is not a whole number from 1 to the length of the training part.
    """
    longest = max(len(s.times) for s in table.series)
    train = rule.borders(longest, horizon)[0] if rule.fits(longest, lookback, horizon) else None
    if season is not None:
        if check_count("season", season) >= (train or season + 1):
            raise invalid("season", season, f"it must be shorter than the training part, {train} rows")
        return int(season), []
    guess = season_of(table.freq)
    if train is not None and 2 * guess > train:
        return 1, [f"The training rows do not cover two seasons of {guess} steps; none is assumed (season=1)."]
    return guess, []


def season_doubt(made: Prepared, info: ForecastInfo) -> list[str]:
    """A note if a guessed season does not show in the training rows of the longest series.

    It shows if, for some target, the correlation of changes with those one season before exceeds two standard errors
    of white noise, 2 / sqrt(rows).
    """
    longest = int(np.diff(made.offsets).argmax())
    train = made.values[made.offsets[longest] :][: made.borders[longest][0]]
    best = max(season_correlation(train[:, i], info.season) for i in info.targets)
    if info.season == 1 or best > 2 / len(train) ** 0.5:
        return []
    return [
        f"A season of {info.season} steps was guessed from the frequency {info.freq!r} but does not show in the "
        f"training rows; give season if it is another."
    ]


def season_correlation(values: np.ndarray, season: int) -> float:
    """Correlation of the changes of ``(rows,)`` values with those one season before: near 0 if there is no season."""
    change = np.diff(values.astype(np.float64))
    change = change - change.mean()
    power = float(change @ change)
    return float(change[season:] @ change[:-season]) / power if power > 0 and len(change) > season else 0.0

"""The embedded samples: the days of a year of hourly weather, to be told which two months they belong to.

Made of the series that the forecast task ships (JFK airport, 2013, CC0; see
``foveate/tasks/forecast/embedded/README.md``). Days do not overlap; the days of one week are a group, so that
neighbouring days, which resemble each other whatever the season, stay on one side of the split.
"""

from __future__ import annotations

import numpy as np

from ..forecast.read import read_series
from .read import Samples

PAIRS = ("Jan-Feb", "Mar-Apr", "May-Jun", "Jul-Aug", "Sep-Oct", "Nov-Dec")


def read_embedded() -> Samples:
    """Every whole day (UTC) as a sample of 24 steps and six channels."""
    table = read_series(None)
    series = table.series[0]
    days = series.times.astype("datetime64[D]")
    names, values, classes, groups = [], [], [], []
    for day in np.unique(days):
        rows = days == day
        if rows.sum() != 24:  # the first and the last day of the series are not whole
            continue
        names.append(str(day))
        values.append(series.values[rows])
        classes.append(PAIRS[int(day.astype("datetime64[M]").astype(int) % 12) // 2])
        groups.append(str(int((day - days[0]).astype(int)) // 7))
    return Samples(
        label="embedded weather days",
        sha256=table.sha256,
        columns=table.columns,
        names=tuple(names),
        values=tuple(values),
        classes=tuple(classes),
        groups=tuple(groups),
    )

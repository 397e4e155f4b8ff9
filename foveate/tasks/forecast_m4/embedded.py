"""The embedded series: months of hourly weather, of unequal lengths.

Made of the series that the forecast task ships (JFK airport, 2013, CC0; see
``foveate/tasks/forecast/embedded/README.md``): every month of a quantity that stays above zero is a series of its own.
No series of the M4 competition is shipped: its licence is not settled.
"""

from __future__ import annotations

import numpy as np

from ..forecast.protocol import fill_from_past
from ..forecast.read import read_series
from .read import Ragged

QUANTITIES = ("temperature", "humidity", "pressure")


def read_embedded() -> Ragged:
    """36 series, the twelve months of three quantities, 600 to 744 hours long; gaps take the last value before them."""
    table = read_series(None)
    series = table.series[0]
    months = series.times.astype("datetime64[M]")
    names, values = [], []
    for quantity in QUANTITIES:
        column = series.values[:, [table.columns.index(quantity)]]
        for month in np.unique(months):
            rows = column[months == month]
            rows = rows[np.argmax(~np.isnan(rows)) :]
            names.append(f"{quantity}-{month}")
            values.append(fill_from_past(rows)[:, 0])
    return Ragged("embedded weather months", table.sha256, "id", tuple(names), tuple(values))

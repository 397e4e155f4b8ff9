"""What goes on record about prepared series: the entries of ``ForecastTask.describe()``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .covariates import StaticCode
from .features import feature_names
from .protocol import SPLITS, ForecastInfo, Prepared, SplitRule
from .read import SeriesTable
from .times import stamp_texts


def facts_on_record(table: SeriesTable, made: Prepared, rule: SplitRule, info: ForecastInfo) -> dict[str, Any]:
    """Facts of the source and of what was made of it, as JSON values; ``docs/tasks/forecast.md`` explains each."""
    ends = np.array(made.borders)
    firsts = made.offsets[:-1]
    parts = {}
    for split, low, high in zip(SPLITS, (np.zeros_like(ends[:, 0]), ends[:, 0], ends[:, 1]), ends.T, strict=True):
        span = np.array([made.times[firsts + low].min(), made.times[firsts + high - 1].max()])
        first, last = stamp_texts(span, table.zone)
        rows = int((high - low).sum())
        parts[split] = {"rows": rows, "windows": len(made.starts[split]), "first": first, "last": last}
    missing = (~made.observed).sum(axis=0).tolist()
    scored = made.naive_error[:, info.targets]
    return {
        "source": table.label,
        "sha256": table.sha256,
        "rows": table.rows,
        "series": len(made.names),
        "columns": list(made.columns),
        "targets": [made.columns[i] for i in info.targets],
        "time": table.time,
        "id": table.id,
        "freq": table.freq,
        "regular": table.regular,
        "resampled": table.resampled,
        "season": info.season,
        "lookback": info.lookback,
        "horizon": info.horizon,
        "calendar_features": list(feature_names(table.freq)),
        "rows_used": len(made.times),
        "missing_rows": table.inserted,
        "uneven_steps": table.uneven,
        "missing_values": dict(zip(made.columns, missing, strict=True)),
        "split": str(rule),
        "stride": rule.stride,
        "parts": parts,
        "backtest": None if not rule.windows else {"windows": rule.windows, "stride": rule.stride},
        "left_out_of_mase": int(np.isnan(scored).sum()),
    }


def facts_asked_for(info: ForecastInfo, known: Sequence[str], static: Sequence[StaticCode]) -> dict[str, Any]:
    """Entries that are there only if they were asked for: covariates and quantiles."""
    facts: dict[str, Any] = {}
    if known:
        facts["known"] = list(known)
    if static:
        facts["static"] = [code["column"] for code in static]
        facts["static_features"] = info.static
    if info.quantiles:
        facts["quantiles"] = list(info.quantiles)
        facts["nominal_coverage"] = round(info.quantiles[-1] - info.quantiles[0], 12)
    return facts

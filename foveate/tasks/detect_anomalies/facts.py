"""What was read, divided and left out: the record of a prepared series, JSON values."""

from __future__ import annotations

from typing import Any

import torch

from .protocol import Prepared
from .read import Recording
from .scores import segments


def facts_of(recording: Recording, made: Prepared, window: int, options: dict[str, Any]) -> dict[str, Any]:
    """See ``docs/tasks/detect-anomalies.md`` for every entry; ``options`` are put on record as they are."""
    test, (train, val, end) = recording.test, made.borders
    marks = torch.from_numpy(made.anomalous[val:])
    missing = (~made.observed).sum(axis=0).tolist()
    return {
        "source": recording.label,
        "sha256": recording.sha256,
        "test_source": None if test is None else test.label,
        "test_sha256": None if test is None else test.sha256,
        "columns": list(made.columns),
        "time": recording.time,
        "label": (test or recording).marks,
        "lookback": window,
        **options,
        "rows": {"train": train, "val": val - train, "test": end - val},
        "borders": list(made.borders),
        "windows": {split: len(made.starts[split]) for split in ("train", "val", "test")},
        "anomalous_rows": int(marks.sum()) if made.scored else None,
        "anomalies": len(segments(marks)) if made.scored else None,
        "missing_values": dict(zip(made.columns, missing, strict=True)),
        "notes": made.notes,
    }

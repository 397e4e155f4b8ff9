"""TimesNet's published sizes and recipes: scripts of Time-Series-Library, for windows of 96 steps (36 for ILI)."""

from __future__ import annotations

from typing import Any

from ..published import LIBRARY, Published

_SIZES = ("d_model", "d_ff", "e_layers", "top_k", "num_kernels")
#: Published configurations by task and data set: ``TimesNet(task=..., seq_len=..., enc_in=..., **PUBLISHED[name])``.
#: A trailing number is a horizon that has a size of its own.
PUBLISHED: dict[str, dict[str, Any]] = {
    name: dict(zip(_SIZES, sizes, strict=False))
    for name, sizes in {
        "forecast/ETTh1": (16, 32, 2, 5),
        "forecast/ETTh2": (32, 32, 2, 5),
        "forecast/ETTm1": (64, 64, 2, 5),
        "forecast/ETTm1-336": (16, 32, 2, 5),
        "forecast/ETTm1-720": (16, 32, 2, 5),
        "forecast/ETTm2": (32, 32, 2, 5),
        "forecast/ETTm2-720": (16, 32, 2, 5),
        "forecast/Weather": (32, 32, 2, 5),
        "forecast/ECL": (256, 512, 2, 5),
        "forecast/Traffic": (512, 512, 2, 5),
        "forecast/Exchange": (64, 64, 2, 5),
        "forecast/Exchange-336": (32, 32, 2, 5),
        "forecast/Exchange-720": (32, 32, 2, 5),
        "forecast/ILI": (768, 768, 2, 5),
        "forecast/M4-yearly": (16, 32, 2, 5),
        "forecast/M4-quarterly": (64, 64, 2, 5),
        "forecast/M4-monthly": (32, 32, 2, 5),
        "forecast/M4-weekly": (32, 32, 2, 5),
        "forecast/M4-daily": (16, 16, 2, 5),
        "forecast/M4-hourly": (32, 32, 2, 5),
        "impute/ETTh1": (16, 32, 2, 3),
        "impute/ETTh2": (32, 32, 2, 3),
        "impute/ETTm1": (64, 64, 2, 3),
        "impute/ETTm2": (64, 64, 2, 3),
        "impute/ECL": (64, 64, 2, 3),
        "impute/Weather": (64, 64, 2, 3),
        "classify-series/EthanolConcentration": (16, 32, 2, 3),
        "classify-series/FaceDetection": (64, 256, 2, 3, 4),
        "classify-series/Handwriting": (32, 64, 2, 3),
        "classify-series/Heartbeat": (16, 32, 3, 1),
        "classify-series/JapaneseVowels": (16, 32, 2, 3),
        "classify-series/PEMS-SF": (64, 64, 6, 3),
        "classify-series/SelfRegulationSCP1": (16, 32, 3, 3),
        "classify-series/SelfRegulationSCP2": (32, 32, 3, 3),
        "classify-series/SpokenArabicDigits": (32, 32, 2, 2),
        "classify-series/UWaveGestureLibrary": (32, 64, 2, 3),
        "detect-anomalies/SMD": (64, 64, 2, 5),
        "detect-anomalies/MSL": (8, 16, 1, 3),
        "detect-anomalies/SMAP": (128, 128, 3, 3),
        "detect-anomalies/PSM": (64, 64, 2, 3),
    }.items()
}
#: How the library trains for each task: learning rate, batch size, passes, patience.
TRAINING = {
    "forecast": (1e-4, 32, 10, 3),
    "impute": (1e-3, 16, 10, 3),
    "classify-series": (1e-3, 16, 30, 10),
    "detect-anomalies": (1e-4, 128, 10, 3),
}
#: Passes where they are not the task's usual number.
EPOCHS = {
    "forecast/ETTm1-336": 3,
    "forecast/ETTm2-192": 1,
    "forecast/ETTm2-720": 1,
    "forecast/Exchange-336": 1,
    "forecast/Exchange-720": 1,
    "forecast/Weather-192": 1,
    "forecast/Weather-720": 1,
    "classify-series/JapaneseVowels": 60,
    "detect-anomalies/MSL": 1,
    "detect-anomalies/SMAP": 3,
    "detect-anomalies/PSM": 3,
}

#: The published configuration that each task takes when none is named.
USUAL = {
    "forecast": "forecast/ETTh1",
    "impute": "impute/ETTh1",
    "classify-series": "classify-series/JapaneseVowels",
    "detect-anomalies": "detect-anomalies/MSL",
}


def published_recipe(info: Any, dataset: str) -> Published | None:
    """See :meth:`foveate.models.base.Model.published`; M4, which has a loss of its own, has none here."""
    name = f"{info.task}/{dataset}"
    if name not in PUBLISHED:
        return None
    exact = f"{name}-{info.horizon}" if info.task == "forecast" else name
    rate, batch_size, epochs, patience = TRAINING[info.task]
    classifies = info.task == "classify-series"
    return Published(
        source=LIBRARY,
        options={**PUBLISHED.get(exact, PUBLISHED[name]), "dropout": 0.1},
        learning_rate=rate,
        batch_size=batch_size,
        epochs=EPOCHS.get(exact, epochs),
        patience=patience,
        optimizer="radam" if classifies else "adam",
        schedule="constant" if classifies else "halved",
        clip_norm=4.0 if classifies else None,
    )

"""PatchTST's published sizes and recipes, by release and data set."""

from __future__ import annotations

from typing import Any

from ..published import LIBRARY, Published

_AUTHORS = "yuqinie98/PatchTST, PatchTST_supervised/scripts/PatchTST, commit 204c21e"
#: From this lookback on the authors' recipes hold: they look back over 336 and 512 steps, the library over 96.
LONG = 336


def _authors(d_model: int, n_heads: int, d_ff: int, dropout: float, patch_len: int = 16, stride: int = 8) -> Any:
    sizes = {"d_model": d_model, "n_heads": n_heads, "d_ff": d_ff, "e_layers": 3, "dropout": dropout}
    return {"release": "PatchTST", **sizes, "patch_len": patch_len, "stride": stride}


def _library(e_layers: int, n_heads: int = 8, d_model: int = 512, d_ff: int = 2048) -> Any:
    sizes = {"d_model": d_model, "n_heads": n_heads, "d_ff": d_ff, "e_layers": e_layers, "dropout": 0.1}
    return {"release": "Time-Series-Library", **sizes, "patch_len": 16, "stride": 8}


_UEA = _library(3, 8, 128, 256)
#: Published configurations by task and data set; "-long" are the authors', for windows of 336 steps and more, a
#: trailing number is a horizon that has a size of its own.
PUBLISHED: dict[str, dict[str, Any]] = {
    "forecast/ETTh1": _library(1, 2),
    "forecast/ETTh1-192": _library(1, 8),
    "forecast/ETTh1-336": _library(1, 8),
    "forecast/ETTh1-720": _library(1, 16),
    "forecast/ETTh2": _library(3, 4),
    "forecast/ETTm1": _library(1, 2),
    "forecast/ETTm1-192": _library(3, 2),
    "forecast/ETTm1-336": _library(1, 4),
    "forecast/ETTm1-720": _library(3, 4),
    "forecast/ETTm2": _library(3, 16),
    "forecast/ETTm2-192": _library(3, 2),
    "forecast/ETTm2-336": _library(1, 4),
    "forecast/ETTm2-720": _library(3, 4),
    "forecast/ECL": _library(2),
    "forecast/Exchange": _library(2),
    "forecast/ILI": _library(4, 4, 1024),
    "forecast/ILI-36": _library(4, 4, 2048),
    "forecast/ILI-48": _library(4, 4, 2048),
    "forecast/ILI-60": _library(4, 16, 2048),
    "forecast/Traffic": _library(2, 8, 512, 512),
    "forecast/Weather": _library(2, 4),
    "forecast/Weather-192": _library(2, 16),
    "forecast/ETTh1-long": _authors(16, 4, 128, 0.3),
    "forecast/ETTh2-long": _authors(16, 4, 128, 0.3),
    "forecast/ETTm1-long": _authors(128, 16, 256, 0.2),
    "forecast/ETTm2-long": _authors(128, 16, 256, 0.2),
    "forecast/ECL-long": _authors(128, 16, 256, 0.2),
    "forecast/ILI-long": _authors(16, 4, 128, 0.3, 24, 2),
    "forecast/Traffic-long": _authors(128, 16, 256, 0.2),
    "forecast/Weather-long": _authors(128, 16, 256, 0.2),
    "classify-series/EthanolConcentration": _UEA,
    "classify-series/FaceDetection": _UEA,
    "classify-series/Handwriting": _UEA,
    "classify-series/Heartbeat": _UEA,
    "classify-series/JapaneseVowels": _UEA,
    "classify-series/PEMS-SF": _UEA,
    "classify-series/SelfRegulationSCP1": _UEA,
    "classify-series/SelfRegulationSCP2": _UEA,
    "classify-series/SpokenArabicDigits": _UEA,
    "classify-series/UWaveGestureLibrary": _UEA,
}
#: The size that every task takes when none is named.
USUAL = "forecast/ETTh1-long"
#: The library's batch sizes and passes where they are not 32 and 10.
BATCH_SIZES = {
    "forecast/ETTm1-192": 128,
    "forecast/ETTm1-336": 128,
    "forecast/ETTm1-720": 128,
    "forecast/ETTm2-192": 128,
    "forecast/ETTm2-720": 128,
    "forecast/ECL": 16,
    "forecast/Traffic": 4,
    "forecast/Weather-336": 128,
    "forecast/Weather-720": 128,
}
EPOCHS = {"forecast/Exchange-336": 1, "forecast/Weather": 3}
#: The authors' patience; where they take one cycle of learning rate and momentum (ETTm1, ETTm2, ECL, Traffic), or other
#: patches (ILI), there is no recipe here.
_PATIENCE = {"forecast/ETTh1": 100, "forecast/ETTh2": 100, "forecast/Weather": 20}


def published_recipe(info: Any, dataset: str) -> Published | None:
    """See :meth:`foveate.models.base.Model.published`."""
    name = f"{info.task}/{dataset}"
    if name not in PUBLISHED:
        return None
    if info.task == "classify-series":
        return Published(
            source=LIBRARY,
            options=PUBLISHED[name],
            learning_rate=1e-3,
            batch_size=16,
            epochs=100,
            patience=10,
            optimizer="radam",
            schedule="constant",
            clip_norm=4.0,
        )
    if info.lookback >= LONG:
        if name not in _PATIENCE:
            return None
        return Published(
            source=_AUTHORS,
            options=PUBLISHED[f"{name}-long"],
            learning_rate=1e-4,
            batch_size=128,
            epochs=100,
            patience=_PATIENCE[name],
            schedule="tenth_off",
        )
    exact = f"{name}-{info.horizon}"
    return Published(
        source=LIBRARY,
        options=PUBLISHED.get(exact, PUBLISHED[name]),
        learning_rate=1e-4,
        batch_size=BATCH_SIZES.get(exact, BATCH_SIZES.get(name, 32)),
        epochs=EPOCHS.get(exact, EPOCHS.get(name, 10)),
        patience=3,
    )

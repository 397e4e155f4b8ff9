"""TimesNet's imputation by its authors' own model code, trained as their script does, on the same file as ours.

    python benchmarks/impute_official.py CHECKOUT ETTh1.csv [--mask-rate 0.25]

CHECKOUT is a checkout of thuml/Time-Series-Library. Its runner needs packages that foveate does not have, so its loop
is written out here: standardised by the training rows, windows of 96 rows that reach back over the borders of the
parts, masks drawn anew at every call, Adam at 1e-3 halved every pass, the best of 10 passes by validation, the sizes
and the seed of the script. The result joins ``impute_official.json`` beside this file; ``published.py`` shows it.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

HERE = Path(__file__).parent
WINDOW, BATCH, PASSES, PATIENCE, RATE = 96, 16, 10, 3, 1e-3
MONTH = 30 * 24


def parts(file: Path, checkout: Path) -> list[tuple[Tensor, Tensor]]:
    """Values and time features of the training, validation and test rows."""
    sys.path.insert(0, str(checkout))
    from utils.timefeatures import time_features  # type: ignore[import-not-found]

    table = pd.read_csv(file)
    values = table[table.columns[1:]].to_numpy()
    train = values[: 12 * MONTH]
    values = torch.tensor((values - train.mean(0)) / train.std(0), dtype=torch.float32)
    marks = time_features(pd.to_datetime(table["date"].to_numpy()), freq="h").T
    marks = torch.tensor(np.ascontiguousarray(marks), dtype=torch.float32)
    borders = [(0, 12), (12, 16), (16, 20)]
    rows = [slice(max(0, first * MONTH - WINDOW), last * MONTH) for first, last in borders]
    return [(values[r], marks[r]) for r in rows]


def windows(part: tuple[Tensor, Tensor], shuffled: bool) -> Any:
    """Batches of values and time features."""
    values, marks = (m.unfold(0, WINDOW, 1).mT for m in part)
    order = torch.randperm(len(values)) if shuffled else torch.arange(len(values))
    return ((values[index], marks[index]) for index in order.split(BATCH))


def errors(model: torch.nn.Module, x: Tensor, marks: Tensor, mask_rate: float) -> Tensor:
    """On the values that are hidden by a mask drawn now."""
    mask = (torch.rand(x.shape) > mask_rate).float()
    return (model(x.masked_fill(mask == 0, 0), marks, None, None, mask) - x)[mask == 0]


@torch.no_grad()
def score(model: torch.nn.Module, part: tuple[Tensor, Tensor], mask_rate: float, shuffled: bool) -> tuple[float, float]:
    """Mean squared and mean absolute error."""
    model.eval()
    found = torch.cat([errors(model, x, marks, mask_rate) for x, marks in windows(part, shuffled)])
    model.train()
    return float(found.square().mean()), float(found.abs().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--mask-rate", type=float, default=0.25)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train, val, test = parts(given.file, given.checkout)
    from models.TimesNet import Model  # type: ignore[import-not-found]

    random.seed(2021), torch.manual_seed(2021), np.random.seed(2021)
    sizes = {"e_layers": 2, "d_model": 16, "d_ff": 32, "top_k": 3, "num_kernels": 6, "enc_in": 7, "c_out": 7}
    lengths = {"seq_len": WINDOW, "label_len": 0, "pred_len": 0}
    config = SimpleNamespace(task_name="imputation", embed="timeF", freq="h", dropout=0.1, **lengths, **sizes)
    model = Model(config).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    best, kept, stale, begun = float("inf"), model.state_dict(), 0, time.monotonic()
    for number in range(PASSES):
        for x, marks in windows(train, shuffled=True):
            optimizer.zero_grad()
            errors(model, x, marks, given.mask_rate).square().mean().backward()
            optimizer.step()
        mse, _ = score(model, val, given.mask_rate, shuffled=True)
        print(f"pass {number + 1}: validation MSE {mse:.4f} after {time.monotonic() - begun:.0f} s", flush=True)
        best, kept, stale = (mse, copy.deepcopy(model.state_dict()), 0) if mse < best else (best, kept, stale + 1)
        if stale == PATIENCE:
            break
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5**number
    model.load_state_dict(kept)
    mse, mae = score(model, test, given.mask_rate, shuffled=False)
    file = HERE / "impute_official.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known[f"{given.mask_rate:g}"] = {"mse": mse, "mae": mae}
    file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"test MSE {mse:.4f}, MAE {mae:.4f}")


if __name__ == "__main__":
    main()

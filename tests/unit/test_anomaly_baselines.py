"""The baselines of anomaly detection, by hand."""

from __future__ import annotations

import pytest
import torch

from foveate.errors import InvalidType, InvalidValue
from foveate.models.series.nearest_window import NearestWindow
from foveate.models.series.previous_value import PreviousValue, TrainingMean


def test_previous_value_and_training_mean():
    x = torch.tensor([[1.0, 2.0, 5.0, 4.0]])[..., None]
    assert PreviousValue(4, 1)(x).flatten().tolist() == [2.0, 1.0, 2.0, 5.0]
    assert TrainingMean(4, 1)(x).flatten().tolist() == [0.0] * 4


def test_the_nearest_window_of_those_kept():
    windows = torch.tensor([[0.0, 0.0], [3.0, 3.0], [-3.0, 3.0], [9.0, 9.0]])[..., None]
    model = NearestWindow(2, 1, keep=3)
    x = torch.tensor([[2.0, 2.5], [-1.0, 0.9], [8.0, 8.0]])[..., None]
    assert not model(x).any()  # nothing is kept yet
    model.fit({"x": windows})
    assert model(x).tolist() == windows[[1, 0, 1]].tolist()  # the fourth is one too many
    model.fit({"x": windows[3:]})
    assert model(x).tolist() == windows[[3, 3, 3]].tolist()  # nothing of an earlier fit is left
    assert model.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PreviousValue(1, 1), "seq_len=1 is not possible"),
        (lambda: TrainingMean(4, 0), "enc_in=0 is not possible"),
        (lambda: NearestWindow(4, 1, keep=0), "keep=0 is not possible"),
    ],
)
def test_sizes_that_are_refused(make, says):
    with pytest.raises(InvalidValue, match=says):
        make()


@pytest.mark.parametrize("cls", [PreviousValue, TrainingMean, NearestWindow])
def test_inputs_that_are_refused(cls):
    with pytest.raises(InvalidValue, match=rf"{cls.__name__}: x has shape \(1, 5, 1\)"):
        cls(4, 1)(torch.zeros(1, 5, 1))
    with pytest.raises(InvalidType, match=f"{cls.__name__}: x must be floating point"):
        cls(4, 1)(torch.zeros(1, 4, 1, dtype=torch.int64))

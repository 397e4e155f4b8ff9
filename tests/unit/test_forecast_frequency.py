"""Steps, grids, seasons and calendar features of series."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from foveate.errors import InvalidValue
from foveate.tasks.forecast.features import feature_names, time_features
from foveate.tasks.forecast.frequency import (
    future_times,
    grid_index,
    horizon_of,
    infer_freq,
    on_grid,
    resample,
    season_of,
    unit_of,
)


def stamps(start: str, rows: int, freq: str) -> np.ndarray:
    return pd.date_range(start, periods=rows, freq=freq).to_numpy().astype("datetime64[us]")


FREQUENCIES = {
    # alias: (start, season, horizon)
    "10ms": ("2024-01-01 00:00:00.01", 1, 24),
    "s": ("2024-01-01 10:00", 1, 24),
    "min": ("2024-01-01 10:00", 1440, 24),
    "15min": ("2024-01-01 00:15", 96, 24),
    "h": ("2024-01-01 00:30", 24, 24),
    "6h": ("2024-01-01", 4, 24),
    "D": ("2024-01-06 12:00", 7, 14),
    "2D": ("2024-01-06", 1, 14),
    "B": ("2024-01-05", 5, 10),
    "W-SAT": ("2024-01-06", 52, 13),
    "MS": ("2024-01-01", 12, 12),
    "ME": ("2024-01-31", 12, 12),
    "QS-JAN": ("2023-04-01", 4, 8),
    "QE-MAR": ("2023-06-30", 4, 8),
    "YS-JAN": ("1821-01-01", 1, 6),
    "YE-JUN": ("1990-06-30", 1, 6),
}


@pytest.mark.parametrize("freq", FREQUENCIES)
def test_a_frequency_is_inferred_whole_and_with_gaps(freq):
    start, season, horizon = FREQUENCIES[freq]
    whole = stamps(start, 40, freq)
    assert infer_freq([whole]) == (freq, True)
    assert (season_of(freq), horizon_of(freq)) == (season, horizon)
    keep = np.ones(40, dtype=bool)
    keep[[3, 4, 17, 30]] = False
    assert infer_freq([whole[keep]]) == (freq, True)
    np.testing.assert_array_equal(grid_index(whole[keep], freq), np.flatnonzero(keep))
    times, values = on_grid(whole[keep], np.arange(40.0)[keep, None], freq)
    np.testing.assert_array_equal(times, whole)
    np.testing.assert_array_equal(np.isnan(values[:, 0]), ~keep)
    np.testing.assert_array_equal(values[keep, 0], np.flatnonzero(keep))


@pytest.mark.parametrize("freq", FREQUENCIES)
def test_the_future_goes_on_where_the_past_ends(freq):
    whole = stamps(FREQUENCIES[freq][0], 40, freq)
    np.testing.assert_array_equal(future_times(whole[19], 20, freq), whole[20:])


def test_the_future_of_a_stamp_off_the_calendar_begins_at_the_next_step():
    got = future_times(np.datetime64("2024-01-15", "us"), 2, "MS")
    np.testing.assert_array_equal(got, np.array(["2024-02-01", "2024-03-01"], dtype="datetime64[us]"))


def test_series_of_different_phase_share_a_frequency_and_of_different_step_do_not():
    a, b = stamps("2024-01-01 00:00", 20, "h"), stamps("2024-02-01 00:30", 9, "h")
    assert infer_freq([a, b]) == ("h", True)
    assert infer_freq([a, stamps("2024-01-01", 9, "D")]) == ("h", False)
    freq, regular = infer_freq([stamps("2024-01-01 00:00:01", 9, "7h"), stamps("2024-01-01", 5, "40min")])
    assert (freq, regular) == ("7h", False)


def test_trading_hours_are_irregular_and_holidays_are_gaps():
    days = pd.date_range("2024-01-01", periods=20, freq="B")
    hours = np.concatenate([d + pd.to_timedelta(range(9, 16), unit="h") for d in days]).astype("datetime64[us]")
    assert infer_freq([hours]) == ("h", False)
    closed = days.delete([4, 9]).to_numpy().astype("datetime64[us]")
    assert infer_freq([closed]) == ("B", True)


def test_a_series_with_most_rows_missing_is_not_on_the_grid():
    whole = stamps("2024-01-01", 100, "h")
    assert grid_index(whole[[0, 99]], "h") is None
    assert grid_index(whole[[0, 1, 3]], "h") is not None
    assert grid_index(whole[[0, 1, 6]], "h") is None


def test_monthly_means_of_daily_values():
    daily = stamps("2024-01-01", 60, "D")
    times, values = resample(daily, np.arange(60.0)[:, None], "MS", "t")
    np.testing.assert_array_equal(times, stamps("2024-01-01", 2, "MS"))
    np.testing.assert_allclose(values[:, 0], [np.arange(31).mean(), np.arange(31, 60).mean()])
    with pytest.raises(InvalidValue, match="60 rows would be spread over 84960 steps"):
        resample(daily, np.zeros((60, 1)), "min", "t")


def test_units_of_unusual_aliases():
    assert unit_of("BME") == ("month", 1)
    assert unit_of("3MS") == ("month", 3)
    assert unit_of("WOM-2MON") == ("month", 1)
    assert unit_of("2YE-JUN") == ("year", 2)
    assert season_of("3MS") == 4
    with pytest.raises(InvalidValue, match="fixed length"):
        unit_of("SME")


@pytest.mark.parametrize(
    ("freq", "names"),
    [
        ("s", "second minute hour day_of_week day_of_month day_of_year"),
        ("15min", "minute hour day_of_week day_of_month day_of_year"),
        ("h", "hour day_of_week day_of_month day_of_year"),
        ("12h", "hour day_of_week day_of_month day_of_year"),
        ("D", "day_of_week day_of_month day_of_year"),
        ("B", "day_of_week day_of_month day_of_year"),
        ("W-SUN", "day_of_month week"),
        ("ME", "month"),
        ("QS-JAN", "month"),
        ("YS-JAN", ""),
    ],
)
def test_calendar_features_by_step(freq, names):
    assert feature_names(freq) == tuple(names.split())
    times = stamps("2024-01-01", 3000, "53min")
    features = time_features(times, freq)
    assert features.shape == (3000, len(names.split()))
    assert features.dtype == np.float32
    assert not features.size or (features.min() >= -0.5 and features.max() <= 0.5)


def test_calendar_features_at_two_moments():
    # Monday 2024-01-01 00:00:00 is the first of everything; Sunday 2023-12-31 23:59:59 is the last.
    times = np.array(["2024-01-01", "2023-12-31T23:59:59"], dtype="datetime64[us]")
    first, last = time_features(times, "s")
    np.testing.assert_array_equal(first, np.full(6, -0.5))
    np.testing.assert_allclose(last, [0.5, 0.5, 0.5, 0.5, 0.5, 364 / 365 - 0.5], rtol=1e-6)
    np.testing.assert_allclose(time_features(times, "W-SUN"), [[-0.5, -0.5], [0.5, 51 / 52 - 0.5]], rtol=1e-6)
    np.testing.assert_allclose(time_features(times, "ME"), [[-0.5], [0.5]])

"""Looks: kinds, shapes, types, and mixers that show nothing."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.errors import InvalidType, InvalidValue
from foveate.mixers.look import Look, check_query


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("weights", torch.full((2, 4, 3, 5), 1 / 15)),
        ("weights", torch.full((2, 4, 7), 1 / 7)),
        ("visible", torch.ones(2, 1, 2, 3, 4, dtype=torch.bool)),
        ("boxes", torch.zeros(2, 4, 9, 4)),
        ("tree", torch.full((2, 15), -1)),
        ("gate", torch.ones(2, 8, 3, 5)),
    ],
)
def test_looks_of_all_kinds_are_taken(kind, values):
    look = Look(kind, values.requires_grad_() if values.is_floating_point() else values, "a label")
    assert look.values.shape == values.shape
    assert not look.values.requires_grad


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        ("map", torch.ones(1, 1, 3), "kind='map' is not possible"),
        ("weights", torch.ones(2, 4), r"they must be \(batch, heads, \*grid\)"),
        ("weights", torch.ones(2, 4, 3, 3, 3, 3), r"shape \(2, 4, 3, 3, 3, 3\)"),
        ("boxes", torch.ones(2, 4, 3, 3), r"they must be \(batch, heads, boxes, 4\)"),
        ("boxes", torch.ones(2, 4, 4), r"they must be \(batch, heads, boxes, 4\)"),
        ("tree", torch.ones(2, 4, 4, dtype=torch.int64), r"they must be \(batch, tokens\)"),
    ],
)
def test_other_shapes_are_refused(kind, values, says):
    with pytest.raises(InvalidValue, match=says):
        Look(kind, values, "a label")


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        ("visible", torch.ones(2, 1, 3), "must be bool, not torch.float32"),
        ("tree", torch.ones(2, 15), "must be int64, not torch.float32"),
        ("gate", torch.ones(2, 1, 3, dtype=torch.bool), "must be floating point, not torch.bool"),
    ],
)
def test_other_types_are_refused(kind, values, says):
    with pytest.raises(InvalidType, match=says):
        Look(kind, values, "a label")


def test_a_query_must_be_on_the_grid():
    assert check_query("A mixer", None, (3, 5)) is None
    assert check_query("A mixer", (2, 4), (3, 5)) == (2, 4)
    for query in ((3, 0), (0, -1), (1,), (0, 0, 0)):
        with pytest.raises(InvalidValue, match=r"A mixer: query=.* is not on the grid \(3, 5\)"):
            check_query("A mixer", query, (3, 5))


def test_mixers_without_a_look_say_so():
    with pytest.raises(InvalidType, match="GRU shows nothing"):
        foveate.create("gru", kind="mixer", dim=8).look(torch.zeros(1, 4, 8))

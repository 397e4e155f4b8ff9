"""N-grams: counts and probabilities against the definition by dictionaries, documents, masks, streams, what is kept."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import InvalidType, InvalidValue
from foveate.models.language.ngram import NGram, TokenFrequencies, count, discounts


def by_definition(rows, vocabulary, order):
    """(history of any length) to the probabilities after it: modified Kneser-Ney, with dictionaries.

    Args:
        rows: lists of tokens; histories do not cross rows.
    """
    seen = [defaultdict(Counter) for _ in range(order)]
    for row in rows:
        for t in range(1, len(row)):
            for depth in range(order):
                if depth <= t:
                    seen[depth][tuple(row[t - depth : t])][row[t]] += 1
    used = [defaultdict(Counter) for _ in range(order)]
    used[order - 1] = seen[order - 1]
    for depth in range(order - 1):
        for history, after in seen[depth + 1].items():
            for word in after:
                used[depth][history[1:]][word] += 1
        for row in rows:  # nothing stands before the first tokens
            if depth < len(row) and depth > 0:
                used[depth][tuple(row[:depth])][row[depth]] += 1
    taken = [
        discounts(np.array([c for after in level.values() for c in after.values()], int)) if level else None
        for level in used
    ]

    def chances(history):
        p = np.full(vocabulary, 1 / vocabulary)
        for depth in range(min(len(history), order - 1) + 1):
            after = used[depth].get(tuple(history[len(history) - depth :]))
            if after is None:
                break
            total, freed, new = sum(after.values()), 0.0, np.zeros(vocabulary)
            for word, c in after.items():
                d = taken[depth][min(c, 3) - 1]
                new[word] = (c - d) / total
                freed += d / total
            p = new + freed * p
        return p

    return chances


def pairs(rows):
    """Rows of equal length as a batch."""
    rows = torch.tensor(rows)
    return {"x": rows[:, :-1], "y": rows[:, 1:]}


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=6),
    order=st.integers(1, 5),
)
def test_probabilities_follow_the_definition(rows, order):
    model = NGram(4, order=order, entries=600)
    model.fit(pairs(rows))
    p = model(torch.tensor(rows)).double().exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(len(rows), 9).double(), atol=1e-5, rtol=0)
    chances = by_definition(rows, 4, order)
    for row, given_p in zip(rows, p.numpy(), strict=True):
        for t in range(9):
            np.testing.assert_allclose(given_p[t], chances(row[: t + 1]), atol=1e-6)


def fitted(order=4, seed=0, **options):
    model = NGram(5, order=order, **options)
    tokens = torch.randint(5, (1, 400), generator=torch.Generator().manual_seed(seed))
    tokens[:, 1::3] = tokens[:, ::3][:, : tokens[:, 1::3].shape[1]]
    model.fit({"x": tokens[:, :-1], "y": tokens[:, 1:]})
    return model, tokens


def test_documents_are_kept_apart_when_counting_and_when_reading():
    rows = [[4, 0, 1, 2, 3, 0], [4, 2, 2, 1, 0, 1], [4, 3, 1, 1, 2, 0]]
    apart, packed = NGram(5, order=4), NGram(5, order=4)
    apart.fit(pairs(rows))
    line = torch.tensor([t for row in rows for t in row])
    segments = torch.arange(3).repeat_interleave(6)
    y = torch.cat([line[1:], line[:1]]).where(torch.arange(18) % 6 < 5, -100)  # what follows a row is not asked
    packed.fit({"x": line[None], "y": y[None], "segments": segments[None]})
    for name, value in apart.state_dict().items():
        assert torch.equal(packed.state_dict()[name], value), name
    one = packed(line[None], segments=segments[None])
    assert torch.equal(one.view(3, 6, 5), apart(torch.tensor(rows)))
    cut = (torch.arange(18) >= 3).long()[None]  # in the middle of a document
    halves = torch.cat([packed(line[None, :3]), packed(line[None, 3:])], 1)
    assert torch.equal(packed(line[None], segments=cut), halves)
    assert not torch.equal(packed(line[None]), halves)  # without segments it reads on


@pytest.mark.parametrize("cuts", [(7,), (1, 2, 3), (20, 50)])
def test_streams_equal_forward(cuts):
    model, tokens = fitted()
    x = tokens[:, :60].repeat(2, 1)
    whole, state, parts = model(x), model.init_state(2), []
    for begin, end in zip((0, *cuts), (*cuts, 60), strict=True):
        y, state = model.prefill(x[:, begin:end], state)
        parts.append(y)
    assert torch.equal(torch.cat(parts, 1), whole)
    state = model.init_state(2)
    for t in range(10):
        y, state = model.step(x[:, t], state)
        assert torch.equal(y, whole[:, t])
    assert state.nbytes == 2 * 3 * 8
    assert state.reorder(torch.tensor([1])).tokens.shape == (1, 3)


def test_what_is_masked_stands_in_no_history():
    model, tokens = fitted()
    real = tokens[0, :20]
    for mask in (torch.arange(30) >= 10, torch.arange(30) % 3 < 2):
        line = torch.full((30,), 2)
        line[mask] = real
        y = model(line[None], mask[None])
        assert torch.equal(y[0, mask], model(real[None])[0])
        assert not y[0, ~mask].any()
        first, state = model.prefill(line[None, :15], model.init_state(1), mask[None, :15])
        second, state = model.prefill(line[None, 15:], state, mask[None, 15:])
        assert torch.equal(torch.cat([first, second], 1), y)
        assert state.tokens.tolist() == [real[-3:].tolist()]
    segments = torch.arange(30)[None] // 15
    mask = (torch.arange(30) % 3 < 2)[None]
    y = model(line[None], mask, segments)
    apart = torch.cat([model(line[None, :15], mask[:, :15]), model(line[None, 15:], mask[:, 15:])], 1)
    assert torch.equal(y, apart)


def test_a_longer_history_helps_where_there_is_one():
    tokens = torch.arange(300)[None] % 7 // 3
    scores = []
    for order in (1, 3, 6):
        model = NGram(3, order=order)
        model.fit({"x": tokens[:, :-1], "y": tokens[:, 1:]})
        scores.append(float(-model(tokens[:, :-1]).gather(-1, tokens[:, 1:, None]).mean()))
    assert scores[0] > scores[1] > scores[2]
    assert scores[2] < 0.1


def test_what_does_not_fit_is_left_out_the_rarest_first():
    model, tokens = fitted(order=5)
    full = count(tokens[:, :-1].numpy(), tokens[:, 1:].numpy(), None, 5, 5)
    for most in (5, 20, 100):
        kept = full.kept(most)
        assert len(kept.edges) <= most
        assert len(kept.words) <= most
        assert (np.diff(kept.edges) > 0).all()
        left_out = sorted(full.occurrences.tolist(), reverse=True)[len(kept.occurrences) :]
        assert kept.occurrences.min() >= max(left_out)
        small = NGram(5, order=5, entries=most)
        small.take(full)
        p = small(tokens).double().exp()
        torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]), atol=1e-5, rtol=0)
    assert full.kept(10**6) is full
    big = NGram(5, order=5, entries=10**4)
    big.take(full)
    assert torch.equal(big(tokens), model(tokens))


def test_only_the_last_tokens_are_counted():
    tokens = torch.cat([torch.zeros(100, dtype=torch.int64), torch.ones(50, dtype=torch.int64)])[None]
    model = NGram(2, order=1, fit_tokens=30)
    model.fit({"x": tokens[:, :-1], "y": tokens[:, 1:]})
    assert model(tokens)[0, 0].argmax() == 1
    assert float(model(tokens)[0, 0, 1].exp()) > 0.9


def test_frequencies_are_counts():
    tokens = torch.tensor([[0, 1, 1, 1, 2, 2, 1, 1, 1, 1, 1]])
    model = TokenFrequencies(4)
    model.fit({"x": tokens[:, :-1], "y": tokens[:, 1:]})
    p = model(tokens[:, :3]).exp()
    assert torch.equal(p[0, 0], p[0, 2])
    assert p[0, 0].argsort(descending=True)[:2].tolist() == [1, 2]
    assert float(p[0, 0, 3]) > 0
    assert model.init_state(2).tokens.shape == (2, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vocabulary": 0}, "vocabulary=0 is not possible"),
        ({"order": 0}, "order=0 is not possible"),
        ({"entries": 3}, "entries=3 is not possible: it must be at least the vocabulary, 5"),
    ],
)
def test_options_that_are_refused(options, says):
    with pytest.raises(InvalidValue, match=says):
        NGram(**{"vocabulary": 5, **options})


def test_inputs_that_are_refused():
    model = NGram(5)
    with pytest.raises(InvalidType, match="tokens must be int64"):
        model(torch.zeros(1, 3))
    with pytest.raises(InvalidValue, match="there are no tokens"):
        model(torch.zeros(1, 0, dtype=torch.int64))


def test_states_that_are_refused():
    model, tokens = fitted()
    with pytest.raises(InvalidValue, match=r"NGram: tokens of the state has shape \(2, 3\); it must be \(1, 3\)"):
        model.prefill(tokens, model.init_state(2))
    with pytest.raises(InvalidValue, match=r"has shape \(1, 1\); it must be \(1, 3\)"):
        model.step(tokens[:, 0], NGram(5, order=2, entries=9).init_state(1))
    with pytest.raises(InvalidType, match="NGram: its state is a HistoryState, not a tuple"):
        model.step(tokens[:, 0], ())

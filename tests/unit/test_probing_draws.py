"""What the probes draw: every sample solved by somebody who has read the definition, and the distributions."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import InvalidValue
from foveate.tasks.probing import listops as lists
from foveate.tasks.probing.copying import AGAIN, BEGIN, PAD, STOP, delayed_copy, string_copy
from foveate.tasks.probing.draws import BLOCK, TOKENS, Drawn, distinct, draw, drawn, weighted
from foveate.tasks.probing.induction import induction
from foveate.tasks.probing.passkey import (
    ASK,
    FILLER,
    GRASS,
    HIDDEN,
    KEY,
    QUESTION,
    TASK,
    overhead,
    passkey_text,
    passkey_tokens,
)
from foveate.tasks.probing.pathfinder import DASH, MARGIN, NO, PADDING, YES, curves, distance, pathfinder
from foveate.tasks.probing.recall import gap_weights, mqar, single_recall, zoology_mqar
from foveate.tasks.probing.selective_copying import selective_copy
from foveate.tasks.probing.state_tracking import product_table, word_problem


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def asked(made: Drawn, row: int) -> list[tuple[int, int]]:
    """(place, answer) of a sample, by place."""
    pairs = zip(made.places[row].tolist(), made.answers[row].tolist(), strict=True)
    return sorted((place, answer) for place, answer in pairs if place >= 0)


# ----- the tools


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(0, 5), st.integers(0, 8))
def test_distinct_numbers_are_distinct_and_in_range(seed, count, more, low):
    made = distinct(rng(seed), 7, count, low, low + count + more)
    assert made.shape == (7, count)
    assert all(len(set(row)) == count for row in made.tolist())
    assert made.min() >= low
    assert made.max() < low + count + more


def test_every_ordered_choice_is_equally_likely():
    made = distinct(rng(), 60_000, 2, 0, 4)
    counts = np.bincount(made[:, 0] * 4 + made[:, 1], minlength=16).reshape(4, 4)
    assert (np.diag(counts) == 0).all()
    off = counts[~np.eye(4, dtype=bool)]
    assert abs(off - 5000).max() < 5 * math.sqrt(5000)


def test_weighted_choices_are_those_of_drawing_one_by_one():
    weights = np.array([4.0, 2.0, 1.0, 1.0])
    made = weighted(rng(), 80_000, 2, weights)
    for first, second in itertools.permutations(range(4), 2):
        chance = weights[first] / 8 * weights[second] / (8 - weights[first])
        share = ((made[:, 0] == first) & (made[:, 1] == second)).mean()
        assert abs(share - chance) < 5 * math.sqrt(chance / 80_000)


def test_a_sample_depends_on_its_number_and_not_on_how_many_there_are():
    def make(generator, numbers):
        return drawn(generator.integers(0, 100, (len(numbers), 3)), [2], numbers[:, None])

    few, many = draw(make, 10, 3, "a", 0), draw(make, 2 * BLOCK + 3, 3, "a", 0)
    assert (few.tokens == many.tokens[:10]).all()
    assert (many.answers[:, 0] == np.arange(2 * BLOCK + 3)).all()
    assert (draw(make, 10, 3, "a", 1).tokens != few.tokens).any()
    assert (draw(make, 10, 3, "b", 0).tokens != few.tokens).any()
    drawn_at_once = []
    draw(lambda g, n: drawn_at_once.append(len(n)) or make(g, n), 3, TOKENS // 2, "a", 0)
    assert drawn_at_once == [2, 2]


# ----- recall


def look_up(tokens: list[int], place: int) -> int:
    """What stood behind the first occurrence of the token at ``place``."""
    return tokens[tokens.index(tokens[place]) + 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(0, 20), st.floats(0.01, 2.0))
def test_mqar_is_solved_by_looking_up(seed, pairs, more, power):
    length = 4 * pairs + 2 * more
    made = mqar(rng(seed), 5, length=length, pairs=pairs, vocabulary=length + 2 * pairs + 2, power=power)
    half = (length + 2 * pairs + 2) // 2
    for row, tokens in enumerate(made.tokens.tolist()):
        keys, values = tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert min(keys) >= 1
        assert max(keys) < half <= min(values)
        again = [place for place in range(2 * pairs, length) if tokens[place]]
        assert sorted(tokens[place] for place in again) == sorted(keys)
        assert all((place - 2 * pairs) % 2 == 0 for place in again)
        assert asked(made, row) == [(place, look_up(tokens, place)) for place in again]


def test_random_fill_changes_what_is_not_asked():
    options = {"length": 40, "pairs": 4, "vocabulary": 64}
    plain, noisy = mqar(rng(), 200, **options), mqar(rng(), 200, **options, fill="random")
    assert (plain.places == noisy.places).all()
    assert (plain.answers == noisy.answers).all()
    known = plain.tokens != 0
    assert (plain.tokens[known] == noisy.tokens[known]).all()
    assert set(np.unique(noisy.tokens[~known])) == set(range(64))


def test_the_gaps_follow_the_power_law_of_the_release():
    options = {"length": 64, "pairs": 4, "vocabulary": 128, "power": 0.01}
    ours, official = mqar(rng(), 40_000, **options), zoology_mqar(0, 6000, **options)
    spaces = len(gap_weights(64, 4, 0.01))
    assert spaces == 28
    shares = [np.bincount((m.places[:, 0] - 8) // 2, minlength=spaces) / len(m.places) for m in (ours, official)]
    expected = gap_weights(64, 4, 0.01) / gap_weights(64, 4, 0.01).sum()  # of the first that is drawn
    for share, samples in zip(shares, (40_000, 6000), strict=True):
        assert abs(share - expected).max() < 5 * math.sqrt(expected.max() / samples)
    last = [np.bincount((m.places[:, 3] - 8) // 2, minlength=spaces) / len(m.places) for m in (ours, official)]
    assert abs(last[0] - last[1]).max() < 5 * math.sqrt(last[0].max() / 6000)
    uniform = mqar(rng(), 20_000, **{**options, "power": 1.0})
    share = np.bincount((uniform.places - 8).ravel() // 2, minlength=spaces) / uniform.places.size
    assert abs(share - 1 / spaces).max() < 5 * math.sqrt(1 / spaces / 20_000)


def test_the_official_stream_is_that_of_the_release():
    """Recorded from the release's ``multiquery_ar`` at seed 7: 3 samples, 64 tokens in the vocabulary, 4 pairs."""
    made = zoology_mqar(7, 3, length=24, pairs=4, vocabulary=64)
    assert made.tokens.tolist() == [
        [3, 53, 19, 32, 2, 34, 10, 46, 3, 0, 2, 0, 0, 0, 19, 0, 0, 0, 10, 0, 0, 0, 0, 0],
        [31, 43, 18, 56, 13, 39, 16, 32, 18, 0, 31, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 13, 0],
        [19, 49, 23, 48, 7, 59, 15, 57, 15, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 23, 0, 7, 0],
    ]
    assert asked(made, 0) == [(8, 53), (10, 34), (14, 32), (18, 46)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 30), st.integers(6, 21))
def test_single_recall_is_solved_by_looking_up(seed, half, vocabulary):
    made = single_recall(rng(seed), 8, length=2 * half, vocabulary=vocabulary)
    keys = (vocabulary - 2) // 2
    for row, tokens in enumerate(made.tokens.tolist()):
        read = dict(zip(tokens[0:-2:2], tokens[1:-2:2], strict=True))
        assert all(read[k] == v for k, v in zip(tokens[0:-2:2], tokens[1:-2:2], strict=True))
        assert all(0 <= k < keys <= v < vocabulary - 2 for k, v in read.items())
        assert tokens[-2] == vocabulary - 1
        assert asked(made, row) == [(len(tokens) - 1, read[tokens[-1]])]


def test_the_query_is_any_key_that_was_read_equally_often():
    made = single_recall(rng(), 60_000, length=8, vocabulary=8)
    chosen = made.tokens[(made.tokens[:, 0] == 0) & (made.tokens[:, 2] == 0) & (made.tokens[:, 4] == 1)]
    assert abs((chosen[:, -1] == 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(len(chosen))


# ----- copying


def test_a_delayed_copy():
    made = delayed_copy(rng(), 50, length=7, count=3, letters=8)
    assert made.tokens.shape == (50, 13)
    for row, tokens in enumerate(made.tokens.tolist()):
        assert all(t < 8 for t in tokens[:3])
        assert tokens[3:] == [8] * 6 + [9] + [8] * 3
        assert asked(made, row) == list(zip(range(10, 13), tokens[:3], strict=True))
    assert set(np.unique(made.tokens[:, :3])) == set(range(8))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(0, 6), st.integers(0, 3))
def test_a_copied_string(seed, shortest, more, room):
    length = shortest + more
    made = string_copy(rng(seed), 6, length=length, shortest=shortest, letters=5, width=length + room)
    for row, tokens in enumerate(made.tokens.tolist()):
        assert tokens[0] == 5 + BEGIN
        size = tokens.index(5 + AGAIN) - 1
        assert shortest <= size <= length
        text = tokens[1 : size + 1]
        assert tokens[size + 2 : 2 * size + 2] == text
        assert set(tokens[2 * size + 2 :]) <= {5 + PAD}
        assert max(text) < 5
        assert asked(made, row) == list(zip(range(size + 1, 2 * size + 2), [*text, 5 + STOP], strict=True))


def test_strings_of_all_lengths_are_equally_likely():
    made = string_copy(rng(), 30_000, length=7, shortest=4, letters=5, width=7)
    shares = np.bincount((made.places >= 0).sum(1) - 1, minlength=8)[4:] / 30_000
    assert abs(shares - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / 30_000)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 20))
def test_selective_copying(seed, count, more):
    made = selective_copy(rng(seed), 6, length=count + more, count=count, vocabulary=6)
    for row, tokens in enumerate(made.tokens.tolist()):
        body, signs = tokens[: count + more], tokens[count + more :]
        data = [t for t in body if t]
        assert len(data) == count
        assert all(1 <= t <= 4 for t in data)
        assert signs == [5] * count
        assert asked(made, row) == list(zip(range(count + more, len(tokens)), data, strict=True))


def test_data_stands_anywhere_among_the_noise():
    made = selective_copy(rng(), 20_000, length=10, count=3, vocabulary=6)
    share = (made.tokens[:, :10] != 0).mean(0)
    assert abs(share - 0.3).max() < 5 * math.sqrt(0.21 / 20_000)


# ----- induction and passkey


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 40), st.integers(3, 20))
def test_induction_says_what_followed_the_sign(seed, length, vocabulary):
    made = induction(rng(seed), 6, length=length, vocabulary=vocabulary)
    for row, tokens in enumerate(made.tokens.tolist()):
        assert tokens[-1] == vocabulary - 1
        assert tokens.count(vocabulary - 1) == 2
        assert asked(made, row) == [(length - 1, look_up(tokens, length - 1))]


def test_the_sign_stands_anywhere():
    made = induction(rng(), 30_000, length=6, vocabulary=4)
    shares = (made.tokens[:, :4] == 3).mean(0)
    assert abs(shares - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / 30_000)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 30), st.floats(0, 1))
def test_a_passkey_among_tokens(seed, digits, filler, depth):
    length, first = filler + overhead("tokens", digits), round(depth * filler)
    made = passkey_tokens(rng(seed), np.full(4, first), length=length, digits=digits, vocabulary=20)
    for row, tokens in enumerate(made.tokens.tolist()):
        assert len(tokens) == length
        assert tokens.index(KEY) == first
        key = tokens[first + 1 : first + 1 + digits]
        assert max(key) < 10
        assert tokens[length - digits] == ASK
        assert tokens[length - digits + 1 :] == key[:-1]
        rest = tokens[:first] + tokens[first + 1 + digits : length - digits]
        assert len(rest) == filler
        assert all(FILLER <= t < 20 for t in rest)
        assert asked(made, row) == list(zip(range(length - digits, length), key, strict=True))


def test_a_passkey_in_text():
    length = overhead("text", 5) + 123
    made = passkey_text(rng(), np.array([0, 60, 123]), length=length, digits=5)
    for row, first in enumerate([0, 60, 123]):
        text = bytes(made.tokens[row].astype(np.uint8)).decode("ascii")
        key = "".join(map(chr, made.answers[row]))
        assert len(text) == length
        assert text + key[-1] == (
            TASK + (GRASS * 9)[:first] + HIDDEN.format(key=key) + (GRASS * 9)[: 123 - first] + QUESTION + key
        )
        assert 10_000 <= int(key) < 100_000
        assert made.places[row].tolist() == list(range(length - 5, length))


# ----- ListOps


def value_of(tokens: list[int]) -> int:
    """The value of an expression, by a parser with a stack."""
    stack: list[list[int]] = [[]]
    for token in tokens:
        if token < 10:
            stack[-1].append(token)
        elif token == lists.END:
            operator, *numbers = stack.pop()
            kind = {
                lists.MIN: min,
                lists.MAX: max,
                lists.MED: lambda numbers: math.floor(statistics.median(numbers)),
                lists.SM: lambda numbers: sum(numbers) % 10,
            }[operator]
            stack[-1].append(kind(numbers))
        else:
            stack.append([token])
    ((value,),) = stack
    return value


@pytest.mark.parametrize(("length", "shortest"), [(20, 1), (64, 8), (700, 300)])
def test_expressions_have_their_value(length, shortest):
    made = lists.listops(rng(1), 60, length=length, shortest=shortest, max_depth=10, max_args=10)
    for row, tokens in enumerate(made.tokens.tolist()):
        ((place, answer),) = asked(made, row)
        assert set(tokens[place + 1 :]) <= {lists.PAD}
        expression = tokens[: place + 1]
        assert shortest < len(expression) < length
        assert expression[-1] == lists.END
        assert value_of(expression) == answer
    assert {lists.MIN, lists.MAX, lists.MED, lists.SM} <= set(made.tokens.ravel().tolist())


def test_the_shape_of_a_tree_is_that_of_the_definition():
    tokens, children, parents, short = lists.expressions(rng(), 40_000, length=10**6, max_depth=3, max_args=4)
    assert short.all()
    assert len(tokens) == 3
    for level in range(2):
        inner = children[level] > 0
        assert abs(inner.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / inner.size)
        shares = np.bincount(children[level][inner], minlength=5)[2:] / inner.sum()
        assert abs(shares - 1 / 3).max() < 5 * math.sqrt(1 / 3 / inner.sum())
        assert (np.bincount(parents[level + 1], minlength=inner.size) == children[level]).all()
    assert not children[2].any()


def test_expressions_that_hardly_come_up_are_refused(monkeypatch):
    monkeypatch.setattr(lists, "GIVE_UP", 3)
    with pytest.raises(InvalidValue, match="length=900 is not possible with shortest=800, max_depth=2"):
        lists.listops(rng(), 1, length=900, shortest=800, max_depth=2, max_args=3)


# ----- Pathfinder


def test_curves_keep_their_rules():
    long, short = curves(rng(), 400, edge=24, contour=4, distractors=2)
    assert len(long) > 20
    assert short.shape[1] == 2  # a third of four dashes, twice
    ends, begins = long[:, :, :, 1], long[:, :, :, 0]
    np.testing.assert_allclose(np.hypot(*np.moveaxis(ends - begins, -1, 0)), DASH)
    assert long.min() >= PADDING
    assert long.max() <= 24 - 1 - PADDING
    way = ends - begins
    turn = np.arctan2(way[..., 0], way[..., 1])
    turned = np.abs((np.diff(turn, axis=2) + np.pi) % (2 * np.pi) - np.pi)
    assert turned.max() <= np.pi / 2
    apart = np.hypot(*np.moveaxis(long[:, 0, 0, 0] - long[:, 1, 0, 0], -1, 0))
    assert abs(apart - 5).max() <= 2 * MARGIN  # the gap before each first dash points anywhere
    for image in range(len(long)):
        dashes = np.concatenate([long[image].reshape(-1, 2, 2), short[image]])
        dashes = dashes[np.isfinite(dashes).all((1, 2))]
        near = distance(dashes.mean(1)[None], dashes[None])[0]
        for a, b in itertools.combinations(range(len(dashes)), 2):
            if not (a // 4 == b // 4 and b - a == 1):
                assert near[a, b] >= 2 * MARGIN - 1e-9
    assert np.isfinite(short).all((1, 2, 3)).mean() > 0.5


def test_an_image_shows_two_discs_and_the_answer_says_whether_they_share_a_curve(monkeypatch):
    from foveate.tasks.probing import pathfinder as module

    kept = []
    picture = module.picture
    monkeypatch.setattr(module, "picture", lambda *given: kept.append(given) or picture(*given))
    made = pathfinder(rng(3), 60, edge=20, contour=3, distractors=1)
    ((dashes, discs, _),) = kept
    for row in range(60):
        one, two = dashes[row, :3], dashes[row, 3:6]
        begin, end = discs[row]
        first = 0 if (begin == one[0, 0]).all() else 1
        last = 0 if (end == one[-1, 1]).all() else 1
        assert (begin == (one, two)[first][0, 0]).all()
        assert (end == (one, two)[last][-1, 1]).all()
        assert asked(made, row) == [(399, YES if first == last else NO)]
        image = made.tokens[row].reshape(20, 20)
        for y, x in np.rint(discs[row]).astype(int):
            assert image[y, x] == 255
    assert abs((made.answers == YES).mean() - 0.5) < 0.3
    assert made.tokens.min() == 0
    assert made.tokens.max() == 255


def test_curves_without_room_are_refused(monkeypatch):
    monkeypatch.setattr("foveate.tasks.probing.pathfinder.GIVE_UP", 1)
    with pytest.raises(InvalidValue, match="contour=20 is not possible: two such curves hardly fit on 12 x 12 pixels"):
        pathfinder(rng(), 2, edge=12, contour=20, distractors=0)


# ----- state tracking


@pytest.mark.parametrize(("group", "size", "commutes"), [("parity", 2, True), ("s3", 6, False), ("a5", 60, False)])
def test_tables_are_those_of_groups(group, size, commutes):
    table = product_table(group)
    every = np.arange(size)
    assert table.shape == (size, size)
    assert (table[0] == every).all()
    assert (table[:, 0] == every).all()
    assert all(sorted(row) == every.tolist() for row in table.tolist())
    assert (table[table] == table[:, table]).all()  # (a b) c = a (b c)
    assert (table == table.T).all() == commutes


def test_products_are_taken_one_by_one():
    for group in ("parity", "s5"):
        table = product_table(group)
        made = word_problem(rng(), 20, length=9, group=group)
        for row, tokens in enumerate(made.tokens.tolist()):
            held = 0
            for place, (token, (asked_at, answer)) in enumerate(zip(tokens, asked(made, row), strict=True)):
                held = int(table[held, token])
                assert (asked_at, answer) == (place, held)
        if group == "parity":
            assert (made.answers == np.cumsum(made.tokens, 1) % 2).all()

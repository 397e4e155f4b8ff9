"""ListOps: a nested expression is read, its value is asked for at its end.

Nangia and Bowman, "ListOps: A Diagnostic Dataset for Latent Tree Learning" (2018, arXiv 1804.06028), with the
parameters of Tay et al., "Long Range Arena" (2020, arXiv 2011.04006, section 2.2.1; code
google-research/long-range-arena): a node above level ``max_depth`` is an operator with chance 1/4, one of MIN, MAX, MED
(the median, rounded down) and SM (the sum modulo 10), over 2 to ``max_args`` nodes; every other node is a digit. Kept
are expressions whose tokens (digits, operators and closing brackets; round brackets do not count and are not read)
number more than ``shortest`` and fewer than ``length``.

The release draws trees one by one in Python. Here a level of many trees is drawn at once, which gives the same
distribution.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from ...errors import InvalidValue, invalid
from ...registry import register
from ...spec import TaskSpec
from .base import ProbeTask
from .draws import Drawn, drawn

#: Tokens 0 to 9 are digits; the operators follow, then the closing bracket and padding.
MIN, MAX, MED, SM, END, PAD = range(10, 16)
OPERATOR = 0.25
#: Trees that are drawn at once, and how many draws in vain are given up.
AT_ONCE, GIVE_UP = 4096, 400


def expressions(
    generator: np.random.Generator, trees: int, *, length: int, max_depth: int, max_args: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Random trees, level by level; one that has ``length`` tokens or more is not drawn to its end.

    Returns:
        For every level: the token of every node (digit or operator), its number of children, and the index of its
        parent in the level above; siblings stand side by side. Then, for every tree, whether it has fewer tokens than
        ``length``.
    """
    tokens, children, parents = [], [], []
    above, tree, sizes = np.zeros(trees, np.int64), np.arange(trees), np.ones(trees, np.int64)
    for level in range(1, max_depth + 1):
        nodes = len(tree)
        inner = generator.random(nodes) <= OPERATOR if level < max_depth else np.zeros(nodes, bool)
        digit, operator = generator.integers(0, 10, nodes), generator.integers(MIN, END, nodes)
        count = np.where(inner, generator.integers(2, max_args + 1, nodes), 0)
        sizes += np.bincount(tree, count + inner, minlength=trees).astype(np.int64)  # operands and the bracket
        count[sizes[tree] >= length] = 0
        tokens.append(np.where(inner, operator, digit))
        children.append(count)
        parents.append(above)
        above, tree = np.repeat(np.arange(nodes), count), np.repeat(tree, count)
        if not len(tree):
            break
    return tokens, children, parents, sizes < length


def values_and_sizes(
    tokens: list[np.ndarray], children: list[np.ndarray], parents: list[np.ndarray], max_args: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Value and number of tokens of every node, by level, from the deepest up."""
    values, sizes = [t.copy() for t in tokens], [np.ones(len(t), np.int64) for t in tokens]
    for level in range(len(tokens) - 1, -1, -1):
        inner = np.flatnonzero(children[level])
        if not len(inner):
            continue
        below, count = values[level + 1], children[level][inner]
        first = np.cumsum(count) - count
        sizes[level][inner] = 2 + np.add.reduceat(sizes[level + 1], first)
        table = np.full((len(inner), max_args), 10)  # sorted, what is no child comes last
        column = np.arange(len(below)) - np.repeat(first, count)
        table[np.repeat(np.arange(len(inner)), count), column] = below
        table.sort(1)
        low, high, last = (
            np.take_along_axis(table, c[:, None], 1)[:, 0] for c in ((count - 1) // 2, count // 2, count - 1)
        )
        total = np.add.reduceat(below, first) % 10
        kind = tokens[level][inner] - MIN
        values[level][inner] = np.stack([table[:, 0], last, (low + high) // 2, total])[kind, np.arange(len(inner))]
    return values, sizes


def listops(
    generator: np.random.Generator, rows: int, *, length: int, shortest: int, max_depth: int, max_args: int
) -> Drawn:
    """ListOps, see the module.

    Args:
        generator: source of randomness.
        rows: samples.
        length, shortest: tokens of an expression, fewer and more than these.
        max_depth: levels of a tree.
        max_args: operands of an operator.

    Raises:
        InvalidValue: such expressions hardly ever come up.
    """
    texts, answers = np.full((0, length - 1), PAD), np.zeros(0, np.int64)
    tries = 0
    while len(texts) < rows:
        tokens, children, parents, short = expressions(
            generator, AT_ONCE, length=length, max_depth=max_depth, max_args=max_args
        )
        values, sizes = values_and_sizes(tokens, children, parents, max_args)
        kept = np.flatnonzero(short & (sizes[0] > shortest))
        tries += 1
        if tries > GIVE_UP and not len(texts):
            raise InvalidValue(
                f"length={length} is not possible with shortest={shortest}, max_depth={max_depth} and "
                f"max_args={max_args}: hardly any expression has so many tokens."
            )
        made = np.full((len(kept), length - 1), PAD)
        tree = np.full(len(tokens[0]), -1)
        tree[kept] = np.arange(len(kept))
        start = np.zeros(len(tokens[0]), np.int64)
        for level, token in enumerate(tokens):
            if level:
                tree, start = _below(tree, start, children[level - 1], parents[level], sizes[level])
            here = tree >= 0
            made[tree[here], start[here]] = token[here]
            inner = here & (children[level] > 0)
            made[tree[inner], start[inner] + sizes[level][inner] - 1] = END
        texts, answers = np.concatenate([texts, made]), np.concatenate([answers, values[0][kept]])
    texts, answers = texts[:rows], answers[:rows, None]
    return drawn(texts, (texts != PAD).sum(1, keepdims=True) - 1, answers)


def _below(
    tree: np.ndarray, start: np.ndarray, children: np.ndarray, parents: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tree and first place of every node of the next level: behind its operator and the siblings before it."""
    before = np.cumsum(sizes) - sizes
    first = (np.cumsum(children) - children)[parents]
    return tree[parents], start[parents] + 1 + before - before[first]


@register("task", "listops")
class ListOpsTask(ProbeTask):
    """ListOps (:mod:`foveate.tasks.probing.listops`).

    Make it with :meth:`prepare`. Batches: see :mod:`foveate.tasks.next_token`. Metric: ``accuracy``.
    """

    spec: ClassVar[TaskSpec] = TaskSpec(
        reads="tokens",
        rank=1,
        metrics=("accuracy",),
        higher_is_better=True,
        baselines=("token_frequencies",),
        shortlist=("softmax_attention", "lightning_attention", "mamba", "gated_conv"),
        models_of="language",
    )
    stem = "listops"
    padded = True
    sizes = {
        "small": {"": {"length": 64, "shortest": 8, "max_depth": 10, "max_args": 10}},
        "published": {
            "": {
                "length": 2000,
                "shortest": 500,
                "max_depth": 10,
                "max_args": 10,
                "samples": 96_000,
                "held_out": 2000,
            }
        },
    }

    @classmethod
    def prepare(
        cls,
        *,
        length: int | None = None,
        shortest: int | None = None,
        max_depth: int | None = None,
        max_args: int | None = None,
        test_lengths: str | None = None,
        samples: int | None = None,
        held_out: int | None = None,
        data_seed: int = 0,
        scale: str = "small",
    ) -> Self:
        """Draw the samples.

        Args:
            length, shortest: tokens of an expression: fewer and more than these.
            max_depth: levels of a tree.
            max_args: operands of an operator, at most.
            test_lengths: lengths, by commas, at which the test is repeated, with more tokens than in training where
                they are larger; None: none.
            samples, held_out, data_seed, scale: as in :meth:`RecallTask.prepare`.

        Raises:
            InvalidType, InvalidValue: an option is not possible; the message names it.
        """
        options = {"length": length, "shortest": shortest, "max_depth": max_depth, "max_args": max_args}
        return cls.made(options, scale, "", test_lengths, samples, held_out, data_seed)

    @classmethod
    def check(cls, options: dict[str, Any], length: int) -> None:
        """See :meth:`ProbeTask.check`."""
        if options["max_args"] < 2:
            raise invalid("max_args", options["max_args"], "an operator has at least 2 operands")
        if length < options["shortest"] + 2:
            raise invalid("length", length, f"it must be at least 2 above shortest={options['shortest']}")

    @classmethod
    def vocabulary_of(cls, options: dict[str, Any]) -> int:
        """See :meth:`ProbeTask.vocabulary_of`."""
        return PAD + 1

    @classmethod
    def sample(
        cls, options: dict[str, Any], length: int, generator: np.random.Generator, numbers: np.ndarray, train: bool
    ) -> Drawn:
        """See :meth:`ProbeTask.sample`."""
        given = {name: options[name] for name in ("max_depth", "max_args")}
        # Longer tests are of longer expressions, not of any up to their length.
        shortest = options["shortest"] if length <= options["length"] else options["length"]
        return listops(generator, len(numbers), length=length, shortest=shortest, **given)

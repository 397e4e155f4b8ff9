"""State tracking: after each element of a finite group, the product of all that were read.

The word problem of Merrill, Petty and Sabharwal, "The Illusion of State in State-Space Models" (2024, arXiv 2404.08819,
section 5): one token per element, drawn uniformly; asked for at every place is ``g_1 g_2 ... g_t``. For the group of
two elements this is parity; for the symmetric group of five things (``s5``) it is complete for the class NC1, which a
fixed number of layers of attention or of a diagonal state space model cannot solve at every length.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import Any, ClassVar, Self

import numpy as np

from ...registry import register
from ...spec import TaskSpec
from .base import ProbeTask, choice
from .draws import Drawn, drawn

GROUPS = ("parity", "s3", "a5", "s5")


@cache
def product_table(group: str) -> np.ndarray:
    """``table[a, b]`` is the number of the product ``a b``, which does ``b`` first; element 0 changes nothing."""
    things = {"parity": 2, "s3": 3, "a5": 5, "s5": 5}[group]
    elements = np.array(list(permutations(range(things))))
    if group == "a5":
        moved = [(elements[:, i] > elements[:, j]) for i in range(things) for j in range(i + 1, things)]
        elements = elements[np.sum(moved, 0) % 2 == 0]
    place = things ** np.arange(things)
    number = {code: i for i, code in enumerate((elements @ place).tolist())}
    products = elements[:, elements] @ place  # a after b: elements[a][elements[b]]
    return np.vectorize(number.__getitem__)(products)


def word_problem(generator: np.random.Generator, rows: int, *, length: int, group: str) -> Drawn:
    """The word problem, see the module.

    Args:
        generator: source of randomness.
        rows: samples.
        length: elements of a sample.
        group: "parity", "s3", "a5" or "s5".
    """
    table = product_table(group)
    tokens = generator.integers(0, len(table), (rows, length))
    answers, held = np.empty_like(tokens), np.zeros(rows, np.int64)
    for place in range(length):
        held = table[held, tokens[:, place]]
        answers[:, place] = held
    return drawn(tokens, range(length), answers)


@register("task", "state-tracking")
class StateTrackingTask(ProbeTask):
    """State tracking (:mod:`foveate.tasks.probing.state_tracking`).

    Make it with :meth:`prepare`. Batches: see :mod:`foveate.tasks.next_token`. Metrics: ``accuracy``, the share of
    right products, and ``exact``, the share of samples without a fault.
    """

    spec: ClassVar[TaskSpec] = TaskSpec(
        reads="tokens",
        rank=1,
        metrics=("accuracy", "exact"),
        higher_is_better=True,
        baselines=("token_frequencies",),
        shortlist=("softmax_attention", "lightning_attention", "mamba", "gru"),
        models_of="language",
    )
    stem = "state_tracking"
    times = (2, 4)
    sizes = {
        "small": {"": {"length": 16}},
        "published": {"": {"length": 25, "samples": 1_000_000}},
    }

    @classmethod
    def prepare(
        cls,
        *,
        group: str = "s5",
        length: int | None = None,
        test_lengths: str | None = None,
        samples: int | None = None,
        held_out: int | None = None,
        data_seed: int = 0,
        scale: str = "small",
    ) -> Self:
        """Draw the samples.

        Args:
            group: "parity", "s3", "a5" or "s5".
            length: elements of a sample.
            test_lengths, samples, held_out, data_seed, scale: as in :meth:`RecallTask.prepare`.

        Raises:
            InvalidType, InvalidValue: an option is not possible; the message names it.
        """
        choice("group", group, GROUPS)
        return cls.made({"group": group, "length": length}, scale, "", test_lengths, samples, held_out, data_seed)

    @classmethod
    def check(cls, options: dict[str, Any], length: int) -> None:
        """See :meth:`ProbeTask.check`."""

    @classmethod
    def vocabulary_of(cls, options: dict[str, Any]) -> int:
        """See :meth:`ProbeTask.vocabulary_of`."""
        return len(product_table(options["group"]))

    @classmethod
    def sample(
        cls, options: dict[str, Any], length: int, generator: np.random.Generator, numbers: np.ndarray, train: bool
    ) -> Drawn:
        """See :meth:`ProbeTask.sample`."""
        return word_problem(generator, len(numbers), length=length, group=options["group"])

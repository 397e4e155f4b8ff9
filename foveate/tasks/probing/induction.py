"""Induction heads: after a sign that was read once before, say what followed it then.

Olsson et al., "In-context Learning and Induction Heads" (2022, arXiv 2209.11895), as the task of Gu and Dao, "Mamba"
(2023, arXiv 2312.00752, section 4.1.2 and appendix E.1): random tokens, the sign at a random place among them and again
at the end; asked for is the token behind the first. Trained on 256 tokens, tested on 64 to 1,048,576.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from ...errors import invalid
from ...registry import register
from ...spec import TaskSpec
from .base import ProbeTask
from .draws import Drawn, drawn


def induction(generator: np.random.Generator, rows: int, *, length: int, vocabulary: int) -> Drawn:
    """Induction heads, see the module.

    Args:
        generator: source of randomness.
        rows: samples.
        length: tokens of a sample, both signs included.
        vocabulary: different tokens; the last one is the sign.
    """
    tokens = generator.integers(0, vocabulary - 1, (rows, length))
    place = generator.integers(0, length - 2, (rows, 1))
    np.put_along_axis(tokens, place, vocabulary - 1, 1)
    tokens[:, -1] = vocabulary - 1
    return drawn(tokens, [length - 1], np.take_along_axis(tokens, place + 1, 1))


@register("task", "induction")
class InductionTask(ProbeTask):
    """Induction heads (:mod:`foveate.tasks.probing.induction`).

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
    stem = "induction"
    times = (2, 4, 16)
    sizes = {
        "small": {"": {"length": 64, "vocabulary": 16}},
        "published": {"": {"length": 256, "vocabulary": 16}},
    }

    @classmethod
    def prepare(
        cls,
        *,
        length: int | None = None,
        vocabulary: int | None = None,
        test_lengths: str | None = None,
        samples: int | None = None,
        held_out: int | None = None,
        data_seed: int = 0,
        scale: str = "small",
    ) -> Self:
        """Draw the samples.

        Args:
            length: tokens of a sample, both signs included.
            vocabulary: different tokens, the sign included.
            test_lengths, samples, held_out, data_seed, scale: as in :meth:`RecallTask.prepare`; by default the test is
                repeated at 2, 4 and 16 times ``length``.

        Raises:
            InvalidType, InvalidValue: an option is not possible; the message names it.
        """
        options = {"length": length, "vocabulary": vocabulary}
        return cls.made(options, scale, "", test_lengths, samples, held_out, data_seed)

    @classmethod
    def check(cls, options: dict[str, Any], length: int) -> None:
        """See :meth:`ProbeTask.check`."""
        if length < 3:
            raise invalid("length", length, "at least 3 are needed: the sign, what follows it, and the sign again")
        if options["vocabulary"] < 3:
            raise invalid("vocabulary", options["vocabulary"], "at least 3 are needed: the sign and two others")

    @classmethod
    def vocabulary_of(cls, options: dict[str, Any]) -> int:
        """See :meth:`ProbeTask.vocabulary_of`."""
        return options["vocabulary"]

    @classmethod
    def sample(
        cls, options: dict[str, Any], length: int, generator: np.random.Generator, numbers: np.ndarray, train: bool
    ) -> Drawn:
        """See :meth:`ProbeTask.sample`."""
        return induction(generator, len(numbers), length=length, vocabulary=options["vocabulary"])

"""Copying: what was read must be said again.

Two published forms.

``delay``: Arjovsky, Shah and Bengio, "Unitary Evolution Recurrent Neural Networks" (2016, arXiv 1511.06464, section
4.1): ``count`` data tokens of 8 kinds, ``length - 1`` blanks, one sign, ``count`` blanks, at which the data tokens must
be said.

``string``: Jelassi et al., "Repeat After Me: Transformers are Better than State Space Models at Copying" (2024, arXiv
2402.01032, section 4.1; code sjelassi/transformers_ssm_copy): a sign, a string of letters, a second sign; then the
string and a full stop must be said, each next letter after the ones before. Training strings are of all lengths from
``shortest`` to ``length``; tests are of their length exactly. The paper packs several strings into a context; here each
is a sample.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from ...errors import invalid
from ...registry import register
from ...spec import TaskSpec
from .base import ProbeTask, choice
from .draws import Drawn, drawn

FORMS = ("string", "delay")
#: Signs of the form "string", behind the letters.
BEGIN, AGAIN, STOP, PAD = range(4)


def delayed_copy(generator: np.random.Generator, rows: int, *, length: int, count: int, letters: int) -> Drawn:
    """The form "delay", see the module: tokens ``0 ... letters - 1`` are data, then the blank, then the sign."""
    data = generator.integers(0, letters, (rows, count))
    tokens = np.full((rows, length + 2 * count), letters)
    tokens[:, :count] = data
    tokens[:, count + length - 1] = letters + 1
    return drawn(tokens, range(length + count, length + 2 * count), data)


def string_copy(
    generator: np.random.Generator, rows: int, *, length: int, shortest: int, letters: int, width: int
) -> Drawn:
    """The form "string", see the module.

    Args:
        generator: source of randomness.
        rows: samples.
        length, shortest: letters of a string, at most and at least, uniformly.
        letters: kinds of them; the four signs follow: begin, again, stop, padding.
        width: strings that samples have room for, at least ``length``.
    """
    text = generator.integers(0, letters, (rows, width))
    sizes = generator.integers(shortest, length + 1, rows)[:, None]
    column = np.arange(width + 1)
    answers = np.where(column < sizes, np.pad(text, ((0, 0), (0, 1))), letters + STOP)
    places = np.where(column <= sizes, sizes + 1 + column, -1)
    tokens = np.full((rows, 2 * width + 2), letters + PAD)
    tokens[:, 0] = letters + BEGIN
    place = np.arange(2 * width + 1)
    first, second = place < sizes, (place > sizes) & (place <= 2 * sizes)
    letter = np.take_along_axis(text, np.where(first, place, place - sizes - 1) % width, 1)
    tokens[:, 1:] = np.where(first | second, letter, letters + PAD)
    np.put_along_axis(tokens, sizes + 1, letters + AGAIN, 1)
    return drawn(tokens, places, answers)


@register("task", "copying")
class CopyingTask(ProbeTask):
    """Copying (:mod:`foveate.tasks.probing.copying`).

    Make it with :meth:`prepare`. Batches: see :mod:`foveate.tasks.next_token`. Metrics: ``accuracy``, the share of
    right tokens, averaged over samples, and ``exact``, the share of samples without a fault.
    """

    spec: ClassVar[TaskSpec] = TaskSpec(
        reads="tokens",
        rank=1,
        metrics=("accuracy", "exact"),
        higher_is_better=True,
        baselines=("token_frequencies",),
        shortlist=("softmax_attention", "lightning_attention", "mamba", "gated_conv"),
        models_of="language",
    )
    stem = "copying"
    times = (2, 4)
    padded = True
    sizes = {
        "small": {
            "string": {"length": 16, "shortest": 4, "letters": 26},
            "delay": {"length": 32, "count": 10, "letters": 8},
        },
        "published": {
            "string": {"length": 20, "shortest": 5, "letters": 26},
            "delay": {"length": 500, "count": 10, "letters": 8},
        },
    }

    @classmethod
    def prepare(
        cls,
        *,
        form: str = "string",
        length: int | None = None,
        shortest: int | None = None,
        count: int | None = None,
        letters: int | None = None,
        test_lengths: str | None = None,
        samples: int | None = None,
        held_out: int | None = None,
        data_seed: int = 0,
        scale: str = "small",
    ) -> Self:
        """Draw the samples.

        Args:
            form: "string" or "delay".
            length: letters of the longest string in training, or the delay in tokens.
            shortest: letters of the shortest string in training.
            count: data tokens of a delayed copy.
            letters: kinds of data tokens.
            test_lengths, samples, held_out, data_seed, scale: as in :meth:`RecallTask.prepare`.

        Raises:
            InvalidType, InvalidValue: an option is not possible; the message names it.
        """
        choice("form", form, FORMS)
        options = {"form": form, "length": length, "letters": letters}
        own, other = ({"shortest": shortest}, {"count": count})[:: 1 if form == "string" else -1]
        for name, value in other.items():
            if value is not None:
                raise invalid(name, value, f"form={form!r} has no such option")
        return cls.made(options | own, scale, form, test_lengths, samples, held_out, data_seed)

    @classmethod
    def check(cls, options: dict[str, Any], length: int) -> None:
        """See :meth:`ProbeTask.check`."""
        if options["letters"] < 2:
            raise invalid("letters", options["letters"], "at least 2 kinds are needed")
        if options["form"] == "string" and options["shortest"] > options["length"]:
            raise invalid("shortest", options["shortest"], f"it cannot be above length={options['length']}")

    @classmethod
    def vocabulary_of(cls, options: dict[str, Any]) -> int:
        """See :meth:`ProbeTask.vocabulary_of`."""
        return options["letters"] + (4 if options["form"] == "string" else 2)

    @classmethod
    def sample(
        cls, options: dict[str, Any], length: int, generator: np.random.Generator, numbers: np.ndarray, train: bool
    ) -> Drawn:
        """See :meth:`ProbeTask.sample`."""
        rows, letters = len(numbers), options["letters"]
        if options["form"] == "delay":
            return delayed_copy(generator, rows, length=length, count=options["count"], letters=letters)
        shortest = options["shortest"] if train else length
        return string_copy(generator, rows, length=length, shortest=shortest, letters=letters, width=length)

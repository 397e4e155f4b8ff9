"""Selective copying: the tokens that stood among noise must be said in their order.

Jing et al., "Gated Orthogonal Recurrent Units" (2019, arXiv 1706.02761, the denoising task), in the form of Gu and Dao,
"Mamba" (2023, arXiv 2312.00752, section 4.1.1 and appendix E.1), with the generator of the S4 release: ``count`` data
tokens at random places among ``length`` tokens that are noise otherwise; then ``count`` signs, at which the data tokens
must be said.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from ...errors import invalid
from ...registry import register
from ...spec import TaskSpec
from .base import ProbeTask
from .draws import Drawn, drawn


def selective_copy(generator: np.random.Generator, rows: int, *, length: int, count: int, vocabulary: int) -> Drawn:
    """Selective copying, see the module: token 0 is noise, ``vocabulary - 1`` the sign, those between are data."""
    data = generator.integers(1, vocabulary - 1, (rows, count))
    places = np.sort(np.argsort(generator.random((rows, length)), axis=1)[:, :count], axis=1)
    tokens = np.zeros((rows, length + count), np.int64)
    np.put_along_axis(tokens, places, data, 1)
    tokens[:, length:] = vocabulary - 1
    return drawn(tokens, range(length, length + count), data)


@register("task", "selective-copying")
class SelectiveCopyingTask(ProbeTask):
    """Selective copying (:mod:`foveate.tasks.probing.selective_copying`).

    Make it with :meth:`prepare`. Batches: see :mod:`foveate.tasks.next_token`. Metrics: ``accuracy``, the share of
    right tokens, and ``exact``, the share of samples without a fault.
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
    stem = "selective_copying"
    times = (2, 4)
    sizes = {
        "small": {"": {"length": 64, "count": 8, "vocabulary": 16}},
        "published": {"": {"length": 4096, "count": 16, "vocabulary": 16}},
    }

    @classmethod
    def prepare(
        cls,
        *,
        length: int | None = None,
        count: int | None = None,
        vocabulary: int | None = None,
        test_lengths: str | None = None,
        samples: int | None = None,
        held_out: int | None = None,
        data_seed: int = 0,
        scale: str = "small",
    ) -> Self:
        """Draw the samples.

        Args:
            length: tokens among which the data tokens are; the signs follow.
            count: data tokens.
            vocabulary: different tokens, the noise and the sign included.
            test_lengths, samples, held_out, data_seed, scale: as in :meth:`RecallTask.prepare`.

        Raises:
            InvalidType, InvalidValue: an option is not possible; the message names it.
        """
        options = {"length": length, "count": count, "vocabulary": vocabulary}
        return cls.made(options, scale, "", test_lengths, samples, held_out, data_seed)

    @classmethod
    def check(cls, options: dict[str, Any], length: int) -> None:
        """See :meth:`ProbeTask.check`."""
        if options["vocabulary"] < 4:
            raise invalid(
                "vocabulary", options["vocabulary"], "at least 4 are needed: noise, sign and two kinds of data"
            )
        if options["count"] > length:
            raise invalid("count", options["count"], f"length={length} has no room for them")

    @classmethod
    def vocabulary_of(cls, options: dict[str, Any]) -> int:
        """See :meth:`ProbeTask.vocabulary_of`."""
        return options["vocabulary"]

    @classmethod
    def sample(
        cls, options: dict[str, Any], length: int, generator: np.random.Generator, numbers: np.ndarray, train: bool
    ) -> Drawn:
        """See :meth:`ProbeTask.sample`."""
        given = {name: options[name] for name in ("count", "vocabulary")}
        return selective_copy(generator, len(numbers), length=length, **given)

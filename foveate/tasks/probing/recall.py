"""Associative recall: pairs of a key and a value are read, then keys alone; each time its value is asked for.

Two published forms.

``mqar``: multi-query associative recall, Arora, Eyuboglu et al., "Zoology: Measuring and Improving Recall in Efficient
Language Models" (2023, arXiv 2312.04927, definition 3.1 and section 4.1; official code HazyResearch/zoology). Keys come
from the lower half of the vocabulary without 0, values from the upper half, none twice in a sample. After the pairs
``k1 v1 k2 v2 ...`` every key stands once more, at even distances ``2 g`` behind them, where ``g = 0, 1, ...`` is drawn
without replacement with chances ``~ (g + 1)^(power - 1)``; all other places hold 0 or random tokens.

``single``: Ba et al., "Using Fast Weights to Attend to the Recent Past" (2016, arXiv 1610.06258, section 4.1) in the
form of Fu et al., "Hungry Hungry Hippos" (2022, arXiv 2212.14052, section 3.1; code HazyResearch/safari): every sample
has a map of its own from keys to values; pairs of it follow each other, keys with repetition; then a sign and one of
the keys that were read.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from ...errors import InvalidValue, invalid
from ...registry import register
from ...spec import TaskSpec
from .base import ProbeTask, choice
from .draws import Drawn, distinct, drawn, weighted

FORMS, FILLS, STREAMS, LOSSES = ("mqar", "single"), ("zeros", "random"), ("fast", "zoology"), ("answers", "everything")


def gap_weights(length: int, pairs: int, power: float) -> np.ndarray:
    """Chances of the distances at which keys come again, up to a factor."""
    return power * np.arange(1, (length - 2 * pairs) // 2 + 1, dtype=np.float64) ** (power - 1)


def mqar(
    generator: np.random.Generator,
    rows: int,
    *,
    length: int,
    pairs: int,
    vocabulary: int,
    power: float = 0.01,
    fill: str = "zeros",
) -> Drawn:
    """Multi-query associative recall, see the module.

    Args:
        generator: source of randomness.
        rows: samples.
        length: tokens of a sample, even.
        pairs: of key and value; at most a quarter of ``length``.
        vocabulary: tokens that there are.
        power: of the law of the distances; 1 makes them uniform.
        fill: what stands where nothing is asked: "zeros", or "random" tokens, keys and values among them.
    """
    keys = distinct(generator, rows, pairs, 1, vocabulary // 2)
    values = distinct(generator, rows, pairs, vocabulary // 2, vocabulary)
    gaps = weighted(generator, rows, pairs, gap_weights(length, pairs, power))
    made = _put(keys, values, gaps, length)
    if fill == "random":
        noise = generator.integers(0, vocabulary, made.tokens.shape)
        made = drawn(np.where(made.tokens == 0, noise, made.tokens), made.places, made.answers)
    return made


def zoology_mqar(seed: int, rows: int, *, length: int, pairs: int, vocabulary: int, power: float = 0.01) -> Drawn:
    """The very samples that the official generator draws after ``numpy.random.seed(seed)``, without random fill.

    It draws sample by sample from NumPy's older generator, so a sample depends on how many there are. Slower than
    :func:`mqar`.
    """
    old = np.random.RandomState(seed)  # the stream that numpy.random.seed starts
    lower, upper = np.arange(1, vocabulary // 2), np.arange(vocabulary // 2, vocabulary)
    keys = np.stack([old.choice(lower, pairs, replace=False) for _ in range(rows)])
    values = np.stack([old.choice(upper, pairs, replace=False) for _ in range(rows)])
    chances = gap_weights(length, pairs, power)
    chances /= chances.sum()
    space = np.arange(len(chances))
    gaps = np.stack([old.choice(space, pairs, replace=False, p=chances) for _ in range(rows)])
    return _put(keys, values, gaps, length)


def _put(keys: np.ndarray, values: np.ndarray, gaps: np.ndarray, length: int) -> Drawn:
    rows, pairs = keys.shape
    tokens = np.zeros((rows, length), np.int64)
    tokens[:, 0 : 2 * pairs : 2] = keys
    tokens[:, 1 : 2 * pairs : 2] = values
    places = 2 * pairs + 2 * gaps
    np.put_along_axis(tokens, places, keys, 1)
    return drawn(tokens, places, values)


def single_recall(generator: np.random.Generator, rows: int, *, length: int, vocabulary: int) -> Drawn:
    """Associative recall with one query, see the module.

    Args:
        generator: source of randomness.
        rows: samples.
        length: tokens of a sample, even: pairs, the sign and the query.
        vocabulary: tokens that there are: keys, values, one that is never read, the sign.
    """
    words = vocabulary - 2
    keys, pairs = words // 2, (length - 2) // 2
    table = generator.integers(keys, words, (rows, keys))
    read = generator.integers(0, keys, (rows, pairs))
    tokens = np.empty((rows, length), np.int64)
    tokens[:, 0:-2:2] = read
    tokens[:, 1:-2:2] = np.take_along_axis(table, read, 1)
    present = np.zeros((rows, keys), bool)
    np.put_along_axis(present, read, True, 1)
    query = np.where(present, generator.random((rows, keys)), -1.0).argmax(1)
    tokens[:, -2], tokens[:, -1] = vocabulary - 1, query
    return drawn(tokens, [length - 1], np.take_along_axis(table, query[:, None], 1))


@register("task", "recall")
class RecallTask(ProbeTask):
    """Associative recall (:mod:`foveate.tasks.probing.recall`).

    Make it with :meth:`prepare`. Batches: see :mod:`foveate.tasks.next_token`. Metrics: ``accuracy``, the share of
    right values, and ``exact``, the share of samples with all values right.
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
    stem = "recall"
    times = (2, 4)
    sizes = {
        "small": {
            "mqar": {"length": 64, "pairs": 8, "vocabulary": 256},
            "single": {"length": 64, "vocabulary": 20},
        },
        "published": {
            "mqar": {"length": 256, "pairs": 16, "vocabulary": 8192, "samples": 100_000, "held_out": 3000},
            "single": {"length": 42, "vocabulary": 20, "samples": 5000, "held_out": 500},
        },
    }

    @classmethod
    def prepare(
        cls,
        *,
        form: str = "mqar",
        length: int | None = None,
        pairs: int | None = None,
        vocabulary: int | None = None,
        power: float = 0.01,
        fill: str = "zeros",
        stream: str = "fast",
        loss: str | None = None,
        test_lengths: str | None = None,
        samples: int | None = None,
        held_out: int | None = None,
        data_seed: int = 0,
        scale: str = "small",
    ) -> Self:
        """Draw the samples.

        Args:
            form: "mqar" or "single".
            length: tokens of a sample, even.
            pairs: keys of an MQAR sample; a single query's sample is filled with pairs.
            vocabulary: different tokens.
            power: of the law of MQAR's distances between a pair and its key's return.
            fill: "zeros" or "random" tokens where MQAR asks nothing.
            stream: "fast", or "zoology" for the samples of the official generator, which numbers its parts' seeds from
                ``data_seed`` on: training, validation, test, tests at other lengths.
            loss: what training asks for: "answers", or "everything", every next token; None: as published, everything
                for "single".
            test_lengths: lengths, by commas, at which the test is repeated; None: twice and four times; "none".
            samples, held_out: training samples; validation samples and as many test samples.
            data_seed: draws the samples; the same for every trial.
            scale: "small", what one core learns in minutes, or "published"; what is given by name wins.

        Raises:
            InvalidType, InvalidValue: an option is not possible; the message names it.
        """
        choice("form", form, FORMS)
        options = {"form": form, "length": length, "vocabulary": vocabulary}
        if form == "mqar":
            options |= {"pairs": pairs, "power": power, "fill": fill, "stream": stream}
        elif pairs is not None:
            raise invalid("pairs", pairs, "form='single' is filled with pairs, so its length says how many")
        options["loss"] = loss or ("answers" if form == "mqar" else "everything")
        return cls.made(options, scale, form, test_lengths, samples, held_out, data_seed)

    @classmethod
    def check(cls, options: dict[str, Any], length: int) -> None:
        """See :meth:`ProbeTask.check`."""
        vocabulary = options["vocabulary"]
        choice("loss", options["loss"], LOSSES)
        if length < 4 or length % 2:
            raise invalid("length", length, "an even number of at least 4 is needed, for keys and values alternate")
        if options["form"] == "single":
            if vocabulary < 6:
                raise invalid("vocabulary", vocabulary, "at least 6 are needed: two keys, two values and two signs")
            return
        pairs, power = options["pairs"], options["power"]
        choice("fill", options["fill"], FILLS)
        choice("stream", options["stream"], STREAMS)
        if pairs < 1 or 4 * pairs > length:
            raise invalid("pairs", pairs, f"between 1 and a quarter of length={length} are possible")
        if vocabulary <= options["length"]:
            raise invalid("vocabulary", vocabulary, f"it must be larger than length={options['length']}")
        if not power > 0:
            raise invalid("power", power, "a positive number is needed")
        if options["stream"] == "zoology" and options["fill"] == "random":
            raise InvalidValue("fill='random' is not possible with stream='zoology': the release does not seed it.")

    @classmethod
    def vocabulary_of(cls, options: dict[str, Any]) -> int:
        """See :meth:`ProbeTask.vocabulary_of`."""
        return options["vocabulary"]

    @classmethod
    def sample(
        cls, options: dict[str, Any], length: int, generator: np.random.Generator, numbers: np.ndarray, train: bool
    ) -> Drawn:
        """See :meth:`ProbeTask.sample`."""
        if options["form"] == "single":
            return single_recall(generator, len(numbers), length=length, vocabulary=options["vocabulary"])
        given = {name: options[name] for name in ("pairs", "vocabulary", "power", "fill")}
        return mqar(generator, len(numbers), length=length, **given)

    @classmethod
    def parts(cls, options: dict[str, Any], counts: dict[str, tuple[int, int]], seed: int) -> dict[str, Drawn]:
        """See :meth:`ProbeTask.parts`."""
        if options.get("stream") != "zoology":
            return super().parts(options, counts, seed)
        given = {name: options[name] for name in ("pairs", "vocabulary", "power")}
        return {
            part: zoology_mqar(seed + number, count, length=length, **given)
            for number, (part, (count, length)) in enumerate(counts.items())
        }

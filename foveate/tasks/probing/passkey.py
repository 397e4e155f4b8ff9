"""Passkey: a key of a few digits stands somewhere in a long filler and is asked for at its end.

Mohtashami and Jaggi, "Landmark Attention: Random-Access Infinite Context Length for Transformers" (2023, arXiv
2305.16300, section 4.2); over a grid of depths and lengths it is known as the needle in a haystack (Kamradt, 2023).

``text``: that paper's prompt, one token per character (ASCII): what is to be done, filler, the key, filler, the
question. The filler is one sentence after the other, cut anywhere, and starts anew behind the key. The paper draws keys
from 1 to 50,000; here all have the same number of digits, so that a sample has the same length whatever its key.

``tokens``: the same without language: filler of random tokens, the sign KEY and the digits, filler, the sign ASK.
Digits and signs do not occur in the filler.

Digits are asked for one after the other, each after the ones before; a sample counts if all are right.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from ...errors import invalid
from ...registry import register
from ...spec import TaskSpec
from .base import ProbeTask, choice
from .draws import Drawn, drawn

FORMS = ("tokens", "text")
#: Tokens 0 to 9 of the form "tokens" are digits.
KEY, ASK, FILLER = 10, 11, 12
#: The published prompt: the task, the filler, the two sentences with the key, the question.
TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
HIDDEN = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is "
ASCII = 128


def overhead(form: str, digits: int) -> int:
    """Tokens of a sample that are no filler."""
    if form == "tokens":
        return 2 * digits + 1
    return len(TASK) + len(HIDDEN.format(key="")) + 2 * digits + len(QUESTION) + digits - 1


def passkey_tokens(
    generator: np.random.Generator, before: np.ndarray, *, length: int, digits: int, vocabulary: int
) -> Drawn:
    """The form "tokens", see the module.

    Args:
        generator: source of randomness.
        before: int64 ``(samples,)``, filler in front of the key.
        length: tokens of a sample.
        digits: of the key.
        vocabulary: different tokens: ten digits, two signs, the filler.
    """
    key = generator.integers(0, 10, (len(before), digits))
    tokens = generator.integers(FILLER, vocabulary, (len(before), length))
    np.put_along_axis(tokens, before[:, None], KEY, 1)
    np.put_along_axis(tokens, before[:, None] + 1 + np.arange(digits), key, 1)
    tokens[:, length - digits] = ASK
    tokens[:, length - digits + 1 :] = key[:, :-1]
    return drawn(tokens, range(length - digits, length), key)


def passkey_text(generator: np.random.Generator, before: np.ndarray, *, length: int, digits: int) -> Drawn:
    """The form "text", see the module; arguments as of :func:`passkey_tokens`. The first digit is not 0."""
    filler = length - overhead("text", digits)
    keys = generator.integers(10 ** (digits - 1), 10**digits, len(before))
    grass = GRASS * (filler // len(GRASS) + 1)
    texts = []
    for first, key in zip(before.tolist(), keys.tolist(), strict=True):
        text = TASK + grass[:first] + HIDDEN.format(key=key) + grass[: filler - first] + QUESTION + str(key)
        texts.append(np.frombuffer(text.encode("ascii"), np.uint8))
    tokens = np.stack(texts)
    return drawn(tokens[:, :-1], range(length - digits, length), tokens[:, -digits:])


@register("task", "passkey")
class PasskeyTask(ProbeTask):
    """Passkey (:mod:`foveate.tasks.probing.passkey`).

    Make it with :meth:`prepare`. Batches: see :mod:`foveate.tasks.next_token`. Metrics: ``accuracy``, the share of keys
    with all digits right, and ``digits``, the share of right digits. The examples of the test hold the grid of accuracy
    over depth and length.
    """

    spec: ClassVar[TaskSpec] = TaskSpec(
        reads="tokens",
        rank=1,
        metrics=("accuracy", "digits"),
        higher_is_better=True,
        baselines=("token_frequencies",),
        shortlist=("softmax_attention", "lightning_attention", "mamba", "gated_conv"),
        models_of="language",
    )
    stem = "passkey"
    times = (2, 4, 16)
    all_or_nothing = True
    sizes = {
        "small": {
            "tokens": {"length": 128, "digits": 3, "vocabulary": 64, "depths": 5},
            "text": {"length": 512, "digits": 5, "depths": 5},
        },
        "published": {
            "tokens": {"length": 512, "digits": 5, "vocabulary": 256, "depths": 10},
            "text": {"length": 2048, "digits": 5, "depths": 10},
        },
    }

    @classmethod
    def prepare(
        cls,
        *,
        form: str = "tokens",
        length: int | None = None,
        digits: int | None = None,
        vocabulary: int | None = None,
        depths: int | None = None,
        test_lengths: str | None = None,
        samples: int | None = None,
        held_out: int | None = None,
        data_seed: int = 0,
        scale: str = "small",
    ) -> Self:
        """Draw the samples.

        Args:
            form: "tokens" or "text".
            length: tokens of a sample, question and all digits but the last included.
            digits: of the key.
            vocabulary: different tokens of the form "tokens": ten digits, two signs, and filler.
            depths: evenly spread places of the key in tests, from the beginning to the end of the filler; in training
                and validation it stands anywhere.
            test_lengths, samples, held_out, data_seed, scale: as in :meth:`RecallTask.prepare`; by default the test is
                repeated at 2, 4 and 16 times ``length``.

        Raises:
            InvalidType, InvalidValue: an option is not possible; the message names it.
        """
        choice("form", form, FORMS)
        options = {"form": form, "length": length, "digits": digits, "depths": depths}
        if form == "tokens":
            options["vocabulary"] = vocabulary
        elif vocabulary is not None:
            raise invalid("vocabulary", vocabulary, "form='text' has the characters of ASCII")
        return cls.made(options, scale, form, test_lengths, samples, held_out, data_seed)

    @classmethod
    def check(cls, options: dict[str, Any], length: int) -> None:
        """See :meth:`ProbeTask.check`."""
        form, digits = options["form"], options["digits"]
        if digits > 18:
            raise invalid("digits", digits, "at most 18 are possible")
        if length <= overhead(form, digits):
            least = overhead(form, digits) + 1
            raise invalid("length", length, f"{digits} digits, signs and one token of filler take {least}")
        if form == "tokens" and options["vocabulary"] <= FILLER:
            raise invalid("vocabulary", options["vocabulary"], f"at least {FILLER + 1} are needed")

    @classmethod
    def vocabulary_of(cls, options: dict[str, Any]) -> int:
        """See :meth:`ProbeTask.vocabulary_of`."""
        return options["vocabulary"] if options["form"] == "tokens" else ASCII

    @classmethod
    def group_names(cls, options: dict[str, Any]) -> list[str]:
        """The depths in per cent of the filler."""
        count = options["depths"]
        return [f"{100 * i / max(count - 1, 1):.0f} %" for i in range(count)]

    @classmethod
    def sample(
        cls, options: dict[str, Any], length: int, generator: np.random.Generator, numbers: np.ndarray, train: bool
    ) -> Drawn:
        """See :meth:`ProbeTask.sample`."""
        filler = length - overhead(options["form"], options["digits"])
        depth = numbers % options["depths"]
        before = np.rint(filler * depth / max(options["depths"] - 1, 1)).astype(np.int64)
        if train:
            before, depth = generator.integers(0, filler + 1, len(numbers)), np.zeros_like(numbers)
        given: dict[str, Any] = {"length": length, "digits": options["digits"]}
        if options["form"] == "text":
            made = passkey_text(generator, before, **given)
        else:
            made = passkey_tokens(generator, before, vocabulary=options["vocabulary"], **given)
        return drawn(made.tokens, made.places, made.answers, depth)

"""What all probes share: options, drawn parts, the model's call, scores by length and kind of sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InvalidType, invalid, unknown_name
from ..base import Batch, Evaluation
from ..next_token import NOT_ASKED, logits_of
from ..prepared import PreparedTask, scoring
from .draws import Drawn, draw
from .package import ProbeAnswers
from .predict import predict

SPLITS = ("train", "val", "test")
_STORED = ("tokens", "places", "answers", "groups")
#: Logits that scoring makes at once.
LOGITS = 1 << 24
SMALLEST = {torch.uint8: 1 << 8, torch.int16: 1 << 15, torch.int32: 1 << 31}


@dataclass(frozen=True, slots=True)
class ProbeInfo:
    """What a model needs to know to be built for a probe: what a language model does.

    Attributes:
        probe: registered name of the task.
        vocabulary: different tokens.
        context: tokens of the longest sample, tests at other lengths included.
        length: as the task's option of this name, of training, validation and test.
        lengths: of the further tests.
        packed: False: no two documents share a sample.
    """

    probe: str
    vocabulary: int
    context: int
    length: int
    lengths: tuple[int, ...] = ()
    packed: bool = False
    task: ClassVar[str] = "language"

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """From the plain values that ``dataclasses.asdict`` and JSON make of it."""
        return cls(**{**values, "lengths": tuple(values["lengths"])})


def further(length: int) -> str:
    """The name of the test part at another length."""
    return f"test_at_{length}"


def whole(option: str, value: Any, least: int) -> int:
    """A whole number of at least ``least``, or a sentence."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidType(f"{option}={value!r} is not possible: a whole number is needed.")
    if value < least:
        raise invalid(option, value, f"a whole number of at least {least} is needed")
    return value


def choice(option: str, value: Any, legal: tuple[str, ...]) -> None:
    """One of a few words, or a sentence."""
    if value not in legal:
        raise invalid(option, value, f"it must be {' or '.join(map(repr, legal))}")


class ProbeTask(PreparedTask):
    """A task whose samples are drawn: nothing is read from a file.

    A subclass says what its options mean (:meth:`check`, :meth:`vocabulary_of`) and draws samples (:meth:`sample`).
    Validation and test have seeds of their own. The test is repeated at other lengths; those scores are metrics of the
    test part, ``accuracy_at_512`` and so on, while validation, which chooses, sees the length of training alone.

    The samples of all parts stay what they are for all trials, as other tasks' do; a budget of more steps than there
    are samples passes over them again.
    """

    info_type = ProbeInfo
    info: ProbeInfo
    registered_as: ClassVar[tuple[str, str, str]]
    #: Options by scale and form ("" where there is one form), for those that are not given.
    sizes: ClassVar[dict[str, dict[str, dict[str, Any]]]]
    #: The default of ``test_lengths``, in multiples of ``length``.
    times: ClassVar[tuple[int, ...]] = ()
    #: A sample counts as right only if all its answers are.
    all_or_nothing: ClassVar[bool] = False
    #: Samples differ in length; batches end with their last answer.
    padded: ClassVar[bool] = False
    #: Samples of training, and of validation and test each, where a scale does not say.
    SAMPLES, HELD_OUT = 20_000, 1000

    def __init__(
        self, info: ProbeInfo, tensors: dict[str, Tensor], layout: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        """Use ``prepare`` or :meth:`load`.

        Args:
            tensors: what :class:`~foveate.tasks.probing.draws.Drawn` holds, by part.
            layout: "options" and "seed", of which new samples are drawn.
            facts: what :meth:`describe` returns.
        """
        super().__init__(info, tensors, layout, facts)
        self.sample_tokens = tensors["train.tokens"].shape[1]
        metrics = type(self).spec.metrics
        self.spec = replace(type(self).spec, test_metrics=(*metrics, *(f"accuracy_at_{n}" for n in info.lengths)))

    # ----- what a probe says of itself

    @classmethod
    def check(cls, options: dict[str, Any], length: int) -> None:
        """Refuse options that are not possible at this length."""
        raise NotImplementedError(f"{cls.__name__} does not check its options.")

    @classmethod
    def vocabulary_of(cls, options: dict[str, Any]) -> int:
        """Tokens that there are."""
        raise NotImplementedError(f"{cls.__name__} does not say its vocabulary.")

    @classmethod
    def sample(
        cls, options: dict[str, Any], length: int, generator: np.random.Generator, numbers: np.ndarray, train: bool
    ) -> Drawn:
        """Draw samples.

        Args:
            options: of ``prepare``, all filled in.
            length: in the place of ``options["length"]``.
            generator: source of randomness.
            numbers: int64, of the samples in their part.
            train: whether they are training or validation samples, which some probes draw otherwise than test samples.
        """
        raise NotImplementedError(f"{cls.__name__} does not draw samples.")

    @classmethod
    def parts(cls, options: dict[str, Any], counts: dict[str, tuple[int, int]], seed: int) -> dict[str, Drawn]:
        """Draw all parts.

        Args:
            counts: part to (samples, length), the training part first.
            seed: the option ``data_seed``.
        """
        return {part: cls.drawn_part(options, part, count, length, seed) for part, (count, length) in counts.items()}

    @classmethod
    def drawn_part(cls, options: dict[str, Any], part: str, count: int, length: int, seed: int) -> Drawn:
        """Draw one part, of any name."""

        def make(generator: np.random.Generator, numbers: np.ndarray) -> Drawn:
            return cls.sample(options, length, generator, numbers, part in ("train", "val"))

        return draw(make, count, length, cls.stem, seed, part)

    @classmethod
    def made(
        cls,
        options: dict[str, Any],
        scale: str,
        form: str,
        test_lengths: str | None,
        samples: int | None,
        held_out: int | None,
        data_seed: int,
    ) -> Self:
        """Fill in options, check them, draw everything; the arguments are those of ``prepare``."""
        choice("scale", scale, tuple(cls.sizes))
        defaults = {"samples": cls.SAMPLES, "held_out": cls.HELD_OUT, **cls.sizes[scale][form]}
        usual_train, usual_held = defaults.pop("samples"), defaults.pop("held_out")
        train = whole("samples", usual_train if samples is None else samples, 1)
        held = whole("held_out", usual_held if held_out is None else held_out, 1)
        whole("data_seed", data_seed, 0)
        given = {name: value for name, value in options.items() if value is not None}
        options = {**options, **defaults, **given}
        for name in defaults:
            whole(name, options[name], 1)
        length = options["length"]
        lengths = cls._lengths(test_lengths, length)
        for each in (length, *lengths):
            cls.check(options, each)
        counts = {"train": (train, length), "val": (held, length), "test": (held, length)}
        counts |= {further(n): (max(1, min(held, held * length // n)), n) for n in lengths}
        tensors = {}
        vocabulary = cls.vocabulary_of(options)
        kind = next(dtype for dtype, limit in SMALLEST.items() if vocabulary <= limit)
        for part, made in cls.parts(options, counts, data_seed).items():
            tensors[f"{part}.tokens"] = torch.from_numpy(made.tokens).to(kind)
            tensors |= {f"{part}.{name}": torch.from_numpy(getattr(made, name)).to(torch.int32) for name in _STORED[1:]}
        context = max(tensors[f"{part}.tokens"].shape[1] for part in counts)
        info = ProbeInfo(cls.registered_as[1], vocabulary, context, length, lengths)
        facts = {"source": "drawn", **{k: v for k, v in options.items() if v is not None}}
        facts |= {"samples": train, "held_out": held, "test_lengths": list(lengths), "data_seed": data_seed}
        facts |= {"vocabulary": vocabulary, "tokens": tensors["train.tokens"].shape[1], "sha256": _digest(tensors)}
        return cls(info, tensors, {"options": options, "seed": data_seed}, facts)

    @classmethod
    def _lengths(cls, text: str | None, length: int) -> tuple[int, ...]:
        if text is None:
            return tuple(n * length for n in cls.times)
        legal = "lengths by commas, such as 128,256, or 'none'"
        if not isinstance(text, str):
            raise InvalidType(f"test_lengths={text!r} is not possible: {legal}.")
        if text.strip() in ("", "none"):
            return ()
        try:
            lengths = [int(word) for word in text.split(",")]
        except ValueError as error:
            raise invalid("test_lengths", text, legal) from error
        if len(set(lengths)) < len(lengths) or min(lengths) < 1 or length in lengths:
            raise invalid("test_lengths", text, f"different ones that are not length={length} are needed")
        return tuple(sorted(lengths))

    # ----- what every task does

    def size(self, split: str) -> int:
        """Number of samples of "train", "val" or "test"; the tests at other lengths are not counted."""
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return len(self._tensors[f"{split}.tokens"])

    def scoring_size(self, split: str) -> int:
        """Samples of training length that scoring costs: the tests at other lengths read about as many tokens each."""
        return self.size(split) * (1 + len(self.info.lengths) if split == "test" else 1)

    def batch(self, split: str, index: Tensor) -> Batch:
        """Samples ``index`` (int64 ``(B,)``) of a split, or of a test at another length (``test_at_512``)."""
        if f"{split}.tokens" not in self._tensors:
            raise unknown_name("split", split, [name.partition(".")[0] for name in self._tensors])
        x, places, answers = (self._tensors[f"{split}.{name}"][index].long() for name in _STORED[:3])
        if self.padded:
            x = x[:, : int(places.max()) + 1]
        # One more column takes what is not asked for in this sample.
        y = torch.full((len(x), x.shape[1] + 1), NOT_ASKED)
        y.scatter_(1, torch.where(places < 0, x.shape[1], places), answers)
        batch = {"x": x, "y": y[:, :-1].contiguous()}
        if split == "train" and self.layout["options"].get("loss") == "everything":
            next_one = F.pad(x[:, 1:], (0, 1), value=NOT_ASKED)
            batch["trained"] = batch["y"].where(batch["y"] != NOT_ASKED, next_one)
        return batch

    def apply(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's logits ``(B, L, vocabulary)``.

        Raises:
            InvalidValue: the model returned another shape.
        """
        return logits_of(model, batch, self.info.vocabulary)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy over what is asked for; in training perhaps every next token (``trained`` in a batch)."""
        y = batch.get("trained", batch["y"])
        asked = y != NOT_ASKED
        return F.cross_entropy(self.apply(model, batch)[asked].float(), y[asked])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        """Score all samples of a split in order, "test" at all its lengths.

        ``examples`` of "test": ``{"lengths", "accuracy" (by length), "groups", "grid" (by group, by length)}``; groups
        are None where the probe has one kind of sample.
        """
        parts = [split, *(further(n) for n in self.info.lengths)] if split == "test" else [split]
        with scoring(model) as device:
            shares = {part: self._right(model, part, batch_size, device) for part in parts}
        first, *others = type(self).spec.metrics
        exact, share = ({p: values[i] for p, values in shares.items()} for i in (0, 1))
        primary, second = (exact, share) if self.all_or_nothing else (share, exact)
        metrics = {first: float(primary[split].mean())} | {name: float(second[split].mean()) for name in others}
        metrics |= {f"accuracy_at_{n}": float(primary[further(n)].mean()) for n in self.info.lengths if split == "test"}
        return Evaluation(metrics, primary[split], self._examples(primary) if split == "test" else {})

    def _right(self, model: nn.Module, part: str, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of every sample whether all answers are right, and the share that is, float64 ``(samples,)``."""
        samples, tokens = self._tensors[f"{part}.tokens"].shape
        rows = max(1, min(batch_size, LOGITS // (tokens * self.info.vocabulary)))
        every, share = [], []
        for index in torch.arange(samples).split(rows):
            batch = {name: value.to(device) for name, value in self.batch(part, index).items()}
            right, asked = self.apply(model, batch).argmax(-1) == batch["y"], batch["y"] != NOT_ASKED
            every.append((right == asked).all(1).double().cpu())
            share.append((right.sum(1).double() / asked.sum(1)).cpu())
        return torch.cat(every), torch.cat(share)

    def _examples(self, accuracy: dict[str, Tensor]) -> dict[str, Any]:
        order = sorted([(self.info.length, "test"), *((n, further(n)) for n in self.info.lengths)])
        count = len(self.group_names(self.layout["options"]))
        found: dict[str, Any] = {
            "lengths": [length for length, _ in order],
            "accuracy": [float(accuracy[part].mean()) for _, part in order],
            "groups": self.group_names(self.layout["options"]) or None,
        }
        if count:
            columns = []
            for _, part in order:
                groups, right = self._tensors[f"{part}.groups"].long(), accuracy[part]
                total = torch.bincount(groups, minlength=count)
                columns.append(torch.bincount(groups, right, minlength=count) / total)
            found["grid"] = [[None if v != v else v for v in row] for row in torch.stack(columns, 1).tolist()]
        return found

    @classmethod
    def group_names(cls, options: dict[str, Any]) -> list[str]:
        """What the numbers in ``groups`` stand for, in order; none: samples are all of one kind."""
        return []

    @classmethod
    def stored(cls, info: Mapping[str, Any]) -> set[str]:
        """Names of the tensors in the file."""
        parts = [*SPLITS, *(further(n) for n in info["lengths"])]
        return {f"{part}.{name}" for part in parts for name in _STORED}

    def package(self, model: nn.Module) -> ProbeAnswers:
        """The model with what new samples are drawn of."""
        return ProbeAnswers(model, self.info, **self.layout)

    @classmethod
    def unpack(cls, config: dict[str, Any], build: Callable[[ProbeInfo], nn.Module]) -> ProbeAnswers:
        """The wrapper around a model built anew, without its weights."""
        info = ProbeInfo.from_plain(config["info"])
        return ProbeAnswers(build(info), info, config["options"], config["seed"])

    #: What ``foveate predict`` calls.
    predict = staticmethod(predict)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all samples."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()

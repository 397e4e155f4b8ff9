"""The task: what is read, windows as batches, loss and scores."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue, unknown_name
from ...registry import register
from ...spec import TaskSpec
from ..base import Batch, Evaluation
from ..next_token import NOT_ASKED, logits_of, mean_loss
from ..prepared import PreparedTask, scoring
from .find_tokeniser import find_tokeniser
from .package import LOGITS, TextModel, window_nats
from .predict import predict
from .protocol import (
    SPLITS,
    LanguageInfo,
    Windows,
    borders,
    by_document,
    check_count,
    scoring_windows,
    shares_of,
    training_begin,
    training_count,
    training_step,
)
from .read import Documents
from .store import Tally, TokenStore, build
from .tokenise import CharacterTokeniser, Tokeniser

#: Targets of validation and test that are scored at most, unless told otherwise.
EVAL_TOKENS, TEST_TOKENS = 1 << 16, 1 << 20


@register("task", "language")
class LanguageTask(PreparedTask):
    """The next token of text.

    Make it with :meth:`prepare`. Batches are dictionaries, see :mod:`foveate.tasks.next_token`: ``x`` int64
    ``(B, context)``, ``y`` int64 ``(B, context)``, the token after each or -100, and, where there are several
    documents, ``segments`` int64 ``(B, context)``, the document of each token, counted from the window's first.

    A training sample is a place where a window begins: sample ``i`` is the ``i``-th such place, so that nothing is
    drawn and a resumed run sees the same bits.

    Metrics: ``bits_per_byte`` of UTF-8 text, ``nats_per_token``, ``perplexity``.
    """

    spec: ClassVar[TaskSpec] = TaskSpec(
        reads="tokens",
        rank=1,
        metrics=("bits_per_byte", "nats_per_token", "perplexity"),
        baselines=("token_frequencies", "ngram"),
        shortlist=(
            "softmax_attention",
            "sigmoid_attention",
            "lightning_attention",
            "lightning_attention_2",
            "transnormer_llm",
            "mamba",
            "mamba2",
            "selective_token_mixer",
            "window_attention",
            "tcnca",
            "landmark_attention",
            "titans_mac",
            "aaren",
            "gated_conv",
            "lstm",
            "gru",
        ),
    )
    info: LanguageInfo
    info_type = LanguageInfo
    stem = "language"

    def __init__(
        self, info: LanguageInfo, tensors: dict[str, Tensor], layout: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        """Use :meth:`prepare` or :meth:`load`.

        Args:
            tensors: ``starts`` of the documents and ``borders`` of the parts, int64.
            layout: "store", how the token file is to be read; "scored", most targets of "val" and "test"; "package",
                the options of :class:`TextModel`.
            facts: what :meth:`describe` returns.
        """
        super().__init__(info, tensors, layout, facts)
        self.sample_tokens = info.context
        self._store: TokenStore
        at = tensors["borders"].tolist()
        self._range = {split: (at[i], at[i + 1]) for i, split in enumerate(SPLITS)}
        stride = layout["package"]["stride"]
        self._windows: dict[str, Windows] = {
            split: scoring_windows(*self._range[split], info.context, stride, layout["scored"][split])
            for split in ("val", "test")
        }

    @classmethod
    def prepare(
        cls,
        source: str | Path | Sequence[str] | None = None,
        *,
        tokenizer: str | Path | None = None,
        context: int | None = None,
        column: str | None = None,
        encoding: str | None = None,
        split: str | None = None,
        split_seed: int = 0,
        stride: int | None = None,
        eval_tokens: int | None = None,
        test_tokens: int | None = None,
    ) -> Self:
        """Read text and tokenise it.

        Args:
            source: path of a text, JSON lines or Parquet file, or of a folder of such (each text file is a document);
                a list of texts; or None for the embedded text.
            tokenizer: "bytes" (default), "characters" (those that the text has), a ``tokenizer.json`` or its folder, a
                folder that transformers saved, or ``hub:user/name``.
            context: tokens of a sample; default 256.
            column: of tables and JSON lines; default "text".
            encoding: of text files; default UTF-8.
            split: shares "0.9/0.05/0.05" of training, validation and test: of documents, if there are at least
                :data:`~foveate.tasks.language.protocol.FEWEST_DOCUMENTS`, else of positions.
            split_seed: draws which documents.
            stride: tokens that a validation or test window scores, the rest of it being context; default: all of it.
            eval_tokens, test_tokens: score at most so many tokens of validation and test, in windows spread evenly;
                default 65,536 and 1,048,576.

        Raises:
            UnknownName, InvalidType, InvalidValue, MissingExtra: the source or an option is not possible; the message
                names it and says what to do.
        """
        if isinstance(split_seed, bool) or not isinstance(split_seed, int) or split_seed < 0:
            raise InvalidType(f"split_seed={split_seed!r} is not possible: a whole number of at least 0 is needed.")
        length = check_count("context", context, 256)
        scored = {
            "val": check_count("eval_tokens", eval_tokens, EVAL_TOKENS),
            "test": check_count("test_tokens", test_tokens, TEST_TOKENS),
        }
        package = {"stride": check_count("stride", stride, length, length)}
        shares = shares_of(split)
        documents = Documents(source, column=column, encoding="utf-8" if encoding is None else encoding)
        tokeniser = find_tokeniser(tokenizer) or CharacterTokeniser(
            "".join({c for d in documents for c in set(d.text)})
        )
        store, tally = build(documents, tokeniser)
        if not tally.names:
            raise InvalidValue(f"{documents.label!r} holds no text: all {tally.empty} documents of it are empty.")
        store, at, divided = _divided(store, tally, shares, split_seed, documents.label)
        info = LanguageInfo(tokeniser.vocabulary, length, len(tally.names) > 1)
        package |= {
            "tokeniser": tokeniser.plain,
            "reading": {"column": documents.column, "encoding": documents.encoding},
        }
        kept = {"dtype": store.dtype, "length": len(store), "widths": store.widths is not None}
        layout = {"store": kept, "scored": scored, "package": package}
        tensors = {"starts": torch.from_numpy(store.starts), "borders": torch.tensor(at)}
        made = cls(info, tensors, layout, {})
        made._store = store
        made._facts = made._describe(documents, tally, tokeniser, divided, split_seed)
        return made

    def size(self, split: str) -> int:
        """Number of windows: places where one may begin in "train", those that are scored in "val" and "test"."""
        begin, end = self._known(split)
        return training_count(end - begin, self.info.context) if split == "train" else len(self._windows[split])

    def batch(self, split: str, index: Tensor) -> Batch:
        """Windows ``index`` (int64 ``(B,)``) of a split."""
        begin, end = self._known(split)
        chosen, context = index.numpy(), self.info.context
        if split == "train":
            starts = first = begin + training_begin(chosen, end - begin, context)
            ends = np.minimum(starts + context, end)
        else:
            windows = self._windows[split]
            starts, first, ends = windows.begin[chosen], windows.first[chosen], windows.end[chosen]
        places = starts[:, None] + np.arange(context + 1)
        tokens = self._store.tokens[places.clip(max=len(self._store) - 1)].astype(np.int64)
        places = places[:, :-1]
        read, asked = places < ends[:, None], (places >= first[:, None]) & (places < ends[:, None])
        batch = {
            "x": torch.from_numpy(np.where(read, tokens[:, :-1], self._store.end_of_document)),
            "y": torch.from_numpy(np.where(asked, tokens[:, 1:], NOT_ASKED)),
        }
        if self.info.packed:
            # What is behind the end of a part is a document of its own.
            number = np.where(
                read, np.searchsorted(self._store.starts, places, side="right"), len(self._store.starts) + 1
            )
            batch["segments"] = torch.from_numpy(number - number[:, :1])
        return batch

    def stream(self, split: str = "train") -> Batch:
        """All of a part as one sample, ``(1, tokens)``: for systems that are fitted by counting."""
        begin, end = self._known(split)
        tokens = torch.from_numpy(self._store.tokens[begin : end + 1].astype(np.int64))[None]
        found = {"x": tokens[:, :-1], "y": tokens[:, 1:]}
        if self.info.packed:
            number = np.searchsorted(self._store.starts, np.arange(begin, end), side="right")
            found["segments"] = torch.from_numpy(number)[None]
        return found

    def apply(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's logits ``(B, context, vocabulary)``.

        Raises:
            InvalidValue: the model returned another shape.
        """
        return logits_of(model, batch, self.info.vocabulary)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nats per token, averaged over the batch."""
        return mean_loss(self.apply(model, batch), batch["y"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, batch_size: int = 256) -> Evaluation:
        """Score the windows of "val" or "test" in order; ``per_sample`` is each one's part of the bits per byte.

        Raises:
            InvalidValue: ``split`` is "train", whose windows overlap.
        """
        check_count("batch_size", batch_size, 1)
        self._known(split)
        if split == "train":
            raise InvalidValue("split='train' is not possible: val and test are scored.")
        windows = self._windows[split]
        at_once = max(1, min(batch_size, LOGITS // (self.info.context * self.info.vocabulary)))
        nats = []
        with scoring(model) as device:
            for index in torch.arange(len(windows)).split(at_once):
                batch = {name: value.to(device) for name, value in self.batch(split, index).items()}
                nats.append(window_nats(self.apply(model, batch), batch["y"]).cpu())
        each = torch.cat(nats)
        per_token = float(each.sum()) / windows.targets
        bits = each * (len(windows) / (self._bytes(windows) * math.log(2)))
        metrics = {
            "bits_per_byte": float(bits.mean()),
            "nats_per_token": per_token,
            "perplexity": math.exp(min(per_token, 700.0)),
        }
        return Evaluation(metrics, bits)

    def whole(self) -> Self:
        """Training windows over the text of all parts: see :meth:`foveate.tasks.base.Task.whole`."""
        made = copy.copy(self)
        made._range = {**self._range, "train": (0, self._range["test"][1])}
        return made

    def save(self, folder: Path) -> None:
        """Write the token file and ``language.safetensors``, which says how it is read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._store.write(folder)
        super().save(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what :meth:`save` wrote; the token file is mapped into memory, not read.

        Raises:
            InvalidValue: the folder holds no whole prepared data of this format.
        """
        made = super().load(folder)
        starts = made._tensors["starts"].numpy()
        made._store = TokenStore.read(Path(folder), **made.layout["store"], starts=starts, end=made.info.vocabulary - 1)
        return made

    @classmethod
    def stored(cls, info: Mapping[str, Any]) -> set[str]:
        """Names of the tensors in the file."""
        return {"starts", "borders"}

    def package(self, model: nn.Module) -> TextModel:
        """The model with the tokeniser."""
        return TextModel(model, self.info, **self.layout["package"])

    @classmethod
    def unpack(cls, config: dict[str, Any], build: Callable[[LanguageInfo], nn.Module]) -> TextModel:
        """The wrapper around a model built anew, without its weights."""
        return TextModel.from_config(build(LanguageInfo.from_plain(config["info"])), config)

    #: What ``foveate predict`` calls.
    predict = staticmethod(predict)

    def _known(self, split: str) -> tuple[int, int]:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return self._range[split]

    def _bytes(self, windows: Windows) -> int:
        """Bytes of text that the scored targets of windows stand for."""
        return sum(
            self._store.text_bytes(first + 1, end + 1) for first, end in zip(windows.first, windows.end, strict=True)
        )

    def _describe(
        self, documents: Documents, tally: Tally, tokeniser: Tokeniser, divided: str, seed: int
    ) -> dict[str, Any]:
        parts = {}
        for split in SPLITS:
            begin, end = self._range[split]
            parts[split] = {"tokens": end - begin, "bytes": self._store.text_bytes(begin + 1, end + 1)}
            if split != "train":
                windows = self._windows[split]
                scored = self._bytes(windows)
                if not scored:
                    raise InvalidValue(f"{documents.label!r} has too little text for a {split} part.")
                parts[split] |= {"windows": len(windows), "scored_tokens": windows.targets, "scored_bytes": scored}
        size = self._store.text_bytes(0, len(self._store))
        plain = json.dumps(tokeniser.plain, sort_keys=True)
        notes = [f"{tally.empty} empty documents were left out."] if tally.empty else []
        return {
            "source": documents.label,
            "sha256": hashlib.sha256(b"".join(tally.digests)).hexdigest(),
            "documents": len(tally.names),
            "empty_documents": tally.empty,
            "bytes": size,
            "tokens": len(self._store),
            "bytes_per_token": round(size / len(self._store), 4),
            "tokenizer": tokeniser.name,
            "tokenizer_sha256": hashlib.sha256(plain.encode()).hexdigest(),
            "vocabulary": self.info.vocabulary,
            "context": self.info.context,
            "stride": self.layout["package"]["stride"],
            "window_step": training_step(self._range["train"][1], self.info.context),
            "packed": self.info.packed,
            "divided_by": divided,
            "split_seed": seed,
            "parts": parts,
            "notes": notes,
        }


def _divided(
    store: TokenStore, tally: Tally, shares: Sequence[float], seed: int, label: str
) -> tuple[TokenStore, list[int], str]:
    """The store, perhaps in another order, borders of the parts in it, and what it is divided by."""
    places = len(store) - 1
    lengths = np.diff(np.append(store.starts, places))
    part = by_document(lengths, tally.digests, shares, seed)
    if part is None:
        return store, borders(places, shares, label), "position"
    store = store.arranged(np.argsort(part, kind="stable").tolist())
    sizes = np.bincount(part, weights=lengths, minlength=3).astype(np.int64)
    return store, [0, *map(int, sizes.cumsum())], "document"

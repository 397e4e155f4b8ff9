"""Asking a video-language model of transformers on this machine, in batches with the same number of frames."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import FoveateError, InvalidValue, invalid, missing_extra
from ..scorers.base import Question
from .asked import Asked, Outcome
from .processors import load_processor, plain_text, reason_of


class Local:
    """A model of transformers.

    Args:
        name: a folder, or its name on the hub.
        batch: questions at once.
        max_tokens: of an answer.
        seed: of torch; answers are greedy, so only a model that draws in its forward pass heeds it.

    Raises:
        MissingExtra: transformers is absent, or what the model's processor needs.
        InvalidValue: there is no such model, or it is no model for text and pictures.
    """

    def __init__(self, name: str, *, batch: int = 1, max_tokens: int = 128, seed: int = 0) -> None:
        if batch < 1:
            raise invalid("batch", batch, "at least 1")
        import torch
        from safetensors import SafetensorError

        self.name, self.batch, self.max_tokens = name, batch, max_tokens
        self.processor, self.as_video = load_processor(name)
        self.shows = "video" if self.as_video else "pictures"
        transformers = _transformers()
        torch.manual_seed(seed)
        try:
            model = transformers.AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise InvalidValue(f"model {name!r} cannot be opened: {reason_of(error)}") from error
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._stop = threading.Event()

    def notes(self) -> list[str]:
        """What its user should know about how it is asked, a sentence each."""
        told = []
        if not self.as_video:
            told.append("Frames are given as a row of pictures: the model takes no videos here.")
        if self.processor.chat_template is None:
            told.append("The model has no chat template: prompts are given as they are.")
        return told

    def convert(self, frame: np.ndarray) -> np.ndarray:
        """Frames stay as they are."""
        return frame

    def outcomes(self, questions: Sequence[Question], give: Callable[[Question], Asked]) -> Iterator[Outcome]:
        """An outcome for each question, in the order in which batches fill: only as many frames go together."""
        waiting: dict[int, list[Asked]] = {}
        for found in self._ahead(questions, give):
            if isinstance(found, Outcome):
                yield found
                continue
            group = waiting.setdefault(len(found.frames), [])
            group.append(found)
            if len(group) == self.batch:
                yield from self._answer(waiting.pop(len(found.frames)))
        for group in waiting.values():
            yield from self._answer(group)

    def leave(self, seconds: float) -> list[Outcome]:
        """Stop reading videos; a batch that was interrupted is lost."""
        self._stop.set()
        return []

    def _ahead(self, questions: Sequence[Question], give: Callable[[Question], Asked]) -> Iterator[Asked | Outcome]:
        """What is asked next, decoded while the model answers."""
        ready: queue.Queue[Asked | Outcome | BaseException | None] = queue.Queue(maxsize=self.batch + 1)

        def put(item: Asked | Outcome | BaseException | None) -> None:
            while not self._stop.is_set():
                try:
                    return ready.put(item, timeout=0.2)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for question in questions:
                    if self._stop.is_set():
                        return
                    try:
                        put(give(question))
                    except FoveateError as error:
                        put(Outcome(question.id, None, str(error), tries=0))
                put(None)
            except BaseException as error:  # a defect of ours: raised where outcomes are read
                put(error)

        threading.Thread(target=work, name="foveate-ask-videos", daemon=True).start()
        while (found := ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found

    def _answer(self, group: list[Asked]) -> Iterator[Outcome]:
        begun = time.monotonic()
        try:
            texts = self._generate(group)
        except Exception as error:  # another library's model and template: whatever it is goes on record
            if len(group) > 1:  # one of them may be at fault, or all together too large
                for asked in group:
                    yield from self._answer([asked])
                return
            reason = f"the model fails: {reason_of(error)}"
            yield Outcome(group[0].question.id, None, reason, True, group[0])
            return
        seconds = (time.monotonic() - begun) / len(group)
        for asked, text in zip(group, texts, strict=True):
            yield Outcome(asked.question.id, text, "", False, asked, 1, seconds)

    def _generate(self, group: list[Asked]) -> list[str]:
        import torch

        given: dict[str, Any] = {"text": [self._text(asked) for asked in group]}
        if group[0].frames and self.as_video:
            given["videos"] = [np.stack(list(asked.frames)) for asked in group]
            given["video_metadata"] = [_metadata(asked) for asked in group]
            given["do_sample_frames"] = False
        elif group[0].frames:
            given["images"] = [list(asked.frames) for asked in group]
        inputs = self.processor(**given, padding=True, return_tensors="pt").to(self.model.device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(self.model.dtype)
        with torch.inference_mode():
            out = self.model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]

    def _text(self, asked: Asked) -> str:
        """The prompt as the model's chat template has it, or as it is."""
        shown = [{"type": "video"}] if self.as_video else [{"type": "image"}] * len(asked.frames)
        if self.processor.chat_template is None:
            words = "\n".join(part for part in (asked.system, asked.prompt) if part)
            return plain_text(self.processor, self.as_video, len(asked.frames), words)
        content = [*(shown if asked.frames else []), {"type": "text", "text": asked.prompt}]
        told = [{"role": "system", "content": [{"type": "text", "text": asked.system}]}] if asked.system else []
        conversation = [*told, {"role": "user", "content": content}]
        return self.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)


def _metadata(asked: Asked) -> dict[str, Any]:
    """When the frames are, for processors that tell the model."""
    indices = [round(time * asked.fps) for time in asked.times]
    return {
        "fps": asked.fps,
        "total_num_frames": asked.total,
        "duration": asked.total / asked.fps if asked.fps else None,
        "frames_indices": indices,
    }


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("transformers", "llm", "asking a local model") from error
    return transformers

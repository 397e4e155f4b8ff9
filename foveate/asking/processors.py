"""The processor of a model of transformers, with or without what it needs to read videos.

transformers' own video processors need torchvision. Where that is absent, a processor of the same class is put together
from the model's tokenizer and its image processor, and frames are given as a row of pictures.
"""

from __future__ import annotations

from typing import Any

from ..errors import InvalidValue, missing_extra

#: Longest reason that is kept of an error of another library.
LONGEST_REASON = 300


def load_processor(name: str) -> tuple[Any, bool]:
    """A model's processor, set to pad on the left, and whether it takes videos.

    Args:
        name: a folder, or a name on the hub.

    Raises:
        MissingExtra: transformers is absent.
        InvalidValue: there is no such model, it reads no pictures, has neither a chat template nor a mark for
            frames, or cannot do without torchvision.
    """
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("transformers", "llm", "asking a local model") from error
    try:
        processor = transformers.AutoProcessor.from_pretrained(name)
    except ImportError as error:
        if "torchvision" not in str(error).lower():
            raise InvalidValue(f"model {name!r} cannot be opened: {reason_of(error)}") from error
        processor = _of_pictures(name, transformers, error)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidValue(f"model {name!r} cannot be opened: {reason_of(error)}") from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not (hasattr(processor, "image_processor") or hasattr(processor, "video_processor")):
        raise InvalidValue(f"model {name!r} reads no pictures: give a model for text and pictures or videos.")
    if getattr(processor, "chat_template", None) is None:
        processor.chat_template = getattr(tokenizer, "chat_template", None)
    video = getattr(processor, "video_processor", None) is not None
    if processor.chat_template is None and not isinstance(getattr(processor, _token(video), None), str):
        raise InvalidValue(f"model {name!r} has no chat template: give a model that was trained to be asked.")
    tokenizer.padding_side = "left"  # answers continue where prompts end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor, video


def plain_text(processor: Any, video: bool, frames: int, words: str) -> str:
    """What a model without a chat template reads: its marks for frames, a line each, then the words."""
    marks = [getattr(processor, _token(video))] * (min(frames, 1) if video else frames)
    return "\n".join((*marks, words))


def _token(video: bool) -> str:
    return "video_token" if video else "image_token"


def _of_pictures(name: str, transformers: Any, cause: ImportError) -> Any:
    """A processor of the model's own class without its part for videos."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    config = transformers.AutoConfig.from_pretrained(name)
    known = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if known is None:
        raise InvalidValue(f"model {name!r} cannot be opened: its processor needs torchvision: install it.") from cause
    try:
        options, _ = transformers.ProcessorMixin.get_processor_dict(name)
    except OSError:  # older releases have no file for it
        options = {}
    base = getattr(transformers, known)

    class OfPictures(base):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    own = {k: v for k, v in options.items() if not k.endswith(("_processor", "processor_class", "tokenizer"))}
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    own.setdefault("chat_template", getattr(tokenizer, "chat_template", None))
    pictures = transformers.AutoImageProcessor.from_pretrained(name)
    return OfPictures(image_processor=pictures, tokenizer=tokenizer, video_processor=None, **own)


def reason_of(error: BaseException) -> str:
    """What an error of another library says, in a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."
    return text if text.endswith(".") else text + "."

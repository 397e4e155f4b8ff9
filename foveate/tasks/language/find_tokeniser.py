"""From what the user names (a file, a folder, a repo on the hub) to a tokeniser."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ...errors import InvalidType, InvalidValue, invalid, missing_extra
from ...hub import PREFIX, is_remote
from ...hub.remote import spoken
from .tokenise import BYTES, CHARACTERS, ByteTokeniser, JsonTokeniser, Tokeniser

FILE = "tokenizer.json"
#: What tells that a folder is a tokenizer of transformers that has no ``tokenizer.json``.
_OF_TRANSFORMERS = ("tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


def find_tokeniser(tokenizer: str | Path | None) -> Tokeniser | None:
    """The tokeniser that an option names.

    Args:
        tokenizer: None or "bytes"; "characters"; a ``tokenizer.json``, a folder with one, or a folder that transformers
            saved; ``hub:user/name``, which alone asks the network.

    Returns:
        None for "characters", whose alphabet is the data's.

    Raises:
        InvalidType: it is no name.
        InvalidValue: there is no such file, or it is no tokenizer.
        UnknownName: no such repo.
        MissingExtra: tokenizers or transformers is needed and not installed.
    """
    if tokenizer is None or tokenizer == BYTES:
        return ByteTokeniser()
    if tokenizer == CHARACTERS:
        return None
    if not isinstance(tokenizer, str | Path):
        raise InvalidType(f"tokenizer={tokenizer!r} is not possible: give a name or a path.")
    if is_remote(tokenizer):
        return JsonTokeniser(_text(_fetched(str(tokenizer))), str(tokenizer))
    path, name = Path(tokenizer), str(tokenizer)
    if path.is_file():
        return JsonTokeniser(_text(path), name)
    if (path / FILE).is_file():
        return JsonTokeniser(_text(path / FILE), name)
    if any((path / file).is_file() for file in _OF_TRANSFORMERS):
        return JsonTokeniser(_converted(path), name)
    if path.is_dir():
        raise InvalidValue(f"tokenizer={name!r} is a folder without {FILE}: name the folder that holds it.")
    raise invalid(
        "tokenizer",
        name,
        f"there is no such file; legal are {BYTES}, {CHARACTERS}, a {FILE} or its folder, and {PREFIX}user/name",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidValue(f"{str(path)!r} is not a {FILE}: byte {error.start} is not UTF-8.") from error
    except OSError as error:
        raise InvalidValue(f"{str(path)!r} cannot be read ({error.strerror}): check its permissions.") from error


def _fetched(where: str) -> Path:
    repo = where.removeprefix(PREFIX)
    with spoken(repo):
        try:
            return Path(hf_hub_download(repo, FILE, library_name="foveate"))
        except LocalEntryNotFoundError:  # no answer, which is not the answer "none"
            raise
        except EntryNotFoundError as error:
            raise InvalidValue(f"{where} has no {FILE}: save it with transformers and name the folder.") from error


def _converted(folder: Path) -> str:
    """The ``tokenizer.json`` that transformers makes of a tokenizer saved in an older form."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise missing_extra("transformers", "llm", f"the tokenizer {str(folder)!r}") from None
    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parts do
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise InvalidValue(f"tokenizer={str(folder)!r} cannot be opened by transformers ({said}).") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise InvalidValue(f"tokenizer={str(folder)!r} has no fast form: convert it to a {FILE} with transformers.")
    return backend.to_str()

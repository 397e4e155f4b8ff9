"""Loading the weights of official releases and named peers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue, unknown_name


@dataclass(frozen=True, slots=True)
class Renamed:
    """A state dict under a model's own names.

    Attributes:
        source: the release whose table renamed it.
        tensors: by the model's names, those that it does not have included.
        missing: names of the model that nothing was given for.
        left_over: what was given and the table does not know, or the model does not have.
    """

    source: str
    tensors: dict[str, Tensor]
    missing: list[str]
    left_over: list[str]

    @property
    def fits(self) -> bool:
        """Whether the names are the model's, all of them."""
        return not self.missing and not self.left_over

    @property
    def misfits(self) -> str:
        """What keeps it from fitting, in words."""
        return f"missing {some(self.missing)}; left over {some(self.left_over)}"


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor], source: str | None = None) -> None:
    """Load the official (or a named peer's) weights into ``model``, in place; nothing may be left over on either side.

    The model's class carries ``official_keys = {source: {pattern: ours}}``: regular expressions over the release's
    keys, matched in full, the first that fits decides; an empty replacement drops the key (a constant buffer); or it
    defines ``convert_official(state_dict, source) -> state_dict`` where renaming is not enough, which leaves alone what
    it does not know.

    Args:
        source: which release, where the model knows several; None: its first.

    Raises:
        InvalidType: the model knows no official release.
        UnknownName: it does not know this ``source``.
        InvalidValue: keys are missing or left over, or shapes differ; they are named.
    """
    tables: Mapping[str, Mapping[str, str]] = getattr(model, "official_keys", {})
    if not tables:
        raise InvalidType(f"{type(model).__name__} knows no official release to load weights from.")
    source = source or next(iter(tables))
    if source not in tables:
        raise unknown_name("source", source, tables)
    found = rename(model, state_dict, source)
    if not found.fits:
        raise InvalidValue(
            f"these are not the weights of {type(model).__name__} as {source} has them: {found.misfits}."
        )
    fill(model, found.tensors)


def rename(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> Renamed:
    """A release's state dict under the model's names, by the table of ``source``."""
    table: Mapping[str, str] = model.official_keys[source]  # type: ignore[assignment,index]
    convert = getattr(model, "convert_official", None)
    given = dict(convert(state_dict, source) if convert else state_dict)
    renamed: dict[str, Tensor] = {}
    left_over = []
    for key, value in given.items():
        for pattern, replacement in table.items():
            match = re.fullmatch(pattern, key)
            if match:
                if replacement:
                    renamed[match.expand(replacement)] = value
                break
        else:
            left_over.append(key)
    own = model.state_dict()
    return Renamed(source, renamed, sorted(set(own) - set(renamed)), left_over + sorted(set(renamed) - set(own)))


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model tensors under its own names.

    Raises:
        InvalidValue: shapes differ; they are named.
    """
    own = model.state_dict()
    wrong = [
        f"{k} {tuple(v.shape)} (needs {tuple(own[k].shape)})" for k, v in tensors.items() if v.shape != own[k].shape
    ]
    if wrong:
        raise InvalidValue(f"weights of the wrong shape for this {type(model).__name__}: {some(wrong)}.")
    model.load_state_dict(tensors)


def some(names: list[str], count: int = 5) -> str:
    """The first of many names."""
    if not names:
        return "nothing"
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")

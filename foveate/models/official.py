"""Loading the weights of official releases and named peers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue, unknown_name


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor], source: str | None = None) -> None:
    """Load the official (or a named peer's) weights into ``model``, in place; nothing may be left over on either side.

    The model's class carries ``official_keys = {source: {pattern: ours}}``: regular expressions over the release's
    keys, matched in full, the first that fits decides; an empty replacement drops the key (a constant buffer); or it
    defines ``convert_official(state_dict, source) -> state_dict`` where renaming is not enough.

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
    convert = getattr(model, "convert_official", None)
    given = dict(convert(state_dict, source) if convert else state_dict)
    renamed: dict[str, Tensor] = {}
    left_over = []
    for key, value in given.items():
        for pattern, replacement in tables[source].items():
            match = re.fullmatch(pattern, key)
            if match:
                if replacement:
                    renamed[match.expand(replacement)] = value
                break
        else:
            left_over.append(key)
    own = model.state_dict()
    missing = sorted(set(own) - set(renamed))
    left_over += sorted(set(renamed) - set(own))
    if missing or left_over:
        raise InvalidValue(
            f"these are not the weights of {type(model).__name__} as {source} has them: "
            f"missing {_some(missing)}; left over {_some(left_over)}."
        )
    wrong = [
        f"{k} {tuple(v.shape)} (needs {tuple(own[k].shape)})" for k, v in renamed.items() if v.shape != own[k].shape
    ]
    if wrong:
        raise InvalidValue(f"weights of the wrong shape for this {type(model).__name__}: {_some(wrong)}.")
    model.load_state_dict(renamed)


def _some(names: list[str], count: int = 5) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")

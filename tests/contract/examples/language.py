"""Language models: token numbers ``(B, L)`` to logits ``(B, L, vocabulary)``, built for the task."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from .tokens import EXAMPLE as TOKENS
from .tokens import LENGTH

EXAMPLE = replace(
    TOKENS,
    name="language",
    info=SimpleNamespace(task="language", vocabulary=11, context=LENGTH, packed=False),
)

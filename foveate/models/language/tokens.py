"""What language models refuse to read."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InvalidType, InvalidValue, invalid


def check_tokens(name: str, tokens: Tensor, axes: int) -> None:
    """Refuse anything but whole numbers ``(batch,)`` (one axis) or ``(batch, length)`` (two).

    Args:
        name: of the model, for the message.

    Raises:
        InvalidType: fractions.
        InvalidValue: another shape, or no tokens.
    """
    legal = ("(batch,)", "(batch, length)")[axes - 1]
    if tokens.is_floating_point() or tokens.is_complex():
        raise InvalidType(f"{name}: tokens must be int64, not {tokens.dtype}.")
    if tokens.ndim != axes:
        raise InvalidValue(f"{name}: tokens have shape {tuple(tokens.shape)}; they must be {legal}.")
    if axes == 2 and not tokens.shape[1]:
        raise InvalidValue(f"{name}: there are no tokens, shape {tuple(tokens.shape)}: at least one is needed.")


def check_mask(name: str, mask: Tensor | None, tokens: Tensor) -> None:
    """Refuse anything but a bool mask of the tokens ``(batch, length)``.

    Args:
        name: of the model, for the message.
        mask: None: nothing to look at.
        tokens: what it is of.

    Raises:
        InvalidType: it is not bool.
        InvalidValue: another shape.
    """
    if mask is not None and mask.dtype != torch.bool:
        raise InvalidType(f"{name}: mask must be bool (True = a real token), not {mask.dtype}.")
    if mask is not None and mask.shape != tokens.shape:
        raise InvalidValue(f"{name}: mask has shape {tuple(mask.shape)}; the tokens have {tuple(tokens.shape)}.")


def check_size(option: str, size: int) -> None:
    """Refuse anything but a positive whole number."""
    if not isinstance(size, int) or size < 1:
        raise invalid(option, size, "a positive whole number is needed")

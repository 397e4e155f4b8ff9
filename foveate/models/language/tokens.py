"""What language models refuse to read."""

from __future__ import annotations

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


def check_size(option: str, size: int) -> None:
    """Refuse anything but a positive whole number."""
    if not isinstance(size, int) or size < 1:
        raise invalid(option, size, "a positive whole number is needed")

"""The arithmetic of sequence lengths in image and video generators, and of what a faster part brings.

After "Generative AI Beyond LLMs" (arXiv 2312.14385): in a diffusion U-Net the sequence is the image at each level, so
its length varies over the depth; attention over frames and over the pixels of a frame scale apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from ..errors import InvalidValue, invalid, unknown_name


def unet_lengths(height: int, width: int, levels: int = 4, vae_factor: int = 8) -> list[int]:
    """Sequence lengths of a U-Net's self attention from the first level down and up again.

    Args:
        height, width: of the image in pixels.
        levels: each halves height and width.
        vae_factor: pixels per latent along an edge; 1 for a network on pixels.

    Raises:
        InvalidValue: a size that is not positive, or that the levels do not divide.
    """
    if levels < 1 or vae_factor < 1:
        raise invalid("levels", levels, "levels and vae_factor must be positive")
    step = vae_factor * 2 ** (levels - 1)
    for name, size in (("height", height), ("width", width)):
        if size < 1 or size % step:
            raise InvalidValue(f"{name}={size!r} is not possible: {levels} levels need a multiple of {step}.")
    down = [(height // (vae_factor << i)) * (width // (vae_factor << i)) for i in range(levels)]
    return down + down[-2::-1]


def similarity_bytes(lengths: Sequence[int], heads: int, text_length: int = 0, each: int = 2) -> int:
    """Bytes of all similarity matrices: every length with itself and, if there is text, with it.

    Args:
        lengths: of the attentions of one call, as :func:`unet_lengths`.
        text_length: tokens of the prompt that cross attention reads; 0: none.
        each: bytes of a number (2 in half precision).
    """
    return sum(each * heads * (n * n + n * text_length) for n in lengths)


def attention_flops(kind: Literal["spatial", "temporal"], frames: int, pixels: int, dim: int) -> int:
    """FLOPs of the products of one attention layer of a video network.

    Args:
        kind: "spatial": the pixels of each frame see each other; "temporal": each pixel sees itself in all frames.
        frames: F.
        pixels: of a frame, n.
        dim: channels of all heads together.

    Raises:
        UnknownName: another kind.
    """
    lengths = {"spatial": (frames, pixels), "temporal": (pixels, frames)}
    if kind not in lengths:
        raise unknown_name("attention", kind, lengths)
    batch, length = lengths[kind]
    return 4 * batch * length**2 * dim


def crossover_frames(pixels: int) -> int:
    """The number of frames from which temporal attention costs more than spatial: as many as a frame has pixels."""
    return pixels


def amdahl(shares: Mapping[str, float], kind: str, times: float) -> dict[str, float]:
    """Shares of the time after one kind became so many times as fast; they sum to 1 as those before.

    Raises:
        UnknownName: there is no such kind.
        InvalidValue: ``times`` is not positive.
    """
    if kind not in shares:
        raise unknown_name("kind", kind, shares)
    if not times > 0:
        raise invalid("times", times, "how many times as fast must be positive")
    left = {k: share / times if k == kind else share for k, share in shares.items()}
    whole = sum(left.values())
    return {k: share / whole for k, share in left.items()}

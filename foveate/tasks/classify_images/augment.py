"""Changes of training images that leave their class alone; drawn from torch's global generator, as dropout is."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InvalidType, unknown_name

KINDS = ("shift", "flip", "colour")
#: Share of a side that an image is moved by, at most.
SHIFT = 1 / 8
#: How far contrast and brightness are changed, in shares and in deviations of the training pixels.
CONTRAST, BRIGHTNESS = 0.2, 0.2


def read_kinds(augment: str) -> tuple[str, ...]:
    """The kinds of "shift,flip", or none of "none".

    Raises:
        InvalidType: no text.
        UnknownName: there is no such kind.
    """
    if not isinstance(augment, str):
        raise InvalidType(f"augment={augment!r} is not possible: 'none', or kinds by commas, such as 'shift,flip'.")
    if augment == "none":
        return ()
    names = [name.strip() for name in augment.split(",")]
    for name in names:
        if name not in KINDS:
            raise unknown_name("kind of augment", name, [*KINDS, "none"])
    return tuple(kind for kind in KINDS if kind in names)


def augmented(x: Tensor, kinds: tuple[str, ...]) -> Tensor:
    """Standardised images ``(B, C, H, W)``, each changed by draws of its own.

    "shift" moves by up to an eighth of each side, the border repeated; "flip" mirrors left and right with probability a
    half; "colour" changes contrast (of all channels) and brightness (of each channel).
    """
    count, _, height, width = x.shape
    if "flip" in kinds:
        x = torch.where((torch.rand(count, device=x.device) < 0.5)[:, None, None, None], x.flip(-1), x)
    if "shift" in kinds:
        x = _moved(_moved(x, 2, height), 3, width)
    if "colour" in kinds:
        contrast = 1 + CONTRAST * (2 * torch.rand(count, 1, 1, 1, device=x.device) - 1)
        brightness = BRIGHTNESS * (2 * torch.rand(count, x.shape[1], 1, 1, device=x.device) - 1)
        x = x * contrast + brightness
    return x


def _moved(x: Tensor, axis: int, side: int) -> Tensor:
    most = round(side * SHIFT)
    if not most:
        return x
    by = torch.randint(-most, most + 1, (x.shape[0], 1), device=x.device)
    places = (torch.arange(side, device=x.device) + by).clamp(0, side - 1)
    shape = [x.shape[0], 1, 1, 1]
    shape[axis] = side
    return x.gather(axis, places.view(shape).expand(x.shape))

"""From the bytes of an image file to pixels, as a viewer shows them. Pillow decodes; here is what it leaves open.

Turned by the EXIF orientation; transparency on white; CMYK and other colours converted; 16 bits brought to 8 by their
high end (65,535 is white); of an animation the first frame.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import missing_extra
from .pictures import MOST_PIXELS, Unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

#: Endings of files that are taken for images.
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".pgm", ".ppm", ".pnm")
#: Decoders that may be asked, whatever an ending says: none that starts other programs or reads other files.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"P5", b"P6", b"P2", b"P3")
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N", "I", "F")


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its image before it is decoded: ``size`` (height, width) as shown, ``grey``, ``frames``."""

    size: tuple[int, int]
    grey: bool
    frames: int
    mode: str


def looks_like_image(head: bytes) -> bool:
    """Whether a file's first bytes are those of an image."""
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def read_header(path: Path) -> Header:
    """The header of an image file.

    Raises:
        Unreadable: no image, damaged, or so large that it is refused; the message names the file.
        MissingExtra: no pillow.
    """
    with _opened(path, path) as image:
        width, height = image.size
        if image.getexif().get(_ORIENTATION) in _SIDEWAYS:
            width, height = height, width
        colours = image.mode not in _GREY and not (image.mode == "P" and _grey_palette(image))
        return Header((height, width), not colours, int(getattr(image, "n_frames", 1)), image.mode)


def decode(raw: bytes, path: Path) -> np.ndarray:
    """Pixels of an image file's bytes, uint8 ``(height, width, 1 or 3)``.

    Raises:
        Unreadable: see :func:`read_header`; or truncated, or floating-point pixels.
        MissingExtra: no pillow.
    """
    from PIL import ImageOps

    with _opened(io.BytesIO(raw), path) as image:
        image.load()
        if image.mode == "F":
            raise Unreadable(f"{str(path)!r} has floating-point pixels: save it with 8 or 16 bits.")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            return _from_deep(np.asarray(image, dtype=np.int64), path)
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            return _on_white(image)
        grey = image.mode in _GREY or (image.mode == "P" and _grey_palette(image))
        pixels = np.array(image.convert("L" if grey else "RGB"))
        return pixels[..., None] if grey else pixels


def decode_mask(raw: bytes, path: Path) -> tuple[np.ndarray, bool]:
    """Classes of a mask, int32 ``(height, width)``, and whether they are colours (red * 65536 + green * 256 + blue).

    Of palettes the indices are the classes, of one bit 0 and 1.

    Raises:
        Unreadable: see :func:`decode`; or JPEG, which blurs classes.
    """
    from PIL import ImageOps

    with _opened(io.BytesIO(raw), path) as image:
        image.load()
        if image.format in ("JPEG", "MPO"):
            raise Unreadable(f"{str(path)!r} is a JPEG file, which blurs the borders of classes: save masks as PNG.")
        image = ImageOps.exif_transpose(image)
        values = np.asarray(image)
        if image.mode == "LA" or values.dtype.kind == "f":
            raise Unreadable(
                f"{str(path)!r} has pixels of mode {image.mode}: save masks with whole numbers or colours."
            )
        if values.ndim == 2:
            return values.astype(np.int32), False
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.int32), -1, 0)
        return red * 65536 + green * 256 + blue, True


def check_file(path: Path) -> None:
    """Refuse what has the name of a file and is none.

    Raises:
        Unreadable: a pipe, or a link to nothing; the message names it.
    """
    if not path.is_file():
        raise Unreadable(f"{str(path)!r} is {'a link to nothing' if path.is_symlink() else 'no file'}: remove it.")


@contextmanager
def _opened(source: Any, path: Path) -> Iterator[Image]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise missing_extra("pillow", "vision", "reading image files") from error
    name = str(path)
    try:
        if isinstance(source, Path):
            check_file(source)
        if not (os.path.getsize(source) if isinstance(source, Path) else source.getbuffer().nbytes):
            raise Unreadable(f"{name!r} is empty: it has no bytes.")
        with warnings.catch_warnings():
            # Above its limit pillow warns, above twice that it raises; the check below is for both.
            warnings.simplefilter("ignore")
            with Image.open(source, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise Unreadable(_too_large(name, f"{width:,} x {height:,}"))
                yield image
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(_too_large(name, "far too many")) from error
    except UnidentifiedImageError as error:
        raise Unreadable(f"{name!r} is not an image that can be read ({', '.join(FORMATS)}).") from error
    except MemoryError as error:
        raise Unreadable(f"{name!r} does not fit into memory: make it smaller.") from error
    # What damaged files make decoders raise has no common base.
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"{name!r} is damaged or cut off ({first}): replace it.") from error
    except Exception as error:
        if type(error).__module__ not in ("struct", "zlib"):
            raise
        raise Unreadable(f"{name!r} is damaged or cut off ({error}): replace it.") from error


def _too_large(name: str, pixels: str) -> str:
    return f"{name!r} unpacks to {pixels} pixels, more than {MOST_PIXELS:,}, and is refused: make it smaller."


def _grey_palette(image: Image) -> bool:
    palette = np.array(image.getpalette() or [], dtype=np.int64).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def _from_deep(values: np.ndarray, path: Path) -> np.ndarray:
    """8 bits of 16."""
    if values.min() < 0 or values.max() > 65535:
        raise Unreadable(f"{str(path)!r} has pixels from {values.min()} to {values.max()}: save it with 8 or 16 bits.")
    return np.round(values / 257).astype(np.uint8)[..., None]


def _on_white(image: Image) -> np.ndarray:
    from PIL import Image as Pillow

    grey = image.mode in ("L", "LA", "La", "1") or (image.mode == "P" and _grey_palette(image))
    image = image.convert("RGBA")
    white = Pillow.new("RGBA", image.size, (255, 255, 255, 255))
    pixels = np.array(Pillow.alpha_composite(white, image).convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels

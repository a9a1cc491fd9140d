"""One picture file as pixels: known by its content, made RGB, made smaller."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmbench.data.files import FileError, require_sound
from mmbench.data.problem import Problem

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
"""What a picture may be, whatever its name ends in; pages of the web serve all of them as .jpg."""
LONGEST = 3
"""Most times the shorter side that the longer one keeps: a batch is as large as its longest."""
FAULTS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError),
    Image.DecompressionBombError,
)
"""What Pillow raises of files that are cut, damaged or no pictures."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture."""

    pixels: np.ndarray
    """``(H, W, 3)`` uint8 RGB."""
    mode: str
    """Of the pixels in the file."""


def decode(path: Path, short_side: int) -> Picture:
    """Return a picture with its shorter side at most ``short_side`` pixels and its longer one at
    most :data:`LONGEST` times that; none is enlarged.

    Grey, CMYK and palette pictures become RGB, transparency is dropped, of several frames the first
    is taken, and an orientation in EXIF is passed over, as torchvision's loader does it. Raises
    :class:`FileError` for a file that is missing, cut, damaged or no picture.
    """
    with _opened(path) as image:
        mode = image.mode
        size = fitted(*image.size, short_side)
        colours = image.convert("RGB")  # decodes to the end
        kept = colours if size == image.size else colours.resize(size, Image.Resampling.BILINEAR)
        return Picture(np.asarray(kept), mode)


def kept_bytes(path: Path, short_side: int) -> int:
    """Return how many bytes :func:`decode` will give, from the file's header alone. Raises
    :class:`FileError` for what has no header of a picture."""
    with _opened(path) as image:
        width, height = fitted(*image.size, short_side)
    return width * height * 3


def fitted(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return width and height as they are kept."""
    scale = min(1.0, short_side / min(width, height), LONGEST * short_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    require_sound(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of size below what is refused
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except UnidentifiedImageError as error:
        problem = Problem(str(path), "is not a picture", "download it again")
        raise FileError(problem) from error
    except FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        what = f"cannot be decoded: {reason.removesuffix('.')}"
        raise FileError(Problem(str(path), what, "download it again")) from error

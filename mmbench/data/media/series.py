"""Pictures in files of their own: still ones, frames cut out of a clip, or its optical flow.

A picture is known by its content, whatever its name ends in. A series of numbered JPEG files is
named by the path of one of them with ``*`` for the number, such as
``tvl1_flow/u/v_Archery_g01_c01/frame*.jpg``. Numbers start at 1 or 0 and leave none out; digits
may be filled up with zeros. A series has no times: who lists it says how many are shown a second.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from mmbench.data.files import FileError, inspect, require_sound
from mmbench.data.problem import Problem

AGAIN = "unpack or download it again"
NOT_COUNTED = 2
SHARE_NOT_COUNTED = 0.1
"""Frames, and share of them, by which flow may be longer or shorter than the picture: decoders of
different age do not count the same, and some repeat frames to keep a rate."""
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
"""What a picture may be: pages of the web serve all of them as .jpg."""
LONGEST = 3
"""Most times ``short_side`` that the longer side keeps: a batch is as large as its longest."""
FAULTS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError),
    Image.DecompressionBombError,
)
"""What Pillow raises of files that are cut, damaged or no pictures."""


def is_series(place: str) -> bool:
    """Say whether a place names a series rather than one file."""
    return "*" in place


def files_of(series: Path) -> list[Path]:
    """Return the files of a series in the order of their numbers.

    Raises :class:`FileError` when there are none, or a number is missing or there twice.
    """
    before, after = series.name.split("*")
    numbers: dict[int, Path] = {}
    try:
        names = sorted(path.name for path in series.parent.iterdir())
    except FileNotFoundError:
        raise _fault(series, "does not exist", "check the path, or unpack the file") from None
    except OSError as error:
        raise _fault(series, f"cannot be read: {error.strerror}", "check its folder") from error
    for name in names:
        number = name[len(before) : len(name) - len(after)]
        if not (name.startswith(before) and name.endswith(after) and number.isdecimal()):
            continue
        if int(number) in numbers:
            raise _fault(series, f"has number {int(number)} twice", AGAIN)
        numbers[int(number)] = series.parent / name
    if not numbers:
        raise _fault(series, "does not exist", "check the path, or unpack the file")
    first, last = min(numbers), max(numbers)
    if first > 1 or len(numbers) < last - first + 1:
        lost = next(i for i in range(min(first, 1), last) if i not in numbers)
        raise _fault(series, f"lacks number {lost} of {last}", AGAIN)
    return [numbers[i] for i in range(first, last + 1)]


def size_of(source: Path, places: tuple[str, ...]) -> int:
    """Return the bytes of all files at some places, -1 where one of them is missing."""
    total = 0
    for place in places:
        path = source / place
        try:
            files = files_of(path) if is_series(place) else [path]
            total += sum(file.stat().st_size for file in files)
        except (FileError, OSError):
            return -1
    return total


def first_problem(path: Path) -> Problem | None:
    """Return why a file, or a series, cannot hold a clip, as far as can be seen without decoding:
    see :func:`mmbench.data.files.inspect`; of a series the first file is looked at."""
    if not is_series(str(path)):
        return inspect(path)
    try:
        return inspect(files_of(path)[0])
    except FileError as error:
        return error.problem


def flow_files(u: Path, v: Path, frames: int) -> list[tuple[Path, Path]]:
    """Return the files of optical flow, u and v side by side.

    Raises :class:`FileError` when one series is longer than the other, or when they do not belong
    to a picture of so many frames.
    """
    across, down = files_of(u), files_of(v)
    if len(across) != len(down):
        raise _fault(v, f"has {len(down)} files beside {len(across)} of {u}", AGAIN)
    if abs(len(across) - (frames - 1)) > max(NOT_COUNTED, SHARE_NOT_COUNTED * frames):
        raise _fault(u, f"has {len(across)} files beside {frames} frames of the picture", AGAIN)
    return list(zip(across, down, strict=True))


def picture(path: Path, mode: Literal["RGB", "L"], short_side: int) -> np.ndarray:
    """Return a picture as ``(H, W, 3)`` or grey ``(H, W)`` uint8, of the size that :func:`fitted`
    says: made smaller by averaging, never larger.

    Grey, CMYK and palette pictures become RGB where that is asked, transparency is dropped, of
    several frames the first is taken, and an orientation in EXIF is passed over, as torchvision's
    loader does it. Raises :class:`FileError` for what cannot be decoded to its end, and for colours
    in a file that is to be grey, which cannot be a part of optical flow.
    """
    require_sound(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of size below what is refused
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                if mode == "L" and image.mode != "L" and _has_colours(image):
                    raise _fault(path, "has colours: it is no part of optical flow", AGAIN)
                whole = image if image.mode == mode else image.convert(mode)
    except FAULTS as error:
        raise _fault(
            path, f"is cut, damaged or no picture: {_reason(error, path)}", AGAIN
        ) from error
    size = fitted(*whole.size, short_side)
    return np.asarray(whole if size == whole.size else whole.resize(size, Image.Resampling.BOX))


def fitted(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return width and height with the shorter side at most ``short_side``, and the longer one at
    most :data:`LONGEST` times that."""
    scale = min(1.0, short_side / min(width, height), LONGEST * short_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _has_colours(image: Image.Image) -> bool:
    channels = np.asarray(image.convert("RGB"))
    return bool((channels != channels[..., :1]).any())


def _reason(error: Exception, path: Path) -> str:
    """Return what Pillow says of a file, without its path."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said.replace(repr(str(path)), "the file")


def _fault(path: Path, what: str, mend: str) -> FileError:
    return FileError(Problem(str(path), what, mend))

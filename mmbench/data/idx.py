"""idx files, the format of MNIST: two zero bytes, a type, the number of dimensions, their lengths
as big-endian 32-bit integers, the values. Source: Y. LeCun, C. Cortes, C. Burges, MNIST web page.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np

from mmbench.data.dataset import Problem
from mmbench.data.files import GZIP_MAGIC, inspect

UNSIGNED_BYTE = 0x08
"""The type code of the values; MNIST has no other."""


def read_idx(path: Path, dimensions: int) -> np.ndarray | Problem:
    """Return the uint8 array of a file, packed by gzip or not, or why it cannot be used.

    Refused: what :func:`mmbench.data.files.inspect` refuses, another magic number than that of
    bytes in so many dimensions, and a length that is not what the header says.
    """
    if problem := inspect(path):
        return problem
    where = str(path)
    content = path.read_bytes()
    if content.startswith(GZIP_MAGIC):
        content = gzip.decompress(content)
    magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if content[:4] != magic:
        what = f"starts with 0x{content[:4].hex()}; idx{dimensions} starts with 0x{magic.hex()}"
        return Problem(where, what, "download it again, or check that the names are not swapped")
    header = 4 + 4 * dimensions
    if len(content) < header:
        return Problem(where, "is cut: its header ends early", "download it again")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        what = f"holds {len(content) - header} bytes, its header says {math.prod(shape)}"
        return Problem(where, what, "download it again")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)

"""Make mmbench/data/mfeat.npz from UCI's text files.

    python scripts/make_mfeat.py FOLDER [OUTPUT]

FOLDER holds mfeat-fou, mfeat-zer, mfeat-mor, mfeat-pix and mfeat-kar as UCI distributes them.
All six views need more than the 500,000 bytes that the package allows itself, so five are packed:
features by rows, so that like stands beside like, and three of them rounded to 8 bits of each
feature's range. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from mmbench.datasets.mfeat import ARCHIVE, ROUNDED, SHIPPED, read_view

LEVELS = 255
"""Steps of an 8-bit code."""


def packed(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of the archive: a view each, ``(D, 2000)``, and the scale of rounded
    ones, ``(2, D)``: lowest value and step."""
    arrays: dict[str, np.ndarray] = {}
    for view in SHIPPED:
        values = read_view(folder, view).T
        if view in ROUNDED:
            arrays[view], arrays[f"{view}_scale"] = rounded(values)
        elif view == "pixels":
            arrays[view] = values.astype(np.uint8)
        else:
            arrays[view] = values
    return arrays


def rounded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 8-bit codes ``(D, N)`` and the scale ``(2, D)`` of features ``(D, N)``."""
    exact = values.astype(np.float64)
    lowest = exact.min(axis=1)
    step = (exact.max(axis=1) - lowest) / LEVELS
    codes = np.rint((exact - lowest[:, None]) / np.where(step > 0, step, 1)[:, None])
    return codes.astype(np.uint8), np.stack([lowest, step]).astype(np.float32)


def write_archive(arrays: dict[str, np.ndarray], output: Path) -> None:
    """Write an ``.npz`` whose bytes depend on the arrays alone: zip entries carry a fixed date."""
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content.getvalue(), compresslevel=9)


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python scripts/make_mfeat.py FOLDER [OUTPUT]")
    output = Path(sys.argv[2]) if len(sys.argv) == 3 else ARCHIVE
    write_archive(packed(Path(sys.argv[1])), output)
    print(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()

"""Multiple Features: six sets of features of the same 2,000 handwritten digits (UCI, CC BY 4.0).

Five views are in the package. Pixels and morphological features are as UCI distributes them;
Fourier, Zernike and Karhunen-Loève features are rounded to 8 bits of each feature's range, an
error of at most 0.2 % of the range and, root mean square, below 1 % of a standard deviation.
Everything exact, and the sixth view, comes from UCI's own files: ``-d source=FOLDER``.

Rows are in UCI's order, 200 a class; there is no official split, so the seed draws one.
"""

from __future__ import annotations

from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import field_validator, model_validator

import mmbench.data
from mmbench.data.dataset import (
    Dataset,
    DatasetInfo,
    Modality,
    Problem,
    Rows,
    Split,
    Splits,
    Verification,
)
from mmbench.data.files import FileError, require_sound
from mmbench.data.splits import stratified_parts
from mmbench.data.standardise import standardise
from mmbench.errors import unknown_name
from mmbench.options import Options, option

ROWS = 2000
CLASSES = tuple("0123456789")
FILES = {
    "fourier": ("mfeat-fou", 76),
    "zernike": ("mfeat-zer", 47),
    "morphological": ("mfeat-mor", 6),
    "pixels": ("mfeat-pix", 240),
    "karhunen": ("mfeat-kar", 64),
    "profile_correlations": ("mfeat-fac", 216),
}
"""UCI's file for each view, and its number of columns."""
SHIPPED = ("fourier", "zernike", "morphological", "pixels", "karhunen")
ROUNDED = ("fourier", "zernike", "karhunen")
SIZES = {"few": (300, 200, 1500), "full": (1200, 300, 500)}
ARCHIVE = Path(mmbench.data.__path__[0]) / "mfeat.npz"


class MultipleFeatures(Dataset):
    """Vectors of several views of one digit; none knows everything, and they overlap."""

    info = DatasetInfo(
        title="Multiple Features (UCI)",
        summary="2,000 handwritten digits, described by up to six sets of features",
        licence="CC BY 4.0",
        citation=(
            "R. Duin, Multiple Features, UCI Machine Learning Repository, 1998, doi:10.24432/C5HC70"
        ),
        modalities={
            "fourier": "76 Fourier coefficients of the character's shape",
            "zernike": "47 Zernike moments",
            "morphological": "6 morphological features",
        },
        protocols={
            "few": "300 train, 200 validation, 1,500 test rows, stratified, drawn by the seed",
            "full": "1,200 train, 300 validation, 500 test rows, stratified, drawn by the seed",
        },
    )

    class Config(Options):
        views: list[str] = option(
            ["fourier", "zernike", "morphological"],
            "modalities, in order: fourier, zernike, morphological, pixels, karhunen, and with "
            "source profile_correlations",
        )
        source: str | None = option(
            None, "folder with UCI's text files (mfeat-fou, ...), to read all views exactly"
        )

        @field_validator("views", mode="before")
        @classmethod
        def _words_are_a_list(cls, views: Any) -> Any:
            return views.split(",") if isinstance(views, str) else views

        @field_validator("views")
        @classmethod
        def _views_exist(cls, views: list[str]) -> list[str]:
            for view in views:
                if view not in FILES:
                    raise ValueError(str(unknown_name("view", view, FILES)))
            if not views:
                raise ValueError("name at least one view")
            if len(set(views)) < len(views):
                raise ValueError("a view is named twice")
            return views

        @model_validator(mode="after")
        def _views_are_at_hand(self) -> MultipleFeatures.Config:
            if self.source is None and (absent := set(self.views) - set(SHIPPED)):
                raise ValueError(
                    f"view {', '.join(sorted(absent))} is not in the package: download UCI's "
                    "Multiple Features and add -d source=FOLDER"
                )
            return self

    config: Config

    def recipe(self, protocol: str) -> dict[str, object]:
        return {
            "epochs": 60,
            "batch_size": 64,
            "optimizer": "sgd",
            "lr": 0.01,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "schedule": "constant",
        }

    def load(self, protocol: str, seed: int) -> Splits:
        self.check_protocol(protocol)
        labels = np.repeat(np.arange(len(CLASSES)), ROWS // len(CLASSES))
        parts = stratified_parts(labels, SIZES[protocol], seed, "mfeat", protocol)
        inputs: list[dict[str, Rows]] = [{} for _ in parts]
        for view in self.config.views:
            values = self._view(view)
            for rows, scaled in zip(inputs, standardise(*(values[p] for p in parts)), strict=True):
                rows[view] = Rows(scaled)
        train, val, test = (
            Split(rows, torch.from_numpy(labels[part]), np.array([f"mfeat-{i:04d}" for i in part]))
            for rows, part in zip(inputs, parts, strict=True)
        )
        modalities = {view: Modality("vector", (FILES[view][1],)) for view in self.config.views}
        return Splits(train, val, test, modalities, CLASSES)

    def _view(self, view: str) -> np.ndarray:
        if self.config.source is None:
            return shipped_view(view)
        return read_view(Path(self.config.source).expanduser(), view)

    def verify(self, source: Path) -> Verification:
        """Read all six text files, and compare them with what the package holds."""
        counts: dict[str, int] = {}
        problems: list[Problem] = []
        for view, (name, _) in FILES.items():
            try:
                values = read_view(source, view)
            except FileError as error:
                problems.append(error.problem)
                continue
            counts[f"{name} rows"] = len(values)
            if view in SHIPPED and not _agrees(values, view):
                what = "does not hold UCI's values in UCI's order"
                problems.append(Problem(str(source / name), what, "download it again"))
        return Verification(counts, tuple(problems), not problems)


@cache
def shipped_view(view: str) -> np.ndarray:
    """Return a view from the package as float32 ``(2000, D)``.

    The archive holds features by rows, which compresses better; a rounded view is ``lowest + step
    * code`` with a lowest value and a step for each feature.
    """
    require_sound(ARCHIVE)
    with np.load(ARCHIVE, allow_pickle=False) as archive:
        codes = archive[view].T
        if view not in ROUNDED:
            values: np.ndarray = codes.astype(np.float32)
            return values
        lowest, step = archive[f"{view}_scale"]
    restored: np.ndarray = lowest + step * codes.astype(np.float32)
    return restored


def _agrees(values: np.ndarray, view: str) -> bool:
    """Say whether a view equals the shipped one up to the rounding of the latter."""
    half_step = (values.max(axis=0) - values.min(axis=0)) / 255 * 0.51
    tolerance = half_step if view in ROUNDED else 0
    return bool((np.abs(values - shipped_view(view)) <= tolerance).all())


def read_view(folder: Path, view: str) -> np.ndarray:
    """Return a view from UCI's text file in ``folder`` as float32 ``(2000, D)``.

    Raises :class:`FileError` that names the file and the line unless there are 2,000 lines of the
    right number of finite numbers.
    """
    name, columns = FILES[view]
    path = folder / name
    require_sound(path)
    lines = [line.split() for line in path.read_text("latin-1").splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        if len(line) != columns:
            what = f"line {number} has {len(line)} columns instead of {columns}"
            raise _unlike_uci(path, what)
    if len(lines) != ROWS:
        raise _unlike_uci(path, f"there are {len(lines)} lines instead of {ROWS}")
    try:
        values = np.loadtxt(path, dtype=np.float64, encoding="latin-1", comments=None)
    except ValueError as error:
        raise _unlike_uci(path, _first_fault(lines)) from error
    if not np.isfinite(values).all():
        raise _unlike_uci(path, _first_fault(lines))
    exact: np.ndarray = values.astype(np.float32)
    return exact


def _first_fault(lines: list[list[str]]) -> str:
    """Return which line first holds something that is not a finite number."""
    for number, line in enumerate(lines, start=1):
        for field in line:
            try:
                finite = isfinite(float(field))
            except ValueError:
                finite = False
            if not finite:
                return f"line {number} holds '{field[:20]}', which is not a number"
    return "a line holds something that is not a number"


def _unlike_uci(path: Path, what: str) -> FileError:
    return FileError(Problem(str(path), what, "download UCI's Multiple Features again"))

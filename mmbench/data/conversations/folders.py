"""Features in folders, as GCNet and MoMKE have them: ``features/<name>/<utterance>.npy``.

A file holds a vector ``(D,)`` or one for each step ``(T, D)``, which are averaged. In place of a
file there may be a folder with a ``.npy`` for each picture of a face. The camera sees both speakers
of IEMOCAP, so the names of these pictures hold an ``F`` or an ``M`` and those of the utterance's
speaker are averaged; without such letters all are. No face at all gives zeros, as in GCNet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np

from mmbench.data.files import FileError, require_sound
from mmbench.data.problem import Problem

USUAL = {
    "text": "deberta-large-4-UTT",
    "audio": "wav2vec-large-c-UTT",
    "visual": "manet_UTT",
}
"""Folders that GCNet, MoMKE and EBMC read unless told otherwise."""
SEXES = ("F", "M")
AGAIN = "download or extract the features again"


class FeatureFolder:
    """The features of one modality, and a hash of all that was read of them."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            what, there = "does not exist", _folders(path.parent)
            mend = f"unpack it there, or name another with -d: {there}" if there else "unpack it"
            raise FileError(Problem(str(path), what, mend))
        self.path = path
        self.without_faces: list[str] = []
        """Utterances whose folder holds no picture of the speaker's face."""
        self._sha = hashlib.sha256()

    def read(self, utterance: str, speaker: str) -> np.ndarray | None:
        """Return the features ``(D,)`` float32 of an utterance, None where there is no face.

        Raises :class:`FileError` that names the file which is missing or damaged.
        """
        file, folder = self.path / f"{utterance}.npy", self.path / utterance
        if not file.is_file() and folder.is_dir():
            return self._faces(folder, speaker)
        if not file.exists():
            raise FileError(Problem(str(file), "does not exist", AGAIN))
        return self._vector(file)

    def sha256(self) -> str:
        """Return a hash of the files read so far, names and content, in the order of reading."""
        return self._sha.hexdigest()

    def _faces(self, folder: Path, speaker: str) -> np.ndarray | None:
        pictures = sorted(folder.glob("*.npy"))
        if speaker in SEXES and any(_sex(path) for path in pictures):
            pictures = [path for path in pictures if _sex(path) == speaker]
        vectors = [self._vector(path) for path in pictures]
        if not vectors:
            self.without_faces.append(folder.name)
            return None
        for path, vector in zip(pictures, vectors, strict=True):
            if len(vector) != len(vectors[0]):
                what = f"holds {len(vector)} features, {pictures[0].name} {len(vectors[0])}"
                raise FileError(Problem(str(path), what, AGAIN))
        averaged: np.ndarray = np.stack(vectors).mean(axis=0, dtype=np.float64)
        return averaged.astype(np.float32)

    def _vector(self, path: Path) -> np.ndarray:
        require_sound(path)
        content = path.read_bytes()
        self._sha.update(hashlib.sha256(f"{path.relative_to(self.path)}\0".encode()).digest())
        self._sha.update(hashlib.sha256(content).digest())
        try:
            values = np.load(BytesIO(content), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise FileError(Problem(str(path), "is no .npy file, or is cut", AGAIN)) from error
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf" or not values.ndim:
            raise FileError(Problem(str(path), "does not hold an array of numbers", AGAIN))
        steps = values.reshape(-1, values.shape[-1]) if values.size else values
        if not values.size:
            raise FileError(Problem(str(path), f"is empty: its shape is {values.shape}", AGAIN))
        if not np.isfinite(steps).all():
            mend = "extract its features again, or replace the values"
            raise FileError(Problem(str(path), "holds NaN or infinite values", mend))
        averaged: np.ndarray = np.asarray(steps.mean(axis=0, dtype=np.float64), dtype=np.float32)
        return averaged


def _sex(path: Path) -> str:
    """Return the letter that says whose face a picture shows, by GCNet's rule: F before M."""
    return next((letter for letter in SEXES if letter in path.stem), "")


def _folders(path: Path) -> str:
    names = (
        sorted(place.name for place in path.iterdir() if place.is_dir()) if path.is_dir() else []
    )
    return ", ".join(names)


def open_folders(root: Path, names: Mapping[str, str]) -> dict[str, FeatureFolder]:
    """Return the folder of each modality. Raises :class:`FileError` for one that is missing."""
    return {m: FeatureFolder(root / name) for m, name in names.items()}

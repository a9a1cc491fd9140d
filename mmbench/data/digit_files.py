"""The files of spoken and handwritten digits as users have them: read once, and judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmbench.data.dataset import Problem, Progress
from mmbench.data.idx import read_idx
from mmbench.data.wav import read_wav
from mmbench.errors import DataError

RATE = 8000
"""Hz, of every recording."""
DIGITS = tuple("0123456789")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TAKES = 50
"""Recordings of a digit by a speaker, with indices 0 to 49."""
NAMES = tuple(sorted(f"{d}_{s}_{i}" for d in DIGITS for s in SPEAKERS for i in range(TAKES)))
"""Of all 3,000 recordings, without the ending."""
TEST_IMAGES = "t10k"
"""The MNIST set that test rows of the official split take their images from."""


@dataclass(frozen=True)
class ImageSet:
    """One set of MNIST: images ``(N, 28, 28)`` and labels ``(N,)``, uint8."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Survey:
    """What lies in the user's folder, read once for `prepare` and `verify`."""

    recordings: dict[str, np.ndarray]
    """Sound recordings, int16 ``(samples,)`` by name."""
    sets: dict[str, ImageSet]
    problems: tuple[Problem, ...]
    files: tuple[Path, ...]
    """Everything that was read."""


def survey(source: Path, progress: Progress | None = None) -> Survey:
    """Read the recordings and image sets of a folder, noting what is wrong with each."""
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give the one that holds the recordings")
    problems: list[Problem] = []
    files: list[Path] = []
    recordings: dict[str, np.ndarray] = {}
    folder = _recordings_folder(source)
    found = sorted(folder.glob("*.wav")) if folder else []
    known = set(NAMES)
    for done, path in enumerate(found):
        samples = read_wav(path, RATE)
        if path.stem not in known:
            what = "is not named <digit>_<speaker>_<index>.wav of the 3,000 known recordings"
            problems.append(Problem(str(path), what, "move it away"))
        elif isinstance(samples, Problem):
            problems.append(samples)
        else:
            recordings[path.stem] = samples
            files.append(path)
        if progress:
            progress(done + 1, len(found), "recordings")
    present = {path.stem for path in found}
    get = "get recordings/ from github.com/Jakobovski/free-spoken-digit-dataset"
    where = folder or source / "recordings"
    if folder is None:
        problems.append(Problem(str(where), "does not exist", get))
    else:
        for name in sorted(known - present):
            problems.append(Problem(str(where / f"{name}.wav"), "does not exist", get))
    sets, faults, read = _image_sets(source)
    return Survey(recordings, sets, (*problems, *faults), (*files, *read))


def _recordings_folder(source: Path) -> Path | None:
    """Return ``recordings`` in the folder or in a folder in it, such as the dataset's clone."""
    places = [source / "recordings", *sorted(source.glob("*/recordings"))]
    return next((place for place in places if place.is_dir()), None)


def _image_sets(source: Path) -> tuple[dict[str, ImageSet], list[Problem], list[Path]]:
    sets: dict[str, ImageSet] = {}
    problems: list[Problem] = []
    files: list[Path] = []
    for folder in (source, source / "mnist"):
        for path in sorted(folder.glob("*-images-idx3-ubyte*")):
            name, _, ending = path.name.partition("-images-idx3-ubyte")
            if ending not in ("", ".gz") or name in sets:
                continue
            beside = [folder / f"{name}-labels-idx1-ubyte{end}" for end in (ending, "", ".gz")]
            label_path = next((other for other in beside if other.exists()), beside[0])
            images, labels = read_idx(path, 3), read_idx(label_path, 1)
            faults = [part for part in (images, labels) if isinstance(part, Problem)]
            if not isinstance(images, Problem) and not isinstance(labels, Problem):
                if images.shape[1:] != (28, 28) or len(images) != len(labels):
                    what = f"has shape {images.shape} beside {len(labels)} labels"
                    faults.append(Problem(str(path), what, "download both files again"))
                elif labels.size and labels.max() > 9:
                    faults.append(
                        Problem(str(label_path), "has labels above 9", "download it again")
                    )
                else:
                    sets[name] = ImageSet(images, labels)
                    files += [path, label_path]
            problems += faults
    if TEST_IMAGES not in sets:
        path = source / f"{TEST_IMAGES}-images-idx3-ubyte.gz"
        if not any(TEST_IMAGES in Path(problem.path).name for problem in problems):
            problems.append(Problem(str(path), "does not exist", "get the MNIST test set"))
    return sets, problems, files

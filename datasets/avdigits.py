"""Spoken and handwritten digits of the same class, from the files as distributed.

Audio: Free Spoken Digit Dataset, 3,000 recordings (10 digits, 6 speakers, 50 each; 8 kHz mono
PCM16). Images: MNIST. The pairs are made, not recorded together, as in AV-MNIST: those of a
``pairs.csv`` beside the files, else drawn by the fixed rule of :mod:`mmbench.data.digit_pairs`.

Audio is kept as a waveform. Its log-mel spectrogram is made by torchaudio in every batch on the
device, about a twentieth of the time of a training step of the default network on one CPU core.
Both inputs are standardised by the training rows, the spectrogram band by band; then come
``audio_noise`` and ``image_noise``, drawn once per row from its id and the seed, the same for every
method and in every epoch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmbench.data.dataset import (
    Dataset,
    DatasetInfo,
    Modality,
    Problem,
    Progress,
    Rows,
    Source,
    Split,
    Splits,
    Transform,
    Verification,
)
from mmbench.data.digit_files import (
    DIGITS,
    NAMES,
    RATE,
    SPEAKERS,
    Survey,
    survey,
)
from mmbench.data.digit_pairs import Pair, draw_pairs, read_pairs
from mmbench.data.files import cache_root, file_sha256, write_atomically
from mmbench.data.frontends import LogMel
from mmbench.data.transforms import FixedNoise, Spectrogram, as_picture, measure
from mmbench.errors import DataError
from mmbench.hashing import digest
from mmbench.options import Options, option

SCHEMA = 1
"""Of the cache; another is refused."""
TOLERATED = 0.01
"""Share of the recordings that may be missing or damaged; they are left out and counted."""
BANDS, WINDOW, HOP, FLOOR = 32, 256, 160, 1e-6
"""Of the log-mel spectrogram: windows of 32 ms every 20 ms. These, the length and the scaling by
band were settled while looking at the speaker theo (28 combinations with small networks were
tried): accuracies on theo are not free of that choice, which all methods share."""


@dataclass(frozen=True)
class Cache:
    """What `prepare` wrote: a folder of arrays and ``manifest.json``, which is written last."""

    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...]
    """Recordings that were missing or damaged."""
    samples: np.ndarray
    """Recordings end to end, int16; number i is ``samples[offsets[i]:offsets[i + 1]]``."""
    offsets: np.ndarray
    images: np.ndarray
    """``(N, 28, 28)`` uint8."""

    def fingerprint(self) -> str:
        """Return a hash of all that was prepared."""
        arrays = (self.samples, self.offsets, self.images)
        return digest(*map(repr, self.pairs), *(array.tobytes() for array in arrays))

    def waveforms(self, rows: np.ndarray, length: int) -> np.ndarray:
        """Return recordings ``(N, length)`` int16, cut at the end or followed by zeros."""
        fixed = np.zeros((len(rows), length), dtype=np.int16)
        for i, row in enumerate(rows):
            recording = self.samples[self.offsets[row] : self.offsets[row + 1]][:length]
            fixed[i, : len(recording)] = recording
        return fixed


def write_cache(
    folder: Path,
    pairs: Sequence[Pair],
    left_out: Sequence[str],
    found: Survey,
    files: Mapping[str, Path],
) -> None:
    """Write arrays and manifest; ``files`` is what was read, by the name it goes under there."""
    recordings = [found.recordings[pair.id] for pair in pairs]
    ends = np.cumsum([0, *(len(samples) for samples in recordings)]).astype(np.int64)
    images = np.stack([found.sets[pair.mnist_set].images[pair.mnist_index] for pair in pairs])
    arrays = {"samples": np.concatenate(recordings), "offsets": ends, "images": images}
    for name, array in arrays.items():
        with write_atomically(folder / f"{name}.npy") as path, path.open("wb") as file:
            np.save(file, array, allow_pickle=False)
    manifest = {
        "schema": SCHEMA,
        "rate": RATE,
        "left_out": list(left_out),
        "arrays": {name: file_sha256(folder / f"{name}.npy") for name in arrays},
        "pairs": [asdict(pair) for pair in pairs],
        "read": {name: file_sha256(path) for name, path in files.items()},
    }
    with write_atomically(folder / "manifest.json") as path:
        path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def read_cache(folder: Path) -> Cache:
    """Return the prepared data. Raises :class:`DataError` when they are missing or damaged."""
    mend = "run `mmbench data prepare avdigits --source DIR`"
    manifest_path = folder / "manifest.json"
    if not manifest_path.is_file():
        raise DataError(f"dataset 'avdigits' is not prepared in {folder}; {mend}")
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            raise DataError(f"{manifest_path} is of another version of mmbench; {mend} again")
        pairs = tuple(Pair(**pair) for pair in manifest["pairs"])
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("samples", "offsets", "images")
        }
        offsets = np.asarray(arrays["offsets"])
        fits = (
            len(offsets) == len(pairs) + 1
            and offsets[-1] == len(arrays["samples"])
            and arrays["images"].shape == (len(pairs), 28, 28)
        )
        if not fits:
            raise ValueError("the arrays do not belong together")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"the cache {folder} is damaged ({error}); {mend} again") from error
    return Cache(
        pairs, tuple(manifest["left_out"]), arrays["samples"], offsets, np.asarray(arrays["images"])
    )


def _pairs(given: Path, found: Survey) -> list[Pair]:
    return read_pairs(given, found.sets) if given.exists() else draw_pairs(NAMES, found.sets)


class AVDigits(Dataset):
    """Free Spoken Digit Dataset and MNIST, paired by digit."""

    info = DatasetInfo(
        title="AV-Digits: spoken and handwritten digits",
        summary="3,000 recordings by 6 speakers, each with an MNIST image of the same digit",
        licence="CC BY-SA 4.0 (recordings), CC BY-SA 3.0 as commonly stated (images)",
        citation="Z. Jackson et al., Free Spoken Digit Dataset, 2018; Y. LeCun, C. Cortes, "
        "C. Burges, The MNIST database of handwritten digits, 1998",
        modalities={
            "audio": "waveform, read through a log-mel spectrogram",
            "image": "28 x 28 grey image",
        },
        protocols={
            "speaker": "test on the speaker theo, validation on george, train on the other four",
            "official": "by index: 0-4 test, 5-9 validation, the rest train; speakers are shared",
        },
        files="recordings/*.wav (github.com/Jakobovski/free-spoken-digit-dataset), MNIST's "
        "<set>-images-idx3-ubyte.gz and <set>-labels-idx1-ubyte.gz with the set t10k at least, "
        "here or in mnist/, and a pairs.csv if there is one",
    )

    class Config(Options):
        audio_noise: float = option(
            0.0, "standard deviation of fixed noise on the standardised log-mel", ge=0
        )
        image_noise: float = option(
            0.0, "standard deviation of fixed noise on the standardised pixels", ge=0
        )
        seconds: float = option(
            0.8, "length that recordings are cut to, or filled up to with silence", ge=0.1, le=3
        )
        cache: str | None = option(
            None, "folder of the prepared data; avdigits in the cache unless given"
        )

    config: Config

    def __init__(self, config: Options) -> None:
        super().__init__(config)

    def recipe(self, protocol: str) -> dict[str, Any]:
        return {"epochs": 12, "lr": 0.02, "momentum": 0.9, "schedule": "cosine", "batch_size": 64}

    def prepare(self, source: Path, cache: Path, progress: Progress) -> str:
        """Write the recordings, the images that go with them, and a manifest into ``cache``.

        Raises :class:`DataError` when an image set is missing or damaged, or more than one in a
        hundred recordings; fewer are left out, and said to be.
        """
        found = survey(source, progress)
        given = source / "pairs.csv"
        pairs = _pairs(given, found)
        kept = [pair for pair in pairs if pair.id in found.recordings]
        left_out = [pair.id for pair in pairs if pair.id not in found.recordings]
        look = f"see `mmbench data verify avdigits --source {source}`"
        if len(left_out) > TOLERATED * len(pairs):
            raise DataError(
                f"{len(left_out)} of {len(pairs)} recordings are missing or damaged in {source}, "
                f"the first is {left_out[0]}; {look}"
            )
        files = [*found.files, given] if given.exists() else list(found.files)
        write_cache(cache, kept, left_out, found, {str(f.relative_to(source)): f for f in files})
        without = f"; left out: {', '.join(left_out)}" if left_out else ""
        return f"{len(kept)} pairs written to {cache}{without}"

    def verify(self, source: Path) -> Verification:
        """Count recordings by digit and speaker and images by set; name all that is wrong."""
        found = survey(source)
        parts = [name.split("_") for name in found.recordings]
        digits, speakers = Counter(p[0] for p in parts), Counter(p[1] for p in parts)
        counts = {"recordings": len(found.recordings)}
        counts |= {f"recordings of digit {digit}": digits[digit] for digit in DIGITS}
        counts |= {f"recordings of {speaker}": speakers[speaker] for speaker in SPEAKERS}
        counts |= {f"images in {name}": len(part.images) for name, part in found.sets.items()}
        problems = list(found.problems)
        given = source / "pairs.csv"
        pairs: list[Pair] = []
        try:
            pairs = _pairs(given, found)
            counts["pairs"] = sum(pair.id in found.recordings for pair in pairs)
        except DataError as error:
            problems.append(Problem(str(given if given.exists() else source), str(error)))
        unusable = sum(pair.id not in found.recordings for pair in pairs)
        usable = 0 < len(pairs) >= unusable / TOLERATED
        return Verification(counts, tuple(problems), usable)

    def load(self, protocol: str, seed: int) -> Splits:
        """Return the splits; ``seed`` draws the noise and nothing else."""
        self.check_protocol(protocol)
        chosen = self.config.cache
        cache = read_cache(Path(chosen).expanduser() if chosen else cache_root() / self.name())
        column = {"speaker": "by_speaker", "official": "official"}[protocol]
        split_of = np.array([getattr(pair, column) for pair in cache.pairs])
        front_end = LogMel(RATE, BANDS, WINDOW, HOP, FLOOR)
        samples = round(self.config.seconds * RATE)
        kinds = {
            "audio": Modality("spectrogram", front_end.shape(samples), stored="waveform"),
            "image": Modality("image", (1, 28, 28)),
        }
        stored = {
            name: {"audio": cache.waveforms(rows, samples), "image": cache.images[rows]}
            for name in ("train", "val", "test")
            for rows in [np.flatnonzero(split_of == name)]
        }
        first: dict[str, tuple[str, Transform]] = {
            "audio": (front_end.name, Spectrogram(front_end)),
            "image": ("pixels / 255", as_picture),
        }
        noise = {"audio": self.config.audio_noise, "image": self.config.image_noise}
        apart = {"audio": (2,), "image": ()}
        scales = {
            m: measure(Rows(stored["train"][m], [first[m][1]]), apart=apart[m]) for m in kinds
        }

        def split(name: str) -> Split:
            pairs = [pair for pair, part in zip(cache.pairs, split_of, strict=True) if part == name]
            ids = [pair.id for pair in pairs]
            inputs: dict[str, Source] = {}
            for m, kind in kinds.items():
                said, transform = first[m]
                transforms: list[Transform] = [transform, scales[m]]
                said += f"; standardised by the training rows, apart {apart[m]}"
                if noise[m] > 0:
                    drawn = FixedNoise.draw(ids, kind.shape, noise[m], seed, "avdigits", "noise", m)
                    transforms.append(drawn)
                    said += f"; noise {noise[m]}, seed {seed}"
                inputs[m] = Rows(stored[name][m], transforms, said)
            y = torch.tensor([pair.label for pair in pairs])
            return Split(inputs, y, np.array(ids), np.array([pair.speaker for pair in pairs]))

        return Splits(
            split("train"),
            split("val"),
            split("test"),
            kinds,
            DIGITS,
            notes=self._notes(protocol, cache),
            prepared=cache.fingerprint(),
        )

    def _notes(self, protocol: str, cache: Cache) -> tuple[str, ...]:
        notes = ["pairs are made, not recorded together"]
        if protocol == "official":
            notes.append("speakers are shared by train, validation and test")
        if cache.left_out:
            notes.append(f"{len(cache.left_out)} recordings were missing or damaged and left out")
        return tuple(notes)

"""What CMU-MOSI and CMU-MOSEI share: options, preparing, verifying, loading.

A dataset of this kind names its files and how many rows they ought to have. All else is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from mmbench.data.dataset import Dataset, Modality, Progress, Split, Splits, Verification
from mmbench.data.files import FileError, cache_root, file_sha256, inspect
from mmbench.data.problem import Problem
from mmbench.data.sentiment.archives import MODALITIES, SETS, Archive, Form, read_archive
from mmbench.data.sentiment.scores import CLASSES, LEFT_OUT, class_numbers
from mmbench.data.sentiment.sequences import MappedSequences, StandardiseSteps
from mmbench.data.sentiment.store import Stored, array_file, open_stored, write
from mmbench.data.unread import refuse_unread
from mmbench.errors import DataError
from mmbench.hashing import digest
from mmbench.options import Options, option

SPLITS = tuple(SETS.values())
PLACES = ("Processed", "{corpus}", "{corpus}/Processed")
"""Folders in the one given where the files may lie; MMSA's lie in ``MOSEI/Processed``."""
PUBLISHED = {
    "cmu_mosei": {(16326, 1871, 4659), (16265, 1869, 4643)},
    "cmu_mosi": {(1284, 229, 686)},
}
"""Rows of train, validation and test that some file of each corpus has."""


@dataclass(frozen=True)
class Known:
    """A file that people have."""

    form: Form
    is_aligned: bool
    """Whether step ``i`` of every modality is word ``i``."""
    rows: tuple[int, int, int]
    """Sentences of train, validation and test."""
    sha256: str | None = None
    """As published; None where none is."""


class SentimentOptions(Options):
    """Options of a dataset of scored sentences; a subclass says which files there are."""

    file: str | None = option(
        None, "which file to prepare or to read; needless where there is only one"
    )
    standardise: bool = option(
        False,
        "give each feature mean 0 and deviation 1 over the steps of the training rows that are "
        "not padding; otherwise features are as they were extracted, as MulT has them",
    )
    cache: str | None = option(
        None, "folder of the prepared data; one of the dataset's name in the cache unless given"
    )


class SentimentDataset(Dataset):
    """A dataset of scored sentences. A subclass fills the class variables."""

    class Config(SentimentOptions):
        """Options of the dataset; a subclass replaces it."""

    config: SentimentOptions
    files: ClassVar[Mapping[str, Known]]
    """By name."""
    corpus: ClassVar[str]
    """The name of the folder that MMSA keeps it in."""

    def recipe(self, protocol: str) -> dict[str, object]:
        """Return BalanceBenchmark's settings (SGD, a tenth of the rate every 30 of 70 epochs)."""
        return {
            "epochs": 70,
            "batch_size": 64,
            "optimizer": "sgd",
            "lr": 1e-3,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "schedule": "step",
            "step_epochs": 30,
            "step_factor": 0.1,
        }

    # -- files -------------------------------------------------------------------------------------

    def prepare(self, source: Path, cache: Path, progress: Progress) -> str:
        """Write the arrays of one file into a folder of its own in ``cache``."""
        refuse_unread(self.config, ["file"])
        found = self._find(source)
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise DataError(f"{source} holds {names}; choose one with -d file=NAME")
        archive = self._read(found[0])
        folder = cache / found[0].stem
        manifest = write(archive, self.name(), folder, progress)
        size = sum(path.stat().st_size for path in folder.glob("*.npy"))
        counts = "/".join(f"{manifest.rows[split]:,}" for split in SPLITS)
        said = [f"{found[0].name}: {counts} sentences, {size / 1e6:.1f} MB in {folder}"]
        return "; ".join(
            (
                *said,
                *_replaced(manifest.replaced),
                *self._count_notes(found[0].name, archive.counts),
            )
        )

    def verify(self, source: Path) -> Verification:
        """Read every known file to its end; count its rows by split and by class."""
        refuse_unread(self.config, ["file"])
        counts: dict[str, int] = {}
        problems: list[Problem] = []
        usable = True
        found = self._find(source)
        for path in found:
            before = f"{path.name}: " if len(found) > 1 else ""
            try:
                archive = self._read(path)
            except FileError as error:
                problems.append(error.problem)
                usable = False
                continue
            counts |= {f"{before}{what}": n for what, n in self._counts(archive).items()}
            problems += self._doubts(archive)
            del archive  # before the next is read: each takes as much memory as its file is large
        return Verification(counts, tuple(problems), usable)

    def _find(self, source: Path) -> list[Path]:
        """Return the known files at a place, or the one that was chosen."""
        try:
            return self._found(source)
        except PermissionError as error:
            raise DataError(f"{error.filename} cannot be read; check its permissions") from error

    def _found(self, source: Path) -> list[Path]:
        names = [self.config.file] if self.config.file else [*self.files]
        if source.is_file():
            if source.name not in names:
                raise DataError(
                    f"{source} is none of {', '.join(names)}; give it the name under which it was "
                    "published"
                )
            return [source]
        places = [source, *(source / p.format(corpus=self.corpus) for p in PLACES)]
        for place in places:
            if there := [place / name for name in names if (place / name).exists()]:
                return there
        raise DataError(
            f"{source} holds no {', '.join(names)}; download one of them from MulT "
            "(github.com/yaohungt/Multimodal-Transformer) or MMSA (github.com/thuiar/MMSA)"
        )

    def _read(self, path: Path) -> Archive:
        if problem := inspect(path):
            raise FileError(problem)
        archive = read_archive(path)
        for other, published in PUBLISHED.items():
            if other != self.name() and archive.counts in published:
                what = f"holds the rows of {other}, not of {self.name()}"
                raise FileError(Problem(str(path), what, f"use it for {other}"))
        known = self.files[path.name]
        if archive.form != known.form:
            what = f"is of {archive.form}'s form, not of {known.form}'s as its name says"
            raise FileError(Problem(str(path), what, "give it the name it was published under"))
        return archive

    def _counts(self, archive: Archive) -> dict[str, int]:
        is_known = archive.counts in PUBLISHED[self.name()]
        published = archive.counts if is_known else self.files[archive.path.name].rows
        expected = dict(zip(SPLITS, published, strict=True))
        counts = {f"{s} (of {expected[s]})": len(archive.parts[s]) for s in SPLITS}
        by_split = {s: archive.parts[s].scores for s in SPLITS}
        for split, scores in by_split.items():
            held = np.bincount(class_numbers(scores, "three"), minlength=3).tolist()
            counts |= {f"{split}: {c}": n for c, n in zip(CLASSES["three"], held, strict=True)}
        whole = class_numbers(np.concatenate([*by_split.values()]), "seven")
        held = np.bincount(whole, minlength=7).tolist()
        return counts | {
            f"score rounded to {c}": n for c, n in zip(CLASSES["seven"], held, strict=True)
        }

    def _doubts(self, archive: Archive) -> list[Problem]:
        """Return what is strange about a file that can be used."""
        path, known = archive.path, self.files[archive.path.name]
        again = "download it again, unless it is a file of your own"
        doubts = [(note, again) for note in self._count_notes(path.name, archive.counts)]
        if known.sha256 and file_sha256(path) != known.sha256:
            doubts.append(("is not the file that was published (SHA-256)", again))
        if known.is_aligned and len({steps for steps, _ in archive.shapes.values()}) > 1:
            doubts.append((f"is not aligned, as its name says: {_shapes(archive.shapes)}", again))
        bad = {m: _count_bad(archive, m) for m in MODALITIES}
        doubts += [(note, "nothing to do") for note in _replaced(bad)]
        if beyond := sum(int((abs(p.scores) > 3).sum()) for p in archive.parts.values()):
            doubts.append((f"{beyond} scores are beyond -3 and 3", again))
        if archive.repeated_ids:
            doubts.append((_repeated(archive.repeated_ids), "nothing to do"))
        return [Problem(str(path), what, mend) for what, mend in doubts]

    def _count_notes(self, file: str, counts: tuple[int, ...]) -> list[str]:
        if counts in PUBLISHED[self.name()]:
            return []
        return [f"{_said(counts)} sentences, not the {_said(self.files[file].rows)} published"]

    # -- loading -----------------------------------------------------------------------------------

    def load(self, protocol: str, seed: int) -> Splits:
        """Return the sets as they were published; the seed draws nothing."""
        self.check_protocol(protocol)
        try:
            stored = self._opened()
        except PermissionError as error:
            raise DataError(f"{error.filename} cannot be read; check its permissions") from error
        numbers = {s: class_numbers(stored.scores[s], protocol) for s in SPLITS}
        train, val, test = (self._split(stored, s, numbers[s]) for s in SPLITS)
        shapes = stored.manifest.shapes
        modalities = {m: Modality("sequence", (shapes[m][0], shapes[m][1])) for m in MODALITIES}
        notes = (
            *self._notes(stored),
            *_shared_videos({"train": train, "val": val, "test": test}),
            *_class_notes(protocol, numbers),
        )
        sums = stored.manifest.rows_sha256, *stored.manifest.values_sha256.values()
        classes = CLASSES[protocol]
        return Splits(train, val, test, modalities, classes, notes, prepared=digest(*sums))

    def _split(self, stored: Stored, split: str, numbers: np.ndarray) -> Split:
        manifest = stored.manifest
        kept = np.flatnonzero(numbers != LEFT_OUT)
        inputs = {}
        for m in MODALITIES:
            path, sha = array_file(stored.folder, split, m), manifest.values_sha256[f"{split}-{m}"]
            moments = manifest.moments[m]
            inputs[m] = (
                MappedSequences(
                    path,
                    sha,
                    kept,
                    (StandardiseSteps(moments.mean, moments.deviation),),
                    f"standardised by {moments.mean} {moments.deviation}",
                )
                if self.config.standardise
                else MappedSequences(path, sha, kept)
            )
        videos = stored.videos[split][kept] if manifest.has_videos else None
        return Split(inputs, torch.from_numpy(numbers[kept]), stored.ids[split][kept], videos)

    def _opened(self) -> Stored:
        """Return the prepared file that was chosen, or the only one."""
        chosen = self.config.cache
        root = Path(chosen).expanduser() if chosen else cache_root() / self.name()
        stems = {Path(name).stem: name for name in self.files}
        if self.config.file:
            file = self.config.file
            return open_stored(self.name(), root / Path(file).stem, file)
        begun = [stem for stem in stems if (root / stem).is_dir()]
        prepared = [stem for stem in begun if (root / stem / "manifest.json").is_file()]
        if len(prepared) > 1:
            names = " and ".join(stems[stem] for stem in prepared)
            raise DataError(
                f"dataset '{self.name()}': {names} are prepared in {root}; choose one with "
                "-d file=NAME"
            )
        if not begun:
            raise DataError(
                f"dataset '{self.name()}' is not prepared in {root}; run `mmbench data prepare "
                f"{self.name()} --source DIR`"
            )
        return open_stored(self.name(), root / (prepared or begun)[0])

    def _notes(self, stored: Stored) -> list[str]:
        manifest = stored.manifest
        known = self.files[manifest.file]
        is_aligned = known.is_aligned and len({steps for steps, _ in manifest.shapes.values()}) == 1
        state = "aligned" if is_aligned else "not aligned"
        notes = [f"{manifest.file} ({manifest.form}, {state}): {_shapes(manifest.shapes)}"]
        counts = tuple(manifest.rows[split] for split in SPLITS)
        notes += self._count_notes(manifest.file, counts)
        notes += _replaced(manifest.replaced)
        if manifest.repeated_ids:
            notes.append(_repeated(manifest.repeated_ids))
        if not manifest.has_videos:
            notes.append("the file names no videos: whether sets share any is not known")
        return notes


def _class_notes(protocol: str, numbers: Mapping[str, np.ndarray]) -> list[str]:
    if protocol == "binary":
        return ["a score of 0, neutral, counts as non-negative"]
    if protocol == "nonzero":
        dropped = "/".join(f"{int((numbers[split] == LEFT_OUT).sum()):,}" for split in SPLITS)
        return [f"neutral sentences left out: {dropped} of train/val/test"]
    return []


def _shared_videos(splits: Mapping[str, Split]) -> list[str]:
    """Return which videos are in two sets."""
    videos = {s: set() if p.groups is None else {*p.groups.tolist()} for s, p in splits.items()}
    words = {"val": "validation", "test": "test", "train": "train"}
    return [
        f"{len(shared)} of the {len(videos[one])} videos of {words[one]} are in {words[other]}"
        for one, other in (("test", "train"), ("val", "train"), ("test", "val"))
        if (shared := videos[one] & videos[other])
    ]


def _replaced(replaced: Mapping[str, int]) -> list[str]:
    return [f"{n:,} values of {m} infinite or NaN, read as 0" for m, n in replaced.items() if n]


def _repeated(count: int) -> str:
    return f"{count} sentences have the id of one before them"


def _count_bad(archive: Archive, modality: str) -> int:
    """Return how many values are not finite, set by set and some rows at a time."""
    bad = 0
    for part in archive.parts.values():
        values = part.features[modality]
        for start in range(0, len(values), 1024):
            bad += int((~np.isfinite(values[start : start + 1024])).sum())
    return bad


def _shapes(shapes: Mapping[str, tuple[int, int] | list[int]]) -> str:
    return ", ".join(f"{m} {steps} x {width}" for m, (steps, width) in shapes.items())


def _said(counts: tuple[int, ...]) -> str:
    return "/".join(f"{count:,}" for count in counts)

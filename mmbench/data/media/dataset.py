"""What datasets of clips share: options, preparing, verifying, loading.

A dataset of this kind says which clips its archive ought to hold (``listing``), which of them a
protocol trains and tests on (``divide``), and what a network is shown of them (``_inputs``), which
for clips with picture and sound is done here. So is the rest: decoding, counting what is missing,
carving validation from train by group, or by class where there are none. A clip may be a still
picture.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch

from mmbench.data.dataset import (
    DecodedDataset,
    Modality,
    Problem,
    Progress,
    Source,
    Split,
    Splits,
    Verification,
)
from mmbench.data.files import cache_root
from mmbench.data.frontends import build_front_end
from mmbench.data.frontends.source import Spectrograms
from mmbench.data.media.cache import Cache, open_cache
from mmbench.data.media.manifest import (
    TOLERATED,
    Clip,
    LeftOut,
    Manifest,
    MediaRecipe,
    Row,
)
from mmbench.data.media.pointers import Pointer, pointers
from mmbench.data.media.prepare import prepare
from mmbench.data.media.sources import FrameSource, WaveSource
from mmbench.data.media.verify import judged
from mmbench.data.splits import carve
from mmbench.data.unread import refuse_unread
from mmbench.errors import DataError
from mmbench.options import Options, option


class Described(Source, Protocol):
    """A source that says what an encoder receives of it."""

    def modality(self) -> Modality: ...


KEPT_AS = ("fps", "short_side", "seconds")
"""Of a recipe: what options may change, those that a dataset has."""
Listed = Clip | Row | LeftOut
"""What has an id, a label, a group and a split."""


class PictureOptions(Options):
    """Options of a dataset of still pictures, and of all others here; a subclass changes defaults
    and adds its own."""

    size: int = option(224, "pixels of the square that a picture is made to", ge=32)
    short_side: int | None = option(
        None, "pixels of the shorter side of a kept picture; the dataset's own unless given", ge=32
    )
    val_fraction: float = option(
        0.1,
        "share of the training rows that validation gets where it is taken from train, by group or "
        "else by class",
        gt=0,
        lt=1,
    )
    allow_missing: bool = option(
        False, "go on when more than one row in a hundred is missing, damaged or silent"
    )
    cache: str | None = option(
        None, "folder of the prepared data; one of the dataset's name in the cache unless given"
    )


class ClipOptions(PictureOptions):
    """Options of a dataset of clips, with or without sound."""

    frames: int = option(3, "frames of a clip that the network sees", ge=1)
    frame_policy: Literal["segments", "first"] = option(
        "segments",
        "a frame of each of so many equal segments, random in training and the middle one at "
        "evaluation; or always the first ones, as older code did",
    )
    fps: float | None = option(
        None, "frames a second to keep in the cache; the dataset's own unless given", gt=0
    )
    seconds: float | None = option(
        None, "longest part of a clip to keep in the cache; the dataset's own unless given", gt=0
    )


class MediaOptions(ClipOptions):
    """Options of a dataset of clips with picture and sound."""

    front_end: str = option(
        "ogm_stft",
        "spectrogram of the sound, by its name in docs/datasets/audio-and-frames.md",
    )


class ListedMediaOptions(MediaOptions):
    """Options of such a dataset with a protocol that has a list of validation."""

    validation: Literal["listed", "carved"] = option(
        "listed",
        "take the validation list of a protocol that has one; or take validation from train all "
        "the same, and leave the clips of the list out",
    )


@dataclass(frozen=True)
class Listing:
    """What an archive ought to hold, seen from the folder it lies in."""

    source: Path
    """The folder that the clips' paths start at."""
    clips: tuple[Clip, ...]
    problems: tuple[Problem, ...] = ()
    """Of the folder and of lists, such as files with strange names; clips are judged elsewhere."""
    lists: Mapping[str, bytes] = field(default_factory=dict)
    """Lists of a user's own, to be kept in the cache."""


@dataclass(frozen=True)
class Division:
    """Ids by split. Without ``val``, validation is carved from train."""

    train: frozenset[str]
    test: frozenset[str]
    val: frozenset[str] | None = None
    notes: tuple[str, ...] = ()

    def parts(self) -> dict[str, frozenset[str]]:
        return {
            "train": self.train,
            **({} if self.val is None else {"val": self.val}),
            "test": self.test,
        }


@dataclass(frozen=True)
class Inputs:
    """What a network is shown of the clips."""

    by_split: Mapping[str, Mapping[str, Described]]
    """Modalities of each split."""
    notes: tuple[str, ...] = ()


class ClipDataset(DecodedDataset):
    """A dataset of clips or still pictures. A subclass fills the class variables and writes the
    abstract methods."""

    class Config(PictureOptions):
        """Options of the dataset; a subclass replaces it."""

    config: PictureOptions
    kept: ClassVar[MediaRecipe]
    """How clips are kept unless options say otherwise."""
    listed_by: ClassVar[tuple[str, ...]] = ()
    """Options that ``listing`` reads."""
    groups_are: ClassVar[str | None] = None
    """The word for groups, such as ``actors``; None where there are none."""
    known_damaged: ClassVar[Mapping[str, str]] = {}
    """What is wrong with clips that are damaged in every copy, by id."""
    pointer_folders: ClassVar[tuple[str, ...]] = ()
    """Folders of the archive whose files git-LFS keeps, where it is distributed that way."""

    @abstractmethod
    def listing(self, source: Path) -> Listing:
        """Return what ought to be in a user's folder. Raises :class:`DataError` when it is another
        folder or its lists cannot be used."""

    @abstractmethod
    def divide(
        self, protocol: str, clips: Sequence[Listed], lists: Mapping[str, bytes]
    ) -> Division:
        """Return which clips, of those listed, a protocol trains and tests on; those left out of
        the cache are among them, so that they can be counted."""

    @abstractmethod
    def _inputs(self, cache: Cache, places: Mapping[str, np.ndarray]) -> Inputs:
        """Return the modalities of the clips at these places of the manifest, int64 ``(N,)``, by
        split: what is fitted is fitted to those of ``train``."""

    def further_labels(
        self, ids: Sequence[str], lists: Mapping[str, bytes]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return labels of single modalities for clips, as :class:`Split` has them."""
        return {}

    def classes(self, clips: Sequence[Listed]) -> tuple[str, ...]:
        """Return the classes in order: the names of all listed clips, sorted."""
        return tuple(sorted({clip.label for clip in clips}))

    def recipe(self, protocol: str) -> dict[str, object]:
        """Return the settings that papers on these data share since OGM-GE (CVPR 2022)."""
        return {
            "epochs": 100,
            "batch_size": 64,
            "optimizer": "sgd",
            "lr": 1e-3,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "schedule": "step",
            "step_epochs": 70,
            "step_factor": 0.1,
        }

    # -- files -------------------------------------------------------------------------------------

    def media_recipe(self) -> MediaRecipe:
        """Return how clips are to be kept."""
        return replace(self.kept, **self._asked())

    def _read_of_files(self) -> tuple[str, ...]:
        """Return the options that verifying and preparing read."""
        return (*KEPT_AS, "allow_missing", *self.listed_by)

    def _asked(self) -> dict[str, Any]:
        """Return the options given that say how clips are to be kept."""
        options = {name: getattr(self.config, name, None) for name in KEPT_AS}
        return {name: value for name, value in options.items() if value is not None}

    def prepare(
        self, source: Path, cache: Path, progress: Progress, workers: int | None = None
    ) -> str:
        """Decode the clips into ``cache``, once, in so many processes (None: one a core).

        See :func:`mmbench.data.media.prepare.prepare`.
        """
        refuse_unread(self.config, self._read_of_files())
        listing = self.listing(source)
        manifest = prepare(
            self.name(),
            listing.clips,
            listing.source,
            self.media_recipe(),
            cache,
            progress,
            workers,
            self.config.allow_missing,
            listing.lists,
        )
        size = sum(sum(row.kept_bytes.values()) for row in manifest.rows)
        frames = sum(row.frames for row in manifest.rows)
        counted = "" if self.kept.is_of_stills else f", {frames} frames"
        clips = f"{len(manifest.rows)} {self.kept.clips_are}"
        said = [f"{clips}{counted}, {size / 1e6:.1f} MB in {cache}"]
        if manifest.left_out:
            first = manifest.left_out[0]
            said.append(
                f"{len(manifest.left_out)} left out, the first: {first.path} {first.what}, "
                f"{first.mend}; `mmbench data verify` names all"
            )
        return "; ".join((*said, *_quality_notes(manifest)))

    def verify(
        self, source: Path, progress: Progress | None = None, workers: int | None = None
    ) -> Verification:
        """Decode every clip to its end; count sound ones by class and by split of each protocol
        against what is expected, and name all that is wrong."""
        refuse_unread(self.config, self._read_of_files())
        listing = self.listing(source)
        known = self._pointers(listing.source)
        found = judged(listing.clips, listing.source, self.media_recipe(), known, progress, workers)
        sound = [clip for clip in listing.clips if not found[clip.id]]
        counts = {f"{self.kept.clips_are} (of {len(listing.clips)})": len(sound)}
        expected = Counter(clip.label for clip in listing.clips)
        held = Counter(clip.label for clip in sound)
        counts |= {
            f"{label} (of {expected[label]})": held[label] for label in self.classes(listing.clips)
        }
        counts |= self._split_counts(listing, {clip.id for clip in sound})
        if known:
            counts["files checked against git-LFS pointers"] = len(known)
        problems = [
            *listing.problems,
            *self._known_problems(listing),
            *(problem for clip in listing.clips for problem in found[clip.id]),
        ]
        once = dict.fromkeys(problems)  # clips may share a file
        unusable = len(listing.clips) - len(sound)
        usable = bool(sound) and (
            self.config.allow_missing or unusable <= TOLERATED * len(listing.clips)
        )
        return Verification(counts, tuple(once), usable)

    def _pointers(self, source: Path) -> dict[str, Pointer]:
        return pointers(source, self.pointer_folders) if self.pointer_folders else {}

    def _known_problems(self, listing: Listing) -> list[Problem]:
        return [
            Problem(
                str(listing.source / clip.video),
                f"is known to be damaged in every copy: {self.known_damaged[clip.id]}",
                "nothing to do",
            )
            for clip in listing.clips
            if clip.id in self.known_damaged and (listing.source / clip.video).is_file()
        ]

    def _split_counts(self, listing: Listing, sound: set[str]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for protocol in self.protocols:
            try:
                division = self.divide(protocol, listing.clips, listing.lists)
            except DataError:
                continue  # a protocol whose lists are not there; they are needed for it alone
            for name, ids in division.parts().items():
                what = "train and val" if name == "train" and division.val is None else name
                counts[f"{protocol}: {what} (of {len(ids)})"] = len(ids & sound)
        return counts

    # -- loading -----------------------------------------------------------------------------------

    def load(self, protocol: str, seed: int) -> Splits:
        """Return the splits; ``seed`` draws the rows of validation where they are carved."""
        self.check_protocol(protocol)
        cache = self._opened()
        manifest = cache.manifest
        lists = cache.lists()
        listed: list[Listed] = [*manifest.rows, *manifest.left_out]
        division = self.divide(protocol, listed, lists)
        classes = self.classes(listed)
        numbers = {label: i for i, label in enumerate(classes)}
        labels = np.array([numbers[row.label] for row in manifest.rows])
        named = np.array([row.group for row in manifest.rows])
        groups = None if self.groups_are is None else named
        places = {
            name: np.array([i for i, row in enumerate(manifest.rows) if row.id in ids], dtype=int)
            for name, ids in division.parts().items()
        }
        lost = self._count_left_out(division, manifest)
        for name, part in places.items():
            if len(part) == 0:
                raise DataError(
                    f"dataset '{self.name()}', protocol '{protocol}': none of the prepared "
                    f"{self.kept.clips_are} is in {name}; choose another protocol, or prepare all "
                    "of the data"
                )
        leak = self._leak(groups, places)
        if "val" not in places:
            train = places["train"]
            key = (seed, self.name(), protocol, "val")
            held = carve(labels[train], _at(groups, train), self.config.val_fraction, *key)
            places["val"] = train[held]
            places["train"] = np.delete(train, held)
        inputs = self._inputs(cache, places)
        ids = np.array([row.id for row in manifest.rows])
        parts = {
            name: Split(
                inputs.by_split[name],
                torch.from_numpy(labels[part]),
                ids[part],
                _at(groups, part),
                self.further_labels(ids[part].tolist(), lists),
            )
            for name, part in places.items()
        }
        return Splits(
            parts["train"],
            parts["val"],
            parts["test"],
            {name: source.modality() for name, source in inputs.by_split["train"].items()},
            classes,
            notes=(
                *division.notes,
                *leak,
                *lost,
                *_quality_notes(manifest),
                *inputs.notes,
            ),
            prepared=manifest.fingerprint,
        )

    def _leak(self, groups: np.ndarray | None, places: Mapping[str, np.ndarray]) -> list[str]:
        """Return a note on groups that are trained on and tested."""
        if groups is None:
            return []
        tested = {*groups[places["test"]]}
        shared = len(tested & {*groups[places["train"]]})
        said = f"{shared} of the {len(tested)} {self.groups_are} of test are in train or validation"
        return [said] if shared else []

    def _opened(self) -> Cache:
        """Return the cache. Raises :class:`DataError` when it is not as the options ask."""
        chosen = self.config.cache
        folder = Path(chosen).expanduser() if chosen else cache_root() / self.name()
        cache = open_cache(self.name(), folder)
        for name, asked in self._asked().items():
            if asked != (kept := getattr(cache.manifest.recipe, name)):
                raise DataError(
                    f"dataset '{self.name()}' is prepared with {name}={kept:g} in {folder}, not "
                    f"{asked:g}; leave the option out, or prepare it so into another folder "
                    "(--cache) and name that with -d cache=FOLDER"
                )
        return cache

    def _count_left_out(self, division: Division, manifest: Manifest) -> list[str]:
        """Return a note for each split that lacks clips. Raises :class:`DataError` where they are
        too many."""
        clips = self.kept.clips_are
        absent = {clip.id for clip in manifest.left_out}
        notes = []
        for name, ids in division.parts().items():
            lost = len(ids & absent)
            if lost > TOLERATED * len(ids) and not self.config.allow_missing:
                raise DataError(
                    f"dataset '{self.name()}': {lost} of {len(ids)} {clips} of {name} are missing "
                    "or damaged; get them and prepare again, or add -d allow_missing=true"
                )
            if lost:
                notes.append(f"{lost} of {len(ids)} {clips} of {name} missing or damaged, left out")
        return notes


class MediaDataset(ClipDataset):
    """A dataset of clips with picture and sound."""

    class Config(MediaOptions):
        """Options of the dataset; a subclass replaces it."""

    config: MediaOptions

    def _inputs(self, cache: Cache, places: Mapping[str, np.ndarray]) -> Inputs:
        return Inputs({name: self._shown(cache, part) for name, part in places.items()})

    def _shown(self, cache: Cache, places: np.ndarray) -> dict[str, Described]:
        options = self.config
        waves = WaveSource(cache, places)
        return {
            "audio": Spectrograms(waves, build_front_end(options.front_end, waves.rate)),
            "visual": FrameSource(
                cache, places, options.frames, options.frame_policy, options.size
            ),
        }


def _at(groups: np.ndarray | None, places: np.ndarray) -> np.ndarray | None:
    return None if groups is None else groups[places]


def _quality_notes(manifest: Manifest) -> list[str]:
    """Return what is to be said of the clips that were kept."""
    rows = manifest.rows
    resampled = Counter(
        row.rate_in_file
        for row in rows
        if row.audio is not None and row.rate_in_file != manifest.recipe.rate
    )
    counted = {
        "silent": sum(row.is_silent for row in rows),
        "with several channels of sound, averaged": sum(row.channels > 1 for row in rows),
    }
    counted |= {
        f"resampled from {rate} to {manifest.recipe.rate} Hz": count
        for rate, count in sorted(resampled.items())
    }
    return [
        f"{count} {'clip' if count == 1 else 'clips'} {what}"
        for what, count in counted.items()
        if count
    ]

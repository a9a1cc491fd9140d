"""VGGSound: about 199,000 clips of 10 seconds of 309 sounds whose source is seen.

Which clips there are is said by ``vggsound.csv`` (github.com/hche11/VGGSound, ``data``), of lines
``<YouTube id>,<start>,<label>,<train or test>`` without a header; labels that hold commas stand in
quotes. The clips themselves are found by their names in whatever folders they lie: the YouTube id,
11 letters with ``-`` and ``_`` among them, then the start in seconds, padded with zeros or not,
then nothing, or the end in seconds, or both times in milliseconds, as downloaders write them.

The list has 199,467 lines, 291 more than the authors' archive has clips; of the copy that most
people have 197,957 clips can be used, and YouTube itself has lost many more. Clips that are not
there are counted by split, in every result too.

Classes are the labels of the list in the order of their names, as in the authors' code. OGM-GE
numbers them by first appearance among the clips that exist, so that one lost file can renumber all
of them. There is no validation set: it is taken from train by video, since a video can have several
clips. Of OGM-GE's preparation the sound is as in its code but for the window at evaluation
(:mod:`mmbench.data.frontends.ogm_stft`); frames are those shown at every second, where it takes
every ``int(fps)``-th, and it leaves out clips of fewer than four frames, which are kept here.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmbench.data.dataset import DatasetInfo, Problem
from mmbench.data.list_files import numbered, read_list
from mmbench.data.media.dataset import Division, Listed, Listing, MediaDataset, MediaOptions
from mmbench.data.media.manifest import Clip, MediaRecipe
from mmbench.errors import DataError
from mmbench.options import option

NAME = re.compile(r"([\w-]{11})_(\d+)(?:_(\d+))?", re.ASCII)
YOUTUBE = re.compile(r"[\w-]{11}", re.ASCII)
ENDINGS = ("mp4", "mkv", "webm", "avi")
PACKED = (".tar", ".tar.gz", ".tgz", ".zip")
SECONDS = 10
"""Of every clip."""
CLASSES = 309
SPLITS = ("train", "test")
PUBLISHED = ({"train": 183971, "test": 15496}, {"train": 183730, "test": 15446})
"""Lines of ``vggsound.csv``; clips of the authors' archive, which ``train.csv`` and ``test.csv``
name (hche11/VGGSound#19)."""
LIST = "vggsound.csv"
PARTS = ("train.csv", "test.csv")
ORIGIN = "github.com/hche11/VGGSound (data/vggsound.csv)"
FORM = "<YouTube id>,<start in seconds>,<label>,<train or test>"


@dataclass(frozen=True)
class Entry:
    """A line of the list."""

    video: str
    start: int
    """Seconds."""
    label: str
    split: str

    @property
    def id(self) -> str:
        return f"{self.video}_{self.start}"


@dataclass
class Found:
    """What lies below a folder. Paths start there, and have ``/`` between their parts."""

    clips: dict[str, str] = field(default_factory=dict)
    """Path of a clip by its id."""
    lists: list[Path] = field(default_factory=list)
    copies: list[Problem] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    """Videos whose names are not those of clips."""
    packed: list[str] = field(default_factory=list)
    """Archives that were not unpacked."""
    parts: list[str] = field(default_factory=list)
    """Lists of one set alone."""


class VggSound(MediaDataset):
    """VGGSound with picture and sound."""

    info = DatasetInfo(
        title="VGGSound: 309 sounds whose source is seen",
        summary="about 199,000 clips of 10 seconds in 309 classes; the largest set of clips here",
        licence="CC BY 4.0 (the list); videos are YouTube's",
        citation="H. Chen et al., VGGSound: a large-scale audio-visual dataset, ICASSP 2020, "
        "arXiv:2004.14368",
        modalities={
            "audio": "sound at 16 kHz, read through a spectrogram",
            "visual": "frames of the picture, three of a clip unless asked otherwise",
        },
        protocols={
            "official": "train and test as vggsound.csv has them; validation is taken from train "
            "by video, by the seed",
        },
        files="vggsound.csv (github.com/hche11/VGGSound) and clips <YouTube id>_<start>.mp4 in any "
        "folders below, such as those of the unpacked parts vggsound_00.tar.gz to _19.tar.gz",
    )
    kept = MediaRecipe(fps=1.0, short_side=256, rate=16_000, seconds=float(SECONDS))
    groups_are = "videos"

    class Config(MediaOptions):
        front_end: str = option(
            "ogm_stft_vgg",
            "spectrogram of the sound, by its name in docs/datasets/audio-and-frames.md",
        )

    config: Config

    def listing(self, source: Path) -> Listing:
        if not source.is_dir():
            raise DataError(f"{source} is not a folder; give the one that holds {LIST} and clips")
        found = walked(source)
        path = _list(source, found)
        entries: dict[str, Entry] = {}
        repeated: list[Problem] = []
        for number, entry in read_entries(path):
            if (first := entries.setdefault(entry.id, entry)) is not entry:
                said = "again" if first == entry else f"again, which is {_said(first)} before"
                what = f"line {number} names {entry.id} {said}"
                repeated.append(Problem(str(path), what, "nothing to do: the first line is used"))
        _require_both_sets(path, entries)
        _require_clips(source, path, found, entries)
        clips = tuple(_clip(entry, found.clips) for entry in entries.values())
        problems = (
            *_strange_counts(path, entries, len(repeated)),
            *repeated,
            *found.copies,
            *_others(source, found, entries),
        )
        return Listing(source, clips, problems)

    def divide(
        self, protocol: str, clips: Sequence[Listed], lists: Mapping[str, bytes]
    ) -> Division:
        train, test = (
            frozenset(clip.id for clip in clips if clip.split == split) for split in SPLITS
        )
        counts = {"train": len(train), "test": len(test)}
        notes = []
        if counts not in PUBLISHED:
            notes.append(f"a list of {counts['train']:,}/{counts['test']:,} clips of your own")
        if (classes := len(self.classes(clips))) != CLASSES:
            notes.append(f"{classes} of the {CLASSES} classes")
        return Division(train, test, notes=tuple(notes))


def clip_id(name: str) -> str | None:
    """Return the id of the clip that a file's name, without its ending, belongs to; None when it
    is not the name of a clip."""
    if (match := NAME.fullmatch(name)) is None:
        return None
    video, first, last = match.groups()
    start = int(first)
    if last is not None:
        length = int(last) - start
        if length == 1000 * SECONDS and start % 1000 == 0:
            start //= 1000
        elif length != SECONDS:
            return None
    return f"{video}_{start}"


def walked(source: Path) -> Found:
    """Return what lies below a folder and in folders linked to, in the order of the paths.

    Files are not opened, nor is anything asked about each but its name: there may be 200,000.
    Raises :class:`DataError` for a folder that cannot be read.
    """
    found = Found()
    seen: set[str] = set()
    for folder, folders, names in os.walk(source, onerror=_cannot_read, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()  # a link to a folder above or beside
            continue
        seen.add(real)
        folders.sort()
        place = Path(folder).relative_to(source).as_posix()
        _sort_in(found, "" if place == "." else f"{place}/", sorted(names), source)
    return found


def read_entries(path: Path) -> Iterator[tuple[int, Entry]]:
    """Yield the lines of a list with their numbers.

    Lines that begin with ``#`` and a header are passed over. Raises :class:`DataError` that names
    a line which cannot be read.
    """
    labels: dict[str, str] = {}
    for number, line in numbered(read_list(path)):
        if line.startswith("#"):
            continue
        try:
            # Line by line: a quote that is not closed spoils its own line alone.
            fields = [part.strip() for part in next(csv.reader([line], strict=True))]
        except csv.Error:
            fields = []
        if len(fields) != 4 or not fields[1].isdecimal():
            if number == 1 and len(fields) == 4 and fields[3] not in SPLITS:
                continue  # a header
            fields = []
        if not fields or not fields[2] or not YOUTUBE.fullmatch(fields[0]):
            raise DataError(
                f"{path}, line {number}: '{line[:80]}' is not {FORM} with labels that hold commas "
                f"in quotes; get the list from {ORIGIN} again"
            )
        video, start, label, split = fields
        if split not in SPLITS:
            raise DataError(
                f"{path}, line {number}: {video}_{start} is of set '{split}', not of train or "
                f"test; get the list from {ORIGIN} again"
            )
        yield number, Entry(video, int(start), labels.setdefault(label, label), split)


def _sort_in(found: Found, place: str, names: Sequence[str], source: Path) -> None:
    """Add the files of one folder, whose path ends with ``/`` unless it is the source."""
    for name in names:
        stem, _, ending = name.rpartition(".")
        if ending.lower() in ENDINGS:
            if (clip := clip_id(stem)) is None:
                found.strange.append(place + name)
            elif (used := found.clips.setdefault(clip, place + name)) != place + name:
                what = f"is another copy of {clip}; {used} is used"
                found.copies.append(
                    Problem(str(source / place / name), what, "move one of them away")
                )
        elif name == LIST:
            found.lists.append(source / place / name)
        elif name in PARTS:
            found.parts.append(place + name)
        elif name.lower().endswith(PACKED):
            found.packed.append(place + name)


def _cannot_read(error: OSError) -> None:
    raise DataError(
        f"{error.filename} cannot be read: {error.strerror}; check its permissions, or move it away"
    ) from error


def _list(source: Path, found: Found) -> Path:
    """Return the list below a folder. Raises :class:`DataError` unless there is one."""
    if not found.lists:
        there = f" ({found.parts[0]} alone is not enough)" if found.parts else ""
        raise DataError(
            f"{source} holds no {LIST}{there}; get it from {ORIGIN} and put it there, above the "
            "clips"
        )
    first, *others = found.lists
    for other in others:
        if read_list(other) != read_list(first):
            raise DataError(f"{first} and {other} differ; move one of them away")
    return first


def _require_both_sets(path: Path, entries: Mapping[str, Entry]) -> None:
    """Refuse a list of one set alone."""
    there = {entry.split for entry in entries.values()}
    if absent := [split for split in SPLITS if split not in there]:
        raise DataError(
            f"{path} names no clip of {' and none of '.join(absent)}; get the whole list from "
            f"{ORIGIN}"
        )


def _require_clips(source: Path, path: Path, found: Found, entries: Mapping[str, Entry]) -> None:
    """Refuse a folder in which no clip of the list lies, with the likeliest reason."""
    if not found.clips.keys().isdisjoint(entries):
        return
    if found.packed:
        raise DataError(
            f"{source} holds no clip of {path.name} and {len(found.packed)} archives, such as "
            f"{found.packed[0]}; unpack them there (tar xf)"
        )
    if there := [*found.clips.values(), *found.strange]:
        raise DataError(
            f"{source} holds no clip of {path.name}; {len(there)} videos have other names, such as "
            f"{there[0]}; name them <YouTube id>_<start in seconds>.mp4"
        )
    raise DataError(f"{source} holds no clips; give the folder that holds them and {path.name}")


def _strange_counts(path: Path, entries: Mapping[str, Entry], repeated: int) -> list[Problem]:
    """Return that a list is not as long as those published, or has not their classes."""
    mend = f"get it from {ORIGIN}, unless it is a list of your own"
    counts = Counter(entry.split for entry in entries.values())
    problems = []
    if dict(counts) not in PUBLISHED and len(entries) + repeated != sum(PUBLISHED[0].values()):
        said, wanted = (
            "/".join(f"{part[split]:,}" for split in SPLITS) for part in (counts, PUBLISHED[0])
        )
        what = f"lists {said} clips for training and test, not {wanted}"
        problems.append(Problem(str(path), what, mend))
    if (classes := len({entry.label for entry in entries.values()})) != CLASSES:
        problems.append(Problem(str(path), f"names {classes} classes, not {CLASSES}", mend))
    return problems


def _others(source: Path, found: Found, entries: Mapping[str, Entry]) -> list[Problem]:
    """Return videos that are no clips of the list: one problem for all of a kind, as they may be
    as many as there are clips."""
    kinds = {
        "is in no line of the list": [
            place for clip, place in found.clips.items() if clip not in entries
        ],
        "has not the name of a clip, <YouTube id>_<start in seconds>": found.strange,
    }
    problems = []
    for what, places in kinds.items():
        if places:
            more = f" ({len(places):,} such files)" if len(places) > 1 else ""
            mend = "nothing to do, unless clips are missing"
            problems.append(Problem(str(source / places[0]), what + more, mend))
    return problems


def _clip(entry: Entry, files: Mapping[str, str]) -> Clip:
    path = files.get(entry.id, f"{entry.video}_{entry.start:06d}.mp4")
    return Clip(entry.id, entry.label, entry.video, path, path, entry.split)


def _said(entry: Entry) -> str:
    return f"'{entry.label}' of {entry.split}"

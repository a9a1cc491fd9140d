"""Kinetics-Sounds: 10-second clips of 31 classes of Kinetics-400 that can be seen and heard.

It has no archive of its own. Clips are found in the folder of a Kinetics-400 download, whatever its
sub-folders, by their names: the YouTube id, 11 letters with ``-`` and ``_`` among them, then the
start in seconds, padded with zeros or not, then the end or not. Which of them belong to the dataset
is said by either or both of

- ``official``: the annotations of Kinetics-400 (``annotations/train.csv`` and ``val.csv``), of
  which the 31 classes are taken. Trained on is its train set, tested on its validation set, as in
  AdaMML; its test set is not used.
- ``lists``: ``train.csv``, ``test.csv`` and perhaps ``val.csv`` of lines ``name,class,label``, or
  ``my_train.txt`` and ``my_test.txt`` of lines ``name,10,label``, as GeWu-Lab gives them for OGM-GE
  and BML: 14,799, 2,597 and 1,320 clips.

Validation is taken from train where there is no list of it. Classes are numbered by name, which is
how the lists number them. Others use 32, 33 or 34 classes, so every table says how many there are.

Departures from OGM-GE's preparation: sound is kept at 16 kHz, where its script reads every file at
the file's own rate, so that equal sounds get equal bands; frames are those shown at every second.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmbench.data.class_names import KINETICS_SOUNDS
from mmbench.data.dataset import DatasetInfo, Problem
from mmbench.data.list_files import numbered, read_list
from mmbench.data.media.dataset import (
    Division,
    Listed,
    ListedMediaOptions,
    Listing,
    MediaDataset,
)
from mmbench.data.media.manifest import Clip, MediaRecipe
from mmbench.errors import DataError, unknown_name
from mmbench.options import option

NAME = re.compile(r"(?P<video>[\w-]{11})_(?P<start>\d+)(_(?P<end>\d+))?", re.ASCII)
ENDINGS = (".mp4", ".mkv", ".webm", ".avi")
SECONDS = 10
"""Of every clip of Kinetics: the end where a list does not say it."""
COLUMNS = ("label", "youtube_id", "time_start", "time_end")
"""Of the annotations, by which they are told from lists."""
LISTS = {
    "train": ("train.csv", "my_train.txt"),
    "val": ("val.csv",),
    "test": ("test.csv", "my_test.txt"),
}
PUBLISHED = {"train": 14799, "val": 1320, "test": 2597}
"""Clips in GeWu-Lab's lists."""


@dataclass(frozen=True)
class Moment:
    """What names a clip, however its name is written."""

    video: str
    start: int
    """Seconds."""

    @property
    def id(self) -> str:
        return f"{self.video}_{self.start}"


class KineticsSounds(MediaDataset):
    """Kinetics-Sounds with picture and sound."""

    info = DatasetInfo(
        title="Kinetics-Sounds: 31 actions that can be seen and heard",
        summary="about 19,000 clips of 10 seconds, 31 classes of Kinetics-400",
        licence="CC BY 4.0 (annotations of Kinetics-400); videos are YouTube's",
        citation="R. Arandjelovic, A. Zisserman, Look, listen and learn, ICCV 2017; W. Kay et al., "
        "The Kinetics human action video dataset, 2017, arXiv:1705.06950",
        modalities={
            "audio": "sound at 16 kHz, read through a spectrogram",
            "visual": "frames of the picture, three of a clip unless asked otherwise",
        },
        protocols={
            "official": "by the annotations of Kinetics-400: test on its validation set, train on "
            "its train set, from which validation is taken by the seed",
            "lists": "by lists that you put beside the data, such as GeWu-Lab's 14,799/1,320/2,597 "
            "clips; without a list of validation it is taken from train by the seed",
        },
        files="clips named <YouTube id>_<start>_<end>.mp4 in any folders "
        "(github.com/cvdfoundation/kinetics-dataset), with annotations/train.csv and val.csv or "
        "with lists train.csv, test.csv and perhaps val.csv",
    )
    kept = MediaRecipe(fps=1.0, short_side=256, rate=16_000, seconds=10.0)
    groups_are = "videos"

    class Config(ListedMediaOptions):
        front_end: str = option(
            "kaldi_fbank",
            "spectrogram of the sound, by its name in docs/datasets/audio-and-frames.md",
        )

    config: Config

    def listing(self, source: Path) -> Listing:
        if not source.is_dir():
            raise DataError(f"{source} is not a folder; give that of Kinetics-400's clips")
        annotations, lists = _tables(source)
        if not annotations and not lists:
            raise DataError(
                f"{source} holds neither annotations of Kinetics-400 (annotations/train.csv and "
                "val.csv) nor lists (train.csv and test.csv); put either there"
            )
        clips: dict[str, Clip] = {}
        problems: list[Problem] = []
        for split, path in annotations.items():
            for number, clip in read_annotations(path, split):
                if (before := clips.setdefault(clip.id, clip)) is not clip:
                    what = f"line {number} names {clip.id} again, which is a clip of {before.split}"
                    problems.append(Problem(str(path), what, "the first line is used"))
        contents = {split: read_list(path) for split, path in lists.items()}
        for split, clip in _listed(contents, lists):
            before = clips.setdefault(clip.id, clip)
            if before.label != clip.label:
                raise DataError(
                    f"{lists[split]}: {clip.id} is of class {clip.label}, and {before.label} by "
                    "the annotations; correct one of them, or move it away"
                )
        files, copies = _files(source)
        found = tuple(_at(clip, files) for clip in clips.values())
        return Listing(
            source,
            found,
            (*problems, *copies),
            {f"{split}.csv": content for split, content in contents.items()},
        )

    def divide(
        self, protocol: str, clips: Sequence[Listed], lists: Mapping[str, bytes]
    ) -> Division:
        if protocol == "official":
            train, test = (
                frozenset(clip.id for clip in clips if clip.split == split)
                for split in ("train", "val")
            )
            if not train or not test:
                raise DataError(
                    "protocol 'official' of kinetics_sounds needs the annotations of Kinetics-400: "
                    "put annotations/train.csv and val.csv beside the clips and run `mmbench data "
                    "prepare kinetics_sounds --source DIR` again; protocol 'lists' needs none"
                )
            return Division(train, test, notes=_notes(clips, train | test))
        contents = {split: lists[f"{split}.csv"] for split in LISTS if f"{split}.csv" in lists}
        if not contents.keys() >= {"train", "test"}:
            raise DataError(
                "protocol 'lists' of kinetics_sounds needs lists: put train.csv and test.csv "
                "beside the clips and run `mmbench data prepare kinetics_sounds --source DIR` "
                "again; protocol 'official' needs none"
            )
        ids: dict[str, set[str]] = {split: set() for split in contents}
        for split, clip in _listed(contents, {}):
            ids[split].add(clip.id)
        listed = frozenset().union(*ids.values())
        is_listed = self.config.validation == "listed"
        return Division(
            frozenset(ids["train"]),
            frozenset(ids["test"]),
            frozenset(ids["val"]) if "val" in ids and is_listed else None,
            notes=(*_notes(clips, listed), *_other_counts(ids)),
        )


def moment(name: str) -> Moment | None:
    """Return what a name of a clip means, without its ending; None when it is no such name."""
    if (match := NAME.fullmatch(name)) is None:
        return None
    return Moment(match["video"], int(match["start"]))


def read_annotations(path: Path, split: str) -> Iterator[tuple[int, Clip]]:
    """Yield the clips of the 31 classes in an annotation file, with the number of their line.

    Raises :class:`DataError` that names the line which cannot be read, and where no line names one
    of the classes.
    """
    rows = csv.DictReader(read_list(path).decode().splitlines())
    found = 0
    for row in rows:
        label = (row["label"] or "").strip().replace(" ", "_")
        if label not in KINETICS_SOUNDS:
            continue
        found += 1
        at = moment(f"{row['youtube_id']}_{row['time_start']}")
        if at is None or not (row["time_end"] or "").isdigit():
            raise DataError(
                f"{path}, line {rows.line_num}: id '{row['youtube_id']}', start "
                f"'{row['time_start']}' and end '{row['time_end']}' are not those of a clip; get "
                "the file from github.com/cvdfoundation/kinetics-dataset again"
            )
        yield rows.line_num, _clip(at, int(row["time_end"]), label, split)
    if not found:
        raise DataError(
            f"{path} names no clip of the {len(KINETICS_SOUNDS)} classes, such as blowing nose; "
            "get that of Kinetics-400 from github.com/cvdfoundation/kinetics-dataset"
        )


def read_names(content: bytes, where: str) -> Iterator[tuple[int, Clip]]:
    """Yield the clips of a list ``name,class,label`` or ``name,seconds,label``, with line numbers.

    A first line whose label is no number is a header. Raises :class:`DataError` that names a line
    which cannot be read, or whose class and label do not agree.
    """
    for number, line in numbered(content):
        fields = [part.strip() for part in line.split(",")]
        if number == 1 and len(fields) == 3 and not fields[2].isdigit():
            continue
        at = moment(fields[0])
        if len(fields) != 3 or at is None or not fields[2].isdigit():
            raise DataError(
                f"{where}, line {number}: '{line[:80]}' is not <YouTube id>_<start>,<class>,"
                "<label>; correct it, or move the list away"
            )
        if int(fields[2]) >= len(KINETICS_SOUNDS):
            raise DataError(
                f"{where}, line {number}: label {fields[2]} is above {len(KINETICS_SOUNDS) - 1}, "
                f"that of the last of {len(KINETICS_SOUNDS)} classes; use a list of these classes"
            )
        label = KINETICS_SOUNDS[int(fields[2])]
        said = fields[1].replace(" ", "_")
        if not said.isdigit() and said != label:
            if said not in KINETICS_SOUNDS:
                raise DataError(
                    f"{where}, line {number}: {unknown_name('class', said, KINETICS_SOUNDS)}"
                )
            raise DataError(
                f"{where}, line {number}: label {fields[2]} is {label}, not {said}; number the "
                "classes by name from 0"
            )
        yield number, _clip(at, at.start + SECONDS, label, None)


def _listed(contents: Mapping[str, bytes], paths: Mapping[str, Path]) -> Iterator[tuple[str, Clip]]:
    """Yield the clips of lists and the set they are listed in. Raises :class:`DataError` for one
    that is listed twice."""
    seen: dict[str, str] = {}
    for split, content in contents.items():
        where = str(paths.get(split, f"{split}.csv"))
        for number, clip in read_names(content, where):
            if clip.id in seen:
                raise DataError(
                    f"{where}, line {number}: {clip.id} is listed already, in {seen[clip.id]}; "
                    "each clip belongs into one list, once"
                )
            seen[clip.id] = split
            yield split, clip


def _tables(source: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return annotations and lists by set, found by their content, both possibly empty."""
    folders = [place for place in sorted(source.iterdir()) if place.is_dir()]
    places = [source, *folders, *(folder / "annotations" for folder in folders)]
    annotations: dict[str, Path] = {}
    lists: dict[str, Path] = {}
    for place in places:
        for split, names in LISTS.items():
            for path in (place / name for name in names):
                if path.is_file():
                    kind = annotations if _is_annotation(path) else lists
                    kind.setdefault(split, path)
    annotations.pop("test", None)
    for kind, needed in ((annotations, ("train", "val")), (lists, ("train", "test"))):
        if kind and not kind.keys() >= {*needed}:
            there = next(iter(kind.values()))
            absent = next(split for split in needed if split not in kind)
            raise DataError(f"{there} is there without {absent}.csv; add it, or move it away")
    return annotations, lists


def _is_annotation(path: Path) -> bool:
    first = read_list(path).decode().partition("\n")[0]
    return {*COLUMNS} <= {*next(csv.reader([first]))}


def _files(source: Path) -> tuple[dict[str, str], list[Problem]]:
    """Return the path of each clip's file below the source by the clip's id, and second copies."""
    files: dict[str, str] = {}
    problems: list[Problem] = []
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() not in ENDINGS or (at := moment(path.stem)) is None:
            continue
        place = path.relative_to(source).as_posix()
        if (used := files.setdefault(at.id, place)) != place:
            what = f"is another copy of {at.id}; {used} is used"
            problems.append(Problem(str(path), what, "move one of them away"))
    return files, problems


def _clip(at: Moment, end: int, label: str, split: str | None) -> Clip:
    folder = {"train": "train", "val": "val", None: "clips"}[split]
    path = f"{folder}/{label}/{at.video}_{at.start:06d}_{end:06d}.mp4"
    return Clip(at.id, label, at.video, path, path, split)


def _at(clip: Clip, files: Mapping[str, str]) -> Clip:
    """Return the clip at the place where its file is, if it is anywhere."""
    path = files.get(clip.id, clip.video)
    return replace(clip, video=path, audio=path)


def _notes(clips: Iterable[Listed], used: frozenset[str]) -> tuple[str, ...]:
    classes = {clip.label for clip in clips if clip.id in used}
    return (f"{len(classes)} classes",)


def _other_counts(ids: Mapping[str, set[str]]) -> tuple[str, ...]:
    counts = Counter({split: len(part) for split, part in ids.items()})
    if all(counts[split] == PUBLISHED[split] for split in ids):
        return ()
    return (f"lists of {'/'.join(f'{count:,}' for count in counts.values())} clips of your own",)

"""UCF-101 (actions): 13,320 clips of 101 classes, with pictures and optical flow.

Pictures are the clips of ``UCF101.rar``, ``UCF-101/<Class>/v_<Class>_g01_c01.avi``, or frames cut
out of them, ``rawframes/<Class>/<clip>/img_00001.jpg`` (mmaction2) or
``jpegs_256/<clip>/frame000001.jpg`` (two-stream fusion). Flow is not computed here but read:
``tvl1_flow/u/<clip>/frame000001.jpg`` and ``tvl1_flow/v/...`` (two-stream fusion), or
``rawframes/<Class>/<clip>/flow_x_00001.jpg`` and ``flow_y_00001.jpg`` (mmaction2). The lists of the
archive, in ``ucfTrainTestlist``, say which clips there are, and divide them in three ways.

A clip belongs to a group of clips that were cut out of one longer video (``g01`` to ``g25`` of its
class); the lists divide no group, and neither does validation, which is taken from train. Names are
compared without regard to capitals: clips of ``HandstandPushups`` are called
``v_HandStandPushups_g01_c01``. Classes are in the order of their names, capitals disregarded, which
is that of ``classInd.txt``: class i here has the number i + 1 there.

Departures from BalanceBenchmark, which trains on pictures and flow as well: a frame of each third
of the whole clip is shown, not of its first six frames; u and v are flipped together and u changes
its sign (there they are flipped apart); flow is normalised; evaluation draws nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmbench.data.dataset import DatasetInfo, Problem
from mmbench.data.list_files import numbered, read_list
from mmbench.data.media.cache import Cache
from mmbench.data.media.dataset import (
    ClipDataset,
    ClipOptions,
    Described,
    Division,
    Inputs,
    Listed,
    Listing,
)
from mmbench.data.media.manifest import Clip, Flow, MediaRecipe
from mmbench.data.media.sources import FlowSource, FrameSource
from mmbench.errors import DataError, unknown_name

VIDEOS = ("UCF-101", "videos")
LISTS = ("ucfTrainTestlist", "annotations", ".")
"""Folders of the clips and of the lists: those of the archives, those of mmaction2."""
CLASSES = "classInd.txt"
CLASS_COUNT = 101
OFFICIAL = {"split1": (9537, 3783), "split2": (9586, 3734), "split3": (9624, 3696)}
"""Clips of train and of test."""
ARCHIVE = "UCF101TrainTestSplits-RecognitionTask.zip (crcv.ucf.edu)"
FLOW = (
    "tvl1_flow/u/<clip>/frame000001.jpg and tvl1_flow/v/<clip>/frame000001.jpg, or "
    "rawframes/<Class>/<clip>/flow_x_00001.jpg and flow_y_00001.jpg"
)
PICTURES = (
    "UCF-101/<Class>/<clip>.avi, rawframes/<Class>/<clip>/img_00001.jpg or "
    "jpegs_256/<clip>/frame000001.jpg"
)
NAME = re.compile(r"v_(?P<label>\w+)_g(?P<group>\d+)_c\d+", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """A clip as a list names it."""

    label: str
    """As in ``classInd.txt``."""
    name: str
    group: str


class Ucf101(ClipDataset):
    """UCF-101 with pictures and optical flow."""

    info = DatasetInfo(
        title="UCF-101: actions with optical flow",
        summary="13,320 clips of 101 actions; pictures, and the motion between them",
        licence="none stated; made available for research, the videos are YouTube's",
        citation="K. Soomro, A. R. Zamir, M. Shah, UCF101: A dataset of 101 human actions classes "
        "from videos in the wild, 2012, arXiv:1212.0402",
        modalities={
            "rgb": "frames of the picture, three of a clip unless asked otherwise",
            "flow": "optical flow after as many frames of their own",
        },
        protocols={
            "split1": "9,537 clips train and validation, 3,783 test, by the lists of the archive; "
            "validation by group, drawn by the seed",
            "split2": "the second pair of lists: 9,586 and 3,734 clips",
            "split3": "the third pair of lists: 9,624 and 3,696 clips",
        },
        files="UCF-101/<Class>/*.avi or frames cut out of them, optical flow as JPEG files in "
        "tvl1_flow/{u,v} or rawframes, and ucfTrainTestlist/*.txt (crcv.ucf.edu)",
    )
    # The longest clip lasts 71 s; all run at 25 frames a second.
    kept = MediaRecipe(fps=1.0, short_side=256, seconds=72.0, series_fps=25.0)
    groups_are = "groups"

    class Config(ClipOptions):
        pass

    config: Config

    def classes(self, clips: Sequence[Listed]) -> tuple[str, ...]:
        return tuple(sorted({clip.label for clip in clips}, key=str.casefold))

    def listing(self, source: Path) -> Listing:
        folder = _lists_folder(source)
        root = folder.parent if folder.name in LISTS else folder
        names = [CLASSES, *(name for protocol in OFFICIAL for name in lists_of(protocol))]
        lists = {name: read_list(folder / name) for name in names if (folder / name).is_file()}
        entries: dict[str, Entry] = {}
        for name in lists:
            for entry in () if name == CLASSES else read_clips(name, lists, folder):
                entries.setdefault(entry.name.casefold(), entry)
        if not entries:
            raise DataError(f"{folder} holds no trainlist01.txt and testlist01.txt; get {ARCHIVE}")
        pictures, flow = _pictures(root), _flow(root)
        clips = tuple(
            Clip(
                entry.name,
                entry.label,
                entry.group,
                pictures(entry),
                audio=None,
                flow=Flow(*flow(entry)),
            )
            for entry in entries.values()
        )
        problems = (*self._strange_lists(folder, lists), *_strangers(root, clips))
        return Listing(root, clips, problems, lists)

    def divide(
        self, protocol: str, clips: Sequence[Listed], lists: Mapping[str, bytes]
    ) -> Division:
        ids = {clip.id.casefold(): clip.id for clip in clips}
        for name in lists_of(protocol):
            if name not in lists:
                raise DataError(
                    f"protocol '{protocol}' of {self.name()} needs {name} in ucfTrainTestlist; get "
                    f"{ARCHIVE} and prepare the data again"
                )
        train, test = (
            frozenset(ids[entry.name.casefold()] for entry in read_clips(name, lists))
            for name in lists_of(protocol)
        )
        if both := sorted(train & test):
            raise DataError(
                f"{' and '.join(lists_of(protocol))} both list {both[0]}; get {ARCHIVE}"
            )
        counts = len(train), len(test)
        said = "{:,}/{:,}".format
        strange = f"lists of {said(*counts)} clips, not the official {said(*OFFICIAL[protocol])}"
        return Division(train, test, notes=() if counts == OFFICIAL[protocol] else (strange,))

    def _inputs(self, cache: Cache, places: Mapping[str, np.ndarray]) -> Inputs:
        return Inputs({name: self._shown(cache, part) for name, part in places.items()})

    def _shown(self, cache: Cache, places: np.ndarray) -> dict[str, Described]:
        shown = self.config.frames, self.config.frame_policy, self.config.size
        return {
            "rgb": FrameSource(cache, places, *shown),
            "flow": FlowSource(cache, places, *shown),
        }

    def _strange_lists(self, folder: Path, lists: Mapping[str, bytes]) -> Iterator[Problem]:
        """Yield what is not as published."""
        mend = f"get {ARCHIVE}, unless it is a list of your own"
        classes = [*read_classes(lists, folder)]
        if len(classes) != CLASS_COUNT:
            what = f"names {len(classes)} classes, not {CLASS_COUNT}"
            yield Problem(str(folder / CLASSES), what, mend)
        if classes != sorted(classes, key=str.casefold):
            what = "numbers classes otherwise than by name; here they are numbered by name"
            yield Problem(str(folder / CLASSES), what, mend)
        for protocol, expected in OFFICIAL.items():
            for name, count in zip(lists_of(protocol), expected, strict=True):
                if name not in lists:
                    what = f"does not exist; '{protocol}' needs it"
                    yield Problem(str(folder / name), what, f"get {ARCHIVE}")
                elif (listed := len(read_clips(name, lists, folder))) != count:
                    what = f"lists {listed:,} clips, not {count:,}"
                    yield Problem(str(folder / name), what, mend)


def lists_of(protocol: str) -> tuple[str, str]:
    """Return the names of the lists of train and of test."""
    number = protocol.removeprefix("split")
    return f"trainlist0{number}.txt", f"testlist0{number}.txt"


def read_classes(lists: Mapping[str, bytes], folder: Path = Path()) -> dict[str, int]:
    """Return the classes of ``classInd.txt`` in its order, with their numbers (from 1).

    Raises :class:`DataError` that names the line which is not a number and a name, or repeats one.
    """
    classes: dict[str, int] = {}
    for number, line in numbered(lists[CLASSES]):
        index, _, label = line.partition(" ")
        label = label.strip()
        if not (index.isdecimal() and label) or label in classes or int(index) in classes.values():
            raise DataError(
                f"{folder / CLASSES}, line {number}: '{line[:80]}' is not a number and a class "
                f"that no other line has; get {ARCHIVE}"
            )
        classes[label] = int(index)
    return classes


def read_clips(name: str, lists: Mapping[str, bytes], folder: Path = Path()) -> list[Entry]:
    """Return the clips of a list: lines ``Class/v_Class_g01_c01.avi``, in lists of train with the
    number of the class after it.

    Raises :class:`DataError` that names the line which is none, or has an unknown class, another
    class's number, or a clip that an earlier line has.
    """
    classes = read_classes(lists, folder)
    by_name = {label.casefold(): label for label in classes}
    entries: dict[str, Entry] = {}
    for number, line in numbered(lists[name]):
        at = f"{folder / name}, line {number}"
        place, _, index = line.partition(" ")
        written, _, file = place.rpartition("/")
        match = NAME.fullmatch(file.removesuffix(".avi"))
        if match is None or match["label"].casefold() != written.casefold():
            raise DataError(
                f"{at}: '{line[:80]}' is not <Class>/v_<Class>_g<NN>_c<NN>.avi; get {ARCHIVE}"
            )
        if (label := by_name.get(written.casefold())) is None:
            raise DataError(f"{at}: {unknown_name('class', written, classes)}")
        if index and index.strip() != str(classes[label]):
            raise DataError(
                f"{at}: {label} has the number {classes[label]} in {CLASSES}, not {index.strip()}; "
                f"get {ARCHIVE}"
            )
        if match[0].casefold() in entries:
            raise DataError(f"{at}: {match[0]} is listed already; remove one of the lines")
        entries[match[0].casefold()] = Entry(label, match[0], f"{label}_g{match['group']}")
    return [*entries.values()]


# -- files -----------------------------------------------------------------------------------------


class _Tree:
    """Paths below a folder, found whatever the capitals of their names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[str, dict[str, str]] = {}

    def place(self, *parts: str) -> str:
        """Return the path of a file that may be written with other capitals."""
        found = parts[0]
        for part in parts[1:]:
            if found not in self.names:
                folder = self.root / found
                names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
                self.names[found] = {name.casefold(): name for name in names}
            found = f"{found}/{self.names[found].get(part.casefold(), part)}"
        return found


def _lists_folder(source: Path) -> Path:
    """Return the folder of the lists, in the folder given or one in it."""
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give the one that holds UCF-101")
    inner = sorted(place for place in source.iterdir() if place.is_dir())
    for root in (source, *inner):
        for name in LISTS:
            if (root / name / CLASSES).is_file():
                return root / name
    raise DataError(
        f"{source} holds no ucfTrainTestlist/{CLASSES}; get {ARCHIVE} and unpack it beside UCF-101"
    )


def _holds(folder: Path, pattern: str) -> bool:
    return folder.is_dir() and next(folder.glob(pattern), None) is not None


def _pictures(root: Path) -> Callable[[Entry], str]:
    """Return what names the pictures of a clip, for the first layout that is there."""
    tree = _Tree(root)
    for videos in VIDEOS:
        if _holds(root / videos, "*/*.avi"):
            return lambda entry: tree.place(videos, entry.label, f"{entry.name}.avi")
    if _holds(root / "rawframes", "*/*/img_*.jpg"):
        return lambda entry: f"{tree.place('rawframes', entry.label, entry.name)}/img_*.jpg"
    if _holds(root / "jpegs_256", "*/frame*.jpg"):
        return lambda entry: f"{tree.place('jpegs_256', entry.name)}/frame*.jpg"
    raise DataError(f"{root} holds no pictures: {PICTURES}; unpack UCF101.rar (crcv.ucf.edu) there")


def _flow(root: Path) -> Callable[[Entry], tuple[str, str]]:
    """Return what names the flow of a clip, for the first layout that is there."""
    tree = _Tree(root)
    if _holds(root / "tvl1_flow", "[uv]/*/frame*.jpg"):
        return lambda entry: (
            f"{tree.place('tvl1_flow', 'u', entry.name)}/frame*.jpg",
            f"{tree.place('tvl1_flow', 'v', entry.name)}/frame*.jpg",
        )
    if _holds(root / "rawframes", "*/*/flow_[xy]_*.jpg"):
        return lambda entry: (
            f"{tree.place('rawframes', entry.label, entry.name)}/flow_x_*.jpg",
            f"{tree.place('rawframes', entry.label, entry.name)}/flow_y_*.jpg",
        )
    raise DataError(
        f"{root} holds no optical flow: {FLOW}; unpack an archive of it there "
        "(docs/datasets/ucf101.md names one)"
    )


def _strangers(root: Path, clips: Sequence[Clip]) -> list[Problem]:
    """Return clips that no list names."""
    expected = {clip.video for clip in clips}
    return [
        Problem(str(path), "is in no list", "nothing to do, unless a clip is missing")
        for videos in VIDEOS
        for path in sorted((root / videos).glob("*/*.avi"))
        if path.relative_to(root).as_posix() not in expected
    ]

"""AVE (audio-visual events): 4,143 events of 28 classes in 4,097 videos of 10 seconds.

Read from the unpacked ``AVE_Dataset.zip``: videos from ``AVE/<video>.mp4``, events from the lists
``trainSet.txt``, ``valSet.txt`` and ``testSet.txt`` beside it, of lines
``Category&VideoID&Quality&StartTime&EndTime`` with or without a header. The task is that of the
works on balanced learning: which of the 28 classes is the event? (The task of the data set's own
paper, to find its seconds, has 29 classes with the background.)

``official`` has the three sets as they are listed: 3,339, 402 and 402 events. A video can hold
events of several classes, and 10 videos of the validation list and 8 of the test list are in the
train list as well. ``clean`` leaves their 19 events out of train.

Of a clip, the part from StartTime to EndTime is used, as in PMR; the one event whose times are
both 0 (``VWi2ENBuTbw``) gives its whole clip. Every row of a list is a sample of its own: PMR keeps
the first label of a video within a list, OGM-GE the last. Classes are numbered by name, as in
OGM-GE; PMR numbers them by their first appearance in ``testSet.txt``. Frames are those at every
second from the start of the part up to its end, which PMR takes in, adding random ones of the whole
clip up to ten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmbench.data.class_names import AVE
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

VIDEOS = "AVE"
OFFICIAL = {"train": 3339, "val": 402, "test": 402}
"""Events in each list as published."""
HEADER = "Category&"
ARCHIVE = "AVE_Dataset.zip (github.com/YapengTian/AVE-ECCV18)"


@dataclass(frozen=True)
class Event:
    """A line of a list."""

    category: str
    video: str
    quality: str
    start: int
    end: int
    """Seconds."""

    @property
    def id(self) -> str:
        """Return what no other line has: a video may hold events of several classes."""
        return f"{self.video}:{self.category}"


class Ave(MediaDataset):
    """AVE with picture and sound."""

    info = DatasetInfo(
        title="AVE: audio-visual events",
        summary="4,143 events of 28 classes in 10-second videos; sound and picture show the same",
        licence="none stated; drawn from AudioSet (annotations CC BY 4.0), videos are YouTube's",
        citation="Y. Tian et al., Audio-visual event localization in unconstrained videos, ECCV "
        "2018",
        modalities={
            "audio": "sound of the event at 16 kHz, read through a spectrogram",
            "visual": "frames of the event, three unless asked otherwise",
        },
        protocols={
            "official": "3,339/402/402 events as listed; 10 videos of validation and 8 of test are "
            "in train too",
            "clean": "the same, without the 19 training events of videos that are in validation or "
            "test",
        },
        files="AVE_Dataset/AVE/*.mp4 with trainSet.txt, valSet.txt and testSet.txt beside AVE, as "
        "in AVE_Dataset.zip (github.com/YapengTian/AVE-ECCV18)",
    )
    kept = MediaRecipe(fps=1.0, short_side=256, rate=16_000, seconds=10.0)
    groups_are = "videos"

    class Config(ListedMediaOptions):
        front_end: str = option(
            "pmr_spec",
            "spectrogram of the sound, by its name in docs/datasets/audio-and-frames.md",
        )

    config: Config

    def listing(self, source: Path) -> Listing:
        root = _root(source)
        clips: dict[str, Clip] = {}
        for split in OFFICIAL:
            path = root / f"{split}Set.txt"
            for number, event in read_events(path):
                if (before := clips.get(event.id)) is not None:
                    raise DataError(
                        f"{path}, line {number}: the event '{event.category}' of {event.video} is "
                        f"listed already, in {before.split}; each belongs into one list, once"
                    )
                clips[event.id] = _clip(event, split)
        listed = tuple(clips.values())
        return Listing(root, listed, (*_strange_counts(root, listed), *_strangers(root, listed)))

    def divide(
        self, protocol: str, clips: Sequence[Listed], lists: Mapping[str, bytes]
    ) -> Division:
        ids = {split: {clip.id for clip in clips if clip.split == split} for split in OFFICIAL}
        counts = {split: len(part) for split, part in ids.items()}
        notes = [] if counts == OFFICIAL else [f"{_said(counts)}, not the official lists"]
        groups = {
            split: {clip.group for clip in clips if clip.split == split} for split in OFFICIAL
        }
        held_out = groups["val"] | groups["test"]
        leaking = {clip.id for clip in clips if clip.split == "train" and clip.group in held_out}
        is_listed = self.config.validation == "listed"
        if protocol == "clean":
            ids["train"] -= leaking
        elif is_listed and (shared := len(groups["train"] & groups["val"])):
            notes.append(f"{shared} of the {len(groups['val'])} videos of validation are in train")
        return Division(
            frozenset(ids["train"]),
            frozenset(ids["test"]),
            frozenset(ids["val"]) if is_listed else None,
            notes=tuple(notes),
        )


def read_events(path: Path) -> list[tuple[int, Event]]:
    """Return the events of a list and the numbers of their lines.

    Raises :class:`DataError` that names the line which is not an event, or has an unknown category.
    """
    events = []
    for number, line in numbered(read_list(path)):
        if number == 1 and line.startswith(HEADER):
            continue
        fields = [part.strip() for part in line.split("&")]
        if len(fields) != 5 or not (fields[1] and fields[3].isdigit() and fields[4].isdigit()):
            raise DataError(
                f"{path}, line {number}: '{line[:80]}' is not "
                f"Category&VideoID&Quality&StartTime&EndTime; get the list from {ARCHIVE} again"
            )
        category, video, quality, start, end = fields
        if category not in AVE:
            raise DataError(f"{path}, line {number}: {unknown_name('category', category, AVE)}")
        if int(end) < int(start):
            raise DataError(
                f"{path}, line {number}: the event ends at {end} s before it starts at {start} s; "
                "correct its times"
            )
        events.append((number, Event(category, video, quality, int(start), int(end))))
    return events


def _clip(event: Event, split: str) -> Clip:
    path = f"{VIDEOS}/{event.video}.mp4"
    times = (None, None) if event.start == event.end else (float(event.start), float(event.end))
    return Clip(event.id, event.category, event.video, path, path, split, *times)


def _root(source: Path) -> Path:
    """Return the folder that holds videos and lists: the one given, or one in it."""
    lists = [f"{split}Set.txt" for split in OFFICIAL]
    wanted = f"{VIDEOS}/*.mp4 and {', '.join(lists)}"
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give the one that holds {wanted}")
    places = [source, *sorted(place for place in source.iterdir() if place.is_dir())]
    for place in places:
        if (place / VIDEOS).is_dir():
            for name in lists:
                if not (place / name).is_file():
                    raise DataError(
                        f"{place} holds {VIDEOS} and no {name}; get the list from {ARCHIVE}"
                    )
            return place
    if source.name == VIDEOS:
        raise DataError(f"{source} is a part of AVE; give the folder above it, {source.parent}")
    raise DataError(f"{source} holds no {wanted}; give the folder of the unpacked {ARCHIVE}")


def _strange_counts(root: Path, clips: Sequence[Clip]) -> list[Problem]:
    """Return lists that have not as many events as those published."""
    counts = Counter(clip.split for clip in clips)
    return [
        Problem(
            str(root / f"{split}Set.txt"),
            f"lists {counts[split]:,} events, not {expected:,}",
            f"get it from {ARCHIVE}, unless it is a list of your own",
        )
        for split, expected in OFFICIAL.items()
        if counts[split] != expected
    ]


def _strangers(root: Path, clips: Sequence[Clip]) -> list[Problem]:
    """Return videos that no list names."""
    expected = {clip.video for clip in clips}
    return [
        Problem(str(path), "is in no list", "nothing to do, unless a video is missing")
        for path in sorted((root / VIDEOS).iterdir())
        if path.suffix.lower() == ".mp4" and f"{VIDEOS}/{path.name}" not in expected
    ]


def _said(counts: Mapping[str, int]) -> str:
    return f"lists of {'/'.join(f'{counts[split]:,}' for split in OFFICIAL)} events"

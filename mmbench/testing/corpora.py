"""Generated corpora that lie on disk as CREMA-D, Kinetics-Sounds, AVE and VGGSound do.

Every clip is a real FLV, MP4 or WAV file with sound and moving pictures. Its sound is a tone whose
pitch names a class, its picture a colour that names a class, each under noise and with a loudness
or brightness of its own. With probability ``strength`` a modality names the clip's own class,
otherwise one drawn from all classes, so that no classifier of that modality can expect more than
``strength + (1 - strength) / classes`` accuracy. A clip depends on the seed and its own id alone.

    cremad(folder, 300, seed=0, signal=Signal(sound=0.9, picture=0.5))
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmbench.data.class_names import AVE, KINETICS_SOUNDS
from mmbench.data.media.parallel import in_processes
from mmbench.errors import RequestError
from mmbench.seeds import Key, numpy_stream
from mmbench.testing.clips import FLV_RATE, USUAL, Look, picture, tone
from mmbench.testing.clips import write_video as write_video
from mmbench.testing.clips import write_wav as write_wav

EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
SENTENCES = ("DFA", "IEO", "IOM", "ITH", "ITS", "IWL", "IWW", "MTI", "TAI", "TIE", "TSI", "WSI")
ACTORS = tuple(str(number) for number in range(1001, 1092))
NEVER_RECORDED = ("1008_WSI_", "1009_MTI_", "1019_ITH_", "1002_TIE_NEU_XX", "1076_ITS_NEU_XX")
"""Beginnings of names that CREMA-D has no clip of."""
YOUTUBE_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
VGGSOUND = (
    *("bee, wasp, etc. buzzing", "bird chirping, tweeting", "church bell ringing"),
    *("dog barking", "donkey, ass braying", "engine accelerating, revving, vroom"),
    *("orchestra", "police car (siren)", "playing cello", "rapping", "sea waves", "tap dancing"),
)
"""A few of VGGSound's 309 classes, commas in the names of some."""
VGGSOUND_FOLDER = "scratch/shared/beegfs/hchen/train_data/VGGSound_final/video"
"""The path that its parts unpack to."""
SPLITS = ("train",) * 8 + ("val", "test")
"""Clips go to the splits in these shares, class by class."""


@dataclass(frozen=True)
class Signal:
    """Probability that a modality names the clip's class, from 0 (never on purpose) to 1."""

    sound: float = 0.9
    picture: float = 0.6

    @staticmethod
    def best_accuracy(strength: float, classes: int) -> float:
        """Return the accuracy that nothing can exceed in expectation with one modality."""
        return strength + (1 - strength) / classes


CLEARER_SOUND = Signal()


@dataclass(frozen=True)
class Generated:
    """One clip that was written, and what it shows."""

    id: str
    label: str
    split: str | None
    """None where the layout has no lists."""
    video: Path
    audio: Path
    """The file that sound is read from, for MP4 the video itself."""
    heard: int
    """Number of the class that the sound names."""
    seen: int
    """Number of the class that the picture names."""


@dataclass(frozen=True)
class _Name:
    """What a clip is called and where it goes."""

    id: str
    label: str
    split: str | None
    video: Path
    audio: Path


@dataclass(frozen=True)
class _Order:
    """A clip to write, with all that decides its content."""

    name: _Name
    classes: tuple[str, ...]
    seed: int
    signal: Signal
    look: Look


def cremad(
    folder: Path,
    clips: int,
    *,
    seed: int = 0,
    signal: Signal = CLEARER_SOUND,
    look: Look = USUAL,
    workers: int = 1,
) -> tuple[Generated, ...]:
    """Write ``VideoFlash/*.flv``, ``AudioWAV/*.wav`` and the tables of a CREMA-D clone.

    Emotions are balanced and actors used in turn, all 91 from 91 clips on. ``AudioMP3`` is not
    written. There are 7,442 names. Returns the clips in the order of their ids.
    """
    rng = numpy_stream(seed, "corpora", "cremad", "names")
    left = {
        (actor, emotion): [str(name) for name in rng.permutation(_cremad_names(actor, emotion))]
        for actor in ACTORS
        for emotion in EMOTIONS
    }
    _require(clips, sum(map(len, left.values())))
    actors = [str(actor) for actor in rng.permutation(ACTORS)]
    chosen: list[tuple[str, str]] = []
    turn = 0
    while len(chosen) < clips:
        # 91 actors and 6 emotions have no common divisor: every pair comes once in 546 turns.
        emotion = EMOTIONS[turn % len(EMOTIONS)]
        if pool := left[actors[turn % len(actors)], emotion]:
            chosen.append((pool.pop(), emotion))
        turn += 1
    names = [
        _Name(
            clip,
            emotion,
            None,
            folder / "VideoFlash" / f"{clip}.flv",
            folder / "AudioWAV" / f"{clip}.wav",
        )
        for clip, emotion in sorted(chosen)
    ]
    _write_table(
        folder / "processedResults" / "summaryTable.csv",
        ["", "FileName", "VoiceVote", "FaceVote", "MultiModalVote"],
        [
            [str(i), name.id, name.label[0], name.label[0], name.label[0]]
            for i, name in enumerate(names, 1)
        ],
    )
    _write_table(
        folder / "SentenceFilenames.csv",
        ["Stimulus_Number", "Filename"],
        [[str(i), name.id] for i, name in enumerate(names, 1)],
    )
    present = sorted({name.id[:4] for name in names})
    _write_table(
        folder / "VideoDemographics.csv",
        ["ActorID", "Age", "Sex"],
        [[actor, "30", "Female" if int(actor) % 2 else "Male"] for actor in present],
    )
    return _write_clips(names, EMOTIONS, seed, signal, look, workers)


def kinetics_sounds(
    folder: Path,
    clips: int,
    *,
    seed: int = 0,
    signal: Signal = CLEARER_SOUND,
    look: Look = USUAL,
    workers: int = 1,
    lists: bool = False,
) -> tuple[Generated, ...]:
    """Write ``{train,val,test}/<class>/<id>_<start>_<end>.mp4`` and ``annotations/*.csv``.

    The annotations also name clips of two classes outside the 31, which are not written, as
    those of Kinetics-400 do. Folders and labels say ``blowing nose`` where lists say
    ``blowing_nose``. With ``lists`` there are ``train.csv``, ``val.csv`` and ``test.csv`` as well,
    named as GeWu-Lab does: ``<id>_<start>_<end>`` in train, ``<id>_<start>`` without zeros else.
    """
    rng = numpy_stream(seed, "corpora", "kinetics-sounds", "names")
    names = []
    for youtube, label, split in _youtube_clips(rng, clips, KINETICS_SOUNDS):
        start = int(rng.integers(0, 300))
        clip = f"{youtube}_{start:06d}_{start + 10:06d}"
        video = folder / split / label.replace("_", " ") / f"{clip}.mp4"
        names.append(_Name(clip, label, split, video, video))
    header = ["label", "youtube_id", "time_start", "time_end", "split"]
    for split, said in {"train": "train", "val": "validate", "test": "test"}.items():
        rows = [[*_annotated(name.id, name.label), said] for name in names if name.split == split]
        others = [
            [label, youtube, "5", "15", said]
            for youtube, label in zip(_youtube_ids(rng, 2), ("abseiling", "zumba"), strict=True)
        ]
        _write_table(folder / "annotations" / f"{split}.csv", header, sorted(rows + others))
        if lists:
            lines = [_listed(name) for name in names if name.split == split]
            _write_lines(folder / f"{split}.csv", lines)
    return _write_clips(names, KINETICS_SOUNDS, seed, signal, look, workers)


def ave(
    folder: Path,
    clips: int,
    *,
    seed: int = 0,
    signal: Signal = CLEARER_SOUND,
    look: Look = USUAL,
    workers: int = 1,
    in_two_splits: int = 0,
) -> tuple[Generated, ...]:
    """Write ``AVE_Dataset/AVE/<id>.mp4`` with ``Annotations.txt`` and the three lists beside it.

    ``Annotations.txt`` has the header of the official archive; the lists have none. Events begin in
    the first half of a clip and last to its end. ``in_two_splits`` videos of the test list stand in
    the train list too, under the next category.
    """
    rng = numpy_stream(seed, "corpora", "ave", "names")
    inner = folder / "AVE_Dataset"
    names, lines = [], []
    for youtube, label, split in _youtube_clips(rng, clips, AVE):
        video = inner / "AVE" / f"{youtube}.mp4"
        names.append(_Name(youtube, label, split, video, video))
        start = int(rng.integers(0, max(int(look.seconds) // 2, 1)))
        lines.append(f"{label}&{youtube}&good&{start}&{max(int(look.seconds), 1)}")
    by_split = {
        split: [line for name, line in zip(names, lines, strict=True) if name.split == split]
        for split in ("train", "val", "test")
    }
    repeated = by_split["test"][:in_two_splits]
    for line in repeated:
        label, _, rest = line.partition("&")
        following = AVE[(AVE.index(label) + 1) % len(AVE)]
        by_split["train"].append(f"{following}&{rest}")
    inner.mkdir(parents=True, exist_ok=True)
    for split, chosen in by_split.items():
        _write_lines(inner / f"{split}Set.txt", chosen)
    header = "Category&VideoID&Quality&StartTime&EndTime"
    everything = sorted(line for chosen in by_split.values() for line in chosen)
    _write_lines(inner / "Annotations.txt", [header, *everything])
    return _write_clips(names, AVE, seed, signal, look, workers)


def vggsound(
    folder: Path,
    clips: int,
    *,
    seed: int = 0,
    signal: Signal = CLEARER_SOUND,
    look: Look = USUAL,
    workers: int = 1,
    classes: Sequence[str] = VGGSOUND,
) -> tuple[Generated, ...]:
    """Write ``vggsound.csv`` and ``scratch/.../video/<id>_<start>.mp4``, starts of six digits.

    Of the 309 classes a few are used. The list is in the order of the ids and has no header; labels
    with commas stand in quotes. There is no validation set.
    """
    rng = numpy_stream(seed, "corpora", "vggsound", "names")
    names = []
    for youtube, label, split in _youtube_clips(rng, clips, classes):
        clip = f"{youtube}_{int(rng.integers(0, 600)):06d}"
        video = folder / VGGSOUND_FOLDER / f"{clip}.mp4"
        names.append(_Name(clip, label, "test" if split == "test" else "train", video, video))
    rows = [[n.id[:11], str(int(n.id[12:])), n.label, str(n.split)] for n in names]
    header, *rest = sorted(rows)
    _write_table(folder / "vggsound.csv", header, rest)
    return _write_clips(names, tuple(classes), seed, signal, look, workers)


CORPORA: dict[str, Callable[..., tuple[Generated, ...]]] = {
    "cremad": cremad,
    "kinetics_sounds": kinetics_sounds,
    "ave": ave,
    "vggsound": vggsound,
}
"""The writers by the name of the dataset that reads what they write."""


def _write_clips(
    names: Sequence[_Name],
    classes: tuple[str, ...],
    seed: int,
    signal: Signal,
    look: Look,
    workers: int,
) -> tuple[Generated, ...]:
    orders = [_Order(name, classes, seed, signal, look) for name in names]
    written = dict(in_processes(_write_clip, orders, workers))
    return tuple(written[place] for place in range(len(orders)))


def _write_clip(order: _Order) -> Generated:
    name, look, classes = order.name, order.look, len(order.classes)
    key: tuple[Key, ...] = (order.seed, "corpora", name.id)
    rng = numpy_stream(*key, "shown")
    own = order.classes.index(name.label)
    heard, seen = (
        own if rng.random() < strength else int(rng.integers(classes))
        for strength in (order.signal.sound, order.signal.picture)
    )
    frames = picture(seen, classes, look, numpy_stream(*key, "picture"))
    has_own_file = name.audio != name.video
    for path, rate in {
        name.audio: look.rate,
        name.video: FLV_RATE if has_own_file else look.rate,
    }.items():
        samples = tone(heard, classes, look.seconds, rate, numpy_stream(*key, "sound"))
        if path == name.video:
            write_video(path, frames, look.fps, samples, rate)
        else:
            write_wav(path, samples, rate)
    return Generated(name.id, name.label, name.split, name.video, name.audio, heard, seen)


def _cremad_names(actor: str, emotion: str) -> list[str]:
    """Return the ids that an actor has of an emotion; only IEO has levels."""
    levels = ("XX",) if emotion == "NEU" else ("LO", "MD", "HI")
    names = [
        f"{actor}_{sentence}_{emotion}_{level}"
        for sentence in SENTENCES
        for level in (levels if sentence == "IEO" else ("XX",))
    ]
    return [name for name in names if not name.startswith(NEVER_RECORDED)]


def _youtube_clips(
    rng: np.random.Generator, clips: int, classes: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield id, class and split: classes in turn, and each class to the splits in turn."""
    if clips < 3 * len(classes):
        raise RequestError(
            f"{clips} clips are too few for {len(classes)} classes in three splits; "
            f"ask for {3 * len(classes)} at least"
        )
    per_class = -(-clips // len(classes))
    # Every class has a test, a validation and a training clip before the shares begin.
    turns = ("train", "test", "val", *SPLITS * per_class)
    for i, youtube in enumerate(_youtube_ids(rng, clips)):
        yield youtube, classes[i % len(classes)], turns[i // len(classes)]


def _youtube_ids(rng: np.random.Generator, count: int) -> list[str]:
    """Return distinct ids of 11 letters, among which ``-`` and ``_`` are."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn["".join(rng.choice(list(YOUTUBE_LETTERS), 11))] = None
    return list(drawn)


def _annotated(name: str, label: str) -> list[str]:
    """Return label, id, start and end as the annotations have them."""
    return [label.replace("_", " "), name[:11], str(int(name[12:18])), str(int(name[19:25]))]


def _listed(name: _Name) -> str:
    """Return a line of a list."""
    said = name.id if name.split == "train" else f"{name.id[:11]}_{int(name.id[12:18])}"
    return f"{said},{name.label},{KINETICS_SOUNDS.index(name.label)}"


def _write_table(path: Path, header: list[str], rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _require(clips: int, most: int) -> None:
    if not 1 <= clips <= most:
        raise RequestError(f"{clips} clips asked for; this layout has names for 1 to {most:,}")

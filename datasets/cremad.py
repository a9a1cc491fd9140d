"""CREMA-D: 7,442 short clips of 91 actors who say 12 sentences with six emotions.

Read from the archive as cloned from github.com/CheyneyComputerScience/CREMA-D: picture from
``VideoFlash/<id>.flv``, sound from ``AudioWAV/<id>.wav`` (28 of the FLV files once had none). The
label is the emotion that was acted, in the name: ``<actor>_<sentence>_<emotion>_<level>``.

``speaker`` tests on actors that are not trained on: those whose number ends in 2 or 7, 18 of 91 (10
men, 8 women; 1,475 clips). ``ogm`` is the division of the field, from the two lists of OGM-GE that
the user puts beside the data: every actor of its test set is trained on as well, and each table
that uses it says so. Either takes its validation actors from train.

What a crowd heard in the sound alone, and saw in the picture alone, goes along as further labels
where ``processedResults/summaryTable.csv`` of the archive is there: ``VoiceVote`` and ``FaceVote``.

Departures from OGM-GE's preparation: frames at 2 a second rather than 1, so that there is a choice
within each third of a 2.5 s clip (``fps=1`` when preparing keeps theirs); the frame shown at 1.0 s
rather than number 29 of 29.97 a second; frames kept at 256 pixels of the shorter side.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from mmbench.data.dataset import DatasetInfo, Problem
from mmbench.data.media.dataset import Division, Listed, Listing, MediaDataset, MediaOptions
from mmbench.data.media.manifest import Clip, MediaRecipe
from mmbench.errors import DataError
from mmbench.options import option

ACTORS = range(1001, 1092)
SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")
EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
LEVELLED = "IEO"
"""The sentence that was said at three levels, unless neutral; all others have the level XX."""
NEVER_RECORDED = ("1008_WSI_", "1009_MTI_", "1019_ITH_", "1002_TIE_NEU_XX", "1076_ITS_NEU_XX")
"""Beginnings of the 20 names that follow the rule and of which there is no clip."""
TEST_ENDINGS = (2, 7)
"""Last digits of the actors that `speaker` tests on: of the five such pairs of endings, the one
whose men and women are nearest to those of all 91 actors (48 to 43) with 18 actors."""
VIDEO, AUDIO = "VideoFlash", "AudioWAV"
OLD_NAMES = {"1040_ITH_SAD_XX": "1040_ITH_SAD_X"}
"""How a WAV file was called in clones before 2022."""
LISTS = {
    "train.csv": (6698, "7b95d291b847eac9c1447bb9fb63b47176d182987ac74fe041e4dd493c6d0abd"),
    "test.csv": (744, "959a667af66a01dc439b12d6ec9dc57b36a88e947f48ad63531a4b91f769394f"),
}
"""Rows of OGM-GE's lists, and their SHA-256 in UTF-8 without BOM, with a line feed per line."""
VOTES = "summaryTable.csv"
"""The archive's table of what a crowd recognised, in its folder ``processedResults``."""
VOTES_OF = {"audio": "VoiceVote", "visual": "FaceVote"}
"""Columns of votes on one modality alone."""
CLONE = "https://gitlab.com/cs-cooper-lab/crema-d-mirror"


def clip_ids() -> list[str]:
    """Return the names of the 7,442 clips, sorted."""
    return sorted(
        f"{actor}_{sentence}_{emotion}_{level}"
        for actor, sentence, emotion in product(ACTORS, SENTENCES, EMOTIONS)
        for level in (("LO", "MD", "HI") if sentence == LEVELLED and emotion != "NEU" else ("XX",))
        if not f"{actor}_{sentence}_{emotion}_{level}".startswith(NEVER_RECORDED)
    )


class CremaD(MediaDataset):
    """CREMA-D with picture and sound."""

    info = DatasetInfo(
        title="CREMA-D: acted emotions, with picture and sound",
        summary="7,442 clips of 91 actors, six emotions; sound is the stronger modality",
        licence="ODbL 1.0 (database), DbCL 1.0 (contents)",
        citation="H. Cao et al., CREMA-D: Crowd-sourced emotional multimodal actors dataset, "
        "IEEE Transactions on Affective Computing 5(4), 2014",
        modalities={
            "audio": "sound at 16 kHz, read through a spectrogram",
            "visual": "frames of the picture, three of a clip unless asked otherwise",
        },
        protocols={
            "speaker": "test on the 18 actors whose number ends in 2 or 7; validation on actors "
            "taken from the other 73 by the seed",
            "ogm": "6,698/744 clips by OGM-GE's train.csv and test.csv, which you put beside the "
            "data; all 91 actors are in both; validation on actors taken from train by the seed",
        },
        files="VideoFlash/*.flv and AudioWAV/*.wav (github.com/CheyneyComputerScience/CREMA-D or "
        "its mirror gitlab.com/cs-cooper-lab/crema-d-mirror, with git-LFS)",
    )
    kept = MediaRecipe(fps=2.0, short_side=256, rate=16_000, seconds=5.5)  # the longest lasts 5.0 s
    groups_are = "actors"
    listed_by = ("lists",)
    pointer_folders = (VIDEO, AUDIO)
    known_damaged = {
        "1076_MTI_NEU_XX": "the FLV is very short and has no sound",
        "1076_MTI_SAD_XX": "the FLV shows an error, the WAV is silent",
        "1064_TIE_SAD_XX": "the FLV has no duration in its header",
        "1064_IEO_DIS_MD": "the FLV lasts 61 s and holds all emotions",
    }

    class Config(MediaOptions):
        lists: Literal["published", "any"] = option(
            "published",
            "when preparing: take train.csv and test.csv only as OGM-GE published them, or any "
            "lists of the same form",
        )

    config: Config

    def listing(self, source: Path) -> Listing:
        root = _root(source)
        clips = tuple(_clip(name, root) for name in clip_ids())
        lists = self._lists(source, root) | _votes(source, root, clips)
        return Listing(root, clips, tuple(_strangers(root, clips)), lists)

    def further_labels(
        self, ids: Sequence[str], lists: Mapping[str, bytes]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return the votes on each modality: an emotion, or empty where several tie."""
        if VOTES not in lists:
            return {}
        rows = csv.DictReader(lists[VOTES].decode().splitlines())
        votes = {row["FileName"]: row for row in rows}
        return {
            m: {column: np.array([_untied(votes, name, column) for name in ids])}
            for m, column in VOTES_OF.items()
        }

    def divide(
        self, protocol: str, clips: Sequence[Listed], lists: Mapping[str, bytes]
    ) -> Division:
        if protocol == "speaker":
            test = {clip.id for clip in clips if int(clip.group) % 10 in TEST_ENDINGS}
            return Division(frozenset({clip.id for clip in clips} - test), frozenset(test))
        if not lists.keys() >= LISTS.keys():
            raise DataError(
                "protocol 'ogm' of cremad needs OGM-GE's train.csv and test.csv: put both beside "
                "VideoFlash and AudioWAV and run `mmbench data prepare cremad --source DIR` again, "
                "which decodes nothing twice; protocol 'speaker' needs no list"
            )
        train, test_ids = (frozenset(_ids(lists[name].decode())) for name in LISTS)
        outside = len({clip.id for clip in clips} - train - test_ids)
        notes = (f"{outside} clips are in neither list",) if outside else ()
        is_published = all(_sha(lists[name]) == sha for name, (_, sha) in LISTS.items())
        own = () if is_published else ("lists of the user's own, not OGM-GE's",)
        return Division(train, test_ids, notes=(*own, *notes))

    def _lists(self, source: Path, root: Path) -> dict[str, bytes]:
        """Return the lists that lie beside the data, as plain UTF-8; empty when neither does."""
        paths = {
            name: next((p / name for p in (root, source) if (p / name).is_file()), None)
            for name in LISTS
        }
        found = {name: path for name, path in paths.items() if path is not None}
        if not found:
            return {}
        if len(found) < len(paths):
            (absent,) = paths.keys() - found.keys()
            (path,) = found.values()
            raise DataError(
                f"{path} is there and {absent} is not; add it, or move {path.name} away"
            )
        lists = {name: self._list(path, *LISTS[name]) for name, path in found.items()}
        both = set.intersection(*(set(_ids(content.decode())) for content in lists.values()))
        if both:
            raise DataError(
                f"{root}: {len(both)} clips are in train.csv and in test.csv, such as "
                f"{min(both)}; each clip belongs into one"
            )
        return lists

    def _list(self, path: Path, count: int, sha: str) -> bytes:
        """Return a list with plain line ends. Raises :class:`DataError` that names a wrong line."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from error
        mend = "get it from OGM-GE's repository again, or move it away"
        known = set(clip_ids())
        rows = [line.strip() for line in lines if line.strip()]
        for number, row in enumerate(rows, start=1):
            name, _, label = row.partition(",")
            if name not in known:
                raise DataError(
                    f"{path}, row {number}: '{name[:60]}' is no clip of CREMA-D; {mend}"
                )
            if label.strip() != _emotion(name):
                raise DataError(
                    f"{path}, row {number}: the label '{label[:20]}' is not that of {name}, "
                    f"{_emotion(name)}; {mend}"
                )
        ((name, times),) = Counter(_ids("\n".join(rows))).most_common(1) or [("", 0)]
        if times > 1:
            raise DataError(f"{path} names {name} {times} times; {mend}")
        content = "".join(f"{row}\n" for row in rows).encode()
        if self.config.lists == "any":
            return content
        other = "add -d lists=any to use lists of your own"
        if len(rows) != count:
            raise DataError(f"{path} has {len(rows)} rows, OGM-GE's has {count:,}; {mend}; {other}")
        if _sha(content) != sha:
            raise DataError(
                f"{path} is not OGM-GE's list: its SHA-256 is {_sha(content)[:12]}..., not "
                f"{sha[:12]}...; {mend}; {other}"
            )
        return content


def _root(source: Path) -> Path:
    """Return the folder that holds picture and sound: the one given, or one in it."""
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give the one that holds {VIDEO} and {AUDIO}")
    places = [source, *sorted(place for place in source.iterdir() if place.is_dir())]
    for place in places:
        if (place / VIDEO).is_dir() and (place / AUDIO).is_dir():
            return place
    for place in places:
        for here, absent in ((VIDEO, AUDIO), (AUDIO, VIDEO)):
            if (place / here).is_dir():
                raise DataError(f"{place} holds {here} and no {absent}; get it from {CLONE}")
    if source.name in (VIDEO, AUDIO):
        raise DataError(f"{source} is a part of CREMA-D; give the folder above it, {source.parent}")
    raise DataError(f"{source} holds no {VIDEO} and {AUDIO}; give the folder of a clone of {CLONE}")


def _votes(source: Path, root: Path, clips: Sequence[Clip]) -> dict[str, bytes]:
    """Return the table of votes as plain UTF-8, only the columns that are read; empty where it is
    not there. Raises :class:`DataError` where it is not that of the clips that are there."""
    folders = (root / "processedResults", root, source)
    path = next((folder / VOTES for folder in folders if (folder / VOTES).is_file()), None)
    if path is None:
        return {}
    mend = f"get it from {CLONE} again, or move it away"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; {mend}") from error
    votes: dict[str, str] = {}
    for number, row in enumerate(csv.DictReader(lines), start=1):
        cells = [row.get(column) or "" for column in ("FileName", *VOTES_OF.values())]
        for vote in cells[1:]:
            if not vote or not {*vote.split(":")} <= {emotion[0] for emotion in EMOTIONS}:
                raise DataError(f"{path}, row {number}: '{vote[:20]}' is no vote; {mend}")
        votes[cells[0]] = ",".join(cells)
    unknown = [clip for clip in clips if clip.id not in votes and (root / clip.video).is_file()]
    if unknown:
        raise DataError(
            f"{path} has no votes on {len(unknown)} clips, such as {unknown[0].id}; {mend}"
        )
    header = ",".join(("FileName", *VOTES_OF.values()))
    return {VOTES: "".join(f"{line}\n" for line in (header, *votes.values())).encode()}


def _untied(votes: Mapping[str, Mapping[str, str]], name: str, column: str) -> str:
    vote = votes[name][column] if name in votes else ""
    return "" if ":" in vote else vote


def _clip(name: str, root: Path) -> Clip:
    sound = f"{AUDIO}/{name}.wav"
    old = f"{AUDIO}/{OLD_NAMES.get(name, name)}.wav"
    if not (root / sound).is_file() and (root / old).is_file():
        sound = old
    return Clip(name, _emotion(name), name[:4], f"{VIDEO}/{name}.flv", sound)


def _strangers(root: Path, clips: Sequence[Clip]) -> list[Problem]:
    """Return files whose names are those of no clip."""
    expected = {place for clip in clips for place in (clip.video, clip.audio)}
    return [
        Problem(
            str(path),
            "is not named as one of the 7,442 clips, <actor>_<sentence>_<emotion>_<level>",
            "rename it if it is one of those missing, or move it away",
        )
        for folder, ending in ((VIDEO, ".flv"), (AUDIO, ".wav"))
        for path in sorted((root / folder).iterdir())
        if path.suffix.lower() == ending and f"{folder}/{path.name}" not in expected
    ]


def _emotion(name: str) -> str:
    return name.split("_")[2]


def _ids(content: str) -> list[str]:
    return [line.partition(",")[0] for line in content.splitlines()]


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

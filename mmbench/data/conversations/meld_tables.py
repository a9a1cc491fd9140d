"""MELD's tables (``train_sent_emo.csv`` and so on), and finding a pickle's dialogues in them.

Dialogues are found by what is said: their numbers start anew in each table, and pickles number them
in ways of their own.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path

from mmbench.data.conversations.layouts import PARTS, Dialogue, Findings
from mmbench.data.conversations.reading import EMOTION
from mmbench.data.files import FileError, require_sound
from mmbench.data.problem import Problem

EMOTIONS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
"""In the order of all pickles."""
SENTIMENTS = ("negative", "neutral", "positive")
SENTIMENT = "sentiment"
TABLES = {"train": "train_sent_emo.csv", "val": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
FROM = "get the tables from github.com/declare-lab/MELD, data/MELD"
OF_ONE_MELD = "use the tables and the pickle of one MELD, or take the tables away"
TOLERATED = 0.01
"""Share of the utterances whose emotion may be another in pickle and tables, as the tables were
corrected a few times."""


@dataclass(frozen=True)
class Line:
    """An utterance in a table."""

    dialogue: int
    utterance: int
    sentence: str
    speaker: str
    emotion: str
    sentiment: str


@dataclass(frozen=True)
class Scene:
    """A dialogue in the tables."""

    part: str
    number: int
    lines: tuple[Line, ...]

    def sentences(self) -> tuple[str, ...]:
        return tuple(plain(line.sentence) for line in self.lines)


def tables_folder(*places: Path) -> Path | None:
    """Return the first folder that holds MELD's tables. Raises :class:`FileError` when one is
    missing there."""
    for place in places:
        there = [name for name in TABLES.values() if (place / name).exists()]
        if there and (absent := [name for name in TABLES.values() if name not in there]):
            what = f"does not exist, though {there[0]} lies there"
            raise FileError(Problem(str(place / absent[0]), what, FROM))
        if there:
            return place
    return None


def read_table(path: Path, part: str) -> list[Scene]:
    """Return the dialogues of a table. Raises :class:`DataError` that names the line at fault."""
    require_sound(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            if absent := [name for name in COLUMNS if name not in header]:
                raise FileError(Problem(str(path), f"has no column '{absent[0]}'", FROM))
            rows = [(reader.line_num, row) for row in reader]
        if rows and None in rows[-1][1].values():
            what = f"is cut: line {rows[-1][0]}, the last, ends before its last column"
            raise FileError(Problem(str(path), what, FROM))
        lines = [_line(path, number, row) for number, row in rows]
    except UnicodeDecodeError as error:
        raise FileError(Problem(str(path), "is not UTF-8 text", FROM)) from error
    except csv.Error as error:
        raise FileError(Problem(str(path), f"is not a table: {error}", FROM)) from error
    if not lines:
        raise FileError(Problem(str(path), "holds no rows", FROM))
    lines.sort(key=lambda line: (line.dialogue, line.utterance))
    for before, line in pairwise(lines):
        if (before.dialogue, before.utterance) == (line.dialogue, line.utterance):
            what = f"lists utterance {line.utterance} of dialogue {line.dialogue} twice"
            raise FileError(Problem(str(path), what, FROM))
    return [
        Scene(part, number, tuple(spoken))
        for number, spoken in groupby(lines, key=lambda line: line.dialogue)
    ]


def _line(path: Path, number: int, row: Mapping[str, str | None]) -> Line:
    cells = {name: (row[name] or "").strip() for name in COLUMNS}
    for name, known in (("Emotion", EMOTIONS), ("Sentiment", SENTIMENTS)):
        if cells[name] not in known:
            what = f"line {number}: {name} is '{cells[name][:40]}', not one of {', '.join(known)}"
            raise FileError(Problem(str(path), what, FROM))
    for name in ("Dialogue_ID", "Utterance_ID"):
        if not cells[name].isdecimal():
            what = f"line {number} has '{cells[name][:40]}' as {name}, not a number"
            raise FileError(Problem(str(path), what, FROM))
    return Line(
        int(cells["Dialogue_ID"]),
        int(cells["Utterance_ID"]),
        cells["Utterance"],
        cells["Speaker"],
        cells["Emotion"],
        cells["Sentiment"],
    )


# -- dialogues in the tables -----------------------------------------------------------------------


def completed(
    dialogues: Sequence[Dialogue], folder: Path, path: Path, findings: Findings
) -> list[Dialogue]:
    """Return the dialogues of the pickle ``path`` with the parts, speakers and sentiments that the
    tables in ``folder`` give them; what does not agree is added to the findings.

    Raises :class:`FileError` for a table that cannot be read, and when no dialogue is in any.
    """
    scenes = [scene for part in PARTS for scene in read_table(folder / TABLES[part], part)]
    found = matched(dialogues, scenes, path, findings)
    if not found:
        what = f"holds no dialogue that is in the tables of {folder}, by its sentences"
        raise FileError(Problem(str(path), what, OF_ONE_MELD))
    _require_same_lists(found, path, findings)
    _compare_emotions(found, path, findings)
    return [_known(dialogue, scene) for dialogue, scene in found]


def plain(sentence: str) -> str:
    """Return the ASCII letters and digits of a sentence, small: quotation marks and dots differ
    between the tables and the pickles made of them."""
    return "".join(letter for letter in sentence.lower() if letter.isascii() and letter.isalnum())


def matched(
    dialogues: Sequence[Dialogue], scenes: Sequence[Scene], path: Path, findings: Findings
) -> list[tuple[Dialogue, Scene]]:
    """Return dialogues with the scenes that say the same. A few words may differ: then more than
    half of the sentences have to agree, of a scene as long. Scenes alike in every word are taken in
    their order. A dialogue that is in no table is a fault."""
    waiting: dict[tuple[bool, tuple[str, ...]], list[Scene]] = defaultdict(list)
    for scene in reversed(scenes):
        waiting[scene.part == "test", scene.sentences()].append(scene)
    found: list[tuple[Dialogue, Scene]] = []
    unclear: list[Dialogue] = []
    for dialogue in dialogues:
        said = dialogue.part == "test", tuple(map(plain, dialogue.sentences))
        if dialogue.sentences and waiting.get(said):
            found.append((dialogue, waiting[said].pop()))
        else:
            unclear.append(dialogue)
    left = [scene for alike in waiting.values() for scene in alike]
    for dialogue in unclear:
        nearest = _nearest(dialogue, left)
        if nearest is None:
            why = "is in none of the tables, by its sentences"
            what = why if dialogue.sentences else "has no sentences to find it in the tables by"
            findings.fault(path, f"dialogue '{dialogue.name}' {what}", OF_ONE_MELD)
        else:
            left.remove(nearest)
            found.append((dialogue, nearest))
    if left:
        what = f"lacks {len(left)} of the {len(scenes)} dialogues in the tables"
        findings.remark(path, what, "get the published file, unless this is one of your own")
    order = {dialogue.name: place for place, dialogue in enumerate(dialogues)}
    return sorted(found, key=lambda pair: order[pair[0].name])


def _nearest(dialogue: Dialogue, scenes: Sequence[Scene]) -> Scene | None:
    said = tuple(map(plain, dialogue.sentences))
    best, agreeing = None, len(said) / 2
    for scene in scenes:
        if len(scene.lines) == len(said):
            same = sum(a == b for a, b in zip(said, scene.sentences(), strict=True))
            if same > agreeing:
                best, agreeing = scene, same
    return best


def _require_same_lists(
    found: Sequence[tuple[Dialogue, Scene]], path: Path, findings: Findings
) -> None:
    for dialogue, scene in found:
        if (dialogue.part == "test") != (scene.part == "test"):
            what = (
                f"lists dialogue '{dialogue.name}' in {dialogue.part}, {TABLES[scene.part]} has it"
            )
            findings.fault(path, what, OF_ONE_MELD)


def _compare_emotions(
    found: Sequence[tuple[Dialogue, Scene]], path: Path, findings: Findings
) -> None:
    other = [
        (dialogue.name, n, held, line.emotion)
        for dialogue, scene in found
        for n, (held, line) in enumerate(zip(dialogue.labels[EMOTION], scene.lines, strict=True))
        if held != line.emotion
    ]
    if not other:
        return
    total = sum(len(scene.lines) for _, scene in found)
    name, n, held, written = other[0]
    what = (
        f"{len(other)} of {total} emotions are not those of the tables, the first: utterance {n} "
        f"of dialogue '{name}' is {held}, in the tables {written}"
    )
    if len(other) > TOLERATED * total:
        findings.fault(
            path,
            what,
            "use a file whose labels are numbered neutral, surprise, fear, "
            "sadness, joy, disgust, anger",
        )
    else:
        findings.remark(path, what, "those of the pickle are used")


def _known(dialogue: Dialogue, scene: Scene) -> Dialogue:
    sentiments = tuple(line.sentiment for line in scene.lines)
    return replace(
        dialogue,
        part=scene.part,
        labels=dialogue.labels | {SENTIMENT: sentiments},
        speakers=tuple(line.speaker for line in scene.lines),
    )

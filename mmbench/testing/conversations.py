"""Generated files of conversations, laid out as those that people have of IEMOCAP and MELD.

A modality names a class by a direction in its features, under noise. With probability ``strength``
it names the utterance's own class, otherwise one drawn from all. Files have the names, nesting and
types of the originals: sets of dialogues, labels as lists, features as lists of vectors or as files
in folders, in MMGCN's form as Python 2 wrote it.

    iemocap(folder, "folders", ways=4)
    meld(folder, "fields", tables=True)
"""

from __future__ import annotations

import csv
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmbench.data.conversations.folders import USUAL
from mmbench.data.conversations.layouts import MODALITIES, Layout
from mmbench.data.conversations.meld_tables import EMOTIONS, TABLES
from mmbench.seeds import numpy_stream

STRENGTHS: Mapping[str, float] = {"text": 0.9, "audio": 0.6, "visual": 0.4}
WIDTHS: Mapping[str, int] = {"text": 24, "audio": 16, "visual": 20}
"""Small by default: tests need the path, not the features."""
SPREAD = 4.0
"""Length of a class's direction; the noise has deviation 1 in each feature."""
UTTERANCES = (6, 14)
"""Fewest and most utterances of a dialogue."""
MELD_SPEAKERS = ("Ross", "Rachel", "Monica", "Chandler", "Joey", "Phoebe", "Gunther", "All")
VOCABULARY = ("oh", "you", "know", "what", "really", "no", "coffee", "sofa", "duck", "lobster")
SENTIMENT_OF = {
    "neutral": "neutral",
    "surprise": "positive",
    "joy": "positive",
    "fear": "negative",
    "sadness": "negative",
    "disgust": "negative",
    "anger": "negative",
}


@dataclass(frozen=True)
class Conversation:
    """A generated dialogue of ``n`` utterances."""

    key: str | int
    part: str
    utterances: list[str]
    """Their names."""
    labels: list[int]
    speakers: list[str]
    sentences: list[str]
    features: dict[str, np.ndarray]
    """``(n, width)`` by modality."""


@dataclass(frozen=True)
class Written:
    """What was written: the pickle, and what is in it."""

    pickle: Path
    conversations: tuple[Conversation, ...]


def iemocap(
    folder: Path,
    layout: Layout,
    *,
    ways: int = 6,
    dialogues_per_session: int = 3,
    strengths: Mapping[str, float] = STRENGTHS,
    widths: Mapping[str, int] = WIDTHS,
    seed: int = 0,
) -> Written:
    """Write a pickle of IEMOCAP, sessions 1 to 4 as train and 5 as test, and its feature folders
    where the layout has them. The faces of both speakers are pictures in folders."""
    rng = numpy_stream(seed, "conversations", "iemocap")
    directions = _directions(rng, ways, widths)
    conversations = []
    for session in range(1, 6):
        for i in range(dialogues_per_session):
            key = f"Ses0{session}{'FM'[i % 2]}_impro{i + 1:02d}"
            speakers = [str(who) for who in rng.choice(["F", "M"], _length(rng))]
            names = [f"{key}_{who}{n:03d}" for n, who in enumerate(speakers)]
            part = "test" if session == 5 else "train"
            conversations.append(
                _conversation(rng, key, part, names, speakers, directions, strengths)
            )
    file = {
        "fields": "iemocap.pkl",
        "items": "IEMOCAP_features.pkl",
        "folders": f"IEMOCAP_features_raw_{ways}way.pkl",
    }[layout]
    return _write(folder / file, layout, conversations)


def meld(
    folder: Path,
    layout: Layout,
    *,
    tables: bool = True,
    dialogues: tuple[int, int, int] = (16, 6, 8),
    strengths: Mapping[str, float] = STRENGTHS,
    widths: Mapping[str, int] = WIDTHS,
    seed: int = 0,
) -> Written:
    """Write a pickle of MELD whose list of train holds those of dev too, and beside it MELD's
    tables unless these are not wanted. Dialogues are numbered through in the pickle, and anew in
    each table; words differ in their quotation marks."""
    rng = numpy_stream(seed, "conversations", "meld")
    directions = _directions(rng, len(EMOTIONS), widths)
    conversations: list[Conversation] = []
    official: dict[str, list[Conversation]] = {part: [] for part in TABLES}
    for part, count in zip(TABLES, dialogues, strict=True):
        for number in range(count):
            speakers = [str(who) for who in rng.choice(MELD_SPEAKERS, _length(rng))]
            names = [f"{part}_dia{number}_utt{n}" for n in range(len(speakers))]
            listed = "train" if part == "val" else part
            made = _conversation(
                rng, len(conversations), listed, names, speakers, directions, strengths
            )
            conversations.append(made)
            official[part].append(made)
    folder.mkdir(parents=True, exist_ok=True)
    if tables:
        for part, chosen in official.items():
            _write_table(folder / TABLES[part], chosen)
    file = {
        "fields": "meld.pkl",
        "items": "MELD_features_raw1.pkl",
        "folders": "MELD_features_raw_7way.pkl",
    }[layout]
    return _write(folder / file, layout, conversations)


# -- content ---------------------------------------------------------------------------------------


def _length(rng: np.random.Generator) -> int:
    fewest, most = UTTERANCES
    return int(rng.integers(fewest, most + 1))


def _directions(
    rng: np.random.Generator, classes: int, widths: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Return a direction ``(classes, width)`` of length :data:`SPREAD` for each class."""
    drawn = {m: rng.standard_normal((classes, widths[m])) for m in MODALITIES}
    return {
        m: SPREAD * rows / np.linalg.norm(rows, axis=1, keepdims=True) for m, rows in drawn.items()
    }


def _conversation(
    rng: np.random.Generator,
    key: str | int,
    part: str,
    names: list[str],
    speakers: list[str],
    directions: Mapping[str, np.ndarray],
    strengths: Mapping[str, float],
) -> Conversation:
    count, classes = len(names), len(directions["text"])
    labels = rng.integers(classes, size=count)
    features = {}
    for m in MODALITIES:
        is_own = rng.random(count) < strengths[m]
        named = np.where(is_own, labels, rng.integers(classes, size=count))
        noise = rng.standard_normal((count, directions[m].shape[1]))
        features[m] = (directions[m][named] + noise).astype(np.float32)
    sentences = [
        f"I\u2019m {' '.join(rng.choice(VOCABULARY, 5))}\u2026 {key}.{n}" for n in range(count)
    ]
    return Conversation(key, part, names, labels.tolist(), speakers, sentences, features)


# -- files -----------------------------------------------------------------------------------------


def _write(path: Path, layout: Layout, conversations: Sequence[Conversation]) -> Written:
    def by_dialogue(value: Callable[[Conversation], object]) -> dict[str | int, object]:
        return {c.key: value(c) for c in conversations}

    keys = {part: {c.key for c in conversations if c.part == part} for part in ("train", "test")}
    features = {m: by_dialogue(partial(_vectors, m)) for m in MODALITIES}
    labels, sentences = by_dialogue(lambda c: c.labels), by_dialogue(lambda c: c.sentences)
    names = by_dialogue(lambda c: c.utterances)
    speakers = by_dialogue(lambda c: [_speaker(who, layout) for who in c.speakers])
    is_iemocap = isinstance(conversations[0].key, str)
    content: object
    if layout == "fields":
        lists = {f"{part}Vid": list(members) for part, members in keys.items()}
        said = {("speaker" if is_iemocap else "speakers"): speakers, "sentence": sentences}
        content = {**features, **said, **lists, "label": labels}
    elif layout == "items":
        first = (names, speakers, labels, *features.values(), sentences, *keys.values())
        content = first if is_iemocap else (*first, labels)
    else:
        content = [names, labels, speakers, sentences, *keys.values()]
        _write_features(path.parent / "features", conversations)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        if layout == "items" and is_iemocap:
            Python2Pickler(file, protocol=2).dump(content)
        else:
            pickle.dump(content, file)
    return Written(path, tuple(conversations))


def _vectors(modality: str, conversation: Conversation) -> list[np.ndarray]:
    return list(conversation.features[modality])


def _speaker(who: str, layout: Layout) -> object:
    """Return a speaker as a layout has them: a letter in IEMOCAP; in MELD a number, or a place in a
    one-hot vector."""
    if who not in MELD_SPEAKERS or layout == "folders":
        return who
    place = MELD_SPEAKERS.index(who)
    return place if layout == "fields" else [int(i == place) for i in range(len(MELD_SPEAKERS))]


def _write_features(root: Path, conversations: Sequence[Conversation]) -> None:
    """Write a vector for the text of each utterance, one for each of three steps of its sound, and
    for each speaker two pictures, of which those of the one who is silent show nothing."""
    places = {m: root / name for m, name in USUAL.items()}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    for conversation in conversations:
        for n, name in enumerate(conversation.utterances):
            text, audio, visual = (conversation.features[m][n] for m in MODALITIES)
            np.save(places["text"] / f"{name}.npy", text)
            steps = np.stack([audio - 1, audio, audio + 1])
            np.save(places["audio"] / f"{name}.npy", steps)
            faces = places["visual"] / name
            faces.mkdir(exist_ok=True)
            who = conversation.speakers[n]
            shown = ("F", "M") if who in ("F", "M") else ("",)
            for letter in shown:
                seen = visual if letter in (who, "") else np.zeros_like(visual)
                for i, shift in enumerate((-0.5, 0.5)):
                    np.save(faces / f"{letter}{i:04d}.npy", seen + np.float32(shift))


def _write_table(path: Path, conversations: Sequence[Conversation]) -> None:
    """Write one of MELD's tables; straight quotation marks stand where the pickle has others."""
    columns = ("Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID")
    times = ("Utterance_ID", "Season", "Episode", "StartTime", "EndTime")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *times])
        number = 0
        for dialogue, made in enumerate(conversations):
            for n, sentence in enumerate(made.sentences):
                number += 1
                emotion = EMOTIONS[made.labels[n]]
                said = sentence.replace("\u2019", "'").replace("\u2026", "...")
                row = [number, said, made.speakers[n], emotion, SENTIMENT_OF[emotion], dialogue]
                writer.writerow([*row, n, 4, 7, "00:20:57,256", "00:21:00,049"])


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes alike as Python 2 did: as byte strings without an encoding."""

    write: Callable[[bytes], Any]
    memoize: Callable[[object], None]
    dispatch: ClassVar[dict[type, Callable[..., None]]] = {**pickle._Pickler.dispatch}

    def save_text(self, text: str | bytes) -> None:
        raw = text.encode("utf-8") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    dispatch[str] = save_text
    dispatch[bytes] = save_text

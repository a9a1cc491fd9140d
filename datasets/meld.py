"""MELD: conversations from a television series, features of every utterance in text, sound, face.

Read from Ada2I's and SPCL's dict, from MMGCN's ten items, or from a label pickle with feature
folders as GCNet has them (docs/datasets/meld.md names them). Which features it has, and how wide
they are, is the file's.

A row is one utterance, classified on its own. Here this departs from nearly all works on these
data, whose networks read the whole dialogue: their numbers do not compare with these.

The split is the official one: 1,038 dialogues of train, 114 of dev as validation, 280 of test. The
common pickles list train and dev together, 1,152 dialogues, and Ada2I and SPCL validate on the
first tenth of these, which need not be dev. Here MELD's own tables (``train_sent_emo.csv`` and so
on), lying beside the pickle, say which dialogue is of dev. Dialogues are found in them by what is
said, as the numbers of dialogues start anew in each table and differ from file to file. Without the
tables, validation is carved from the 1,152 by dialogue, and every table of results says so.

``seven`` emotions come from the pickle, in the order that all files share; they must agree with
those of the tables, where these are. ``sentiment`` has three classes and needs the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmbench.data.conversations.dataset import Annotated, ConversationDataset, Task
from mmbench.data.conversations.layouts import PARTS, Dialogue
from mmbench.data.conversations.meld_tables import (
    EMOTIONS,
    SENTIMENT,
    SENTIMENTS,
    TABLES,
    completed,
    tables_folder,
)
from mmbench.data.conversations.reading import EMOTION, Reading
from mmbench.data.conversations.store import Utterances
from mmbench.data.dataset import DatasetInfo
from mmbench.data.files import file_sha256
from mmbench.errors import DataError

DIALOGUES = {"train": 1038, "val": 114, "test": 280}
UTTERANCES = {"train": 9989, "val": 1109, "test": 2610}
OF_EMOTIONS = {
    "anger": (1109, 153, 345),
    "disgust": (271, 22, 68),
    "fear": (268, 40, 50),
    "joy": (1743, 163, 402),
    "neutral": (4710, 470, 1256),
    "sadness": (683, 111, 208),
    "surprise": (1205, 150, 281),
}
"""Utterances in train, dev and test, from the README of MELD."""


class Meld(ConversationDataset):
    """MELD, by the utterance."""

    info = DatasetInfo(
        title="MELD: multimodal EmotionLines",
        summary="13,708 utterances of 1,432 conversations in seven emotions, each classified on "
        "its own",
        licence="annotations GPL-3.0; the scenes are from a television series",
        citation="S. Poria et al., MELD: a multimodal multi-party dataset for emotion recognition "
        "in conversations, ACL 2019",
        modalities={
            "text": "features of what is said, as wide as the file has them",
            "audio": "features of the sound",
            "visual": "features of faces",
        },
        protocols={
            "seven": "seven emotions; official split, 9,989/1,109/2,610 utterances",
            "sentiment": "negative, neutral, positive; the same split, needs MELD's tables",
        },
        files="a pickle of utterance features: meld.pkl (Ada2I, SPCL), MELD_features_raw1.pkl "
        "(MMGCN), or a label pickle with features/; beside it {train,dev,test}_sent_emo.csv "
        "(github.com/declare-lab/MELD) for the official dev split",
    )

    def naming(self, path: Path, highest: int) -> Sequence[str]:
        return EMOTIONS

    def annotate(self, reading: Reading, source: Path) -> Annotated:
        """Take parts, speakers and sentiments from the tables where they lie beside the pickle."""
        if of_iemocap := [d.name for d in reading.dialogues if d.name.startswith("Ses0")]:
            raise DataError(
                f"{reading.path} holds {of_iemocap[0]}, a dialogue of IEMOCAP; use it for iemocap"
            )
        folder = tables_folder(reading.path.parent, source)
        # Without names, what a pickle says of speakers holds within one dialogue at most.
        nameless = [replace(d, speakers=("",) * len(d.speakers)) for d in reading.dialogues]
        classes = {EMOTION: list(EMOTIONS)}
        if folder is None:
            return Annotated(tuple(nameless), classes, notes=_notes_on_validation(nameless))
        dialogues = completed(nameless, folder, reading.path, reading.findings)
        sources = {name: file_sha256(folder / name) for name in TABLES.values()}
        return Annotated(tuple(dialogues), classes | {SENTIMENT: list(SENTIMENTS)}, sources)

    def expected(self, utterances: Utterances) -> Mapping[str, int]:
        if (utterances.parts == "val").any():
            by_part = {part: (DIALOGUES[part], UTTERANCES[part]) for part in PARTS}
        else:
            together = (
                DIALOGUES["train"] + DIALOGUES["val"],
                UTTERANCES["train"] + UTTERANCES["val"],
            )
            by_part = {"train": together, "test": (DIALOGUES["test"], UTTERANCES["test"])}
        expected: dict[str, int] = {}
        for part, (dialogues, spoken) in by_part.items():
            expected |= {f"dialogues of {part}": dialogues, f"utterances of {part}": spoken}
        for name, numbers in OF_EMOTIONS.items():
            expected[f"emotion {name}"] = sum(numbers)
            expected[f"emotion {name} in test"] = numbers[-1]
        return expected

    def task(self, protocol: str, utterances: Utterances) -> Task:
        if protocol == "seven":
            return Task(utterances.labels[EMOTION], EMOTIONS, utterances.parts)
        if SENTIMENT not in utterances.labels:
            raise DataError(
                f"dataset 'meld' is prepared without {TABLES['train']} and its like, which "
                f"--protocol {protocol} needs; put them beside the pickle and prepare again"
            )
        return Task(utterances.labels[SENTIMENT], SENTIMENTS, utterances.parts)


def _notes_on_validation(dialogues: Sequence[Dialogue]) -> tuple[str, ...]:
    """Return what is to be said where nothing tells which dialogues are of the official dev."""
    if any(dialogue.part == "val" for dialogue in dialogues):
        return ()
    trained = sum(dialogue.part == "train" for dialogue in dialogues)
    both = trained == DIALOGUES["train"] + DIALOGUES["val"]
    are = "are" if both else "may be"
    return (
        f"validation is carved from the {trained:,} dialogues of train, among which those of the "
        f"official dev {are}",
    )

"""IEMOCAP: conversations of two actors, features of every utterance in text, sound and face.

Read from any of the pickles that works on emotion in conversations share (docs/datasets/iemocap.md
names them): Ada2I's and SPCL's dict, MMGCN's nine items, or GCNet's and MoMKE's six items with
feature folders. Which features it has, and how wide they are, is the file's.

A row is one utterance, classified on its own. Here this departs from nearly all works on these
data, whose networks read the whole dialogue: their numbers do not compare with these.

``six`` has the emotions happy, sad, neutral, angry, excited and frustrated, 7,433 utterances of 151
dialogues. ``four`` has happy (with excited), sad, neutral and angry: as GCNet's ``4way`` file has
them, 5,531 utterances, or from a file of six classes by the same rule. That leaves 5,584
utterances, for a file of six classes has 1,689 happy or excited ones and GCNet's 1,636; which 53
GCNet leaves out no file says. The other three classes agree.

Test is session 5, as in the works cited, or another one (``-d test_session=1``): leaving each out
in turn is the protocol of GCNet, MoMKE and EBMC, whose averages over five sessions belong in a
table of their own. Sessions are read from the dialogues' names, and the lists in the file are only
compared with them. Validation is carved from train by dialogue, drawn by the seed from sorted
names; the lists are sets in these files, and older code drew from their order, which Python changes
from run to run. The two actors of a session are in no other, so those of test are unknown and those
of validation known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmbench.data.conversations.dataset import (
    Annotated,
    ConversationDataset,
    ConversationOptions,
    Task,
)
from mmbench.data.conversations.layouts import Dialogue
from mmbench.data.conversations.reading import EMOTION, Reading
from mmbench.data.conversations.store import Utterances
from mmbench.data.dataset import DatasetInfo
from mmbench.errors import DataError
from mmbench.options import option

SIX = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
"""In the order of all files."""
FOUR = SIX[:4]
MERGED = {"excited": "happy", "frustrated": ""}
"""Class of ``four`` for those of ``six`` that are none; frustrated is left out."""
NAME = re.compile(r"Ses0([1-5])[FM]_")
USUAL_SESSION = 5
EXPECTED = {
    SIX: {
        "dialogues of train": 120,
        "utterances of train": 5810,
        "dialogues of test": 31,
        "utterances of test": 1623,
        "emotion happy": 648,
        "emotion sad": 1084,
        "emotion neutral": 1708,
        "emotion angry": 1103,
        "emotion excited": 1041,
        "emotion frustrated": 1849,
    },
    FOUR: {
        "dialogues of train": 120,
        "utterances of train": 4290,
        "dialogues of test": 31,
        "utterances of test": 1241,
        "emotion happy": 1636,
        "emotion happy in test": 442,
        "emotion sad": 1084,
        "emotion neutral": 1708,
        "emotion angry": 1103,
    },
}
"""Counted in the label files of GCNet and COSMIC."""


class Iemocap(ConversationDataset):
    """IEMOCAP, by the utterance."""

    info = DatasetInfo(
        title="IEMOCAP: emotional conversations of two actors",
        summary="7,433 utterances of 151 conversations in six emotions, each classified on its own",
        licence="research only, on request from USC (SAIL); may not be passed on",
        citation="C. Busso et al., IEMOCAP: interactive emotional dyadic motion capture database, "
        "Language Resources and Evaluation 42, 2008",
        modalities={
            "text": "features of what is said, as wide as the file has them",
            "audio": "features of the sound",
            "visual": "features of the speaker's face",
        },
        protocols={
            "six": "six emotions; test is session 5, validation 10 % of the other dialogues",
            "four": "happy with excited, sad, neutral, angry; split as six",
        },
        files="a pickle of utterance features: iemocap.pkl (Ada2I, SPCL), IEMOCAP_features.pkl "
        "(MMGCN), or IEMOCAP_features_raw_{4,6}way.pkl with features/ beside it (GCNet, MoMKE)",
    )

    class Config(ConversationOptions):
        test_session: int = option(
            USUAL_SESSION, "session that is tested on; the other four train", ge=1, le=5
        )

    config: Config

    def naming(self, path: Path, highest: int) -> Sequence[str]:
        if "4way" in path.name:
            return FOUR
        return SIX if "6way" in path.name or highest >= len(FOUR) else FOUR

    def annotate(self, reading: Reading, source: Path) -> Annotated:
        """Name the speakers: the two of a session are known by their letter."""
        dialogues = []
        for dialogue in reading.dialogues:
            if (named := NAME.match(dialogue.name)) is None:
                what = f"dialogue '{dialogue.name}' has no session in its name, as Ses01F_impro01"
                reading.findings.fault(reading.path, what, "use a file with IEMOCAP's own names")
                continue
            speakers = (
                f"{named[1]}{who}" if who in ("F", "M") else "" for who in dialogue.speakers
            )
            # A list of validation, which few files have, is part of train: it is drawn anew.
            part = "train" if dialogue.part == "val" else dialogue.part
            dialogues.append(replace(dialogue, speakers=tuple(speakers), part=part))
        if not dialogues:
            raise DataError(f"{reading.path} holds no dialogue of IEMOCAP, such as Ses01F_impro01")
        if strange := [d.name for d in dialogues if (d.part == "test") != _is_usual_test(d)]:
            what = f"its lists are not those of session 5 as test for {len(strange)} dialogues, "
            mend = "nothing to do: sessions are read from names, not from the lists"
            reading.findings.remark(reading.path, f"{what}such as {strange[0]}", mend)
        return Annotated(tuple(dialogues), {EMOTION: list(reading.classes)})

    def expected(self, utterances: Utterances) -> Mapping[str, int]:
        return EXPECTED[tuple(utterances.origin.classes[EMOTION])]

    def task(self, protocol: str, utterances: Utterances) -> Task:
        held = tuple(utterances.origin.classes[EMOTION])
        labels = utterances.labels[EMOTION]
        notes = []
        if protocol == "six" and held != SIX:
            raise DataError(
                "dataset 'iemocap' is prepared from a file of four classes; use --protocol four, "
                "or prepare a file of six"
            )
        if protocol == "four" and held == SIX:
            labels = np.array([MERGED.get(str(label), str(label)) for label in labels])
            left = int((labels != "").sum())
            notes.append(f"{left:,} utterances of a file of six classes, not GCNet's 5,531")
        session = str(self.config.test_session)
        sessions = np.array([name[len("Ses0")] for name in utterances.dialogues])
        parts = np.where(sessions == session, "test", "train")
        classes = SIX if protocol == "six" else FOUR
        return Task(labels, classes, parts, tuple(notes))


def _is_usual_test(dialogue: Dialogue) -> bool:
    return dialogue.name.startswith(f"Ses0{USUAL_SESSION}")

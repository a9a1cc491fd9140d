"""Prepared conversations: one ``.npz`` file with a row for each utterance."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmbench.data.conversations.layouts import MODALITIES, PARTS, Dialogue, Layout
from mmbench.data.files import FileError, require_sound, write_atomically
from mmbench.errors import DataError
from mmbench.hashing import digest

SCHEMA = 1
"""Of the file; another is refused."""
FILE = "utterances.npz"


@dataclass(frozen=True)
class Origin:
    """Where prepared rows come from."""

    dataset: str
    layout: Layout
    sources: dict[str, str]
    """SHA-256 by name of the file, or of all files in a feature folder."""
    folders: dict[str, str]
    """Feature folder of each modality, where features lay in folders."""
    classes: dict[str, list[str]]
    """All class names of each kind of label, in order."""
    notes: list[str]
    """What every table has to say of these rows."""


@dataclass(frozen=True)
class Utterances:
    """All rows, in the order of dialogues and of utterances in them."""

    features: dict[str, np.ndarray]
    """``(N, width)`` float32 by modality."""
    labels: dict[str, np.ndarray]
    """``(N,)`` class names by kind of label."""
    ids: np.ndarray
    dialogues: np.ndarray
    parts: np.ndarray
    """``(N,)`` ``train``, ``val`` or ``test``."""
    speakers: np.ndarray
    """``(N,)`` words, empty where nothing tells who it is."""
    origin: Origin

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self) -> str:
        """Return a hash of all rows, whatever files they were read from."""
        words = [self.ids, self.dialogues, self.parts, *self.labels.values()]
        return digest(
            *(m.encode() + features.tobytes() for m, features in self.features.items()),
            *("\n".join(values.tolist()) for values in words),
        )


def joined(dialogues: Sequence[Dialogue], origin: Origin) -> Utterances:
    """Return the utterances of dialogues as rows; utterance ``n`` of a dialogue, from 0, has the id
    ``<dialogue>_<n>``."""
    sizes = [len(dialogue.speakers) for dialogue in dialogues]
    return Utterances(
        {m: np.concatenate([dialogue.features[m] for dialogue in dialogues]) for m in MODALITIES},
        {
            kind: np.array([label for dialogue in dialogues for label in dialogue.labels[kind]])
            for kind in dialogues[0].labels
        },
        np.array(
            [f"{d.name}_{n}" for d, size in zip(dialogues, sizes, strict=True) for n in range(size)]
        ),
        np.repeat([dialogue.name for dialogue in dialogues], sizes),
        np.repeat([dialogue.part for dialogue in dialogues], sizes),
        np.array([speaker for dialogue in dialogues for speaker in dialogue.speakers]),
        origin,
    )


def counts(utterances: Utterances) -> dict[str, int]:
    """Return dialogues and utterances by part, and utterances by class, over all and in test."""
    found: dict[str, int] = {}
    for part in PARTS:
        inside = utterances.parts == part
        if part != "val" or inside.any():
            found[f"dialogues of {part}"] = len({*utterances.dialogues[inside].tolist()})
            found[f"utterances of {part}"] = int(inside.sum())
    tested = utterances.parts == "test"
    for kind, labels in utterances.labels.items():
        everywhere, there = Counter(labels.tolist()), Counter(labels[tested].tolist())
        for name in utterances.origin.classes[kind]:
            found[f"{kind} {name}"] = everywhere[name]
            found[f"{kind} {name} in test"] = there[name]
    return found


def unexpected(found: Mapping[str, int], expected: Mapping[str, int]) -> str:
    """Return what counts differ from those expected, in words; empty when none do."""
    other = [
        f"{what} {found.get(what, 0):,} instead of {count:,}"
        for what, count in expected.items()
        if found.get(what, 0) != count
    ]
    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    return ", ".join(other[:3]) + more


# -- the file --------------------------------------------------------------------------------------


def write(utterances: Utterances, cache: Path) -> Path:
    """Write the rows into a folder, whole or not at all, the same bytes for the same rows. Raises
    :class:`DataError` when the place cannot be written or is full."""
    path = cache / FILE
    # numpy.savez has a keyword besides names of arrays; Any keeps it out of question.
    arrays: dict[str, Any] = {f"features.{m}": values for m, values in utterances.features.items()}
    arrays |= {f"labels.{kind}": values for kind, values in utterances.labels.items()}
    arrays |= {
        "ids": utterances.ids,
        "dialogues": utterances.dialogues,
        "parts": utterances.parts,
        "speakers": utterances.speakers,
        "about": json.dumps({"schema": SCHEMA, **asdict(utterances.origin)}, sort_keys=True),
    }
    with write_atomically(path) as temporary:
        np.savez(temporary, **arrays)
    return path


def open_utterances(dataset: str, cache: Path) -> Utterances:
    """Return the rows of a folder. Raises :class:`DataError` when there are none, or they are
    damaged, or of another dataset or version."""
    path = cache / FILE
    mend = f"run `mmbench data prepare {dataset} --source DIR`"
    if not path.is_file():
        raise DataError(f"dataset '{dataset}' is not prepared in {cache}; {mend}")
    try:
        require_sound(path)
        with np.load(path, allow_pickle=False) as archive:
            about = json.loads(str(archive["about"]))
            if about.pop("schema") != SCHEMA:
                raise DataError(f"{path} is of another version of mmbench; {mend} again")
            if about["dataset"] != dataset:
                raise DataError(f"{path} holds '{about['dataset']}', not '{dataset}'; {mend}")
            origin = Origin(**about)
            return Utterances(
                {m: archive[f"features.{m}"] for m in MODALITIES},
                {kind: archive[f"labels.{kind}"] for kind in origin.classes},
                archive["ids"],
                archive["dialogues"],
                archive["parts"],
                archive["speakers"],
                origin,
            )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged; {mend} again") from error
    except FileError as error:
        raise DataError(f"{error.problem.path}: {error.problem.what}; {mend} again") from error

"""What datasets of conversations share: options, preparing, verifying, loading.

A dataset of this kind says what classes its files number (``naming``), what it knows beyond them
(``annotate``), how many rows there ought to be (``expected``), and what a protocol asks of which
rows (``task``). The rest is here: reading, keeping, carving validation by dialogue, standardising.

Each utterance is a row of its own: no network here sees the utterances around it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mmbench.data.conversations.layouts import MODALITIES, PARTS, Dialogue
from mmbench.data.conversations.reading import Reading, find_pickle, read
from mmbench.data.conversations.store import (
    Origin,
    Utterances,
    counts,
    joined,
    open_utterances,
    unexpected,
    write,
)
from mmbench.data.dataset import (
    Dataset,
    Modality,
    Problem,
    Progress,
    Rows,
    Split,
    Splits,
    Verification,
)
from mmbench.data.files import FileError, cache_root
from mmbench.data.splits import carve
from mmbench.data.standardise import standardise
from mmbench.data.unread import refuse_unread
from mmbench.errors import DataError, RequestError
from mmbench.options import Options, option, refuse_unused


class ConversationOptions(Options):
    """Options of a dataset of conversations; a subclass adds its own."""

    text_features: str | None = option(
        None, "folder in `features` with the text's, for `prepare`; GCNet's unless given"
    )
    audio_features: str | None = option(
        None, "folder in `features` with the sound's, for `prepare`; GCNet's unless given"
    )
    visual_features: str | None = option(
        None, "folder in `features` with the faces', for `prepare`; GCNet's unless given"
    )
    standardise: bool = option(
        True, "give each feature mean 0 and deviation 1, as measured on the training rows"
    )
    val_fraction: float = option(
        0.1,
        "share of the training rows that validation gets, by dialogue, where the files give none",
        gt=0,
        lt=1,
    )
    cache: str | None = option(
        None, "folder of the prepared data; one of the dataset's name in the cache unless given"
    )

    def folders(self) -> dict[str, str | None]:
        """Return the feature folder of each modality that is named."""
        return {m: getattr(self, f"{m}_features") for m in MODALITIES}


@dataclass(frozen=True)
class Annotated:
    """Dialogues with all that is known of them, and what that was learned from."""

    dialogues: tuple[Dialogue, ...]
    classes: dict[str, list[str]]
    """Class names of each kind of label, in order."""
    sources: dict[str, str] = field(default_factory=dict)
    """SHA-256 of further files, by name."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """What a protocol asks: a class for each row, and which part the row belongs to."""

    labels: np.ndarray
    """``(N,)`` class names, empty for a row that is left out."""
    classes: tuple[str, ...]
    parts: np.ndarray
    """``(N,)`` ``train``, ``val`` or ``test``. Without ``val``, it is carved from train."""
    notes: tuple[str, ...] = ()


class ConversationDataset(Dataset):
    """A dataset of conversations. A subclass fills ``info`` and writes the abstract methods."""

    class Config(ConversationOptions):
        """Options of the dataset; a subclass with options replaces it."""

    config: ConversationOptions

    @abstractmethod
    def naming(self, path: Path, highest: int) -> Sequence[str]:
        """Return the class names by number of a file whose highest label is given."""

    @abstractmethod
    def annotate(self, reading: Reading, source: Path) -> Annotated:
        """Return the dialogues with what the dataset knows beyond the pickle; what is wrong is
        added to the reading's findings. Raises :class:`DataError` for files beyond use."""

    @abstractmethod
    def expected(self, utterances: Utterances) -> Mapping[str, int]:
        """Return what :func:`mmbench.data.conversations.store.counts` finds in published files."""

    @abstractmethod
    def task(self, protocol: str, utterances: Utterances) -> Task:
        """Return what a protocol asks. Raises :class:`DataError` when the rows do not have it."""

    def recipe(self, protocol: str) -> dict[str, object]:
        """Return SPCL's settings (Adam, rate, decay, clipping, epochs); its batches are whole
        dialogues, 32 of them, these are 64 utterances."""
        return {
            "epochs": 50,
            "batch_size": 64,
            "optimizer": "adam",
            "lr": 1e-4,
            "weight_decay": 1e-8,
            "schedule": "constant",
            "clip_norm": 2.0,
        }

    # -- files -------------------------------------------------------------------------------------

    def prepare(self, source: Path, cache: Path, progress: Progress) -> str:
        """Write all utterances into ``cache``. Raises :class:`DataError` when any of them is
        missing or damaged."""
        refuse_unread(self.config, [f"{m}_features" for m in MODALITIES])
        path = find_pickle(source)
        reading, utterances = self._gathered(path, source, progress)
        if faults := reading.findings.faults:
            what = "1 thing is" if len(faults) == 1 else f"{len(faults)} things are"
            raise DataError(
                f"{what} wrong with the files of '{self.name()}', the first: "
                f"{FileError(faults[0])}; see `mmbench data verify {self.name()} --source {source}`"
            )
        if utterances is None:
            raise DataError(f"{path} lists no dialogues; get the file again")
        written = write(utterances, cache)
        widths = ", ".join(f"{m} {x.shape[1]}" for m, x in utterances.features.items())
        dialogues = len({*utterances.dialogues.tolist()})
        said = [f"{len(utterances)} utterances of {dialogues} dialogues ({widths}) in {written}"]
        if other := unexpected(counts(utterances), self.expected(utterances)):
            said.append(f"not as published: {other}")
        return "; ".join((*said, *utterances.origin.notes))

    def verify(self, source: Path) -> Verification:
        """Read everything; count dialogues, utterances and classes against what is published, and
        name all that is wrong."""
        refuse_unread(self.config, [f"{m}_features" for m in MODALITIES])
        path = find_pickle(source)
        try:
            reading, utterances = self._gathered(path, source)
        except FileError as error:
            return Verification({}, (error.problem,), usable=False)
        findings = reading.findings
        if utterances is None:
            findings.fault(path, "holds no dialogue that can be used")
            return Verification({}, (*findings.faults, *findings.remarks), usable=False)
        found = counts(utterances)
        expected = self.expected(utterances)
        named = {
            f"{what} (expected {expected[what]:,})" if what in expected else what: count
            for what, count in found.items()
        }
        named |= {
            f"{m} features of an utterance": x.shape[1] for m, x in utterances.features.items()
        }
        problems: list[Problem] = [*findings.faults, *findings.remarks]
        if other := unexpected(found, expected):
            mend = "get the published file, unless this is one of your own"
            problems.append(Problem(str(path), f"holds other counts: {other}", mend))
        return Verification(named, tuple(problems), not findings.faults)

    def _gathered(
        self, path: Path, source: Path, progress: Progress | None = None
    ) -> tuple[Reading, Utterances | None]:
        """Return what was read, and its rows unless there are none."""
        reading = read(path, self.naming, self.config.folders(), progress)
        if not reading.dialogues:
            return reading, None
        known = self.annotate(reading, source)
        origin = Origin(
            self.name(),
            reading.layout,
            dict(sorted((reading.sources | known.sources).items())),
            reading.folders,
            known.classes,
            list(known.notes),
        )
        return reading, joined(known.dialogues, origin)

    # -- loading -----------------------------------------------------------------------------------

    def load(self, protocol: str, seed: int) -> Splits:
        """Return the splits; ``seed`` draws the dialogues of validation where they are carved."""
        self.check_protocol(protocol)
        utterances = self._opened()
        task = self.task(protocol, utterances)
        kept = task.labels != ""
        places = {part: np.flatnonzero(kept & (task.parts == part)) for part in PARTS}
        for part in ("train", "test"):
            if not len(places[part]):
                raise DataError(
                    f"dataset '{self.name()}', protocol '{protocol}': no utterance is in {part}; "
                    "prepare all of the data"
                )
        numbers = {name: number for number, name in enumerate(task.classes)}
        y = np.array([numbers.get(str(label), -1) for label in task.labels], dtype=np.int64)
        if not len(places["val"]):
            train = places["train"]
            groups = utterances.dialogues[train]
            key = (seed, self.name(), protocol, "val")
            held = carve(y[train], groups, self.config.val_fraction, *key)
            places |= {"val": train[held], "train": np.delete(train, held)}
        else:
            self._require_usual_fraction(protocol)
        inputs: dict[str, dict[str, Rows]] = {part: {} for part in PARTS}
        for m, values in utterances.features.items():
            parts = [values[places[part]] for part in PARTS]
            scaled = standardise(*parts) if self.config.standardise else parts
            for part, rows in zip(PARTS, scaled, strict=True):
                inputs[part][m] = Rows(rows)
        train_split, val_split, test_split = (
            Split(
                inputs[part],
                torch.from_numpy(y[places[part]]),
                utterances.ids[places[part]],
                utterances.dialogues[places[part]],
            )
            for part in PARTS
        )
        return Splits(
            train_split,
            val_split,
            test_split,
            {m: Modality("vector", (x.shape[1],)) for m, x in utterances.features.items()},
            task.classes,
            notes=(*utterances.origin.notes, *task.notes, *self._notes(utterances, places)),
            prepared=utterances.fingerprint(),
        )

    def _require_usual_fraction(self, protocol: str) -> None:
        """Raise :class:`RequestError` where a share is asked for of a set that is given."""
        try:
            refuse_unused(
                self.config,
                ["val_fraction"],
                f"by {self.name()} {protocol} as prepared, which has its own validation",
            )
        except ValueError as error:
            raise RequestError(f"option {error}") from error

    def _opened(self) -> Utterances:
        """Return the prepared rows. Raises :class:`DataError` when they are not as asked for."""
        chosen = self.config.cache
        folder = Path(chosen).expanduser() if chosen else cache_root() / self.name()
        utterances = open_utterances(self.name(), folder)
        for m, asked in self.config.folders().items():
            held = utterances.origin.folders.get(m, "features of the pickle itself")
            if asked is not None and asked != held:
                raise DataError(
                    f"dataset '{self.name()}' is prepared with {held} for {m} in {folder}, not "
                    f"{asked}; leave {m}_features out, or prepare it so into another folder "
                    "(--cache) and name that with -d cache=FOLDER"
                )
        return utterances

    def _notes(self, utterances: Utterances, places: Mapping[str, np.ndarray]) -> list[str]:
        """Return what a table has to say of counts and of speakers."""
        notes = []
        if other := unexpected(counts(utterances), self.expected(utterances)):
            notes.append(f"not the published files: {other}")
        speakers = {
            part: {*utterances.speakers[rows].tolist()} - {""} for part, rows in places.items()
        }
        if shared := len(speakers["test"] & (speakers["train"] | speakers["val"])):
            notes.append(
                f"{shared} of the {len(speakers['test'])} speakers of test are in train or "
                "validation"
            )
        return notes

"""Your own features, without code: a YAML file says which arrays and columns to take.

    file: features.npz              # of every place that names no other
    modalities:
      video: video_features         # an array of the file
      audio: {file: audio.csv, prefix: mfcc_}
    label: emotion
    group: actor                    # optional, as are id and split

``-d file=my.yaml``, or simply ``--dataset my.yaml``. All files hold the same rows in the same
order. docs/adding-a-dataset.md has every field and complete examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from mmbench.data.dataset import (
    Dataset,
    DatasetInfo,
    Kind,
    Modality,
    Problem,
    Rows,
    Split,
    Splits,
    Verification,
)
from mmbench.data.description import (
    Description,
    FurtherLabel,
    ModalityPlace,
    read_description,
)
from mmbench.data.files import FileError
from mmbench.data.splits import carve, stratified_parts
from mmbench.data.standardise import standardise
from mmbench.data.tables import Place, column_names, is_number, read_numbers, read_words
from mmbench.errors import DataError, RequestError
from mmbench.hashing import digest
from mmbench.options import Options, option
from mmbench.seeds import Key, numpy_stream

AXES: dict[Kind, int] = {
    "vector": 2,
    "sequence": 3,
    "image": 4,
    "frames": 5,
    "spectrogram": 4,
    "tokens": 2,
}
"""Axes of a whole modality, rows included, of each kind."""
BY_AXES: dict[int, Kind] = {2: "vector", 3: "sequence", 4: "image", 5: "frames"}
PARTS = ("train", "val", "test")
WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Words of a split column, and the part each stands for."""
FEWEST_GROUPS = 3
"""One for each of train, validation and test."""


@dataclass(frozen=True)
class Content:
    """All rows of the files, before they are split."""

    values: dict[str, np.ndarray]
    modalities: dict[str, Modality]
    classes: tuple[str, ...]
    y: np.ndarray
    ids: np.ndarray
    groups: np.ndarray | None
    split: np.ndarray | None
    labels: dict[str, dict[str, np.ndarray]]

    def fingerprint(self) -> str:
        """Return a hash of what is trained on and tested."""
        values = (m.encode() + x.tobytes() for m, x in sorted(self.values.items()))
        return digest("\n".join(map(str, self.ids)), self.y.tobytes(), *values)


class Arrays(Dataset):
    """Features from files, as a YAML file describes them."""

    info = DatasetInfo(
        title="Your own features",
        summary="arrays and table columns that a YAML file names, without code",
        licence="yours to state",
        citation="yours to state",
        modalities={"named in the file": "vectors, sequences, images, frames or tokens"},
        protocols={
            "given": "the split column; without validation rows, some are taken from train",
            "group": "70/10/20 % of the rows in whole groups, drawn by the seed",
            "random": "70/10/20 % of the rows, stratified by class, drawn by the seed",
        },
        files="a YAML file, and the .npz, .npy, .csv or .parquet files that it names",
    )

    class Config(Options):
        file: str | None = option(None, "the YAML file that describes the data")

    config: Config

    @cached_property
    def description(self) -> Description:
        """What the YAML file says. Raises :class:`RequestError` where it makes no sense."""
        if self.config.file is None:
            raise RequestError("dataset 'arrays' needs a YAML file: add -d file=my.yaml")
        return read_description(Path(self.config.file).expanduser())

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols that the file allows; the first is the default."""
        has = {"given": self.description.split, "group": self.description.group}
        return (*(name for name, place in has.items() if place is not None), "random")

    def check_protocol(self, protocol: str) -> None:
        """Raise unless the protocol is known and the file has the column that it needs."""
        needs = {"given": "split", "group": "group"}
        if protocol in needs and protocol not in self.protocols:
            raise RequestError(
                f"{self.description.path}: protocol '{protocol}' needs `{needs[protocol]}:`, which "
                f"it does not name; add it, or use --protocol {self.protocols[0]}"
            )
        super().check_protocol(protocol)

    def recipe(self, protocol: str) -> dict[str, object]:
        return dict(self.description.recipe)

    def load(self, protocol: str, seed: int) -> Splits:
        self.check_protocol(protocol)
        content = self._content()
        draw = {"given": self._given, "group": self._by_group, "random": self._at_random}
        parts = draw[protocol](content, seed)
        inputs: list[dict[str, Rows]] = [{} for _ in parts]
        for m, values in content.values.items():
            divided = [values[part] for part in parts]
            if self._is_standardised(m, content.modalities[m].kind):
                divided = _standardised(content.modalities[m].kind, divided)
            for rows, array in zip(inputs, divided, strict=True):
                rows[m] = Rows(array)
        train, val, test = (
            Split(
                rows,
                torch.from_numpy(content.y[part]),
                content.ids[part],
                None if content.groups is None else content.groups[part],
                {m: {n: v[part] for n, v in named.items()} for m, named in content.labels.items()},
            )
            for rows, part in zip(inputs, parts, strict=True)
        )
        notes = (*self._credit(), *_shared_groups(content.groups, parts))
        return Splits(
            train,
            val,
            test,
            content.modalities,
            content.classes,
            notes,
            prepared=content.fingerprint(),
        )

    def verify(self, source: Path) -> Verification:
        """Read everything that the YAML file ``source`` names, and draw its default split."""
        counts: dict[str, int] = {}
        problems: list[Problem] = []
        dataset = Arrays(self.Config(file=str(source)))
        for what, place in dataset._places().items():
            try:
                read = read_numbers if isinstance(place, ModalityPlace) else read_words
                counts[f"{what} rows"] = len(read(dataset.description.file(place), place))
            except FileError as error:
                problems.append(error.problem)
        if not problems:
            try:
                splits = dataset.load(dataset.protocols[0], seed=0)
                splits.check(dataset.description.name)
                counts |= {f"{name} split": len(part) for name, part in splits.named().items()}
            except FileError as error:
                problems.append(error.problem)
            except DataError as error:
                problems.append(Problem(str(source), str(error)))
        return Verification(counts, tuple(problems), not problems)

    def _places(self) -> dict[str, Place]:
        described = self.description
        places: dict[str, Place] = {f"modality {m}": p for m, p in described.modalities.items()}
        places |= {f"label of {m}": place for m, place in described.labels.items()}
        columns = {"label": described.label, "id": described.id}
        columns |= {"group": described.group, "split": described.split}
        return places | {what: place for what, place in columns.items() if place is not None}

    def _is_standardised(self, m: str, kind: Kind) -> bool:
        chosen = self.description.modalities[m].standardise
        return kind == "vector" if chosen is None else chosen

    def _credit(self) -> tuple[str, ...]:
        """Return the licence and what to cite, where the file states them."""
        described = self.description
        stated = [f"licence {described.licence}"] if described.licence else []
        stated += [f"cite {described.citation}"] if described.citation else []
        return (f"data '{described.name}': {', '.join(stated)}",) if stated else ()

    # -- reading ---------------------------------------------------------------------------------

    def _content(self) -> Content:
        """Read all files and check what holds between them."""
        described = self.description
        labels = read_words(described.file(described.label), described.label)
        values: dict[str, np.ndarray] = {}
        modalities: dict[str, Modality] = {}
        for m, place in described.modalities.items():
            self._refuse_label(m, place)
            read = read_numbers(described.file(place), place)
            self._require_rows(f"modality '{m}'", place, len(read), len(labels))
            values[m], modalities[m] = _as_kind(described.file(place), m, place, read)
        classes, y = self._classes(labels)
        columns: dict[str, np.ndarray | None] = {}
        for what, column in (
            ("id", described.id),
            ("group", described.group),
            ("split", described.split),
        ):
            columns[what] = None
            if column is not None:
                words = read_words(described.file(column), column)
                self._require_rows(what, column, len(words), len(labels))
                columns[what] = words
        ids = columns["id"]
        if ids is None:
            ids = np.array([f"row-{i:06d}" for i in range(len(labels))])
        self._require_unique(ids)
        group, split = columns["group"], columns["split"]
        further = {
            m: {place.name: self._further(m, place, len(labels))}
            for m, place in described.labels.items()
        }
        return Content(values, modalities, classes, y, ids, group, split, further)

    def _further(self, m: str, place: FurtherLabel, count: int) -> np.ndarray:
        """Return a label of one modality: words ``(N,)``, or numbers ``(N, 1)`` where all that are
        given are numbers, and not all of them whole."""
        path = self.description.file(place)
        words = read_words(path, place)
        self._require_rows(f"label of {m}", place, len(words), count)
        given = [word for word in words.tolist() if word]
        if not all(map(is_number, given)) or all(float(word).is_integer() for word in given):
            return words
        numbers = np.array([[float(word or "nan")] for word in words.tolist()])
        if (row := np.flatnonzero(np.isinf(numbers[:, 0]))).size:
            what = f"label '{place.name}', row {row[0] + 1} is infinite"
            raise FileError(Problem(str(path), what, "correct it, or leave it empty"))
        return numbers

    def _fault(self, what: str, mend: str) -> FileError:
        return FileError(Problem(str(self.description.path), what, mend))

    def _require_rows(self, what: str, place: Place, count: int, expected: int) -> None:
        if count != expected:
            raise self._fault(
                f"{what} has {count} rows ({place.file}), "
                f"label has {expected} ({self.description.label.file})",
                "every file must hold the same rows in the same order",
            )

    def _refuse_label(self, m: str, place: ModalityPlace) -> None:
        """Raise when the features of a modality contain the label."""
        described = self.description
        if described.file(place) != described.file(described.label):
            return
        is_array = place.selectors() == described.label.selectors()
        if is_array or described.label.column in column_names(described.file(place), place):
            label = described.label.column or described.label.key or described.label.file
            raise self._fault(f"modality '{m}' contains the label, '{label}'", "leave it out there")

    def _classes(self, labels: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the classes' names and the class numbers of the labels."""
        chosen = self.description.classes
        if chosen is None:
            found = sorted(set(labels.tolist()))
            if all(map(is_number, found)):
                found.sort(key=float)
            chosen = {label: label for label in found}
        if len(chosen) < 2:
            raise self._fault(f"there is one class only, '{next(iter(chosen), '')}'", "give two")
        number = {label: i for i, label in enumerate(chosen)}
        for row, label in enumerate(labels.tolist(), start=1):
            if label not in number:
                raise self._fault(f"label '{label}' of row {row} is not in `classes:`", "add it")
        return tuple(chosen.values()), np.array([number[x] for x in labels.tolist()], np.int64)

    def _require_unique(self, ids: np.ndarray) -> None:
        seen: dict[str, int] = {}
        for row, name in enumerate(ids.tolist(), start=1):
            if (first := seen.setdefault(name, row)) != row:
                what = f"id '{name}' is given to row {first} and to row {row}"
                raise self._fault(what, "make the ids unique, or leave `id:` out")

    # -- protocols -------------------------------------------------------------------------------

    def _given(self, content: Content, seed: int) -> list[np.ndarray]:
        assert content.split is not None, "check_protocol has seen that there is a split column"
        words = np.char.lower(content.split)
        for row, word in enumerate(words.tolist(), start=1):
            if word not in WORDS:
                what = f"split '{content.split[row - 1]}' of row {row} is not a split"
                raise self._fault(what, f"use {', '.join(PARTS)}")
        part_of = np.array([WORDS[word] for word in words.tolist()])
        train, val, test = (np.flatnonzero(part_of == part) for part in PARTS)
        for part, rows in (("train", train), ("test", test)):
            if len(rows) == 0:
                mend = f"mark some rows as {part}, or use --protocol random"
                raise self._fault(f"the split column has no {part} rows", mend)
        if len(val) == 0:
            fractions = self.description.fractions
            share = fractions.val / (fractions.train + fractions.val)
            val, train = self._divided(content, train, share, 1, seed, "given", "val")
        return [train, val, test]

    def _by_group(self, content: Content, seed: int) -> list[np.ndarray]:
        fractions = self.description.fractions
        everything = np.arange(len(content.y))
        test, rest = self._divided(content, everything, fractions.test, 2, seed, "group", "test")
        share = fractions.val / (fractions.train + fractions.val)
        val, train = self._divided(content, rest, share, 1, seed, "group", "val")
        return [train, val, test]

    def _at_random(self, content: Content, seed: int) -> list[np.ndarray]:
        fractions = self.description.fractions
        count = len(content.y)
        val, test = (max(1, round(share * count)) for share in (fractions.val, fractions.test))
        if count <= val + test:
            raise self._fault(f"{count} rows cannot be split in three", "give more rows")
        return stratified_parts(
            content.y, [count - val - test, val, test], seed, "arrays", "random"
        )

    def _divided(
        self, content: Content, rows: np.ndarray, share: float, leave: int, *key: Key
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return about ``share`` of the rows, and the others: whole groups where there are any, of
        which ``leave`` at least stay with the others; else stratified by class."""
        if content.groups is None:
            if len(rows) < 2:
                raise self._fault("one training row leaves none for validation", "give more rows")
            taken = rows[carve(content.y[rows], None, share, *key[:1], "arrays", *key[1:])]
        else:
            names, sizes = np.unique(content.groups[rows], return_counts=True)
            if len(names) <= leave:
                whole = "" if leave > 1 else " of training rows"
                what = (
                    f"protocol '{key[1]}' needs {leave + 1} groups{whole}, there are {len(names)}"
                )
                raise self._fault(what, "use --protocol random, or leave `group:` out")
            rng = numpy_stream(*key[:1], "arrays", *key[1:])
            chosen = _nearest_groups(sizes, share * len(rows), leave, rng)
            taken = rows[np.isin(content.groups[rows], names[chosen])]
        return taken, np.setdiff1d(rows, taken)


def _nearest_groups(
    sizes: np.ndarray, target: float, leave: int, rng: np.random.Generator
) -> list[int]:
    """Return groups in random order, each taken if it brings the rows nearer to ``target``; at
    least one, and all but ``leave`` at most."""
    chosen: list[int] = []
    total = 0
    for i in rng.permutation(len(sizes)).tolist():
        nearer = abs(total + sizes[i] - target) < abs(total - target)
        if nearer and len(sizes) - len(chosen) > leave:
            chosen.append(i)
            total += int(sizes[i])
    return chosen or [int(np.argmin(sizes))]


def _shared_groups(groups: np.ndarray | None, parts: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Return a note on groups whose rows are in more than one split, if there are any."""
    if groups is None:
        return ()
    members = [set(groups[part].tolist()) for part in parts]
    everything = set.union(*members)
    shared = sum(sum(group in part for part in members) > 1 for group in everything)
    if not shared:
        return ()
    return (f"{shared} of {len(everything)} groups are in more than one split",)


def _as_kind(
    path: Path, m: str, place: ModalityPlace, values: np.ndarray
) -> tuple[np.ndarray, Modality]:
    """Return the values as the modality's encoder takes them, and the modality."""
    kind = place.kind or BY_AXES.get(values.ndim)
    if kind is None or values.ndim != AXES[kind]:
        wanted = f"kind {kind} has {AXES[kind]}" if kind else "2 to 5 can be used"
        what = f"modality '{m}' has {values.ndim} axes, rows included; {wanted}"
        raise FileError(Problem(str(path), what, "reshape it, or correct `kind:`"))
    if 0 in values.shape:
        raise FileError(Problem(str(path), f"modality '{m}' has shape {values.shape}", "fill it"))
    if kind == "tokens":
        return _as_tokens(path, m, place, values)
    if place.vocabulary is not None:
        what = f"vocabulary of modality '{m}' is used for tokens only"
        raise FileError(Problem(str(path), what, "leave it out, or set kind: tokens"))
    if kind == "spectrogram" and values.shape[1] != 1:
        what = f"modality '{m}' has shape {values.shape}, a spectrogram (rows, 1, F, T)"
        raise FileError(Problem(str(path), what, "add the axis, or use kind: image"))
    numbers: np.ndarray = values.astype(np.float32)
    return numbers, Modality(kind, numbers.shape[1:])


def _as_tokens(
    path: Path, m: str, place: ModalityPlace, values: np.ndarray
) -> tuple[np.ndarray, Modality]:
    if place.standardise:
        what = f"modality '{m}' holds tokens, which cannot be standardised"
        raise FileError(Problem(str(path), what, "leave standardise out"))
    if values.dtype.kind not in "iu" or values.min() < 0:
        what = f"modality '{m}' must hold token ids: whole numbers from 0, which is padding"
        raise FileError(Problem(str(path), what, "correct it, or leave kind out"))
    largest = int(values.max())
    if place.vocabulary is not None and largest >= place.vocabulary:
        what = f"modality '{m}' holds token {largest}, its vocabulary is {place.vocabulary}"
        raise FileError(Problem(str(path), what, f"set vocabulary: {largest + 1}"))
    vocabulary = place.vocabulary or largest + 1
    return values.astype(np.int64), Modality("tokens", values.shape[1:], vocabulary=vocabulary)


def _standardised(kind: Kind, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the parts standardised by the first: a vector by feature; a sequence by feature over
    all steps that are not padding (all-zero), which stays zero; pictures by channel."""
    if kind == "vector":
        return standardise(*parts)
    axis = -1 if kind == "sequence" else -3
    moved = [np.moveaxis(part, axis, -1) for part in parts]
    present = [(part != 0).any(axis=-1) | (kind != "sequence") for part in moved]
    if not present[0].any():
        return list(parts)
    results = []
    scaled = standardise(*(part[mask] for part, mask in zip(moved, present, strict=True)))
    for part, mask, values in zip(moved, present, scaled, strict=True):
        whole = np.zeros(part.shape, dtype=np.float32)
        whole[mask] = values
        results.append(np.ascontiguousarray(np.moveaxis(whole, -1, axis)))
    return results

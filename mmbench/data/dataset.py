"""What every dataset offers: typed modalities, named protocols, and three splits.

A dataset file defines one subclass of :class:`Dataset`. ``load`` returns :class:`Splits`;
everything that must hold for any data (finite features, a training row for every class, ids in
one split only) is checked once, in :meth:`Splits.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mmbench.data.problem import Problem as Problem
from mmbench.errors import DataError, RequestError, unknown_name
from mmbench.hashing import digest
from mmbench.info import DatasetInfo as DatasetInfo
from mmbench.options import Options

Kind = Literal["vector", "image", "frames", "waveform", "spectrogram", "sequence", "tokens"]
Progress = Callable[[int, int, str], None]
"""``progress(done, total, what)``: called while a dataset is prepared."""


@dataclass(frozen=True)
class Modality:
    """One modality as its encoder receives it.

    ``shape`` is that of one sample: ``vector (D,)``, ``image (channels, H, W)``, ``frames
    (T, channels, H, W)``, ``waveform (samples,)``, ``spectrogram (1, F, T)``, ``sequence (T, D)``,
    ``tokens (T,)`` of int64 where 0 is padding.
    """

    kind: Kind
    shape: tuple[int, ...]
    stored: Kind | None = None
    """The kind before a front end turned it into ``kind``, where they differ."""
    encoder: str | None = None
    """Encoder to use unless the user names one; None chooses by kind and shape."""
    vocabulary: int | None = None
    """Number of token ids, for ``tokens``."""
    weights: str | None = None
    """Folder of the pretrained model whose tokens these are; None where nothing is pretrained."""


class Source(Protocol):
    """One modality of one split: row numbers go in, a batch on the device comes out."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Source: ...

    def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        """Return the rows as ``(B, *shape)``; ``augment`` is None at evaluation."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the content, front end and fixed noise included."""
        ...


Transform = Callable[[Tensor, Tensor, torch.Generator | None], Tensor]
"""``transform(x, rows, augment)``: applied on the device to a batch ``x`` of the given rows."""


@runtime_checkable
class Layered(Source, Protocol):
    """A source that can be reached beneath its transforms, where a waveform still is one."""

    def stored(self) -> Source:
        """Return the rows as they are stored, without transforms."""
        ...

    def with_first(self, transform: Transform) -> Source:
        """Return the rows with a transform that comes before all others."""
        ...


@runtime_checkable
class StoredAsIntegers(Protocol):
    """A source that makes finite numbers of stored integers whatever they are, and so need not be
    read from end to end to be checked."""

    is_always_finite: Literal[True]


def layered(source: Source) -> Layered:
    """Return a source that is layered. Raises :class:`RequestError` for another."""
    if not isinstance(source, Layered):
        raise RequestError(
            f"{type(source).__name__} gives no way to what it stores: add `stored` and "
            "`with_first`, as mmbench.data.dataset.Rows has them"
        )
    return source


class Rows:
    """A source held in memory: an array ``(N, *stored shape)`` and transforms run per batch.

    Arrays of floats are kept as float32, integer arrays as they are. ``transforms`` that are
    modules are moved along with the array; ``transform_name`` says in the fingerprint what they do.
    """

    def __init__(
        self,
        array: np.ndarray | Tensor,
        transforms: Sequence[Transform] = (),
        transform_name: str = "",
    ) -> None:
        tensor = torch.as_tensor(array)
        self.tensor = tensor.float() if tensor.is_floating_point() else tensor
        self.transforms = tuple(transforms)
        self.transform_name = transform_name

    def __len__(self) -> int:
        return len(self.tensor)

    def to(self, device: torch.device) -> Rows:
        transforms = [
            t.to(device) if isinstance(t, torch.nn.Module) else t for t in self.transforms
        ]
        return Rows(self.tensor.to(device), transforms, self.transform_name)

    def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        x = self.tensor.index_select(0, rows)
        for transform in self.transforms:
            x = transform(x, rows, augment)
        return x

    def stored(self) -> Rows:
        return Rows(self.tensor)

    def with_first(self, transform: Transform) -> Rows:
        return Rows(self.tensor, (transform, *self.transforms), self.transform_name)

    def fingerprint(self) -> str:
        content = np.ascontiguousarray(self.tensor.cpu().numpy())
        return digest(str(content.shape), content.tobytes(), self.transform_name)


@dataclass
class Batch:
    """Rows of a split on the device: ``inputs[m] (B, *shape)``, ``y (B,)``, ``rows (B,)``."""

    inputs: dict[str, Tensor]
    y: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass
class Split:
    """One of train, validation and test."""

    inputs: Mapping[str, Source]
    y: Tensor
    """Class numbers ``(N,)`` int64."""
    ids: np.ndarray
    """A string per row, unique within the dataset."""
    groups: np.ndarray | None = None
    """A string per row that names its actor, speaker or video, where one exists."""
    labels: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    """By modality and name: what else is known of a row, of one modality alone. Texts ``(N,)``,
    empty where unknown, or numbers ``(N, D)``, NaN where unknown. Nothing is trained on it."""

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> Split:
        inputs = {m: source.to(device) for m, source in self.inputs.items()}
        return replace(self, inputs=inputs, y=self.y.to(device))

    def batch(
        self, rows: Tensor, modalities: Sequence[str], augment: torch.Generator | None = None
    ) -> Batch:
        """Return the rows, int64 ``(B,)`` on the split's device, of the given modalities."""
        inputs = {m: self.inputs[m].batch(rows, augment) for m in modalities}
        return Batch(inputs, self.y.index_select(0, rows), rows)


class Joined:
    """Two sources one after the other."""

    def __init__(self, first: Source, second: Source) -> None:
        self.first = first
        self.second = second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def to(self, device: torch.device) -> Joined:
        return Joined(self.first.to(device), self.second.to(device))

    def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        early = rows < len(self.first)
        places = torch.cat([early.nonzero().squeeze(1), (~early).nonzero().squeeze(1)])
        pieces = [
            source.batch(chosen, augment)
            for source, chosen in (
                (self.first, rows[early]),
                (self.second, rows[~early] - len(self.first)),
            )
            if len(chosen)
        ]
        return torch.cat(pieces)[places.argsort()]

    def stored(self) -> Joined:
        return Joined(layered(self.first).stored(), layered(self.second).stored())

    def with_first(self, transform: Transform) -> Joined:
        def of_second(x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
            return transform(x, rows + len(self.first), augment)

        first = layered(self.first).with_first(transform)
        return Joined(first, layered(self.second).with_first(of_second))

    def fingerprint(self) -> str:
        return digest(self.first.fingerprint(), self.second.fingerprint())


def joined(first: Split, second: Split) -> Split:
    """Return the rows of both splits, those of the first before those of the second."""
    inputs = {m: Joined(source, second.inputs[m]) for m, source in first.inputs.items()}
    groups = None
    if first.groups is not None and second.groups is not None:
        groups = np.concatenate([first.groups, second.groups])
    ids = np.concatenate([first.ids, second.ids])
    labels = {
        m: {
            name: np.concatenate([values, second.labels[m][name]]) for name, values in named.items()
        }
        for m, named in first.labels.items()
    }
    return Split(inputs, torch.cat([first.y, second.y]), ids, groups, labels)


@dataclass
class Splits:
    """What ``Dataset.load`` returns. All sources are on the CPU until the trainer moves them."""

    train: Split
    val: Split
    test: Split
    modalities: dict[str, Modality]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What a table that uses this split has to say, such as actors shared by train and test."""
    truth: dict[str, float] = field(default_factory=dict)
    """Known quantities of generated data: information in nats, Bayes accuracies."""
    prepared: str = ""
    """Hash of what the user's files hold, whatever is drawn of it by the seed; empty where the user
    supplies none."""

    def named(self) -> dict[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}

    def to(self, device: torch.device) -> Splits:
        return replace(
            self,
            train=self.train.to(device),
            val=self.val.to(device),
            test=self.test.to(device),
        )

    def with_val_in_train(self) -> Splits:
        """Return the same splits with the validation rows trained on as well."""
        return replace(self, train=joined(self.train, self.val))

    def fingerprints(self) -> dict[str, str]:
        """Return hashes of the split (ids and labels), of the data (features as loaded), and of
        what was prepared, where anything was."""
        split = [
            f"{name}:{digest(*map(str, part.ids))}:{digest(part.y.cpu().numpy().tobytes())}"
            for name, part in self.named().items()
        ]
        data = [
            f"{name}:{m}:{source.fingerprint()}"
            for name, part in self.named().items()
            for m, source in sorted(part.inputs.items())
        ]
        prepared = {"prepared": self.prepared} if self.prepared else {}
        return {"split": digest(*split), "data": digest(*data)} | prepared

    def check(self, dataset: str) -> None:
        """Raise :class:`DataError` unless every method can rely on these splits."""
        seen: dict[str, str] = {}
        for name, part in self.named().items():
            if len(part) == 0:
                raise DataError(f"dataset '{dataset}': the {name} split has no rows")
            self._check_shapes(dataset, name, part)
            for row_id in part.ids:
                if (other := seen.setdefault(str(row_id), name)) != name:
                    raise DataError(
                        f"dataset '{dataset}': id '{row_id}' is in {other} and in {name}"
                    )
            if len(set(part.ids.tolist())) != len(part):
                raise DataError(f"dataset '{dataset}': the {name} split names an id twice")
            self._check_finite(dataset, name, part)
        present = set(self.train.y.tolist())
        absent = [c for i, c in enumerate(self.classes) if i not in present]
        if absent:
            raise DataError(
                f"dataset '{dataset}': no training rows for class {', '.join(absent)}; "
                "leave the class out or split otherwise"
            )

    def _check_shapes(self, dataset: str, name: str, part: Split) -> None:
        where = f"dataset '{dataset}': the {name} split"
        if part.inputs.keys() != self.modalities.keys():
            raise DataError(f"{where} holds {[*part.inputs]}, not {[*self.modalities]}")
        if _names(part) != _names(self.train) or not part.labels.keys() <= self.modalities.keys():
            raise DataError(
                f"{where} has other further labels than train, or some of no modality: give each "
                "split the same, by modality"
            )
        lowest, highest = int(part.y.min()), int(part.y.max())
        if lowest < 0 or highest >= len(self.classes):
            raise DataError(
                f"{where} has labels from {lowest} to {highest}; {len(self.classes)} classes are "
                "numbered from 0"
            )
        lengths = {"ids": len(part.ids)} | {m: len(source) for m, source in part.inputs.items()}
        lengths |= {
            f"label '{label}' of {m}": len(values)
            for m, named in part.labels.items()
            for label, values in named.items()
        }
        for what, length in lengths.items():
            if length != len(part):
                raise DataError(f"{where} has {len(part)} labels and {length} rows of {what}")
        for m, source in part.inputs.items():
            shape = tuple(source.batch(torch.arange(1), None).shape[1:])
            if shape != self.modalities[m].shape:
                raise DataError(
                    f"{where} has samples of '{m}' of shape {shape}, not {self.modalities[m].shape}"
                )

    def _check_finite(self, dataset: str, name: str, part: Split) -> None:
        for m, source in part.inputs.items():
            if isinstance(source, StoredAsIntegers):
                continue
            for start in range(0, len(part), 4096):
                rows = torch.arange(start, min(start + 4096, len(part)))
                values = source.batch(rows, None)
                if not values.is_floating_point():
                    break
                bad = ~values.isfinite().flatten(1).all(1)
                if bad.any():
                    first = part.ids[int(rows[bad][0])]
                    raise DataError(
                        f"dataset '{dataset}': modality '{m}' holds NaN or infinite values in "
                        f"{name} (first at id '{first}'); remove or impute these rows"
                    )


def _names(part: Split) -> set[tuple[str, str]]:
    return {(m, label) for m, named in part.labels.items() for label in named}


@dataclass(frozen=True)
class Verification:
    """What `mmbench data verify` found: counts by name, problems, and whether it will do."""

    counts: dict[str, int]
    problems: tuple[Problem, ...]
    usable: bool


class Dataset:
    """A dataset: subclass, fill ``info`` and ``Config``, and write ``load``."""

    info: ClassVar[DatasetInfo]

    class Config(Options):
        """Options of the dataset (`-d key=value`); a subclass with options replaces it."""

    def __init__(self, config: Options) -> None:
        self.config = config

    @property
    def protocols(self) -> tuple[str, ...]:
        return tuple(self.info.protocols)

    def recipe(self, protocol: str) -> dict[str, object]:
        """Return the training settings that are customary here, as overrides of `Recipe`."""
        return {}

    def load(self, protocol: str, seed: int) -> Splits:
        """Return the splits of a protocol; ``seed`` draws whatever the protocol leaves open."""
        raise RequestError(f"dataset '{self.name()}' cannot be loaded: its class needs a `load`")

    def prepare(self, source: Path, cache: Path, progress: Progress) -> str:
        """Turn the user's files into a cache, once; return a sentence on what was written."""
        raise RequestError(f"dataset '{self.name()}' needs no preparation")

    def verify(self, source: Path) -> Verification:
        """Say exactly what is missing from or damaged in the user's files."""
        raise RequestError(f"dataset '{self.name()}' has no files to verify")

    @classmethod
    def name(cls) -> str:
        """Return the registered name: that of the file which defines the class."""
        return cls.__module__.rpartition(".")[2]

    def check_protocol(self, protocol: str) -> None:
        if protocol not in self.protocols:
            raise unknown_name(f"protocol of {self.name()}", protocol, self.protocols)


class DecodedDataset(Dataset):
    """A dataset whose files are decoded once into a cache, in so many processes (None: one a
    core), and go on from where a killed call ended."""

    def prepare(
        self, source: Path, cache: Path, progress: Progress, workers: int | None = None
    ) -> str:
        return super().prepare(source, cache, progress)

    def verify(
        self, source: Path, progress: Progress | None = None, workers: int | None = None
    ) -> Verification:
        return super().verify(source)

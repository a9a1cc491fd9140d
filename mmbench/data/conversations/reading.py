"""From a user's files to dialogues whose fields agree, and a list of all that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmbench.data.conversations.folders import USUAL, FeatureFolder, open_folders
from mmbench.data.conversations.layouts import (
    MODALITIES,
    Contents,
    Dialogue,
    Disagreement,
    Findings,
    Key,
    Layout,
    class_names,
    class_numbers,
    dialogues_by_part,
    matrix,
    read_contents,
    stacked,
    words,
)
from mmbench.data.files import FileError, file_sha256
from mmbench.errors import DataError

if TYPE_CHECKING:
    from mmbench.data.dataset import Progress

ENDINGS = (".pkl", ".pickle")
EMOTION = "emotion"
"""The kind of label that the pickles hold."""
Naming = Callable[[Path, int], Sequence[str]]
"""``naming(path, highest)``: class names by number, given the file and its highest label."""


@dataclass(frozen=True)
class Reading:
    """What was read of a user's files."""

    path: Path
    layout: Layout
    dialogues: tuple[Dialogue, ...]
    """In the order of their names; those at fault are left out."""
    findings: Findings
    sources: dict[str, str]
    """SHA-256 of the files that were read, by name; of a feature folder, one of all its files."""
    folders: dict[str, str]
    """Feature folder of each modality, where the features lie in folders."""
    classes: tuple[str, ...]
    """Names of the classes by their numbers in the file."""


def find_pickle(source: Path) -> Path:
    """Return the pickle that is meant: the file itself, or the only one in a folder or in the
    folders in it. Raises :class:`DataError` for none or several."""
    try:
        return _only_pickle(source)
    except PermissionError as error:
        raise DataError(f"{error.filename} cannot be read; check its permissions") from error


def _only_pickle(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise DataError(f"{source} does not exist; name the pickle or the folder that it lies in")
    inner = [path for path in sorted(source.iterdir()) if path.is_dir()]
    for places in ([source], inner):
        found = [
            path
            for place in places
            for path in sorted(place.iterdir())
            if path.suffix in ENDINGS and path.is_file()
        ]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(path.relative_to(source)) for path in found[:4])
            raise DataError(
                f"{source} holds {len(found)} pickles ({names}); name the one to use: --source FILE"
            )
    raise DataError(
        f"{source} holds no {' or '.join(ENDINGS)} file; name the pickle: --source FILE"
    )


def read(
    path: Path, naming: Naming, folders: Mapping[str, str | None], progress: Progress | None = None
) -> Reading:
    """Read a pickle and, where its features lie in folders, these.

    ``folders`` names the feature folder of each modality, None for the usual one. Raises
    :class:`FileError` when nothing can be read, :class:`DataError` for folders that are not used;
    what is wrong with single dialogues is in the findings.
    """
    contents = read_contents(path)
    findings = Findings()
    places: dict[str, FeatureFolder] = {}
    if contents.layout == "folders":
        names = {m: folders.get(m) or USUAL[m] for m in MODALITIES}
        places = open_folders(path.parent / "features", names)
    elif given := [m for m in MODALITIES if folders.get(m)]:
        raise DataError(
            f"{given[0]}_features is not used for {path}, which holds its features itself; "
            "leave it out"
        )
    listed = dialogues_by_part(contents, findings)
    numbers = _numbers(contents, listed, findings)
    highest = max((max(values) for values in numbers.values()), default=0)
    classes = naming(path, highest)
    if places:
        _require_own_names(contents, [key for key, _ in listed], findings)
    dialogues: list[Dialogue] = []
    widths: dict[str, int] = {}
    for done, (key, part) in enumerate(listed, start=1):
        if key in numbers:
            try:
                found = _dialogue(contents, key, part, numbers[key], classes, places, findings)
                _require_widths(found, widths)
                dialogues.append(found)
            except Disagreement as error:
                findings.fault(path, f"dialogue '{key}' {error}")
        if progress:
            progress(done, len(listed), "dialogues")
    if empty := [m for m in MODALITIES if dialogues and m not in widths]:
        findings.fault(path, f"has no {' or '.join(empty)} features for any utterance")
    for folder in places.values():
        if folder.without_faces:
            count, first = len(folder.without_faces), folder.without_faces[0]
            what = f"has no face of the speaker for {count} utterances, such as {first}"
            findings.remark(folder.path, what, "zeros stand for them, as in GCNet")
    sources = {path.name: file_sha256(path)}
    sources |= {f"features/{folder.path.name}": folder.sha256() for folder in places.values()}
    kept = {m: folder.path.name for m, folder in places.items()}
    return Reading(
        path,
        contents.layout,
        tuple(_widened(found, widths) for found in dialogues),
        findings,
        sources,
        kept,
        tuple(classes),
    )


def _numbers(
    contents: Contents, listed: Sequence[tuple[Key, str]], findings: Findings
) -> dict[Key, list[int]]:
    numbers: dict[Key, list[int]] = {}
    for key, _ in listed:
        try:
            numbers[key] = class_numbers(contents, key)
        except Disagreement as error:
            findings.fault(contents.path, f"dialogue '{key}' {error}")
    return numbers


def _require_own_names(contents: Contents, keys: Sequence[Key], findings: Findings) -> None:
    """Find fault with names that two utterances share, whose features would be one file."""
    seen: dict[str, Key] = {}
    for key in keys:
        held = contents.fields["utterances"].get(key, ())
        for name in map(str, held) if isinstance(held, list | tuple | np.ndarray) else ():
            if name in seen:
                what = f"utterance '{name}' is in dialogue '{seen[name]}' and in '{key}'"
                findings.fault(
                    contents.path, what, "give each a name, and a feature file, of its own"
                )
                return
            seen[name] = key


def _dialogue(
    contents: Contents,
    key: Key,
    part: str,
    numbers: Sequence[int],
    classes: Sequence[str],
    places: Mapping[str, FeatureFolder],
    findings: Findings,
) -> Dialogue:
    count = len(numbers)
    labels = class_names(numbers, classes)
    speakers = words(contents, "speakers", key, count) or ("",) * count
    if places:
        utterances = words(contents, "utterances", key, count)
        if not utterances:
            raise Disagreement("has no names of utterances")
        features = _from_folders(places, utterances, speakers, findings)
    else:
        features = {m: matrix(contents, m, key, count) for m in MODALITIES}
    sentences = words(contents, "sentences", key, count)
    return Dialogue(str(key), part, {EMOTION: labels}, features, speakers, sentences)


def _from_folders(
    places: Mapping[str, FeatureFolder],
    utterances: Sequence[str],
    speakers: Sequence[str],
    findings: Findings,
) -> dict[str, np.ndarray]:
    """Return the features of a dialogue's utterances. Files that are missing or damaged become
    faults, each of its own; the rows that they leave are as wide as nothing."""
    features: dict[str, np.ndarray] = {}
    for m, place in places.items():
        rows: list[np.ndarray | None] = []
        for utterance, speaker in zip(utterances, speakers, strict=True):
            try:
                rows.append(place.read(utterance, speaker))
            except FileError as error:
                findings.faults.append(error.problem)
                rows.append(None)
        there = [row for row in rows if row is not None]
        width = len(there[0]) if there else 0
        features[m] = stacked(
            [np.zeros(width, np.float32) if row is None else row for row in rows], m
        )
    return features


def _require_widths(found: Dialogue, widths: dict[str, int]) -> None:
    """Raise :class:`Disagreement` when features are not as wide as those of dialogues before."""
    for m, values in found.features.items():
        width = values.shape[1]
        if width and widths.setdefault(m, width) != width:
            raise Disagreement(f"has {width} {m} features, those before have {widths[m]}")


def _widened(found: Dialogue, widths: Mapping[str, int]) -> Dialogue:
    """Return a dialogue whose features are as wide as all others, also where it shows no face."""
    features = {
        m: values if values.shape[1] else np.zeros((len(values), widths.get(m, 0)), np.float32)
        for m, values in found.features.items()
    }
    return replace(found, features=features)

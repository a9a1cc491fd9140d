"""A YAML file that describes a person's own features: which values stand where."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import StrictFloat, StrictInt, StrictStr, model_validator

from mmbench.config import Recipe
from mmbench.data.dataset import Problem
from mmbench.data.files import FileError, require_sound
from mmbench.data.tables import ARRAY_SUFFIXES, SUFFIXES, Place
from mmbench.errors import RequestError
from mmbench.options import Options, option, validated

Label = StrictStr | StrictInt | StrictFloat
P = TypeVar("P", bound=Place)


class ModalityPlace(Place):
    """Where a modality's values stand, and what they are."""

    kind: Literal["vector", "sequence", "image", "frames", "spectrogram", "tokens"] | None = option(
        None, "what a row is; by default vector, sequence, image or frames for 2, 3, 4, 5 axes"
    )
    standardise: bool | None = option(
        None, "zero mean and unit variance by the training rows; by default for vectors"
    )
    vocabulary: int | None = option(None, "number of token ids; by default the largest + 1", ge=1)


class FurtherLabel(Place):
    """Where a label of one modality stands, which is known of some rows or of all."""

    may_be_empty: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The column, the array, or the file where it holds nothing else."""
        return self.column or self.key or Path(self.file or "").stem


class Fractions(Options):
    """Shares of the rows in the parts that are drawn."""

    train: float = option(0.7, "share of the training rows", gt=0, lt=1)
    val: float = option(0.1, "share of the validation rows", gt=0, lt=1)
    test: float = option(0.2, "share of the test rows", gt=0, lt=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Fractions:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError("fractions must sum to 1")
        return self


class _Fields(Options):
    """The top level of the file."""

    name: str | None = option(None, "name of the data; by default that of the YAML file")
    licence: str = option("", "licence of the data, shown with results")
    citation: str = option("", "what to cite, shown with results")
    file: str | None = option(None, "file of every place that names none")
    modalities: dict[str, Any] = option({}, "place of each modality, by its name")
    label: Any = option(None, "place of the class labels: words or numbers")
    labels: dict[str, Any] = option({}, "place of a further label of a modality, by its name")
    id: Any = option(None, "place of the names of the rows")
    group: Any = option(None, "place of what must not be divided: actor, speaker, video")
    split: Any = option(None, "place of train, val or test for each row")
    classes: list[Label] | dict[Label, str] | None = option(
        None, "labels in order, or the name to show for each; by default all, sorted"
    )
    fractions: Fractions = Fractions()
    standardise: bool | None = option(None, "standardise of modalities that do not say")
    recipe: dict[str, Any] = option({}, "training settings that differ from the defaults")


@dataclass(frozen=True)
class Description:
    """A described dataset; the paths of its places start at ``folder``."""

    path: Path
    name: str
    licence: str
    citation: str
    modalities: dict[str, ModalityPlace]
    label: Place
    labels: dict[str, FurtherLabel]
    id: Place | None
    group: Place | None
    split: Place | None
    classes: dict[str, str] | None
    """Label to shown name, in order; None for all labels that occur."""
    fractions: Fractions
    recipe: dict[str, Any]

    def file(self, place: Place) -> Path:
        """Return the file of a place."""
        assert place.file is not None, "every place of a description names a file"
        return self.path.parent / Path(place.file).expanduser()


def read_description(path: Path) -> Description:
    """Return what a YAML file describes; the data files themselves are not opened.

    Raises :class:`RequestError` with the line of a syntax error, or the field that is unknown,
    missing, or does not make sense.
    """
    fields = validated(_Fields, read_yaml(path), str(path))
    if not fields.modalities:
        raise FileError(Problem(str(path), "describes no modalities", "add `modalities:`"))
    if fields.label is None:
        raise FileError(Problem(str(path), "does not say where the labels are", "add `label:`"))
    validated(Recipe, fields.recipe, f"recipe in {path}")
    modalities = {
        m: _place(ModalityPlace, value, f"modality '{m}' in {path}", fields.file)
        for m, value in fields.modalities.items()
    }
    if fields.standardise is not None:
        default = {"standardise": fields.standardise}
        modalities = {
            m: place.model_copy(update=default)
            if place.standardise is None and place.kind != "tokens"
            else place
            for m, place in modalities.items()
        }

    for m in fields.labels:
        if m not in modalities:
            mend = f"name one of {', '.join(modalities)}"
            raise FileError(Problem(str(path), f"`labels:` names no modality with '{m}'", mend))

    def optional(value: Any, what: str) -> Place | None:
        if value is None:
            return None
        return _place(Place, value, f"'{what}' in {path}", fields.file)

    return Description(
        path=path,
        name=fields.name or path.stem,
        licence=fields.licence,
        citation=fields.citation,
        modalities=modalities,
        label=_place(Place, fields.label, f"'label' in {path}", fields.file),
        labels={
            m: _place(FurtherLabel, value, f"label of '{m}' in {path}", fields.file)
            for m, value in fields.labels.items()
        },
        id=optional(fields.id, "id"),
        group=optional(fields.group, "group"),
        split=optional(fields.split, "split"),
        classes=_classes(path, fields.classes),
        fractions=fields.fractions,
        recipe=fields.recipe,
    )


def _place(kind: type[P], value: Any, what: str, default_file: str | None) -> P:
    """Return a place. A bare word names a data file, or an array or column of the default file."""
    if isinstance(value, str):
        if Path(value).suffix in SUFFIXES:
            value = {"file": value}
        elif default_file is not None and Path(default_file).suffix in ARRAY_SUFFIXES:
            value = {"key": value}
        else:
            value = {"column": value}
    if not isinstance(value, dict):
        raise RequestError(f"{what}: write a name, or fields such as `file:` and `column:`")
    values = {str(name): given for name, given in value.items()}
    place = validated(kind, {"file": default_file, **values}, what)
    if place.file is None:
        raise RequestError(f"{what}: names no file; add `file:` there, or once at the top")
    return place


def _classes(path: Path, classes: list[Label] | dict[Label, str] | None) -> dict[str, str] | None:
    if classes is None:
        return None
    labels = list(map(str, classes))
    shown = list(classes.values()) if isinstance(classes, dict) else labels
    for names in (labels, shown):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise FileError(Problem(str(path), f"class '{twice}' is given twice", "name it once"))
    return dict(zip(labels, shown, strict=True))


class _StrictLoader(yaml.SafeLoader):
    """Refuses a field that is given twice, of which YAML would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                mark = key.start_mark
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' twice", problem_mark=mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the fields of a YAML file.

    Raises :class:`FileError` for a file that cannot be read, with the line where it is not valid
    YAML or gives a field twice, and for one that holds no fields.
    """
    require_sound(path)
    try:
        with path.open(encoding="utf-8") as file:
            fields = yaml.load(file, _StrictLoader)  # a safe loader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        what = f"{line}not valid YAML: {' '.join((error.problem or '').split())}"
        raise FileError(Problem(str(path), what, "correct the line")) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FileError(Problem(str(path), "is not a YAML text", "save it as UTF-8")) from error
    if not isinstance(fields, dict):
        mend = "start with fields such as `modalities:`"
        raise FileError(Problem(str(path), "holds no fields", mend))
    return {str(name): value for name, value in fields.items()}

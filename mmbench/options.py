"""Options of methods and datasets: typed, documented, with search ranges beside the defaults."""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from mmbench.errors import RequestError, unknown_name

T = TypeVar("T", bound=BaseModel)


class Options(BaseModel):
    """Base of every set of options: unknown names are errors, numbers are finite, values do not
    change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _words_are_words(cls, value: Any, info: ValidationInfo) -> Any:
        """Take ``off`` and ``on``, which YAML reads as truth values, for the words where an option
        allows these, and ``none``, as options are shown, for YAML's null."""
        kind = cls.model_fields[info.field_name].annotation if info.field_name else None
        words = {word for part in (kind, *get_args(kind)) for word in literals(part)}
        if isinstance(value, bool):
            written = ("off", "no") if value is False else ("on", "yes")
            return next((word for word in written if word in words), value)
        optional = type(None) in get_args(kind) and str not in get_args(kind)
        return None if value == "none" and optional and "none" not in words else value

    @field_validator("*", mode="before")
    @classmethod
    def _switches_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``true`` for a number, which pydantic takes as 1."""
        kind = cls.model_fields[info.field_name].annotation if info.field_name else None
        kinds = get_args(kind) or (kind,)
        if isinstance(value, bool) and bool not in kinds and {int, float} & {*kinds}:
            raise ValueError("should be a number")
        return value


def literals(kind: Any) -> tuple[Any, ...]:
    """Return the values of a Literal; none for another type."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def option(
    default: Any,
    description: str,
    *,
    search: Sequence[Any] = (),
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """Declare an option: its default, what it means, its range and the values a tuner may try."""
    extra: dict[str, Any] | None = {"search": list(search)} if search else None
    return Field(
        default, description=description, ge=ge, gt=gt, le=le, lt=lt, json_schema_extra=extra
    )


@dataclass(frozen=True)
class OptionRow:
    """One option as shown to a user; nested options have dotted names."""

    name: str
    type: str
    default: Any
    description: str
    search: tuple[Any, ...]
    range: str = ""
    """Bounds of a number, such as ``>= 0, < 1``."""


def option_rows(options: type[BaseModel], prefix: str = "") -> list[OptionRow]:
    """Return every option of a class, nested ones with dotted names."""
    rows: list[OptionRow] = []
    for name, declared in options.model_fields.items():
        kind = declared.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += option_rows(kind, f"{prefix}{name}.")
            continue
        extra = declared.json_schema_extra
        search = extra.get("search", []) if isinstance(extra, dict) else []
        assert isinstance(search, list)
        rows.append(
            OptionRow(
                f"{prefix}{name}",
                _type_name(kind),
                declared.get_default(call_default_factory=True),
                declared.description or "",
                tuple(search),
                _range(declared),
            )
        )
    return rows


def _range(declared: FieldInfo) -> str:
    bounds = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return ", ".join(
        f"{sign} {getattr(bound, name)}"
        for bound in declared.metadata
        for name, sign in bounds.items()
        if hasattr(bound, name)
    )


def _type_name(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return " | ".join(map(str, get_args(kind)))
    if origin in (Union, types.UnionType):
        return " | ".join(_type_name(arg) for arg in get_args(kind))
    if kind is type(None):
        return "none"
    return (
        kind.__name__
        if isinstance(kind, type) and origin is None
        else str(kind).replace("typing.", "")
    )


def refuse_unused(options: BaseModel, names: Iterable[str], reason: str) -> None:
    """Raise ValueError, for use in a pydantic validator, when one of the named options has been
    changed from its default although nothing reads it for this ``reason``."""
    for name in names:
        default = type(options).model_fields[name].get_default(call_default_factory=True)
        if getattr(options, name) != default:
            raise ValueError(f"{name} is not used {reason}; leave it out")


def parse_assignments(texts: Iterable[str], flag: str) -> dict[str, Any]:
    """Return ``key=value`` texts as a nested dict; values are YAML, dotted keys nest.

    Raises :class:`RequestError` for a text without ``=`` or a key given twice.
    """
    tree: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RequestError(f"{flag} {text}: write {flag} name=value")
        try:
            parsed = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise RequestError(f"{flag} {text}: the value is not valid YAML") from error
        set_dotted(tree, key.strip(), parsed, f"{flag} {text}")
    return tree


def set_dotted(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Put a value into a nested dict under a dotted key."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise RequestError(f"{where}: '{parent}' is given both as a value and as a group")
    if last in tree:
        raise RequestError(f"{where}: '{key}' is given twice")
    tree[last] = value


def validated(options: type[T], values: dict[str, Any], what: str) -> T:
    """Return the options with these values.

    Raises :class:`RequestError` that names the option, what is wrong, and what is allowed.
    """
    try:
        return options.model_validate(values)
    except ValidationError as error:
        raise RequestError(_explain(error, options, what)) from error


def _explain(error: ValidationError, options: type[BaseModel], what: str) -> str:
    rows = {row.name: row for row in option_rows(options)}
    messages: dict[str, str] = {}
    for fault in error.errors():
        name = ".".join(str(part) for part in fault["loc"] if part in _path(fault["loc"], rows))
        if fault["type"] == "extra_forbidden":
            name = ".".join(map(str, fault["loc"]))
            message = str(unknown_name(f"option of {what}", name, rows))
        elif name in rows:
            allowed = f" (allowed: {rows[name].type}; default {rows[name].default})"
            given = f", not {fault['input']!r}"
            message = f"option '{name}' of {what}: {_plain(fault['msg'])}{given}{allowed}"
        elif fault["type"] == "model_type":
            message = f"'{name}' of {what} is a group of options: write {name}.option=value"
        else:
            message = f"options of {what}: {_plain(fault['msg'])}"
        # One fault of an option often brings others along, of the same option.
        messages.setdefault(name, message)
    return "; ".join(messages.values())


def _path(location: tuple[int | str, ...], rows: dict[str, OptionRow]) -> list[int | str]:
    """Return the leading part of a pydantic location that names an option: what follows it says
    which member of a union failed."""
    for length in range(len(location), 0, -1):
        if ".".join(map(str, location[:length])) in rows:
            return list(location[:length])
    return list(location)


def _plain(message: str) -> str:
    text = (
        message.removeprefix("Value error, ")
        .removeprefix("Input ")
        .replace("valid tuple", "valid list")
    )
    return text[:1].lower() + text[1:]


def changed(options: BaseModel) -> dict[str, Any]:
    """Return the options that differ from their defaults, with dotted names."""
    defaults = {row.name: row.default for row in option_rows(type(options))}
    return {name: value for name, value in flat(options).items() if value != defaults[name]}


def flat(options: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Return all options with dotted names."""
    values: dict[str, Any] = {}
    for name in type(options).model_fields:
        value = getattr(options, name)
        if isinstance(value, BaseModel):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values

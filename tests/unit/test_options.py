"""Options: what is taken, what is refused, and how it is said."""

from typing import Any, Literal

import pytest
from pydantic import model_validator

from mmbench.errors import RequestError
from mmbench.options import (
    OptionRow,
    Options,
    changed,
    flat,
    option,
    option_rows,
    parse_assignments,
    validated,
)


class Inner(Options):
    rate: float = option(0.5, "a rate", ge=0, lt=1, search=[0.1, 0.2])


class Outer(Options):
    count: int = option(3, "a number", ge=1)
    share: float | None = option(None, "a share or none", gt=0)
    kind: Literal["a", "b"] = option("a", "a kind")
    names: list[str] = option(["x"], "names")
    is_on: bool = option(False, "a switch")
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _even_kinds(self) -> "Outer":
        if self.kind == "b" and self.count % 2:
            raise ValueError("kind=b needs an even count")
        return self


def test_rows_describe_every_option_with_dotted_names() -> None:
    rows = {row.name: row for row in option_rows(Outer)}
    assert list(rows) == ["count", "share", "kind", "names", "is_on", "inner.rate"]
    assert rows["inner.rate"] == OptionRow(
        "inner.rate", "float", 0.5, "a rate", (0.1, 0.2), ">= 0, < 1"
    )
    assert rows["share"].type == "float | none"
    assert rows["kind"].type == "a | b"


@pytest.mark.parametrize(
    ("texts", "tree"),
    [
        ([], {}),
        (["a=1", "b=1.5", "c=x y", "d=[1, 2]", "e=none", "f=null"],
         {"a": 1, "b": 1.5, "c": "x y", "d": [1, 2], "e": "none", "f": None}),
        (["a.b=1", "a.c.d=2", "e="], {"a": {"b": 1, "c": {"d": 2}}, "e": ""}),
        ([" a =x=y"], {"a": "x=y"}),
    ],
)  # fmt: skip
def test_assignments_are_yaml_and_dots_nest(texts: list[str], tree: dict[str, Any]) -> None:
    assert parse_assignments(texts, "-o") == tree


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a"], "-o a: write -o name=value"),
        (["=1"], "-o =1: write -o name=value"),
        (["a=1", "a=2"], "'a' is given twice"),
        (["a=1", "a.b=2"], "'a' is given both as a value and as a group"),
        (["a.b=2", "a=1"], "'a' is given twice"),
        (["a={"], "not valid YAML"),
    ],
)
def test_assignments_that_make_no_sense_are_refused(texts: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        parse_assignments(texts, "-o")


def test_numbers_may_be_written_in_any_way() -> None:
    values = parse_assignments(["share=1e-3", "count=4", "inner.rate=0"], "-o")
    options = validated(Outer, values, "it")
    assert (options.share, options.count, options.inner.rate) == (0.001, 4, 0.0)


class Switches(Options):
    gate: Literal["sample", "off"] = option("sample", "a word that YAML reads as false")
    mode: Literal["on", "auto"] | None = option(None, "and one that it reads as true")
    limit: int | None = option(3, "a number or none")
    name: str | None = option("x", "any word")
    flag: bool = option(True, "a truth value")


def test_words_that_yaml_reads_otherwise_are_taken_as_written() -> None:
    written = ["gate=off", "mode=on", "limit=none", "name=none", "flag=off"]
    options = validated(Switches, parse_assignments(written, "-o"), "it")
    assert options == Switches.model_construct(
        gate="off", mode="on", limit=None, name="none", flag=False
    )
    assert validated(Switches, {"limit": None, "mode": None}, "it").mode is None
    with pytest.raises(RequestError, match=r"'gate' of it: should be 'sample' or 'off', not True"):
        validated(Switches, {"gate": True}, "it")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cuont": 1}, ["unknown option of it 'cuont'", "count"]),
        ({"inner": {"rat": 1}}, ["unknown option of it 'inner.rat'", "inner.rate"]),
        ({"count": 0}, ["'count' of it", "greater than or equal to 1", "not 0", "default 3"]),
        ({"count": 1.5}, ["'count' of it", "integer", "not 1.5"]),
        ({"count": True}, ["'count' of it", "number", "not True"]),
        ({"share": True}, ["'share' of it", "number", "not True"]),
        ({"share": float("inf")}, ["'share' of it", "finite"]),
        ({"share": "nan"}, ["'share' of it", "finite"]),
        ({"kind": "c"}, ["'kind' of it", "'a' or 'b'", "not 'c'", "allowed: a | b"]),
        ({"names": "x"}, ["'names' of it", "list"]),
        ({"inner": {"rate": 1}}, ["'inner.rate' of it", "less than 1", "not 1"]),
        ({"inner": 3}, ["'inner' of it is a group", "inner.option=value"]),
        ({"kind": "b"}, ["options of it: kind=b needs an even count"]),
        ({"count": 0, "kind": "c"}, ["'count' of it", "'kind' of it"]),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(
    values: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RequestError) as refused:
        validated(Outer, values, "it")
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


def test_a_fault_of_an_option_is_told_once() -> None:
    with pytest.raises(RequestError) as refused:
        validated(Outer, {"share": "much"}, "it")
    assert str(refused.value).count("'share' of it") == 1


def test_changed_options_are_those_that_differ_from_their_defaults() -> None:
    options = Outer(count=4, is_on=False, inner=Inner(rate=0.25))
    assert changed(options) == {"count": 4, "inner.rate": 0.25}
    assert changed(Outer()) == {}
    assert flat(options)["inner.rate"] == 0.25
    assert flat(options).keys() == {row.name for row in option_rows(Outer)}

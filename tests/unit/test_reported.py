"""Accuracies in print beside rows: which row, which mark, which footnote; and what is refused."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmbench.errors import DataError, RequestError
from mmbench.report import tables
from mmbench.report.columns import View, columns
from mmbench.report.comparison import compare
from mmbench.report.reported import load_reported
from tests.unit.records import write_run


def value(method: str, number: float, **more: Any) -> dict[str, Any]:
    plain = {"dataset": "mfeat", "method": method, "metric": "accuracy", "value": number}
    return plain | {"printed_as": method.upper()} | more


def source(*values: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"source": "A paper", "read": "table 1", "protocol": "5 folds", "values": values} | more


def written(folder: Path, *sources: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for i, content in enumerate(sources):
        plain = content | {"values": list(content["values"])}
        (folder / f"{i}.yaml").write_text(yaml.safe_dump(plain))
    return folder


def cells(root: Path, view: View, metric: str = "accuracy") -> dict[str, str]:
    (group,) = compare(root, metric=metric).groups
    (column,) = [c for c in columns(group, view) if c.name == "reported"]
    return dict(zip((row.label for row in group.rows), column.cells, strict=True))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for m in ("fourier", "zernike"):
        write_run(folder, "unimodal", 0, changed={"modality": m})
    write_run(folder, "joint", 0)
    write_run(folder, "ogm", 0)
    write_run(folder, "ogm", 0, changed={"alpha": 0.3})
    write_run(folder, "ogm", 0, changed={"recipe.epochs": 9})
    return folder


def test_numbers_stand_beside_the_plainest_row_of_method_and_modality(
    root: Path, tmp_path: Path
) -> None:
    one = source(
        value("ogm", 91.5),
        value("unimodal", 70.25, modality="zernike"),
        value("ogm", 77, dataset="cremad"),
        value("ogm", 66, metric="macro_f1"),
    )
    two = source(value("ogm", 80), value("tfn", 50, unregistered=True))
    view = View(reported=load_reported(written(tmp_path / "print", one, two)))
    assert cells(root, view) == {
        "unimodal[fourier]": "",
        "unimodal[zernike]": "70.25 a≠",
        "joint": "",
        "ogm": "91.5 a≠, 80 b≠",
        "ogm[alpha=0.3]": "",
        "ogm[recipe.epochs=9]": "",
    }
    assert cells(root, view, "macro_f1")["ogm"] == "66 a≠"
    assert set(cells(root, view, "nll").values()) == {""}


def test_only_the_same_protocol_and_settings_are_comparable(root: Path, tmp_path: Path) -> None:
    def shown(**match: Any) -> str:
        same = source(value("joint", 90), matches={"mfeat": match})
        return cells(root, View(reported=load_reported(written(tmp_path / "p", same))))["joint"]

    assert shown(protocol="few") == "90 a"
    assert shown(protocol="full") == "90 a≠"
    assert shown(protocol="few", settings={"recipe.epochs": 9}) == "90 a≠"


def test_every_source_has_a_footnote_in_every_format(root: Path, tmp_path: Path) -> None:
    one = source(
        value("ogm", 91.5, caveat="of 704 rows."),
        value("tfn", 50, unregistered=True, printed_as="TFN"),
        caveats=["best epoch on the test set"],
    )
    view = View(reported=load_reported(written(tmp_path / "print", one)))
    (group,) = compare(root).groups
    expected = (
        "a: A paper. Read: table 1. Protocol: 5 folds. best epoch on the test set. "
        "OGM: of 704 rows. In print there, without a row here: TFN."
    )
    for format in ("text", "markdown", "latex", "html"):
        assert expected in " ".join(tables.rendered([group], format, view).split()), format
    rows = {r["label"]: r for r in csv.DictReader(io.StringIO(tables.csv_text([group], view)))}
    assert float(rows["ogm"]["reported"]) == pytest.approx(0.915)
    assert rows["ogm"]["reported_source"] == "A paper"
    assert rows["ogm"]["reported_comparable"] == "False"
    assert rows["joint"]["reported"] == ""


def test_a_table_without_any_number_in_print_says_so(root: Path, tmp_path: Path) -> None:
    view = View(reported=load_reported(written(tmp_path / "p", source(value("pmr", 1.0)))))
    assert "in print: no accuracy on mfeat" in tables.text(compare(root).groups[0], view)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (source(value("ogm_gee", 50)), "did you mean ogm_ge"),
        (source(value("ogm_gee", 50)), "unregistered: true"),
        (source(value("ogm", 101)), "values.0.value"),
        (source(value("ogm", 50, where="table 2")), "values.0.where"),
        (source(value("ogm", 50), value("ogm", 51)), "ogm None accuracy OGM is there 2 times"),
        (source(value("ogm", 50), matches={"mfaet": {"protocol": "few"}}), "mfaet"),
        (source(), "values"),
        ({"values": []}, "source: field required"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_name_and_field(
    tmp_path: Path, content: dict[str, Any], words: str
) -> None:
    folder = written(tmp_path / "print", content)
    with pytest.raises(DataError) as caught:
        load_reported(folder)
    assert words in str(caught.value)
    assert str(folder / "0.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_yaml_or_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such folder"):
        load_reported(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="no accuracies in print here"):
        load_reported(tmp_path)
    (tmp_path / "a.yaml").write_text("source: [")
    with pytest.raises(DataError, match=r"a\.yaml: cannot be read"):
        load_reported(tmp_path)

"""A person's own features through a YAML file, and the examples of docs/adding-a-dataset.md."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.linear_model import LogisticRegression

from mmbench.data.dataset import Rows, Split, Splits
from mmbench.data.media.dataset import MediaDataset
from mmbench.datasets.arrays import Arrays
from mmbench.errors import DataError, RequestError
from mmbench.options import validated
from mmbench.registry import load_dataset
from mmbench.testing.clips import write_video

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-dataset.md"


def arrays(path: Path) -> Arrays:
    return Arrays(validated(Arrays.Config, {"file": str(path)}, "dataset 'arrays'"))


def array(split: Split, m: str) -> np.ndarray:
    source = split.inputs[m]
    assert isinstance(source, Rows)
    return source.tensor.numpy()


COUNT = 60
RNG = np.random.default_rng(0)
VALUES: dict[str, np.ndarray] = {
    "x": RNG.normal(3, 2, size=(COUNT, 4)),
    "z": RNG.normal(size=(COUNT, 3)),
    "label": np.array(["b", "a", "c"] * (COUNT // 3)),
    "actor": np.arange(COUNT) // 6,
    "part": np.array(["train"] * 36 + ["val"] * 12 + ["test"] * 12),
    "name": np.array([f"clip {i}" for i in range(COUNT)]),
}
FIELDS: dict[str, Any] = {"file": "data.npz", "modalities": {"x": "x", "z": "z"}, "label": "label"}


def write(folder: Path, values: dict[str, Any] | None = None, **fields: Any) -> Path:
    """Write an archive and a YAML file that describes it; return the latter."""
    np.savez(folder / "data.npz", **(VALUES | (values or {})))
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(FIELDS | fields, sort_keys=False))
    return path


def load(folder: Path, protocol: str | None = None, seed: int = 0, **fields: Any) -> Splits:
    dataset = arrays(write(folder, **fields))
    splits = dataset.load(protocol or dataset.protocols[0], seed)
    splits.check("my")
    return splits


def rows(split: Split) -> set[int]:
    return {int(name.rpartition(" ")[2]) for name in split.ids}


# -- what comes out ------------------------------------------------------------------------------


def test_rows_keep_their_values_labels_ids_and_groups(tmp_path: Path) -> None:
    splits = load(tmp_path, id="name", group="actor", split="part", standardise=False)
    assert splits.classes == ("a", "b", "c")
    assert rows(splits.train) == set(range(36))
    assert rows(splits.val) == set(range(36, 48))
    for part in splits.named().values():
        for i, name in enumerate(part.ids):
            row = int(name.removeprefix("clip "))
            np.testing.assert_array_equal(array(part, "x")[i], np.float32(VALUES["x"][row]))
            assert splits.classes[int(part.y[i])] == VALUES["label"][row]
            assert part.groups is not None
            assert part.groups[i] == str(VALUES["actor"][row])


def test_vectors_are_standardised_by_the_training_rows(tmp_path: Path) -> None:
    splits = load(tmp_path, split="part")
    train = VALUES["x"][:36]
    expected = (VALUES["x"][48:] - train.mean(axis=0)) / train.std(axis=0)
    np.testing.assert_allclose(array(splits.test, "x"), expected, rtol=1e-4, atol=1e-5)


def test_a_modality_may_say_otherwise_than_the_file(tmp_path: Path) -> None:
    modalities = {"x": {"key": "x", "standardise": True}, "z": "z"}
    splits = load(tmp_path, split="part", standardise=False, modalities=modalities)
    np.testing.assert_allclose(array(splits.train, "x").mean(axis=0), 0, atol=1e-6)
    np.testing.assert_array_equal(array(splits.train, "z"), np.float32(VALUES["z"][:36]))


def test_axes_choose_the_kind(tmp_path: Path) -> None:
    values = {
        "s": np.ones((COUNT, 5, 2)),
        "i": np.ones((COUNT, 3, 8, 8), np.uint8),
        "f": np.ones((COUNT, 2, 3, 8, 8)),
        "g": np.ones((COUNT, 1, 8, 9)),
        "t": np.arange(COUNT * 4).reshape(COUNT, 4) % 7,
    }
    modalities: dict[str, Any] = {"x": "x", "s": "s", "i": "i", "f": "f"}
    modalities |= {"g": {"key": "g", "kind": "spectrogram"}, "t": {"key": "t", "kind": "tokens"}}
    splits = load(tmp_path, values=values, modalities=modalities)
    kinds = {m: (modality.kind, modality.shape) for m, modality in splits.modalities.items()}
    assert kinds == {
        "x": ("vector", (4,)),
        "s": ("sequence", (5, 2)),
        "i": ("image", (3, 8, 8)),
        "f": ("frames", (2, 3, 8, 8)),
        "g": ("spectrogram", (1, 8, 9)),
        "t": ("tokens", (4,)),
    }
    assert splits.modalities["t"].vocabulary == 7
    assert array(splits.train, "t").dtype == np.int64
    assert array(splits.train, "i").dtype == np.float32


def test_sequences_are_standardised_over_steps_and_padding_stays_zero(tmp_path: Path) -> None:
    s = RNG.normal(5, 3, size=(COUNT, 6, 2))
    s[:, 4:] = 0
    splits = load(
        tmp_path,
        values={"s": s},
        modalities={"s": {"key": "s", "standardise": True}},
        split="part",
    )
    scaled = array(splits.train, "s")
    assert not scaled[:, 4:].any()
    steps = s[:36, :4].reshape(-1, 2)
    expected = (s[:36, :4] - steps.mean(axis=0)) / steps.std(axis=0)
    np.testing.assert_allclose(scaled[:, :4], expected, rtol=1e-4, atol=1e-5)


def test_pictures_are_standardised_by_channel(tmp_path: Path) -> None:
    i = RNG.integers(0, 255, size=(COUNT, 3, 4, 5)).astype(np.uint8)
    i[:, 1] //= 2
    modalities = {"i": {"key": "i", "standardise": True}}
    splits = load(tmp_path, values={"i": i}, modalities=modalities, split="part")
    mean = i[:36].mean(axis=(0, 2, 3), keepdims=True)
    deviation = i[:36].std(axis=(0, 2, 3), keepdims=True)
    expected = (i[48:] - mean) / deviation
    np.testing.assert_allclose(array(splits.test, "i"), expected, rtol=1e-4, atol=1e-5)


def test_numeric_labels_are_sorted_by_value(tmp_path: Path) -> None:
    labels = np.array([10, 9, 2] * (COUNT // 3))
    assert load(tmp_path, values={"label": labels}).classes == ("2", "9", "10")


def test_classes_can_be_ordered_and_named(tmp_path: Path) -> None:
    assert load(tmp_path, classes=["c", "a", "b"]).classes == ("c", "a", "b")
    labels = np.array([1, 0, 2] * (COUNT // 3))
    splits = load(
        tmp_path, values={"label": labels}, classes={2: "sad", 0: "calm", 1: "glad"}, id="name"
    )
    assert splits.classes == ("sad", "calm", "glad")
    for i, row in enumerate(int(name.removeprefix("clip ")) for name in splits.test.ids):
        assert int(splits.test.y[i]) == {2: 0, 0: 1, 1: 2}[int(labels[row])]


def test_licence_and_citation_stand_in_the_notes(tmp_path: Path) -> None:
    splits = load(tmp_path, name="moods", licence="CC0", citation="Doe 2024")
    assert splits.notes == ("data 'moods': licence CC0, cite Doe 2024",)


def test_labels_of_a_modality_are_words_or_numbers_and_may_be_missing(tmp_path: Path) -> None:
    heard = np.array(["glad", "", "sad", "nan"] * (COUNT // 4))
    score = RNG.normal(size=COUNT)
    score[5] = np.nan
    values = {"heard": heard, "score": score}
    splits = load(tmp_path, labels={"x": "heard", "z": {"key": "score"}}, values=values, id="name")
    for part in splits.named().values():
        assert {m: [*named] for m, named in part.labels.items()} == {"x": ["heard"], "z": ["score"]}
        places = [int(name.removeprefix("clip ")) for name in part.ids]
        assert part.labels["x"]["heard"].tolist() == [
            {"glad": "glad", "sad": "sad"}.get(heard[i], "") for i in places
        ]
        np.testing.assert_allclose(part.labels["z"]["score"], score[places][:, None])
    whole = np.where(np.arange(COUNT) % 7, np.arange(COUNT) % 3, np.nan)
    splits = load(tmp_path, labels={"x": "whole"}, values={"whole": whole}, split="part")
    assert splits.train.labels["x"]["whole"][:9].tolist() == [
        "",
        "1",
        "2",
        "0",
        "1",
        "2",
        "0",
        "",
        "2",
    ]
    assert load(tmp_path, split="part").train.labels == {}


def test_labels_of_a_modality_may_stand_in_a_table(tmp_path: Path) -> None:
    lines = ["clip,heard", *(f"c{i},{'' if i % 5 else 0.5}" for i in range(COUNT))]
    (tmp_path / "votes.csv").write_text("\n".join(lines) + "\n")
    place = {"file": "votes.csv", "column": "heard"}
    splits = load(tmp_path, labels={"x": place}, split="part")
    values = splits.train.labels["x"]["heard"][:, 0]
    assert np.flatnonzero(values == 0.5).tolist() == [*range(0, 36, 5)]
    assert np.isnan(values).sum() == 36 - 8


BAD_LABELS: dict[str, tuple[dict[str, Any], np.ndarray, str]] = {
    "no modality": ({"y": "heard"}, VALUES["label"], "`labels:` names no modality with 'y'; name"),
    "too few": ({"x": "heard"}, VALUES["label"][1:], "label of x has 59 rows .*, label has 60"),
    "infinite": ({"x": "heard"}, np.full(COUNT, np.inf), "'heard', row 1 is infinite"),
    "two columns": ({"x": "heard"}, VALUES["x"], r"array 'heard' has shape \(60, 4\)"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_of_a_modality_are_named(case: str, tmp_path: Path) -> None:
    labels, values, message = BAD_LABELS[case]
    with pytest.raises(RequestError, match=message):
        load(tmp_path, labels=labels, values={"heard": values})


def test_the_recipe_is_that_of_the_file(tmp_path: Path) -> None:
    dataset = arrays(write(tmp_path, recipe={"epochs": 7}))
    assert dataset.recipe("random") == {"epochs": 7}


# -- protocols -----------------------------------------------------------------------------------


def test_protocols_depend_on_the_columns(tmp_path: Path) -> None:
    assert arrays(write(tmp_path)).protocols == ("random",)
    assert arrays(write(tmp_path, group="actor")).protocols == ("group", "random")
    both = arrays(write(tmp_path, group="actor", split="part"))
    assert both.protocols == ("given", "group", "random")


@pytest.mark.parametrize("protocol", ["given", "group", "random"])
def test_every_row_is_in_one_split_and_the_seed_decides(tmp_path: Path, protocol: str) -> None:
    fields = {"group": "actor", "split": "part", "id": "name"}
    first, again, other = (load(tmp_path, protocol, seed, **fields) for seed in (1, 1, 2))
    everything = sorted(row for part in first.named().values() for row in rows(part))
    assert everything == list(range(COUNT))
    assert first.fingerprints() == again.fingerprints()
    same = first.fingerprints()["split"] == other.fingerprints()["split"]
    assert same == (protocol == "given")


def test_random_splits_have_their_fractions_by_class(tmp_path: Path) -> None:
    splits = load(tmp_path, "random", fractions={"train": 0.5, "val": 0.2, "test": 0.3})
    sizes = {name: np.bincount(part.y).tolist() for name, part in splits.named().items()}
    assert sizes == {"train": [10] * 3, "val": [4] * 3, "test": [6] * 3}


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_near_their_fractions(tmp_path: Path, seed: int) -> None:
    splits = load(tmp_path, "group", seed, group="actor")
    members = [set(part.groups) for part in splits.named().values() if part.groups is not None]
    assert [len(m) for m in members] == [7, 1, 2]  # of ten actors of equal size
    assert len(set.union(*members)) == 10
    assert not splits.notes


def test_one_large_group_does_not_swallow_the_data(tmp_path: Path) -> None:
    actor = np.where(np.arange(COUNT) < 40, 0, np.arange(COUNT))
    for seed in range(10):
        splits = load(tmp_path, "group", seed, values={"actor": actor}, group="actor")
        assert {len(part) for part in splits.named().values()} == {42, 6, 12}


def test_missing_validation_rows_are_taken_from_train_by_group(tmp_path: Path) -> None:
    part = np.array(["Training"] * 48 + ["test"] * 12)
    fields = {"values": {"part": part}, "split": "part", "id": "name"}
    splits = load(tmp_path, "given", 3, group="actor", **fields)
    assert rows(splits.test) == set(range(48, 60))
    assert len(splits.val) == 6  # one actor of eight is nearest to 10/80 of the rows
    assert splits.val.groups is not None
    assert splits.train.groups is not None
    assert not set(splits.val.groups) & set(splits.train.groups)
    ungrouped = load(tmp_path, "given", 3, **fields)
    assert np.bincount(ungrouped.val.y).tolist() == [2, 2, 2]


def test_groups_in_two_splits_are_noted(tmp_path: Path) -> None:
    part = np.array(["train", "train", "train", "val", "test", "test"] * 10)
    splits = load(tmp_path, values={"part": part}, split="part", group="actor")
    assert splits.notes == ("10 of 10 groups are in more than one split",)
    assert not load(tmp_path, split="part", group="actor").notes


# -- bad input: one line each --------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": (
        {"modalites": {}},
        "unknown option of .*my.yaml.* 'modalites': did you mean mod",
    ),
    "no modalities": ({"modalities": {}}, "my.yaml: describes no modalities; add `modalities:`"),
    "no label": ({"label": None}, "my.yaml: does not say where the labels are; add `label:`"),
    "unknown field of a modality": (
        {"modalities": {"x": {"kye": "x"}}},
        "unknown option of modality 'x' in .*my.yaml 'kye': did you mean key",
    ),
    "unknown field of a column": ({"label": {"colum": "y"}}, "'colum': did you mean column"),
    "unknown kind": (
        {"modalities": {"x": {"key": "x", "kind": "vectr"}}},
        "option 'kind' of modality 'x'",
    ),
    "a list as a place": ({"label": [1]}, "'label' in .*: write a name, or fields"),
    "no file": ({"file": None}, "modality 'x' in .*: names no file; add `file:`"),
    "missing file": ({"label": "none.csv"}, "none.csv: does not exist"),
    "missing key": ({"label": "lable"}, "data.npz: has no array 'lable'; did you mean label"),
    "unknown recipe": (
        {"recipe": {"epoch": 3}},
        "unknown option of recipe in .* 'epoch': did you mean epochs",
    ),
    "wrong fractions": ({"fractions": {"train": 0.5}}, "fractions must sum to 1"),
    "words of YAML as classes": ({"classes": [True, False]}, "option 'classes' of .*my.yaml"),
    "class twice": ({"classes": ["a", "b", "c", "a"]}, "class 'a' is given twice"),
    "label not among the classes": (
        {"classes": ["a", "b"]},
        "label 'c' of row 3 is not in `classes:`",
    ),
    "features that are words": ({"modalities": {"x": "name"}}, "array 'name' is not numeric"),
    "label among the features": (
        {"values": {"label": np.arange(COUNT) % 3}, "modalities": {"x": "label"}},
        "modality 'x' contains the label, 'label'",
    ),
    "fewer rows": (
        {"values": {"z": np.ones((59, 2))}},
        "modality 'z' has 59 rows .*, label has 60",
    ),
    "fewer ids": ({"values": {"name": np.arange(5)}, "id": "name"}, "id has 5 rows"),
    "NaN feature": (
        {"values": {"x": np.where(np.arange(COUNT)[:, None] == 7, np.nan, np.ones((COUNT, 2)))}},
        "data.npz: array 'x', row 8 is empty, NaN or infinite",
    ),
    "NaN label": (
        {"values": {"label": np.array([np.nan, 1.0] * 30)}},
        "data.npz: array 'label', row 1 is empty or NaN",
    ),
    "object array": (
        {"values": {"x": np.array([[1], [1, 2]] * 30, dtype=object)}},
        "array 'x' holds Python objects",
    ),
    "id twice": (
        {"values": {"name": np.arange(COUNT) // 2}, "id": "name"},
        "id '0' is given to row 1 and to row 2",
    ),
    "one class": ({"values": {"label": np.ones(COUNT)}}, "there is one class only, '1'"),
    "unknown split": (
        {"values": {"part": np.array(["train"] * 59 + ["tset"])}, "split": "part"},
        "split 'tset' of row 60 is not a split; use train, val, test",
    ),
    "no test rows": (
        {"values": {"part": np.array(["train"] * COUNT)}, "split": "part"},
        "the split column has no test rows; mark some",
    ),
    "class without training rows": (
        {"values": {"label": np.array(["a", "b"] * 24 + ["c"] * 12)}, "split": "part"},
        "no training rows for class c",
    ),
    "two groups": (
        {"values": {"actor": np.arange(COUNT) % 2}, "group": "actor"},
        "protocol 'group' needs 3 groups, there are 2; use --protocol random",
    ),
    "one training group": (
        {
            "values": {"actor": np.zeros(COUNT), "part": np.array(["train"] * 50 + ["test"] * 10)},
            "group": "actor",
            "split": "part",
        },
        "protocol 'given' needs 2 groups of training rows, there are 1",
    ),
    "too few rows": (
        {"values": {name: VALUES[name][:2] for name in VALUES}},
        "2 rows cannot be split",
    ),
    "two axes wanted": (
        {"modalities": {"x": {"key": "x", "kind": "image"}}},
        "modality 'x' has 2 axes, rows included; kind image has 4",
    ),
    "tokens that are fractions": (
        {"modalities": {"x": {"key": "x", "kind": "tokens"}}},
        "modality 'x' must hold token ids",
    ),
    "token out of the vocabulary": (
        {"modalities": {"x": {"key": "actor", "kind": "tokens", "vocabulary": 3}}},
        "modality 'x' holds token 9, its vocabulary is 3; set vocabulary: 10",
    ),
    "vocabulary of a vector": (
        {"modalities": {"x": {"key": "x", "vocabulary": 3}}},
        "vocabulary of modality 'x' is used for tokens only",
    ),
    "standardised tokens": (
        {"modalities": {"x": {"key": "actor", "kind": "tokens", "standardise": True}}},
        "modality 'x' holds tokens, which cannot be standardised",
    ),
    "spectrogram with channels": (
        {
            "values": {"x": np.ones((COUNT, 2, 8, 8))},
            "modalities": {"x": {"key": "x", "kind": "spectrogram"}},
        },
        r"modality 'x' has shape \(60, 2, 8, 8\), a spectrogram \(rows, 1, F, T\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    fields, message = BAD[case]
    with pytest.raises(RequestError, match=message) as raised:
        load(tmp_path, **fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modalities:\n  x: [1,\nlabel: y\n", r"my.yaml: line \d+: not valid YAML"),
        ("modalities:\n  x: a\n  x: b\n", "my.yaml: line 3: not valid YAML: 'x' twice"),
        ("just words", "my.yaml: holds no fields"),
        ("", "my.yaml: is empty"),
        ("<!doctype html>", "my.yaml: is a web page"),
    ],
)
def test_a_file_that_is_no_description_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(RequestError, match=message) as raised:
        _ = arrays(tmp_path / "my.yaml").protocols
    assert "\n" not in str(raised.value)


def test_a_dataset_without_its_file_says_what_to_add() -> None:
    with pytest.raises(RequestError, match=r"add -d file=my\.yaml"):
        _ = Arrays(Arrays.Config()).protocols


@pytest.mark.parametrize(("protocol", "field"), [("given", "split"), ("group", "group")])
def test_a_protocol_without_its_column_is_refused(
    tmp_path: Path, protocol: str, field: str
) -> None:
    with pytest.raises(RequestError, match=f"protocol '{protocol}' needs `{field}:`"):
        load(tmp_path, protocol)
    with pytest.raises(RequestError, match="did you mean random"):
        load(tmp_path, "randm")


# -- verify --------------------------------------------------------------------------------------


def test_verify_counts_what_can_be_used(tmp_path: Path) -> None:
    path = write(tmp_path, group="actor", split="part")
    found = arrays(path).verify(path)
    assert found.usable
    assert found.counts == {
        "modality x rows": 60,
        "modality z rows": 60,
        "label rows": 60,
        "group rows": 60,
        "split rows": 60,
        "train split": 36,
        "val split": 12,
        "test split": 12,
    }


def test_verify_lists_every_unreadable_place(tmp_path: Path) -> None:
    path = write(tmp_path, modalities={"x": "nothing", "z": "z.npy"}, id="name")
    (tmp_path / "z.npy").write_text("version https://git-lfs.github.com/spec/v1\n")
    found = arrays(path).verify(path)
    assert not found.usable
    assert [Path(problem.path).name for problem in found.problems] == ["data.npz", "z.npy"]
    assert found.counts == {"label rows": 60, "id rows": 60}


def test_verify_finds_what_is_wrong_between_files(tmp_path: Path) -> None:
    path = write(tmp_path, {"z": np.ones((59, 2))})
    (problem,) = arrays(path).verify(path).problems
    assert "modality 'z' has 59 rows" in problem.what


# -- real data -----------------------------------------------------------------------------------


def test_real_emotion_clips_run_by_actor(shared_data: Path, tmp_path: Path) -> None:
    """RAVDESS: 24 actors; the video is the stronger modality, as published with the features."""
    file = shared_data / "ravdess-au-mfcc" / "ravdess_au_mfcc.npz"
    names = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]
    fields = {
        "file": str(file),
        "modalities": {"video": "video_au", "audio": "audio_mfcc"},
        "label": "label",
        "group": "actor",
        "id": "name",
        "classes": dict(enumerate(names)),
    }
    (tmp_path / "ravdess.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    dataset = arrays(tmp_path / "ravdess.yaml")
    assert dataset.protocols[0] == "group"
    splits = dataset.load("group", 0)
    splits.check("ravdess")
    assert splits.classes == tuple(names)
    actors = [set(part.groups) for part in splits.named().values() if part.groups is not None]
    assert [len(a) for a in actors] == [17, 2, 5]
    assert sum(map(len, splits.named().values())) == 1440
    emotions = [int(name.split("-")[2]) - 1 for name in splits.train.ids]
    assert splits.train.y.tolist() == emotions  # a clip's name tells its emotion
    accuracy = {}
    for m in splits.modalities:
        model = LogisticRegression(max_iter=200, C=0.1)
        model.fit(array(splits.train, m), splits.train.y)
        accuracy[m] = model.score(array(splits.test, m), splits.test.y)
    assert accuracy["video"] > accuracy["audio"] + 0.1 > 1 / 8 + 0.1


# -- the examples of the documentation -----------------------------------------------------------


def blocks(kind: str) -> list[tuple[str, str]]:
    """Return (first line, content) of the fenced blocks of a kind, in order."""
    found = re.findall(rf"^```({kind}.*?)\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.M | re.S)
    return [(head, text) for head, text in found]


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all files that the documentation's blocks make."""
    monkeypatch.chdir(tmp_path)
    for head, text in blocks("python"):
        if title := re.search(r"title=(\S+)", head):
            (tmp_path / title[1]).write_text(text)
        else:
            exec(compile(text, str(DOCUMENT), "exec"), {})
    names = re.findall(r"^`(\w+\.yaml)`:\n\n```yaml\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    for name, text in names:
        (tmp_path / name).write_text(text)
    assert len(names) == len(blocks("yaml")) >= 3
    return tmp_path


def test_documented_descriptions_load(documented: Path) -> None:
    loaded = {}
    for path in documented.glob("*.yaml"):
        dataset = arrays(path)
        loaded[path.stem] = dataset.load(dataset.protocols[0], 0)
        loaded[path.stem].check(path.stem)
        assert dataset.verify(path).usable
    kinds = {
        name: {m: (modality.kind, modality.shape) for m, modality in splits.modalities.items()}
        for name, splits in loaded.items()
    }
    assert kinds == {
        "emotions": {"video": ("vector", (16,)), "audio": ("sequence", (40, 8))},
        "moods": {
            "body": ("vector", (3,)),
            "words": ("vector", (12,)),
            "face": ("image", (3, 16, 16)),
        },
        "reviews": {"text": ("tokens", (20,)), "rating": ("vector", (2,))},
    }
    assert loaded["emotions"].classes == ("neutral", "happy", "sad")
    assert loaded["moods"].test.ids.tolist() == [f"clip-{i}" for i in range(60, 90)]
    assert loaded["reviews"].classes == ("drama", "comedy")
    assert [len(part) for part in loaded["reviews"].named().values()] == [50, 20, 30]


def test_the_documented_dataset_file_loads(documented: Path) -> None:
    loaded = load_dataset(str(documented / "two_moons.py"))
    dataset = loaded(validated(loaded.Config, {"noise": 0.3}, "two_moons"))
    splits = dataset.load(dataset.protocols[0], seed=0)
    splits.check(dataset.name())
    assert [len(part) for part in splits.named().values()] == [400, 100, 100]
    with pytest.raises(RequestError, match="option 'noise'"):
        validated(loaded.Config, {"noise": -1}, "two_moons")


def test_the_documented_dataset_of_clips_prepares_and_loads(
    documented: Path, tmp_path: Path
) -> None:
    loaded = load_dataset(str(documented / "greetings.py"))
    assert issubclass(loaded, MediaDataset)
    dataset = loaded(validated(loaded.Config, {}, "greetings"))
    with pytest.raises(DataError, match=r"holds no <class>/<person>-<number>\.mp4"):
        dataset.listing(tmp_path)
    for label in ("bow", "wave"):
        for person in ("anna", "dora", "emil", "finn"):
            path = tmp_path / "clips" / label / f"{person}-1.mp4"
            sound = RNG.integers(-9000, 9000, 8000).astype(np.int16)
            write_video(path, np.zeros((5, 32, 32, 3), dtype=np.uint8), 10, sound, 16_000)
    assert dataset.verify(tmp_path / "clips", workers=1).usable
    dataset.prepare(tmp_path / "clips", tmp_path / "cache", lambda *step: None, workers=1)
    prepared = {"cache": str(tmp_path / "cache")}
    splits = loaded(validated(loaded.Config, prepared, "greetings")).load("person", seed=0)
    splits.check("greetings")
    assert splits.classes == ("bow", "wave")
    assert splits.test.ids.tolist() == ["bow/anna-1", "wave/anna-1"]
    assert splits.modalities.keys() == {"audio", "visual"}
    assert splits.train.groups is not None
    assert splits.val.groups is not None
    assert {*splits.train.groups} | {*splits.val.groups} == {"dora", "emil", "finn"}


def test_other_values_of_the_same_rows_have_another_fingerprint(tmp_path: Path) -> None:
    prints = []
    for shift in (0, 0, 1):
        np.savez(
            tmp_path / "rows.npz", a=np.arange(60.0).reshape(30, 2) + shift, y=np.arange(30) % 2
        )
        (tmp_path / "rows.yaml").write_text("file: rows.npz\nmodalities: {a: a}\nlabel: y\n")
        loaded = Arrays(Arrays.Config(file=str(tmp_path / "rows.yaml")))
        prints.append([loaded.load("random", seed).fingerprints()["prepared"] for seed in (0, 1)])
    assert prints[0][0] == prints[0][1] == prints[1][0]
    assert prints[2][0] != prints[0][0]


def test_every_field_is_documented() -> None:
    from mmbench.data.description import Fractions, ModalityPlace, _Fields

    text = DOCUMENT.read_text("utf-8")
    for options in (_Fields, ModalityPlace, Fractions):
        for name in options.model_fields:
            assert f"`{name}`" in text, name

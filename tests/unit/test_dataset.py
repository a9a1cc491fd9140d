"""What all datasets share: sources, splits, fingerprints and the checks before a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Joined, Modality, Rows, Split, Splits, joined
from mmbench.errors import DataError
from mmbench.hashing import digest


def split(name: str, count: int, groups: bool = False) -> Split:
    rng = np.random.default_rng(len(name))
    return Split(
        {"a": Rows(rng.normal(size=(count, 3))), "b": Rows(rng.normal(size=(count, 2, 2)))},
        torch.arange(count) % 3,
        np.array([f"{name}{i}" for i in range(count)]),
        np.array([f"{name}-group{i // 2}" for i in range(count)]) if groups else None,
    )


@pytest.fixture
def splits() -> Splits:
    modalities = {"a": Modality("vector", (3,)), "b": Modality("sequence", (2, 2))}
    return Splits(split("train", 9), split("val", 6), split("test", 6), modalities, ("x", "y", "z"))


# -- sources -------------------------------------------------------------------------------------


def test_rows_keep_integers_and_turn_floats_into_float32() -> None:
    assert Rows(np.zeros((2, 3), dtype=np.float64)).tensor.dtype == torch.float32
    for dtype in (np.uint8, np.int16, np.int64):
        assert (
            Rows(np.zeros((2, 3), dtype=dtype)).tensor.dtype
            == torch.from_numpy(np.zeros(1, dtype=dtype)).dtype
        )


def test_transforms_run_in_order_and_see_rows_and_augmentation() -> None:
    seen: list[tuple[list[int], torch.Generator | None]] = []

    def double(x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        seen.append((rows.tolist(), augment))
        return 2 * x

    def add_row(x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        return x + rows[:, None]

    source = Rows(np.arange(8.0).reshape(4, 2), [double, add_row], "double, add row")
    generator = torch.Generator()
    expected = torch.tensor([[4 * 2.0 + 2, 5 * 2 + 2], [0, 2]])
    assert torch.equal(source.batch(torch.tensor([2, 0]), generator), expected)
    assert seen == [([2, 0], generator)]
    assert len(source.to(torch.device("cpu")).transforms) == 2


def test_joined_sources_are_one_after_the_other_in_any_order() -> None:
    whole = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    source = Joined(Rows(whole[:4]), Rows(whole[4:]))
    assert len(source) == 11
    for rows in ([0, 10, 3, 4, 5, 1], [1, 2], [9, 4], [3, 3, 4, 4], list(range(10, -1, -1))):
        chosen = torch.tensor(rows)
        assert torch.equal(source.to(torch.device("cpu")).batch(chosen, None), whole[chosen])


def test_validation_rows_follow_the_training_rows_when_they_are_trained_on(splits: Splits) -> None:
    both = splits.with_val_in_train()
    assert both.train.ids.tolist() == [*splits.train.ids, *splits.val.ids]
    assert both.train.y.tolist() == [*splits.train.y.tolist(), *splits.val.y.tolist()]
    batch = both.train.batch(torch.tensor([10, 0]), ["b"])
    assert batch.inputs.keys() == {"b"}
    expected = torch.stack(
        [
            splits.val.batch(torch.tensor([1]), ["b"]).inputs["b"][0],
            splits.train.batch(torch.tensor([0]), ["b"]).inputs["b"][0],
        ]
    )
    assert torch.equal(batch.inputs["b"], expected)
    assert both.val is splits.val


def test_groups_are_joined_where_both_splits_have_them() -> None:
    with_groups = joined(split("t", 4, groups=True), split("v", 2, groups=True))
    assert with_groups.groups is not None
    assert with_groups.groups.tolist() == ["t-group0"] * 2 + ["t-group1"] * 2 + ["v-group0"] * 2
    assert joined(split("t", 4, groups=True), split("v", 2)).groups is None


def with_labels(splits: Splits, **changes: dict[str, dict[str, np.ndarray]]) -> Splits:
    """Return the splits with a label of modality a for each row, of some splits another one."""

    def part(name: str, split: Split) -> Split:
        heard = np.array([f"{name}-heard-{i}" for i in range(len(split))])
        return replace(split, labels=changes.get(name, {"a": {"heard": heard}}))

    train, val, test = (part(name, split) for name, split in splits.named().items())
    return replace(splits, train=train, val=val, test=test)


def test_labels_of_a_modality_stay_with_their_rows(splits: Splits) -> None:
    labelled = with_labels(splits)
    labelled.check("toy")
    assert labelled.fingerprints() == splits.fingerprints()
    both = labelled.to(torch.device("cpu")).with_val_in_train()
    expected = [f"{part}-heard-{i}" for part, n in (("train", 9), ("val", 6)) for i in range(n)]
    assert both.train.labels["a"]["heard"].tolist() == expected
    assert both.test.labels["a"]["heard"][5] == "test-heard-5"


def test_labels_that_do_not_fit_are_refused(splits: Splits) -> None:
    few, six = np.array(["x"] * 5), np.array(["x"] * 6)
    for part, labels, what in (
        ("test", {"a": {"heard": few}}, "test split has 6 labels and 5 rows of label 'heard' of a"),
        ("val", {"a": {"seen": six}}, "the val split has other further labels than train"),
        ("test", {}, "the test split has other further labels than train"),
        ("train", {"c": {"heard": np.array(["x"] * 9)}}, "or some of no modality"),
    ):
        with pytest.raises(DataError, match=what):
            with_labels(splits, **{part: labels}).check("toy")


# -- fingerprints --------------------------------------------------------------------------------


def test_fingerprints_are_those_of_the_content(splits: Splits) -> None:
    again = replace(splits, train=split("train", 9))
    assert again.fingerprints() == splits.fingerprints()
    assert splits.to(torch.device("cpu")).fingerprints() == splits.fingerprints()


def relabelled(part: Split) -> None:
    part.y = part.y.roll(1)


def renamed(part: Split) -> None:
    part.ids = np.array([f"other{i}" for i in range(len(part))])


def moved(part: Split) -> None:
    source = part.inputs["a"]
    assert isinstance(source, Rows)
    source.tensor[-1, -1] += 1e-6


def transformed(part: Split) -> None:
    source = part.inputs["a"]
    assert isinstance(source, Rows)
    source.transform_name = "another front end"


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("change", "kind"),
    [(relabelled, "split"), (renamed, "split"), (moved, "data"), (transformed, "data")],
)
def test_a_change_of_any_split_shows_in_its_fingerprint(
    splits: Splits, part: str, change: Callable[[Split], None], kind: str
) -> None:
    before = splits.fingerprints()
    change(splits.named()[part])
    after = splits.fingerprints()
    assert {name for name in before if before[name] != after[name]} == {kind}


def test_digests_tell_where_a_part_ends() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest("ab") == digest(b"ab")


def test_fingerprints_tell_shapes_apart() -> None:
    assert Rows(np.zeros((2, 6))).fingerprint() != Rows(np.zeros((3, 4))).fingerprint()


# -- checks --------------------------------------------------------------------------------------


def test_sound_splits_pass(splits: Splits) -> None:
    splits.check("toy")
    splits.with_val_in_train().train.batch(torch.arange(15), ["a", "b"])


def no_rows(splits: Splits) -> None:
    splits.val = split("val", 0)


def shared_id(splits: Splits) -> None:
    splits.test.ids = np.array(["test0", "test1", "train4", "test3", "test4", "test5"])


def id_twice(splits: Splits) -> None:
    splits.test.ids[2] = splits.test.ids[0]


def with_nan(splits: Splits) -> None:
    set_value(splits.val, "b", 3, float("nan"))


def with_infinity(splits: Splits) -> None:
    set_value(splits.test, "a", 5, -float("inf"))


def set_value(part: Split, m: str, row: int, value: float) -> None:
    source = part.inputs[m]
    assert isinstance(source, Rows)
    source.tensor[row].view(-1)[-1] = value


def class_without_rows(splits: Splits) -> None:
    splits.train.y = splits.train.y.clamp(max=1)


def label_too_high(splits: Splits) -> None:
    splits.test.y = splits.test.y + 1


def label_below_zero(splits: Splits) -> None:
    splits.train.y = splits.train.y - 1


def modality_missing(splits: Splits) -> None:
    splits.val.inputs = {"a": splits.val.inputs["a"]}


def rows_missing(splits: Splits) -> None:
    splits.val.inputs = {"a": splits.val.inputs["a"], "b": Rows(np.zeros((5, 2, 2)))}


def ids_missing(splits: Splits) -> None:
    splits.test.ids = splits.test.ids[:-1]


def another_shape(splits: Splits) -> None:
    splits.test.inputs = {"a": Rows(np.zeros((6, 4))), "b": splits.test.inputs["b"]}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_rows, "the val split has no rows"),
        (shared_id, "id 'train4' is in train and in test"),
        (id_twice, "the test split names an id twice"),
        (with_nan, "modality 'b' holds NaN or infinite values in val (first at id 'val3')"),
        (with_infinity, "modality 'a' holds NaN or infinite values in test (first at id 'test5')"),
        (class_without_rows, "no training rows for class z"),
        (label_too_high, "the test split has labels from 1 to 3; 3 classes"),
        (label_below_zero, "the train split has labels from -1 to 1"),
        (modality_missing, "the val split holds ['a'], not ['a', 'b']"),
        (rows_missing, "the val split has 6 labels and 5 rows of b"),
        (ids_missing, "the test split has 6 labels and 5 rows of ids"),
        (another_shape, "the test split has samples of 'a' of shape (4,), not (3,)"),
    ],
)
def test_splits_that_no_method_can_rely_on_are_refused(
    splits: Splits, spoil: Callable[[Splits], None], words: str
) -> None:
    spoil(splits)
    with pytest.raises(DataError) as refused:
        splits.check("toy")
    assert str(refused.value).startswith("dataset 'toy': ")
    assert words in str(refused.value)


def test_a_bad_value_past_the_first_chunk_of_rows_is_found(splits: Splits) -> None:
    values = np.zeros((9000, 3), dtype=np.float32)
    values[8500, 1] = np.nan
    y, ids = torch.arange(9000) % 3, np.arange(9000).astype(str)
    large = Split({"a": Rows(values), "b": Rows(np.zeros((9000, 2, 2)))}, y, ids)
    with pytest.raises(DataError, match="first at id '8500'"):
        replace(splits, train=large).check("toy")

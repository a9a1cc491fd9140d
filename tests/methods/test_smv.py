"""SMV: values, copies and gradients against the definitions written as loops, and its promises."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations, product
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch, Rows
from mmbench.errors import RequestError
from mmbench.methods.joint import Joint
from mmbench.methods.smv import SMV, GrownEpoch, copy_chances, sample_copies, shapley_values
from mmbench.nets.network import Network
from mmbench.options import option
from mmbench.testing import contract
from mmbench.testing.contract import final_state, make_splits
from mmbench.train.run import Run
from tests.methods.double import (
    Case,
    assert_close,
    case,
    cross_entropy,
    encode_in_double,
    gradients_of,
    named_parameters,
)
from tests.methods.support import batch_counts, begun, configured, trainer

Successes = dict[frozenset[str], np.ndarray]


def subsets_of(names: tuple[str, ...]) -> list[frozenset[str]]:
    return [frozenset(s) for size in range(len(names)) for s in combinations(names, size + 1)]


def slow_values(names: tuple[str, ...], right: dict[frozenset[str], bool]) -> list[float]:
    """Return ``phi_m``: the mean, over all orders of joining, of what joining adds."""
    totals = dict.fromkeys(names, 0)
    orders = list(permutations(names))
    for order in orders:
        joined: frozenset[str] = frozenset()
        worth = 0
        for m in order:
            joined = joined | {m}
            now = len(joined) * int(right[joined])
            totals[m] += now - worth
            worth = now
    return [totals[m] / len(orders) for m in names]


def slow_copies(value: float) -> int:
    if value < -0.1:
        return 3
    if value < 0.4:
        return 2
    return 1 if value < 1 else 0


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4])
def test_values_are_mean_gains_over_all_orders_of_joining(count: int) -> None:
    names = tuple(f"m{i}" for i in range(count))
    random = np.random.default_rng(count)
    successes = {s: random.random(40) < 0.6 for s in subsets_of(names)}
    got = shapley_values(names, successes)
    for i in range(40):
        expected = slow_values(names, {s: bool(hits[i]) for s, hits in successes.items()})
        assert got[i].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_values_sum_to_the_number_of_modalities_where_the_fused_prediction_is_right(
    count: int,
) -> None:
    names = tuple(f"m{i}" for i in range(count))
    random = np.random.default_rng(count)
    successes = {s: random.random(50) < 0.5 for s in subsets_of(names)}
    got = shapley_values(names, successes).sum(axis=1)
    np.testing.assert_allclose(got, count * successes[frozenset(names)], atol=1e-12)


def test_two_modalities_have_the_values_of_the_closed_form() -> None:
    """``phi_1 = (v_1 + v_12 - v_2) / 2`` with ``v_12`` in {0, 2}; copies as released."""
    cases = list(product([False, True], repeat=3))
    first, second, both = (np.array(column) for column in zip(*cases, strict=True))
    a, b = frozenset({"a"}), frozenset({"b"})
    values = shapley_values(("a", "b"), {a: first, b: second, a | b: both})
    expected = [(int(x) + 2 * int(z) - int(y)) / 2 for x, y, z in cases]
    assert values[:, 0].tolist() == expected
    copies = dict(zip(expected, sample_copies(values)[:, 0].tolist(), strict=True))
    assert copies == {-0.5: 3, 0.0: 2, 0.5: 1, 1.0: 0, 1.5: 0}


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7])
def test_a_sample_that_every_subset_gets_right_is_not_copied(count: int) -> None:
    """Each value is exactly 1 then; a rounding error below it would make copies of it."""
    names = tuple(f"m{i}" for i in range(count))
    values = shapley_values(names, {s: np.array([True]) for s in subsets_of(names)})
    assert values.tolist() == [[1.0] * count]
    assert not sample_copies(values).any()


def test_a_sample_that_nothing_gets_right_gets_two_copies_of_each() -> None:
    values = shapley_values(
        ("a", "b", "c"), {s: np.array([False]) for s in subsets_of(tuple("abc"))}
    )
    assert sample_copies(values).tolist() == [[2, 2, 2]]


def test_chances_come_from_the_gap_to_the_mean_of_the_others() -> None:
    assert copy_chances(np.array([1.4, 0.8]), 1.0) == pytest.approx([0.0, 0.4])
    assert copy_chances(np.array([0.8, 1.4]), 0.5) == pytest.approx([0.2, 0.0])
    assert copy_chances(np.array([0.9, 0.9]), 1.0) == pytest.approx([0.0, 0.0])
    got = copy_chances(np.array([2.0, 0.5, 0.5]), 1.0)
    assert got == pytest.approx([0.0, 2 / 3 * 0.75, 2 / 3 * 0.75])


# -- gradients -------------------------------------------------------------------------------------


def method_of(of: Case) -> SMV:
    assert isinstance(of.method, SMV)
    return of.method


def valued(count: int, seed: int, fusion: str, **options: Any) -> Case:
    """Return a method in double precision, data included, that has valued the training rows."""
    of = case(SMV, count, seed, fusion, warmup_epochs=0, **options)
    for source in of.run.train.inputs.values():
        assert isinstance(source, Rows)
        source.tensor = source.tensor.double()
    with patch.object(Network, "encode", encode_in_double):
        of.method.on_epoch_start(of.run)
    return of


def fused(network: Network, features: dict[str, Tensor], kept: frozenset[str]) -> Tensor:
    """Return the logits of one sample ``(1, C)`` with the features of the others zero."""
    assert network.fusion is not None
    alone = {m: (h if m in kept else torch.zeros_like(h)) for m, h in features.items()}
    logits: Tensor = network.fusion(alone)
    return logits


def slow_epoch_copies(of: Case, network: Network) -> list[list[int]]:
    """Return the copies of every training row, row by row."""
    names, found = of.run.modalities, []
    for row in range(len(of.run.train)):
        batch = of.run.train.batch(torch.tensor([row]), names)
        features = encode_in_double(network, batch.inputs)
        right = {
            s: int(fused(network, features, s).argmax()) == int(batch.y) for s in subsets_of(names)
        }
        found.append([slow_copies(value) for value in slow_values(names, right)])
    return found


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "fusion"), [(0, "concat"), (1, "sum"), (2, "film"), (3, "gated"), (4, "attention")]
)
def test_gradients_are_those_of_samples_and_copies_one_by_one(
    count: int, seed: int, fusion: str
) -> None:
    of = valued(count, seed, fusion)
    batch, network, names = of.batch(), of.network(), of.run.modalities
    copies = slow_epoch_copies(of, network.eval())
    assert len({tuple(row) for row in copies}) > 2
    rows, labels = [], []
    for i, row in enumerate(batch.rows.tolist()):
        features = encode_in_double(network, {m: batch.inputs[m][i : i + 1] for m in names})
        shown = [frozenset(names)]
        for m, number in zip(names, copies[row], strict=True):
            shown += [frozenset({m})] * number
        for kept in shown:
            rows.append(fused(network, features, kept)[0])
            labels.append(int(batch.y[i]))
    loss = cross_entropy(torch.stack(rows), torch.tensor(labels))
    expected = gradients_of(loss, named_parameters(network, of.method))
    assert_close(of.step(batch), expected)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("seed", "fusion"), [(0, "concat"), (1, "film"), (2, "sum")])
def test_a_batch_of_the_released_epoch_is_masked_row_by_row(
    count: int, seed: int, fusion: str
) -> None:
    of = valued(count, seed, fusion, variant="released")
    batch, network, names = of.batch(), of.network(), of.run.modalities
    kept = torch.eye(count).repeat(9, 1)[: len(batch)]
    kept[0] = 1
    method_of(of).grown = GrownEpoch(iter([batch]), kept, len(batch), len(batch))
    rows = []
    for i in range(len(batch)):
        features = encode_in_double(network, {m: batch.inputs[m][i : i + 1] for m in names})
        shown = frozenset(m for k, m in enumerate(names) if kept[i, k] == 1)
        rows.append(fused(network, features, shown)[0])
    loss = cross_entropy(torch.stack(rows), batch.y)
    expected = gradients_of(loss, named_parameters(network, of.method))
    assert_close(of.step(batch), expected)


# -- the epoch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("seed", "most"), [(0, 1), (1, 2), (2, 4), (3, 5)])
def test_the_released_epoch_has_every_sample_and_every_copy_once(
    count: int, seed: int, most: int
) -> None:
    made = begun(SMV, make_splits(count), "concat", {"variant": "released"})
    run = made.run
    random = torch.Generator().manual_seed(seed)
    copies = torch.randint(most, (60, count), generator=random)
    grown = GrownEpoch.of(run, copies)
    seen: Counter[tuple[int, tuple[float, ...]]] = Counter()
    batches_of_copies = updates = 0
    for batch in run.shuffled(np.arange(60), 0):
        due = list(grown.due(len(batch)))
        assert due, "a step learns from something"
        updates += len(due)
        for own, kept in due:
            assert len(own) == len(kept)
            assert torch.equal(own.y, run.train.y[own.rows])
            seen.update(zip(own.rows.tolist(), map(tuple, kept.tolist()), strict=True))
            batches_of_copies += int((kept.sum(dim=1) < count).any())
    expected: Counter[tuple[int, tuple[float, ...]]] = Counter()
    for row in range(60):
        expected[(row, (1.0,) * count)] += 1
        for i in range(count):
            only = tuple(float(i == k) for k in range(count))
            expected[(row, only)] += int(copies[row, i])
    assert seen == +expected
    assert updates == batch_counts(60 + int(copies.sum()), 16)
    if most > 1:
        assert batches_of_copies > updates / 2, "samples and copies are shuffled together"


def test_copies_at_modality_level_have_the_chance_or_as_released_the_number() -> None:
    splits = make_splits(2, rows=4000)
    chances = np.array([0.0, 0.3])
    for variant in ("corrected", "released"):
        made = begun(SMV, splits, "concat", {"level": "modality", "variant": variant})
        assert isinstance(made.method, SMV)
        copies = made.method.draw(made.run, chances)
        assert copies.shape == (4000, 2)
        assert not copies[:, 0].any()
        if variant == "corrected":
            assert set(copies[:, 1].tolist()) == {0, 1}
            # Five standard deviations of the share of 4,000 rows.
            assert float(copies[:, 1].double().mean()) == pytest.approx(0.3, abs=0.036)
        else:
            assert int(copies.sum()) == 1200
            assert int(copies.max()) > 1, "drawn with replacement"
        many = made.method.draw(made.run, np.array([1.2, 0.0]))
        assert int(many.sum()) == (4000 if variant == "corrected" else 4800)


def test_modality_level_values_another_part_of_the_rows_each_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = []
    values = SMV.successes

    def record(self: SMV, run: Run, rows: np.ndarray) -> Successes:
        parts.append(rows)
        return values(self, run, rows)

    monkeypatch.setattr(SMV, "successes", record)
    options = {"level": "modality", "warmup_epochs": 1, "subset": 0.25}
    fitted = trainer(configured(SMV, options), make_splits(3), fusion="concat", epochs=3).fit()
    assert [len(set(part.tolist())) for part in parts] == [15, 15]
    assert not np.array_equal(parts[0], parts[1])
    # Four steps in each of three epochs, and a pass over the part in two of them.
    assert fitted.run.counts.forwards == 3 * 4 + 2
    assert fitted.run.counts.updates == 3 * 4


def test_only_the_modality_behind_is_copied_at_modality_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def successes(self: SMV, run: Run, rows: np.ndarray) -> Successes:
        hits = {s: np.full(len(rows), True) for s in subsets_of(run.modalities)}
        return hits | {frozenset({"view2"}): np.full(len(rows), False)}

    monkeypatch.setattr(SMV, "successes", successes)
    options = {"level": "modality", "warmup_epochs": 0}
    made = begun(SMV, make_splits(2), "concat", options)
    made.method.on_epoch_start(made.run)
    assert isinstance(made.method, SMV)
    assert made.method.copies is not None
    # Values 1.5 and 0.5: a chance of 2/3 for the second; five standard deviations of 60 rows.
    assert not made.method.copies[:, 0].any()
    assert float(made.method.copies[:, 1].double().mean()) == pytest.approx(2 / 3, abs=0.3)
    assert made.method.report(made.run)["last_valuation"]["view2"]["value"] == 0.5


@pytest.mark.parametrize(
    ("epochs", "epoch", "options", "acts"),
    [
        (60, 4, {}, False),
        (60, 5, {}, True),
        (100, 7, {}, False),
        (100, 8, {}, True),
        (5, 0, {}, False),
        (5, 1, {}, True),
        (60, 0, {"warmup_epochs": 0}, True),
    ],
)
def test_during_the_warm_up_it_is_joint_training(
    epochs: int, epoch: int, options: dict[str, Any], acts: bool
) -> None:
    of = case(SMV, 2, 1, epochs=epochs, epoch=epoch, **options)
    plain = case(Joint, 2, 1)
    for source in of.run.train.inputs.values():
        assert isinstance(source, Rows)
        source.tensor = source.tensor.double()
    with patch.object(Network, "encode", encode_in_double):
        of.method.on_epoch_start(of.run)
    batch = of.batch()
    got, expected = of.step(batch), plain.step(plain_batch(plain, batch))
    assert all(torch.equal(got[name], expected[name]) for name in expected) != acts


def plain_batch(of: Case, batch: Batch) -> Batch:
    """Return the same rows for another case."""
    same = of.run.train.batch(batch.rows, of.run.modalities)
    return Batch({m: x.double() for m, x in same.inputs.items()}, same.y, same.rows)


def test_in_an_epoch_without_copies_the_released_one_makes_the_same_number_of_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def successes(self: SMV, run: Run, rows: np.ndarray) -> Successes:
        return {s: np.full(len(rows), True) for s in subsets_of(run.modalities)}

    monkeypatch.setattr(SMV, "successes", successes)
    method = configured(SMV, {"variant": "released", "warmup_epochs": 0})
    fitted = trainer(method, make_splits(2), fusion="concat").fit()
    assert fitted.run.counts.updates == fitted.run.counts.forwards == 2 * 4
    assert any("makes more updates" in note for note in fitted.run.notes)


def test_the_released_variant_is_charged_for_its_copies() -> None:
    method = configured(SMV, {"variant": "released"})
    fitted = trainer(method, make_splits(2), fusion="concat").fit()
    copied = sum(fitted.history[1][f"copies.{m}"] for m in ("view1", "view2"))  # type: ignore[misc]
    own = batch_counts(60 + round(60 * copied), 16)
    assert copied > 0
    assert fitted.run.counts.updates == 4 + own
    assert fitted.run.counts.forwards == 4 + own + 1  # the valuation of 60 rows


# -- resume, and what is refused -------------------------------------------------------------------


class Released(SMV):
    class Config(SMV.Config):
        variant: Literal["corrected", "released"] = option("released", "")


class ByModality(SMV):
    class Config(SMV.Config):
        level: Literal["sample", "modality"] = option("modality", "")


class ReleasedByModality(Released):
    class Config(Released.Config):
        level: Literal["sample", "modality"] = option("modality", "")


@pytest.mark.parametrize("kind", [Released, ByModality, ReleasedByModality])
def test_it_resumes_after_any_epoch(kind: type[SMV], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "EPOCHS", 3)
    contract.check_resumes(kind, 3)
    contract.check_sees_training_rows_only(kind, 2)


def test_variants_differ() -> None:
    kinds = (SMV, Released, ByModality, ReleasedByModality)
    ends = [
        final_state(contract.make_trainer(kind, 2, "concat", select="last").fit()) for kind in kinds
    ]
    for a, b in combinations(ends, 2):
        assert any(not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"level": "batch"}, "level"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"level": "modality", "strength": -0.5}, "strength"),
        ({"level": "modality", "subset": 0}, "subset"),
        ({"strength": 0.5}, "strength is not used by level=sample"),
        ({"subset": 0.5}, "subset is not used by level=sample"),
        ({"level": "modality", "strength": 0, "variant": "released"}, "variant is not used with"),
        ({"level": "modality", "strength": 0, "warmup_epochs": 2}, "warmup_epochs is not used"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(SMV, options)
    assert "\n" not in str(caught.value)


def test_a_warm_up_that_never_ends_is_noted() -> None:
    made = begun(SMV, make_splits(2), "concat", {"warmup_epochs": 2})
    assert any("re-samples nothing in 2 epochs" in note for note in made.run.notes)
    assert not begun(SMV, make_splits(2), "concat", {}).run.notes


@pytest.mark.parametrize("variant", ["corrected", "released"])
def test_it_draws_from_its_own_stream_alone(variant: str) -> None:
    options = {"level": "modality", "variant": variant, "warmup_epochs": 0}
    made = begun(SMV, make_splits(2), "concat", options)
    before = torch.get_rng_state()
    made.method.on_epoch_start(made.run)
    assert torch.equal(torch.get_rng_state(), before), "dropout layers draw as in joint training"

"""Predictions read out of a trained method, and everything that is made of them."""

import copy
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn

from mmbench.config import Recipe
from mmbench.data.dataset import Modality, Rows, Split, Splits
from mmbench.errors import RunFailed
from mmbench.evaluate.evaluation import Evaluation, evaluate
from mmbench.evaluate.metrics import METRICS, all_metrics
from mmbench.evaluate.readout import evaluating, read_out
from mmbench.methods.joint import Joint
from mmbench.methods.majority import Majority
from mmbench.methods.multiloss import MultiLoss
from mmbench.methods.unimodal import Unimodal
from mmbench.nets.fusion import FUSIONS
from mmbench.nets.network import NetworkSpec
from mmbench.train.method import Method
from mmbench.train.run import evaluation_batch
from mmbench.train.trainer import Fitted, Trainer

NAMES = ("a", "b", "c")
CLASSES = 3
PICTURE = Modality("image", (1, 6, 6))


def split(name: str, rows: int, seed: int) -> Split:
    """Rows whose first two modalities know the class, a better than b; c is noise. The encoder of
    a has batch norm, so that training and evaluation mode differ."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, rows)
    y[:CLASSES] = range(CLASSES)
    inputs = {
        "a": Rows(rng.normal(size=(rows, 1, 6, 6)) + 2 * y[:, None, None, None]),
        "b": Rows(rng.normal(size=(rows, 4)) + y[:, None]),
        "c": Rows(rng.normal(size=(rows, 5))),
    }
    return Split(
        inputs, torch.from_numpy(y), np.array([f"{name}-{i}" for i in range(rows)], object)
    )


def splits() -> Splits:
    modalities = {"a": PICTURE, "b": Modality("vector", (4,)), "c": Modality("vector", (5,))}
    parts = split("train", 70, 0), split("val", 30, 1), split("test", 41, 2)
    return Splits(*parts, modalities, tuple("xyz"))


def fit(method: Method, data: Splits, fusion: str = "concat", precision: str = "fp32") -> Fitted:
    encoders = {"a": "small_cnn", "b": "mlp", "c": "mlp"}
    spec = NetworkSpec(data.modalities, encoders, CLASSES, fusion, seed=1)
    recipe = Recipe(epochs=3, lr=0.02)
    return Trainer(method, data, spec, recipe, torch.device("cpu"), precision).fit()


def fitted_with(
    name: str, fusion: str = "concat", precision: str = "fp32"
) -> tuple[Fitted, Splits]:
    makers: dict[str, Callable[[], Method]] = {
        "joint": lambda: Joint(Joint.Config()),
        "multiloss": lambda: MultiLoss(MultiLoss.Config()),
        "majority": lambda: Majority(Majority.Config()),
        "unimodal": lambda: Unimodal(Unimodal.Config(modality="b")),
    }
    data = splits()
    return fit(makers[name](), data, fusion, precision), data


# -- read_out ----------------------------------------------------------------------------------


def test_every_row_is_read_in_order_whatever_the_batch_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted, data = fitted_with("multiloss")
    whole = read_out(fitted.run, fitted.method, data.test)
    monkeypatch.setattr("mmbench.train.run.EVALUATION_BATCH", 8)  # 41 rows: 8, 8, 8, 8, 9
    pieces = read_out(fitted.run, fitted.method, data.test)
    assert torch.equal(whole.y, data.test.y)
    assert torch.equal(pieces.y, data.test.y)
    torch.testing.assert_close(pieces.logits, whole.logits)
    for m in NAMES:
        torch.testing.assert_close(pieces.parts[m], whole.parts[m])
        torch.testing.assert_close(pieces.own[m], whole.own[m])
        torch.testing.assert_close(pieces.features[m], whole.features[m])


def test_chosen_rows_are_read_in_the_order_given() -> None:
    fitted, data = fitted_with("joint")
    rows = np.array([7, 0, 40])
    some = read_out(fitted.run, fitted.method, data.test, rows)
    whole = read_out(fitted.run, fitted.method, data.test)
    torch.testing.assert_close(some.logits, whole.logits[rows])
    assert torch.equal(some.y, whole.y[rows])


def test_a_readouts_numbers_are_those_of_scikit_learn() -> None:
    fitted, data = fitted_with("joint")
    readout = read_out(fitted.run, fitted.method, data.test)
    chances = readout.logits.double().softmax(dim=1).numpy()
    labels = readout.y.numpy()
    assert readout.nll() == pytest.approx(sklearn.metrics.log_loss(labels, chances))
    assert readout.accuracy() == pytest.approx(
        sklearn.metrics.accuracy_score(labels, chances.argmax(axis=1))
    )
    true = [chances[i, c] for i, c in enumerate(labels)]
    assert readout.confidence(readout.logits) == pytest.approx(np.mean(true))


def test_reading_puts_every_submodule_back_into_its_mode_even_after_an_error() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(0.5)))
    net.train()
    net[0].eval()  # a frozen encoder

    def fail() -> None:
        with evaluating(net):
            assert not any(part.training for part in net.modules())
            assert not torch.is_grad_enabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [part.training for part in net.modules()] == [True, False, True, True]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_low_precision_is_confined_to_the_encoders(fusion: str) -> None:
    fitted, data = fitted_with("multiloss", fusion, "bf16")
    readout = read_out(fitted.run, fitted.method, data.test)
    if FUSIONS[fusion].parts_are_exact:
        total = torch.stack(list(readout.parts.values())).sum(dim=0)
        torch.testing.assert_close(total, readout.logits, atol=1e-5, rtol=1e-5)
    exact, _ = fitted_with("multiloss", fusion)
    exact.run.network.load_state_dict(fitted.run.network.state_dict())
    reference = read_out(exact.run, exact.method, data.test)
    torch.testing.assert_close(readout.logits, reference.logits, atol=0.1, rtol=0.05)


# -- evaluate ----------------------------------------------------------------------------------


def state(fitted: Fitted) -> dict[str, Tensor]:
    network = {f"network.{k}": v for k, v in fitted.run.network.state_dict().items()}
    method = {f"method.{k}": v for k, v in fitted.method.state_dict().items()}
    return copy.deepcopy(network | method)


def global_streams() -> tuple[object, ...]:
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002
    return random.getstate(), legacy["state"]["key"].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", ["joint", "multiloss", "majority", "unimodal"])
def test_evaluating_changes_neither_the_method_nor_global_randomness(name: str) -> None:
    fitted, data = fitted_with(name)
    fitted.run.network.train()
    before = state(fitted)
    counts = copy.deepcopy(fitted.run.counts)
    stream = fitted.run.rng.get_state()
    streams = global_streams()
    first = evaluate(fitted, data, include_val=True)
    assert global_streams() == streams
    assert torch.equal(fitted.run.rng.get_state(), stream)
    assert fitted.run.network.training
    assert fitted.run.counts == counts
    assert all(p.grad is None for p in fitted.run.network.parameters())
    after = state(fitted)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    second = evaluate(fitted, data, include_val=True)
    assert first.metrics == second.metrics
    assert first.contributions == second.contributions
    for key, array in first.predictions.items():
        np.testing.assert_array_equal(array, second.predictions[key])


def test_metrics_and_accuracies_are_those_of_the_stored_logits() -> None:
    fitted, data = fitted_with("multiloss")
    found = evaluate(fitted, data, include_val=True)
    stored = found.predictions
    names = {"split": "parts", "own_head": "own_head", "probe": "probe"}
    for name in ("val", "test"):
        labels, logits = stored[f"{name}_labels"], stored[f"{name}_logits"]
        assert set(found.metrics[name]) == set(METRICS)
        assert found.metrics[name]["accuracy"] == (logits.argmax(1) == labels).mean()
        for m in NAMES:
            for readout, array in names.items():
                expected = (stored[f"{name}_{array}.{m}"].argmax(1) == labels).mean()
                assert found.per_modality[m][readout][name] == expected
    assert found.per_modality["a"]["probe"]["test"] > found.per_modality["c"]["probe"]["test"] + 0.2


@pytest.mark.parametrize("fusion", FUSIONS)
def test_readouts_of_each_fusion(fusion: str) -> None:
    fitted, data = fitted_with("joint", fusion)
    found = evaluate(fitted, data, include_val=False)
    kinds = {"zero_feature", "probe"} | ({"split"} if FUSIONS[fusion].parts_are_exact else set())
    assert {m: set(found.per_modality[m]) for m in NAMES} == dict.fromkeys(NAMES, kinds)
    network = fitted.run.network.eval()
    for m in NAMES:
        with torch.no_grad():
            logits = network(data.test.batch(torch.arange(41), NAMES).inputs, keep=[m]).logits
        expected = float((logits.argmax(1) == data.test.y).double().mean())
        assert found.per_modality[m]["zero_feature"]["test"] == pytest.approx(expected)


def test_probes_learn_from_the_rows_the_method_was_trained_on() -> None:
    fitted, data = fitted_with("joint")
    found = evaluate(fitted, data, include_val=False)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train = read_out(fitted.run, fitted.method, data.train)
    test = read_out(fitted.run, fitted.method, data.test)
    for m in NAMES:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        probe.fit(train.features[m].numpy(), train.y.numpy())
        expected = (probe.predict(test.features[m].numpy()) == test.y.numpy()).mean()
        assert found.per_modality[m]["probe"]["test"] == pytest.approx(expected, abs=1 / 41)


def test_contributions_sum_to_what_the_modalities_add_on_each_split() -> None:
    fitted, data = fitted_with("joint")
    found = evaluate(fitted, data, include_val=True)
    for name in ("val", "test"):
        shapley = found.contributions["shapley"][name]
        assert sum(shapley["values"].values()) == pytest.approx(shapley["all"] - shapley["none"])
        assert shapley["all"] == found.metrics[name]["accuracy"]
        assert shapley["values"]["a"] > shapley["values"]["c"]
        left_out = found.contributions["leave_one_out"][name]
        assert set(left_out) == set(NAMES)
        assert left_out["a"] > left_out["c"]
        losses = found.contributions["permutation"][name]
        assert set(losses) == set(NAMES)
        assert losses["a"] > losses["c"]


def test_predictions_are_named_typed_and_shaped_as_the_format_says() -> None:
    fitted, data = fitted_with("multiloss")
    stored = evaluate(fitted, data, include_val=True).predictions
    names = [f"{kind}.{m}" for kind in ("parts", "own_head", "probe") for m in NAMES]
    per_split = ["ids", "labels", "logits", *names]
    assert set(stored) == {f"{s}_{name}" for s in ("val", "test") for name in per_split}
    for s, rows in (("val", 30), ("test", 41)):
        assert stored[f"{s}_ids"].dtype.kind == "U"
        assert stored[f"{s}_ids"].tolist() == [f"{s}-{i}" for i in range(rows)]
        assert stored[f"{s}_labels"].dtype == np.int64
        for name in per_split[2:]:
            assert stored[f"{s}_{name}"].dtype == np.float32
            assert stored[f"{s}_{name}"].shape == (rows, CLASSES)


def test_stored_predictions_give_the_metrics_again_without_pickle(tmp_path: Path) -> None:
    fitted, data = fitted_with("joint")
    found = evaluate(fitted, data, include_val=False)
    np.savez(tmp_path / "predictions.npz", allow_pickle=False, **found.predictions)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as stored:
        again = all_metrics(stored["test_labels"], stored["test_logits"])
    assert again == found.metrics["test"]


def test_validation_rows_that_were_trained_on_are_left_out() -> None:
    fitted, data = fitted_with("joint")
    found = evaluate(fitted, data, include_val=False)
    assert set(found.metrics) == {"test"}
    assert all(set(by_split) == {"test"} for by_split in found.contributions.values())
    assert all(set(by_split) == {"test"} for by_split in found.per_modality["a"].values())
    assert not [name for name in found.predictions if name.startswith("val")]


def test_majority_has_metrics_and_no_modalities() -> None:
    fitted, data = fitted_with("majority")
    found = evaluate(fitted, data, include_val=True)
    most = np.bincount(data.train.y.numpy()).argmax()
    assert found.metrics["test"]["accuracy"] == (data.test.y.numpy() == most).mean()
    assert found.per_modality == {}
    assert found.contributions == {"shapley": {}, "leave_one_out": {}, "permutation": {}}
    assert set(found.predictions) == {
        f"{s}_{name}" for s in ("val", "test") for name in ("ids", "labels", "logits")
    }


def test_a_unimodal_networks_readouts_agree() -> None:
    fitted, data = fitted_with("unimodal", "sum")
    found: Evaluation = evaluate(fitted, data, include_val=True)
    assert set(found.per_modality) == {"b"}
    for name in ("val", "test"):
        fused = found.metrics[name]["accuracy"]
        assert found.per_modality["b"]["split"][name] == fused
        assert found.per_modality["b"]["zero_feature"][name] == fused
        shapley = found.contributions["shapley"][name]
        assert shapley["values"] == {"b": pytest.approx(fused - shapley["none"])}


def test_rows_of_test_are_not_read_before_they_are_evaluated() -> None:
    class Sealed(Rows):
        def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
            raise AssertionError("the test split was read")

    data = splits()
    rows = torch.arange(len(data.test))
    data.test.inputs = {m: Sealed(s.batch(rows, None)) for m, s in data.test.inputs.items()}
    fitted = fit(Joint(Joint.Config()), data)
    with pytest.raises(AssertionError, match="was read"):
        evaluate(fitted, data, include_val=True)


def test_a_probe_that_did_not_converge_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, data = fitted_with("joint")
    assert evaluate(fitted, data, include_val=False).notes == ()
    monkeypatch.setattr("mmbench.evaluate.probes.ITERATIONS", 1)
    notes = evaluate(fitted, data, include_val=False).notes
    assert len(notes) == 3
    assert "probe of modality 'a' did not converge" in notes[0]


@pytest.mark.parametrize("broken", ["encoders.b", "fusion"])
def test_weights_that_are_not_numbers_fail_the_run_by_name(broken: str) -> None:
    """The last update of a run can do it after the last look at the loss."""
    fitted, data = fitted_with("joint")
    next(fitted.run.network.get_submodule(broken).parameters()).data.fill_(float("nan"))
    what = "features of b" if broken == "encoders.b" else "logits"
    with pytest.raises(
        RunFailed, match=f"{what} are not finite on train .* lower the learning rate"
    ):
        evaluate(fitted, data, include_val=True)


def test_clips_of_many_values_are_read_in_smaller_batches() -> None:
    assert evaluation_batch({"view": Modality("vector", (76,))}) == 512
    clips = {
        "audio": Modality("spectrogram", (1, 257, 188)),
        "visual": Modality("frames", (3, 3, 224, 224)),
    }
    rows = evaluation_batch(clips)
    assert rows == 67
    assert rows * (257 * 188 + 9 * 224 * 224) <= 2**25 < (rows + 1) * (257 * 188 + 9 * 224 * 224)
    assert evaluation_batch({"huge": Modality("vector", (2**30,))}) == 1

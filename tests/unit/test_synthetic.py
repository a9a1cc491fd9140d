"""The generated data know their own information: checked against quadrature and brute force."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

from mmbench.data.gaussians import Evidence, bayes_accuracy, information, offset_for
from mmbench.datasets.synthetic import Generator, Synthetic, WaveMap
from mmbench.errors import RequestError
from mmbench.options import validated


def loaded(**options: Any) -> Synthetic:
    return Synthetic(validated(Synthetic.Config, options, "synthetic"))


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.mark.parametrize("accuracy", [0.55, 0.7, 0.9, 0.99])
def test_two_classes_are_told_apart_with_phi_of_half_the_distance(accuracy: float) -> None:
    offset = offset_for(accuracy, 2)
    distance = math.sqrt(2) * offset
    assert norm.cdf(distance / 2) == pytest.approx(accuracy, abs=1e-9)


@pytest.mark.parametrize("accuracy", [0.55, 0.7, 0.9, 0.99])
def test_information_of_two_classes_is_that_of_one_dimensional_quadrature(accuracy: float) -> None:
    distance = 2 * float(norm.ppf(accuracy))

    # In one dimension: x ~ N(+-d/2, 1), p(y | x) = 1 / (1 + exp(-d x)); I = log 2 - H(y | x).
    def conditional(x: float) -> float:
        p = 1 / (1 + math.exp(-distance * x))
        return float(norm.pdf(x - distance / 2)) * (entropy(p) if 0 < p < 1 else 0.0)

    expected = math.log(2) - quad(conditional, -12, 12, epsabs=1e-12, limit=200)[0]
    assert information(offset_for(accuracy, 2), 2) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("classes", [3, 4, 10])
@pytest.mark.parametrize("hint", [None, 0.6])
def test_information_and_accuracy_agree_with_brute_force_bayes(
    classes: int, hint: float | None
) -> None:
    count, offset = 30_000, 1.3
    rng = np.random.default_rng(5)
    y = rng.integers(classes, size=count)
    x = rng.standard_normal((count, classes)) + offset * np.eye(classes)[y]
    likelihood = np.stack(
        [norm.pdf(x - offset * np.eye(classes)[c]).prod(axis=1) for c in range(classes)], axis=1
    )
    if hint is not None:
        told = np.where(
            rng.random(count) < hint, y, (y + rng.integers(1, classes, count)) % classes
        )
        other = (1 - hint) / (classes - 1)
        likelihood *= np.where(told[:, None] == np.arange(classes), hint, other)
    posterior = likelihood / likelihood.sum(axis=1, keepdims=True)
    gained = math.log(classes) + np.log(posterior[np.arange(count), y])
    error = float(gained.std()) / math.sqrt(count)
    assert information(offset, classes, hint) == pytest.approx(float(gained.mean()), abs=5 * error)
    right = float((posterior.argmax(axis=1) == y).mean())
    assert bayes_accuracy(offset, classes, hint) == pytest.approx(right, abs=5 * 0.5 / count**0.5)


def test_a_hint_alone_is_a_symmetric_channel() -> None:
    expected = math.log(4) - entropy(0.7) - 0.3 * math.log(3)
    assert information(0.0, 4, 0.7) == pytest.approx(expected, abs=1e-9)
    assert bayes_accuracy(0.0, 4, 0.7) == 0.7


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_chance_accuracy_means_no_information(classes: int) -> None:
    assert offset_for(1 / classes, classes) == 0
    assert information(0.0, classes) == pytest.approx(0, abs=1e-10)
    assert bayes_accuracy(0.0, classes) == 1 / classes


@pytest.mark.parametrize("offset", [0.01, 1.0, 8.0])
def test_information_lies_between_zero_and_the_entropy_of_the_label(offset: float) -> None:
    assert 0 < information(offset, 4) <= math.log(4) + 1e-9
    if offset == 8.0:
        assert information(offset, 4) == pytest.approx(math.log(4), abs=1e-6)


def test_the_asked_for_accuracy_is_what_the_integral_gives_back() -> None:
    for classes in (2, 3, 10, 50):
        for accuracy in (1 / classes + 0.01, 0.6, 0.999):
            assert bayes_accuracy(offset_for(accuracy, classes), classes) == pytest.approx(accuracy)


@pytest.mark.parametrize("redundancy", [0.0, 0.4, 0.9])
def test_the_posterior_of_several_modalities_is_that_of_their_joint_density(
    redundancy: float,
) -> None:
    evidence = Evidence((0.8, 1.5, 0.4), 3, redundancy)
    rng = np.random.default_rng(2)
    y = rng.integers(3, size=50)
    z, _ = evidence.sample(y, rng)
    for chosen in ([1], [0, 2], [0, 1, 2]):
        covariance = np.kron(evidence.correlation[np.ix_(chosen, chosen)], np.eye(3))
        density = np.stack(
            [
                multivariate_normal.pdf(
                    z[chosen].transpose(1, 0, 2).reshape(50, -1),
                    np.concatenate([evidence.offsets[m] * np.eye(3)[c] for m in chosen]),
                    covariance,
                )
                for c in range(3)
            ],
            axis=1,
        )
        expected = density / density.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(np.exp(evidence.posterior(z, None, chosen)), expected, atol=1e-9)


def test_sampled_noise_has_the_stated_correlation() -> None:
    evidence = Evidence((0.8, 1.6, 0.0), 2, 0.5)
    z, _ = evidence.sample(np.zeros(40_000, dtype=np.int64), np.random.default_rng(0))
    measured = np.corrcoef(z[:, :, 1])
    expected: list[list[float]] = [[1, 0.25, 0], [0.25, 1, 0], [0, 0, 1]]  # 0.5 * 0.8 / 1.6
    np.testing.assert_allclose(measured, expected, atol=0.02)


@pytest.mark.parametrize("offsets", [(1.2, 1.2), (0.7, 1.6), (0.5, 1.0, 1.8), (1.5, 0.0)])
def test_at_redundancy_one_all_know_what_the_best_knows(offsets: tuple[float, ...]) -> None:
    evidence = Evidence(offsets, 4, redundancy=1.0)
    everyone = list(range(len(offsets)))
    best = max(evidence.information([m]) for m in everyone)
    assert evidence.information(everyone) == pytest.approx(best, abs=1e-8)


def test_less_redundancy_means_more_information_together_and_the_same_alone() -> None:
    sets = [Evidence((0.7, 1.6), 4, r) for r in (0.0, 0.3, 0.6, 1.0)]
    together = [evidence.information([0, 1]) for evidence in sets]
    assert together == sorted(together, reverse=True)
    assert together[0] > together[-1] + 0.05
    assert len({evidence.information([0]) for evidence in sets}) == 1


def test_independent_modalities_are_as_good_as_one_with_the_root_of_the_sum_of_squares() -> None:
    assert Evidence((0.6, 0.8), 4).offset([0, 1]) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [2, 3])
def test_synergy_is_known_to_all_together_and_to_nobody_else(count: int) -> None:
    dataset = loaded(
        modalities=count, classes=3, accuracy=[1 / 3] * count, synergy=0.7, difficulty=[0] * count
    )
    generator = dataset.generator(0)
    truth = generator.truth()
    for m in generator.modalities:
        assert truth[f"information.{m}"] == pytest.approx(0, abs=1e-10)
    assert truth["bayes_accuracy.all"] == pytest.approx(1 / 3 + 0.7 * 2 / 3)
    assert truth["information.all"] > 0.3
    sample = generator.sample(20_000, np.random.default_rng(1))
    read = {m: x[:, 3:6].argmax(axis=1) for m, x in sample.inputs.items()}
    total = sum(read.values()) % 3
    assert (total == sample.y).mean() == pytest.approx(0.8, abs=0.012)
    fewer = [read[m] for m in generator.modalities[1:]]
    seen = np.zeros((3,) * len(fewer) + (3,))
    np.add.at(seen, (*fewer, sample.y), 1)
    np.testing.assert_allclose(seen / len(sample.y), 1 / seen.size, atol=0.012)


@pytest.mark.parametrize("difficulty", [0, 0.5, 1, 4.3])
@pytest.mark.parametrize("dimension", [2, 7, 16])
def test_the_map_gives_its_latents_back(dimension: int, difficulty: float) -> None:
    waves = WaveMap(dimension, difficulty, np.random.default_rng(3))
    latents = np.random.default_rng(4).standard_normal((200, dimension)) * 3
    inputs = waves.forward(latents)
    np.testing.assert_allclose(waves.inverse(inputs), latents, atol=1e-8)
    assert (difficulty == 0) == np.array_equal(inputs, latents)


def exact_accuracy_and_information(generator: Generator, m: str) -> tuple[float, float]:
    """Of 20,000 rows, by the exact posterior of what the inverse map makes of the inputs."""
    sample = generator.sample(20_000, np.random.default_rng(6))
    posterior = generator.posterior({m: generator.maps[m].inverse(sample.inputs[m])}, [m])
    told = posterior[np.arange(len(sample.y)), sample.y]
    classes = posterior.shape[1]
    right = float((posterior.argmax(axis=1) == sample.y).mean())
    return right, math.log(classes) + float(np.log(told).mean())


@pytest.mark.parametrize("difficulty", [0.0, 1.5, 4.0])
def test_difficulty_leaves_information_and_bayes_accuracy_as_they_are(difficulty: float) -> None:
    generator = loaded(accuracy=[0.8, 0.5], difficulty=[difficulty, 0]).generator(0)
    right, gained = exact_accuracy_and_information(generator, "x1")
    assert right == pytest.approx(0.8, abs=0.012)
    assert gained == pytest.approx(generator.truth()["information.x1"], abs=0.025)
    assert generator.truth() == loaded(accuracy=[0.8, 0.5]).generator(0).truth()


@pytest.mark.parametrize("options", [{}, {"synergy": 0.5}, {"redundancy": 0.5, "modalities": 3}])
def test_the_exact_posterior_reaches_the_stated_bayes_accuracies(options: dict[str, Any]) -> None:
    generator = loaded(**options).generator(0)
    sample = generator.sample(20_000, np.random.default_rng(7))
    truth = generator.truth()
    sets: dict[str, list[str] | None] = {m: [m] for m in generator.modalities}
    for name, chosen in {**sets, "all": None}.items():
        posterior = generator.posterior(sample.latents, chosen)
        told = posterior[np.arange(20_000), sample.y]
        right = (posterior.argmax(axis=1) == sample.y).mean()
        gained = math.log(4) + np.log(told).mean()
        assert right == pytest.approx(truth[f"bayes_accuracy.{name}"], abs=0.012)
        assert gained == pytest.approx(truth[f"information.{name}"], abs=0.03)


def test_a_difficult_map_slows_an_mlp_and_rows_make_up_for_it() -> None:
    def test_accuracy(difficulty: float, rows: int, epochs: int) -> float:
        splits = loaded(modalities=1, accuracy=[0.85], difficulty=[difficulty], train=rows).load(
            "default", 0
        )
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(16, 128), torch.nn.ReLU(), torch.nn.Linear(128, 4)
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        every = torch.arange(rows)
        for _ in range(epochs):
            for batch in torch.split(every, 100):
                x = splits.train.inputs["x1"].batch(batch, None)
                loss = torch.nn.functional.cross_entropy(net(x), splits.train.y[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        everything = splits.test.inputs["x1"].batch(torch.arange(len(splits.test)), None)
        return float((net(everything).argmax(dim=1) == splits.test.y).double().mean())

    easy, hard = test_accuracy(0, 1000, 5), test_accuracy(4, 1000, 5)
    assert easy > 0.78
    assert hard < easy - 0.08
    assert test_accuracy(4, 6000, 5) > hard + 0.02


def test_the_splits_carry_the_truth_and_check_out() -> None:
    splits = loaded(modalities=3, accuracy=[0.9, 0.6, 0.25]).load("default", 3)
    splits.check("synthetic")
    assert [len(part) for part in splits.named().values()] == [1000, 500, 2000]
    assert list(splits.modalities) == ["x1", "x2", "x3"]
    assert splits.modalities["x2"].shape == (16,)
    assert splits.truth["label_entropy"] == pytest.approx(math.log(4))
    assert splits.truth["bayes_accuracy.x1"] == pytest.approx(0.9)
    assert splits.truth["information.x3"] == pytest.approx(0, abs=1e-10)
    assert splits.truth["information.all"] > splits.truth["information.x1"]
    x = splits.train.inputs["x1"].batch(torch.arange(1000), None)
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(16), atol=1e-5, rtol=0)


def test_a_seed_decides_every_row() -> None:
    one, again, other = (loaded().load("default", seed).fingerprints() for seed in (1, 1, 2))
    assert one == again
    assert one["data"] != other["data"]
    fixed = [loaded(generator_seed=9).load("default", seed).fingerprints() for seed in (1, 2)]
    assert fixed[0] == fixed[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy": [0.8]}, "accuracy has 1 values for 2 modalities"),
        ({"accuracy": [0.8, 0.1]}, "accuracy 0.1 is not between chance, 0.25, and 1"),
        ({"accuracy": [0.8, 1.0]}, "accuracy 1.0 is not between"),
        ({"difficulty": [0, -1]}, "difficulty -1.0 is not between"),
        ({"modalities": 1, "synergy": 0.5}, "synergy needs at least 2 modalities"),
        ({"classes": 10, "synergy": 0.5}, "dimension 16 is too small; give at least 20"),
        ({"redundancy": 1.5}, "redundancy"),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match="synthetic") as raised:
        loaded(**options)
    assert message in str(raised.value)


def test_any_number_of_modalities_has_default_dials() -> None:
    for count in (1, 2, 5):
        truth = loaded(modalities=count).generator(0).truth()
        assert truth["bayes_accuracy.x1"] == pytest.approx(0.85)
        assert truth["bayes_accuracy.all"] >= truth["bayes_accuracy.x1"] - 1e-9


# -- what each modality alone knows ----------------------------------------------------------------


@pytest.mark.parametrize("redundancy", [0.0, 0.6])
def test_own_evidence_is_what_nothing_else_tells(redundancy: float) -> None:
    """Its variance given the others is the inverse of the diagonal of the inverse correlation; it
    is uncorrelated with their evidence and with the class."""
    evidence = Evidence((0.8, 1.5, 2.0), 3, redundancy)
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=40_000)
    z, _ = evidence.sample(y, rng)
    own = evidence.own_noise(z, y)
    expected = 1 / np.diag(np.linalg.inv(evidence.correlation))
    np.testing.assert_allclose(own.var(axis=(1, 2)), expected, rtol=0.03)
    for i in range(3):
        told = [own[j, :, 0] for j in [i]] + [z[j, :, 0] for j in range(3) if j != i] + [y == 0]
        assert np.abs(np.corrcoef(np.array(told, float))[0, 1:]).max() < 0.03
        assert np.corrcoef(own[i, :, 0], z[i, :, 0])[0, 1] > 0.5


def test_what_a_modality_alone_knows_goes_along_with_the_rows() -> None:
    splits = loaded(modalities=3, synergy=0.5, train=60, val=30, test=40).load("default", 0)
    splits.check("synthetic")
    generator = loaded(modalities=3, synergy=0.5).generator(0)
    for part in splits.named().values():
        assert {m: [*named] for m, named in part.labels.items()} == {
            m: ["evidence", "symbol"] for m in generator.modalities
        }
        assert part.labels["x2"]["evidence"].shape == (len(part), 4)
        symbols = np.array([part.labels[m]["symbol"].astype(int) for m in generator.modalities])
        assert set(symbols.ravel()) <= {0, 1, 2, 3}
    sample = generator.sample(200, np.random.default_rng(0))
    for m in generator.modalities:
        shown = sample.latents[m][:, 4:8].argmax(axis=1)
        assert sample.labels[m]["symbol"].tolist() == [str(i) for i in shown]


def test_a_copy_knows_nothing_of_its_own() -> None:
    copies = loaded(accuracy=[0.7, 0.7], redundancy=1.0, train=40, val=20, test=20)
    assert copies.load("default", 0).train.labels == {"x1": {}, "x2": {}}
    alone = loaded(modalities=1, accuracy=[0.7], train=40, val=20, test=20).load("default", 0)
    assert alone.train.labels["x1"]["evidence"].std() == pytest.approx(1, abs=0.25)

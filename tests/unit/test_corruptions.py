"""What corruptions do to the inputs, against independent references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mmbench.data.dataset import Joined, Modality, Rows, Source, Split
from mmbench.errors import RequestError
from mmbench.evaluate.corruptions import (
    CORRUPTIONS,
    corrupted,
    corruptions_of,
    measured_for,
)

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def split_of(source: Source, name: str = "test") -> Split:
    count = len(source)
    ids = np.array([f"{name}-{i}" for i in range(count)])
    return Split({"m": source}, torch.zeros(count, dtype=torch.int64), ids)


def corrupt(
    corruption: str,
    level: float,
    test: Source | Split,
    modality: Modality,
    train: Source | None = None,
    rows: list[int] | None = None,
    seed: int = 0,
) -> Tensor:
    """Return rows (default all) of a modality under a corruption."""
    split = test if isinstance(test, Split) else split_of(test)
    known = CORRUPTIONS[corruption]
    measured = measured_for(known, modality, train or split.inputs["m"], CPU)
    found = corrupted(split, "m", modality, known, level, measured, seed)
    chosen = torch.arange(len(split)) if rows is None else torch.tensor(rows)
    return found.inputs["m"].batch(chosen, None)


def decibels(power: Any, noise: Any) -> Any:
    return 10 * np.log10(power / noise)


# -- noise -----------------------------------------------------------------------------------------


class FrontEnd:
    """A front end that keeps what it is given, and gives something else: energies of windows."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []

    def __call__(self, x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        self.given.append(x)
        energies: Tensor = x.float().view(len(x), 40, -1).square().mean(dim=2).log1p()
        return energies[:, None, None]


WAVES = (3000 * np.sin(np.arange(8000) / 7) * RNG.uniform(0, 2, (60, 1))).astype(np.int16)
SOUND = Modality("spectrogram", (1, 1, 40), stored="waveform")


@pytest.mark.parametrize("level", [20.0, 0.0, -10.0])
def test_a_waveform_meets_the_noise_before_the_front_end_at_the_ratio_asked_for(
    level: float,
) -> None:
    front_end = FrontEnd()
    train, test = Rows(WAVES[:40], [front_end]), Rows(WAVES[40:], [front_end])
    found = corrupt("noise", level, test, SOUND, train)
    noisy = front_end.given.pop()
    noise = noisy.double().numpy() - WAVES[40:]
    power = (WAVES[:40].astype(np.float64) ** 2).mean()
    # 160,000 draws: the deviation of the measured power is 0.35 %, 0.015 dB.
    assert decibels(power, (noise**2).mean()) == pytest.approx(level, abs=0.08)
    assert abs(noise.mean()) < 4 * noise.std() / np.sqrt(noise.size)
    torch.testing.assert_close(found, front_end(noisy, torch.arange(20), None))
    assert found.shape == (20, 1, 1, 40)


def test_noise_of_a_vector_has_the_ratio_in_each_feature_whatever_its_unit() -> None:
    train = RNG.normal([100.0, 0.0, -3.0], [50.0, 0.01, 0.0], (500, 3)).astype(np.float32)
    test = RNG.normal(size=(4000, 3)).astype(np.float32)
    noisy = corrupt("noise", 5, Rows(test), Modality("vector", (3,)), Rows(train))
    noise = noisy.double().numpy() - test
    np.testing.assert_allclose(
        decibels(train[:, :2].astype(float).var(axis=0), noise[:, :2].var(axis=0)), 5, atol=0.4
    )
    assert np.abs(noise[:, 2]).max() == 0, "a feature without variance has no power"


def test_noise_of_a_sequence_leaves_padding_alone() -> None:
    x = RNG.normal(3, 2, (300, 9, 2)).astype(np.float32)
    x[:, 6:] = 0
    noisy = corrupt("noise", 0, Rows(x), Modality("sequence", (9, 2)))
    assert not noisy[:, 6:].any()
    noise = noisy[:, :6].double().numpy() - x[:, :6]
    np.testing.assert_allclose(
        decibels(x[:, :6].astype(float).var(axis=(0, 1)), noise.var(axis=(0, 1))), 0, atol=0.3
    )


def test_noise_of_a_picture_has_the_power_of_its_channel() -> None:
    x = RNG.normal(0, [[[1.0]], [[9.0]]], (50, 2, 12, 12)).astype(np.float32) + 40
    noise = corrupt("noise", 0, Rows(x), Modality("image", (2, 12, 12))).double().numpy() - x
    np.testing.assert_allclose(noise.std(axis=(0, 2, 3)), [1, 9], rtol=0.05)


def test_rows_of_train_and_validation_together_are_measured_and_reached_alike() -> None:
    front_end = FrontEnd()
    apart = Joined(Rows(WAVES[:10], [front_end]), Rows(WAVES[10:30], [front_end]))
    whole = Rows(WAVES[:30], [front_end])
    ids = split_of(whole)
    rows = [29, 0, 12]
    for train in (apart, whole):
        split = Split({"m": train}, ids.y, ids.ids)
        corrupt("noise", 0, split, SOUND, rows=rows)
    of_first, of_second, of_whole = front_end.given
    assert (len(of_first), len(of_second)) == (1, 2)
    torch.testing.assert_close(torch.cat([of_first, of_second])[[1, 0, 2]], of_whole)


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 24, 40), (1, 9, 30)])
@pytest.mark.parametrize("level", [0.02, 0.1, 0.33])
def test_blur_is_the_gaussian_filter_of_scipy(shape: tuple[int, ...], level: float) -> None:
    x = RNG.normal(size=(4, *shape)).astype(np.float32)
    deviation = level * min(shape[1:])
    radius = min(int(np.ceil(3 * deviation)), min(shape[1:]) - 1)
    expected = gaussian_filter(
        x.astype(np.float64), deviation, mode="mirror", radius=radius, axes=(2, 3)
    )
    blurred = corrupt("blur", level, Rows(x), Modality("image", shape))
    np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-5)


def test_each_frame_is_blurred_by_itself() -> None:
    x = RNG.normal(size=(3, 4, 2, 16, 12)).astype(np.float32)
    frames = corrupt("blur", 0.1, Rows(x), Modality("frames", x.shape[1:]))
    one_by_one = corrupt(
        "blur", 0.1, Rows(x.reshape(12, 2, 16, 12)), Modality("image", (2, 16, 12))
    )
    torch.testing.assert_close(frames.flatten(0, 1), one_by_one)


@pytest.mark.parametrize("level", [0.1, 0.3, 0.5, 1.0])
def test_occlusion_covers_a_rectangle_of_that_share_with_the_training_mean(level: float) -> None:
    height, width = 30, 50
    x = RNG.normal(size=(40, 4, 2, height, width)).astype(np.float32)
    train = RNG.normal([[[5.0]], [[-7.0]]], 1, (20, 4, 2, height, width)).astype(np.float32)
    found = corrupt(
        "occlusion", level, Rows(x), Modality("frames", x.shape[1:]), Rows(train)
    ).numpy()
    covered = found != x
    places = set()
    for clip, cover in zip(found, covered, strict=True):
        assert (cover == cover[0, 0]).all(), "the same place in every frame and channel"
        rows, columns = np.nonzero(cover[0, 0])
        top, left = rows.min(), columns.min()
        high, wide = rows.max() - top + 1, columns.max() - left + 1
        assert len(rows) == high * wide, "a whole rectangle"
        assert high * wide / (height * width) == pytest.approx(level, abs=0.02)
        assert high / wide == pytest.approx(height / width, rel=0.15), "whole pixels apart"
        for channel in range(2):
            mean = train[:, :, channel].mean(dtype=np.float64)
            np.testing.assert_allclose(clip[0, channel][cover[0, 0]], mean, rtol=1e-5)
        places.add((top, left))
    assert len(places) > 20 or level == 1


# -- sequences -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["tokens", "sequence"])
def test_drop_makes_padding_of_that_share_of_the_steps(kind: str, level: float) -> None:
    lengths = RNG.integers(1, 21, 50)
    x = RNG.integers(1, 99, (50, 20))
    x[np.arange(20) >= lengths[:, None]] = 0
    if kind == "tokens":
        modality = Modality("tokens", (20,), vocabulary=99)
    else:
        x = np.stack([x, -x], axis=2).astype(np.float32)
        modality = Modality("sequence", (20, 2))
    found = corrupt("drop", level, Rows(x), modality).numpy()
    assert found.dtype == x.dtype
    for before, after, length in zip(x, found, lengths, strict=True):
        gone = (before != after).reshape(20, -1).any(axis=1)
        assert gone.sum() == round(level * length)
        assert (after[gone] == 0).all()
        np.testing.assert_array_equal(after[~gone], before[~gone])


# -- what decides the draws ------------------------------------------------------------------------

KINDS: dict[str, tuple[np.ndarray, Modality]] = {
    "noise": (RNG.normal(size=(30, 8)).astype(np.float32), Modality("vector", (8,))),
    "occlusion": (
        RNG.normal(size=(30, 1, 40, 40)).astype(np.float32),
        Modality("image", (1, 40, 40)),
    ),
    "drop": (RNG.integers(1, 9, (30, 16)), Modality("tokens", (16,), vocabulary=9)),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_row_is_corrupted_alike_in_any_batch_and_unlike_any_other(name: str) -> None:
    array, modality = KINDS[name]
    same = np.broadcast_to(array[:1], array.shape).copy()  # rows differ in their ids alone
    train, rows = Rows(array), Rows(same)
    whole = corrupt(name, 0.5, rows, modality, train)
    some = corrupt(name, 0.5, rows, modality, train, rows=[7, 3])
    torch.testing.assert_close(some, whole[[7, 3]], rtol=0, atol=0)
    assert len({tuple(row.flatten().tolist()) for row in whole}) > 25
    for other in (
        corrupt(name, 0.5, rows, modality, train, seed=1),
        corrupt(name, 0.4999, rows, modality, train),
        corrupt(name, 0.5, split_of(rows, "val"), modality, train),
    ):
        assert not torch.equal(other, whole)
    moved = split_of(rows)
    moved.ids = moved.ids[::-1]
    torch.testing.assert_close(corrupt(name, 0.5, moved, modality, train), whole.flip(0))


def test_only_the_one_modality_is_touched() -> None:
    split = split_of(Rows(np.ones((5, 3))))
    split.inputs = {**split.inputs, "other": Rows(np.ones((5, 2)))}
    found = corrupted(
        split,
        "m",
        Modality("vector", (3,)),
        CORRUPTIONS["noise"],
        0,
        measured_for(CORRUPTIONS["noise"], Modality("vector", (3,)), split.inputs["m"], CPU),
        0,
    )
    assert found.inputs["other"] is split.inputs["other"]
    assert found.y is split.y
    assert found.ids is split.ids
    assert (found.inputs["m"].batch(torch.arange(5), None) == 1).all(), "no power, no noise"


# -- what is asked for -----------------------------------------------------------------------------


def test_each_kind_has_the_corruptions_that_make_sense_for_it() -> None:
    shapes = {
        "vector": (3,),
        "image": (1, 4, 4),
        "frames": (2, 1, 4, 4),
        "waveform": (9,),
        "spectrogram": (1, 4, 4),
        "sequence": (3, 2),
        "tokens": (3,),
    }
    found = {kind: corruptions_of(Modality(kind, shape)) for kind, shape in shapes.items()}  # type: ignore[arg-type]
    pictures = ["noise", "blur", "occlusion"]
    assert found == {
        "vector": ["noise"],
        "waveform": ["noise"],
        "image": pictures,
        "frames": pictures,
        "spectrogram": pictures,
        "sequence": ["noise", "drop"],
        "tokens": ["drop"],
    }


def test_levels_are_put_in_order_of_severity() -> None:
    assert CORRUPTIONS["noise"].ordered([-5, 10, 0]) == (10, 0, -5)
    assert CORRUPTIONS["drop"].ordered([0.9, 0.2]) == (0.2, 0.9)
    for corruption in CORRUPTIONS.values():
        assert corruption.ordered(corruption.levels) == corruption.levels


@pytest.mark.parametrize(
    ("name", "levels", "words"),
    [
        ("occlusion", [1.5], "not in"),
        ("drop", [0.0], "not in"),
        ("noise", [float("nan")], "not in"),
        ("noise", [float("inf")], "not in"),
        ("blur", [0.1, 0.1], "each once"),
        ("blur", [], "one or more levels"),
    ],
)
def test_levels_that_mean_nothing_are_refused(name: str, levels: list[float], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        CORRUPTIONS[name].ordered(levels)


def test_a_source_without_a_way_to_its_waveforms_is_refused() -> None:
    class Closed:
        def __len__(self) -> int:
            return 2

        def to(self, device: torch.device) -> Closed:
            return self

        def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
            return torch.zeros(len(rows), 1, 1, 40)

        def fingerprint(self) -> str:
            return ""

    with pytest.raises(RequestError, match="Closed gives no way to what it stores"):
        corrupt("noise", 0, Closed(), SOUND)
    assert corrupt("blur", 0.1, Closed(), SOUND).shape == (2, 1, 1, 40)

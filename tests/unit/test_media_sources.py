"""Batches out of a cache: which frames, of which clips, and sound as stored."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mmbench.data.dataset import Modality, Source, Split, Splits, joined
from mmbench.data.frontends import build_front_end
from mmbench.data.frontends.source import Spectrograms
from mmbench.data.media.cache import Cache, open_cache
from mmbench.data.media.decode import audio
from mmbench.data.media.manifest import Clip
from mmbench.data.media.prepare import prepare
from mmbench.data.media.sources import FrameSource, WaveSource
from mmbench.data.visual import TestViews as WholeFrames
from mmbench.data.visual import TrainViews as RandomViews
from mmbench.testing.corpora import write_video
from tests.unit.media_clips import RECIPE, grey, noise, quiet

SECONDS = {"a": 0.4, "b": 1.0, "c": 1.7, "d": 2.3}
SHAPES = {"a": (48, 64), "b": (48, 64), "c": (64, 48), "d": (32, 32)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name, seconds in SECONDS.items():
        frames = grey(round(10 * seconds), *SHAPES[name])
        write_video(folder / f"{name}.mp4", frames, 10, noise(seconds, 16_000), 16_000)
    return folder


@pytest.fixture(scope="module")
def cache(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    clips = [Clip(name, "x", "g", f"{name}.mp4", f"{name}.mp4") for name in SECONDS]
    prepare("toy", clips, source, RECIPE, folder, quiet, workers=1)
    return open_cache("toy", folder)


def every(cache: Cache) -> np.ndarray:
    return np.arange(len(cache.manifest.rows))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_frames_kept_are_what_the_rest_of_these_tests_needs(cache: Cache) -> None:
    assert [row.frames for row in cache.manifest.rows] == [2, 4, 7, 10]
    assert [(row.height, row.width) for row in cache.manifest.rows] == [
        (24, 32),
        (24, 32),
        (32, 24),
        (24, 24),
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_evaluation_shows_the_middle_of_each_segment(cache: Cache, count: int) -> None:
    source = FrameSource(cache, every(cache), count)
    chosen = source.choose(torch.arange(4), None)
    for row, numbers in zip(cache.manifest.rows, chosen.tolist(), strict=True):
        for part, number in enumerate(numbers):
            first, end = part * row.frames // count, (part + 1) * row.frames // count
            middle = first + max(end - first, 1) // 2
            assert number == middle
            assert 0 <= number < row.frames


def test_training_shows_every_frame_of_a_segment_equally_often(cache: Cache) -> None:
    source = FrameSource(cache, every(cache), 3)
    draws = torch.cat([source.choose(torch.full((500,), 3), generator(s)) for s in range(6)])
    for part, allowed in enumerate(([0, 1, 2], [3, 4, 5], [6, 7, 8, 9])):
        found = Counter(draws[:, part].tolist())
        assert sorted(found) == allowed
        expected = len(draws) / len(allowed)
        # Five standard deviations of a binomial.
        slack = 5 * (expected * (1 - 1 / len(allowed))) ** 0.5
        assert all(abs(times - expected) < slack for times in found.values())
    assert len({tuple(row) for row in draws.tolist()}) == 3 * 3 * 4  # drawn apart


def test_a_clip_with_fewer_frames_shows_some_again(cache: Cache) -> None:
    source = FrameSource(cache, every(cache), 5)
    for augment in (None, generator()):
        chosen = source.choose(torch.zeros(50, dtype=torch.int64), augment)
        assert set(chosen.flatten().tolist()) == {0, 1}
        assert (chosen.diff(dim=1) >= 0).all()


def test_the_policy_first_shows_the_first_frames_in_training_too(cache: Cache) -> None:
    source = FrameSource(cache, every(cache), 3, "first")
    expected = [[0, 1, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    assert source.choose(torch.arange(4), None).tolist() == expected
    assert source.choose(torch.arange(4), generator()).tolist() == expected


def test_a_batch_holds_the_views_of_the_chosen_frames(cache: Cache) -> None:
    source = FrameSource(cache, every(cache), 2, size=32)
    rows = torch.tensor([3, 1, 2])
    batch = source.batch(rows, None)
    assert batch.shape == (3, *source.modality().shape) == (3, 2, 3, 32, 32)
    views = WholeFrames(32)
    for x, place, numbers in zip(batch, rows.tolist(), source.choose(rows, None), strict=True):
        kept = cache.frames(cache.manifest.rows[place])[numbers.numpy()]
        torch.testing.assert_close(x, views(torch.from_numpy(kept)[None])[0])


def test_training_views_differ_between_frames_and_repeat_with_the_generator(cache: Cache) -> None:
    source = FrameSource(cache, every(cache), 3, size=32)
    rows = torch.tensor([0, 2, 2])
    first, again, other = (source.batch(rows, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[1], first[2])


def test_clips_of_one_shape_are_viewed_as_without_padding(cache: Cache) -> None:
    source = FrameSource(cache, every(cache), 1, "first", size=32)
    rows = torch.tensor([0, 1])
    stored = torch.stack([torch.tensor(cache.frames(r)[:1]) for r in cache.manifest.rows[:2]])
    torch.testing.assert_close(
        source.batch(rows, generator(3)), RandomViews(32)(stored, generator(3))
    )


def test_sound_is_what_was_decoded_followed_by_zeros(cache: Cache, source: Path) -> None:
    waves = WaveSource(cache, np.array([2, 0]))
    assert (waves.rate, waves.samples) == (8000, 24_000)
    batch = waves.batch(torch.tensor([1, 0]), None)
    assert batch.shape == (2, 24_000)
    assert batch.dtype == torch.int16
    for x, name, length in zip(batch, ("a", "c"), waves.lengths.flip(0).tolist(), strict=True):
        expected = audio(source / f"{name}.mp4", 8000).samples
        assert length == len(expected)
        assert np.array_equal(x[:length].numpy(), expected)
        assert not x[length:].any()


def test_a_spectrogram_of_a_clip_does_not_depend_on_the_batch(cache: Cache) -> None:
    for name in ("ogm_stft", "kaldi_fbank", "pmr_spec"):
        spectrograms = Spectrograms(WaveSource(cache, every(cache)), build_front_end(name, 8000))
        batch = spectrograms.batch(torch.arange(4), None)
        assert batch.shape[1:] == spectrograms.modality().shape
        assert batch.isfinite().all()
        alone = spectrograms.batch(torch.tensor([2]), None)
        torch.testing.assert_close(batch[2:3], alone, atol=1e-4, rtol=1e-4)


def test_fingerprints_tell_settings_and_rows_apart(cache: Cache) -> None:
    rows = every(cache)
    sources: list[Source] = [
        FrameSource(cache, rows),
        FrameSource(cache, rows[:2]),
        FrameSource(cache, rows, frames=2),
        FrameSource(cache, rows, policy="first"),
        FrameSource(cache, rows, size=112),
        WaveSource(cache, rows),
    ]
    assert len({source.fingerprint() for source in sources}) == len(sources)
    assert FrameSource(cache, rows).fingerprint() == sources[0].fingerprint()


def test_sources_go_through_what_is_done_with_splits(cache: Cache) -> None:
    def split(places: list[int]) -> Split:
        rows = np.array(places)
        waves = Spectrograms(WaveSource(cache, rows), build_front_end("ogm_stft", 8000))
        inputs: dict[str, Source] = {"audio": waves, "visual": FrameSource(cache, rows, size=32)}
        return Split(inputs, torch.zeros(len(rows), dtype=torch.int64), rows.astype(str))

    train, val, test = split([0, 3]), split([1]), split([2])
    kinds = {
        "audio": Modality("spectrogram", (1, 257, 188)),
        "visual": Modality("frames", (3, 3, 32, 32)),
    }
    Splits(train, val, test, kinds, ("x",)).check("toy")
    both = joined(train, val).to(torch.device("cpu"))
    batch = both.batch(torch.tensor([2, 0]), ["audio", "visual"])
    for m in ("audio", "visual"):
        assert torch.equal(batch.inputs[m][0], val.inputs[m].batch(torch.tensor([0]), None)[0])

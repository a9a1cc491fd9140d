"""Stored waveforms of any rate and length, read through a front end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor

from mmbench.data.dataset import Rows, layered
from mmbench.data.frontends import KaldiFbank, OgmStft, OgmStftVgg
from mmbench.data.frontends.resampling import Resampler
from mmbench.data.frontends.source import Spectrograms
from mmbench.errors import DataError
from mmbench.seeds import torch_stream


@dataclass
class Stored:
    """Waveforms held in memory."""

    rows: Rows
    lengths: Tensor
    rate: int = 16000

    @property
    def samples(self) -> int:
        return self.rows.tensor.shape[1]

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> Stored:
        return Stored(self.rows.to(device), self.lengths.to(device), self.rate)

    def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        return self.rows.batch(rows, augment)

    def fingerprint(self) -> str:
        return self.rows.fingerprint()


@pytest.fixture
def stored() -> Stored:
    rng = np.random.default_rng(0)
    samples = rng.integers(-9000, 9000, (4, 40_000)).astype(np.int16)
    lengths = np.array([40_000, 20_000, 17_001, 33_333])
    for row, end in zip(samples, lengths, strict=True):
        row[end:] = 0
    return Stored(Rows(samples), torch.from_numpy(lengths))


@pytest.mark.parametrize(
    ("source", "target"), [(16000, 22050), (44100, 16000), (48000, 16000), (8000, 16000)]
)
def test_a_tone_is_the_same_tone_at_the_other_rate(source: int, target: int) -> None:
    frequency = 0.35 * min(source, target)
    tone = np.sin(2 * np.pi * frequency * np.arange(source) / source)[None]
    resampler = Resampler(source, target)
    result, lengths = resampler(torch.from_numpy(tone).float(), torch.tensor([source]))
    assert result.shape == (1, target)
    assert lengths.tolist() == [resampler.samples(source)] == [target]
    expected = np.sin(2 * np.pi * frequency * np.arange(target) / target)
    inner = slice(500, -500)  # the tone starts and ends at once
    np.testing.assert_allclose(result[0, inner].numpy(), expected[inner], atol=1e-4)
    by_scipy = signal.resample_poly(tone[0], target, source)
    # Its shorter filter lets the level of this tone ripple by a thousandth.
    np.testing.assert_allclose(result[0, inner].numpy(), by_scipy[inner], atol=2e-3)


def test_what_the_lower_rate_cannot_hold_is_taken_away() -> None:
    tone = np.sin(2 * np.pi * 9000 * np.arange(44100) / 44100)[None]
    result, _ = Resampler(44100, 16000)(torch.from_numpy(tone).float(), torch.tensor([44100]))
    assert float(result[0, 500:-500].abs().max()) < 1e-4


def test_noise_within_the_band_is_resampled_as_by_scipy() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, 44100)
    low = signal.sosfiltfilt(signal.butter(12, 5000, fs=44100, output="sos"), noise)
    result, _ = Resampler(44100, 16000)(
        torch.from_numpy(low.copy()).float().unsqueeze(0), torch.tensor([44100])
    )
    expected = signal.resample_poly(low, 160, 441)
    error = np.sqrt(np.mean((result[0].numpy() - expected) ** 2) / np.mean(expected**2))
    assert error < 1e-3


def test_a_short_clip_is_resampled_as_it_would_be_alone() -> None:
    clips = torch.from_numpy(np.random.default_rng(1).normal(0, 0.2, (2, 5000))).float()
    clips[1, 3001:] = 0
    resampler = Resampler(16000, 22050)
    together, lengths = resampler(clips, torch.tensor([5000, 3001]))
    alone, (end,) = resampler(clips[1:, :3001], torch.tensor([3001]))
    assert lengths.tolist() == [6891, 4136] == [resampler.samples(5000), int(end)]
    torch.testing.assert_close(together[1, :4136], alone[0], atol=1e-6, rtol=0)
    assert not together[1, 4136:].any()


def test_one_rate_changes_nothing() -> None:
    clip = torch.rand(2, 100)
    result, lengths = Resampler(16000, 16000)(clip, torch.tensor([100, 50]))
    assert result is clip
    assert lengths.tolist() == [100, 50]


def test_stored_sound_comes_out_as_spectrograms_of_its_clips(stored: Stored) -> None:
    source = Spectrograms(stored, OgmStft())
    assert source.modality().shape == (1, 257, 188)
    assert source.modality().stored == "waveform"
    result = source.batch(torch.tensor([2, 0]), None)
    assert tuple(result.shape) == (2, *source.modality().shape)
    clip = stored.rows.tensor[2:3, :17_001].float() / 32768
    resampled, _ = Resampler(16000, 22050)(clip, torch.tensor([17_001]))
    # Amplitudes, as there is next to no sound between 8 and 11 kHz to take a logarithm of.
    torch.testing.assert_close(result[:1].exp(), OgmStft()(resampled).exp(), atol=1e-4, rtol=1e-4)


def test_rows_and_draws_reach_the_front_end(stored: Stored) -> None:
    source = Spectrograms(stored, OgmStftVgg(draw_at_evaluation=True))
    rows = torch.tensor([1, 3])
    both = source.batch(rows, None)
    assert torch.equal(both[1:], source.batch(rows[1:], None))
    drawn = source.batch(rows, torch_stream(0))
    assert torch.equal(drawn, source.batch(rows, torch_stream(0)))
    assert not torch.equal(drawn, source.batch(rows, torch_stream(1)))


def test_what_comes_first_changes_the_waveform(stored: Stored) -> None:
    def silenced(x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        return x * (rows != 0).unsqueeze(1)

    source = Spectrograms(stored, KaldiFbank(16000))
    assert layered(source).stored() is stored
    changed = layered(source).with_first(silenced).batch(torch.arange(4), None)
    plain = source.batch(torch.arange(4), None)
    assert torch.equal(changed[1:], plain[1:])
    assert not torch.equal(changed[0], plain[0])


def test_the_fingerprint_names_sound_rate_and_front_end(stored: Stored) -> None:
    other = Stored(Rows(stored.rows.tensor + 1), stored.lengths)
    sources = [
        Spectrograms(stored, OgmStft()),
        Spectrograms(stored, OgmStft(seconds=20)),
        Spectrograms(Stored(stored.rows, stored.lengths, 44100), OgmStft()),
        Spectrograms(other, OgmStft()),
    ]
    assert len({source.fingerprint() for source in sources}) == 4
    moved = sources[0].to(torch.device("cpu"))
    assert moved.fingerprint() == sources[0].fingerprint()
    assert len(moved) == 4


def test_a_clip_without_sound_is_refused(stored: Stored) -> None:
    empty = Stored(stored.rows, torch.tensor([5, 0, 7, 0]))
    with pytest.raises(DataError, match="2 clips holds no samples, the first is row 1"):
        Spectrograms(empty, OgmStft())

"""Front ends against a reference written in numpy alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from mmbench.data.frontends import FRONT_ENDS, LogMel, as_waveform

RATE, BANDS, WINDOW, HOP, FLOOR = 8000, 32, 256, 128, 1e-6


def reference_log_mel(waveform: np.ndarray) -> np.ndarray:
    """Return ``(bands, frames)`` by a loop over frames, an explicit Fourier matrix, and triangles
    from the definition of the HTK mel scale."""
    padded = np.pad(waveform.astype(np.float64), WINDOW // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    bins = np.arange(WINDOW // 2 + 1)
    fourier = np.exp(-2j * np.pi * np.outer(bins, np.arange(WINDOW)) / WINDOW)
    frequency = bins * RATE / WINDOW
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    frames = []
    for start in range(0, len(waveform) + 1, HOP):
        power = np.abs(fourier @ (window * padded[start : start + WINDOW])) ** 2
        bands = []
        for low, middle, high in zip(corners, corners[1:], corners[2:], strict=False):
            rise, fall = (frequency - low) / (middle - low), (high - frequency) / (high - middle)
            bands.append(np.maximum(0, np.minimum(rise, fall)) @ power)
        frames.append(np.log(np.array(bands) + FLOOR))
    return np.stack(frames, axis=1)


@pytest.fixture
def front_end() -> LogMel:
    return FRONT_ENDS["log_mel"](RATE, BANDS, WINDOW, HOP, FLOOR)


def test_log_mel_of_a_tone_is_that_of_the_reference(front_end: LogMel) -> None:
    time = np.arange(4000) / RATE
    tone = (0.3 * np.sin(2 * np.pi * 700 * time) * np.exp(-3 * time)).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.01, 4000).astype(np.float32)
    both = torch.from_numpy(np.stack([tone, tone + noise])).double()
    result = front_end.double()(both)
    assert result.shape == (2, *front_end.shape(4000)) == (2, 1, BANDS, 32)
    for i in range(2):
        expected = reference_log_mel(both[i].numpy())
        np.testing.assert_allclose(result[i, 0].numpy(), expected, atol=1e-4)


def test_log_mel_of_recordings_is_that_of_the_reference(
    front_end: LogMel, shared_data: Path
) -> None:
    folder = shared_data / "fsdd" / "recordings_sample"
    if not folder.is_dir():
        pytest.skip(f"no original recordings at {folder}")
    for path in sorted(folder.glob("*.wav"))[::12]:
        _, samples = wavfile.read(path)
        waveform = as_waveform(torch.from_numpy(samples.copy())).unsqueeze(0)
        expected = reference_log_mel(samples / 32768)
        exact = front_end.double()(waveform.double())
        np.testing.assert_allclose(exact[0, 0].numpy(), expected, atol=1e-4)
        # In single precision rounding shows where there is next to no power.
        single = front_end.float()(waveform)
        np.testing.assert_allclose(single[0, 0].numpy(), expected, atol=1e-3)


def test_silence_is_the_logarithm_of_the_floor(front_end: LogMel) -> None:
    result = front_end(torch.zeros(1, 1000))
    torch.testing.assert_close(result, torch.full_like(result, float(np.log(FLOOR))))


def test_the_loudest_int16_sample_is_minus_one() -> None:
    extreme = torch.tensor([-32768, 0, 16384], dtype=torch.int16)
    assert as_waveform(extreme).tolist() == [-1.0, 0.0, 0.5]


def test_the_name_tells_every_setting_apart() -> None:
    settings = [RATE, BANDS, WINDOW, HOP, FLOOR]
    names = {LogMel(RATE, BANDS, WINDOW, HOP, FLOOR).name}
    for i in range(len(settings)):
        other = [value * 2 if i == j else value for j, value in enumerate(settings)]
        names.add(LogMel(*other).name)  # type: ignore[arg-type]
    assert len(names) == 6

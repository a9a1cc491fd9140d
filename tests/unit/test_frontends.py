"""Front ends against references: loops in numpy, scipy, and torchaudio's own code for one clip."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from scipy import signal
from scipy.io import wavfile
from scipy.stats import ks_2samp

from mmbench.data.frontends import (
    FRONT_ENDS,
    FrontEnd,
    KaldiFbank,
    LogMel,
    OgmStft,
    OgmStftVgg,
    PmrSpec,
    as_waveform,
    build_front_end,
)
from mmbench.errors import RequestError
from mmbench.seeds import torch_stream

RATE, BANDS, WINDOW, HOP, FLOOR = 8000, 32, 256, 128, 1e-6
Reference = Callable[[np.ndarray], np.ndarray]


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


def scipy_log_amplitude(waveform: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Return ``ln(|STFT| + 1e-7)``, ``(1 + window / 2, frames)``, by scipy."""
    padded = np.pad(np.clip(waveform, -1, 1), window // 2, mode="reflect")
    taper = signal.get_window("hann", window)
    _, _, spectrum = signal.stft(
        padded, window="hann", nperseg=window, noverlap=window - hop, boundary=None, padded=False
    )
    return np.asarray(np.log(np.abs(spectrum) * taper.sum() + 1e-7))


def ogm_stft(waveform: np.ndarray) -> np.ndarray:
    """As OGM-GE's ``CramedDataset`` has it."""
    return scipy_log_amplitude(np.tile(waveform, 3)[: 22050 * 3], 512, 353)


def ogm_stft_vgg(waveform: np.ndarray, start: int = 40_000) -> np.ndarray:
    """As OGM-GE's ``VGGSound`` has it, from a given sample on."""
    while len(waveform) / 16000 < 10.0:
        waveform = np.tile(waveform, 2)
    return scipy_log_amplitude(waveform[start : start + 16000 * 5], 256, 128)


def pmr_spec(waveform: np.ndarray, rate: int = 16000, samples: int = 160_000) -> np.ndarray:
    """As PMR's ``audio_extract`` has it."""
    repeated = np.clip(np.tile(waveform, 10)[:samples], -1, 1)
    _, _, power = signal.spectrogram(repeated, rate, nperseg=512, noverlap=353)
    logarithm = np.log(power + 1e-7)
    return np.asarray((logarithm - logarithm.mean()) / (logarithm.std() + 1e-9))


def kaldi_fbank(waveform: np.ndarray, rate: int = 16000) -> np.ndarray:
    """As OGM-GE's ``process_audio.py`` has it, in single precision."""
    clip = torch.from_numpy(waveform).float().unsqueeze(0)
    clip = clip - clip.mean()
    banks = torchaudio.compliance.kaldi.fbank(
        clip,
        htk_compat=True,
        sample_frequency=rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    fitted = torch.nn.functional.pad(banks, (0, 0, 0, 1024 - len(banks)))
    return ((fitted + 4.503877) / (2 * 5.141276)).numpy()


def made(rate: int, seconds: float, seed: int) -> np.ndarray:
    """Return int16 sound: a chirp that dies away, noise, and a silent end."""
    time = np.arange(int(rate * seconds)) / rate
    rng = np.random.default_rng(seed)
    chirp = 0.7 * signal.chirp(time, 100, seconds, 0.45 * rate) * np.exp(-2 * time)
    sound = 0.2 + chirp + rng.normal(0, 0.02, len(time))
    sound[-len(time) // 5 :] = 0
    return np.clip(32768 * sound, -32768, 32767).astype(np.int16)


def batch(clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int16 clips as one batch, the shorter ones followed by zeros, and their lengths."""
    lengths = torch.tensor([len(clip) for clip in clips])
    samples = torch.zeros(len(clips), int(lengths.max()), dtype=torch.int16)
    for row, clip in zip(samples, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    return as_waveform(samples), lengths


def check(front_end: FrontEnd, clips: list[np.ndarray], reference: Reference) -> None:
    """Compare a batch with what a reference gives for each of its clips."""
    waveform, lengths = batch(clips)
    result = front_end(waveform, lengths)
    assert result.dtype == torch.float32
    assert tuple(result.shape[1:]) == front_end.shape(waveform.shape[1])
    for i, clip in enumerate(clips):
        np.testing.assert_allclose(result[i, 0].numpy(), reference(clip / 32768), atol=1e-4)


def recordings(folder: Path, count: int, rate: int) -> list[np.ndarray]:
    """Return recordings of a rate, each cut to a length of its own, none below a second."""
    if not folder.is_dir():
        pytest.skip(f"no recordings at {folder}")
    clips = []
    for i, path in enumerate(sorted(folder.glob("*.wav"))[:count]):
        found, samples = wavfile.read(path)
        assert found == rate
        clips.append(samples[: max(rate, len(samples) - i * 7001)])
    return clips


@pytest.mark.parametrize(
    ("front_end", "rate", "reference", "shape"),
    [
        (OgmStft(), 22050, ogm_stft, (257, 188)),
        (OgmStftVgg(), 16000, ogm_stft_vgg, (129, 626)),
        (PmrSpec(), 16000, pmr_spec, (257, 1004)),
        (PmrSpec(samples=48_000), 16000, lambda x: pmr_spec(x, samples=48_000), (257, 299)),
        (PmrSpec(rate=22050), 22050, lambda x: pmr_spec(x, rate=22050), (257, 1004)),
        (KaldiFbank(16000), 16000, kaldi_fbank, (1024, 128)),
        (KaldiFbank(44100), 44100, lambda x: kaldi_fbank(x, rate=44100), (1024, 128)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_made_sound_gives_the_spectrograms_of_the_reference(
    front_end: FrontEnd, rate: int, reference: Reference, shape: tuple[int, int]
) -> None:
    assert front_end.shape(rate) == (1, *shape)
    check(front_end, [made(rate, 1.0, 0), made(rate, 2.3, 1), made(rate, 4.1, 2)], reference)


@pytest.mark.parametrize(
    ("front_end", "rate", "reference"),
    [
        (OgmStft(), 22050, ogm_stft),
        (OgmStftVgg(), 16000, ogm_stft_vgg),
        (PmrSpec(), 16000, pmr_spec),
        (KaldiFbank(16000), 16000, kaldi_fbank),
        (KaldiFbank(22050), 22050, lambda x: kaldi_fbank(x, rate=22050)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_recordings_give_the_spectrograms_of_the_reference(
    front_end: FrontEnd, rate: int, reference: Reference, shared_data: Path
) -> None:
    folder = {22050: "ravdess_wav", 16000: "flv_fixture/AudioWAV"}[rate]
    check(front_end, recordings(shared_data / "av-clips" / folder, 4, rate), reference)


def test_short_recordings_give_the_filter_banks_of_the_reference(shared_data: Path) -> None:
    folder = shared_data / "fsdd" / "recordings_sample"
    if not folder.is_dir():
        pytest.skip(f"no recordings at {folder}")
    clips = [wavfile.read(path)[1] for path in sorted(folder.glob("*.wav"))[::10]]
    check(KaldiFbank(8000), clips, lambda x: kaldi_fbank(x, rate=8000))


def test_lfm_s_twenty_seconds_have_its_shape() -> None:
    front_end = build_front_end("lfm_stft", 22050)
    waveform, lengths = batch([made(22050, 1.3, 0)])
    expected = scipy_log_amplitude(
        np.tile(waveform[0].double().numpy(), 20)[: 22050 * 20], 512, 353
    )
    result = front_end(waveform, lengths)
    assert front_end.shape(1) == tuple(result.shape[1:]) == (1, 257, 1250)
    np.testing.assert_allclose(result[0, 0].numpy(), expected, atol=1e-4)


def test_what_overshoots_is_clipped() -> None:
    loud = torch.from_numpy(3.0 * np.sin(np.arange(22050 * 3)[None] / 9)).float()
    expected = scipy_log_amplitude(np.clip(loud[0].double().numpy(), -1, 1), 512, 353)
    np.testing.assert_allclose(OgmStft()(loud)[0, 0].numpy(), expected, atol=1e-4)
    np.testing.assert_array_equal(PmrSpec()(loud).numpy(), PmrSpec()(loud.clamp(-1, 1)).numpy())


@pytest.mark.parametrize("name", sorted(FRONT_ENDS))
def test_a_clip_s_spectrogram_does_not_depend_on_its_batch(name: str) -> None:
    front_end = build_front_end(name, 16000)
    clips = [made(front_end.rate, seconds, seed) for seed, seconds in enumerate((1.2, 2.0, 2.9))]
    rows = torch.arange(len(clips))
    together = front_end(*batch(clips), rows)
    for i, clip in enumerate(clips):
        alone = front_end(*batch([clip]), rows[i : i + 1])[0]
        kept = alone.shape[2] - 3  # log_mel, which fills nothing up, sees the end of the batch
        torch.testing.assert_close(together[i, :, :, :kept], alone[:, :, :kept], atol=1e-4, rtol=0)


def test_without_lengths_all_clips_are_as_long_as_the_batch() -> None:
    waveform, lengths = batch([made(16000, 2.0, 0), made(16000, 2.0, 1)])
    for name in FRONT_ENDS:
        front_end = build_front_end(name, 16000)
        assert torch.equal(front_end(waveform), front_end(waveform, lengths))


def test_what_kaldi_fbank_fills_up_is_not_zero_but_as_in_the_original() -> None:
    result = KaldiFbank(16000)(*batch([made(16000, 1.0, 0)]))
    frames = 1 + (16000 - 400) // 160
    assert result[0, 0, frames:].unique().tolist() == [pytest.approx(0.438, abs=5e-4)]
    assert (result[0, 0, :frames] != result[0, 0, -1]).any(dim=1).all()


def test_training_draws_the_window_and_evaluation_takes_the_middle() -> None:
    clip = made(16000, 9.0, 0)
    waveform, lengths = batch([clip] * 6)
    front_end = OgmStftVgg()
    starts = torch.randint(80_001, (6,), generator=torch_stream("a")).tolist()
    drawn = front_end(waveform, lengths, augment=torch_stream("a"))
    for i in (0, 5):
        expected = ogm_stft_vgg(clip / 32768, starts[i])
        np.testing.assert_allclose(drawn[i, 0].numpy(), expected, atol=1e-4)
    again = front_end(waveform, lengths, augment=torch_stream("a"))
    assert torch.equal(drawn, again)
    middle = front_end(waveform, lengths)
    assert torch.equal(middle[0], middle[5])
    np.testing.assert_allclose(middle[0, 0].numpy(), ogm_stft_vgg(clip / 32768), atol=1e-4)


def test_windows_are_drawn_from_all_starts_of_the_original() -> None:
    """A tone that rises by 600 Hz a second: the loudest frequency tells where a window starts."""
    time = np.arange(160_000) / 16000
    rising = signal.chirp(time, 1000, 10, 7000)
    waveform = torch.from_numpy(rising).float().expand(40, -1)
    windows = [
        OgmStftVgg()(waveform, augment=torch_stream("starts", i))[:, 0, :, 20] for i in range(5)
    ]
    frequency = torch.cat(windows).argmax(dim=1) * 16000 / 256
    starts = (frequency - 1000) / 600 - 20 * 128 / 16000
    expected = np.random.default_rng(0).uniform(0, 5, 5000)
    assert ks_2samp(starts.numpy(), expected).pvalue > 0.001


def test_windows_drawn_at_evaluation_stay_with_their_rows() -> None:
    front_end = OgmStftVgg(draw_at_evaluation=True)
    waveform, lengths = batch([made(16000, 9.0, 0)] * 5)
    rows = torch.tensor([3, 0, 7, 1, 2])
    first = front_end(waveform, lengths, rows)
    other = front_end(waveform[:2], lengths[:2], torch.tensor([7, 3]))
    assert torch.equal(other[0], first[2])
    assert torch.equal(other[1], first[0])
    distinct = {row.numpy().tobytes() for row in first}
    assert len(distinct) == 5


def test_a_clip_below_a_window_or_above_ten_seconds_fits_the_filter_banks() -> None:
    long = made(16000, 11.0, 0)
    result = KaldiFbank(16000)(*batch([long, made(16000, 0.02, 1)]))
    assert tuple(result.shape) == (2, 1, 1024, 128)
    sound = torch.from_numpy(long / 32768).float()
    kept = (sound - sound.mean())[: 1023 * 160 + 400]  # the mean is that of the whole clip
    expected = torchaudio.compliance.kaldi.fbank(
        kept.unsqueeze(0),
        htk_compat=True,
        sample_frequency=16000,
        window_type="hanning",
        num_mel_bins=128,
    )
    expected = (expected + 4.503877) / (2 * 5.141276)
    np.testing.assert_allclose(result[0, 0].numpy(), expected.numpy(), atol=1e-4)
    assert result[1].unique().tolist() == [pytest.approx(0.438, abs=5e-4)]
    alone = KaldiFbank(16000)(*batch([made(16000, 0.02, 1)]))
    assert torch.equal(alone[0], result[1])


@pytest.fixture
def front_end() -> LogMel:
    return LogMel(RATE, BANDS, WINDOW, HOP, FLOOR)


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


def test_silence_is_finite_everywhere() -> None:
    for name in FRONT_ENDS:
        front_end = build_front_end(name, 16000)
        assert front_end(torch.zeros(2, 30_000)).isfinite().all(), name


def test_the_loudest_int16_sample_is_minus_one() -> None:
    extreme = torch.tensor([-32768, 0, 16384], dtype=torch.int16)
    assert as_waveform(extreme).tolist() == [-1.0, 0.0, 0.5]


def test_the_name_tells_every_setting_apart() -> None:
    settings = [RATE, BANDS, WINDOW, HOP, FLOOR]
    names = {LogMel(RATE, BANDS, WINDOW, HOP, FLOOR).name}
    for i in range(len(settings)):
        other = [value * 2 if i == j else value for j, value in enumerate(settings)]
        names.add(LogMel(*other).name)  # type: ignore[arg-type]
    others: list[FrontEnd] = [OgmStft(), OgmStft(seconds=20), OgmStftVgg(), PmrSpec()]
    others += [OgmStftVgg(draw_at_evaluation=True), PmrSpec(rate=22050), PmrSpec(samples=48_000)]
    others += [KaldiFbank(16000), KaldiFbank(44100)]
    names |= {front_end.name for front_end in others}
    assert len(names) == 6 + len(others)


def test_front_ends_of_different_names_differ() -> None:
    assert len({build_front_end(name, 16000).name for name in FRONT_ENDS}) == len(FRONT_ENDS)


def test_defaults_follow_the_rate_where_the_recipe_has_none_of_its_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torchaudio warns of bands without a frequency
        found = {
            name: [build_front_end(name, rate).rate for rate in (8000, 16000, 44100)]
            for name in FRONT_ENDS
        }
    own = {
        "ogm_stft": 22050,
        "lfm_stft": 22050,
        "ogm_stft_vgg": 16000,
        "ogm_stft_vgg_drawn": 16000,
        "pmr_spec": 16000,
        "pmr_spec_3s": 16000,
        "pmr_spec_22050": 22050,
    }
    stored = [8000, 16000, 44100]
    assert found == {
        **{name: [rate] * 3 for name, rate in own.items()},
        "kaldi_fbank": stored,
        "log_mel": stored,
    }


def test_an_unknown_front_end_suggests_a_near_one() -> None:
    with pytest.raises(RequestError, match="unknown front end 'ogm_sftt': did you mean ogm_stft"):
        build_front_end("ogm_sftt", 16000)

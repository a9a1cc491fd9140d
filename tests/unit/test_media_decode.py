"""Decoding: frames by their own times, sound bit for bit, and every fault by its name."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from scipy.io import wavfile

from mmbench.data.files import FileError
from mmbench.data.media.decode import audio, frames, grid, nearest, pictures, timestamps
from mmbench.testing.corpora import write_video, write_wav
from tests.unit.media_clips import LEVEL, grey, noise


@pytest.fixture(scope="module")
def flv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames at 10 a second, with sound."""
    path = tmp_path_factory.mktemp("flv") / "clip.flv"
    write_video(path, grey(12), 10, noise(1.2, 22_050), 22_050)
    return path


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mp4") / "clip.mp4"
    write_video(path, grey(12), 10, noise(1.2, 16_000), 16_000)
    return path


@pytest.mark.parametrize("name", ["flv", "mp4"])
def test_frames_are_those_shown_at_the_times(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    assert timestamps(path) == pytest.approx([i / 10 for i in range(12)], abs=2e-3)
    found = frames(path, [0.0, 0.22, 0.28, 0.9])
    assert found.shape == (4, 48, 64, 3)
    assert found.dtype == np.uint8
    levels = found.mean(axis=(1, 2, 3))
    assert levels == pytest.approx([0, 2 * LEVEL, 3 * LEVEL, 9 * LEVEL], abs=LEVEL / 3)


def test_a_time_past_the_end_is_refused(flv: Path) -> None:
    with pytest.raises(FileError, match=r"clip\.flv: has no frame at 1\.500 s: its picture ends"):
        frames(flv, [0.0, 1.5])


def test_the_nearest_frame_is_that_of_a_search_over_all(flv: Path) -> None:
    rng = np.random.default_rng(0)
    shown = list(pictures(flv))
    own = np.array([time for time, _ in shown])
    times = np.sort(rng.uniform(0, own[-1] + 0.05, 200))
    found = [
        shown.index((time, frame))
        for _, frame in nearest(shown, times)
        for time in [next(t for t, other in shown if other is frame)]
    ]
    distances = np.abs(own[found] - times)
    assert np.allclose(distances, np.abs(own[:, None] - times).min(axis=0))


def test_a_grid_ends_with_the_picture(flv: Path) -> None:
    kept = [time for time, _ in nearest(pictures(flv), grid(5))]
    assert kept == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    part = [time for time, _ in nearest(pictures(flv), grid(5, start=0.3, end=0.7))]
    assert part == pytest.approx([0.3, 0.5])


def test_pcm_comes_out_bit_for_bit(tmp_path: Path) -> None:
    samples = noise(0.5, 16_000)
    write_wav(tmp_path / "a.wav", samples, 16_000)
    sound = audio(tmp_path / "a.wav")
    assert (sound.rate, sound.channels, sound.is_silent) == (16_000, 1, False)
    assert np.array_equal(sound.samples, samples)


@pytest.mark.parametrize(("kind", "step"), [("float32", 2.0**-15), ("int32", 65_536), ("uint8", 1)])
def test_wavs_of_other_numbers_are_read_as_16_bits(kind: str, step: float, tmp_path: Path) -> None:
    samples = noise(0.2)
    if kind == "uint8":
        samples = (samples // 256) * 256
        wavfile.write(tmp_path / "a.wav", 8000, (samples // 256 + 128).astype(np.uint8))
    else:
        wavfile.write(tmp_path / "a.wav", 8000, (samples.astype(float) * step).astype(kind))
    assert np.array_equal(audio(tmp_path / "a.wav").samples, samples)


def test_channels_are_averaged(tmp_path: Path) -> None:
    both = np.stack([noise(0.2, seed=1), noise(0.2, seed=2)], axis=1)
    wavfile.write(tmp_path / "a.wav", 8000, both)
    sound = audio(tmp_path / "a.wav")
    assert sound.channels == 2
    assert np.array_equal(sound.samples, np.rint(both.astype(float).mean(axis=1)))


def test_another_rate_is_resampled(tmp_path: Path) -> None:
    times = np.arange(16_000) / 16_000
    write_wav(tmp_path / "a.wav", (8000 * np.sin(2 * np.pi * 440 * times)).astype("i2"), 16_000)
    sound = audio(tmp_path / "a.wav", rate=8000)
    assert (sound.rate, sound.rate_in_file) == (8000, 16_000)
    assert len(sound.samples) == pytest.approx(8000, abs=2)
    expected = 8000 * np.sin(2 * np.pi * 440 * np.arange(len(sound.samples)) / 8000)
    middle = slice(200, -200)
    assert np.abs(sound.samples[middle] - expected[middle]).max() < 80  # 1 % of the amplitude


def test_silence_is_told_from_a_quiet_sound(tmp_path: Path) -> None:
    for name, loudness in {"none": 0, "hardly": 3, "quiet": 60}.items():
        samples = np.round(loudness * np.sin(np.arange(4000) / 3)).astype(np.int16)
        write_wav(tmp_path / f"{name}.wav", samples, 8000)
    assert audio(tmp_path / "none.wav").is_silent
    assert audio(tmp_path / "hardly.wav").is_silent
    assert not audio(tmp_path / "quiet.wav").is_silent


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.flv", POINTER, "is a git-LFS pointer, not the data; run `git lfs pull`"),
        ("a.flv", b"<!DOCTYPE html><html>404</html>", "is a web page, not the data"),
        ("a.mp4", b"", "is empty"),
        ("a.mp4", b"no clip at all" * 100, "is cut, damaged or no clip"),
        ("a.wav", b"no clip at all" * 100, "is not a WAV file, whatever its name says"),
        ("a.wav", b"RIFF\x24\0\0\0WAVEfmt ", "is cut: its header ends before the sound"),
    ],
)
def test_files_that_are_no_clips_are_named(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    readers: list[Callable[[Path], object]] = (
        [audio] if name.endswith("wav") else [audio, timestamps]
    )
    for reader in readers:
        with pytest.raises(FileError) as caught:
            reader(path)
        assert str(caught.value).startswith(f"{path}: {what}")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["flv", "mp4"])
def test_a_cut_file_is_refused(
    name: str, share: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    whole = request.getfixturevalue(name).read_bytes()
    path = tmp_path / f"cut.{name}"
    path.write_bytes(whole[: int(share * len(whole))])
    faults = []
    for reader in (audio, timestamps):
        try:
            reader(path)
        except FileError as error:
            faults.append(error.problem.what)
    assert faults
    assert all("cut" in what for what in faults)


FORMS = {"mp4": "libx264", "mov": "libx264", "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4"}
"""Codecs by the ending of the file."""


def write_picture_first(path: Path, count: int, **options: str) -> None:
    """Write so many frames, and tables before them where the form allows: what most downloads
    are."""
    options = {"movflags": "faststart", **options} if path.suffix in (".mp4", ".mov") else options
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream(FORMS[path.suffix[1:]], rate=10)
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for shown in grey(count):
            container.mux(video.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(video.encode())


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_anywhere_in_its_frames_is_refused(form: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"whole.{form}", tmp_path / f"cut.{form}"
    write_picture_first(whole, 12)
    assert len(timestamps(whole)) == 12
    with av.open(str(whole)) as container:
        places = [p.pos for p in container.demux(video=0) if p.pos is not None and p.size]
    for place in places[1:]:  # between two frames, where each decodes
        cut.write_bytes(whole.read_bytes()[:place])
        with pytest.raises(FileError, match="is cut"):
            timestamps(cut)


def test_a_file_that_does_not_say_how_long_it_is_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "stream.mkv"
    write_picture_first(path, 12, live="1")
    assert len(timestamps(path)) == 12


def test_a_cut_wav_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, noise(0.5), 8000)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(FileError, match="is cut: 7000 of 8000 bytes of sound are there"):
        audio(path)


def test_a_wav_with_other_chunks_before_its_sound_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, noise(0.5), 8000)
    content = path.read_bytes()
    note = b"LIST" + (5).to_bytes(4, "little") + b"hello\0"  # of odd length, filled up
    path.write_bytes(content[:36] + note + content[36:])
    assert len(audio(path).samples) == 4000


def test_missing_streams_are_said_to_be_missing(tmp_path: Path) -> None:
    write_video(tmp_path / "mute.mp4", grey(5), 10, None, 0)
    with pytest.raises(FileError, match=r"mute\.mp4: has no sound stream; use a copy with sound"):
        audio(tmp_path / "mute.mp4")
    write_wav(tmp_path / "blind.wav", noise(0.2), 8000)
    with pytest.raises(FileError, match=r"blind\.wav: has no picture stream"):
        timestamps(tmp_path / "blind.wav")


# -- real clips ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real_clips(shared_data: Path) -> Path:
    place = shared_data / "av-clips"
    if not place.is_dir():
        pytest.skip(f"no real clips at {place}")
    return place


def test_an_flv_gives_the_frames_it_has_whatever_its_header_says(real_clips: Path) -> None:
    paths = sorted((real_clips / "flv_fixture" / "VideoFlash").glob("*.flv"))
    assert len(paths) == 10
    for path in paths:
        times = timestamps(path)
        assert len(times) == 75
        assert times[0] == 0
        # 25 frames a second, each stamped on a grid of 29.97 a second
        assert np.abs(np.array(times) - 0.04 * np.arange(75)).max() < 1 / 29.97
        assert times[-1] == pytest.approx(2.96, abs=0.02)


def test_real_clips_agree_with_a_bare_loop(real_clips: Path) -> None:
    paths = [
        *sorted((real_clips / "grid").glob("*.mpg"))[:2],
        *sorted((real_clips / "youtube_mp4").glob("*.mp4"))[:1],
        real_clips / "mmaction2" / "test.avi",
    ]
    for path in paths:
        with av.open(str(path)) as container:
            plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        with av.open(str(path)) as container:
            heard = [frame.to_ndarray() for frame in container.decode(audio=0)]
        times = timestamps(path)
        assert len(times) == len(plain)
        assert (np.diff(times) > 0).all()  # although the stamps of the AVI file are not in order
        some = [0, len(plain) // 3, len(plain) - 1]
        assert np.array_equal(
            frames(path, [times[i] for i in some]), np.stack([plain[i] for i in some])
        )
        sound = audio(path)
        joined = np.concatenate(heard, axis=1)  # planar: floats, or int16 of MP2
        scale = 32768 if joined.dtype.kind == "f" else 1
        expected = (joined.mean(axis=0, dtype=float) * scale).clip(-32768, 32767)
        assert len(sound.samples) == len(expected)
        # Rounded once in each channel and once in the mean.
        assert np.abs(sound.samples - expected).max() <= 1.01


def test_real_wavs_agree_with_another_reader(real_clips: Path) -> None:
    paths = [
        *sorted((real_clips / "ravdess_wav").glob("*.wav")),
        *sorted((real_clips / "flv_fixture" / "AudioWAV").glob("*.wav")),
        real_clips / "mmaction2" / "test.wav",
    ]
    assert len(paths) == 21
    for path in paths:
        rate, expected = wavfile.read(path)
        sound = audio(path)
        assert sound.rate == rate
        if expected.ndim == 2:
            assert sound.channels == expected.shape[1]
            expected = np.rint(expected.mean(axis=1))
        assert np.array_equal(sound.samples, expected)


@pytest.mark.parametrize("stated", [0, 0xFFFFFFFF])
@pytest.mark.parametrize("rate", [None, 8000])
def test_a_wav_that_was_written_as_a_stream_is_whole(
    stated: int, rate: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "stream.wav"
    samples = (8000 * np.sin(np.arange(1600) / 5)).astype(np.int16)
    write_wav(path, samples, 16_000)
    expected = audio(path, rate).samples
    content = bytearray(path.read_bytes())
    size = content.index(b"data") + 4
    content[4:8] = content[size : size + 4] = stated.to_bytes(4, "little")
    path.write_bytes(content)
    assert np.array_equal(audio(path, rate).samples, expected)


def test_a_real_mp4_without_sound_says_so(real_clips: Path) -> None:
    path = real_clips / "mmaction2" / "test.mp4"
    assert len(timestamps(path)) == 300
    with pytest.raises(FileError, match=r"test\.mp4: has no sound stream; use a copy with sound"):
        audio(path)

"""WAV and idx files: what is read, and how each kind of damage is named."""

import gzip
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from mmbench.data.dataset import Problem
from mmbench.data.idx import read_idx
from mmbench.data.wav import read_wav

TONE = (8000 * np.sin(np.arange(400) / 5)).astype(np.int16)


def written_wav(path: Path, samples: np.ndarray = TONE, rate: int = 8000) -> Path:
    wavfile.write(path, rate, samples)
    return path


def problem_of(result: np.ndarray | Problem) -> str:
    assert isinstance(result, Problem)
    assert result.mend
    return result.what


def test_samples_come_back_as_scipy_wrote_them(tmp_path: Path) -> None:
    samples = read_wav(written_wav(tmp_path / "a.wav"), 8000)
    assert isinstance(samples, np.ndarray)
    assert samples.dtype == np.int16
    np.testing.assert_array_equal(samples, TONE)


def test_original_recordings_read_as_scipy_reads_them(shared_data: Path) -> None:
    folder = shared_data / "fsdd" / "recordings_sample"
    if not folder.is_dir():
        pytest.skip(f"no original recordings at {folder}")
    paths = sorted(folder.glob("*.wav"))
    assert len(paths) == 60
    for path in paths:
        rate, expected = wavfile.read(path)
        samples = read_wav(path, rate)
        assert isinstance(samples, np.ndarray), samples
        np.testing.assert_array_equal(samples, expected)


def test_a_missing_wav_file_is_named(tmp_path: Path) -> None:
    result = read_wav(tmp_path / "none.wav", 8000)
    assert problem_of(result) == "does not exist"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-LFS pointer"),
        (b"<!DOCTYPE html><html>Not found</html>", "is a web page"),
        (b"ID3\x03" + bytes(400), "is not a PCM WAV file"),
        (b"RIFF", "is cut"),
    ],
)
def test_what_is_no_wav_file_is_refused_by_content(
    tmp_path: Path, content: bytes, what: str
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert what in problem_of(read_wav(path, 8000))


@pytest.mark.parametrize("kept", [30, 60, 300, 843])
def test_a_wav_file_that_was_cut_is_refused(tmp_path: Path, kept: int) -> None:
    path = written_wav(tmp_path / "a.wav")
    path.write_bytes(path.read_bytes()[:kept])
    assert "is cut" in problem_of(read_wav(path, 8000))


def test_other_wav_formats_are_refused(tmp_path: Path) -> None:
    stereo = written_wav(tmp_path / "stereo.wav", np.stack([TONE, TONE], axis=1))
    assert problem_of(read_wav(stereo, 8000)) == "has 2 channels, not 1"
    fast = written_wav(tmp_path / "fast.wav", rate=16_000)
    assert problem_of(read_wav(fast, 8000)) == "has 16000 Hz, not 8000"
    wide = written_wav(tmp_path / "wide.wav", TONE.astype(np.int32))
    assert problem_of(read_wav(wide, 8000)) == "has 32 bits a sample, not 16"
    floats = written_wav(tmp_path / "floats.wav", TONE.astype(np.float32))
    assert "is not a PCM WAV file" in problem_of(read_wav(floats, 8000))


@pytest.mark.parametrize(("samples", "what"), [(0, "holds no samples"), (400, "is silent")])
def test_a_recording_of_nothing_is_refused(tmp_path: Path, samples: int, what: str) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(2 * samples))
    assert what in problem_of(read_wav(path, 8000))


PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
IMAGES = struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 3, 4) + PIXELS.tobytes()
PACKED = gzip.compress(IMAGES, mtime=0)
"""Without a time in it: test names show the bytes, and all workers must collect the same."""


@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_is_read_packed_or_not(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "a-images-idx3-ubyte"
    path.write_bytes(PACKED if packed else IMAGES)
    array = read_idx(path, 3)
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, PIXELS)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (IMAGES[:-1], "holds 23 bytes, its header says 24"),
        (IMAGES + b"\x00", "holds 25 bytes, its header says 24"),
        (IMAGES[:10], "is cut: its header ends early"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 2) + b"\x01\x02", "starts with 0x00000801"),
        (b"\x00\x00\x0d\x03" + IMAGES[4:], "starts with 0x00000d03"),
        (b"<html>404</html>", "is a web page"),
        (PACKED[:-9], "is cut: its gzip stream"),
        (PACKED[:-4] + b"abcd", "is damaged"),
        (b"", "is empty"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "a-images-idx3-ubyte.gz"
    path.write_bytes(content)
    assert what in problem_of(read_idx(path, 3))


def test_mnist_test_images_are_those_of_the_known_checksum(shared_data: Path) -> None:
    import hashlib

    path = shared_data / "mnist" / "t10k-images-idx3-ubyte.gz"
    if not path.exists():
        pytest.skip(f"no MNIST at {path}")
    images = read_idx(path, 3)
    assert isinstance(images, np.ndarray)
    assert images.shape == (10_000, 28, 28)
    header = struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape)
    md5 = hashlib.md5(header + images.tobytes()).hexdigest()
    assert md5 == "2646ac647ad5339dbf082846283269ea"  # of the unpacked file, as widely listed

"""Decoding picture and sound with PyAV (FFmpeg within the wheel): FLV, MP4, AVI, MPEG, WAV.

Nothing trusts what a container says of itself: frames are counted and timed by decoding them, and
the length of a sound is that of its samples. Times are seconds since the first frame of the picture
or the first sample of the sound. Every fault is a :class:`~mmbench.data.files.FileError` that names
the file, what is wrong with it, and the mend.
"""

from __future__ import annotations

import mmap
import wave
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from io import SEEK_CUR
from itertools import count
from pathlib import Path
from typing import BinaryIO, TypeVar

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mmbench.data.files import FileError, require_sound
from mmbench.data.problem import Problem

SILENCE = 8
"""A sound whose int16 samples span no more than this (-78 dB of full scale) is silent."""
REORDERED = 4
"""Frames by which the order of time stamps may differ from that of showing, more than codecs do."""
AGAIN = "download it again"
FLV_KINDS = (8, 9, 18)
"""Of pieces of an FLV file: sound, picture, data."""
MP4_KINDS = (b"moov", b"mdat", b"moof")
"""Of the boxes of an MP4 file: tables, content, tables of a part."""
MATROSKA_KINDS = (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67")
"""Of the two elements of an MKV or WebM file: its header, and all the rest."""
ROUNDING = 1e-6
"""Seconds by which sums of times are off at most: no frame is that short."""
Shown = TypeVar("Shown")
"""A frame, in whatever form."""


@dataclass(frozen=True)
class Sound:
    """Samples ``(N,)`` int16 of one channel at ``rate`` Hz."""

    samples: np.ndarray
    rate: int
    channels: int
    """In the file; several are averaged."""
    rate_in_file: int

    @property
    def is_silent(self) -> bool:
        return int(self.samples.max()) - int(self.samples.min()) <= SILENCE

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def audio(path: Path, rate: int | None = None) -> Sound:
    """Return the first sound stream of a file, its channels averaged.

    With ``rate`` (Hz) it is resampled to that by libswresample where the file has another. PCM16
    at its own rate comes out bit for bit. Refused: what ``inspect`` refuses, a file without sound
    or without samples, a cut or damaged one.
    """
    require_sound(path)
    _require_whole(path)
    read = _pcm16(path)
    if read is None or rate not in (None, read[1]):
        samples, rate_in_file = _decoded_sound(path, rate)
    else:
        samples, rate_in_file = read
    channels = len(samples)
    if channels > 1:
        samples = np.rint(samples.mean(axis=0, dtype=np.float64)).astype(np.int16)[None]
    return Sound(samples[0], rate or rate_in_file, channels, rate_in_file)


def _pcm16(path: Path) -> tuple[np.ndarray, int] | None:
    """Return the samples ``(channels, N)`` and the rate in Hz of a WAV file of 16-bit PCM; None for
    any other, FFmpeg's to judge. FFmpeg takes 3 ms to open one, a sixth of what a clip of CREMA-D
    takes in all."""
    if path.suffix.lower() != ".wav":
        return None
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, count, *_ = file.getparams()
            # A file written as a stream says that it holds 4 GB: too many to ask for.
            fits = width == 2 and count * width * channels < path.stat().st_size
            content = file.readframes(count) if fits else b""
    except (wave.Error, EOFError):
        return None
    if not content or len(content) != count * width * channels:
        return None
    return np.frombuffer(content, dtype="<i2").astype(np.int16).reshape(-1, channels).T, rate


def _decoded_sound(path: Path, rate: int | None) -> tuple[np.ndarray, int]:
    """Return samples ``(channels, N)`` as FFmpeg decodes them, at ``rate`` unless that is None, and
    the rate in the file."""
    pieces: list[np.ndarray] = []
    with _opened(path) as container:
        if not container.streams.audio:
            raise _fault(
                path, "has no sound stream", "use a copy with sound, or leave the clip out"
            )
        stream = container.streams.audio[0]
        _require_decoder(path, stream)
        channels, rate_in_file = stream.codec_context.channels, stream.codec_context.sample_rate
        is_as_wanted = stream.format.name == "s16" and rate in (None, rate_in_file)
        resampler = av.AudioResampler("s16p", stream.layout, rate or rate_in_file)
        # FFmpeg takes a WAV file that was written as a stream for a cut one.
        may_be_cut = path.suffix.lower() != ".wav"  # else looked at by its header
        for packet in container.demux(stream):
            if packet.is_corrupt and may_be_cut:
                raise _fault(path, "is cut: its sound ends within a packet", AGAIN)
            for frame in packet.decode():
                if is_as_wanted:  # PCM: channels of a sample side by side
                    pieces.append(frame.to_ndarray().reshape(-1, channels).T)
                else:
                    pieces += [part.to_ndarray() for part in resampler.resample(frame)]
        if pieces and not is_as_wanted:
            pieces += [part.to_ndarray() for part in resampler.resample(None)]
    if not pieces:
        raise _fault(path, "has a sound stream without samples", AGAIN)
    return np.concatenate(pieces, axis=1), rate_in_file


def timestamps(path: Path) -> list[float]:
    """Return the time in seconds of every frame, found by decoding all of them."""
    return [time for time, _ in pictures(path)]


def frames(path: Path, times: Sequence[float]) -> np.ndarray:
    """Return the frames nearest to rising times as ``(T, H, W, 3)`` uint8 RGB.

    Raises :class:`FileError` when the picture ends before one of them.
    """
    shown = [frame.to_ndarray(format="rgb24") for _, frame in nearest(pictures(path), times)]
    if len(shown) < len(times):
        what = f"has no frame at {times[len(shown)]:.3f} s: its picture ends before"
        raise _fault(path, what, "ask for times within it, or download it again")
    return np.stack(shown)


def pictures(path: Path) -> Iterator[tuple[float, VideoFrame]]:
    """Yield every frame of the first picture stream with its time, in the order of showing.

    Refused: what ``inspect`` refuses, a file without picture or frames, a cut or damaged one.
    """
    require_sound(path)
    _require_whole(path)
    first: float | None = None
    for time, frame in _ordered(_stamped(path)):
        first = time if first is None else first
        yield time - first, frame


def _ordered(shown: Iterable[tuple[float, VideoFrame]]) -> Iterator[tuple[float, VideoFrame]]:
    """Yield the frames with the same time stamps in rising order: those of AVI files stand in the
    order of decoding, their frames in that of showing."""
    stamps: list[float] = []
    held: deque[VideoFrame] = deque()
    for stamp, frame in shown:
        heappush(stamps, stamp)
        held.append(frame)
        if len(held) > REORDERED:
            yield heappop(stamps), held.popleft()
    while held:
        yield heappop(stamps), held.popleft()


def _stamped(path: Path) -> Iterator[tuple[float, VideoFrame]]:
    """Yield the frames in the order of showing with the time stamps that FFmpeg gives them."""
    number = 0
    with _opened(path) as container:
        if not container.streams.video:
            raise _fault(path, "has no picture stream", AGAIN)
        stream = container.streams.video[0]
        _require_decoder(path, stream)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise _fault(path, "is cut: its picture ends within a packet", AGAIN)
            for frame in packet.decode():
                # Streams without time stamps, as in raw video, run at their stated rate.
                yield frame.time if frame.time is not None else number / rate, frame
                number += 1
    if number == 0:
        raise _fault(path, "has a picture stream without frames", AGAIN)


def nearest(
    shown: Iterable[tuple[float, Shown]], times: Iterable[float]
) -> Iterator[tuple[float, Shown]]:
    """Yield for each of the rising times that time and the frame nearest to it, until the frames
    end: the last one is shown for as long as the one before it was. One pass; one frame is held."""
    wanted = iter(times)
    target = next(wanted, None)
    before: tuple[float, Shown] | None = None
    length = 0.0
    for time, frame in shown:
        if target is None:
            continue  # decoded to the end all the same: a cut file shows itself there
        while target is not None and target <= time:
            is_nearer = before is not None and target - before[0] < time - target
            yield target, before[1] if before is not None and is_nearer else frame
            target = next(wanted, None)
        length = time - before[0] if before is not None else 0.0
        before = time, frame
    while target is not None and before is not None and target < before[0] + length - ROUNDING:
        yield target, before[1]
        target = next(wanted, None)


def grid(fps: float, start: float = 0.0, end: float | None = None) -> Iterator[float]:
    """Yield ``start + i / fps`` for i = 0, 1, ... as long as it is less than ``end`` (seconds)."""
    for i in count():
        time = start + i / fps
        if end is not None and time >= end:
            return
        yield time


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    """Open a file; what FFmpeg then finds wrong with it becomes a :class:`FileError`."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            yield container
    except av.FFmpegError as error:
        reason = error.strerror or str(error)
        raise _fault(path, f"is cut, damaged or no clip: {reason}", AGAIN) from error


def _require_decoder(path: Path, stream: AudioStream | VideoStream) -> None:
    """Refuse a stream that FFmpeg can say nothing of; let one thread decode it, since clips are
    decoded side by side."""
    if stream.codec_context is None:
        raise _fault(path, f"is cut, or its {stream.type} is of an unknown format", AGAIN)
    stream.codec_context.thread_count = 1


def _require_whole(path: Path) -> None:
    """Refuse a file that ends early in a way that FFmpeg takes for its end."""
    match path.suffix.lower():
        case ".wav":
            _require_whole_wav(path)
        case ".flv":
            _require_whole_flv(path)
        case ".mp4" | ".m4v" | ".mov":
            _require_content(path, _mp4_content_end)
        case ".mkv" | ".webm":
            _require_content(path, _matroska_content_end)
        case ".avi":
            _require_content(path, _avi_content_end)


def _require_whole_flv(path: Path) -> None:
    """Refuse an FLV file whose last tag is cut. Tags: one byte of kind, three of size, seven more
    of header, the content, four bytes of size again (Adobe, Video File Format Specification 10.1,
    annex E)."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        total = len(content)
        if content[:3] != b"FLV" or total < 9:
            return  # for FFmpeg to judge
        place = int.from_bytes(content[5:9], "big") + 4
        while place < total:
            tag = content[place : place + 4]
            if len(tag) == 4 and tag[0] not in FLV_KINDS:
                return
            after = place + 11 + int.from_bytes(tag[1:], "big")
            if len(tag) < 4 or after > total:
                raise _fault(path, f"is cut: it ends within a piece, at byte {total}", AGAIN)
            place = after + 4


def _require_whole_wav(path: Path) -> None:
    """Refuse a WAV file that ends before its header says: FFmpeg would take what is there.

    Sizes of 0 and of all ones are those of files written as a stream, and say nothing.
    """
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            raise _fault(path, "is not a WAV file, whatever its name says", AGAIN)
        total = path.stat().st_size
        place = 12
        while len(chunk := file.read(8)) == 8:
            name, size = chunk[:4], int.from_bytes(chunk[4:], "little")
            place += 8
            if name == b"data":
                held = total - place
                if size not in (0, 0xFFFFFFFF) and held < size:
                    raise _fault(path, f"is cut: {held} of {size} bytes of sound are there", AGAIN)
                return
            place += size + size % 2  # chunks start at even places
            file.seek(place)
    raise _fault(path, "is cut: its header ends before the sound", AGAIN)


def _require_content(path: Path, ends: Callable[[BinaryIO, int], int]) -> None:
    """Refuse a file that is shorter than its header says that its content reaches. FFmpeg shows the
    frames that are there, where the tables of a file stand before its content."""
    total = path.stat().st_size
    with path.open("rb") as file:
        needed = ends(file, total)
    if needed > total:
        raise _fault(path, f"is cut: {total} of {needed} bytes are there", AGAIN)


def _mp4_content_end(file: BinaryIO, total: int) -> int:
    """Return the byte at which tables and content of an MP4 file end; 0 where it does not say. A
    box has four bytes of size, four of kind, and eight of size where the first four are 1
    (ISO/IEC 14496-12, 4.2)."""
    place = end = 0
    while place + 8 <= total:
        file.seek(place)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:
            return end
        place += size
        if kind in MP4_KINDS:
            end = place
    return end


def _matroska_content_end(file: BinaryIO, total: int) -> int:
    """Return the byte at which the segment of an MKV or WebM file ends; 0 where it does not say, as
    in one written as a stream (RFC 8794, 4 to 6)."""
    for kind in MATROSKA_KINDS:
        if file.read(4) != kind:
            return 0
        first = file.read(1) or b"\0"
        length = 9 - first[0].bit_length()
        ones = (1 << 7 * length) - 1
        size = int.from_bytes(first + file.read(length - 1), "big") & ones
        if first == b"\0" or size == ones:
            return 0
        end = file.seek(size, SEEK_CUR)
    return end


def _avi_content_end(file: BinaryIO, total: int) -> int:
    """Return the byte at which the frames of an AVI file end; 0 where it does not say. A chunk
    has four bytes of kind, four of size, the content, and starts at an even place (Microsoft, AVI
    RIFF file reference)."""
    head = file.read(12)
    place = 12 if head[:4] == b"RIFF" and head[8:] == b"AVI " else total
    while place + 12 <= total:
        file.seek(place)
        head = file.read(12)
        size = int.from_bytes(head[4:8], "little")
        if head[:4] == b"LIST" and head[8:] == b"movi":
            return 0 if size in (0, 0xFFFFFFFF) else place + 8 + size
        place += 8 + size + size % 2
    return 0


def _fault(path: Path, what: str, mend: str) -> FileError:
    return FileError(Problem(str(path), what, mend))

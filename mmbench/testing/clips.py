"""Generated clips: a tone, moving colours, and the files that hold them (FLV, MP4 and WAV)."""

from __future__ import annotations

import colorsys
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext

LOWEST_HZ, HIGHEST_HZ = 250.0, 4000.0
"""Pitches of the first and last class; the others lie between at equal ratios."""
FLV_RATE = 22_050
"""Hz of the sound in an FLV, one of the few rates that MP3 in FLV knows."""
QUICK_AAC = {"aac_coder": "fast", "aac_is": "0", "aac_ms": "0"}
"""Without its search for what the two channels share, AAC is encoded in a tenth of the time."""


@dataclass(frozen=True)
class Look:
    """Form of the clips. Small by default: tests need the path, not the pixels."""

    seconds: float = 1.0
    height: int = 48
    width: int = 64
    """Pixels; both even, as the codecs ask."""
    fps: int = 10
    rate: int = 16_000
    """Hz, of WAV and MP4 sound."""


USUAL = Look()


def tone(
    number: int, classes: int, seconds: float, rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Return a noisy tone ``(N,)`` int16 with the pitch of a class, of random phase and
    loudness."""
    hertz = LOWEST_HZ * (HIGHEST_HZ / LOWEST_HZ) ** (number / max(classes - 1, 1))
    times = np.arange(round(seconds * rate)) / rate
    loudness, phase = rng.uniform(0.3, 0.7), rng.uniform(0, 2 * np.pi)
    clean = loudness * np.sin(2 * np.pi * hertz * times + phase)
    noisy = clean + 0.05 * rng.standard_normal(len(times))
    return np.asarray(np.round(noisy.clip(-1, 1) * 32_767), dtype=np.int16)


def picture(number: int, classes: int, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Return frames ``(T, H, W, 3)`` uint8 in the colour of a class, of random brightness, under
    grey blocks that move by 2 pixels a frame."""
    colour = np.array(colorsys.hsv_to_rgb(number / classes, 0.8, rng.uniform(120, 180)))
    block = 8
    coarse = rng.uniform(-50, 50, (look.height // block + 1, look.width // block + 1))
    blocks = coarse.repeat(block, 0).repeat(block, 1)[: look.height, : look.width]
    still = (colour + blocks[..., None]).clip(0, 255).astype(np.uint8)
    count = max(round(look.seconds * look.fps), 1)
    return np.stack([np.roll(still, 2 * t, axis=1) for t in range(count)])


def write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    """Write mono 16-bit PCM; ``samples (N,)`` int16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def write_video(
    path: Path, frames: np.ndarray, fps: int, samples: np.ndarray | None, rate: int
) -> None:
    """Write frames ``(T, H, W, 3)`` uint8, and sound ``(N,)`` int16 unless it is None.

    The ending of the name decides: ``.flv`` is Sorenson H.263 with mono MP3, ``.mp4`` H.264 with
    stereo AAC, both channels alike. The same input gives the same bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flash = path.suffix == ".flv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("flv" if flash else "libx264", rate=Fraction(fps))
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        # Sorenson H.263 knows no constant quality; a high bit rate keeps the colours.
        video.options = {"q": "4"} if flash else {"preset": "ultrafast", "crf": "20"}
        if flash:
            video.bit_rate = 2_000_000
        sound = None
        if samples is not None:
            layout = "mono" if flash else "stereo"
            sound = container.add_stream("libmp3lame" if flash else "aac", rate=rate, layout=layout)
            if not flash:
                sound.options = {**QUICK_AAC}
        for shown in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(video.encode())
        if sound is not None and samples is not None:
            for frame in _audio_frames(samples, rate, sound.codec_context):
                container.mux(sound.encode(frame))
            container.mux(sound.encode())


def _audio_frames(
    samples: np.ndarray, rate: int, codec: AudioCodecContext
) -> Iterator[av.AudioFrame]:
    """Yield the samples, every channel alike, in frames of the size that the codec takes."""
    channels = codec.layout.nb_channels
    resampler = av.AudioResampler(codec.format, codec.layout, rate, codec.frame_size)
    frame = av.AudioFrame.from_ndarray(
        np.repeat(samples, channels)[None], format="s16", layout=codec.layout
    )
    frame.sample_rate, frame.pts = rate, 0
    yield from resampler.resample(frame)
    yield from resampler.resample(None)

"""WAV files of 16-bit PCM, mono, as recorded: nothing is resampled, mixed down or repaired."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from mmbench.data.dataset import Problem
from mmbench.data.files import inspect


def read_wav(path: Path, rate: int) -> np.ndarray | Problem:
    """Return the samples ``(N,)`` int16 of a file, or why it cannot be used.

    Refused: what :func:`mmbench.data.files.inspect` refuses, anything but PCM16 WAV, a file with
    fewer samples than its header says, several channels, another rate (Hz), no samples, and
    silence (every sample the same).
    """
    if problem := inspect(path):
        return problem
    where = str(path)
    try:
        with wave.open(where, "rb") as file:
            channels, width, found_rate, count, *_ = file.getparams()
            content = file.readframes(count)
    except EOFError:
        return Problem(where, "is cut: its header ends early", "download it again")
    except wave.Error as error:
        return Problem(where, f"is not a PCM WAV file ({error})", "convert it to 16-bit PCM")
    if width != 2:
        return Problem(where, f"has {8 * width} bits a sample, not 16", "convert it to 16-bit PCM")
    if len(content) < count * width * channels:
        held = len(content) // (width * channels)
        return Problem(where, f"is cut: {held} of {count} samples are there", "download it again")
    if channels != 1:
        return Problem(where, f"has {channels} channels, not 1", "mix it down to mono")
    if found_rate != rate:
        return Problem(where, f"has {found_rate} Hz, not {rate}", f"resample it to {rate} Hz")
    samples = np.frombuffer(content, dtype="<i2").astype(np.int16)
    if len(samples) == 0:
        return Problem(where, "holds no samples", "download it again")
    if samples.min() == samples.max():
        return Problem(where, "is silent: every sample is the same", "download it again")
    return samples

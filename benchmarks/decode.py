"""What `prepare` costs beyond decoding: clips per second against a bare PyAV loop.

    python benchmarks/decode.py
    python benchmarks/decode.py --memory

Both decode the same generated clips, in the layout of CREMA-D, in as many processes: the sound of
each WAV, and all frames of each FLV, of which those at half-second steps are made smaller and
written to a file. They take turns, each in a process of its own; the ratio is the median over the
pairs. `prepare` also checks the files, hashes what it reads and writes, and keeps a manifest.

With `--memory`: the peak resident set of a process that prepares 500 clips, and 4,000.

Targets: at least 0.9 of the bare loop; two processes faster than one as the bare loop is; the same
memory for 4,000 clips as for 500.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import av
from av.video.reformatter import Interpolation

from mmbench.data.media.manifest import Clip, MediaRecipe
from mmbench.data.media.prepare import prepare
from mmbench.testing.clips import Look
from mmbench.testing.corpora import cremad

RECIPE = MediaRecipe(fps=2.0, short_side=256, rate=16_000, seconds=5.5)
"""That of CREMA-D."""
TINY = Look(seconds=0.5, height=32, width=32, fps=10)
MEGABYTE = 1024
"""ru_maxrss of Linux counts kilobytes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, default=192)
    parser.add_argument("--height", type=int, default=360, help="CREMA-D has 360")
    parser.add_argument("--width", type=int, default=480, help="CREMA-D has 480")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure memory rather than speed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.memory:
            compare_memory(folder)
        else:
            look = Look(seconds=2.5, height=asked.height, width=asked.width, fps=30)
            compare_speed(folder, listed(folder / "files", asked.clips, look), asked.pairs)


def listed(folder: Path, count: int, look: Look) -> list[Clip]:
    """Write clips, and return how they are listed for `prepare`."""
    return [
        Clip(
            clip.id,
            clip.label,
            clip.id[:4],
            str(clip.video.relative_to(folder)),
            str(clip.audio.relative_to(folder)),
        )
        for clip in cremad(folder, count, look=look, workers=len(os.sched_getaffinity(0)))
    ]


# -- speed -----------------------------------------------------------------------------------------


def compare_speed(folder: Path, clips: Sequence[Clip], pairs: int) -> None:
    print("| processes | bare loop, clips/s | prepare, clips/s | ratio |")
    print("|---|---|---|---|")
    for processes in (1, 2):
        bare, ours = [], []
        for _ in range(pairs):
            bare.append(seconds(partial(bare_loop, clips, folder, processes)))
            ours.append(seconds(partial(prepared, clips, folder, processes)))
        ratio = statistics.median(b / o for b, o in zip(bare, ours, strict=True))
        rates = [len(clips) / statistics.median(times) for times in (bare, ours)]
        print(f"| {processes} | {rates[0]:.1f} | {rates[1]:.1f} | {ratio:.2f} |", flush=True)


def seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def prepared(clips: Sequence[Clip], folder: Path, processes: int) -> None:
    cache = folder / "cache"
    prepare("cremad", clips, folder / "files", RECIPE, cache, said_to_nobody, processes)
    shutil.rmtree(cache)


def said_to_nobody(done: int, total: int, what: str) -> None:
    """Progress."""


def bare_loop(clips: Sequence[Clip], folder: Path, processes: int) -> None:
    out = folder / "bare"
    out.mkdir()
    parts = [(clips[i::processes], folder / "files", out / str(i)) for i in range(processes)]
    if processes == 1:
        decode_part(*parts[0])
    else:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            pool.starmap(decode_part, parts)
    shutil.rmtree(out)


def decode_part(clips: Sequence[Clip], source: Path, out: Path) -> None:
    """Decode clips into one file, the way one writes it without a library around it."""
    with out.open("wb") as file:
        for clip in clips:
            with av.open(str(source / clip.audio)) as container:
                for sound in container.decode(audio=0):
                    file.write(sound.to_ndarray().tobytes())
            with av.open(str(source / clip.video)) as container:
                container.streams.video[0].codec_context.thread_count = 1
                following = 0.0
                for frame in container.decode(video=0):
                    if frame.time is not None and frame.time >= following:
                        following += 1 / RECIPE.fps
                        scale = min(1.0, RECIPE.short_side / min(frame.width, frame.height))
                        small = frame.reformat(
                            round(frame.width * scale),
                            round(frame.height * scale),
                            "rgb24",
                            interpolation=Interpolation.AREA,
                        )
                        file.write(small.to_ndarray().tobytes())


# -- memory ----------------------------------------------------------------------------------------


def compare_memory(folder: Path) -> None:
    clips = listed(folder / "files", 4000, TINY)
    print("| clips | peak memory of prepare |")
    print("|---|---|")
    for count in (500, 4000):
        print(f"| {count:,} | {peak(clips[:count], folder) / MEGABYTE:.0f} MB |", flush=True)


def peak(clips: Sequence[Clip], folder: Path) -> int:
    """Return the peak memory, in kilobytes, of a fresh process that prepares the clips alone."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(peak_of_this_process, (list(clips), folder))


def peak_of_this_process(clips: Sequence[Clip], folder: Path) -> int:
    prepared(clips, folder, 1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()

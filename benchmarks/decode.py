"""What `prepare` costs beyond decoding: clips per second and CPU time against a bare PyAV loop.

    python benchmarks/decode.py
    python benchmarks/decode.py --memory

Both decode the same generated clips, in the layout of CREMA-D, in as many processes: the sound of
each WAV, and all frames of each FLV, of which those at half-second steps are made smaller and
written to a file; each process with one thread. They take turns, each in a process of its own that
has imported everything before it is measured. `prepare` also checks the files, hashes what it reads
and writes, and keeps a manifest.

CPU time is that of the process and of all that it starts, the least over the pairs: others' work
on the machine adds to it too, though far less than to the clock. With two processes, that of
`prepare` includes starting them: half a second. The ratio of clips per second is the median over
the pairs.

With `--memory`: the peak resident set of a process that prepares 500 clips, and 4,000.

Targets: at least 0.9 of the bare loop, in both; two processes faster than one as the bare loop is;
the same memory for 4,000 clips as for 500.
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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import av
from av.video.reformatter import Interpolation

from mmbench.data.media.manifest import Clip, MediaRecipe
from mmbench.data.media.prepare import prepare
from mmbench.testing.clips import Look

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
    # Not above: processes that `prepare` starts import this file, and would import torch with it.
    from mmbench.testing.corpora import cremad

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


@dataclass(frozen=True)
class Cost:
    """Of one pass over the clips, in seconds."""

    wall: float
    processor: float


def compare_speed(folder: Path, clips: Sequence[Clip], pairs: int) -> None:
    print(
        "| processes | bare loop, clips/s | prepare, clips/s | ratio "
        "| bare loop, CPU ms a clip | prepare, CPU ms a clip | ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    for processes in (1, 2):
        bare, ours = [], []
        for _ in range(pairs):
            bare.append(cost_alone(partial(bare_loop, clips, folder, processes)))
            ours.append(cost_alone(partial(prepared, clips, folder, processes)))
        ratio = statistics.median(b.wall / o.wall for b, o in zip(bare, ours, strict=True))
        rates = [len(clips) / statistics.median(c.wall for c in costs) for costs in (bare, ours)]
        least = [1000 * min(c.processor for c in costs) / len(clips) for costs in (bare, ours)]
        print(
            f"| {processes} | {rates[0]:.1f} | {rates[1]:.1f} | {ratio:.2f} "
            f"| {least[0]:.1f} | {least[1]:.1f} | {least[0] / least[1]:.2f} |",
            flush=True,
        )


def cost_alone(work: Callable[[], None]) -> Cost:
    """Return what some work costs in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(cost, work).result()


def cost(work: Callable[[], None]) -> Cost:
    """Return what some work costs, processes that it starts included: they have to end before they
    are counted, and the server that forks those of `prepare` only does with this process."""
    began, before = time.perf_counter(), processor_seconds()
    work()
    wall = time.perf_counter() - began
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    return Cost(wall, processor_seconds() - before)


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


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
            assert clip.audio is not None
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
                            threads=1,
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

"""From files to a trained model at the size of CREMA-D: what each command takes.

    python benchmarks/corpus.py
    python benchmarks/corpus.py --clips 744 --height 360 --width 480

Writes a corpus of generated clips in CREMA-D's layout, 7,442 of them unless asked otherwise, and
runs `mmbench data verify`, `mmbench data prepare` (twice: the second call finds all done) and one
epoch of `mmbench run` with ResNet-18 on the prepared clips, each as a command of its own. Printed
are seconds, clips a second and the peak memory of the command and its processes, the size of files
and cache, and the share of the epoch's training time that reading its batches takes (target: less
than 5 %). Frames are small unless asked otherwise: it is the number of clips that is looked at
here; `benchmarks/decode.py` has the speed at full size.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from mmbench.datasets.cremad import CremaD
from mmbench.options import validated
from mmbench.testing.clips import Look
from mmbench.testing.corpora import cremad

ALL = 7442
KILOBYTE = 1024
"""ru_maxrss of Linux counts in these."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, default=ALL)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a clip")
    parser.add_argument("--height", type=int, default=48)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    look = Look(asked.seconds, asked.height, asked.width, fps=15)
    with tempfile.TemporaryDirectory() as name:
        files, cache, runs = (Path(name) / part for part in ("files", "cache", "runs"))
        began = time.perf_counter()
        cremad(files, asked.clips, look=look, workers=asked.workers)
        taken = time.perf_counter() - began
        print(f"{asked.clips:,} clips written in {taken:.0f} s, {megabytes(files):.0f} MB\n")
        allowed = ["-d", "allow_missing=true"] if asked.clips < ALL else []
        small = ["-d", f"seconds={asked.seconds}"]
        source = ["cremad", "--source", str(files), "--workers", str(asked.workers), *allowed]
        prepare = ["data", "prepare", *source, *small, "--cache", str(cache)]
        train = [
            *("run", "--dataset", "cremad", "--method", "joint", "--results", str(runs)),
            *("-d", f"cache={cache}", *allowed, *small, "-d", "front_end=log_mel"),
            *("-d", "frames=1", "-d", "size=32", "-t", "epochs=1"),
        ]
        print("| command | seconds | clips/s | peak memory |")
        print("|---|---|---|---|")
        for said, words in {
            "verify": ["data", "verify", *source, "--show", "0"],
            "prepare": prepare,
            "prepare, all done": prepare,
            "run, one epoch": train,
        }.items():
            seconds, memory = measured(words)
            rate = asked.clips / seconds
            print(f"| {said} | {seconds:.1f} | {rate:.0f} | {memory:.0f} MB |", flush=True)
        (record,) = runs.glob("*/*/*/*/record.json")
        training = json.loads(record.read_text())["cost"]["train_seconds"]
        reading = reading_seconds(cache, asked.clips < ALL)
        print(f"\ncache: {megabytes(cache):.0f} MB")
        print(f"reading an epoch: {reading:.2f} s, {reading / training:.1%} of training it")


def reading_seconds(cache: Path, is_partial: bool) -> float:
    """Return the time to read the training rows once, in augmented batches as trained on."""
    options = {"cache": str(cache), "frames": 1, "size": 32, "front_end": "log_mel"}
    asked = validated(CremaD.Config, {**options, "allow_missing": is_partial}, "cremad")
    train = CremaD(asked).load("speaker", 0).train
    augment = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    for rows in torch.split(torch.randperm(len(train)), 64):
        train.batch(rows, [*train.inputs], augment)
    return time.perf_counter() - began


def measured(words: Sequence[str]) -> tuple[float, float]:
    """Return the seconds that a command takes, and its largest memory in MB: that of the largest of
    its processes. Exits with what the command said where it fails."""
    code = f"import sys; sys.argv = {['mmbench', *words]!r}; {COMMAND}"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        sys.exit(f"mmbench {' '.join(words)} failed:\n{done.stderr}")
    return seconds, float(done.stdout.splitlines()[-1]) / KILOBYTE


COMMAND = f"""
import atexit, resource
from mmbench.cli.app import main

def say():
    kinds = ({resource.RUSAGE_SELF}, {resource.RUSAGE_CHILDREN})
    print(max(resource.getrusage(kind).ru_maxrss for kind in kinds))

atexit.register(say)
main()
"""
"""Runs a command in a process that prints, last of all, its peak memory in kilobytes."""


def megabytes(folder: Path) -> float:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    main()

"""Does the suite reach the accuracies of the pilot that it was specified from?

    python benchmarks/pilots.py mfeat
    python benchmarks/pilots.py avdigits --seeds 0-1     (after `mmbench data prepare avdigits`)

Runs what is not stored yet and prints, system by system, the pilot's test accuracy, ours over the
seeds and the difference in points. The pilot trained with its own code: on mfeat an MLP per view,
on avdigits small CNNs over log-mel and image, two seeds, on the training and validation rows, and
tested on the speaker left out.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import mmbench
from mmbench.cli.run import parse_seeds

TOLERANCE = 0.015


@dataclass(frozen=True)
class Target:
    """A system and what the pilot saw: test accuracy, and probe accuracies by modality."""

    method: str
    accuracy: float
    options: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pilot:
    """A dataset as the pilot used it, and its targets."""

    dataset: str
    settings: dict[str, Any]
    targets: tuple[Target, ...]


def _avdigits(image: float, audio: float, probes: dict[str, float], *accuracies: float) -> Pilot:
    """Return the pilot at one setting of the noise; accuracies in the order of the systems."""
    noise = {"image_noise": image, "audio_noise": audio}
    recipe = {"train_on": "train+val", "select": "last"}
    settings = {"protocol": "speaker", "dataset_options": noise, "recipe": recipe}
    systems: tuple[tuple[str, dict[str, Any]], ...] = (
        ("unimodal", {"modality": "audio"}),
        ("unimodal", {"modality": "image"}),
        ("joint", {}),
        ("ogm_ge", {"alpha": 0.5}),
        ("multiloss", {}),
        ("ensemble", {}),
        ("iibalance", {}),
    )
    targets = tuple(
        Target(method, accuracy, options, probes if method == "joint" else {})
        for (method, options), accuracy in zip(systems, accuracies, strict=True)
    )
    return Pilot("avdigits", settings, targets)


PILOTS: dict[str, tuple[Pilot, ...]] = {
    "mfeat": (
        Pilot(
            "mfeat",
            {"protocol": "few"},
            (
                Target("unimodal", 0.756, {"modality": "fourier"}, {"fourier": 0.756}),
                Target("unimodal", 0.787, {"modality": "zernike"}),
                Target("unimodal", 0.699, {"modality": "morphological"}),
                Target("joint", 0.851, probes={"fourier": 0.709}),
                Target("ensemble", 0.865),
                Target("multiloss", 0.868, probes={"fourier": 0.748}),
                Target("ogm_ge", 0.851),
                Target("iibalance", 0.863),
            ),
        ),
    ),
    "avdigits": (
        _avdigits(
            1.5,
            0.0,
            {"audio": 0.757, "image": 0.823},
            0.704,
            0.903,
            0.946,
            0.940,
            0.970,
            0.974,
            0.982,
        ),
        _avdigits(
            2.5,
            0.0,
            {"audio": 0.756, "image": 0.726},
            0.704,
            0.825,
            0.900,
            0.912,
            0.920,
            0.949,
            0.949,
        ),
        _avdigits(
            1.5,
            1.0,
            {"audio": 0.457, "image": 0.886},
            0.614,
            0.903,
            0.921,
            0.906,
            0.947,
            0.953,
            0.959,
        ),
    ),
}


def main() -> None:
    """Parse the command line and print a line per target."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pilot", choices=PILOTS)
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--results", type=Path, default=Path("results/runs"))
    asked = parser.parse_args()
    for pilot in PILOTS[asked.pilot]:
        print(f"\n{pilot.dataset} {pilot.settings}, seeds {asked.seeds}")
        print(f"{'system':34}{'pilot':>8}{'ours':>8}{'sd':>7}{'points':>8}")
        for target in pilot.targets:
            report(pilot, target, parse_seeds([asked.seeds]), asked.results)


def report(pilot: Pilot, target: Target, seeds: list[int], results: Path) -> None:
    """Run a target where it is not stored, and print its lines."""
    outcomes = mmbench.run(
        target.method,
        dataset=pilot.dataset,
        results=results,
        seeds=seeds,
        method_options=target.options,
        **pilot.settings,
    )
    records = [outcome.record for outcome in outcomes]
    name = " ".join([target.method, *(f"{k}={v}" for k, v in target.options.items())])
    print_line(name, target.accuracy, [r["metrics"]["test"]["accuracy"] for r in records])
    for m, expected in target.probes.items():
        probes = [r["per_modality"][m]["probe"]["test"] for r in records]
        print_line(f"  probe of {m}", expected, probes)


def print_line(name: str, expected: float, values: list[float]) -> None:
    """Print one comparison, marked where it is further off than the tolerance."""
    ours = mean(values)
    spread = f"{stdev(values):.3f}" if len(values) > 1 else "-"
    mark = "" if abs(ours - expected) <= TOLERANCE else "  *"
    points = 100 * (ours - expected)
    print(f"{name:34}{expected:8.3f}{ours:8.3f}{spread:>7}{points:+8.1f}{mark}", flush=True)


if __name__ == "__main__":
    main()

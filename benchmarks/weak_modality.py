"""Does a method help the modality that joint training neglects? On data where the truth is known.

    python benchmarks/weak_modality.py

`synthetic` with two modalities: `strong` tells most and is learned fast, `weak` tells less and lies
behind a map that is slow to learn. For each registered method, over twelve seeds, a fresh linear
probe reads the encoder of the weak modality on test rows, and so does one after joint training with
the same fusion and seed. Writes the paired differences, with the p-values of sign-flip tests and
Holm's correction over the methods, to results/tables/weak-modality.csv, which the pages in
docs/methods quote (python docs/generate.py). Takes 40 minutes on two quiet cores; runs that are
stored already are not repeated.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

import mmbench
from mmbench import registry
from mmbench.cli.run import parse_seeds
from mmbench.info import MethodInfo
from mmbench.report.statistics import Difference, corrected, paired_difference

STRONG, WEAK = "x1", "x2"
SETTINGS: dict[str, Any] = {
    "dataset": "synthetic",
    "dataset_options": {"accuracy": [0.9, 0.75], "difficulty": [0.0, 1.0], "train": 600},
    "recipe": {"epochs": 30, "select": "last"},
}
OUTPUT = Path("results/tables/weak-modality.csv")
Accuracies = dict[int, dict[str, float]]
"""By seed: fused, and of a probe on each encoder."""

LEFT_OUT = ("majority", "unimodal", "ensemble", "joint")
"""Controls that train no network over both modalities, and the reference."""


def main() -> None:
    """Run what is not stored and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", default="0-11")
    parser.add_argument("--results", type=Path, default=Path("results/runs"))
    parser.add_argument("--method", action="append", help="default: all")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    asked = parser.parse_args()
    seeds = parse_seeds([asked.seeds])
    studied: dict[str, tuple[str, Accuracies, Accuracies]] = {}
    for entry in registry.entries("method"):
        info = registry.summary(entry)
        if entry.name in LEFT_OUT or (asked.method and entry.name not in asked.method):
            continue
        assert isinstance(info, MethodInfo)
        ours = outcomes(entry.name, info.default_fusion, seeds, asked.results)
        joint = outcomes("joint", info.default_fusion, seeds, asked.results)
        studied[entry.name] = info.default_fusion, ours, joint
        print(entry.name, flush=True)
    rows: dict[str, dict[str, Any]] = {
        name: {"method": name, "fusion": fusion, "seeds": len(ours)}
        for name, (fusion, ours, _) in studied.items()
    }
    for what, key in (("weak", WEAK), ("strong", STRONG), ("fused", "fused")):
        found = [compared(ours, joint, key) for _, ours, joint in studied.values()]
        for (name, (_, ours, joint)), d in zip(studied.items(), corrected(found), strict=True):
            assert d is not None
            rows[name] |= {
                what: sum(v[key] for v in ours.values()) / len(ours),
                f"{what}_joint": sum(v[key] for v in joint.values()) / len(joint),
                f"{what}_difference": d.mean,
                f"{what}_low": d.low,
                f"{what}_high": d.high,
                f"{what}_p": d.p,
                f"{what}_p_holm": d.p_holm,
                f"{what}_verdict": d.verdict,
            }
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows.values()).to_csv(asked.output, index=False, float_format="%.6g")


def outcomes(method: str, fusion: str, seeds: list[int], results: Path) -> Accuracies:
    """Return test accuracies by seed: fused, and of a probe on each encoder."""
    found = {}
    for outcome in mmbench.run(method, fusion=fusion, seeds=seeds, results=results, **SETTINGS):
        record = outcome.record
        if record["status"] != "done":
            raise SystemExit(f"{method}, seed {record['seed']}: {record['reason']}")
        probes = {m: record["per_modality"][m]["probe"]["test"] for m in (STRONG, WEAK)}
        found[record["seed"]] = probes | {"fused": record["metrics"]["test"]["accuracy"]}
    return found


def compared(ours: Accuracies, joint: Accuracies, key: str) -> Difference:
    """Return the paired difference of one of the accuracies."""
    values, reference = ({seed: v[key] for seed, v in found.items()} for found in (ours, joint))
    return paired_difference(values, reference)


if __name__ == "__main__":
    main()

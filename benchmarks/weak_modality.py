"""Does a method help the modality that joint training neglects? On data where the truth is known.

    python benchmarks/weak_modality.py

`synthetic` with two modalities: `strong` tells most and is learned fast, `weak` tells less and lies
behind a map that is slow to learn. For each registered method, over ten seeds, a fresh linear probe
reads the encoder of the weak modality on test rows, and so does one after joint training with the
same fusion and seed. Writes the paired differences to results/tables/weak-modality.csv, which the
pages in docs/methods quote (python docs/generate.py). Takes 40 minutes on two quiet cores; runs
that are stored already are not repeated.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

import mmbench
from mmbench import registry
from mmbench.cli.run import parse_seeds
from mmbench.info import MethodInfo
from mmbench.report.statistics import paired_difference

STRONG, WEAK = "x1", "x2"
SETTINGS: dict[str, Any] = {
    "dataset": "synthetic",
    "dataset_options": {"accuracy": [0.9, 0.75], "difficulty": [0.0, 1.0], "train": 600},
    "recipe": {"epochs": 30, "select": "last"},
}
OUTPUT = Path("results/tables/weak-modality.csv")
LEFT_OUT = ("majority", "unimodal", "ensemble", "joint")
"""Controls that train no network over both modalities, and the reference."""


def main() -> None:
    """Run what is not stored and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--results", type=Path, default=Path("results/runs"))
    parser.add_argument("--method", action="append", help="default: all")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    asked = parser.parse_args()
    seeds = parse_seeds([asked.seeds])
    rows = []
    for entry in registry.entries("method"):
        info = registry.summary(entry)
        if entry.name in LEFT_OUT or (asked.method and entry.name not in asked.method):
            continue
        assert isinstance(info, MethodInfo)
        ours = outcomes(entry.name, info.default_fusion, seeds, asked.results)
        joint = outcomes("joint", info.default_fusion, seeds, asked.results)
        rows.append(row(entry.name, info.default_fusion, ours, joint))
        print(rows[-1], flush=True)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(asked.output, index=False, float_format="%.6g")


def outcomes(
    method: str, fusion: str, seeds: list[int], results: Path
) -> dict[int, dict[str, float]]:
    """Return test accuracies by seed: fused, and of a probe on each encoder."""
    found = {}
    for outcome in mmbench.run(method, fusion=fusion, seeds=seeds, results=results, **SETTINGS):
        record = outcome.record
        if record["status"] != "done":
            raise SystemExit(f"{method}, seed {record['seed']}: {record['reason']}")
        probes = {m: record["per_modality"][m]["probe"]["test"] for m in (STRONG, WEAK)}
        found[record["seed"]] = probes | {"fused": record["metrics"]["test"]["accuracy"]}
    return found


def row(
    method: str,
    fusion: str,
    ours: dict[int, dict[str, float]],
    joint: dict[int, dict[str, float]],
) -> dict[str, Any]:
    """Return what a method changes against joint training: shares, and paired differences."""
    made: dict[str, Any] = {"method": method, "fusion": fusion, "seeds": len(ours)}
    for name, key in (("weak", WEAK), ("strong", STRONG), ("fused", "fused")):
        values, reference = ({s: v[key] for s, v in x.items()} for x in (ours, joint))
        d = paired_difference(values, reference)
        made |= {
            name: sum(values.values()) / len(values),
            f"{name}_joint": sum(reference.values()) / len(reference),
            f"{name}_difference": d.mean,
            f"{name}_low": d.low,
            f"{name}_high": d.high,
            f"{name}_p": d.p,
            f"{name}_verdict": d.verdict,
        }
    return made


if __name__ == "__main__":
    main()

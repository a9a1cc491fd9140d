"""How long a comparison and a report over thousands of stored runs take.

    python benchmarks/many_runs.py

Trains one small run, writes 2,000 copies of it that differ in dataset, method, setting, seed and
accuracies (40 methods and variants, 5 datasets, 10 seeds), and times the commands over them in
processes of their own. Targets: `mmbench compare` under 5 s and 500 MB, `mmbench report` under
60 s.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mmbench.hashing import digest

CONTROLS = ("majority", "joint", "multiloss", "ensemble")


def main() -> None:
    """Write the runs, and print what the commands took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", type=int, default=40)
    parser.add_argument("--datasets", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=10)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        count = write_runs(root / "runs", asked.methods, asked.datasets, asked.seeds)
        print(f"{count} runs")
        commands = {
            "compare": ["compare", "--results", str(root / "runs")],
            "compare, one table": ["compare", "--results", str(root / "runs"), "--dataset", "d0"],
            "report": ["report", "--results", str(root / "runs"), "--output", str(root / "r.html")],
        }
        for name, words in commands.items():
            seconds, megabytes = timed([sys.executable, "-m", "mmbench", *words])
            print(f"{name:20} {seconds:6.1f} s {megabytes:6.0f} MB at most")


def write_runs(root: Path, methods: int, datasets: int, seeds: int) -> int:
    """Write copies of a run with other names and numbers; return how many."""
    # In a process of its own: children start with the largest memory that their parent had.
    one = root.parent / "one"
    words = "run -m joint --dataset synthetic -d train=200 -d val=100 -d test=300 -d classes=10"
    command = [sys.executable, "-m", "mmbench", *words.split(), "-t", "epochs=10"]
    subprocess.run([*command, "--results", str(one)], check=True, stdout=subprocess.DEVNULL)
    (path,) = one.glob("*/*/*/seed-0")
    template = (path / "record.json").read_text()
    others = {n: (path / n).read_bytes() for n in ("history.csv", "predictions.npz", "config.yaml")}
    draw = random.Random(0)
    names = [f"method{i}" for i in range(methods - len(CONTROLS))]
    for d in range(datasets):
        for method in (*CONTROLS, *names):
            setting = digest(f"{method} d{d}")[:12]
            better = draw.gauss(0, 0.02)
            for seed in range(seeds):
                record = json.loads(template)
                record |= {"dataset": f"d{d}", "method": method, "seed": seed}
                record |= {"config_hash": setting, "changed": {}}
                record["fingerprints"] = {"split": f"s{seed}", "data": f"d{d}"}
                _shift(record, better + draw.gauss(0, 0.01))
                folder = root / f"d{d}" / method / setting / f"seed-{seed}"
                folder.mkdir(parents=True)
                (folder / "record.json").write_text(json.dumps(record))
                for name, content in others.items():
                    (folder / name).write_bytes(content)
    return methods * datasets * seeds


def _shift(record: dict[str, Any], change: float) -> None:
    """Move the accuracies of a record."""
    for scores in record["metrics"].values():
        scores["accuracy"] = min(1.0, max(0.0, scores["accuracy"] + change))
    for readouts in record["per_modality"].values():
        for by_split in readouts.values():
            for split in by_split:
                by_split[split] = min(1.0, max(0.0, by_split[split] + change))


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds and its largest memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()

"""How often 95 % intervals of a mean over seeds cover it: Student-t and BCa bootstrap.

    python benchmarks/interval_coverage.py --trials 1000

Prints the table of docs/comparing.md, from which `mmbench.report.statistics.BCA_FROM` was chosen.
Values are drawn as accuracies over seeds may fall: `normal`; `accuracies`, shares of 400 test rows,
which tie; `skewed`, a gamma tail (shape 2) to the left; `heavy tails`, Student's t with 3 degrees
of freedom; `collapses`, one run in ten at chance.
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy import stats

from mmbench.report.resampling import bca_interval

SIZES = (5, 10, 20, 30, 50, 100)

Draw = Callable[[np.random.Generator, int], np.ndarray]

DRAWS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(0.8, 0.01, n), 0.8),
    "accuracies": (lambda rng, n: rng.binomial(400, rng.normal(0.8, 0.01, n)) / 400, 0.8),
    "skewed": (lambda rng, n: 0.82 - rng.gamma(2, 0.01, n), 0.8),
    "heavy tails": (lambda rng, n: 0.8 + 0.01 * rng.standard_t(3, n), 0.8),
    "collapses": (
        lambda rng, n: np.where(rng.random(n) < 0.1, 0.3, 0.8) + rng.normal(0, 0.01, n),
        0.75,
    ),
}


def covered(draw: Draw, true: float, n: int, trials: int) -> tuple[float, float]:
    """Return how often Student's interval covers, and how often BCa does; where BCa is not defined
    it does not cover."""
    rng = np.random.default_rng(n)
    student = bca = 0
    for _ in range(trials):
        x = draw(rng, n)
        low, high = stats.t.interval(0.95, n - 1, loc=x.mean(), scale=stats.sem(x))
        student += bool(low <= true <= high)
        ends = bca_interval(x)
        bca += ends is not None and ends[0] <= true <= ends[1]
    return student / trials, bca / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    print("| values | " + " | ".join(f"n = {n}" for n in SIZES) + " |")
    print("|---|" + "---|" * len(SIZES))
    for name, (draw, true) in DRAWS.items():
        cells = [covered(draw, true, n, trials) for n in SIZES]
        said = (f"{100 * student:.0f} / {100 * bca:.0f}" for student, bca in cells)
        print(f"| {name} | " + " | ".join(said) + " |", flush=True)


if __name__ == "__main__":
    main()

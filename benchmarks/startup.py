"""How long the command line takes to answer, over repeated starts of the interpreter.

    python benchmarks/startup.py

Targets: 0.3 s for ``mmbench --help``, 0.5 s for ``mmbench list methods``. The first line of the
table is the floor: an interpreter that does nothing. The column ``cpu`` tells what the answer takes
of a processor, which on a busy machine is less than the time that passes.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

TARGETS: dict[tuple[str, ...], float | None] = {
    ("-c", "pass"): None,
    ("-m", "mmbench", "--help"): 0.3,
    ("-m", "mmbench", "list", "methods"): 0.5,
    ("-m", "mmbench", "list", "datasets"): 0.5,
}
"""Arguments of the interpreter, and the seconds they may take."""


def seconds(arguments: tuple[str, ...]) -> tuple[float, float]:
    """Return the seconds that pass during one start, and those of processor time."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    passed, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=11, help="starts per command")
    repeats: int = parser.parse_args().repeats
    print(f"{'command':<26}{'median':>10}{'fastest':>10}{'cpu':>10}{'target':>10}")
    for arguments, target in TARGETS.items():
        seconds(arguments)  # the first start compiles and fills the file cache
        passed, spent = zip(*(seconds(arguments) for _ in range(repeats)), strict=True)
        columns = (statistics.median(passed), min(passed), statistics.median(spent), target)
        shown = "".join(f"{x:>8.3f} s" if x is not None else "" for x in columns)
        print(f"{' '.join(arguments):<26}{shown}")


if __name__ == "__main__":
    main()

"""From files that lie on disk as CREMA-D does to a table of methods, by the commands alone."""

from pathlib import Path

from mmbench.testing.clips import Look
from mmbench.testing.corpora import Signal, cremad
from tests.cli.command import Command, records

CHANCE = 1 / 6
METHODS = {
    "joint": (),
    "ogm_ge": ("-o", "scale_where=update"),  # Adam undoes what scales gradients
    "iibalance": ("-o", "budget.folds=1"),
}
CORPUS = ("-d", "allow_missing=true")
"""96 of CREMA-D's 7,442 names are there."""
# Few updates: the customary SGD would want more of them, and batch norm its running statistics.
SMALL = "-d frames=1 -d size=32 -t epochs=4 -t batch_size=8 -t optimizer=adam -t lr=0.001"
# Mel bands of the second that a clip lasts, in a twelfth of the time that 257 x 188 values take.
SOUND = ("-d", "seconds=1.2")
ENCODERS = "-d front_end=log_mel --encoder audio=resnet18 --encoder visual=resnet18"


def test_files_as_downloaded_become_a_table_of_methods(command: Command, tmp_path: Path) -> None:
    look = Look(seconds=1.2, height=32, width=40, fps=10)
    cremad(tmp_path / "files", 96, signal=Signal(sound=1.0, picture=0.5), look=look)
    files = ("--source", tmp_path / "files", *CORPUS, "--workers", 1)

    verified = command("data", "verify", "cremad", *files, "--show", 0)
    assert verified.code == 0, verified
    assert "can be used" in verified.out
    for emotion in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"):
        (counted,) = (line for line in verified.out.splitlines() if f" {emotion} (of" in line)
        assert counted.split()[-1] == "16"
    prepared = command("data", "prepare", "cremad", *files, *SOUND, "--cache", tmp_path / "cache")
    assert prepared.code == 0, prepared
    assert "96 clips" in prepared.out

    data = (*CORPUS, *SOUND, "-d", f"cache={tmp_path / 'cache'}", *ENCODERS.split())
    for method, options in METHODS.items():
        run = command.run(SMALL, "--dataset", "cremad", "--method", method, *options, *data)
        assert run.code == 0, run
    by_method = {record["method"]: record for record in records()}
    assert by_method.keys() == METHODS.keys()
    for record in by_method.values():
        assert record["metrics"]["test"]["accuracy"] > 3 * CHANCE
    alone = {m: by_method["joint"]["per_modality"][m]["split"]["test"] for m in ("audio", "visual")}
    assert alone["audio"] > alone["visual"] + 0.2  # the picture cannot do better than 0.58

    table = command("compare", "--format", "markdown")
    assert table.code == 0, table
    assert "cremad speaker" in table.out
    rows = table.out.replace("\\_", "_").splitlines()  # Markdown escapes it
    for method in METHODS:
        assert any(row.startswith((f"| {method} |", f"| {method}[")) for row in rows)

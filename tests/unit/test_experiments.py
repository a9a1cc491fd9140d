"""The experiments in print are ones that this version could run, and their files are refused with a
line that helps where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmbench.errors import DataError, RequestError
from mmbench.registry import entries
from mmbench.report.reported import load_reported
from mmbench.reproduce.experiment import Experiment, choose, load_experiments
from mmbench.reproduce.readiness import check, has_dataset, needs_files, readiness, request
from tests.unit.test_reported_values import DATASETS

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))


@pytest.fixture(scope="module")
def experiments() -> dict[str, Experiment]:
    return load_experiments()


def test_the_package_finds_every_file(experiments: dict[str, Experiment]) -> None:
    assert list(experiments) == NAMES != []


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_valid_as_far_as_this_version_goes(
    name: str, experiments: dict[str, Experiment]
) -> None:
    """Methods, options, fusions and recipes always; dataset options, protocol and modalities as
    soon as the dataset is registered; the complete request where its data need no files."""
    from mmbench.planning import make_jobs

    experiment = experiments[name]
    check(experiment)
    assert experiment.dataset in DATASETS | {entry.name for entry in entries("dataset")}
    if not has_dataset(experiment):
        assert "does not have" in readiness(experiment).reason
        return
    for system in experiment.systems:
        asked = request(experiment, system, experiment.seeds[:1])
        if not needs_files(experiment):
            assert all(job.config.protocol == experiment.protocol for job in make_jobs(asked))


def test_the_pilots_are_here_with_their_values(experiments: dict[str, Experiment]) -> None:
    """As the specification of the pilots has them."""
    few = {s.name: s.reported for s in experiments["mfeat-few"].systems}
    assert few["joint"] == {"accuracy": 85.1, "probe.fourier": 70.9}
    assert few["multiloss"] == {"accuracy": 86.8, "probe.fourier": 74.8}
    noisy = experiments["avdigits-audio-1.0-image-1.5"]
    assert noisy.dataset_options == {"image_noise": 1.5, "audio_noise": 1.0}
    assert noisy.recipe == {"train_on": "train+val", "select": "last"}  # from the file it is like
    assert {s.name: s.reported["accuracy"] for s in noisy.systems}["iibalance"] == 95.9


def test_values_of_results_reported_are_those_of_the_dataset(
    experiments: dict[str, Experiment],
) -> None:
    ucf = experiments["balancebenchmark-ucf101"]
    values = {s.method: s.reported for s in ucf.systems}
    assert values["joint"] == {"accuracy": 81.80}
    assert "greedy" not in values  # a dash in the table
    cremad = {s.method: s.reported for s in experiments["balancebenchmark-cremad"].systems}
    assert cremad["ogm_ge"] == {"accuracy": 67.76, "macro_f1": 68.02}
    assert ucf.source is not None
    assert "BalanceBenchmark" in ucf.source
    twice = [s.reported["accuracy"] for s in experiments["dgl-kinetics_sounds"].systems]
    assert twice == [74.78, 75.10, 76.28]


def test_every_method_with_a_comparable_value_in_print_is_repeated(
    experiments: dict[str, Experiment],
) -> None:
    """A source whose protocol mmbench can express is left out for a reason, written here."""
    printed = {v.method for source in load_reported() for v in source.values if not v.unregistered}
    repeated = {s.method for e in experiments.values() for s in e.systems}
    assert printed <= repeated


def test_a_system_can_be_chosen(experiments: dict[str, Experiment]) -> None:
    (chosen,) = choose(["mfeat-few/joint[late]"], experiments)
    assert [(s.method, s.fusion) for s in chosen.systems] == [("joint", "late")]
    asked = request(chosen, chosen.systems[0], (7,), "cpu")
    assert (asked.methods, asked.fusion, asked.seeds) == (("joint",), "late", (7,))
    for wrong, word in (("mfeat-fwe", "mfeat-few"), ("mfeat-few/jiont", "joint")):
        with pytest.raises(RequestError, match=word):
            choose([wrong], experiments)


GOOD: dict[str, object] = {
    "title": "t",
    "source": "s",
    "dataset": "mfeat",
    "protocol": "few",
    "differences": ["other weights"],
    "systems": [{"method": "joint", "reported": {"accuracy": 85}}],
}


def write(folder: Path, **changes: object) -> Path:
    values = {**GOOD, **changes}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"systems": []}, "systems"),
        ({"seeds": []}, "seeds"),
        ({"speed": 3}, "speed"),
        ({"source": None}, "either 'source' or 'reported_in'"),
        ({"reported_in": "dgl"}, "either 'source' or 'reported_in'"),
        ({"source": None, "reported_in": "dlg"}, "needs|has both"),
        ({"systems": [{"method": "joint"}]}, "system 'joint' needs 'reported'"),
        ({"systems": [{"method": "joint", "reported": {"accuracy": 850}}]}, "100"),
        ({"systems": [{"method": "joint", "reported": {"accuracy": 85}}] * 2}, "two systems"),
        ({"like": "yours"}, "'yours' is no experiment"),
        ({"differences": []}, "differences"),
    ],
)
def test_a_file_that_is_wrong_in_itself_is_refused_by_name(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(DataError, match=words) as caught:
        load_experiments(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reported_in", "systems", "words"),
    [
        ("dlg", [{"method": "dgl"}], "did you mean dgl"),
        ("dgl", [{"method": "joint"}], "no value of these systems on cremad"),
        ("dgl", [{"method": "dgl"}], "several values of accuracy on cremad"),
    ],
)
def test_values_that_results_reported_cannot_give_are_refused(
    reported_in: str, systems: list[dict[str, str]], words: str, tmp_path: Path
) -> None:
    write(tmp_path, source=None, reported_in=reported_in, systems=systems, dataset="cremad")
    with pytest.raises(DataError, match=words):
        load_experiments(tmp_path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no experiments here"):
        load_experiments(tmp_path)
    with pytest.raises(RequestError, match="no such folder"):
        load_experiments(tmp_path / "none")
    (tmp_path / "mine.yaml").write_text("a: [")
    with pytest.raises(DataError, match=r"mine\.yaml: cannot be read"):
        load_experiments(tmp_path)
    (tmp_path / "mine.yaml").write_text("words")
    with pytest.raises(DataError, match="holds no settings"):
        load_experiments(tmp_path)
    write(tmp_path).rename(tmp_path / "list.yaml")
    (tmp_path / "mine.yaml").unlink(missing_ok=True)
    with pytest.raises(DataError, match="cannot be called 'list'"):
        load_experiments(tmp_path)


SYSTEM: dict[str, object] = {"method": "joint", "reported": {"accuracy": 85}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"systems": [{**SYSTEM, "method": "jiont"}]}, "unknown method"),
        ({"systems": [{**SYSTEM, "method": "ogm_ge", "options": {"alpa": 1}}]}, "alpa"),
        ({"systems": [{**SYSTEM, "fusion": "concta"}]}, "concat"),
        ({"systems": [{**SYSTEM, "method": "mla", "fusion": "film"}]}, "cannot use fusion"),
        ({"recipe": {"epoch": 3}}, "epochs"),
        ({"protocol": "fwe"}, "few"),
        ({"dataset_options": {"view": 1}}, "view"),
        (
            {"systems": [{**SYSTEM, "method": "unimodal", "options": {"modality": "audio"}}]},
            "unknown modality 'audio'",
        ),
    ],
)
def test_what_this_version_cannot_run_is_named(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    write(tmp_path, **changes)
    (experiment,) = load_experiments(tmp_path).values()
    with pytest.raises(RequestError, match=words) as caught:
        check(experiment)
    assert "mine, system" in str(caught.value)


def test_an_unregistered_dataset_hides_no_other_fault(tmp_path: Path) -> None:
    write(tmp_path, dataset="cremax", protocol=None, recipe={"epoch": 3})
    (experiment,) = load_experiments(tmp_path).values()
    found = readiness(experiment)
    assert found.status == "not valid"
    assert "epochs" in found.reason
    with pytest.raises(RequestError, match="epochs"):
        check(experiment)


def test_data_that_are_not_there_are_said_to_be_missing(tmp_path: Path) -> None:
    options = {"cache": str(tmp_path / "none")}
    write(tmp_path, dataset="avdigits", protocol="speaker", dataset_options=options)
    (experiment,) = load_experiments(tmp_path).values()
    found = readiness(experiment)
    assert found.status == "needs data"
    assert "mmbench data prepare avdigits" in found.reason

"""From a request to configurations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mmbench.config import NEEDS, Recipe, RunConfig
from mmbench.environment import default_threads
from mmbench.errors import RequestError
from mmbench.options import validated
from mmbench.planning import Job, make_jobs, make_request, open_dataset, request_from_file


def jobs(**settings: Any) -> list[Job]:
    return list(make_jobs(make_request({"methods": ["joint"], **settings})))


def config(**values: Any) -> RunConfig:
    base = {"method": "joint", "dataset": "mfeat", "protocol": "few", "fusion": "concat"}
    return validated(RunConfig, {**base, **values}, "the run")


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"threads": 2},
        {"device": "cuda"},
        {"method": "../elsewhere/joint.py"},
        {"dataset": "/data/mfeat.py"},
    ],
)
def test_an_experiment_is_the_same_on_another_seed_machine_and_folder(
    other: Mapping[str, Any],
) -> None:
    assert config(**other).config_hash() == config().config_hash()


@pytest.mark.parametrize(
    "other",
    [
        {"method": "ogm"},
        {"method_options": {"alpha": 0.1}},
        {"dataset": "synthetic"},
        {"dataset_options": {"views": ["zernike"]}},
        {"protocol": "full"},
        {"fusion": "sum"},
        {"encoders": {"fourier": "mlp"}},
        {"recipe": {"lr": 0.5}},
        {"files": {"method": "0" * 64}},
        {"precision": "bf16"},
    ],
)
def test_whatever_decides_the_outcome_makes_another_experiment(other: Mapping[str, Any]) -> None:
    assert config(**other).config_hash() != config().config_hash()


def test_a_configuration_survives_being_stored() -> None:
    (job,) = jobs(recipe={"lr": 1e-5, "clip_norm": 1}, seeds=[7])
    again = RunConfig.model_validate(job.config.model_dump(mode="json"))
    assert again == job.config
    assert again.config_hash() == job.config.config_hash()


def test_seeds_share_a_split_across_methods_and_load_the_data_once() -> None:
    planned = list(make_jobs(make_request({"methods": ["joint", "ogm"], "seeds": [1, 0]})))
    assert [(j.config.method, j.config.seed) for j in planned] == [
        ("joint", 1), ("ogm", 1), ("joint", 0), ("ogm", 0),
    ]  # fmt: skip
    assert planned[0].splits is planned[1].splits
    assert planned[0].splits.fingerprints() != planned[2].splits.fingerprints()


def test_a_fault_of_any_method_is_found_before_the_first_job() -> None:
    request = make_request({"methods": ["joint", "ogm"], "method_options": {"ogm": {"alpha": -1}}})
    with pytest.raises(RequestError, match="alpha"):
        next(iter(make_jobs(request)))


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({}, {}),
        ({"recipe": {"epochs": 60}}, {}),
        ({"recipe": {"epochs": 2}}, {"recipe.epochs": 2}),
        ({"fusion": "concat"}, {}),
        ({"fusion": "film"}, {"fusion": "film"}),
        ({"encoders": {"fourier": "mlp"}}, {}),
        ({"dataset_options": {"views": ["zernike", "fourier"]}},
         {"dataset.views": ["zernike", "fourier"]}),
        ({"precision": "bf16"}, {"precision": "bf16"}),
        ({"recipe": {"optimizer": "adamw"}}, {"recipe.optimizer": "adamw"}),
        ({"recipe": {"optimizer": "sgd"}}, {}),
    ],
)  # fmt: skip
def test_changed_settings_are_those_that_differ_from_what_would_be_run(
    settings: dict[str, Any], difference: dict[str, Any]
) -> None:
    assert jobs(**settings)[0].changed == difference


def test_method_options_that_differ_carry_no_prefix() -> None:
    (job,) = jobs(methods=["ogm"], method_options={"alpha": 0.3})
    assert job.changed == {"alpha": 0.3}


@pytest.mark.parametrize("name", NEEDS)
def test_a_setting_that_would_not_be_used_is_refused(name: str) -> None:
    other, value = NEEDS[name]
    choices = {"optimizer": ("sgd", "adam", "adamw"), "schedule": ("constant", "step", "cosine")}
    setting = 3 if name == "step_epochs" else 0.5
    for choice in choices[other]:
        values = {other: choice, name: setting}
        if choice == value:
            assert getattr(validated(Recipe, values, "it"), name) == setting
        else:
            with pytest.raises(RequestError, match=f"{name} is not used by {other}={choice}"):
                validated(Recipe, values, "it")


def test_a_stored_file_is_told_from_one_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("method: joint\nseed: 3\n")
    assert request_from_file(path) == ({"methods": ["joint"], "seeds": [3]}, False)
    path.write_text("schema_version: 1\nmethod: joint\nseed: 3\n")
    assert request_from_file(path) == ({"methods": ["joint"], "seeds": [3]}, True)


def test_a_description_is_a_dataset_whose_options_can_be_given_too(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    dataset = open_dataset(str(path), {})
    assert dataset.name() == "arrays"
    assert dataset.config.model_dump() == {"file": str(path)}


def test_mlps_get_one_thread() -> None:
    assert default_threads(["mlp", "mlp"]) == 1
    assert jobs(threads=3)[0].config.threads == 3

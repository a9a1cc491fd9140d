"""Every registered method keeps the contract; ``--method`` chooses others. None is named here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import torch

from mmbench.evaluate.readout import read_out
from mmbench.nets.fusion import FUSIONS
from mmbench.options import set_dotted, validated
from mmbench.registry import entries, find, load_method, summary
from mmbench.testing import contract


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products are quicker, and the test processes do not get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[2, 3])
def count(request: pytest.FixtureRequest, any_method: str) -> int:
    """A number of modalities that the method supports."""
    number = int(request.param)
    if number not in contract.supported_modalities(load_method(any_method)):
        pytest.skip(f"{any_method} does not support {number} modalities")
    return number


@pytest.mark.parametrize("fusion", FUSIONS)
def test_it_trains_with_every_fusion_it_supports(any_method: str, count: int, fusion: str) -> None:
    method = load_method(any_method)
    if fusion not in contract.supported_fusions(method, count):
        pytest.skip(f"{any_method} does not support {fusion}")
    contract.check_trains(method, count, fusion)
    contract.check_neutral_equals_joint(method, count, fusion)


def test_killed_at_any_epoch_boundary_and_resumed_it_ends_bit_identical(
    any_method: str, count: int
) -> None:
    contract.check_resumes(load_method(any_method), count, most=8)


@pytest.mark.slow
def test_there_is_no_epoch_boundary_from_which_it_cannot_be_resumed(
    any_method: str, count: int
) -> None:
    contract.check_resumes(load_method(any_method), count)


def test_all_its_state_is_in_the_state_dict(any_method: str, count: int) -> None:
    contract.check_state_is_complete(load_method(any_method), count)


def test_validation_and_test_rows_have_no_influence_on_training(
    any_method: str, count: int
) -> None:
    contract.check_sees_training_rows_only(load_method(any_method), count)


def test_a_step_does_not_loop_over_the_samples_of_a_batch(any_method: str, count: int) -> None:
    contract.check_work_per_step_is_constant(load_method(any_method), count)


def test_what_it_says_of_itself_is_complete(any_method: str) -> None:
    method = load_method(any_method)
    assert method.__doc__, "the class says what it does"
    assert method.info.family == "control" or (method.info.authors and method.info.year)
    for option, values in method.space().items():
        for value in values:
            nested: dict[str, Any] = {}
            set_dotted(nested, option, value, option)
            validated(method.Config, nested, any_method)


def test_what_the_registry_reads_from_the_file_is_what_the_class_says() -> None:
    for entry in entries("method"):
        assert load_method(entry.name).info == summary(find("method", entry.name))


def test_no_two_methods_predict_the_same() -> None:
    predictions = {}
    for entry in entries("method"):
        method = load_method(entry.name)
        trainer = contract.make_trainer(method, 3, method.info.default_fusion)
        fitted = trainer.fit()
        predictions[entry.name] = read_out(fitted.run, fitted.method, trainer.splits.test).logits
    for a, b in combinations(predictions, 2):
        assert not torch.equal(predictions[a], predictions[b]), f"{a} and {b}"

"""The examples in the documentation are code that runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mmbench.config import Recipe
from mmbench.data.dataset import Modality, Rows, Split, Splits
from mmbench.errors import RequestError
from mmbench.nets.network import NetworkSpec, resolve_encoders
from mmbench.options import option_rows, validated
from mmbench.registry import at_path, load_method, summary
from mmbench.train.method import Method, MethodInfo
from mmbench.train.trainer import Fitted, Trainer

EXAMPLES = (
    ("docs/adding-a-method.md", "lagging"),
    ("docs/adding-a-method.md", "halving"),
    ("README.md", "laggard"),
)


def blocks(page: Path) -> dict[str, str]:
    """Return the python blocks of a page by the file name in their first line."""
    found = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", page.read_text(), re.M | re.S)
    return dict(found)


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest, tmp_path: Path, repository: Path) -> Path:
    page, name = request.param
    path = tmp_path / f"{name}.py"
    path.write_text(blocks(repository / page)[path.name])
    return path


def train(method: Method, modalities: int) -> Fitted:
    """Train on a few random rows of vectors for two epochs."""
    specs = {f"m{i}": Modality("vector", (4 + i,)) for i in range(modalities)}
    stream = torch.Generator().manual_seed(0)

    def split(name: str, rows: int) -> Split:
        ids = np.array([f"{name}{i}" for i in range(rows)])
        inputs = {m: Rows(torch.randn(rows, *s.shape, generator=stream)) for m, s in specs.items()}
        return Split(inputs, torch.arange(rows) % 3, ids)

    splits = Splits(split("train", 24), split("val", 6), split("test", 6), specs, ("a", "b", "c"))
    spec = NetworkSpec(specs, resolve_encoders(specs, {}), 3, "concat", seed=0)
    recipe = Recipe(epochs=2, batch_size=8, lr=0.05, select="last")
    return Trainer(method, splits, spec, recipe, torch.device("cpu")).fit()


def test_every_python_block_of_the_pages_is_an_example_that_is_tested(repository: Path) -> None:
    pages = {page for page, _ in EXAMPLES}
    count = sum((repository / page).read_text().count("```python") for page in pages)
    assert count == len(EXAMPLES)


def test_an_example_describes_itself_and_checks_its_options(example: Path) -> None:
    method = load_method(str(example))
    info = summary(at_path("method", str(example)))
    assert info == method.info
    assert isinstance(info, MethodInfo)
    (row,) = option_rows(method.Config)
    assert row.default in row.search
    with pytest.raises(RequestError, match=row.name):
        validated(method.Config, {row.name: -1}, method.name())


@pytest.mark.parametrize("modalities", [2, 3])
def test_an_example_does_something_and_can_be_switched_off(example: Path, modalities: int) -> None:
    method, joint = load_method(str(example)), load_method("joint")
    assert method.info.neutral is not None
    states = [
        train(trained, modalities).run.network.state_dict()
        for trained in (
            joint(joint.Config()),
            method(validated(method.Config, method.info.neutral, method.name())),
            method(method.Config()),
        )
    ]
    reference, neutral, default = (torch.cat([t.flatten() for t in s.values()]) for s in states)
    assert torch.equal(neutral, reference)
    assert not torch.equal(default, reference)

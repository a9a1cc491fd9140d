"""Random streams are addressed by key, and nothing drawn elsewhere disturbs them."""

import subprocess
import sys

import torch
from torch import nn

from mmbench.seeds import default_stream, derive, numpy_stream, torch_stream


def test_keys_give_different_seeds_and_their_parts_do_not_run_together() -> None:
    keys = [
        (0,),
        (1,),
        (0, "a"),
        (0, "b"),
        ("0a",),
        (0, "a", "b"),
        (0, "ab"),
        (0, "a", 1),
        (0, "a1"),
    ]
    seeds = [derive(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_in_another_process() -> None:
    """Python's own hash of a text is not."""
    code = "from mmbench.seeds import derive; import sys; sys.stdout.write(str(derive(3, 'order')))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive(3, "order")


def test_streams_depend_on_their_key_alone() -> None:
    first = torch.randn(4, generator=torch_stream(1, "x"))
    torch.manual_seed(99)
    torch.randn(10)
    assert torch.equal(first, torch.randn(4, generator=torch_stream(1, "x")))
    assert not torch.equal(first, torch.randn(4, generator=torch_stream(2, "x")))
    assert numpy_stream(1, "x").random() == numpy_stream(1, "x").random()
    assert numpy_stream(1, "x").random() != numpy_stream(1, "y").random()


def test_layers_made_in_a_block_depend_on_its_key_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        with default_stream(7, "layer"):
            weights.append(nn.Linear(3, 2).weight)
        assert torch.equal(torch.randn(3), expected)
    assert torch.equal(*weights)

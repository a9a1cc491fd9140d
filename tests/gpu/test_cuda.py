"""Every method on a GPU. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from mmbench.environment import make_repeatable
from mmbench.evaluate.readout import read_out
from mmbench.registry import load_method
from mmbench.testing import contract
from mmbench.train.trainer import Fitted, Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def trained(name: str, device: str, precision: str = "fp32") -> tuple[Trainer, Fitted]:
    make_repeatable(1, precision)
    method = load_method(name)
    fusion = method.info.default_fusion
    trainer = contract.make_trainer(method, 2, fusion, device=device, precision=precision)
    return trainer, trainer.fit()


def logits(trainer: Trainer, fitted: Fitted) -> torch.Tensor:
    return read_out(fitted.run, fitted.method, trainer.splits.test).logits


def test_it_trains_on_the_gpu_and_repeats_bit_for_bit(any_method: str) -> None:
    first, second = (logits(*trained(any_method, "cuda")) for _ in range(2))
    assert first.isfinite().all()
    assert torch.equal(first, second)


def test_it_trains_in_bf16(any_method: str) -> None:
    assert logits(*trained(any_method, "cuda", "bf16")).isfinite().all()


@pytest.mark.parametrize("name", ["joint", "multiloss"])
def test_gpu_and_cpu_agree_after_a_few_steps(name: str) -> None:
    on_gpu, on_cpu = (logits(*trained(name, device)) for device in ("cuda", "cpu"))
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)

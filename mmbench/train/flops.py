"""How many floating-point operations a training step takes, counted while it is done."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def counted(step: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Do a step and return what it returned, with its floating-point operations.

    They are those of matrix products, convolutions and attention, forward and backward, two for
    each multiplication and addition, whatever part of the network or the method does them; torch's
    counter has no formula for the rest, which is small beside it. Watching changes no result.
    """
    with FlopCounterMode(display=False) as counter:
        found = step()
    return found, counter.get_total_flops()

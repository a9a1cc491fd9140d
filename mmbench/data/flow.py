"""What a network sees of stored optical flow: the views of frames, with a sign that flips.

Stored flow is u (to the right) and v (downwards), each as a grey picture in which a motion from
-20 to 20 pixels a frame was mapped to 0 to 255 (the bound at which extractors such as those of TSN
and mmaction2 cut TV-L1 flow off). Normalised is ``(x - 127.5) / 127.5``, so that motions lie in
[-1, 1] and 1 is the bound. No motion, exactly 127.5, was rounded to 128, which reads as 0.004.
(mmaction2 subtracts 128 and divides by 128, which a change of sign would not leave as it is.)

A part of the frame is drawn once for u and v together. What is flipped moves the other way: left
is right, and u changes its sign, which is 255 - x of the stored value. (Code that flips u and v in
draws of their own, or leaves the sign, shows motions that no camera could see.)
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mmbench.data.crops import Crops
from mmbench.data.visual import SCALE, SIZE, TestViews, TrainViews

CENTRE = 127.5 / 255
"""Of the stored values, in [0, 1]: no motion. It is also half of their range."""


class TrainFlowViews(TrainViews):
    """A random part of the flow after a frame, flipped with u negated or not."""

    means: ClassVar[tuple[float, ...]] = (CENTRE, CENTRE)
    deviations: ClassVar[tuple[float, ...]] = (CENTRE, CENTRE)

    def __init__(self, size: int = SIZE) -> None:
        super().__init__(size)
        self.name = (
            f"flow: random resized crops of {size} pixels, scale {SCALE}, flipped with u negated, "
            "normalised to [-1, 1]"
        )

    def viewed(self, pictures: Tensor, crops: Crops) -> Tensor:
        views = super().viewed(pictures, crops)
        sign = torch.where(crops.flipped, -1.0, 1.0).to(views)
        views[:, 0] *= sign.view(-1, 1, 1)
        return views


class TestFlowViews(TestViews):
    """The flow after a frame, all of it."""

    means: ClassVar[tuple[float, ...]] = TrainFlowViews.means
    deviations: ClassVar[tuple[float, ...]] = TrainFlowViews.deviations

    def __init__(self, size: int = SIZE) -> None:
        super().__init__(size)
        self.name = f"flow: resized to {size} pixels, normalised to [-1, 1]"

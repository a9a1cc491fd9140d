"""Parts of pictures, each cut out and resized on its own, in a batch.

Random ones are those of torchvision's ``RandomResizedCrop``; resizing is bilinear and antialiased,
in 8-bit steps, as PIL and torchvision do it for uint8 pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resized_crop

TRIES = 10
"""Of drawing a part that fits into the picture; then the middle is taken, as in torchvision."""
AT_ONCE = 64
"""Pictures that are resized together on a GPU: enough to fill it, few enough for its memory."""


@dataclass(frozen=True)
class Crops:
    """A part of each of N pictures, in pixels, int64 ``(N,)`` each, and whether it is flipped."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor
    """Left is right, bool ``(N,)``."""

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, some: slice) -> Crops:
        place = self.top[some], self.left[some], self.height[some], self.width[some]
        return Crops(*place, self.flipped[some])


def whole(height: Tensor, width: Tensor) -> Crops:
    """Return all of each picture; the sizes are int64 ``(N,)``."""
    zero = torch.zeros_like(height)
    return Crops(zero, zero, height, width, zero.bool())


def draw_crops(
    height: Tensor,
    width: Tensor,
    generator: torch.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flipped: float,
) -> Crops:
    """Draw a part of each of N pictures of the given sizes, int64 ``(N,)``.

    Its share of the area is uniform in ``scale`` and its width over its height log-uniform in
    ``ratio``, drawn again where it does not fit, and its place uniform among those where it lies
    within the picture; ``flipped`` is the probability that it is.
    """
    count, device = len(height), height.device
    drawn = torch.rand(
        count, 2 * TRIES + 3, generator=generator, device=generator.device, dtype=torch.float64
    ).to(device)
    share = scale[0] + (scale[1] - scale[0]) * drawn[:, :TRIES]
    low, high = map(math.log, ratio)
    aspect = torch.exp(low + (high - low) * drawn[:, TRIES : 2 * TRIES])
    area = share * (height * width).unsqueeze(1)
    widths = (area * aspect).sqrt().round().long()
    heights = (area / aspect).sqrt().round().long()
    fits = (
        (widths > 0)
        & (widths <= width.unsqueeze(1))
        & (heights > 0)
        & (heights <= height.unsqueeze(1))
    )
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    middle = _middle(height, width, ratio)
    found = fits.any(dim=1)
    part_height = torch.where(found, heights.gather(1, first).squeeze(1), middle.height)
    part_width = torch.where(found, widths.gather(1, first).squeeze(1), middle.width)
    top = (drawn[:, -3] * (height - part_height + 1)).long()
    left = (drawn[:, -2] * (width - part_width + 1)).long()
    return Crops(
        torch.where(found, top, middle.top),
        torch.where(found, left, middle.left),
        part_height,
        part_width,
        drawn[:, -1] < flipped,
    )


def _middle(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> Crops:
    """Return the largest part in the middle of each picture whose shape ``ratio`` allows."""
    part_height = torch.minimum(height, (width / ratio[0]).round().long())
    part_width = torch.minimum(width, (height * ratio[1]).round().long())
    top = (height - part_height) // 2
    left = (width - part_width) // 2
    return Crops(top, left, part_height, part_width, torch.zeros_like(top).bool())


def resized(pictures: Tensor, crops: Crops, size: int) -> Tensor:
    """Return parts of pictures, uint8 ``(N, channels, H, W)``, as ``(N, channels, size, size)``.

    On a GPU all are resized at once, as products with a matrix each; on a CPU, where a kernel for
    one picture takes less time than the products, one after the other. A pixel may differ by 1 of
    255 between the two.
    """
    if pictures.device.type == "cpu":
        return one_by_one(pictures, crops, size)
    starts = range(0, len(pictures), AT_ONCE)
    parts = [together(pictures[i : i + AT_ONCE], crops[i : i + AT_ONCE], size) for i in starts]
    return torch.cat(parts)


def one_by_one(pictures: Tensor, crops: Crops, size: int) -> Tensor:
    """Resize by torchvision's kernel for one picture."""
    result = pictures.new_empty(len(pictures), pictures.shape[1], size, size)
    boxes = torch.stack([crops.top, crops.left, crops.height, crops.width], dim=1).tolist()
    for i, (box, flipped) in enumerate(zip(boxes, crops.flipped.tolist(), strict=True)):
        part: Tensor = resized_crop(pictures[i], *box, [size, size], antialias=True)
        result[i] = part.flip(2) if flipped else part
    return result


def together(pictures: Tensor, crops: Crops, size: int) -> Tensor:
    """Resize all pictures at once: first along the rows, then along the columns."""
    across = _weights(crops.left, crops.width, pictures.shape[3], size)
    across = torch.where(crops.flipped.view(-1, 1, 1), across.flip(1), across)
    down = _weights(crops.top, crops.height, pictures.shape[2], size)
    with torch.autocast(pictures.device.type, enabled=False):
        rows = _rounded(pictures.float().flatten(1, 2) @ across.transpose(1, 2))
        rows = rows.view(*pictures.shape[:3], size)
        result: Tensor = _rounded(down.unsqueeze(1) @ rows)
    return result.to(torch.uint8)


def _rounded(x: Tensor) -> Tensor:
    """Return the nearest whole number, halves up as in PIL, those that rounding lowered too."""
    return (x + (0.5 + 1e-4)).floor()


def _weights(start: Tensor, length: Tensor, full: int, size: int) -> Tensor:
    """Return what each of ``full`` pixels of a line adds to each of ``size`` that a part of it is
    resized to, ``(N, size, full)``: a triangle about the new pixel's centre, one old pixel wide on
    each side or, where the part is made smaller, one new pixel; the weights sum to 1."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    spacing = length / size
    centre = start + (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * spacing
    pixel = torch.arange(full, device=start.device)
    distance = (pixel + 0.5 - centre).abs() / spacing.clamp(min=1)
    within = (pixel >= start) & (pixel < start + length)
    weight = (1 - distance).clamp(min=0) * within
    return weight / weight.sum(dim=-1, keepdim=True)

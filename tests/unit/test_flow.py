"""Views of optical flow: what is mirrored moves the other way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmbench.data.crops import draw_crops
from mmbench.data.flow import TestFlowViews, TrainFlowViews
from mmbench.data.visual import FLIPPED, RATIO, SCALE
from mmbench.errors import DataError
from mmbench.seeds import torch_stream


def flow(*shape: int, seed: int = 0) -> Tensor:
    """Return noise ``(..., 2)`` uint8."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (*shape, 2), dtype=np.uint8))


def test_evaluation_maps_stored_values_to_motions() -> None:
    stored = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1, 1, 1)
    views = TestFlowViews(8)(stored.expand(3, 1, 20, 30, 2))
    assert views.shape == (3, 1, 2, 8, 8)
    found = views.amin(dim=(1, 2, 3, 4)), views.amax(dim=(1, 2, 3, 4))
    for each in found:
        torch.testing.assert_close(each, torch.tensor([-1.0, 0.5 / 127.5, 1.0]))


def test_u_and_v_are_cut_out_and_mirrored_together_and_u_changes_its_sign() -> None:
    """Against Pillow, picture by picture, with the crops that the same numbers draw."""
    stored = flow(6, 4, 40, 60)
    views = TrainFlowViews(16)(stored, torch_stream(0)).flatten(0, 1)
    size = torch.full((24,), 40), torch.full((24,), 60)
    crops = draw_crops(*size, torch_stream(0), SCALE, RATIO, FLIPPED)
    assert 4 < int(crops.flipped.sum()) < 20
    for i, pair in enumerate(stored.flatten(0, 1).numpy()):
        top, left = int(crops.top[i]), int(crops.left[i])
        box = left, top, left + int(crops.width[i]), top + int(crops.height[i])
        for channel in (0, 1):
            part = Image.fromarray(pair[..., channel]).crop(box)
            if crops.flipped[i]:
                part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                if channel == 0:
                    part = part.point([255 - value for value in range(256)])
            shown = np.asarray(part.resize((16, 16), Image.Resampling.BILINEAR), dtype=np.float32)
            expected = torch.from_numpy((shown - 127.5) / 127.5)
            torch.testing.assert_close(views[i, channel], expected, atol=1.01 / 127.5, rtol=0)


def test_the_mirror_image_of_a_clip_is_seen_as_the_clip_itself_mirrored() -> None:
    """The mean motion to the side is as often negated as not; that downwards never."""
    still = torch.empty(400, 1, 32, 32, 2, dtype=torch.uint8)
    still[..., 0], still[..., 1] = 200, 80
    views = TrainFlowViews(8)(still, torch_stream(3)).mean(dim=(3, 4)).squeeze(1)
    sideways = (200 - 127.5) / 127.5
    assert torch.allclose(views[:, 1], torch.tensor((80 - 127.5) / 127.5))
    assert torch.allclose(views[:, 0].abs(), torch.tensor(sideways))
    assert 150 < int((views[:, 0] < 0).sum()) < 250  # five standard deviations of 400 coins


def test_pictures_of_three_colours_are_no_flow() -> None:
    with pytest.raises(DataError, match=r"cannot be viewed: give uint8 \(B, T, H, W, 2\)"):
        TestFlowViews(8)(torch.zeros(1, 1, 9, 9, 3, dtype=torch.uint8))


def test_settings_of_flow_and_pictures_have_other_names() -> None:
    names = {TrainFlowViews(8).name, TestFlowViews(8).name, TrainFlowViews(9).name}
    assert len(names) == 3
    assert all(name.startswith("flow") for name in names)

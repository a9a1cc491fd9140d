"""Views of frames against torchvision's transforms, which act on one picture at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import v2

from mmbench.data.crops import Crops, draw_crops, one_by_one, together
from mmbench.data.visual import DEVIATION as STD
from mmbench.data.visual import MEAN, RATIO, SCALE, TestViews, TrainViews, Views
from mmbench.errors import DataError
from mmbench.seeds import default_stream, torch_stream

DRAWS = 3000
Resize = Callable[[Tensor, Crops, int], Tensor]


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """Return uint8 pictures ``(..., H, W, 3)``: noise of two grains, so that edges are sharp."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (*shape[:-2], -(-shape[-2] // 7), -(-shape[-1] // 7), 3))
    large = coarse.repeat(7, axis=-3).repeat(7, axis=-2)[..., : shape[-2], : shape[-1], :]
    fine = rng.integers(0, 256, (*shape, 3))
    return torch.from_numpy(np.where(rng.random((*shape, 1)) < 0.2, fine, large).astype(np.uint8))


def drawn_by_torchvision(height: int, width: int) -> np.ndarray:
    """Return top, left, height and width, ``(DRAWS, 4)``."""
    picture = torch.empty(3, height, width)
    transform = v2.RandomResizedCrop(8)
    with default_stream("torchvision"):
        boxes = [transform.make_params([picture]) for _ in range(DRAWS)]
    return np.array([[box[k] for k in ("top", "left", "height", "width")] for box in boxes])


@pytest.mark.parametrize(("height", "width"), [(256, 341), (90, 64), (40, 200), (200, 40)])
def test_crops_have_the_distribution_of_torchvision(height: int, width: int) -> None:
    expected = drawn_by_torchvision(height, width)
    heights, widths = torch.full((DRAWS,), height), torch.full((DRAWS,), width)
    crops = draw_crops(heights, widths, torch_stream("crops"), SCALE, RATIO, 0.5)
    found = torch.stack([crops.top, crops.left, crops.height, crops.width], dim=1).numpy()
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] >= 1).all()
    assert (found[:, 0] + found[:, 2] <= height).all()
    assert (found[:, 1] + found[:, 3] <= width).all()
    for by_torchvision, by_us in zip(quantities(expected), quantities(found), strict=True):
        assert ks_2samp(by_us, by_torchvision).pvalue > 0.001


def quantities(boxes: np.ndarray) -> list[np.ndarray]:
    """Return what tells distributions of boxes apart: four edges, area and shape."""
    top, left, height, width = boxes.T
    return [top, left, top + height, left + width, height * width, width / height]


@pytest.mark.parametrize(("height", "width"), [(10, 300), (300, 10), (50, 60)])
def test_a_picture_that_no_crop_fits_gives_its_middle_as_in_torchvision(
    height: int, width: int
) -> None:
    impossible = (40.0, 50.0)  # shares of the area: larger than the picture
    box = v2.RandomResizedCrop(8, scale=impossible).make_params([torch.empty(3, height, width)])
    crops = draw_crops(
        torch.tensor([height]), torch.tensor([width]), torch_stream(0), impossible, RATIO, 0.5
    )
    found = {"top": crops.top, "left": crops.left, "height": crops.height, "width": crops.width}
    assert {name: int(value) for name, value in found.items()} == box


@pytest.mark.parametrize("size", [24, 57])
@pytest.mark.parametrize("resize", [one_by_one, together])
def test_pixels_are_those_of_torchvision_and_pil(resize: Resize, size: int) -> None:
    """Smaller and larger parts than the result, whole pictures and single pixels."""
    frames = pictures(40, 70, 90)
    given = frames.permute(0, 3, 1, 2)
    full = torch.full((36,), 70), torch.full((36,), 90)
    drawn = draw_crops(*full, torch_stream("pixels"), SCALE, RATIO, 0.5)
    boxes = torch.stack([drawn.top, drawn.left, drawn.height, drawn.width], dim=1).tolist()
    boxes += [[0, 0, 70, 90], [69, 89, 1, 1], [0, 3, 70, 2], [5, 0, 3, 90]]
    flipped = torch.arange(len(boxes)) % 2 == 0
    top, left, height, width = torch.tensor(boxes).unbind(dim=1)
    crops = Crops(top, left, height, width, flipped)
    result = resize(given, crops, size)
    assert result.dtype == torch.uint8
    result = torch.where(flipped.view(-1, 1, 1, 1), result.flip(3), result)
    off = torch.empty(2, *result.shape, dtype=torch.int)
    for i, box in enumerate(boxes):
        place = (*box, [size, size])
        by_torchvision = v2.functional.resized_crop(given[i], *place, antialias=True)
        picture = v2.functional.resized_crop(Image.fromarray(frames[i].numpy()), *place)
        by_pil = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        off[0, i] = result[i].int() - by_torchvision.int()
        off[1, i] = result[i].int() - by_pil.int()
    # torchvision's kernel weighs in 16-bit integers: the three agree but for the last bit.
    assert int(off.abs().max()) <= 1
    assert float((off != 0).double().mean()) < 0.03
    assert float(off.double().mean().abs()) < 0.01


def test_products_in_half_precision_do_not_reach_the_pixels() -> None:
    given = pictures(2, 30, 40).permute(0, 3, 1, 2)
    crops = draw_crops(
        torch.tensor([30, 30]), torch.tensor([40, 40]), torch_stream(0), SCALE, RATIO, 0.5
    )
    plain = together(given, crops, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(together(given, crops, 16), plain)


@pytest.mark.parametrize(("height", "width"), [(60, 80), (300, 231)])
def test_the_test_view_is_that_of_torchvision(height: int, width: int) -> None:
    frames = pictures(2, 3, height, width)
    result = TestViews()(frames)
    assert tuple(result.shape) == (2, 3, 3, 224, 224)
    on_tensors = v2.Compose(
        [v2.Resize((224, 224)), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    on_pil = v2.Compose([v2.Resize((224, 224)), v2.PILToTensor(), *on_tensors.transforms[1:]])
    for frame, view in zip(frames.flatten(0, 1), result.flatten(0, 1), strict=True):
        expected = on_tensors(frame.permute(2, 0, 1))
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)
        pil = on_pil(Image.fromarray(frame.numpy()))
        assert float((view - pil).abs().max()) <= 1.01 / 255 / min(STD)  # one of 255 levels
        assert float((view - pil).mean().abs()) < 1e-3


def test_both_layouts_give_the_same_views() -> None:
    frames = pictures(2, 3, 40, 50)
    single = frames.flatten(0, 1).permute(0, 3, 1, 2)
    train, test = TrainViews(24), TestViews(24)
    assert torch.equal(test(single), test(frames).flatten(0, 1))
    assert torch.equal(train(single, torch_stream(1)), train(frames, torch_stream(1)).flatten(0, 1))


def test_every_frame_is_drawn_on_its_own_and_the_seed_repeats_it() -> None:
    frames = pictures(1, 1, 40, 50).expand(4, 3, -1, -1, -1)
    views = TrainViews(16)(frames, torch_stream(1))
    assert torch.equal(views, TrainViews(16)(frames, torch_stream(1)))
    assert len({view.numpy().tobytes() for view in views.flatten(0, 1)}) == 12


def test_views_are_crops_of_their_frame_and_half_of_them_are_flipped() -> None:
    slope = torch.arange(100, dtype=torch.uint8).view(1, 1, 1, 100, 1).expand(1, 600, 60, 100, 3)
    slope = slope.contiguous()
    views = TrainViews(12)(slope, torch_stream("flip")).squeeze(0)
    rising = (views[..., -1] > views[..., 0]).flatten(1).all(dim=1)
    falling = (views[..., -1] < views[..., 0]).flatten(1).all(dim=1)
    assert (rising ^ falling).all()
    assert abs(int(rising.sum()) - 300) < 4 * 600**0.5 / 2
    # Both ends of a view tell where its part lies; independent of flips, as by torchvision.
    red = (views[:, 0] * STD[0] + MEAN[0]) * 255
    middle = (red[:, :, 0] + red[:, :, -1]).mean(dim=1) / 2
    expected = drawn_by_torchvision(60, 100)
    assert ks_2samp(middle.numpy(), expected[:, 1] + expected[:, 3] / 2 - 0.5).pvalue > 0.001


def test_frames_that_fill_a_corner_are_seen_without_the_rest() -> None:
    small, large = pictures(1, 2, 30, 44), pictures(1, 2, 48, 36, seed=1)
    frames = torch.full((2, 2, 48, 44, 3), 255, dtype=torch.uint8)
    frames[0, :, :30, :44], frames[1, :, :48, :36] = small[0], large[0]
    sizes = torch.tensor([[30, 44], [48, 36]])
    test = TestViews(20)
    expected = torch.cat([test(small), test(large)])
    assert torch.equal(test(frames, sizes), expected)
    train = TrainViews(20)
    blank = frames.clone()
    blank[0, :, 30:] = 0
    blank[1, :, :, 36:] = 0
    assert torch.equal(train(frames, torch_stream(0), sizes), train(blank, torch_stream(0), sizes))


def test_the_transform_draws_in_training_only() -> None:
    frames, rows = pictures(2, 3, 40, 50), torch.arange(2)
    views = Views(24)
    assert torch.equal(views(frames, rows, None), TestViews(24)(frames))
    assert torch.equal(
        views(frames, rows, torch_stream(2)), TrainViews(24)(frames, torch_stream(2))
    )
    assert views.name != Views(32).name


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(2, 3, 4, 5, 3),
        torch.zeros(2, 3, 3, 4, 5, dtype=torch.uint8),
        torch.zeros(3, 4, 5, dtype=torch.uint8),
    ],
)
def test_other_frames_are_refused(frames: Tensor) -> None:
    with pytest.raises(DataError, match=r"give uint8 \(B, T, H, W, 3\) or \(N, 3, H, W\)"):
        TestViews()(frames)

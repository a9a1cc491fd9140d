"""Series of JPEG files: pictures and optical flow, in the cache and out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmbench.data.files import FileError
from mmbench.data.media import prepare as preparing
from mmbench.data.media import shards
from mmbench.data.media.cache import Cache, open_cache
from mmbench.data.media.clips import clip_problems
from mmbench.data.media.decode import frames
from mmbench.data.media.manifest import Clip, Flow, Manifest, MediaRecipe, Shard
from mmbench.data.media.prepare import prepare
from mmbench.data.media.series import files_of, picture
from mmbench.data.media.sources import FlowSource, FrameSource, WaveSource
from mmbench.errors import DataError
from mmbench.testing.ucf101 import write_avi, write_series
from tests.cli.command import snapshot
from tests.unit.media_clips import LEVEL, grey, quiet

RECIPE = MediaRecipe(fps=2.0, short_side=24, seconds=5.0, series_fps=10.0)
FRAMES = 12
"""Of each clip, at 10 a second: kept are those of 0, 0.5 and 1 s."""
KEPT = [0, 5, 10]


def paths(folder: Path, name: str, count: int, start: int = 1) -> list[Path]:
    return [folder / name.replace("*", f"{i:05d}") for i in range(start, start + count)]


def motion(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Return flow that can be told by its level, ``(count, height, width, 2)``: that after frame n
    is 10 n in u and 200 - 10 n in v."""
    levels = 10 * np.arange(count)
    both = np.stack([levels, 200 - levels], axis=-1).astype(np.uint8)
    return np.broadcast_to(both[:, None, None], (count, height, width, 2)).copy()


def write_clip(folder: Path, name: str, video: str, start: int = 1) -> Clip:
    """Write pictures as AVI or as JPEG, flow as JPEG, and return how they are listed."""
    if video == "avi":
        place = f"{name}.avi"
        write_avi(folder / place, grey(FRAMES), 10)
    else:
        place = f"{name}/img_*.jpg"
        write_series(paths(folder, place, FRAMES, start), grey(FRAMES))
    flow = Flow(f"{name}/flow_x_*.jpg", f"{name}/flow_y_*.jpg")
    for i, series in enumerate((flow.u, flow.v)):
        written = paths(folder, series, FRAMES - 1, start)
        write_series(written, motion(FRAMES - 1)[..., i])
    return Clip(name, "x", name, place, None, flow=flow)


def make(source: Path, cache: Path, *clips: Clip, recipe: MediaRecipe = RECIPE) -> Manifest:
    return prepare("toy", clips, source, recipe, cache, quiet, workers=1, allow_missing=True)


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("video", ["avi", "jpg"])
def test_flow_is_kept_of_the_moments_of_the_frames(video: str, start: int, tmp_path: Path) -> None:
    clip = write_clip(tmp_path, "a", video, start)
    make(tmp_path, tmp_path / "cache", clip)
    cache = open_cache("toy", tmp_path / "cache")
    (row,) = cache.manifest.rows
    assert row.times == (0.0, 0.5, 1.0)
    kept, flow = cache.frames(row), cache.flow(row)
    assert kept.shape == (3, 24, 32, 3)
    assert flow.shape == (3, 24, 32, 2)
    assert kept.mean(axis=(1, 2, 3)) == pytest.approx([LEVEL * n for n in KEPT], abs=4)
    for found, number in zip(flow, KEPT, strict=True):
        assert found[..., 0].mean() == pytest.approx(10 * number, abs=1)
        assert found[..., 1].mean() == pytest.approx(200 - 10 * number, abs=1)


def test_the_last_frame_has_the_motion_before_it(tmp_path: Path) -> None:
    clip = write_clip(tmp_path, "a", "jpg")
    make(tmp_path, tmp_path / "cache", replace(clip, start=1.1))  # the last of twelve frames
    cache = open_cache("toy", tmp_path / "cache")
    (row,) = cache.manifest.rows
    assert row.times == (1.1,)
    assert cache.flow(row)[0, ..., 0].mean() == pytest.approx(10 * (FRAMES - 2), abs=1)


def test_a_cache_without_sound_has_no_files_of_sound_and_no_silent_clips(tmp_path: Path) -> None:
    manifest = make(tmp_path, tmp_path / "cache", write_clip(tmp_path, "a", "avi"))
    (row,) = manifest.rows
    assert (row.samples, row.is_silent, row.audio, row.audio_bytes) == (0, False, None, 0)
    endings = Counter(path.suffix for path in (tmp_path / "cache" / "shards").iterdir())
    assert endings == {".frames": 1, ".flow": 1, ".json": 1}
    cache = open_cache("toy", tmp_path / "cache")
    assert cache.manifest == manifest
    with pytest.raises(DataError, match="holds no sound"):
        WaveSource(cache, np.array([0]))


def test_pictures_without_flow_and_flow_are_kept_in_one_cache(tmp_path: Path) -> None:
    clips = [write_clip(tmp_path, name, "avi") for name in "abc"]
    clips[1] = replace(clips[1], flow=None)
    make(tmp_path, tmp_path / "cache", *clips)
    cache = open_cache("toy", tmp_path / "cache")
    first, _, last = cache.manifest.rows
    assert np.array_equal(cache.flow(first), cache.flow(last))
    with pytest.raises(DataError, match="the clip b has no optical flow in"):
        FlowSource(cache, np.arange(3))


def test_pictures_are_made_smaller_by_averaging_and_never_larger(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content = rng.integers(0, 256, (60, 90), dtype=np.uint8)
    Image.fromarray(content).save(tmp_path / "a.png")
    small = picture(tmp_path / "a.png", "L", 20)
    assert small.shape == (20, 30)
    mean = content.reshape(20, 3, 30, 3).mean(axis=(1, 3))
    assert np.abs(small - mean).max() <= 1  # rounded along the rows and along the columns
    assert np.array_equal(picture(tmp_path / "a.png", "L", 200), content)


def test_grey_in_three_channels_is_grey_and_colour_is_no_flow(tmp_path: Path) -> None:
    content = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1))
    Image.fromarray(content).convert("RGB").save(tmp_path / "grey.png")
    assert np.array_equal(picture(tmp_path / "grey.png", "L", 24), content)
    red = np.zeros((24, 24, 3), dtype=np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(tmp_path / "red.png")
    with pytest.raises(FileError, match=r"red\.png: has colours: it is no part of optical flow"):
        picture(tmp_path / "red.png", "L", 24)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flow_of(clip: Clip, folder: Path, number: int, name: str = "x") -> Path:
    return folder / clip.id / f"flow_{name}_{number:05d}.jpg"


def remove_flow(clip: Clip, folder: Path, first: int) -> None:
    for number in range(first, FRAMES):
        for name in "xy":
            flow_of(clip, folder, number, name).unlink()


Damage = Callable[[Clip, Path], object]
DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "a file of flow is missing": (
        lambda clip, folder: flow_of(clip, folder, 4).unlink(),
        "a/flow_x_*.jpg",
        "lacks number 4 of 11",
    ),
    "the first file of flow is missing": (
        lambda clip, folder: flow_of(clip, folder, 1).unlink(),
        "a/flow_x_*.jpg",
        "lacks number 1 of 11",
    ),
    "the last of v is missing": (
        lambda clip, folder: flow_of(clip, folder, 11, "y").unlink(),
        "a/flow_y_*.jpg",
        "has 10 files beside 11 of",
    ),
    "most of the flow is missing": (
        lambda clip, folder: remove_flow(clip, folder, 4),
        "a/flow_x_*.jpg",
        "has 3 files beside 12 frames of the picture",
    ),
    "there is no flow": (
        lambda clip, folder: remove_flow(clip, folder, 1),
        "a/flow_x_*.jpg",
        "does not exist",
    ),
    "a kept file is cut": (
        lambda clip, folder: cut(flow_of(clip, folder, 6)),
        "a/flow_x_00006.jpg",
        "is cut, damaged or no picture",
    ),
    "a kept file is empty": (
        lambda clip, folder: flow_of(clip, folder, 6).write_bytes(b""),
        "a/flow_x_00006.jpg",
        "is empty",
    ),
    "a kept file is a pointer": (
        lambda clip, folder: flow_of(clip, folder, 6).write_bytes(
            b"version https://git-lfs.github.com/spec/v1\n"
        ),
        "a/flow_x_00006.jpg",
        "is a git-LFS pointer",
    ),
    "a kept file is a web page": (
        lambda clip, folder: flow_of(clip, folder, 1, "y").write_bytes(b"<html>404</html>"),
        "a/flow_y_00001.jpg",
        "is a web page",
    ),
    "a kept file has another shape": (
        lambda clip, folder: write_series([flow_of(clip, folder, 6)], motion(1, 24, 24)[..., 0]),
        "a/flow_x_00006.jpg",
        "is of 24 by 24 pixels, not 32 by 24 as the first",
    ),
    "a number is there twice": (
        lambda clip, folder: write_series([folder / "a" / "flow_x_6.jpg"], motion(1)[..., 0]),
        "a/flow_x_*.jpg",
        "has number 6 twice",
    ),
    "a kept picture is cut": (
        lambda clip, folder: cut(folder / "a" / "img_00006.jpg"),
        "a/img_00006.jpg",
        "is cut, damaged or no picture",
    ),
    "a picture is missing": (
        lambda clip, folder: (folder / "a" / "img_00003.jpg").unlink(),
        "a/img_*.jpg",
        "lacks number 3 of 12",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_fault_is_named_once_and_the_clip_read_again_when_mended(
    name: str, tmp_path: Path
) -> None:
    damage, place, what = DAMAGES[name]
    clip = write_clip(tmp_path, "a", "jpg")
    damage(clip, tmp_path)
    (problem,) = clip_problems(clip, tmp_path, RECIPE)
    assert problem.path == str(tmp_path / place)
    assert problem.what.startswith(what)
    assert problem.mend
    (lost,) = make(tmp_path, tmp_path / "cache", clip).left_out
    assert (lost.path, lost.what) == (place, problem.what)

    for path in (tmp_path / "a").iterdir():
        path.unlink()
    write_clip(tmp_path, "a", "jpg")
    assert clip_problems(clip, tmp_path, RECIPE) == []
    assert make(tmp_path, tmp_path / "cache", clip).left_out == ()
    make(tmp_path, tmp_path / "whole", clip)
    assert snapshot(tmp_path / "cache") == snapshot(tmp_path / "whole")


def test_a_broken_run_goes_on_to_the_same_bytes_and_reads_changed_flow_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 1)
    source, broken = tmp_path / "source", tmp_path / "broken"
    clips = [write_clip(source, name, "avi") for name in "abc"]
    make(source, tmp_path / "whole", *clips)
    make(source, broken, *clips)
    # What a kill leaves while the last shard is written: no record of it, and no manifest.
    for name in ("manifest.json", "shards/00002.json", "shards/00002.flow"):
        (broken / name).unlink()
    (broken / "shards" / ".partial-0123-00002.flow").write_bytes(b"half")
    written: list[int] = []

    def counted(job: shards.Job) -> Shard:
        written.append(job.number)
        return shards.write_shard(job)

    monkeypatch.setattr(preparing, "write_shard", counted)
    make(source, broken, *clips)
    assert snapshot(broken) == snapshot(tmp_path / "whole")
    assert written == [2]
    write_series([flow_of(clips[1], source, 6)], motion(FRAMES)[-1:, ..., 1] + 40)
    make(source, broken, *clips)
    assert written == [2, 1]
    cache = open_cache("toy", broken)
    moved = cache.flow(cache.manifest.rows[1])[1, ..., 0].mean()
    assert moved == pytest.approx(200 - 10 * (FRAMES - 1) + 40, abs=1)


def test_two_damaged_files_of_one_clip_are_both_named(tmp_path: Path) -> None:
    clip = write_clip(tmp_path, "a", "jpg")
    cut(flow_of(clip, tmp_path, 1))
    cut(flow_of(clip, tmp_path, 11, "y"))
    problems = clip_problems(clip, tmp_path, RECIPE)
    assert [Path(problem.path).name for problem in problems] == [
        "flow_x_00001.jpg",
        "flow_y_00011.jpg",
    ]


def test_other_files_of_a_folder_belong_to_no_series(tmp_path: Path) -> None:
    for name in ("img_00001.jpg", "img_00002.jpg", "img_b.jpg", "img_00003.jpg.part", "x_7.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in files_of(tmp_path / "img_*.jpg")] == [
        "img_00001.jpg",
        "img_00002.jpg",
    ]


def test_a_cache_of_the_format_before_is_refused_with_the_mend(tmp_path: Path) -> None:
    clip = write_clip(tmp_path, "a", "avi")
    make(tmp_path, tmp_path / "cache", clip)
    for name in ("manifest.json", "plan.json"):
        path = tmp_path / "cache" / name
        path.write_text(path.read_text().replace('"schema": 2', '"schema": 1'))
    with pytest.raises(DataError, match=r"another version of mmbench; remove it, then run `mmb"):
        open_cache("toy", tmp_path / "cache")
    with pytest.raises(DataError, match=r"another version of mmbench; choose another folder"):
        make(tmp_path, tmp_path / "cache", clip)


# -- batches ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    source = tmp_path_factory.mktemp("source")
    clips = [write_clip(source, name, "avi") for name in "abc"]
    make(source, source / "cache", *clips)
    return open_cache("toy", source / "cache")


def test_a_batch_of_flow_shows_the_motion_after_the_frames_shown(cache: Cache) -> None:
    source = FlowSource(cache, np.arange(3), 3, size=32)
    batch = source.batch(torch.tensor([2, 0]), None)
    assert batch.shape == (2, *source.modality().shape) == (2, 3, 2, 32, 32)
    for n, number in enumerate(KEPT):
        expected = (torch.tensor([10 * number, 200 - 10 * number]) - 127.5) / 127.5
        found = batch[:, n].mean(dim=(2, 3))
        torch.testing.assert_close(found, expected.expand(2, 2), atol=1.5 / 127.5, rtol=0)


def test_flow_and_pictures_draw_apart_and_each_repeats_with_its_generator(cache: Cache) -> None:
    rows = torch.zeros(64, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    flow, pictures = (kind(cache, np.arange(3), 1, size=32) for kind in (FlowSource, FrameSource))
    moved = flow.batch(rows, generator)
    seen = pictures.batch(rows, generator)
    by_flow = (moved[:, 0, 1].mean(dim=(1, 2)) * 127.5 + 127.5 - 200).div(-10).round()
    by_picture = (seen[:, 0, 0].mean(dim=(1, 2)) * 255 * 0.229 + 255 * 0.485).div(LEVEL).round()
    assert {*by_flow.tolist()} == {*by_picture.tolist()} == {0.0, 5.0, 10.0}
    assert not torch.equal(by_flow, by_picture)
    again = flow.batch(rows, torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)
    assert flow.to(torch.device("cpu")).fingerprint() == flow.fingerprint()
    assert flow.fingerprint() != pictures.fingerprint()


# -- real files ------------------------------------------------------------------------------------


def test_real_flow_and_pictures_become_a_cache(shared_data: Path, tmp_path: Path) -> None:
    """Ten frames and the flow of five, of mmaction2's tests, in its layout."""
    given = shared_data / "av-clips" / "mmaction2" / "imgs"
    place = tmp_path / "rawframes" / "Archery" / "v_Archery_g01_c01"
    place.mkdir(parents=True)
    for path in given.glob("img_0000[1-6].jpg"):
        (place / path.name).write_bytes(path.read_bytes())
    for path in given.glob("[xy]_*.jpg"):
        (place / f"flow_{path.name}").write_bytes(path.read_bytes())
    at = "rawframes/Archery/v_Archery_g01_c01"
    flow = Flow(f"{at}/flow_x_*.jpg", f"{at}/flow_y_*.jpg")
    clip = Clip("a", "Archery", "g", f"{at}/img_*.jpg", None, flow=flow)
    recipe = MediaRecipe(fps=25.0, short_side=120, seconds=5.0, series_fps=25.0)
    assert clip_problems(clip, tmp_path, recipe) == []
    make(tmp_path, tmp_path / "cache", clip, recipe=recipe)
    cache = open_cache("toy", tmp_path / "cache")
    (row,) = cache.manifest.rows
    assert row.times == pytest.approx(np.arange(6) / 25)
    assert cache.flow(row).shape == (6, 120, 160, 2)
    for number, kept in enumerate(cache.flow(row)):
        for channel, letter in enumerate("xy"):
            file = given / f"{letter}_{min(number + 1, 5):05d}.jpg"
            whole = np.asarray(Image.open(file), dtype=float)
            halved = whole.reshape(120, 2, 160, 2).mean(axis=(1, 3))
            assert np.abs(kept[..., channel] - halved).max() <= 1
    # FFmpeg reads the same pictures by another decoder, whose colours differ a little.
    (other,) = frames(given / "img_00003.jpg", [0.0])
    halved = other.astype(float).reshape(120, 2, 160, 2, 3).mean(axis=(1, 3))
    assert np.abs(cache.frames(row)[2] - halved).mean() < 4

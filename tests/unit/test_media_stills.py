"""Still pictures: what is decoded, kept as clips of one frame, and shown."""

import resource
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mmbench.data.files import FileError
from mmbench.data.media import prepare as preparing
from mmbench.data.media import shards
from mmbench.data.media.cache import Cache, open_cache
from mmbench.data.media.clips import clip_problems
from mmbench.data.media.manifest import Clip, Manifest, MediaRecipe, Shard
from mmbench.data.media.prepare import prepare
from mmbench.data.media.series import fitted, picture
from mmbench.data.media.sources import StillSource
from mmbench.data.media.verify import judged
from mmbench.data.visual import DEVIATION, MEAN
from mmbench.errors import DataError
from tests.cli.command import snapshot
from tests.unit.media_clips import quiet

COUNT = 10
SHORT_SIDE = 24
RECIPE = MediaRecipe(fps=0, short_side=SHORT_SIDE, seconds=0)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def listed() -> list[Clip]:
    return [
        Clip(f"p{number}", "ab"[number % 2], "", f"{number}.jpg", audio=None, split="train")
        for number in range(COUNT)
    ]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "STILLS_PER_SHARD", 3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures lying, standing, and smaller than what is kept."""
    folder = tmp_path_factory.mktemp("source")
    for i in range(COUNT):
        size = [(30, 40), (48, 36), (20, 16)][i % 3]
        Image.fromarray(noise(*size, i)).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    """The pictures again, to be damaged."""
    return Path(shutil.copytree(source, tmp_path / "copy"))


def make(source: Path, cache: Path, **more: Any) -> Manifest:
    given: dict[str, Any] = {"progress": quiet, "workers": 1, "recipe": RECIPE, **more}
    return prepare("toy", listed(), source, cache=cache, **given)


# -- decoding --------------------------------------------------------------------------------------


def test_a_small_picture_is_kept_to_the_pixel_whatever_its_name_says(tmp_path: Path) -> None:
    pixels = noise(20, 31)
    Image.fromarray(pixels).save(tmp_path / "x.jpg", format="PNG")
    found = picture(tmp_path / "x.jpg", "RGB", 20)
    assert np.array_equal(found, pixels)
    assert found.dtype == np.uint8


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((40, 30), (32, 24)),
        ((30, 40), (24, 32)),
        ((20, 16), (20, 16)),
        ((72, 24), (72, 24)),
        ((1000, 24), (72, 2)),  # a banner: three times the shorter side at most
        ((5000, 1), (72, 1)),
    ],
)
def test_sizes_that_are_kept(size: tuple[int, int], kept: tuple[int, int]) -> None:
    assert fitted(*size, SHORT_SIDE) == kept


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_become_rgb(mode: str, tmp_path: Path) -> None:
    colour = (200, 60, 20)
    Image.new("RGB", (24, 24), colour).convert(mode).save(tmp_path / "x.jpg", quality=95)
    found = picture(tmp_path / "x.jpg", "RGB", 24)
    grey = round(0.299 * 200 + 0.587 * 60 + 0.114 * 20)  # ITU-R BT.601
    expected = (grey,) * 3 if mode == "L" else colour
    assert found.shape == (24, 24, 3)
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_a_palette_with_transparency_becomes_rgb(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "x.jpg", format="GIF", transparency=1)
    assert picture(tmp_path / "x.jpg", "RGB", 8)[0, 0].tolist() == [10, 200, 30]


def test_an_orientation_in_exif_is_passed_over_as_by_others(tmp_path: Path) -> None:
    image = Image.fromarray(noise(10, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "x.jpg", exif=exif)
    assert picture(tmp_path / "x.jpg", "RGB", 20).shape == (10, 20, 3)


DAMAGES = {
    "is empty": b"",
    "is a git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "is a web page": b"<!DOCTYPE html><html>404</html>",
    "no picture: cannot identify": b"not a picture at all",
    "is cut, damaged": None,
    "does not exist": None,
}


def damage(path: Path, what: str) -> None:
    content = DAMAGES[what]
    if what == "does not exist":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-200] if content is None else content)


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_file_is_named_once_in_one_line(what: str, copy: Path) -> None:
    damage(copy / "0.jpg", what)
    with pytest.raises(FileError, match=what) as caught:
        picture(copy / "0.jpg", "RGB", 24)
    said = str(caught.value)
    assert said.count(str(copy / "0.jpg")) == 1
    assert "\n" not in said
    assert clip_problems(listed()[0], copy, RECIPE) == [caught.value.problem]


def test_a_picture_that_would_fill_the_memory_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(FileError, match=r"no picture: Image size .* exceeds limit"):
        picture(copy / "0.jpg", "RGB", 24)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns of 1200
    assert picture(copy / "0.jpg", "RGB", 24).shape == (24, 32, 3)
    assert not recwarn.list


# -- preparing -------------------------------------------------------------------------------------


def test_every_picture_is_a_clip_of_one_frame(source: Path, tmp_path: Path) -> None:
    made = make(source, tmp_path)
    cache = open_cache("toy", tmp_path)
    assert cache.manifest == made
    assert [row.id for row in made.rows] == [f"p{i}" for i in range(COUNT)]
    for i, row in enumerate(made.rows):
        (kept,) = cache.frames(row)
        assert np.array_equal(kept, picture(source / f"{i}.jpg", "RGB", SHORT_SIDE))
        assert (row.times, row.group, row.audio, row.flow_u) == ((0.0,), "", None, None)
        assert row.video_bytes == (source / f"{i}.jpg").stat().st_size
    endings = Counter(path.suffix for path in (tmp_path / "shards").iterdir())
    assert endings == {".frames": 4, ".json": 4}


def test_processes_change_nothing(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "one", workers=1)
    make(source, tmp_path / "two", workers=2)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_a_broken_run_goes_on_to_the_same_bytes_and_decodes_replaced_pictures_anew(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    before = make(copy, whole)
    make(copy, broken)
    # What a kill leaves while the last shard is written: no record of it, and no manifest.
    for name in ("manifest.json", "shards/00003.json", "shards/00003.frames"):
        (broken / name).unlink()
    (broken / "shards" / ".partial-0123-00003.frames").write_bytes(b"half a shard")
    with pytest.raises(DataError, match="'toy' is only in part prepared"):
        open_cache("toy", broken)
    written: list[int] = []

    def counted(job: shards.Job) -> Shard:
        written.append(job.number)
        return shards.write_shard(job)

    monkeypatch.setattr(preparing, "write_shard", counted)
    make(copy, broken)
    assert snapshot(broken) == snapshot(whole)
    assert written == [3]
    Image.new("RGB", (30, 30)).save(copy / "4.jpg")
    after = make(copy, broken)
    assert written == [3, 1]
    assert after.rows[4].video_sha256 != before.rows[4].video_sha256
    assert after.fingerprint != before.fingerprint
    assert int(open_cache("toy", broken).frames(after.rows[4]).max()) == 0


def test_messages_call_them_pictures(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def progress(done: int, total: int, what: str) -> None:
        said.append(what)

    made = make(copy, tmp_path / "cache", progress=progress)
    size = sum(row.frame_bytes for row in made.rows)
    assert {*said} == {f"pictures, about {size / 1e6:.1f} MB"}
    judged(listed(), copy, RECIPE, {}, progress, 1)
    assert said[-1] == "pictures"
    with pytest.raises(DataError, match=r"prepared with short_side=24, not with short_side=9; "):
        make(copy, tmp_path / "cache", recipe=replace(RECIPE, short_side=9))
    (copy / "2.jpg").unlink()
    with pytest.raises(DataError, match="1 of 10 pictures cannot be used, more than 1%"):
        make(copy, tmp_path / "other")

    class Usage:
        free = 100

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(DataError, match=r"or keep smaller pictures \(-d short_side=\.\.\.\)"):
        make(copy, tmp_path / "small", allow_missing=True)


# -- batches ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "STILLS_PER_SHARD", 3)
        make(source, folder)
    return open_cache("toy", folder)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stills(cache: Cache, rows: list[int], size: int = 16) -> StillSource:
    return StillSource(cache, np.array(rows), 1, "first", size)


def test_at_evaluation_the_whole_picture_is_resized_and_normalised(cache: Cache) -> None:
    source = stills(cache, [7, 0, 4, 2])
    batch = source.batch(torch.tensor([3, 0, 1]), None)
    resize = v2.Compose(
        [v2.Resize([16, 16], antialias=True), v2.ToDtype(torch.float32, scale=True)]
    )
    normalise = v2.Normalize(list(MEAN), list(DEVIATION))
    for found, place in zip(batch, (2, 7, 0), strict=True):
        (pixels,) = cache.frames(cache.manifest.rows[place])
        expected: Tensor = normalise(resize(torch.from_numpy(pixels.copy()).permute(2, 0, 1)))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    spec = source.modality()
    assert (spec.kind, spec.shape, spec.encoder) == ("image", (3, 16, 16), "resnet18")


def test_in_training_every_row_has_a_random_view_that_the_generator_decides(cache: Cache) -> None:
    source = stills(cache, [3, 3, 3])
    rows = torch.arange(3)
    one, again, other = (source.batch(rows, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert one.shape == (3, 3, 16, 16)


def test_the_fingerprint_names_pictures_rows_and_size(cache: Cache) -> None:
    sources = [stills(cache, [1, 2]), stills(cache, [1, 2], 32), stills(cache, [2, 1])]
    assert len({source.fingerprint() for source in sources}) == 3
    moved = sources[0].to(torch.device("cpu"))
    assert moved.fingerprint() == sources[0].fingerprint()
    assert moved.batch(torch.tensor([0]), None).shape == (1, 3, 16, 16)


def test_few_files_are_held_open_however_many_shards_there_are(
    source: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held() -> int:
        files = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return sum(file.is_relative_to(cache.folder) for file in files)

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (8, 8))  # a quarter is used
    again = Cache(cache.folder, cache.manifest)
    before = held()
    rows = [again.manifest.rows[i] for i in (0, 4, 0, 9, 6, 1, 0, 5)]  # of all four shards
    kept = [again.frames(row).copy() for row in rows]
    assert held() == before + 2
    for row, frames in zip(rows, kept, strict=True):
        whole = picture(source / row.video, "RGB", SHORT_SIDE)
        assert np.array_equal(frames[0], whole)

"""The cache of pictures: what is decoded, the same bytes however it was interrupted, refusals."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mmbench.data.files import FileError
from mmbench.data.pictures import prepare as preparing
from mmbench.data.pictures import shards
from mmbench.data.pictures.cache import Cache, open_cache
from mmbench.data.pictures.decode import decode, fitted, kept_bytes
from mmbench.data.pictures.manifest import Item, Manifest, Shard
from mmbench.data.pictures.prepare import prepare
from mmbench.data.pictures.sources import PictureSource
from mmbench.data.visual import DEVIATION, MEAN
from mmbench.errors import DataError
from tests.cli.command import snapshot
from tests.unit.media_clips import quiet

COUNT = 10
SHORT_SIDE = 24


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def item(number: int) -> Item:
    return Item(f"p{number}", "ab"[number % 2], "train", f"{number}.jpg", f"title, {number}")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PICTURES_PER_SHARD", 3)


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
    items = [item(i) for i in range(COUNT)]
    given = {"progress": quiet, "workers": 1, "short_side": SHORT_SIDE, **more}
    return prepare("toy", items, source, cache=cache, **given)


# -- decoding --------------------------------------------------------------------------------------


def test_a_small_picture_is_kept_to_the_pixel(tmp_path: Path) -> None:
    pixels = noise(20, 31)
    Image.fromarray(pixels).save(tmp_path / "x.jpg", format="PNG")  # whatever its name says
    found = decode(tmp_path / "x.jpg", 20)
    assert np.array_equal(found.pixels, pixels)
    assert found.mode == "RGB"
    assert found.pixels.dtype == np.uint8


def test_a_large_picture_is_made_smaller_in_its_shape(tmp_path: Path) -> None:
    pixels = noise(60, 90)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = decode(tmp_path / "x.png", 20).pixels
    assert found.shape == (20, 30, 3)
    resize = v2.Resize([20, 30], antialias=True)  # torchvision's is the reference
    expected = resize(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert kept_bytes(tmp_path / "x.png", 20) == found.nbytes


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((40, 30), (32, 24)),
        ((30, 40), (24, 32)),
        ((20, 16), (20, 16)),
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
    found = decode(tmp_path / "x.jpg", 24)
    assert found.mode == mode
    grey = round(0.299 * 200 + 0.587 * 60 + 0.114 * 20)  # ITU-R BT.601
    expected = (grey,) * 3 if mode == "L" else colour
    assert np.abs(found.pixels.astype(int) - expected).max() <= 3


def test_a_palette_with_transparency_becomes_rgb(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "x.jpg", format="GIF", transparency=1)
    found = decode(tmp_path / "x.jpg", 8)
    assert (found.mode, found.pixels[0, 0].tolist()) == ("P", [10, 200, 30])


def test_an_orientation_in_exif_is_passed_over_as_by_others(tmp_path: Path) -> None:
    image = Image.fromarray(noise(10, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "x.jpg", exif=exif)
    assert decode(tmp_path / "x.jpg", 20).pixels.shape == (10, 20, 3)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
DAMAGES = {
    "is empty": b"",
    "is a git-LFS pointer": POINTER,
    "is a web page": b"<!DOCTYPE html><html>404</html>",
    "is not a picture": b"not a picture at all",
    "cannot be decoded": None,  # cut
}


def damage(path: Path, what: str) -> None:
    content = DAMAGES[what]
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_file_is_named(what: str, copy: Path) -> None:
    damage(copy / "0.jpg", what)
    with pytest.raises(FileError, match=what) as caught:
        decode(copy / "0.jpg", 24)
    assert str(copy / "0.jpg") in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileError, match="does not exist"):
        decode(copy / "absent.jpg", 24)


def test_a_picture_that_would_fill_the_memory_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(FileError, match=r"cannot be decoded: Image size .* exceeds limit"):
        decode(copy / "0.jpg", 24)


# -- preparing -------------------------------------------------------------------------------------


def test_the_cache_holds_what_was_decoded_and_where_it_is_from(
    source: Path, tmp_path: Path
) -> None:
    made = make(source, tmp_path)
    cache = open_cache("toy", tmp_path)
    assert cache.manifest == made
    assert [row.id for row in made.rows] == [f"p{i}" for i in range(COUNT)]
    assert [row.text for row in made.rows] == [f"title, {i}" for i in range(COUNT)]
    for i, row in enumerate(made.rows):
        assert np.array_equal(cache.pixels(row), decode(source / f"{i}.jpg", SHORT_SIDE).pixels)
        assert row.bytes == (source / f"{i}.jpg").stat().st_size


def test_processes_change_nothing(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "one", workers=1)
    make(source, tmp_path / "two", workers=2)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


KILLED = """
import sys
from pathlib import Path
from mmbench.data.pictures import shards
from mmbench.data.pictures.manifest import Item
from mmbench.data.pictures.prepare import prepare

shards.PICTURES_PER_SHARD = 3

def progress(done, total, what):
    if done > 3:
        print("now", flush=True)
        sys.stdin.read()

source, cache = map(Path, sys.argv[1:])
items = [Item(f"p{i}", "ab"[i % 2], "train", f"{i}.jpg", f"title, {i}") for i in range(10)]
prepare("toy", items, source, 24, cache, progress, 1)
"""


def test_after_a_kill_the_same_call_gives_the_same_bytes(
    source: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(source, tmp_path / "unbroken")
    broken = tmp_path / "broken"
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(source), str(broken)],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "now\n"
    run.send_signal(signal.SIGKILL)
    run.communicate()
    with pytest.raises(DataError, match="'toy' is only in part prepared"):
        open_cache("toy", broken)
    (broken / "shards" / ".partial-0123-00003.pixels").write_bytes(b"half a shard")
    done_before = {path.stem for path in (broken / "shards").glob("*.json")}
    assert len(done_before) == 2
    written: list[int] = []

    def counted(job: shards.Job) -> Shard:
        written.append(job.number)
        return shards.write_shard(job)

    monkeypatch.setattr(preparing, "write_shard", counted)
    make(source, broken)
    assert snapshot(broken) == snapshot(tmp_path / "unbroken")
    assert written == [2, 3]


def test_a_replaced_picture_is_decoded_anew_and_others_are_not(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    before = make(copy, cache)
    Image.new("RGB", (30, 30)).save(copy / "4.jpg")
    written: list[int] = []

    def counted(job: shards.Job) -> Shard:
        written.append(job.number)
        return shards.write_shard(job)

    monkeypatch.setattr(preparing, "write_shard", counted)
    after = make(copy, cache)
    assert written == [1]
    assert after.rows[4].sha256 != before.rows[4].sha256
    assert after.fingerprint != before.fingerprint
    assert int(open_cache("toy", cache).pixels(after.rows[4]).max()) == 0


def test_too_many_damaged_pictures_are_refused_and_may_be_left_out(
    copy: Path, tmp_path: Path
) -> None:
    damage(copy / "1.jpg", "cannot be decoded")
    (copy / "2.jpg").unlink()
    with pytest.raises(DataError, match="1 of 10 pictures cannot be used, more than 1%") as caught:
        make(copy, tmp_path / "cache")  # refused before anything is decoded: one has no file
    assert "2.jpg: does not exist" in str(caught.value)
    assert not (tmp_path / "cache").exists()
    made = make(copy, tmp_path / "cache", allow_missing=True)
    assert [(lost.id, lost.bytes) for lost in made.left_out] == [
        ("p1", (copy / "1.jpg").stat().st_size),
        ("p2", -1),
    ]
    assert len(made.rows) == 8
    assert open_cache("toy", tmp_path / "cache").manifest == made


def test_the_size_is_said_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    said: list[tuple[int, str]] = []

    def progress(done: int, total: int, what: str) -> None:
        said.append((len([*(tmp_path / "shards").glob("*")]), what))

    made = make(source, tmp_path, progress=progress)
    assert said[0] == (0, "pictures, about 0.0 MB")
    total = sum(row.pixel_bytes for row in made.rows)
    assert preparing._expected_bytes([item(i) for i in range(COUNT)], [], source, tmp_path) == total


def test_a_full_disk_is_named_and_leaves_nothing_half(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 100

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Usage)
        with pytest.raises(DataError, match=r"are to be written and 0\.0 GB are free; free some"):
            make(source, tmp_path / "small")
    assert not list((tmp_path / "small").glob("shards/*"))

    def full(path: Path, short_side: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "decode", full)
    with pytest.raises(DataError, match="no space left; free some, or write elsewhere"):
        make(source, tmp_path / "full")
    assert not [p for p in (tmp_path / "full").rglob("*") if p.is_file() and p.name != "plan.json"]


def test_two_writers_do_not_share_a_cache(source: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int, what: str) -> None:
        if done == 0:
            with pytest.raises(DataError, match="is being written by another"):
                make(source, tmp_path)

    make(source, tmp_path, progress=progress)


def test_a_cache_of_another_size_is_not_written_over(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match=r"prepared with short_side=24, not toy with short_side=9"):
        make(source, tmp_path, short_side=9)
    assert snapshot(tmp_path) == before


def test_a_changed_cache_is_refused(source: Path, tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message):
            open_cache("toy", tmp_path)

    refused("'toy' is not prepared in .*; run `mmbench data prepare toy --source DIR`")
    make(source, tmp_path)
    with pytest.raises(DataError, match="holds 'toy', not 'other'"):
        open_cache("other", tmp_path)
    pixels = tmp_path / "shards" / "00001.pixels"
    pixels.write_bytes(pixels.read_bytes()[:-1])
    refused(r"is damaged \(00001.pixels has \d+ bytes, not \d+\)")
    table = tmp_path / "manifest.csv"
    table.write_bytes(table.read_bytes().replace(b",a,", b",b,"))
    refused("manifest.csv has changed")
    whole = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**whole, "schema": 99}))
    refused("of another version of mmbench")


# -- batches ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    make(source, folder)
    return open_cache("toy", folder)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_at_evaluation_the_whole_picture_is_resized_and_normalised(cache: Cache) -> None:
    rows = np.array([7, 0, 4, 2])
    source = PictureSource(cache, rows, size=16)
    batch = source.batch(torch.tensor([3, 0, 1]), None)
    resize = v2.Compose(
        [v2.Resize([16, 16], antialias=True), v2.ToDtype(torch.float32, scale=True)]
    )
    normalise = v2.Normalize(list(MEAN), list(DEVIATION))
    for found, place in zip(batch, (2, 7, 0), strict=True):
        pixels = cache.pixels(cache.manifest.rows[place])
        expected: Tensor = normalise(resize(torch.from_numpy(pixels.copy()).permute(2, 0, 1)))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    spec = source.modality()
    assert (spec.kind, spec.shape, spec.encoder) == ("image", (3, 16, 16), "resnet18")


def test_in_training_every_row_has_a_random_view_that_the_generator_decides(cache: Cache) -> None:
    source = PictureSource(cache, np.array([3, 3, 3]), size=16)
    rows = torch.arange(3)
    one, again, other = (source.batch(rows, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert one.shape == (3, 3, 16, 16)


def test_the_fingerprint_names_pictures_rows_and_size(cache: Cache) -> None:
    rows = np.array([1, 2])
    sources = [
        PictureSource(cache, rows, 16),
        PictureSource(cache, rows, 32),
        PictureSource(cache, rows[::-1].copy(), 16),
    ]
    assert len({source.fingerprint() for source in sources}) == 3
    moved = PictureSource(cache, rows, 16).to(torch.device("cpu"))
    assert moved.fingerprint() == sources[0].fingerprint()

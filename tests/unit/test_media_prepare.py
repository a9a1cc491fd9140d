"""Preparing: the same bytes however it was interrupted, what is left out, what is refused."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile

from mmbench.data.media import prepare as preparing
from mmbench.data.media import shards
from mmbench.data.media.cache import open_cache
from mmbench.data.media.clips import decode_clip
from mmbench.data.media.decode import audio, frames
from mmbench.data.media.manifest import Clip, Manifest, Shard
from mmbench.data.media.prepare import prepare
from mmbench.errors import DataError
from mmbench.testing.corpora import write_video, write_wav
from tests.cli.command import snapshot
from tests.unit.media_clips import LEVEL, RECIPE, grey, noise, quiet, write_clip, write_clips

COUNT = 10


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_clips(folder, COUNT)
    return folder


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    """The clips again, to be damaged; files are to be replaced, not written into."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in source.iterdir():
        os.link(path, folder / path.name)
    return folder


def listed() -> list[Clip]:
    return [
        Clip(f"clip{i:02d}", "ab"[i % 2], f"g{i % 3}", f"clip{i:02d}.flv", f"clip{i:02d}.wav")
        for i in range(COUNT)
    ]


def make(source: Path, cache: Path, clips: list[Clip] | None = None, **more: Any) -> Manifest:
    options: dict[str, Any] = {"progress": quiet, "workers": 1, "recipe": RECIPE, **more}
    return prepare("toy", listed() if clips is None else clips, source, cache=cache, **options)


def replace_file(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def test_what_is_read_back_is_what_was_decoded(source: Path, tmp_path: Path) -> None:
    manifest = make(source, tmp_path)
    cache = open_cache("toy", tmp_path)
    assert cache.manifest == manifest
    assert [row.id for row in manifest.rows] == [clip.id for clip in listed()]
    for row in manifest.rows:
        kept = cache.frames(row)
        assert kept.shape == (row.frames, 24, 32, 3)  # the shorter side is 24
        assert row.times == pytest.approx(np.arange(row.frames) / 4)
        full = frames(source / row.video, row.times)
        assert kept.mean(axis=(1, 2, 3)) == pytest.approx(full.mean(axis=(1, 2, 3)), abs=2)
        assert row.audio is not None
        assert np.array_equal(cache.samples(row), audio(source / row.audio).samples)
    # 1.0 to 1.3 s of picture, of which a frame is kept at 0, 0.25, ...
    assert [row.frames for row in manifest.rows[:4]] == [4, 5, 5, 6]


def test_the_order_of_the_list_changes_nothing(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "one")
    make(source, tmp_path / "two", listed()[::-1])
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


KILLED = """
import sys
from pathlib import Path
from mmbench.data.media import shards
from tests.unit.test_media_prepare import make

shards.CLIPS_PER_SHARD = 3

def progress(done, total, what):
    print(done, flush=True)
    if done:
        sys.stdin.readline()  # never comes

make(Path(sys.argv[1]), Path(sys.argv[2]), progress=progress, workers=2)
"""


def test_a_killed_run_of_two_processes_goes_on_in_one_and_ends_with_the_same_bytes(
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
    assert [run.stdout.readline().strip() for _ in range(2)] in (["0", "3"], ["0", "1"])
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert not (broken / "manifest.json").exists()
    with pytest.raises(DataError, match="'toy' is only in part prepared"):
        open_cache("toy", broken)
    (broken / "shards" / ".partial-0123-00003.frames").write_bytes(b"half a shard")
    done_before = {path.stem for path in (broken / "shards").glob("*.json")}
    assert done_before
    written: list[int] = []

    def counted(job: shards.Job) -> Shard:
        written.append(job.number)
        return shards.write_shard(job)

    monkeypatch.setattr(preparing, "write_shard", counted)
    make(source, broken)
    assert snapshot(broken) == snapshot(tmp_path / "unbroken")
    assert not {f"{number:05d}" for number in written} & done_before


def test_a_second_call_decodes_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(source, tmp_path)
    before = snapshot(tmp_path)
    monkeypatch.setattr(preparing, "write_shard", None)
    monkeypatch.setattr(preparing, "decode_clip", None)
    make(source, tmp_path)
    assert snapshot(tmp_path) == before


def test_the_size_is_said_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    said: list[tuple[int, str, int]] = []

    def progress(done: int, total: int, what: str) -> None:
        said.append((done, what, len(list(tmp_path.glob("shards/*")))))

    manifest = make(source, tmp_path, progress=progress)
    size = sum(row.frame_bytes + 2 * row.samples for row in manifest.rows)
    assert said[0] == (0, f"clips, about {size / 1e6:.1f} MB", 0)
    assert said[-1][0] == COUNT


@pytest.mark.parametrize(("count", "tried"), [(10, 1), (128, 2), (129, 3), (20_000, 8)])
def test_few_clips_are_decoded_to_say_the_size(
    count: int, tried: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def counted(clip: Clip, *rest: Any) -> Any:
        decoded.append(clip.id)
        return decode_clip(clip, *rest)

    monkeypatch.setattr(preparing, "decode_clip", counted)
    monkeypatch.setattr(preparing, "in_processes", lambda *rest: iter(()))
    clips = [replace(listed()[i % COUNT], id=f"clip{i:05d}") for i in range(count)]
    make(source, tmp_path, clips)
    assert len(decoded) == tried
    assert len({int(name[4:]) * tried // count for name in decoded}) == tried  # spread over all


def test_the_size_is_said_although_the_first_clip_is_damaged(copy: Path, tmp_path: Path) -> None:
    replace_file(copy / "clip00.flv", b"no clip at all")
    said: list[str] = []
    make(copy, tmp_path, allow_missing=True, progress=lambda *step: said.append(step[2]))
    assert "about 0.0 MB" not in said[0]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "clip01.flv": lambda content: b"version https://git-lfs.github.com/spec/v1\n",
    "clip02.wav": lambda content: b"<html>not found</html>",
    "clip04.flv": lambda content: b"",
    "clip05.flv": lambda content: content[: len(content) // 2],
    "clip07.wav": lambda content: content[:-100],
}
FAULTS = {
    "clip01": "is a git-LFS pointer",
    "clip02": "is a web page",
    "clip04": "is empty",
    "clip05": "is cut",
    "clip07": "is cut",
    "clip08": "does not exist",
}


def damage(copy: Path) -> None:
    for name, change in DAMAGES.items():
        replace_file(copy / name, change((copy / name).read_bytes()))
    (copy / "clip08.wav").unlink()


def test_too_many_unusable_clips_are_refused_before_and_after_decoding(
    copy: Path, tmp_path: Path
) -> None:
    replace_file(copy / "clip05.flv", DAMAGES["clip05.flv"]((copy / "clip05.flv").read_bytes()))
    with pytest.raises(DataError) as caught:  # found by decoding
        make(copy, tmp_path / "cache")
    said = str(caught.value)
    assert "1 of 10 clips cannot be used, more than 1% (is cut" in said
    assert "the first: clip05.flv: is cut" in said
    assert "see `mmbench data verify toy --source" in said
    assert "-d allow_missing=true" in said
    assert not (tmp_path / "cache" / "manifest.json").exists()
    damage(copy)
    with pytest.raises(DataError, match=r"4 of 10 .*clip01\.flv: is a git-LFS pointer.*git lfs"):
        make(copy, tmp_path / "other")  # found by looking
    assert not (tmp_path / "other").exists()


def test_what_is_left_out_is_named_and_read_again_when_it_is_mended(
    source: Path, copy: Path, tmp_path: Path
) -> None:
    damage(copy)
    manifest = make(copy, tmp_path / "cache", allow_missing=True)
    assert {clip.id: clip.what.split(":")[0] for clip in manifest.left_out}.keys() == FAULTS.keys()
    for clip in manifest.left_out:
        assert clip.what.startswith(FAULTS[clip.id])
        assert clip.mend
        assert not clip.path.startswith("/")
    assert open_cache("toy", tmp_path / "cache").manifest == manifest
    for name in (*DAMAGES, "clip08.wav"):
        (copy / name).unlink(missing_ok=True)
        os.link(source / name, copy / name)
    assert make(copy, tmp_path / "cache").left_out == ()
    make(source, tmp_path / "whole")
    assert snapshot(tmp_path / "cache") == snapshot(tmp_path / "whole")


def test_silent_clips_are_kept_and_counted_with_the_damaged(copy: Path, tmp_path: Path) -> None:
    (copy / "clip03.wav").unlink()
    write_wav(copy / "clip03.wav", np.zeros(10_400, dtype=np.int16), 8000)
    with pytest.raises(DataError, match=r"1 of 10 clips .*is silent"):
        make(copy, tmp_path)
    manifest = make(copy, tmp_path, allow_missing=True)
    assert [row.id for row in manifest.rows if row.is_silent] == ["clip03"]
    assert manifest.left_out == ()


def test_picture_and_sound_of_very_different_length_are_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path, "a")
    write_wav(tmp_path / "a.wav", noise(2.9), 8000)
    manifest = make(tmp_path, tmp_path / "cache", [clip], allow_missing=True)
    assert [lost.what for lost in manifest.left_out] == [
        "has 1.0 s of picture beside 2.9 s of sound"
    ]


def test_stereo_and_other_rates_are_noted(tmp_path: Path) -> None:
    clip = write_clip(tmp_path, "a")
    both = np.stack([noise(1.0, 16_000, 1), noise(1.0, 16_000, 2)], axis=1)
    wavfile.write(tmp_path / "a.wav", 16_000, both)
    (row,) = make(tmp_path, tmp_path / "cache", [clip]).rows
    assert (row.channels, row.rate_in_file) == (2, 16_000)
    assert row.samples == pytest.approx(8000, abs=2)


def test_parts_of_a_clip_are_cut_out(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", grey(12), 10, noise(1.2, 16_000), 16_000)
    part = Clip("a", "a", "a", "a.mp4", "a.mp4", start=0.5, end=1.0)
    after = replace(part, id="b", start=5.0, end=6.0)
    manifest = make(tmp_path, tmp_path / "cache", [part, after], allow_missing=True)
    (row,) = manifest.rows
    assert row.times == pytest.approx([0.5, 0.75])
    cache = open_cache("toy", tmp_path / "cache")
    levels = cache.frames(row).mean(axis=(1, 2, 3))
    assert levels[0] == pytest.approx(5 * LEVEL, abs=3)
    assert row.samples == 4000
    whole = audio(tmp_path / "a.mp4", 8000).samples
    assert np.array_equal(cache.samples(row), whole[4000:8000])
    assert row.channels == 2  # AAC is written with two
    assert "has no sound from 5 to 6 s" in manifest.left_out[0].what


def test_another_recipe_does_not_overwrite_a_cache(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match=r"prepared with fps=4, .* not with fps=2, .*--cache"):
        make(source, tmp_path, recipe=replace(RECIPE, fps=2))
    assert snapshot(tmp_path) == before


def test_a_shorter_list_leaves_nothing_of_the_longer_one(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "one")
    make(source, tmp_path / "one", listed()[:4])
    make(source, tmp_path / "two", listed()[:4])
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_an_id_listed_twice_and_an_empty_list_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lists 'clip03' 2 times"):
        make(source, tmp_path, [*listed(), listed()[3]])
    with pytest.raises(DataError, match="lists no clips"):
        make(source, tmp_path, [])


def test_a_disk_too_small_is_said_at_once_and_a_full_one_by_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Usage)
        with pytest.raises(DataError, match=r"be written and about 0\.0 MB are free; free some"):
            make(source, tmp_path / "small")
    assert not list((tmp_path / "small").glob("shards/*"))

    def full(clip: Clip, place: Path, recipe: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "decode_clip", full)
    with pytest.raises(DataError, match="no space left; free some, or write elsewhere"):
        make(source, tmp_path / "full")
    assert not [p for p in (tmp_path / "full").rglob("*") if p.is_file() and p.name != "plan.json"]


def test_two_writers_do_not_share_a_cache(source: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int, what: str) -> None:
        if done == 0:
            with pytest.raises(DataError, match="is being written by another"):
                make(source, tmp_path)

    make(source, tmp_path, progress=progress)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("manifest.json", lambda content: content[:-9], "is damaged"),
        (
            "manifest.csv",
            lambda content: content.replace(b",a,", b",b,"),
            "manifest.csv has changed",
        ),
        ("shards/00001.frames", lambda content: content[:-1], "00001.frames has"),
        ("shards/00002.sound", lambda content: b"", "00002.sound has 0 bytes"),
    ],
)
def test_a_damaged_cache_is_refused_and_made_whole_again(
    source: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    make(source, tmp_path)
    before = snapshot(tmp_path)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=message):
        open_cache("toy", tmp_path)
    make(source, tmp_path)
    assert snapshot(tmp_path) == before


def test_a_cache_of_another_version_or_dataset_is_refused(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path)
    with pytest.raises(DataError, match="holds 'toy', not 'other'"):
        open_cache("other", tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(DataError, match="of another version of mmbench; remove it"):
        open_cache("toy", tmp_path)
    with pytest.raises(DataError, match=r"is not prepared in .*; run `mmbench data prepare toy"):
        open_cache("toy", tmp_path / "nowhere")

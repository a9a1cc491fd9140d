"""VGGSound: the list, names of files in all their forms, and the way from files to splits."""

from __future__ import annotations

import csv
import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbench.data.media.dataset import Listing
from mmbench.datasets.vggsound import PUBLISHED, VggSound, clip_id, read_entries, walked
from mmbench.errors import DataError
from mmbench.options import validated
from mmbench.testing.clips import Look, tone, write_video
from mmbench.testing.corpora import VGGSOUND, Signal, vggsound
from tests.cli.command import Command, assert_one_line, only_run, predictions, records

LINES = """--0PQM4-hqg,30,waterfall burbling,train
aEYwqY-Zt_k,11,"donkey, ass braying",test
_W_Mc16Gi4Q,0,"donkey, ass braying",train
B5KE79I2f-A,188,wind noise,train
B5KE79I2f-A,220,wind noise,train
"""
FOLDER = "scratch/shared/beegfs/hchen/train_data/VGGSound_final/video"


def dataset(**options: Any) -> VggSound:
    return VggSound(validated(VggSound.Config, options, "vggsound"))


def quiet(done: int, total: int, what: str) -> None:
    """Progress that nobody looks at."""


def write(folder: Path, lines: str = LINES, files: tuple[str, ...] = ()) -> Path:
    """Write a list and empty files."""
    (folder / "vggsound.csv").write_text(lines, encoding="utf-8")
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def paths(listing: Listing) -> dict[str, str]:
    return {clip.id: clip.video for clip in listing.clips}


# -- the list -------------------------------------------------------------------------------------


def test_labels_with_commas_are_read_and_classes_are_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path, files=("--0PQM4-hqg_000030.mp4",))
    listing = dataset().listing(tmp_path)
    assert {clip.id: (clip.label, clip.group, clip.split) for clip in listing.clips} == {
        "--0PQM4-hqg_30": ("waterfall burbling", "--0PQM4-hqg", "train"),
        "aEYwqY-Zt_k_11": ("donkey, ass braying", "aEYwqY-Zt_k", "test"),
        "_W_Mc16Gi4Q_0": ("donkey, ass braying", "_W_Mc16Gi4Q", "train"),
        "B5KE79I2f-A_188": ("wind noise", "B5KE79I2f-A", "train"),
        "B5KE79I2f-A_220": ("wind noise", "B5KE79I2f-A", "train"),
    }
    # By name: neither in the order of the lines nor by the one clip whose file is there.
    assert dataset().classes(listing.clips) == (
        "donkey, ass braying",
        "waterfall burbling",
        "wind noise",
    )
    division = dataset().divide("official", listing.clips, listing.lists)
    assert (len(division.train), len(division.test), division.val) == (4, 1, None)
    assert division.notes == ("a list of 4/1 clips of your own", "3 of the 309 classes")
    assert [p.what for p in listing.problems] == [
        "lists 4/1 clips for training and test, not 183,971/15,496",
        "names 3 classes, not 309",
    ]


def test_a_list_of_the_published_size_is_not_remarked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [sum(counts.values()) for counts in PUBLISHED] == [199_467, 199_176]  # 291 apart
    # A hundredth of it, so that the test is quick.
    monkeypatch.setattr("mmbench.datasets.vggsound.PUBLISHED", ({"train": 1840, "test": 155},))
    lines = [
        f"v{i:010d},{i % 600},sound {i % 309},{'train' if i < 1840 else 'test'}\n"
        for i in range(1995)
    ]
    listing = dataset().listing(write(tmp_path, "".join(lines), ("v0000000000_0.mp4",)))
    assert listing.problems == ()
    assert dataset().divide("official", listing.clips, {}).notes == ()
    cut = dataset().listing(write(tmp_path, "".join(lines[:-100]))).problems
    assert [problem.what for problem in cut] == [
        "lists 1,840/55 clips for training and test, not 1,840/155"
    ]


def test_bom_header_comment_line_ends_and_spaces_do_not_matter(tmp_path: Path) -> None:
    plain, other = tmp_path / "plain.csv", tmp_path / "other.csv"
    plain.write_text(LINES)
    text = "youtube_id,start_seconds,label,split\r\n" + LINES.replace("\n", "\r\n\r\n")
    other.write_bytes(b"\xef\xbb\xbf" + text.replace(",30,", " , 30,").encode())
    commented = tmp_path / "commented.csv"
    commented.write_text("# YouTube ID, start seconds, label, train/test split\n" + LINES)
    expected = [entry for _, entry in read_entries(plain)]
    assert [entry for _, entry in read_entries(other)] == expected
    assert [number for number, _ in read_entries(commented)] == [2, 3, 4, 5, 6]
    assert len(expected) == 5


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("aEYwqY-Zt_k,11,donkey, ass braying,test", "line 2: 'aEYwqY-Zt_k,11,donkey, ass"),
        ('aEYwqY-Zt_k,11,"donkey, ass braying,test', "line 2: .* with labels that hold commas"),
        ("aEYwqY-Zt_k,eleven,rapping,test", "line 2: .* is not <YouTube id>,<start in seconds>"),
        ("#NAME?,11,rapping,test,", None),
        ("=NAME,11,rapping,test", "line 2: '=NAME,11,rapping,test' is not"),
        ("aEYwqY-Zt_k_000011.mp4,rapping", "line 2: .* get the list from github"),
        ("aEYwqY-Zt_k,11,,test", "line 2: "),
        ("aEYwqY-Zt_k,11,rapping,val", "line 2: aEYwqY-Zt_k_11 is of set 'val', not of train or"),
        ("aEYwqY-Zt_k,11,rap", "line 2: 'aEYwqY-Zt_k,11,rap' is not"),
    ],
)
def test_a_wrong_line_is_named(line: str, complaint: str | None, tmp_path: Path) -> None:
    first, rest = LINES.split("\n", 1)
    write(tmp_path, f"{first}\n{line}\n{rest}", ("--0PQM4-hqg_30.mp4",))
    if complaint is None:  # a comment
        assert len(dataset().listing(tmp_path).clips) == 5
        return
    with pytest.raises(DataError, match=complaint):
        dataset().listing(tmp_path)


def test_a_list_of_one_set_alone_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "aEYwqY-Zt_k,11,rapping,test\n", ("aEYwqY-Zt_k_11.mp4",))
    with pytest.raises(DataError, match=r"names no clip of train; get the whole list from github"):
        dataset().listing(tmp_path)


def test_test_csv_in_place_of_the_list_is_refused_with_the_mend(tmp_path: Path) -> None:
    write(tmp_path, files=("aEYwqY-Zt_k_11.mp4", "data/test.csv"))
    (tmp_path / "vggsound.csv").unlink()
    with pytest.raises(DataError, match=r"no vggsound\.csv \(data/test\.csv alone .*; get it from"):
        dataset().listing(tmp_path)


def test_a_clip_listed_twice_is_named_once_and_its_first_line_used(tmp_path: Path) -> None:
    again = "B5KE79I2f-A,188,wind noise,train\n--0PQM4-hqg,30,rapping,test\n"
    write(tmp_path, LINES + again, ("--0PQM4-hqg_30.mp4",))
    listing = dataset().listing(tmp_path)
    assert len(listing.clips) == 5
    assert listing.clips[0].label == "waterfall burbling"
    assert [p.what for p in listing.problems if p.what.startswith("line")] == [
        "line 6 names B5KE79I2f-A_188 again",
        "line 7 names --0PQM4-hqg_30 again, which is 'waterfall burbling' of train before",
    ]


# -- names and folders ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("--0PQM4-hqg_000030", "--0PQM4-hqg_30"),
        ("--0PQM4-hqg_30", "--0PQM4-hqg_30"),
        ("_W_Mc16Gi4Q_000000", "_W_Mc16Gi4Q_0"),
        ("____________7", "____________7"),
        ("1234567_-_9_12_22", "1234567_-_9_12"),
        ("hpDY7u8B8hE_5000_15000", "hpDY7u8B8hE_5"),
        ("hpDY7u8B8hE_5500_15500", None),
        ("hpDY7u8B8hE_000012_000020", None),
        ("hpDY7u8B8hE", None),
        ("short_12", None),
        ("._hpDY7u8B8hE_000012", None),
        ("hpDY7u8B8hE_12 (1)", None),
    ],
)
def test_a_name_is_eleven_letters_and_a_start(name: str, clip: str | None) -> None:
    assert clip_id(name) == clip


def test_clips_are_found_in_whatever_folders_and_names_they_lie(tmp_path: Path) -> None:
    files = (
        f"vggsound_00/{FOLDER}/--0PQM4-hqg_000030.mp4",
        f"vggsound_01/{FOLDER}/aEYwqY-Zt_k_000011.mp4",
        "_W_Mc16Gi4Q_0.mp4",
        "B5KE79I2f-A_188000_198000.MP4",
    )
    listing = dataset().listing(write(tmp_path, files=files))
    assert paths(listing) == {
        "--0PQM4-hqg_30": files[0],
        "aEYwqY-Zt_k_11": files[1],
        "_W_Mc16Gi4Q_0": files[2],
        "B5KE79I2f-A_188": files[3],
        "B5KE79I2f-A_220": "B5KE79I2f-A_000220.mp4",  # where it is not
    }


def test_the_list_may_lie_below_and_two_that_differ_are_refused(tmp_path: Path) -> None:
    write(tmp_path, files=("data/x.txt", "--0PQM4-hqg_30.mp4"))
    (tmp_path / "vggsound.csv").rename(tmp_path / "data" / "vggsound.csv")
    assert len(dataset().listing(tmp_path).clips) == 5
    write(tmp_path, LINES)
    assert len(dataset().listing(tmp_path).clips) == 5  # another copy of the same
    write(tmp_path, LINES + "bbbbbbbbbbb,0,rapping,test\n")
    with pytest.raises(DataError, match="differ; move one of them away"):
        dataset().listing(tmp_path)


def test_folders_linked_to_are_searched_and_circles_end(tmp_path: Path) -> None:
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    elsewhere.mkdir()
    here.mkdir()
    (elsewhere / "--0PQM4-hqg_30.mp4").touch()
    (here / "part").symlink_to(elsewhere)
    (here / "circle").symlink_to(here)
    assert walked(here).clips == {"--0PQM4-hqg_30": "part/--0PQM4-hqg_30.mp4"}


def test_second_copies_and_files_of_no_line_are_named_once(tmp_path: Path) -> None:
    files = (
        "--0PQM4-hqg_000030.mp4",
        "zz/--0PQM4-hqg_30.mp4",
        "ccccccccccc_000001.mp4",
        "ddddddddddd_000001.mp4",
        "holiday.mp4",
    )
    listing = dataset().listing(write(tmp_path, files=files))
    assert paths(listing)["--0PQM4-hqg_30"] == files[0]
    found = {Path(p.path).name: p.what for p in listing.problems[2:]}
    assert found == {
        "--0PQM4-hqg_30.mp4": f"is another copy of --0PQM4-hqg_30; {files[0]} is used",
        "ccccccccccc_000001.mp4": "is in no line of the list (2 such files)",
        "holiday.mp4": "has not the name of a clip, <YouTube id>_<start in seconds>",
    }


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ((), "holds no clips; give the folder that holds them and vggsound.csv"),
        (("vggsound_00.tar.gz", "vggsound_01.tar.gz"), r"2 archives, such as vggsound_00\.tar\.gz"),
        (("a/clip1.mp4",), r"1 videos have other names, such as a/clip1\.mp4; name them"),
        (("ccccccccccc_1.mp4",), r"other names, such as ccccccccccc_1\.mp4"),
    ],
)
def test_a_folder_without_any_clip_of_the_list_is_refused(
    files: tuple[str, ...], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=complaint):
        dataset().listing(write(tmp_path, files=files))


def test_a_wrong_folder_is_said_to_be_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        dataset().listing(tmp_path / "absent")
    with pytest.raises(DataError, match=r"holds no vggsound\.csv; get it from github"):
        dataset().listing(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, files=("--0PQM4-hqg_30.mp4", "closed/x.mp4"))
    read = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="closed cannot be read: Permission denied; check its"):
        dataset().listing(tmp_path)


# -- files ----------------------------------------------------------------------------------------

SMALL = Look(seconds=1.0, height=32, width=40, fps=5, rate=16_000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 clips of 12 classes: four of each in train and one in test."""
    folder = tmp_path_factory.mktemp("vggsound")
    vggsound(folder, 60, signal=Signal(1.0, 1.0), look=SMALL)
    return folder


def test_generated_files_become_splits(corpus: Path, tmp_path: Path) -> None:
    dataset(short_side=32, fps=4).prepare(corpus, tmp_path, quiet, workers=1)
    options = {"cache": str(tmp_path), "frames": 2, "size": 32, "val_fraction": 0.25}
    splits = dataset(**options).load("official", 0)
    assert splits.classes == tuple(sorted(VGGSOUND))
    sizes = {name: len(part) for name, part in splits.named().items()}
    assert sizes["train"] + sizes["val"] == 48
    assert sizes["test"] == 12
    assert splits.modalities["audio"].shape == (1, 129, 626)  # as released: 5 s, 256 and 128
    assert splits.modalities["visual"].shape == (2, 3, 32, 32)
    assert "a list of 48/12 clips of your own" in splits.notes
    assert splits.train.groups is not None
    assert splits.val.groups is not None
    assert not {*splits.train.groups} & {*splits.val.groups}
    splits.check("vggsound")
    with (corpus / "vggsound.csv").open(encoding="utf-8", newline="") as file:
        listed = {f"{youtube}_{start}": label for youtube, start, label, _ in csv.reader(file)}
    for part in splits.named().values():
        for name, y in zip(part.ids, part.y.tolist(), strict=True):
            assert splits.classes[y] == listed[name]


def test_clips_that_are_gone_are_counted_by_split_and_classes_stay(
    corpus: Path, tmp_path: Path
) -> None:
    listing = dataset().listing(corpus)
    gone = [clip for clip in listing.clips if clip.label == VGGSOUND[0]]
    lost = [clip for clip in gone if clip.split == "train"][:3] + [
        clip for clip in gone if clip.split == "test"
    ]
    away = [(corpus / clip.video, (corpus / clip.video).with_suffix(".away")) for clip in lost]
    for path, hidden in away:
        path.rename(hidden)
    try:
        with pytest.raises(DataError, match=r"4 of 60 clips cannot be used.*does not exist: 4"):
            dataset().prepare(corpus, tmp_path, quiet, workers=1)
        found = dataset().verify(corpus, workers=1)
        dataset(allow_missing=True, short_side=32).prepare(corpus, tmp_path, quiet, workers=1)
    finally:
        for path, hidden in away:
            hidden.rename(path)
    assert not found.usable
    assert found.counts["official: train and val (of 48)"] == 45
    assert found.counts["official: test (of 12)"] == 11
    assert found.counts[f"{VGGSOUND[0]} (of 5)"] == 1
    named = Counter(p.path for p in found.problems)
    assert [named[str(corpus / path.name)] for path, _ in away] == [1] * 4
    with pytest.raises(DataError, match="3 of 48 clips of train are missing"):
        dataset(cache=str(tmp_path)).load("official", 0)
    splits = dataset(cache=str(tmp_path), allow_missing=True, size=32).load("official", 0)
    assert splits.classes == tuple(sorted(VGGSOUND))  # though of the first hardly any is left
    assert [note for note in splits.notes if "left out" in note] == [
        "3 of 48 clips of train missing or damaged, left out",
        "1 of 12 clips of test missing or damaged, left out",
    ]


def test_other_sampling_rates_and_clips_without_sound_are_named_once(tmp_path: Path) -> None:
    clips = vggsound(tmp_path, 36, look=SMALL)
    other, mute = (clip.video for clip in clips[:2])
    frames = np.full((5, 32, 40, 3), 90, dtype=np.uint8)
    sound = tone(3, 12, 1.0, 44_100, np.random.default_rng(0))
    write_video(other, frames, 5, sound, 44_100)
    write_video(mute, frames, 5, None, 0)
    found = dataset(allow_missing=True).verify(tmp_path, workers=1)
    assert [p.what for p in found.problems if p.path == str(mute)] == ["has no sound stream"]
    assert not [p for p in found.problems if p.path == str(other)]
    options = {"allow_missing": True, "short_side": 32}
    said = dataset(**options).prepare(tmp_path, tmp_path / "cache", quiet, workers=1)
    assert "1 left out, the first: " in said
    assert said.count("has no sound stream") == 1
    assert said.count("1 clip resampled from 44100 to 16000 Hz") == 1


def test_files_as_downloaded_become_a_result_by_the_commands_alone(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = Command(capfd)
    absent = command.run("--dataset vggsound --method joint -d cache=prepared")
    assert_one_line(absent, 2, "run `mmbench data prepare vggsound --source DIR`")
    files = ("vggsound", "--source", corpus, "--workers", 1)
    verified = command("data", "verify", *files, "--show", 0)
    assert verified.code == 0, verified
    assert any(
        line.split() == ["official:", "test", "(of", "12)", "12"]
        for line in verified.out.splitlines()
    )
    kept = ["--cache", "prepared", "-d", "short_side=32", "-d", "seconds=1"]
    prepared = command("data", "prepare", *files, *kept)
    assert prepared.code == 0, prepared
    assert "60 clips" in prepared.out

    data = "-d cache=prepared -d seconds=1 -d frames=1 -d size=32 -d front_end=log_mel"
    small = "-t epochs=1 -t batch_size=24"
    run = command.run(f"--dataset vggsound --method joint {data} {small}")
    assert run.code == 0, run
    (record,) = records()
    assert (record["dataset"], record["protocol"]) == ("vggsound", "official")
    with (corpus / "vggsound.csv").open(encoding="utf-8", newline="") as file:
        tested = {f"{row[0]}_{row[1]}" for row in csv.reader(file) if row[3] == "test"}
    assert {*predictions(only_run())["test_ids"]} == tested

"""UCF-101: what its lists mean, files in every layout, and the way to a trained model."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmbench.data.dataset import Splits
from mmbench.data.media.cache import open_cache
from mmbench.data.media.decode import timestamps
from mmbench.datasets.ucf101 import OFFICIAL, Ucf101, lists_of, read_classes, read_clips
from mmbench.errors import DataError
from mmbench.options import validated
from mmbench.testing.clips import Look
from mmbench.testing.ucf101 import CLASSES, Flows, Generated, Pictures, Signal, ucf101
from tests.cli.command import Command, records

SHORT = Look(seconds=0.6, height=36, width=48, fps=25)
BY_NAME = ("ApplyEyeMakeup", "HandstandPushups", "JumpingJack", "JumpRope", "YoYo")


def dataset(**options: Any) -> Ucf101:
    return Ucf101(validated(Ucf101.Config, options, "ucf101"))


def quiet(done: int, total: int, what: str) -> None:
    """Progress that nobody looks at."""


def lists(**contents: str) -> dict[str, bytes]:
    given = {"classInd": "1 Archery\n2 HandstandPushups\n", **contents}
    return {f"{name}.txt": content.encode() for name, content in given.items()}


# -- lists -----------------------------------------------------------------------------------------


def test_lines_with_and_without_number_are_clips_whatever_their_capitals() -> None:
    train = "Archery/v_Archery_g08_c01.avi 1\nHandstandPushups/v_HandStandPushups_g25_c07.avi 2\n"
    given = lists(trainlist01=train, testlist01="HandStandPushups/v_HandstandPushups_g01_c01.avi\n")
    assert [(e.label, e.name, e.group) for e in read_clips("trainlist01.txt", given)] == [
        ("Archery", "v_Archery_g08_c01", "Archery_g08"),
        ("HandstandPushups", "v_HandStandPushups_g25_c07", "HandstandPushups_g25"),
    ]
    (tested,) = read_clips("testlist01.txt", given)
    assert (tested.label, tested.group) == ("HandstandPushups", "HandstandPushups_g01")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("Archery/v_Archery_g08.avi 1", r"line 2: .* is not <Class>/v_<Class>_g<NN>_c<NN>\.avi"),
        ("v_Archery_g08_c01.avi 1", r"line 2: .* is not <Class>/v_<Class>"),
        ("YoYo/v_Archery_g08_c01.avi 1", r"line 2: .* is not <Class>/v_<Class>"),
        ("Archary/v_Archary_g08_c01.avi", "line 2: unknown class 'Archary': did you mean Archery"),
        ("Archery/v_Archery_g08_c01.avi 2", r"line 2: Archery has the number 1 in classInd\.txt"),
        ("archery/v_archery_g01_c01.avi 1", "line 2: v_archery_g01_c01 is listed already"),
    ],
)
def test_a_wrong_line_of_a_list_is_named(line: str, complaint: str) -> None:
    given = lists(trainlist01=f"Archery/v_Archery_g01_c01.avi 1\n{line}\n")
    with pytest.raises(DataError, match=complaint):
        read_clips("trainlist01.txt", given)


@pytest.mark.parametrize("line", ["Archery", "x Archery", "1 YoYo", "2 Archery", "2"])
def test_a_wrong_line_of_the_classes_is_named(line: str) -> None:
    with pytest.raises(DataError, match=r"classInd\.txt, line 2: .* is not a number and a class"):
        read_classes(lists(classInd=f"1 Archery\n{line}\n"))


def test_official_counts_are_those_of_the_archive() -> None:
    assert OFFICIAL["split1"] == (9537, 3783)
    assert {sum(counts) for counts in OFFICIAL.values()} == {13_320}


# -- generated files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Generated, ...]]:
    """Five classes, four groups of one clip each, as downloaded."""
    folder = tmp_path_factory.mktemp("ucf101")
    return folder, ucf101(folder, groups=4, signal=Signal(1.0, 1.0), look=SHORT)


@pytest.fixture(scope="module")
def cache(
    corpus: tuple[Path, tuple[Generated, ...]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    said = dataset(fps=5).prepare(corpus[0], folder, quiet, workers=1)
    assert said.startswith("20 clips, 60 frames")
    return folder


def loaded(cache: Path, protocol: str = "split1", seed: int = 0) -> Splits:
    options = {"cache": str(cache), "frames": 2, "size": 32}
    splits = dataset(**options).load(protocol, seed)
    splits.check("ucf101")
    return splits


def test_the_clips_are_what_the_archive_holds(
    corpus: tuple[Path, tuple[Generated, ...]],
) -> None:
    folder, clips = corpus
    assert Counter(clip.label for clip in clips) == dict.fromkeys(CLASSES, 4)
    path = folder / "UCF-101" / "HandstandPushups" / "v_HandStandPushups_g03_c01.avi"
    assert timestamps(path) == pytest.approx(np.arange(15) / 25)
    flow = sorted((folder / "tvl1_flow" / "u" / "v_JumpRope_g01_c01").iterdir())
    assert [flow[0].name, flow[-1].name] == ["frame000001.jpg", "frame000014.jpg"]
    with Image.open(flow[0]) as image:
        assert (image.mode, image.size) == ("L", (48, 36))
    listed = (folder / "ucfTrainTestlist" / "trainlist01.txt").read_bytes()
    assert b"ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi 1\r\n" in listed


def test_files_become_splits_by_the_lists(cache: Path) -> None:
    for number, protocol in enumerate(OFFICIAL, start=1):
        splits = loaded(cache, protocol)
        assert splits.classes == BY_NAME
        assert {name: len(part) for name, part in splits.named().items()} == {
            "train": 13,
            "val": 2,
            "test": 5,
        }
        assert {str(i)[-7:-4] for i in splits.test.ids} == {f"g0{number}"}
        official = f"{OFFICIAL[protocol][0]:,}/{OFFICIAL[protocol][1]:,}"
        assert f"lists of 15/5 clips, not the official {official}" in splits.notes
        assert not any("groups of test" in note for note in splits.notes)
    assert splits.modalities["rgb"].shape == (2, 3, 32, 32)
    assert splits.modalities["flow"].shape == (2, 2, 32, 32)
    assert {m.kind for m in splits.modalities.values()} == {"frames"}


def test_no_group_is_in_two_splits_and_the_seed_draws_validation(cache: Path) -> None:
    drawn = set()
    for seed in range(5):
        splits = loaded(cache, seed=seed)
        groups = [{*part.groups} for part in splits.named().values() if part.groups is not None]
        assert len(groups) == 3
        assert len(set.union(*groups)) == sum(map(len, groups))
        drawn.add(tuple(splits.val.ids))
    assert len(drawn) > 1
    again, first = loaded(cache, seed=3), loaded(cache, seed=3)
    assert again.fingerprints() == first.fingerprints() != loaded(cache, seed=4).fingerprints()


def test_each_modality_shows_what_was_written(
    cache: Path, corpus: tuple[Path, tuple[Generated, ...]]
) -> None:
    """With full strength, the mean colour and the mean motion name the class."""
    splits = loaded(cache)
    shown = {clip.name: clip for clip in corpus[1]}
    rows = torch.arange(len(splits.train))
    batch = splits.train.batch(rows, ["rgb", "flow"])
    moved = batch.inputs["flow"].mean(dim=(1, 3, 4))
    angles = torch.atan2(moved[:, 1], moved[:, 0]).rad2deg()
    for name, angle, label in zip(splits.train.ids, angles, batch.y, strict=True):
        assert shown[name].moved == int(label)
        assert angle == pytest.approx(-80 + 40 * int(label), abs=3)
    colours = batch.inputs["rgb"].mean(dim=(1, 3, 4))
    hues = colours - colours.mean(dim=1, keepdim=True)
    hues = hues / hues.norm(dim=1, keepdim=True)
    alike = hues @ hues.T
    same = batch.y[:, None] == batch.y
    assert alike[same].min() > alike[~same].max()


LAYOUTS: list[tuple[Pictures, Flows]] = [
    ("avi", "tvl1_flow"),
    ("avi", "rawframes"),
    ("rawframes", "rawframes"),
    ("rawframes", "tvl1_flow"),
    ("jpegs_256", "tvl1_flow"),
]


@pytest.mark.parametrize(("pictures", "flow"), LAYOUTS)
def test_every_layout_gives_the_same_flow_and_nearly_the_same_pictures(
    pictures: Pictures, flow: Flows, cache: Path, tmp_path: Path
) -> None:
    ucf101(
        tmp_path / "data" / "inner",
        groups=4,
        signal=Signal(1.0, 1.0),
        look=SHORT,
        pictures=pictures,
        flow=flow,
    )
    if pictures == "rawframes":  # mmaction2 puts the lists elsewhere
        inner = tmp_path / "data" / "inner"
        (inner / "ucfTrainTestlist").rename(inner / "annotations")
    data = dataset(fps=5)
    assert len(data.listing(tmp_path / "data").clips) == 20
    data.prepare(tmp_path / "data", tmp_path / "cache", quiet, workers=1)
    ours, theirs = open_cache("ucf101", tmp_path / "cache"), open_cache("ucf101", cache)
    for row, other in zip(ours.manifest.rows, theirs.manifest.rows, strict=True):
        assert (row.id, row.label, row.group) == (other.id, other.label, other.group)
        assert row.times == other.times
        assert np.array_equal(ours.flow(row), theirs.flow(other))
        difference = ours.frames(row).astype(int) - theirs.frames(other)
        assert np.abs(difference).mean() < 8  # JPEG and MPEG-4 lose different things
    assert {row.flow_sha256 for row in ours.manifest.rows} == {
        row.flow_sha256 for row in theirs.manifest.rows
    }


def test_the_hash_of_flow_is_that_of_the_files_kept(
    cache: Path, corpus: tuple[Path, tuple[Generated, ...]]
) -> None:
    row = open_cache("ucf101", cache).manifest.rows[0]
    content = b""
    for number in (1, 6, 11):  # frames shown at 0, 0.2 and 0.4 s are the 1st, 6th and 11th
        for part in (row.flow_u, row.flow_v):
            assert part is not None
            content += (corpus[0] / part.replace("*", f"{number:06d}")).read_bytes()
    assert row.flow_sha256 == hashlib.sha256(content).hexdigest()


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.fixture
def copy(corpus: tuple[Path, tuple[Generated, ...]], tmp_path: Path) -> Path:
    """The corpus again, to be damaged; files are to be replaced, not written into."""
    for path in corpus[0].rglob("*"):
        if path.is_file():
            place = tmp_path / "copy" / path.relative_to(corpus[0])
            place.parent.mkdir(parents=True, exist_ok=True)
            place.hardlink_to(path)
    return tmp_path / "copy"


def replace_file(path: Path, change: Callable[[bytes], bytes]) -> Path:
    content = change(path.read_bytes())
    path.unlink()
    path.write_bytes(content)
    return path


def test_verify_counts_and_names_each_fault_once(copy: Path) -> None:
    video = copy / "UCF-101" / "YoYo" / "v_YoYo_g02_c01.avi"
    u = copy / "tvl1_flow" / "u"
    (copy / "tvl1_flow" / "v" / "v_JumpRope_g01_c01").rename(copy / "tvl1_flow" / "v" / "away")
    faulty = {
        str(replace_file(video, lambda content: b"")): "is empty",
        str(copy / "tvl1_flow" / "v" / "v_JumpRope_g01_c01" / "frame*.jpg"): "does not exist",
        str(
            replace_file(
                u / "v_YoYo_g03_c01" / "frame000001.jpg",
                lambda content: content[: len(content) // 2],
            )
        ): "is cut, damaged or no picture",
    }
    (copy / "UCF-101" / "YoYo" / "v_YoYo_g09_c01.avi").write_bytes(b"x")
    found = dataset(fps=5).verify(copy, workers=1)
    assert not found.usable
    assert found.counts["clips (of 20)"] == 17
    assert found.counts["YoYo (of 4)"] == 2
    assert found.counts["split1: test (of 5)"] == 4
    assert found.counts["split2: train and val (of 15)"] == 13
    named = {problem.path: problem for problem in found.problems}
    for path, what in faulty.items():
        assert what in named[path].what
        assert named[path].mend
    assert sum(problem.path in faulty for problem in found.problems) == len(faulty)
    said = [problem.what for problem in found.problems]
    assert "is in no list" in said
    assert "names 5 classes, not 101" in said
    assert "lists 15 clips, not 9,537" in said
    with pytest.raises(DataError, match="2 of 20 clips cannot be used"):  # without decoding
        dataset(fps=5).prepare(copy, copy / "cache", quiet, workers=1)


def test_names_on_disk_may_have_other_capitals(copy: Path) -> None:
    for path in (
        copy / "UCF-101" / "HandstandPushups",
        copy / "tvl1_flow" / "u" / "v_HandStandPushups_g01_c01",
    ):
        path.rename(path.with_name(path.name.lower()))
    clips = dataset().listing(copy).clips
    (clip,) = (clip for clip in clips if clip.id == "v_HandStandPushups_g01_c01")
    assert clip.video == "UCF-101/handstandpushups/v_HandStandPushups_g01_c01.avi"
    assert clip.flow is not None
    assert clip.flow.u == "tvl1_flow/u/v_handstandpushups_g01_c01/frame*.jpg"
    assert clip.flow.v == "tvl1_flow/v/v_HandStandPushups_g01_c01/frame*.jpg"


def test_without_flow_it_is_said_which_files_are_looked_for(tmp_path: Path) -> None:
    ucf101(tmp_path, groups=4, look=SHORT, flow=None)
    with pytest.raises(DataError) as caught:
        dataset().listing(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path} holds no optical flow: ")
    for place in (
        "tvl1_flow/u/<clip>/frame000001.jpg",
        "tvl1_flow/v/<clip>/frame000001.jpg",
        "rawframes/<Class>/<clip>/flow_x_00001.jpg",
        "docs/datasets/ucf101.md",
    ):
        assert place in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("nowhere", "is not a folder"),
        ("UCF-101", r"holds no ucfTrainTestlist/classInd\.txt; get UCF101TrainTestSplits"),
    ],
)
def test_a_wrong_folder_is_said_to_be_wrong(
    place: str, complaint: str, corpus: tuple[Path, tuple[Generated, ...]]
) -> None:
    with pytest.raises(DataError, match=complaint):
        dataset().listing(corpus[0] / place)


def test_missing_pictures_and_lists_are_said_to_be_missing(copy: Path) -> None:
    (copy / "UCF-101").rename(copy / "elsewhere")
    with pytest.raises(DataError, match=r"holds no pictures: UCF-101/<Class>/<clip>\.avi"):
        dataset().listing(copy)
    for path in (copy / "ucfTrainTestlist").glob("*list0*.txt"):
        path.unlink()
    with pytest.raises(DataError, match=r"holds no trainlist01\.txt and testlist01\.txt; get UCF"):
        dataset().listing(copy)


def test_a_protocol_without_its_lists_says_so_and_the_others_run(
    copy: Path, tmp_path: Path
) -> None:
    (copy / "ucfTrainTestlist" / "testlist02.txt").unlink()
    dataset(fps=5).prepare(copy, tmp_path / "cache", quiet, workers=1)
    data = dataset(cache=str(tmp_path / "cache"), fps=5)
    assert len(data.load("split1", 0).test) == 5
    with pytest.raises(DataError, match=r"protocol 'split2' of ucf101 needs testlist02\.txt"):
        data.load("split2", 0)
    problems = dataset().listing(copy).problems
    assert any("does not exist; 'split2' needs it" in problem.what for problem in problems)


def test_a_clip_in_train_and_test_is_refused(corpus: tuple[Path, tuple[Generated, ...]]) -> None:
    data, listing = dataset(), dataset().listing(corpus[0])
    train, test = lists_of("split1")
    changed = {**listing.lists, test: listing.lists[train]}
    with pytest.raises(DataError, match=r"trainlist01\.txt and testlist01\.txt both list v_Apply"):
        data.divide("split1", listing.clips, changed)


def test_a_group_in_train_and_test_is_said_of_every_result(copy: Path, tmp_path: Path) -> None:
    def moved(content: bytes) -> bytes:
        return content.replace(b"YoYo_g01_c01", b"YoYo_g02_c02")

    (copy / "UCF-101" / "YoYo" / "v_YoYo_g02_c02.avi").hardlink_to(
        copy / "UCF-101" / "YoYo" / "v_YoYo_g01_c01.avi"
    )
    for part in "uv":
        folder = copy / "tvl1_flow" / part
        (folder / "v_YoYo_g01_c01").rename(folder / "v_YoYo_g02_c02")
    for path in (copy / "ucfTrainTestlist").glob("*list0*.txt"):
        replace_file(path, moved)
    dataset(fps=5).prepare(copy, tmp_path / "cache", quiet, workers=1)
    data = dataset(cache=str(tmp_path / "cache"), fps=5)
    notes = data.load("split1", 0).notes
    assert "1 of the 5 groups of test are in train or validation" in notes


def test_without_a_cache_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `mmbench data prepare ucf101 --source DIR`"):
        dataset(cache=str(tmp_path / "nothing")).load("split1", 0)


# -- from files to a result ------------------------------------------------------------------------


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "caches"))
    return Command(capsys)


def test_files_as_downloaded_become_a_result(
    command: Command, corpus: tuple[Path, tuple[Generated, ...]]
) -> None:
    files = ("--source", corpus[0], "-d", "fps=5", "--workers", 1)
    verified = command("data", "verify", "ucf101", *files)
    assert verified.code == 0, verified
    assert "can be used" in verified.out
    prepared = command("data", "prepare", "ucf101", *files)
    assert prepared.code == 0, prepared
    assert "20 clips, 60 frames" in prepared.out
    small = "-d frames=1 -d size=32 -t epochs=1 -t batch_size=8"
    run = command.run(f"--dataset ucf101 --method joint {small}")
    assert run.code == 0, run
    (record,) = records()
    assert record["status"] == "done"
    assert set(record["per_modality"]) == {"rgb", "flow"}

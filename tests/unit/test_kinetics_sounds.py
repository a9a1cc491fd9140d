"""Kinetics-Sounds: names, annotations and lists, and the way from generated files to splits."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbench.data.class_names import KINETICS_SOUNDS
from mmbench.data.dataset import Split
from mmbench.data.media.dataset import Listing
from mmbench.datasets.kinetics_sounds import KineticsSounds, Moment, moment, read_names
from mmbench.errors import DataError
from mmbench.options import validated
from mmbench.testing.clips import Look, write_video
from mmbench.testing.corpora import Signal, kinetics_sounds

HEADER = "label,youtube_id,time_start,time_end,split"


def dataset(**options: Any) -> KineticsSounds:
    return KineticsSounds(validated(KineticsSounds.Config, options, "kinetics_sounds"))


def quiet(done: int, total: int, what: str) -> None:
    """Progress that nobody looks at."""


def write(folder: Path, **files: str) -> Path:
    """Write files; ``train_csv`` becomes ``train.csv``, ``annotations__`` a folder."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_csv", ".csv").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def groups(split: Split) -> list[str]:
    """Return the video of each row; its id begins with it."""
    assert split.groups is not None
    assert all(i.startswith(f"{g}_") for i, g in zip(split.ids, split.groups, strict=True))
    return [str(group) for group in split.groups]


def counts(listing: Listing, protocol: str) -> dict[str, int]:
    division = dataset().divide(protocol, listing.clips, listing.lists)
    return {name: len(ids) for name, ids in division.parts().items()}


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("--4-0ihtnBU_000058_000068", Moment("--4-0ihtnBU", 58)),
        ("--6q_33gNew_000132_000142", Moment("--6q_33gNew", 132)),
        ("-74csnCOiUs_0", Moment("-74csnCOiUs", 0)),
        ("____________7", Moment("___________", 7)),
        ("1234567_-_9_12_22", Moment("1234567_-_9", 12)),
        ("short_12_22", None),
        ("-74csnCOiUs", None),
        ("-74csnCOiUs_a", None),
        ("-74csnCOiUs_1_2_3", None),
    ],
)
def test_a_name_is_eleven_letters_and_times(name: str, meaning: Moment | None) -> None:
    assert moment(name) == meaning


def test_every_published_name_is_understood(shared_data: Path) -> None:
    for split in ("train", "val", "test"):
        path = shared_data / "splits" / "kinetics-sounds" / f"{split}.csv"
        names = [line.split(",")[0] for line in path.read_text().splitlines()]
        for name in names:
            found = moment(name)
            assert found is not None
            assert name.startswith(f"{found.video}_")
            assert int(name[12:].partition("_")[0]) == found.start


# -- lists ----------------------------------------------------------------------------------------


@pytest.fixture
def published(shared_data: Path, tmp_path: Path) -> Path:
    for split in ("train", "val", "test"):
        content = (shared_data / "splits" / "kinetics-sounds" / f"{split}.csv").read_bytes()
        (tmp_path / f"{split}.csv").write_bytes(content)
    return tmp_path


def test_the_published_lists_give_their_counts(published: Path) -> None:
    listing = dataset().listing(published)
    assert counts(listing, "lists") == {"train": 14799, "val": 1320, "test": 2597}
    assert dataset().classes(listing.clips) == tuple(sorted(KINETICS_SOUNDS))
    division = dataset().divide("lists", listing.clips, listing.lists)
    assert division.notes == ("31 classes",)
    trained = Counter(clip.label for clip in listing.clips if clip.id in division.train)
    assert len(trained) == 31
    assert trained.most_common()[0] == ("blowing_out_candles", 690)
    assert trained.most_common()[-1] == ("stomping_grapes", 197)
    with pytest.raises(DataError, match="'official' of kinetics_sounds needs the annotations"):
        dataset().divide("official", listing.clips, listing.lists)


def test_ogm_ge_lists_say_the_same_without_class_names(
    published: Path, shared_data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "ogm"
    other.mkdir()
    for split in ("train", "test"):
        name = f"ogm_ge_my_{split}.txt"
        content = (shared_data / "splits" / "kinetics-sounds" / name).read_bytes()
        (other / f"my_{split}.txt").write_bytes(content)
    numbers = dataset().listing(other)
    labels = {clip.id: clip.label for clip in dataset().listing(published).clips}
    assert len(numbers.clips) == 14799 + 2597
    assert all(labels[clip.id] == clip.label for clip in numbers.clips)
    division = dataset().divide("lists", numbers.clips, numbers.lists)
    assert division.val is None  # carved from train, by video


def test_bom_header_line_ends_and_spaces_do_not_matter(tmp_path: Path) -> None:
    content = "name,class,label\r\n-74csnCOiUs_0 , playing keyboard ,14\r\n\r\n"
    write(tmp_path, test_csv="-7aeB7vFtB4_37,playing_piano,16\n")
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbf" + content.encode())
    clips = {clip.id: clip.label for clip in dataset().listing(tmp_path).clips}
    assert clips == {"-74csnCOiUs_0": "playing_keyboard", "-7aeB7vFtB4_37": "playing_piano"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("short_1,bowling,2", "line 2: 'short_1,bowling,2' is not <YouTube id>_<start>"),
        ("-74csnCOiUs_0,bowling", "line 2: .* is not <YouTube id>"),
        ("-74csnCOiUs_0,10,31", "line 2: label 31 is above 30"),
        ("-74csnCOiUs_0,bowling,3", "line 2: label 3 is chopping_wood, not bowling"),
        ("-74csnCOiUs_0,bowlin,2", "line 2: unknown class 'bowlin': did you mean bowling"),
    ],
)
def test_a_wrong_line_is_named(line: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        list(read_names(f"-7aeB7vFtB4_37,10,16\n{line}\n".encode(), "train.csv"))


def test_a_clip_listed_twice_is_refused(tmp_path: Path) -> None:
    train, test = "-74csnCOiUs_000003_000013,10,1\n", "-74csnCOiUs_3,10,1\n"
    write(tmp_path, train_csv=train, test_csv=test)
    with pytest.raises(DataError, match="-74csnCOiUs_3 is listed already, in train"):
        dataset().listing(tmp_path)


def test_one_list_alone_is_refused(tmp_path: Path) -> None:
    write(tmp_path, train_csv="-74csnCOiUs_3,10,1\n")
    with pytest.raises(DataError, match=r"train\.csv is there without test\.csv"):
        dataset().listing(tmp_path)


# -- annotations ----------------------------------------------------------------------------------


def test_annotations_are_filtered_by_the_31_classes(tmp_path: Path) -> None:
    train = f"""{HEADER}
"bowling",-74csnCOiUs,3,13,train
playing guitar,-_4csnCOi_s,30,40,train
abseiling,bbbbbbbbbbb,5,15,train
strumming guitar,ccccccccccc,5,15,train
playing piano,ddddddddddd,0,10,train
"""
    val = f"{HEADER}\nsinging,eeeeeeeeeee,0,10,validate\nzumba,fffffffffff,0,10,validate\n"
    test = f"{HEADER}\nsinging,ggggggggggg,0,10,test\n"
    write(tmp_path, annotations__train_csv=train, annotations__val_csv=val)
    write(tmp_path, annotations__test_csv=test)
    listing = dataset().listing(tmp_path)
    assert {clip.id: (clip.label, clip.split) for clip in listing.clips} == {
        "-74csnCOiUs_3": ("bowling", "train"),
        "-_4csnCOi_s_30": ("playing_guitar", "train"),
        "ddddddddddd_0": ("playing_piano", "train"),
        "eeeeeeeeeee_0": ("singing", "val"),
    }
    assert counts(listing, "official") == {"train": 3, "test": 1}
    with pytest.raises(DataError, match="'lists' of kinetics_sounds needs lists"):
        dataset().divide("lists", listing.clips, listing.lists)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("bowling,short,3,13,train", "line 2: id 'short'"),
        ("bowling,-74csnCOiUs,x,13,train", "line 2: .* start 'x'"),
        ("zumba,-74csnCOiUs,3,13,train", "names no clip of the 31 classes"),
    ],
)
def test_a_wrong_annotation_is_named(row: str, complaint: str, tmp_path: Path) -> None:
    write(tmp_path, train_csv=f"{HEADER}\n{row}\n", val_csv=f"{HEADER}\n{row}\n")
    with pytest.raises(DataError, match=complaint):
        dataset().listing(tmp_path)


def test_a_folder_without_annotations_and_lists_is_said_to_be_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds neither annotations of Kinetics-400"):
        dataset().listing(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        dataset().listing(tmp_path / "absent")


# -- files ----------------------------------------------------------------------------------------

SMALL = Look(seconds=1.0, height=32, width=40, fps=5, rate=16_000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """124 clips: of each class two in train and one each in val and test, and lists of them."""
    folder = tmp_path_factory.mktemp("kinetics")
    kinetics_sounds(folder, 124, signal=Signal(1.0, 1.0), look=SMALL, lists=True)
    return folder


@pytest.fixture(scope="module")
def cache(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    dataset(short_side=32, fps=4).prepare(corpus, folder, quiet, workers=1)
    return folder


def test_generated_files_become_splits_of_both_protocols(cache: Path) -> None:
    options = {"cache": str(cache), "frames": 2, "size": 32, "val_fraction": 0.25}
    lists = dataset(**options).load("lists", 0)
    assert lists.classes == KINETICS_SOUNDS
    assert {name: len(part) for name, part in lists.named().items()} == {
        "train": 62,
        "val": 31,
        "test": 31,
    }
    assert lists.modalities["audio"].shape == (1, 1024, 128)
    assert lists.modalities["visual"].shape == (2, 3, 32, 32)
    official = dataset(**options).load("official", 0)
    sizes = {name: len(part) for name, part in official.named().items()}
    assert sizes["train"] + sizes["val"] == 62
    assert sizes["test"] == 31  # the validation set of Kinetics-400
    assert {*official.test.ids} == {*lists.val.ids}
    assert "31 classes" in official.notes
    assert not {*groups(official.train)} & {*groups(official.val)}
    lists.check("kinetics_sounds")


def test_sound_and_picture_of_a_clip_stay_with_its_label(corpus: Path, cache: Path) -> None:
    """Both signals are of full strength: equal labels look and sound alike, others do not."""
    splits = dataset(cache=str(cache), frames=1, size=32).load("lists", 0)
    test, val = splits.test, splits.val
    for m in ("audio", "visual"):
        own = test.inputs[m].batch(torch.arange(len(test)), None).flatten(1)
        other = val.inputs[m].batch(torch.arange(len(val)), None).flatten(1)
        if m == "visual":  # of colour, not of blocks
            own, other = (x.view(len(x), 3, -1).mean(2) for x in (own, other))
            own, other = (x - x.mean(1, keepdim=True) for x in (own, other))
        nearest = (own / own.norm(dim=1, keepdim=True)) @ (
            other / other.norm(dim=1, keepdim=True)
        ).T
        right = (val.y[nearest.argmax(1)] == test.y).float().mean()
        assert right > 0.4  # 1/31 by chance


def test_verify_names_a_clip_without_sound_and_a_second_copy(corpus: Path) -> None:
    listing = dataset().listing(corpus)
    mute = corpus / next(clip.video for clip in listing.clips if clip.split == "val")
    kept = mute.read_bytes()
    copy = corpus / "zz" / mute.name
    copy.parent.mkdir()
    copy.write_bytes(kept)
    write_video(mute, np.zeros((5, 32, 32, 3), dtype=np.uint8), 5, None, 16_000)
    try:
        found = dataset(allow_missing=True).verify(corpus, workers=1)
    finally:
        mute.write_bytes(kept)
        copy.unlink()
    by_path = {problem.path: problem.what for problem in found.problems}
    assert by_path[str(mute)] == "has no sound stream"
    assert by_path[str(copy)].startswith("is another copy of")
    assert found.usable
    assert found.counts["clips (of 124)"] == 123


def test_a_clip_that_is_not_there_is_named_by_the_place_it_ought_to_have(tmp_path: Path) -> None:
    train = f"{HEADER}\nbowling,-74csnCOiUs,3,13,train\n"
    write(tmp_path, annotations__train_csv=train, annotations__val_csv=train.replace("7", "8"))
    (problem, _) = dataset().verify(tmp_path, workers=1).problems
    assert problem.path.endswith("train/bowling/-74csnCOiUs_000003_000013.mp4")
    assert problem.what == "does not exist"

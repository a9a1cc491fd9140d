"""AVE: what its lists mean, and the way from generated files to splits."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmbench.data.class_names import AVE
from mmbench.data.dataset import Splits
from mmbench.datasets.ave import OFFICIAL, Ave, read_events
from mmbench.errors import DataError, RequestError
from mmbench.options import validated
from mmbench.testing.clips import Look
from mmbench.testing.corpora import Signal, ave


def dataset(**options: Any) -> Ave:
    return Ave(validated(Ave.Config, options, "ave"))


def quiet(done: int, total: int, what: str) -> None:
    """Progress that nobody looks at."""


def write_list(folder: Path, *lines: str) -> Path:
    path = folder / "trainSet.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def official(shared_data: Path, tmp_path: Path) -> Path:
    """The published lists, without any video."""
    (tmp_path / "AVE").mkdir()
    for split in OFFICIAL:
        content = (shared_data / "splits" / "ave" / f"{split}Set.txt").read_bytes()
        (tmp_path / f"{split}Set.txt").write_bytes(content)
    return tmp_path


# -- lists ----------------------------------------------------------------------------------------


def test_the_published_lists_give_the_counts_of_the_paper(official: Path) -> None:
    listing = dataset().listing(official)
    assert Counter(clip.split for clip in listing.clips) == {"train": 3339, "val": 402, "test": 402}
    assert len({clip.id for clip in listing.clips}) == 4143
    assert len({clip.group for clip in listing.clips}) == 4097
    classes = Counter(clip.label for clip in listing.clips)
    assert len(classes) == 28
    assert (classes["Race car, auto racing"], classes["Cat"]) == (188, 60)
    assert listing.problems == ()


def test_annotations_with_and_without_header_are_read_alike(
    shared_data: Path, tmp_path: Path
) -> None:
    published = shared_data / "splits" / "ave" / "Annotations.txt"
    headed = tmp_path / "Annotations.txt"
    header = b"\xef\xbb\xbfCategory&VideoID&Quality&StartTime&EndTime\r\n"
    headed.write_bytes(header + published.read_bytes().replace(b"\n", b"\r\n"))
    plain = [event for _, event in read_events(published)]
    assert [event for _, event in read_events(headed)] == plain
    assert len(plain) == 4143


def test_official_keeps_what_is_listed_and_clean_drops_19_events(official: Path) -> None:
    clips = dataset().listing(official).clips
    as_listed = dataset().divide("official", clips, {})
    clean = dataset().divide("clean", clips, {})
    assert {name: len(ids) for name, ids in as_listed.parts().items()} == OFFICIAL
    assert (clean.val, clean.test) == (as_listed.val, as_listed.test)
    assert len(as_listed.train - clean.train) == 19
    trained = {clip.group for clip in clips if clip.id in clean.train}
    held_out = {clip.group for clip in clips if clip.split != "train"}
    assert not trained & held_out
    assert as_listed.notes == ("10 of the 401 videos of validation are in train",)
    assert clean.notes == ()


def test_the_event_without_length_stands_for_its_whole_clip(official: Path) -> None:
    clips = {clip.id: clip for clip in dataset().listing(official).clips}
    whole = clips["VWi2ENBuTbw:Church bell"]
    assert (whole.start, whole.end) == (None, None)
    part = clips["fCZi6I6kPpU:Church bell"]
    assert (part.start, part.end) == (6.0, 10.0)


def test_a_category_may_hold_commas_and_brackets_and_an_id_dashes(tmp_path: Path) -> None:
    path = write_list(
        tmp_path,
        "Frying (food)&-_a-b_c-d_e&good&1&3",
        "",
        "Rodents, rats, mice&0-1_2-3_4-5&good&0&10",
    )
    events = [event for _, event in read_events(path)]
    assert [(e.category, e.video, e.start, e.end) for e in events] == [
        ("Frying (food)", "-_a-b_c-d_e", 1, 3),
        ("Rodents, rats, mice", "0-1_2-3_4-5", 0, 10),
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("Barc&abc&good&0&10", "line 2: unknown category 'Barc': did you mean Bark"),
        ("Bark,abc,good,0,10", "line 2: 'Bark,abc,good,0,10' is not Category&VideoID"),
        ("Bark&abc&good&0", "line 2: .* is not Category&VideoID"),
        ("Bark&abc&good&x&10", "line 2: .* is not Category&VideoID"),
        ("Bark&abc&good&7&3", "line 2: the event ends at 3 s before it starts at 7 s"),
    ],
)
def test_a_wrong_line_is_named(line: str, complaint: str, tmp_path: Path) -> None:
    path = write_list(tmp_path, "Cat&xyz&good&0&10", line)
    with pytest.raises(DataError, match=complaint):
        read_events(path)


# -- files ----------------------------------------------------------------------------------------

SMALL = Look(seconds=2.0, height=32, width=40, fps=5, rate=16_000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """84 videos of 28 classes, one each in every list; 2 test videos are in train too."""
    folder = tmp_path_factory.mktemp("ave")
    ave(folder, 84, signal=Signal(1.0, 1.0), look=SMALL, in_two_splits=2)
    return folder


@pytest.fixture(scope="module")
def cache(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    dataset(short_side=32, fps=4).prepare(corpus, folder, quiet, workers=1)
    return folder


def loaded(cache: Path, protocol: str) -> Splits:
    options = {"cache": str(cache), "frames": 2, "size": 32}
    splits = dataset(**options).load(protocol, 0)
    splits.check("ave")
    return splits


def test_generated_files_become_splits_of_all_classes(cache: Path) -> None:
    splits = loaded(cache, "official")
    assert splits.classes == tuple(sorted(AVE))
    assert {name: len(part) for name, part in splits.named().items()} == {
        "train": 30,
        "val": 28,
        "test": 28,
    }
    # PMR's recipe: 160,000 samples in windows of 512 every 159.
    assert splits.modalities["audio"].shape == (1, 257, 1 + (160_000 - 512) // 159)
    assert splits.modalities["visual"].shape == (2, 3, 32, 32)
    assert any("2 of the 28 videos of test" in note for note in splits.notes)
    assert any("30/28/28 events" in note for note in splits.notes)


def test_clean_trains_on_no_video_that_it_tests_on(cache: Path) -> None:
    splits = loaded(cache, "clean")
    assert len(splits.train) == 28
    assert splits.train.groups is not None
    assert splits.test.groups is not None
    assert not {*splits.train.groups} & {*splits.test.groups}
    assert not any("videos of test" in note for note in splits.notes)


def test_carved_validation_comes_from_train_and_leaves_the_list_out(cache: Path) -> None:
    listed = loaded(cache, "clean")
    options = {"cache": str(cache), "frames": 2, "size": 32, "val_fraction": 0.2}
    carved = dataset(validation="carved", **options).load("clean", 0)
    assert {*carved.val.ids} | {*carved.train.ids} == {*listed.train.ids}
    assert 0 < len(carved.val) < len(listed.train) / 2
    assert not {*carved.val.ids} & {*listed.val.ids}
    assert [*carved.test.ids] == [*listed.test.ids]


def test_a_shorter_longest_part_is_kept_and_asked_for(corpus: Path, tmp_path: Path) -> None:
    dataset(short_side=32, seconds=0.5).prepare(corpus, tmp_path, quiet, workers=1)
    short = dataset(seconds=0.5, cache=str(tmp_path), front_end="log_mel", size=32)
    assert short.load("official", 0).modalities["audio"].shape == (1, 64, 1 + 8000 // 160)
    other = dataset(seconds=1.5, cache=str(tmp_path))
    with pytest.raises(DataError, match=r"is prepared with seconds=0\.5 in .*, not 1\.5"):
        other.load("official", 0)


@pytest.mark.parametrize("option", [{"front_end": "log_mel"}, {"frames": 1}, {"cache": "other"}])
def test_options_that_preparing_does_not_read_are_refused(
    option: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    (name,) = option
    for work in (
        lambda: dataset(**option).prepare(corpus, tmp_path, quiet, workers=1),
        lambda: dataset(**option).verify(corpus, workers=1),
    ):
        with pytest.raises(RequestError, match=f"option {name} is not used by `mmbench data`"):
            work()


def test_what_was_prepared_has_one_fingerprint_for_all_seeds(cache: Path) -> None:
    options = {"cache": str(cache), "frames": 2, "size": 32, "validation": "carved"}
    first, second = (
        dataset(val_fraction=0.2, **options).load("official", seed).fingerprints()
        for seed in (0, 1)
    )
    assert first["split"] != second["split"]
    assert first["prepared"] == second["prepared"] != ""


def test_verify_names_a_video_of_two_events_once(corpus: Path) -> None:
    listing = dataset().listing(corpus)
    (name, _), *_ = Counter(clip.video for clip in listing.clips).most_common(1)
    video = listing.source / name
    hidden = video.rename(video.with_suffix(".away"))
    try:
        found = dataset().verify(corpus, workers=1)
    finally:
        hidden.rename(video)
    assert [p.path for p in found.problems].count(str(video)) == 1
    assert found.counts["clips (of 86)"] == 84


def test_verify_counts_classes_and_names_a_missing_video(corpus: Path) -> None:
    listing = dataset().listing(corpus)
    name = next(clip.video for clip in listing.clips if clip.split == "val")
    video = listing.source / name
    hidden = video.rename(video.with_suffix(".away"))
    try:
        found = dataset().verify(corpus, workers=1)
    finally:
        hidden.rename(video)
    assert not found.usable  # 1 of 86 is more than one in a hundred
    assert any(p.path == str(video) and "does not exist" in p.what for p in found.problems)
    assert any("lists 30 events, not 3,339" in p.what for p in found.problems)
    assert found.counts["clips (of 86)"] == 85
    assert found.counts["clean: train (of 28)"] == 28
    assert found.counts["clean: val (of 28)"] == 27


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("AVE_Dataset/AVE", "is a part of AVE; give the folder above it"),
        ("elsewhere", "holds no AVE/"),
        ("nowhere", "is not a folder"),
    ],
)
def test_a_wrong_folder_is_said_to_be_wrong(place: str, complaint: str, corpus: Path) -> None:
    (corpus / "elsewhere").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=complaint):
        dataset().listing(corpus / place)


def test_an_event_listed_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "AVE").mkdir()
    for split in OFFICIAL:
        (tmp_path / f"{split}Set.txt").write_text("Bark&abc&good&0&10\n")
    with pytest.raises(DataError, match=r"valSet\.txt, line 1: .* is listed already, in train"):
        dataset().listing(tmp_path)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "AVE").mkdir()
    write_list(tmp_path, "Bark&abc&good&0&10")
    with pytest.raises(DataError, match=r"no valSet\.txt"):
        dataset().listing(tmp_path)

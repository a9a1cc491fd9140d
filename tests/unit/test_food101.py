"""UPMC Food-101: what its lists mean, and the way from generated files to splits and a run."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mmbench.data.dataset import Splits, Verification
from mmbench.data.media.series import picture
from mmbench.data.text import words
from mmbench.data.titles import Title, read_titles
from mmbench.datasets.food101 import Food101, find_root, read_lists
from mmbench.errors import DataError, RequestError
from mmbench.options import validated
from mmbench.testing.food101 import DISHES, SOME, Signal, food101
from tests.cli.command import Command, assert_one_line, only_run, predictions, records, snapshot
from tests.unit.media_clips import quiet

ROWS = 80


def dataset(**options: Any) -> Food101:
    return Food101(validated(Food101.Config, options, "food101"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("food")
    food101(folder, ROWS, signal=Signal(title=1.0, picture=0.5))
    return folder


@pytest.fixture(scope="module")
def cache(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    dataset().prepare(source, folder, quiet, workers=1)
    return folder


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    """The files again, to be damaged."""
    return Path(shutil.copytree(source, tmp_path / "copy"))


LIST = Path("texts/train_titles.csv")


def read(content: str) -> list[Title]:
    return read_titles(content.encode(), LIST)


def read_file(path: Path) -> list[Title]:
    return read_titles(path.read_bytes(), path)


# -- lists -----------------------------------------------------------------------------------------


def test_a_list_is_read_with_and_without_header_mark_and_any_line_ends() -> None:
    rows = 'sushi_1.jpg,"Sushi, the ""best""",sushi\nhot_dog_20.JPG,Hot dogs,hot_dog\n'
    plain = read(rows)
    assert [(t.name, t.ending, t.label, t.text, t.faults) for t in plain] == [
        ("sushi_1", "jpg", "sushi", 'Sushi, the "best"', ()),
        ("hot_dog_20", "JPG", "hot_dog", "Hot dogs", ()),
    ]
    assert [t.line for t in plain] == [1, 2]
    headed = "\ufeffImage_path,text,label\n" + rows
    again = read(headed.replace("\n", "\r\n"))
    assert [(t.name, t.text) for t in again] == [(t.name, t.text) for t in plain]
    assert [t.line for t in again] == [2, 3]


def test_pandas_reads_sound_rows_alike(source: Path) -> None:
    for split in ("train", "test"):
        path = source / "texts" / f"{split}_titles.csv"
        table = pd.read_csv(path, header=None, names=["picture", "text", "label"])
        found = read_file(path)
        assert [f"{t.name}.jpg" for t in found] == table["picture"].tolist()
        assert [t.text for t in found] == table["text"].tolist()
        assert [t.label for t in found] == table["label"].tolist()


def test_a_title_over_several_lines_stays_one_title() -> None:
    found = read('sushi_1.jpg,"Sushi,\n\n  rolled",sushi\nsushi_2.jpg,,sushi\n')
    assert [(t.text, t.faults) for t in found] == [("Sushi, rolled", ()), ("", ())]


def test_an_unclosed_quote_costs_no_row(tmp_path: Path) -> None:
    """The fault of the archive, as pandas meets it and as it is read here."""
    dishes = food101(tmp_path, ROWS, broken_quote=3)
    path = tmp_path / "texts" / "train_titles.csv"
    trained = [dish for dish in dishes if dish.split == "train"]
    assert len(pd.read_csv(path, header=None)) == len(trained) - 3
    found = read_file(path)
    assert [t.name for t in found] == [dish.name for dish in trained]
    assert {t.ending for t in found} == {"jpg"}
    odd = [t for t in found if t.faults]
    assert [t.name for t in odd] == [f"breakfast_burrito_{730 + i}" for i in range(4)]
    assert "quote without its other half" in odd[0].faults[0]
    for t in odd[1:]:
        assert f"names {t.name}.txt, taken for {t.name}.jpg" in t.faults
    for t, dish in zip(found, trained, strict=True):
        assert words(t.text) == words(dish.title)  # and no class name behind it
        assert (tmp_path / "images" / "train" / t.label / f"{t.name}.jpg").is_file()


@pytest.mark.parametrize(
    ("row", "text", "fault"),
    [
        ("sushi_1.jpg,Sushi, the best,sushi", "Sushi, the best", "is no CSV"),
        ('sushi_1.jpg,"Sushi" rolls,sushi', 'Sushi" rolls', "is no CSV"),
        ('sushi_1.jpg,"Sushi rolls', "Sushi rolls", "quote without its other half"),
        ('sushi_1.jpg,Sushi,sushi",sushi', "Sushi", "quote without its other half"),
        ("sushi_1.jpg,Sushi,ramen", "Sushi", "calls sushi_1 'ramen', where the name counts"),
        ("sushi_1.jpg,Sushi rolls", "Sushi rolls", "is no CSV"),
    ],
)
def test_a_row_that_is_no_csv_is_read_all_the_same(row: str, text: str, fault: str) -> None:
    lines = f"ramen_7.jpg,Ramen,ramen\n{row}\nramen_8.jpg,Ramen,ramen\n"
    before, found, behind = read(lines)
    assert (found.line, found.name, found.label, found.text) == (2, "sushi_1", "sushi", text)
    assert fault in found.faults[0]
    assert (before.faults, behind.faults) == ((), ())


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"0,sushi_1.jpg,Sushi,sushi\n", r"line 1: '0,sushi_1.jpg,Sushi,sushi' does not begin"),
        (b"sushi_1.jpg,A,sushi\nsushi.jpg,B,sushi\n", r"line 2: 'sushi.jpg' is not named by class"),
        ("sushi_1.jpg,Crème,sushi\n".encode("latin-1"), "is not UTF-8 text"),
        (b"", "is empty"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
    ],
)
def test_what_is_no_list_is_refused_by_line(content: bytes, complaint: str, copy: Path) -> None:
    (copy / LIST).write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        dataset().listing(copy)
    assert "train_titles.csv" in str(caught.value)


def test_a_picture_that_is_listed_twice_counts_once(copy: Path) -> None:
    path = copy / "texts" / "train_titles.csv"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(f"{first}\n{first.replace('apple pie', 'tart')}\n{rest}")
    listing = dataset().listing(copy)
    assert len(listing.clips) == ROWS
    (problem,) = (found for found in listing.problems if "line" in found.path)
    assert problem.path.endswith("line 2")
    assert "as line 1 is, which counts" in problem.what


# -- the generator ---------------------------------------------------------------------------------


def test_generated_files_depend_on_the_seed_and_show_what_they_say(tmp_path: Path) -> None:
    dishes = food101(tmp_path / "one", ROWS, seed=3, signal=Signal(title=1.0, picture=0.0))
    food101(tmp_path / "same", ROWS, seed=3, signal=Signal(title=1.0, picture=0.0))
    food101(tmp_path / "other", ROWS, seed=4)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "same")
    assert snapshot(tmp_path / "one").values() != snapshot(tmp_path / "other").values()
    for dish in dishes:
        assert SOME[dish.told] == dish.label
        assert dish.label.replace("_", " ") in dish.title.lower()
        with Image.open(dish.path) as image:
            assert (image.format, min(image.size)) == ("JPEG", 48)
    right = sum(SOME[dish.shown] == dish.label for dish in dishes)
    assert right < ROWS / 2  # a quarter, by chance


# -- files -----------------------------------------------------------------------------------------


def test_the_folder_may_be_the_one_above_and_others_are_refused(
    source: Path, tmp_path: Path
) -> None:
    assert find_root(source) == find_root(source.parent / source.name / ".") == source
    (tmp_path / "above").mkdir()
    (tmp_path / "above" / "UPMC_Food101").symlink_to(source)
    assert find_root(tmp_path / "above") == tmp_path / "above" / "UPMC_Food101"
    with pytest.raises(DataError, match="is a part of it; give the folder above it"):
        find_root(source / "images")
    with pytest.raises(DataError, match="holds no images"):
        find_root(source / "images" / "train" / "sushi")
    with pytest.raises(DataError, match="is not a folder"):
        find_root(source / "texts" / "train_titles.csv")


def test_a_list_that_is_not_there_is_named(copy: Path) -> None:
    (copy / "texts" / "test_titles.csv").unlink()
    with pytest.raises(DataError, match=r"test_titles.csv: does not exist"):
        dataset().verify(copy, workers=1)


def problems(found: Verification, root: Path) -> dict[str, str]:
    """What is wrong by place; a place that is named twice fails."""
    places = [problem.path.removeprefix(f"{root}/") for problem in found.problems]
    assert len(set(places)) == len(places)
    return {p: problem.what for p, problem in zip(places, found.problems, strict=True)}


def test_verify_counts_by_class_and_list(source: Path) -> None:
    found = dataset().verify(source, workers=1)
    assert found.usable
    per_class = ROWS // len(SOME)
    assert found.counts == {
        f"pictures (of {ROWS})": ROWS,
        **{f"{label} (of {per_class})": per_class for label in SOME},
        "official: train and val (of 60)": 60,
        "official: test (of 20)": 20,
    }
    assert problems(found, source) == {
        "texts/train_titles.csv": "lists 60 pictures, not 67,972",
        "texts/test_titles.csv": "lists 20 pictures, not 22,716",
        "texts": "lists 4 classes, not 101",
    }


def test_all_101_classes_are_known_to_be_all(tmp_path: Path) -> None:
    assert len(set(DISHES)) == 101
    food101(tmp_path, 202, classes=DISHES, side=8)
    found = dataset().verify(tmp_path, workers=1)
    assert found.usable
    assert "texts" not in problems(found, tmp_path)


def test_verify_names_each_fault_once(copy: Path) -> None:
    def nth(place: int) -> Path:
        return sorted(copy.glob("images/*/*/*.jpg"))[place]

    cut, page, empty, pointer, absent, grey, cmyk = (nth(place) for place in range(7))
    cut.write_bytes(cut.read_bytes()[:-100])
    page.write_bytes(b"<html><body>gone</body></html>")
    empty.write_bytes(b"")
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    absent.unlink()
    for path, mode in ((grey, "L"), (cmyk, "CMYK")):
        Image.open(path).convert(mode).save(path)
    (copy / "images" / "train" / "sushi" / "sushi_999.jpg").write_bytes(grey.read_bytes())
    found = dataset().verify(copy, workers=1)
    named = problems(found, copy)
    places = {path: named[str(path.relative_to(copy))] for path in (cut, page, empty, pointer)}
    assert places[cut].startswith("is cut, damaged or no picture: ")
    assert "truncated" in places[cut] or "broken data stream" in places[cut]
    assert not {grey, cmyk} & {copy / path for path in named}
    assert places[page] == "is a web page, not the data"
    assert places[empty] == "is empty"
    assert places[pointer] == "is a git-LFS pointer, not the data"
    assert named[str(absent.relative_to(copy))] == "does not exist"
    assert named["images/train/sushi/sushi_999.jpg"] == "is in no list"
    assert found.counts[f"pictures (of {ROWS})"] == ROWS - 5
    assert not found.usable  # 5 of 80
    assert dataset(allow_missing=True).verify(copy, workers=1).usable


def test_verify_names_odd_rows_and_empty_titles_and_goes_on(tmp_path: Path) -> None:
    food101(tmp_path, ROWS, broken_quote=3, header=True)
    path = tmp_path / "texts" / "test_titles.csv"
    header, first, rest = path.read_text().split("\n", 2)
    name, label = first.split(",", 1)[0], first.rpartition(",")[2]
    path.write_text(f"{header}\n{name},,{label}\n{rest}")
    found = dataset().verify(tmp_path, workers=1)
    assert found.usable
    named = [problem.what for problem in found.problems]
    assert sum("names breakfast_burrito_73" in what for what in named) == 3
    assert sum(what == f"has no title of images/test/{label}/{name}" for what in named) == 1
    dataset().prepare(tmp_path, tmp_path / "cache", quiet, workers=1)
    assert loaded(tmp_path / "cache").notes == (
        "lists of 60/20 rows, not the official ones",
        "4 rows of the lists are odd (`mmbench data verify`)",
        "1 pictures have an empty title",
    )


def test_a_second_prepare_leaves_the_same_bytes(source: Path, cache: Path, tmp_path: Path) -> None:
    before = snapshot(cache)
    dataset().prepare(source, cache, quiet, workers=1)
    assert snapshot(cache) == before
    dataset().prepare(source, tmp_path, quiet, workers=1)
    assert snapshot(tmp_path) == before


# -- splits ----------------------------------------------------------------------------------------


def loaded(cache: Path, seed: int = 0, **options: Any) -> Splits:
    splits = dataset(cache=str(cache), size=32, **options).load("official", seed)
    splits.check("food101")
    return splits


def test_validation_is_carved_from_train_by_class(cache: Path) -> None:
    splits = loaded(cache, val_fraction=0.2)
    lengths = {name: len(part) for name, part in splits.named().items()}
    assert lengths == {"train": 48, "val": 12, "test": 20}
    assert splits.classes == SOME
    assert Counter(splits.val.y.tolist()) == dict.fromkeys(range(4), 3)
    assert {str(i).partition("/")[0] for i in splits.val.ids} == {"train"}
    assert {str(i).partition("/")[0] for i in splits.test.ids} == {"test"}
    for part in splits.named().values():
        named = [str(i).partition("/")[2].rpartition("_")[0] for i in part.ids]
        assert [splits.classes[c] for c in part.y.tolist()] == named
        assert part.groups is None
    assert splits.notes == ("lists of 60/20 rows, not the official ones",)
    assert loaded(cache, 1).val.ids.tolist() != loaded(cache, 0).val.ids.tolist()
    assert loaded(cache, 1).test.ids.tolist() == loaded(cache, 0).test.ids.tolist()


def test_words_are_those_of_the_training_rows_alone(source: Path, cache: Path) -> None:
    splits = loaded(cache, least_count=1, length=12)
    titles = read_lists(dataset().listing(source).lists).titles
    counts = Counter(word for i in splits.train.ids for word in words(titles[str(i)]))
    ids = {w: n for n, w in enumerate(sorted(counts, key=lambda w: (-counts[w], w)), start=2)}
    spec = splits.modalities["text"]
    assert (spec.kind, spec.shape, spec.vocabulary) == ("tokens", (12,), len(ids) + 2)
    for part in splits.named().values():
        tokens = part.inputs["text"].batch(torch.arange(len(part)), None)
        for row, i in zip(tokens.tolist(), part.ids, strict=True):
            expected = [ids.get(word, 1) for word in words(titles[str(i)])][:12]
            assert row == expected + [0] * (12 - len(expected))


def test_a_word_of_test_alone_is_unknown(copy: Path, tmp_path: Path) -> None:
    path = copy / "texts" / "test_titles.csv"
    path.write_text(path.read_text().replace(',"', ',"Unheard '))
    dataset().prepare(copy, tmp_path / "cache", quiet, workers=1)
    splits = loaded(tmp_path / "cache", least_count=1)
    first = {
        name: part.inputs["text"].batch(torch.arange(len(part)), None)[:, 0]
        for name, part in splits.named().items()
    }
    assert first["test"].tolist() == [1] * 20
    assert int(first["train"].min()) > 1


def test_pictures_come_as_stored_and_viewed(source: Path, cache: Path) -> None:
    splits = loaded(cache)
    part = splits.test
    shape = splits.modalities["image"].shape
    batch = part.inputs["image"].batch(torch.arange(len(part)), None)
    assert batch.shape == (20, *shape) == (20, 3, 32, 32)
    name = str(part.ids[5]).partition("/")[2]
    pixels = picture(source / f"images/test/{name.rpartition('_')[0]}/{name}.jpg", "RGB", 256)
    small = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (small / 255 - mean) / deviation
    difference = batch[5].permute(1, 2, 0).numpy() - expected
    assert np.abs(difference).max() < 1.01 / 255 / deviation.min()


def test_fingerprints_name_words_pictures_and_lengths(cache: Path) -> None:
    prints = [
        loaded(cache, **options).fingerprints()
        for options in ({}, {"length": 20}, {"vocabulary": 5}, {"val_fraction": 0.2})
    ]
    assert prints[0] == loaded(cache).fingerprints()
    assert len({found["data"] for found in prints}) == 4
    assert len({found["split"] for found in prints}) == 2


def test_missing_pictures_are_counted_in_every_split(copy: Path, tmp_path: Path) -> None:
    for path in sorted(copy.glob("images/test/*/*.jpg"))[:2]:
        path.unlink()
    with pytest.raises(DataError, match="2 of 80 pictures cannot be used, more than 1%"):
        dataset().prepare(copy, tmp_path / "cache", quiet, workers=1)
    said = dataset(allow_missing=True).prepare(copy, tmp_path / "cache", quiet, workers=1)
    assert said.startswith("78 pictures, ")
    assert "2 left out, the first: images/test/" in said
    with pytest.raises(DataError, match="2 of 20 pictures of test are missing or damaged"):
        loaded(tmp_path / "cache")
    notes = loaded(tmp_path / "cache", allow_missing=True).notes
    assert "2 of 20 pictures of test missing or damaged, left out" in notes


def test_what_is_not_prepared_so_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepared with short_side=256 in .*, not 128"):
        loaded(cache, short_side=128)
    with pytest.raises(DataError, match="run `mmbench data prepare food101 --source DIR`"):
        loaded(tmp_path)
    with pytest.raises(RequestError, match="vocabulary is not used beside text_encoder"):
        dataset(text_encoder="bert", vocabulary=100)
    with pytest.raises(RequestError, match="protocol of food101"):
        dataset(cache=str(cache)).load("speaker", 0)


# -- from files to a run ---------------------------------------------------------------------------

SMALL = "--dataset food101 --method joint --fusion late -d size=32 -d length=12 -t epochs=4"
QUICK = "-t batch_size=8 -t optimizer=adam -t lr=0.003 -t schedule=constant"


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(capfd)


def test_files_as_downloaded_become_a_result(
    command: Command, source: Path, tmp_path: Path
) -> None:
    files = ("--source", source, "--workers", 1)
    verified = command("data", "verify", "food101", *files)
    assert verified.code == 0, verified
    assert "can be used" in verified.out
    prepared = command("data", "prepare", "food101", *files, "--cache", tmp_path / "cache")
    assert prepared.code == 0, prepared
    assert "80 pictures, " in prepared.out
    assert "frames" not in prepared.out + prepared.err
    place = ("-d", f"cache={tmp_path / 'cache'}", "--encoder", "image=small_cnn")
    run = command.run(f"{SMALL} {QUICK}", *place)
    assert run.code == 0, run
    (record,) = records()
    assert record["modalities"] == ["image", "text"]
    assert record["per_modality"]["text"]["split"]["test"] >= 0.6  # chance is 0.25
    assert record["notes"][0] == "lists of 60/20 rows, not the official ones"
    stored = predictions(only_run())
    assert len(stored["test_ids"]) == 20


def test_verify_of_damaged_files_ends_with_1(command: Command, copy: Path) -> None:
    for path in sorted(copy.glob("images/train/*/*.jpg"))[:3]:
        path.unlink()
    said = command("data", "verify", "food101", "--source", copy, "--workers", 1)
    assert said.code == 1
    assert said.out.count("does not exist") == 3
    assert "cannot be used" in said.out


def test_a_run_without_cache_says_what_to_do(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "nothing"))
    said = command.run("--dataset food101 --method joint")
    assert_one_line(said, 2, "mmbench data prepare food101 --source DIR")

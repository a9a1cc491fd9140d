"""CMU-MOSI and CMU-MOSEI: from pickles as they are handed around to splits."""

import errno
import fcntl
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mmbench.cli.app import main
from mmbench.data.dataset import Layered
from mmbench.data.sentiment.archives import read_archive, video_of
from mmbench.data.sentiment.scores import CLASSES, LEFT_OUT, class_numbers
from mmbench.data.sentiment.sequences import MappedSequences, StandardiseSteps
from mmbench.datasets.cmu_mosei import CmuMosei
from mmbench.datasets.cmu_mosi import CmuMosi
from mmbench.errors import DataError, RequestError
from mmbench.options import validated
from mmbench.testing.sentiment import Made, mmsa_pickle, mult_pickle

ALIGNED = {"text": (6, 10), "audio": (6, 5), "vision": (6, 4)}
UNALIGNED = {"text": (6, 10), "audio": (20, 5), "vision": (12, 4)}
MULT = "mosei_senti_data_noalign.pkl"


def mosei(**options: Any) -> CmuMosei:
    return CmuMosei(validated(CmuMosei.Config, options, "cmu_mosei"))


def mosi(**options: Any) -> CmuMosi:
    return CmuMosi(validated(CmuMosi.Config, options, "cmu_mosi"))


def quiet(done: int, total: int, what: str) -> None:
    """Progress that nobody looks at."""


def held(path: Path) -> dict[str, dict[str, Any]]:
    """What a generated pickle holds, by Python's own unpickler."""
    loaded: dict[str, dict[str, Any]] = pickle.loads(path.read_bytes())
    return loaded


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with MulT's unaligned file."""
    folder = tmp_path / "downloads"
    mult_pickle(folder / MULT, Made(shapes=UNALIGNED, infinite=3, shared_videos=1))
    return folder


@pytest.fixture
def cache(source: Path, tmp_path: Path) -> Path:
    mosei().prepare(source, tmp_path / "cache", quiet)
    return tmp_path / "cache"


# -- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("binary", "negative negative negative non-negative non-negative non-negative"),
        ("nonzero", "negative negative negative - positive positive"),
        ("three", "negative negative negative neutral positive positive"),
        ("seven", "-3 -2 0 0 2 3"),
    ],
)
def test_a_protocol_says_how_a_score_becomes_a_class(protocol: str, expected: str) -> None:
    # MulT rounds by np.round, which takes 2.5 to 2 and 0.5 to 0, after cutting to [-3, 3].
    scores = np.array([-3.4, -2.5, -0.5, 0.0, 2.5, 2.6], dtype=np.float32)
    names = (*CLASSES[protocol], "-")
    assert [names[n] for n in class_numbers(scores, protocol)] == expected.split()
    assert names[LEFT_OUT] == "-"


# -- what pickles hold ----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_all_protocols_are_read(protocol: int, tmp_path: Path) -> None:
    made = Made(rows=(9, 6, 6), shapes=ALIGNED)
    mult_pickle(tmp_path / "mult.pkl", made, protocol=protocol)
    mmsa_pickle(tmp_path / "mmsa.pkl", made, protocol=protocol)
    mult, mmsa = (read_archive(tmp_path / name) for name in ("mult.pkl", "mmsa.pkl"))
    assert (mult.form, mmsa.form) == ("MulT", "MMSA")
    assert mult.shapes == mmsa.shapes == ALIGNED
    assert mult.counts == mmsa.counts == (9, 6, 6)
    raw = held(tmp_path / "mult.pkl")
    for name, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        part = mult.parts[split]
        assert part.scores.tolist() == raw[name]["labels"].astype("f4").ravel().tolist()
        assert np.array_equal(part.features["audio"], raw[name]["audio"])
        assert part.videos == mmsa.parts[split].videos == tuple(raw[name]["id"][:, 0])
    assert mmsa.parts["train"].ids[0] == "train_vid00$_$0"
    assert mult.parts["train"].ids[0] == "train_vid00:0.0:6.25"


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("03bSnISJMiM$_$11", "03bSnISJMiM"),
        ("zk2jTlAtvSU[3]", "zk2jTlAtvSU"),
        ("03bSnISJMiM_11", "03bSnISJMiM"),
        ("c5xsKMxp_12", "c5xsKMxp_12"),  # eleven letters: a YouTube id as a whole
        ("81406", "81406"),
        ("81406_2", "81406"),
    ],
)
def test_the_video_of_a_sentence_is_in_its_name(name: str, video: str) -> None:
    assert video_of(name) == video


def test_ids_may_be_bytes_words_or_absent(tmp_path: Path) -> None:
    made = Made(rows=(8, 6, 6), shapes=ALIGNED)
    by_words, by_bytes, without = (tmp_path / f"{name}.pkl" for name in ("words", "bytes", "none"))
    for path in (by_words, by_bytes, without):
        mult_pickle(path, made, ids=path.stem)
    part = read_archive(by_words).parts["val"]
    assert read_archive(by_bytes).parts["val"].ids == part.ids
    nameless = read_archive(without).parts["val"]
    assert nameless.ids[:2] == ("valid-00000", "valid-00001")
    assert nameless.videos is None


def test_a_sentence_that_stands_twice_is_told_apart_and_counted(source: Path) -> None:
    change(source / MULT, lambda sets: sets["train"]["id"].__setitem__(1, sets["train"]["id"][0]))
    change(source / MULT, lambda sets: sets["test"]["id"].__setitem__(5, sets["train"]["id"][0]))
    archive = read_archive(source / MULT)
    assert archive.parts["train"].ids[:2] == ("train_vid00:0.0:6.25", "train_vid00:0.0:6.25#2")
    assert archive.parts["test"].ids[5] == "train_vid00:0.0:6.25#3"
    assert archive.repeated_ids == 2
    found = mosei().verify(source)
    assert found.usable
    assert any("2 sentences have the id of one before them" in p.what for p in found.problems)


# -- from pickles to splits -----------------------------------------------------------------------


def test_splits_hold_the_values_of_the_pickle(source: Path, cache: Path) -> None:
    raw = held(source / MULT)
    splits = mosei(cache=str(cache)).load("binary", 0)
    splits.check("cmu_mosei")
    assert {m: modality.kind for m, modality in splits.modalities.items()} == dict.fromkeys(
        ("text", "audio", "vision"), "sequence"
    )
    for name, part in zip(("train", "valid", "test"), splits.named().values(), strict=True):
        expected = {m: raw[name][m].astype(np.float32) for m in UNALIGNED}
        expected["audio"][expected["audio"] == -np.inf] = 0  # as MulT's loader does
        order = torch.randperm(len(part))
        batch = part.batch(order, list(UNALIGNED))
        for m in UNALIGNED:
            assert np.array_equal(batch.inputs[m].numpy(), expected[m][order])
        assert batch.y.tolist() == (raw[name]["labels"].ravel()[order] >= 0).astype(int).tolist()
        assert part.groups is not None
        assert part.groups.tolist() == raw[name]["id"][:, 0].tolist()


def test_nonzero_leaves_neutral_sentences_out_of_all_sets(source: Path, cache: Path) -> None:
    raw = held(source / MULT)
    splits = mosei(cache=str(cache)).load("nonzero", 0)
    for name, part in zip(("train", "valid", "test"), splits.named().values(), strict=True):
        scores = raw[name]["labels"].ravel()
        kept = np.flatnonzero(scores)
        assert part.y.tolist() == (scores[kept] > 0).astype(int).tolist()
        first = part.batch(torch.tensor([0]), ["text"]).inputs["text"][0].numpy()
        assert np.array_equal(first, raw[name]["text"][kept[0]].astype(np.float32))
    dropped = "/".join(str(int((raw[s]["labels"] == 0).sum())) for s in ("train", "valid", "test"))
    assert f"neutral sentences left out: {dropped} of train/val/test" in splits.notes


@pytest.mark.parametrize(("protocol", "count"), [("three", 3), ("seven", 7)])
def test_finer_classes(protocol: str, count: int, cache: Path) -> None:
    splits = mosei(cache=str(cache)).load(protocol, 0)
    splits.check("cmu_mosei")
    assert len(splits.classes) == count
    assert {*splits.train.y.tolist()} == {*range(count)}


def test_tables_name_the_file_and_what_is_strange_about_it(cache: Path) -> None:
    notes = mosei(cache=str(cache)).load("binary", 0).notes
    assert f"{MULT} (MulT, not aligned): text 6 x 10, audio 20 x 5, vision 12 x 4" in notes
    assert "48/16/16 sentences, not the 16,326/1,871/4,659 published" in notes
    assert "3 values of audio infinite or NaN, read as 0" in notes
    assert "1 of the 4 videos of test are in train" in notes
    assert "a score of 0, neutral, counts as non-negative" in notes


def test_standardised_by_the_steps_of_training_that_are_not_padding(
    source: Path, cache: Path
) -> None:
    raw = held(source / MULT)["train"]["vision"].astype(np.float32)
    is_step = (raw != 0).any(axis=-1)
    steps = raw[is_step].astype(np.float64)
    expected = np.zeros(raw.shape)
    expected[is_step] = (steps - steps.mean(axis=0)) / steps.std(axis=0)
    plain, scaled = (
        mosei(cache=str(cache), standardise=on).load("binary", 0) for on in (False, True)
    )
    rows = torch.arange(len(scaled.train))
    given = scaled.train.batch(rows, ["vision"]).inputs["vision"]
    assert np.allclose(given.numpy(), expected, atol=1e-5)
    assert not given[~torch.from_numpy(is_step)].any()
    assert plain.fingerprints()["data"] != scaled.fingerprints()["data"]
    assert plain.fingerprints()["split"] == scaled.fingerprints()["split"]


def test_a_feature_that_never_varied_becomes_zero() -> None:
    transform = StandardiseSteps([1.0, 5.0], [2.0, 0.0])
    x = torch.tensor([[[3.0, 5.0], [0.0, 0.0], [1.0, 9.0]]])
    given = transform(x, torch.arange(1), None)
    assert given.tolist() == [[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]


def test_a_corruption_can_come_before_the_transforms(cache: Path) -> None:
    source = mosei(cache=str(cache), standardise=True).load("binary", 0).train.inputs["text"]
    assert isinstance(source, Layered)
    rows = torch.tensor([4, 1])
    emptied = source.with_first(lambda x, rows, augment: torch.zeros_like(x))
    assert not emptied.batch(rows, None).any()  # padding stays zero
    assert not torch.equal(source.stored().batch(rows, None), source.batch(rows, None))
    assert isinstance(source, MappedSequences)
    assert isinstance(source.values, np.memmap)


def test_aligned_files_are_said_to_be_aligned(tmp_path: Path) -> None:
    for name, write in (("mosei_senti_data.pkl", mult_pickle), ("aligned_50.pkl", mmsa_pickle)):
        write(tmp_path / name, Made(shapes=ALIGNED))
        mosei(file=name).prepare(tmp_path, tmp_path / "cache", quiet)
        splits = mosei(file=name, cache=str(tmp_path / "cache")).load("binary", 0)
        assert splits.notes[0].startswith(f"{name} (")
        assert ", aligned): " in splits.notes[0]


def test_mosi_has_its_own_names_and_ids_of_bytes(tmp_path: Path) -> None:
    mult_pickle(tmp_path / "mosi_data.pkl", Made(shapes=ALIGNED), ids="bytes")
    assert mosi().verify(tmp_path).usable
    mosi().prepare(tmp_path, tmp_path / "cache", quiet)
    splits = mosi(cache=str(tmp_path / "cache")).load("binary", 0)
    splits.check("cmu_mosi")
    assert splits.train.ids[0] == "train_vid00:0.0:6.25"
    assert "48/16/16 sentences, not the 1,284/229/686 published" in splits.notes


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("mosei_senti_data.pkl", (16265, 1869, 4643)),
        ("mosei_senti_data_noalign.pkl", (16326, 1871, 4659)),
    ],
)
def test_published_counts_raise_no_doubt(
    file: str, counts: tuple[int, int, int], tmp_path: Path
) -> None:
    shapes = dict.fromkeys(ALIGNED, (1, 1))
    mult_pickle(tmp_path / file, Made(rows=counts, shapes=shapes))
    found = mosei().verify(tmp_path)
    assert (found.problems, found.usable) == ((), True)
    assert found.counts[f"train (of {counts[0]})"] == counts[0]
    assert sum(n for what, n in found.counts.items() if what.startswith("test:")) == counts[2]
    assert sum(n for what, n in found.counts.items() if "rounded" in what) == sum(counts)


# -- files ----------------------------------------------------------------------------------------


def test_preparing_again_writes_the_same_bytes(source: Path, cache: Path, tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    first = content(cache)
    assert len(first) == 3 * 3 + 2
    mosei().prepare(source, cache, quiet)
    mosei().prepare(source, tmp_path / "other", quiet)
    assert content(cache) == first == content(tmp_path / "other")


def test_a_kill_in_the_middle_leaves_nothing_that_passes_for_whole(
    source: Path, cache: Path
) -> None:
    def killed(done: int, total: int, what: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mosei().prepare(source, cache, killed)
    with pytest.raises(DataError, match="is only in part prepared"):
        mosei(cache=str(cache)).load("binary", 0)
    mosei().prepare(source, cache, quiet)
    mosei(cache=str(cache)).load("binary", 0).check("cmu_mosei")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def other_rows(path: Path) -> None:
    path.write_text(path.read_text().replace("train_vid00", "train_vid99"))


def other_schema(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 0}))


@pytest.mark.parametrize(
    ("file", "harm", "complaint"),
    [
        ("train-audio.npy", cut, "are damaged"),
        ("val-text.npy", Path.unlink, "are damaged .val-text.npy is missing or cut"),
        ("val-text.npy", empty, "are damaged .val-text.npy is missing or cut"),
        ("rows.csv", other_rows, "rows.csv has changed"),
        ("manifest.json", cut, "are damaged"),
        ("manifest.json", other_schema, "is of another version of mmbench"),
    ],
)
def test_damaged_prepared_data_are_refused(
    file: str, harm: Callable[[Path], None], complaint: str, cache: Path
) -> None:
    harm(cache / Path(MULT).stem / file)
    with pytest.raises(DataError, match=f"{complaint}.*mmbench data prepare cmu_mosei"):
        mosei(cache=str(cache)).load("binary", 0)


def test_where_nothing_is_prepared_the_command_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"is not prepared in .*; run `mmbench data prepare cmu_mos"
    ):
        mosei(cache=str(tmp_path)).load("binary", 0)


def test_of_several_files_one_has_to_be_chosen(source: Path, tmp_path: Path) -> None:
    mmsa_pickle(source / "unaligned_50.pkl", Made(shapes=UNALIGNED))
    found = mosei().verify(source)  # reads both
    assert found.counts[f"{MULT}: train (of 16326)"] == 48
    assert found.counts["unaligned_50.pkl: val (of 1871)"] == 16
    with pytest.raises(DataError, match=f"holds {MULT} and unaligned_50.pkl; choose one with -d"):
        mosei().prepare(source, tmp_path / "cache", quiet)
    for file in (MULT, "unaligned_50.pkl"):
        mosei(file=file).prepare(source, tmp_path / "cache", quiet)
    with pytest.raises(DataError, match=r"are prepared in .*; choose one with -d file=NAME"):
        mosei(cache=str(tmp_path / "cache")).load("binary", 0)
    chosen = mosei(cache=str(tmp_path / "cache"), file="unaligned_50.pkl").load("binary", 0)
    assert chosen.notes[0].startswith("unaligned_50.pkl (MMSA, not aligned)")
    with pytest.raises(RequestError, match="option 'file' of cmu_mosei: should be"):
        mosei(file="mosi_data.pkl")


@pytest.mark.parametrize("place", [".", "Processed", "MOSEI", "MOSEI/Processed"])
def test_files_are_found_where_the_archives_have_them(place: str, tmp_path: Path) -> None:
    mmsa_pickle(tmp_path / place / "aligned_50.pkl", Made(shapes=ALIGNED))
    assert mosei().verify(tmp_path).usable
    assert mosei().verify(tmp_path / place / "aligned_50.pkl").usable


def test_a_wrong_place_is_said_to_be_wrong(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no mosei_senti_data\.pkl, .*; download one of"):
        mosei().verify(tmp_path)
    with pytest.raises(DataError, match=r"holds no aligned_50\.pkl; download"):
        mosei(file="aligned_50.pkl").verify(source)
    renamed = (source / MULT).rename(source / "mine.pkl")
    with pytest.raises(DataError, match=r"mine\.pkl is none of mosei_senti_data\.pkl, "):
        mosei().verify(renamed)


def test_a_file_of_the_other_corpus_is_refused(tmp_path: Path) -> None:
    made = Made(rows=(1284, 229, 686), shapes=dict.fromkeys(ALIGNED, (1, 1)))
    mmsa_pickle(tmp_path / "aligned_50.pkl", made)
    found = mosei().verify(tmp_path)
    assert not found.usable
    assert "holds the rows of cmu_mosi, not of cmu_mosei" in found.problems[0].what
    assert mosi().verify(tmp_path).usable


def change(path: Path, how: Callable[[dict[str, dict[str, Any]]], object]) -> None:
    """Rewrite a pickle."""
    sets = held(path)
    how(sets)
    path.write_bytes(pickle.dumps(sets))


def put(name: str, key: str, to: Callable[[Any], Any]) -> Callable[[Any], None]:
    def how(sets: dict[str, dict[str, Any]]) -> None:
        sets[name][key] = to(sets[name][key])

    return how


def with_nan(labels: np.ndarray) -> np.ndarray:
    labels[3] = np.nan
    return labels


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        (lambda sets: sets.pop("valid"), "does not hold the sets train, valid, test; it holds"),
        (lambda sets: sets["test"].pop("vision"), "has no test/vision"),
        (lambda sets: sets["test"].pop("labels"), "set 'test' has neither labels nor regression"),
        (put("train", "text", lambda x: x[:-1]), "train/text has 47 rows beside 48 scores"),
        (put("train", "id", lambda x: x[:-1]), "train/id has 47 rows beside 48 scores"),
        (put("train", "labels", with_nan), "train/labels, row 3 (from 0) is NaN"),
        (put("valid", "labels", lambda x: np.tile(x, 7)), "valid/labels has 7 numbers a row"),
        (put("valid", "labels", lambda x: [None] * 16), "valid/labels, row 0 (from 0) is NaN"),
        (put("valid", "labels", lambda x: ["a"] * 16), "valid/labels is not an array of numbers"),
        (put("test", "audio", lambda x: x[:, :, :-1]), "audio has other lengths or widths"),
        (put("test", "audio", lambda x: x[:, 0]), "test/audio is float64 (16, 5), not numbers"),
        (put("test", "audio", lambda x: [x[0, :3], *x[1:]]), "test/audio is not padded"),
        (put("test", "audio", lambda x: x.astype(object)), "test/audio is object"),
        (put("test", "audio", lambda x: x[:, :0]), "test/audio is empty"),
        (put("test", "labels", lambda x: x[:0]), "test/labels is empty"),
        (
            lambda sets: sets["test"].update(regression_labels=sets["test"].pop("labels")),
            "mixes sets of MulT's and of MMSA's form",
        ),
        (
            lambda sets: [x.update(regression_labels=x.pop("labels")) for x in sets.values()],
            "is of MMSA's form, not of MulT's as its name says",
        ),
    ],
)
def test_what_is_wrong_in_a_pickle_is_named_once(
    how: Callable[[Any], object], complaint: str, source: Path, tmp_path: Path
) -> None:
    change(source / MULT, how)
    found = mosei().verify(source)
    assert not found.usable
    (problem,) = found.problems
    assert problem.path == str(source / MULT)
    assert complaint in problem.what
    assert problem.mend
    with pytest.raises(DataError) as refused:
        mosei().prepare(source, tmp_path / "new", quiet)
    assert complaint in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_what_is_strange_is_said_and_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "aligned_50.pkl"
    mmsa_pickle(path, Made(shapes=UNALIGNED))
    change(path, put("train", "regression_labels", lambda x: 2 * x))
    change(path, put("test", "vision", lambda x: np.where(x > 1, np.nan, x)))
    found = mosei().verify(tmp_path)
    assert found.usable
    said = " | ".join(problem.what for problem in found.problems)
    for part in (
        "is not aligned, as its name says: text 6 x 10, audio 20 x 5",
        "is not the file that was published (SHA-256)",
        "scores are beyond -3 and 3",
        "values of vision infinite or NaN, read as 0",
        "48/16/16 sentences",
    ):
        assert said.count(part) == 1


class Malicious:
    """What touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def test_a_pickle_that_runs_commands_is_refused(source: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    sets = held(source / MULT)
    sets["train"]["raw_text"] = np.array([Malicious(mark)], dtype=object)
    (source / MULT).write_bytes(pickle.dumps(sets))
    found = mosei().verify(source)
    assert not found.usable
    assert "can run any code" in found.problems[0].what
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-LFS pointer"),
        (b"<!doctype html><title>Virus scan warning</title>", "is a web page"),
        (b"", "is empty"),
        (b"\x80\x04\x95", "is cut or damaged"),
    ],
)
def test_what_is_no_pickle_is_named(content: bytes, complaint: str, source: Path) -> None:
    (source / MULT).write_bytes(content)
    found = mosei().verify(source)
    assert not found.usable
    assert complaint in found.problems[0].what


def test_a_full_disk_is_said_beforehand(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1))
    with pytest.raises(DataError, match=r"GB are to be written and 0\.0 GB are free"):
        mosei().prepare(source, tmp_path / "new", quiet)


def test_two_that_prepare_at_once_do_not_spoil_each_other(source: Path, cache: Path) -> None:
    folder = cache / Path(MULT).stem
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    held_by_another = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held_by_another, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="is being written by another `mmbench data prepare`"):
            mosei().prepare(source, cache, quiet)
    finally:
        os.close(held_by_another)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    mosei().prepare(source, cache, quiet)


def test_a_place_that_is_no_folder_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot write .*file/mosei.*--cache or MMBENCH_CACHE"):
        mosei().prepare(source, tmp_path / "file", quiet)


def test_files_that_may_not_be_read_are_named(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(DataError, match=r"mosei_senti_data\.pkl cannot be read; check its perm"):
        mosei().verify(source)
    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(DataError, match="mosei_senti_data cannot be read; check its permissions"):
        mosei(cache=str(cache)).load("binary", 0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"standardise": True}, "option standardise is not used by `mmbench data`"),
        ({"cache": "there"}, "where --cache FOLDER says where to write"),
    ],
)
def test_preparing_refuses_options_that_it_does_not_read(
    options: dict[str, Any], complaint: str, source: Path, tmp_path: Path
) -> None:
    for call in (
        lambda: mosei(**options).prepare(source, tmp_path / "new", quiet),
        lambda: mosei(**options).verify(source),
    ):
        with pytest.raises(RequestError, match=complaint):
            call()
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_asked_for_is_part_of_the_command(cache: Path) -> None:
    with pytest.raises(DataError, match=r"--source DIR -d file=aligned_50\.pkl"):
        mosei(cache=str(cache), file="aligned_50.pkl").load("binary", 0)


# -- all the way ----------------------------------------------------------------------------------


def test_from_the_file_to_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    strength = {"text": 1.0, "audio": 0.5, "vision": 0.0}
    made = Made(rows=(120, 30, 60), shapes=UNALIGNED, strength=strength)
    mult_pickle(tmp_path / "files" / MULT, made)
    files = ["--source", "files"]
    assert main(["data", "verify", "cmu_mosei", *files]) == 0
    assert "can be used" in capfd.readouterr().out
    settings = "-t epochs=4 -t batch_size=16 -t optimizer=adam -t lr=0.003 -t schedule=constant"
    run = ["run", "--dataset", "cmu_mosei", "-d", "cache=cache", "--method", "joint"]
    run += settings.split()
    assert main(run) == 2
    assert "run `mmbench data prepare cmu_mosei --source DIR`" in capfd.readouterr().err
    assert main(["data", "prepare", "cmu_mosei", *files, "--cache", "cache"]) == 0
    assert f"{MULT}: 120/30/60 sentences" in capfd.readouterr().out
    assert main(run) == 0
    (record,) = (tmp_path / "results").rglob("record.json")
    stored = json.loads(record.read_text())
    assert stored["metrics"]["test"]["accuracy"] > 0.85  # two thirds are not negative
    assert stored["fingerprints"]["data"]

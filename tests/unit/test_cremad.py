"""CREMA-D: names, protocols, lists, preparing and verifying, on a small corpus of its layout."""

import csv
import hashlib
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbench.cli.app import main
from mmbench.config import Recipe
from mmbench.data.media import prepare as preparing
from mmbench.datasets import cremad
from mmbench.datasets.cremad import CremaD, clip_ids
from mmbench.errors import DataError, RequestError
from mmbench.options import validated
from mmbench.testing.corpora import write_video, write_wav
from tests.unit.media_clips import grey, noise, quiet

ACTORS = range(1001, 1013)
"""Of the small corpus: 1002, 1007 and 1012 are tested on by `speaker`."""


def dataset(**options: Any) -> CremaD:
    return CremaD(validated(CremaD.Config, options, "cremad"))


@pytest.fixture
def few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CREMA-D consist of one sentence of twelve actors: 72 clips."""
    monkeypatch.setattr(cremad, "ACTORS", ACTORS)
    monkeypatch.setattr(cremad, "SENTENCES", ("DFA",))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus, in a folder as a clone has it."""
    folder = tmp_path_factory.mktemp("corpus") / "CREMA-D"
    template = folder.parent / "template.flv"
    write_video(template, grey(10), 10, noise(1.0, 22_050), 22_050)
    (folder / "VideoFlash").mkdir(parents=True)
    for number, actor in enumerate(ACTORS):
        for emotion in cremad.EMOTIONS:
            name = f"{actor}_DFA_{emotion}_XX"
            os.link(template, folder / "VideoFlash" / f"{name}.flv")
            write_wav(folder / "AudioWAV" / f"{name}.wav", noise(1.0, 16_000, number), 16_000)
    return folder


@pytest.fixture
def corpus(whole: Path, tmp_path: Path, few_names: None) -> Path:
    """The small corpus again, to be damaged; files are to be replaced, not written into."""
    folder = tmp_path / "corpus"
    shutil.copytree(whole, folder, copy_function=os.link)
    return folder


@pytest.fixture(scope="module")
def prepared(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cremad, "ACTORS", ACTORS)
        patch.setattr(cremad, "SENTENCES", ("DFA",))
        assert "72 clips, 144 frames" in dataset().prepare(whole, cache, quiet, workers=1)
    return cache


def put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def write_lists(folder: Path, tested: set[int]) -> None:
    """Write lists of the small corpus that test on each sixth clip or so, BOM and all."""
    lines: dict[str, list[str]] = {"train.csv": [], "test.csv": []}
    for place, name in enumerate(clip_ids()):
        which = "test.csv" if place % 7 in tested else "train.csv"
        lines[which].append(f"{name},{name.split('_')[2]}")
    for which, rows in lines.items():
        (folder / which).write_bytes("\r\n".join(["\ufeff" + rows[0], *rows[1:]]).encode())


# -- names and lists -------------------------------------------------------------------------------


def test_names_are_those_of_the_archive(shared_data: Path) -> None:
    with (shared_data / "splits/crema-d/official_files_sha256.csv").open() as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    expected = {(f"VideoFlash/{name}.flv", f"AudioWAV/{name}.wav") for name in clip_ids()}
    assert {path for pair in expected for path in pair} == set(paths)
    assert len(paths) == 14_884


def test_classes_and_actors_add_up() -> None:
    names = clip_ids()
    assert names == sorted(set(names))
    assert Counter(name.split("_")[2] for name in names) == {
        **dict.fromkeys(("ANG", "DIS", "FEA", "HAP", "SAD"), 1271),
        "NEU": 1087,
    }
    assert len({name[:4] for name in names}) == 91


@pytest.fixture
def empty_clone(tmp_path: Path) -> Path:
    for folder in ("VideoFlash", "AudioWAV"):
        (tmp_path / folder).mkdir()
    return tmp_path


def test_published_lists_are_known_whatever_their_line_ends(
    shared_data: Path, empty_clone: Path
) -> None:
    lists = shared_data / "splits" / "crema-d"
    for name in ("train", "test"):
        rows = (lists / f"ogm_ge_{name}.csv").read_text().splitlines()
        (empty_clone / f"{name}.csv").write_bytes(("\ufeff" + "\r\n".join(rows)).encode())
    listing = dataset().listing(empty_clone)
    for name, content in listing.lists.items():
        published = (lists / f"ogm_ge_{name}").read_bytes()
        assert hashlib.sha256(content).digest() == hashlib.sha256(published).digest()
    division = dataset().divide("ogm", listing.clips, listing.lists)
    assert (len(division.train), len(division.test), division.notes) == (6698, 744, ())
    assert not division.train & division.test
    assert Counter(name.split("_")[2] for name in division.test) == {
        "SAD": 140,
        "FEA": 133,
        "DIS": 129,
        "HAP": 123,
        "NEU": 114,
        "ANG": 105,
    }


BAD_LISTS: dict[str, tuple[Any, str]] = {
    "an unknown clip": (
        lambda rows: ["1001_NOT_ANG_XX,ANG", *rows[1:]],
        r"train\.csv, row 1: '1001_NOT_ANG_XX' is no clip of CREMA-D; get it from",
    ),
    "a label that is not the clip's": (
        lambda rows: [rows[0], rows[1].split(",")[0] + ",JOY", *rows[2:]],
        r"train\.csv, row 2: the label 'JOY' is not that of",
    ),
    "a clip twice": (lambda rows: [*rows[:-1], rows[0]], r"train\.csv names .* 2 times"),
    "a row less": (lambda rows: rows[:-1], r"train\.csv has 6697 rows, OGM-GE's has 6,698"),
    "two rows exchanged": (
        lambda rows: [rows[1], rows[0], *rows[2:]],
        r"train\.csv is not OGM-GE's list: its SHA-256 is .* add -d lists=any",
    ),
}


@pytest.mark.parametrize("fault", BAD_LISTS)
def test_lists_that_are_not_the_published_ones_are_refused(
    fault: str, shared_data: Path, empty_clone: Path
) -> None:
    change, message = BAD_LISTS[fault]
    lists = shared_data / "splits" / "crema-d"
    shutil.copy(lists / "ogm_ge_test.csv", empty_clone / "test.csv")
    rows = (lists / "ogm_ge_train.csv").read_text().splitlines()
    (empty_clone / "train.csv").write_text("\n".join(change(rows)))
    with pytest.raises(DataError, match=message):
        dataset().listing(empty_clone)


def test_one_list_alone_and_lists_that_overlap_are_refused(
    shared_data: Path, empty_clone: Path
) -> None:
    content = (shared_data / "splits" / "crema-d" / "ogm_ge_test.csv").read_bytes()
    (empty_clone / "test.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"test\.csv is there and train\.csv is not; add it"):
        dataset().listing(empty_clone)
    (empty_clone / "train.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"744 clips are in train\.csv and in test\.csv"):
        dataset(lists="any").listing(empty_clone)
    (empty_clone / "train.csv").write_bytes("1001_DFA_ANG_XX,Ärger".encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.csv is not UTF-8 text"):
        dataset().listing(empty_clone)


def test_the_old_name_of_a_sound_is_known(empty_clone: Path) -> None:
    (empty_clone / "AudioWAV" / "1040_ITH_SAD_X.wav").write_bytes(b"RIFF")
    listing = dataset().listing(empty_clone)
    (clip,) = (clip for clip in listing.clips if clip.id == "1040_ITH_SAD_XX")
    assert clip.audio == "AudioWAV/1040_ITH_SAD_X.wav"
    assert listing.problems == ()


def test_a_wrong_folder_is_told_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder; give the one that holds VideoFlash"):
        dataset().listing(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no VideoFlash and AudioWAV; give the folder of a"):
        dataset().listing(tmp_path)
    (tmp_path / "clone" / "VideoFlash").mkdir(parents=True)
    with pytest.raises(DataError, match="clone holds VideoFlash and no AudioWAV; get it from"):
        dataset().listing(tmp_path)
    with pytest.raises(DataError, match="is a part of CREMA-D; give the folder above it"):
        dataset().listing(tmp_path / "clone" / "VideoFlash")
    (tmp_path / "clone" / "AudioWAV").mkdir()
    assert dataset().listing(tmp_path).source == tmp_path / "clone"


# -- loading ---------------------------------------------------------------------------------------


def test_speaker_divides_by_actor(prepared: Path) -> None:
    splits = dataset(cache=str(prepared), size=32).load("speaker", 0)
    splits.check("cremad")
    groups = {
        name: {*part.groups} for name, part in splits.named().items() if part.groups is not None
    }
    assert groups["test"] == {"1002", "1007", "1012"}
    assert not groups["train"] & groups["val"]
    assert len(groups["train"] | groups["val"]) == 9
    assert splits.notes == ()
    assert dataset().protocols[0] == "speaker"
    for part in splits.named().values():
        assert [splits.classes[y] for y in part.y.tolist()] == [
            str(i).split("_")[2] for i in part.ids
        ]
    assert splits.classes == ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
    vals = {tuple(dataset(cache=str(prepared)).load("speaker", s).val.ids) for s in range(4)}
    assert len(vals) > 1  # drawn by the seed
    again = dataset(cache=str(prepared), size=32).load("speaker", 0)
    assert again.fingerprints() == splits.fingerprints()


@pytest.mark.parametrize(
    ("options", "audio", "visual"),
    [
        ({}, (1, 257, 188), (3, 3, 224, 224)),
        ({"front_end": "kaldi_fbank", "frames": 1}, (1, 1024, 128), (1, 3, 224, 224)),
        ({"front_end": "ogm_stft", "size": 64, "frames": 2}, (1, 257, 188), (2, 3, 64, 64)),
    ],
)
def test_options_decide_the_shapes(
    prepared: Path, options: dict[str, Any], audio: tuple[int, ...], visual: tuple[int, ...]
) -> None:
    splits = dataset(cache=str(prepared), **options).load("speaker", 0)
    batch = splits.train.batch(torch.tensor([4, 1]), ["audio", "visual"], torch.Generator())
    assert batch.inputs["audio"].shape == (2, *audio)
    assert batch.inputs["visual"].shape == (2, *visual)
    assert splits.modalities["audio"].shape == audio
    assert (splits.modalities["audio"].kind, splits.modalities["audio"].stored) == (
        "spectrogram",
        "waveform",
    )
    assert (splits.modalities["visual"].kind, splits.modalities["visual"].shape) == (
        "frames",
        visual,
    )


def test_wrong_options_are_refused(prepared: Path) -> None:
    with pytest.raises(RequestError, match="unknown front end 'ogm_stf': did you mean ogm_stft"):
        dataset(cache=str(prepared), front_end="ogm_stf").load("speaker", 0)
    with pytest.raises(DataError, match=r"is prepared with fps=2 in .*, not 5; leave the option"):
        dataset(cache=str(prepared), fps=5).load("speaker", 0)
    with pytest.raises(RequestError, match="unknown protocol of cremad 'speakr': did you mean"):
        dataset(cache=str(prepared)).load("speakr", 0)
    with pytest.raises(
        DataError, match=r"'cremad' is not prepared in .*mmbench data prepare cremad"
    ):
        dataset(cache=str(prepared / "nowhere")).load("speaker", 0)


def test_the_lists_may_come_later_and_their_leak_is_noted(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    dataset().prepare(corpus, cache, quiet, workers=1)
    with pytest.raises(DataError, match=r"'ogm' of cremad needs OGM-GE's train\.csv and test\.csv"):
        dataset(cache=str(cache)).load("ogm", 0)
    write_lists(corpus, {3})
    monkeypatch.setattr(preparing, "write_shard", None)  # nothing is to be decoded again
    dataset(lists="any").prepare(corpus, cache, quiet, workers=1)
    splits = dataset(cache=str(cache), size=32).load("ogm", 0)
    splits.check("cremad")
    assert {*splits.test.ids} == {name for place, name in enumerate(clip_ids()) if place % 7 == 3}
    assert len(splits.train) + len(splits.val) + len(splits.test) == 72
    assert splits.train.groups is not None
    assert splits.val.groups is not None
    assert not {*splits.train.groups} & {*splits.val.groups}
    tested = {str(row)[:4] for row in splits.test.ids}
    assert splits.notes == (
        "lists of the user's own, not OGM-GE's",
        f"{len(tested)} of the {len(tested)} actors of test are in train or validation",
    )
    (cache / "lists" / "test.csv").write_text("1001_DFA_ANG_XX,ANG\n")
    with pytest.raises(DataError, match=r"test\.csv is gone or has changed since it was prepared"):
        dataset(cache=str(cache)).load("ogm", 0)


def test_missing_clips_are_refused_split_by_split_unless_allowed(
    corpus: Path, tmp_path: Path
) -> None:
    (corpus / "VideoFlash" / "1007_DFA_SAD_XX.flv").unlink()
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match="1 of 72 clips cannot be used"):
        dataset().prepare(corpus, cache, quiet, workers=1)
    said = dataset(allow_missing=True).prepare(corpus, cache, quiet, workers=1)
    assert "71 clips" in said
    assert "1 left out, the first: VideoFlash/1007_DFA_SAD_XX.flv does not exist" in said
    with pytest.raises(DataError, match="1 of 18 clips of test are missing or damaged; get them"):
        dataset(cache=str(cache)).load("speaker", 0)
    splits = dataset(cache=str(cache), allow_missing=True).load("speaker", 0)
    assert splits.notes == ("1 of 18 clips of test missing or damaged, left out",)
    assert len(splits.test) == 17


def test_the_recipe_is_a_usable_one_and_the_field_s() -> None:
    recipe = Recipe.model_validate(dataset().recipe("speaker"))
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay) == (
        "sgd",
        1e-3,
        0.9,
        1e-4,
    )
    assert (recipe.epochs, recipe.batch_size) == (100, 64)
    assert (recipe.schedule, recipe.step_epochs, recipe.step_factor) == ("step", 70, 0.1)


# -- verifying -------------------------------------------------------------------------------------


def test_a_sound_corpus_has_no_problems(corpus: Path) -> None:
    write_lists(corpus, {3})
    found = dataset(lists="any").verify(corpus, workers=1)
    assert found.usable
    assert found.problems == ()
    assert found.counts == {
        "clips (of 72)": 72,
        **{f"{emotion} (of 12)": 12 for emotion in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")},
        "speaker: train and val (of 54)": 54,
        "speaker: test (of 18)": 18,
        "ogm: train and val (of 62)": 62,
        "ogm: test (of 10)": 10,
    }


def test_verify_names_every_fault(corpus: Path) -> None:
    video, sound = corpus / "VideoFlash", corpus / "AudioWAV"
    cut = (video / "1001_DFA_ANG_XX.flv").read_bytes()
    put(video / "1001_DFA_ANG_XX.flv", cut[: len(cut) // 2])
    put(video / "1001_DFA_DIS_XX.flv", b"version https://git-lfs.github.com/spec/v1\n")
    put(sound / "1001_DFA_DIS_XX.wav", b"<html>502</html>")
    put(video / "1001_DFA_FEA_XX.flv", b"")
    (sound / "1001_DFA_HAP_XX.wav").unlink()
    (sound / "1001_DFA_NEU_XX.wav").unlink()
    write_wav(sound / "1001_DFA_NEU_XX.wav", np.zeros(16_000, dtype=np.int16), 16_000)
    (sound / "1001_DFA_SAD_XX.wav").unlink()
    write_wav(sound / "1001_DFA_SAD_XX.wav", noise(4.5, 16_000), 16_000)
    put(video / "1001-DFA-ANG-XX.flv", b"?")
    found = dataset().verify(corpus, workers=1)
    named = [(Path(p.path).name, p.what, p.mend) for p in found.problems]
    expected = [
        ("1001-DFA-ANG-XX.flv", "is not named as one of the", "rename it"),
        ("1001_DFA_ANG_XX.flv", "is cut", "download it again"),
        ("1001_DFA_DIS_XX.wav", "is a web page", "download the file itself"),
        ("1001_DFA_DIS_XX.flv", "is a git-LFS pointer", "run `git lfs pull`"),
        ("1001_DFA_FEA_XX.flv", "is empty", "download"),
        ("1001_DFA_HAP_XX.wav", "does not exist", "check the path"),
        ("1001_DFA_NEU_XX.wav", "is silent", "download it again"),
        ("1001_DFA_SAD_XX.flv", "has 1.0 s of picture beside 4.5 s", "download it again"),
    ]
    assert len(named) == len(expected)
    for (name, what, mend), (known, says, mends) in zip(named, expected, strict=True):
        assert name == known
        assert what.startswith(says)
        assert mend.startswith(mends)
    assert not found.usable
    assert found.counts["clips (of 72)"] == 66
    assert found.counts["ANG (of 12)"] == 11
    assert dataset(allow_missing=True).verify(corpus, workers=1).usable


def test_clips_known_to_be_damaged_are_named(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CremaD, "known_damaged", {"1003_DFA_SAD_XX": "it is another clip"})
    found = dataset().verify(corpus, workers=1)
    (problem,) = found.problems
    assert Path(problem.path).name == "1003_DFA_SAD_XX.flv"
    assert problem.what == "is known to be damaged in every copy: it is another clip"
    assert found.usable
    assert found.counts["clips (of 72)"] == 72
    monkeypatch.undo()
    assert {*CremaD.known_damaged} <= {*clip_ids()}
    assert len(CremaD.known_damaged) == 4


def test_a_clone_s_files_are_checked_against_its_pointers(corpus: Path) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(
            ["git", "-C", str(corpus), *identity, *words], check=True, capture_output=True
        )

    files = sorted(p for p in corpus.rglob("*") if p.is_file())
    contents = {path: path.read_bytes() for path in files}
    for path, content in contents.items():
        sha = hashlib.sha256(content).hexdigest()
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(content)}\n"
        )
        put(path, pointer.encode())
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "pointers")
    for path, content in contents.items():
        put(path, content)
    found = dataset().verify(corpus, workers=1)
    assert found.problems == ()
    assert found.counts["files checked against git-LFS pointers"] == 144
    # One WAV of another clip, which decodes well, and one byte changed in the sound of another.
    changed = [corpus / "AudioWAV" / f"10{n}_DFA_ANG_XX.wav" for n in ("05", "09")]
    put(changed[0], contents[corpus / "AudioWAV" / "1006_DFA_ANG_XX.wav"])
    put(changed[1], contents[changed[1]][:-1] + b"\x07")
    found = dataset().verify(corpus, workers=1)
    assert [problem.path for problem in found.problems] == list(map(str, changed))
    assert all("is not the file that its git-LFS pointer names" in p.what for p in found.problems)
    assert all("git lfs pull" in problem.mend for problem in found.problems)
    assert found.counts["clips (of 72)"] == 70


# -- votes -----------------------------------------------------------------------------------------


def test_votes_of_the_archive_are_labels_of_one_modality(
    shared_data: Path, empty_clone: Path
) -> None:
    table = shared_data / "splits" / "crema-d" / "summaryTable.csv"
    (empty_clone / "processedResults").mkdir()
    shutil.copy(table, empty_clone / "processedResults")
    lists = dataset().listing(empty_clone).lists
    names = clip_ids()
    labels = dataset().further_labels(names, lists)
    assert {m: [*named] for m, named in labels.items()} == {
        "audio": ["VoiceVote"],
        "visual": ["FaceVote"],
    }
    with table.open(encoding="utf-8-sig") as file:
        rows = {row["FileName"]: row for row in csv.DictReader(file)}
    for m, column, tied in (("audio", "VoiceVote", 644), ("visual", "FaceVote", 470)):
        found = labels[m][column].tolist()
        assert found.count("") == tied
        for name, vote in zip(names, found, strict=True):
            given = rows[name][column]
            assert vote == given if len(given) == 1 else vote == ""


def write_votes(folder: Path, names: list[tuple[int, str]]) -> Path:
    path = folder / "summaryTable.csv"
    lines = [f'"1","{name}","{name[9]}","70","{"A:N" if i % 4 else "H"}","60"' for i, name in names]
    path.write_text('"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel"\n')
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def test_votes_go_along_with_the_clips(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    assert dataset(cache=str(prepared)).load("speaker", 0).train.labels == {}
    write_votes(corpus, list(enumerate(clip_ids())))
    cache = tmp_path / "cache"
    shutil.copytree(prepared, cache)
    dataset().prepare(corpus, cache, quiet, workers=1)
    splits = dataset(cache=str(cache)).load("speaker", 0)
    splits.check("cremad")
    for part in splits.named().values():
        places = [clip_ids().index(name) for name in part.ids]
        assert part.labels["audio"]["VoiceVote"].tolist() == [name[9] for name in part.ids]
        assert part.labels["visual"]["FaceVote"].tolist() == ["" if i % 4 else "H" for i in places]


def test_a_table_of_votes_that_is_not_the_archive_s_is_refused(corpus: Path) -> None:
    numbered = list(enumerate(clip_ids()))
    path = write_votes(corpus, numbered[:-1])
    with pytest.raises(DataError, match=r"has no votes on 1 clips, such as 1012_DFA_SAD_XX; get"):
        dataset().listing(corpus)
    path.write_text(write_votes(corpus, numbered).read_text().replace('"A:N"', '"A:X"', 1))
    with pytest.raises(DataError, match=r"summaryTable\.csv, row 2: 'A:X' is no vote; get"):
        dataset().listing(corpus)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        dataset().listing(corpus)


# -- commands --------------------------------------------------------------------------------------


def test_the_commands_prepare_and_verify(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    words = ["data", "prepare", "cremad", "--source", str(corpus), "--cache", str(cache)]
    assert main([*words, "--workers", "1"]) == 0
    said = capfd.readouterr()
    assert said.out.startswith("72 clips, 144 frames, ")
    assert said.err.splitlines()[0].startswith("clips, about ")
    assert "MB: 0 of 72" in said.err.splitlines()[0]
    assert main(["data", "verify", "cremad", "--source", str(corpus), "--workers", "1"]) == 0
    assert "speaker: test (of 18)" in capfd.readouterr().out
    (corpus / "AudioWAV" / "1001_DFA_ANG_XX.wav").unlink()
    assert main(["data", "verify", "cremad", "--source", str(corpus), "--workers", "1"]) == 1
    assert "1001_DFA_ANG_XX.wav: does not exist" in capfd.readouterr().out
    assert main(["data", "verify", "mfeat", "--source", str(corpus), "--workers", "1"]) == 2
    assert "--workers is not used for 'mfeat'" in capfd.readouterr().err

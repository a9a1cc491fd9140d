"""Conversations: the three layouts, what the splits are made of, and what is wrong with files."""

import errno
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from mmbench.cli.app import main
from mmbench.data.conversations.folders import USUAL
from mmbench.data.conversations.layouts import MODALITIES, Layout
from mmbench.data.conversations.meld_tables import EMOTIONS, plain, read_table
from mmbench.data.dataset import Splits, Verification
from mmbench.datasets.iemocap import SIX, Iemocap
from mmbench.datasets.meld import Meld
from mmbench.errors import DataError, RequestError
from mmbench.options import validated
from mmbench.testing.conversations import Conversation, Written
from mmbench.testing.conversations import iemocap as write_iemocap
from mmbench.testing.conversations import meld as write_meld

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Kind = type[Iemocap] | type[Meld]


def dataset(kind: Kind, **options: Any) -> Iemocap | Meld:
    return kind(validated(kind.Config, options, kind.name()))


def quiet(done: int, total: int, what: str) -> None:
    """Progress that nobody looks at."""


def loaded(kind: Kind, source: Path, cache: Path, protocol: str, **options: Any) -> Splits:
    """Prepare and load; the seed is 0."""
    dataset(kind).prepare(source, cache, quiet)
    return again(kind, cache, protocol, **options)


def again(kind: Kind, cache: Path, protocol: str, seed: int = 0, **options: Any) -> Splits:
    splits = dataset(kind, cache=str(cache), **options).load(protocol, seed)
    splits.check(kind.name())
    return splits


def features(splits: Splits, part: str, modality: str) -> np.ndarray:
    import torch

    split = splits.named()[part]
    return split.inputs[modality].batch(torch.arange(len(split)), None).numpy()


def said(found: Verification) -> list[str]:
    return [f"{problem.path}: {problem.what}; {problem.mend}" for problem in found.problems]


def groups(splits: Splits, part: str) -> set[str]:
    held = splits.named()[part].groups
    assert held is not None
    return set(held.tolist())


def changed(written: Written, change: Callable[[Any], Any]) -> Path:
    """Change the content of a pickle in place."""
    content = pickle.loads(written.pickle.read_bytes())
    replaced = change(content)
    written.pickle.write_bytes(pickle.dumps(content if replaced is None else replaced))
    return written.pickle


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "protocol"), [(Iemocap, "six"), (Meld, "seven")])
def test_every_layout_gives_the_features_and_labels_that_were_written(
    layout: Layout, kind: Kind, protocol: str, tmp_path: Path
) -> None:
    write = write_iemocap if kind is Iemocap else write_meld
    written = write(tmp_path / "files", layout)
    splits = loaded(kind, tmp_path / "files", tmp_path / "cache", protocol, standardise=False)
    classes = SIX if kind is Iemocap else EMOTIONS
    expected = {
        f"{made.key}_{n}": (made, n)
        for made in written.conversations
        for n in range(len(made.labels))
    }
    assert splits.classes == classes
    assert {m: splits.modalities[m].shape for m in MODALITIES} == {
        "text": (24,),
        "audio": (16,),
        "visual": (20,),
    }
    seen = 0
    for part, split in splits.named().items():
        values = {m: features(splits, part, m) for m in MODALITIES}
        assert split.groups is not None
        for row, utterance in enumerate(split.ids.tolist()):
            made, n = expected[utterance]
            assert split.groups[row] == str(made.key)
            assert int(split.y[row]) == made.labels[n]
            for m in MODALITIES:
                np.testing.assert_allclose(values[m][row], made.features[m][n], atol=1e-6)
            seen += 1
    assert seen == len(expected)


def test_the_nine_items_of_iemocap_are_read_as_python_2_wrote_them(tmp_path: Path) -> None:
    written = write_iemocap(tmp_path, "items")
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(written.pickle.read_bytes())  # its byte strings are not ASCII
    assert dataset(Iemocap).verify(tmp_path).usable


def test_features_are_standardised_by_the_training_rows(tmp_path: Path) -> None:
    write_iemocap(tmp_path, "fields")
    splits = loaded(Iemocap, tmp_path, tmp_path / "cache", "six")
    train = features(splits, "train", "text").astype(np.float64)
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-5)
    raw = again(Iemocap, tmp_path / "cache", "six", standardise=False)
    fitted = features(raw, "train", "text").astype(np.float64)
    by_hand = (features(raw, "test", "text") - fitted.mean(axis=0)) / fitted.std(axis=0)
    np.testing.assert_allclose(features(splits, "test", "text"), by_hand, atol=1e-4)


def test_only_the_speakers_face_counts_and_no_face_is_zeros(tmp_path: Path) -> None:
    written = write_iemocap(tmp_path, "folders")
    first = written.conversations[0]
    folder = tmp_path / "features" / USUAL["visual"]
    for name in first.utterances:  # the first dialogue read, before any width is known
        for picture in (folder / name).glob("*.npy"):
            picture.unlink()
    found = dataset(Iemocap).verify(tmp_path)
    assert found.usable
    without = f"no face of the speaker for {len(first.utterances)} utterances"
    assert sum(without in line for line in said(found)) == 1
    splits = loaded(Iemocap, tmp_path, tmp_path / "cache", "six", standardise=False)
    for part, split in splits.named().items():
        assert split.groups is not None
        rows = features(splits, part, "visual")[split.groups == first.key]
        assert not rows.any()
        assert rows.shape[1] == 20


def test_a_modality_tells_as_much_as_its_strength(tmp_path: Path) -> None:
    strengths = {"text": 0.9, "audio": 0.5, "visual": 0.0}
    written = write_iemocap(tmp_path, "fields", dialogues_per_session=30, strengths=strengths)
    y = np.concatenate([made.labels for made in written.conversations])
    for m, strength in strengths.items():
        x = np.concatenate([made.features[m] for made in written.conversations])
        half = len(y) // 2
        means = np.stack([x[:half][y[:half] == c].mean(axis=0) for c in range(6)])
        distances = ((x[half:, None] - means[None]) ** 2).sum(axis=2)
        accuracy = float((distances.argmin(axis=1) == y[half:]).mean())
        assert accuracy == pytest.approx(strength + (1 - strength) / 6, abs=0.07)


# -- splits of IEMOCAP -----------------------------------------------------------------------------


def test_test_is_session_5_and_validation_whole_dialogues_of_the_others(tmp_path: Path) -> None:
    write_iemocap(tmp_path, "fields", dialogues_per_session=8)
    splits = loaded(Iemocap, tmp_path, tmp_path / "cache", "six")
    assert {name[:5] for name in groups(splits, "test")} == {"Ses05"}
    held, train = groups(splits, "val"), groups(splits, "train")
    assert not held & train
    assert len(held | train) == 32
    other = again(Iemocap, tmp_path / "cache", "six", seed=1)
    assert groups(other, "val") != held
    assert groups(other, "test") == groups(splits, "test")


def test_another_session_can_be_tested_on(tmp_path: Path) -> None:
    write_iemocap(tmp_path, "fields")
    splits = loaded(Iemocap, tmp_path, tmp_path / "cache", "six", test_session=2)
    assert {name[:5] for name in groups(splits, "test")} == {"Ses02"}
    rest = groups(splits, "train") | groups(splits, "val")
    assert {name[:5] for name in rest} == {"Ses01", "Ses03", "Ses04", "Ses05"}


def test_the_order_of_the_lists_decides_nothing(tmp_path: Path) -> None:
    written = write_iemocap(tmp_path, "fields", dialogues_per_session=8)
    fingerprints = []
    for turn in range(2):
        splits = loaded(Iemocap, tmp_path, tmp_path / f"cache-{turn}", "six")
        fingerprints.append(splits.fingerprints())
        changed(written, lambda content: content["trainVid"].reverse())
    assert fingerprints[0] == fingerprints[1]


def test_four_classes_from_six_merge_excited_and_leave_frustrated_out(tmp_path: Path) -> None:
    written = write_iemocap(tmp_path, "fields")
    splits = loaded(Iemocap, tmp_path, tmp_path / "cache", "four")
    labels = [label for made in written.conversations for label in made.labels]
    assert splits.classes == ("happy", "sad", "neutral", "angry")
    found = np.bincount(np.concatenate([split.y for split in splits.named().values()]))
    merged = [labels.count(0) + labels.count(4), *map(labels.count, (1, 2, 3))]
    assert found.tolist() == merged
    assert any(f"{sum(merged)} utterances of a file of six" in note for note in splits.notes)


def test_a_file_of_four_classes_is_taken_as_it_is_and_has_no_six(tmp_path: Path) -> None:
    written = write_iemocap(tmp_path, "folders", ways=4)
    splits = loaded(Iemocap, tmp_path, tmp_path / "cache", "four")
    labels = [label for made in written.conversations for label in made.labels]
    found = np.bincount(np.concatenate([split.y for split in splits.named().values()]))
    assert found.tolist() == [labels.count(c) for c in range(4)]
    with pytest.raises(DataError, match="file of four classes; use --protocol four"):
        again(Iemocap, tmp_path / "cache", "six")


def test_speakers_of_the_test_session_are_in_no_other(tmp_path: Path) -> None:
    write_iemocap(tmp_path, "fields")
    splits = loaded(Iemocap, tmp_path, tmp_path / "cache", "six")
    assert not any("speakers" in note for note in splits.notes)


# -- splits of MELD --------------------------------------------------------------------------------


def test_the_tables_tell_the_official_dev_dialogues(tmp_path: Path) -> None:
    write_meld(tmp_path, "fields", dialogues=(16, 6, 8))
    splits = loaded(Meld, tmp_path, tmp_path / "cache", "seven")
    assert groups(splits, "train") == {str(key) for key in range(16)}
    assert groups(splits, "val") == {str(key) for key in range(16, 22)}
    assert groups(splits, "test") == {str(key) for key in range(22, 30)}
    assert again(Meld, tmp_path / "cache", "seven", seed=1).fingerprints() == splits.fingerprints()


def test_a_dialogue_is_found_in_the_tables_when_a_few_words_differ(tmp_path: Path) -> None:
    def reword(content: Any) -> None:
        content["sentence"][17][0] = "Something else altogether"

    written = write_meld(tmp_path, "fields")
    changed(written, reword)
    assert "17" in groups(loaded(Meld, tmp_path, tmp_path / "cache", "seven"), "val")


def test_speakers_who_are_in_train_and_test_are_counted(tmp_path: Path) -> None:
    written = write_meld(tmp_path, "fields")
    speakers = {"train": set[str](), "test": set[str]()}
    for made in written.conversations:
        speakers[made.part] |= {*made.speakers}
    shared = len(speakers["train"] & speakers["test"])
    assert shared
    splits = loaded(Meld, tmp_path, tmp_path / "cache", "seven")
    note = f"{shared} of the {len(speakers['test'])} speakers of test are in train or validation"
    assert note in splits.notes


def test_without_tables_validation_is_carved_and_every_table_says_so(tmp_path: Path) -> None:
    write_meld(tmp_path, "fields", tables=False)
    splits = loaded(Meld, tmp_path, tmp_path / "cache", "seven")
    assert len(groups(splits, "train") | groups(splits, "val")) == 22
    assert not groups(splits, "train") & groups(splits, "val")
    assert any("carved from the 22 dialogues of train" in note for note in splits.notes)


def test_sentiments_come_from_the_tables(tmp_path: Path) -> None:
    written = write_meld(tmp_path, "items")
    splits = loaded(Meld, tmp_path, tmp_path / "cache", "sentiment")
    assert splits.classes == ("negative", "neutral", "positive")
    labels = [EMOTIONS[label] for made in written.conversations for label in made.labels]
    positive = labels.count("joy") + labels.count("surprise")
    found = np.bincount(np.concatenate([split.y for split in splits.named().values()]))
    assert found[1:].tolist() == [labels.count("neutral"), positive]


def test_without_tables_there_are_no_sentiments(tmp_path: Path) -> None:
    write_meld(tmp_path, "items", tables=False)
    with pytest.raises(DataError, match=r"train_sent_emo\.csv .* put them beside the pickle"):
        loaded(Meld, tmp_path, tmp_path / "cache", "sentiment")


HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,"
    "StartTime,EndTime"
)
GOOD = '1,"Oh, no!",Ross,sadness,negative,3,0,4,7,"00:20:57,256","00:21:00,049"'


def test_a_table_is_read_with_a_mark_at_its_start_and_any_order_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "dev_sent_emo.csv"
    lines = [HEADER, GOOD.replace(",3,0,", ",3,1,").replace("Oh", "Ah"), GOOD]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (scene,) = read_table(path, "val")
    assert [line.sentence for line in scene.lines] == ["Oh, no!", "Ah, no!"]


def test_quotation_marks_do_not_tell_sentences_apart() -> None:
    assert plain("He\u2019s lost it\u2026") == plain("He's lost it...") == "heslostit"
    assert plain("He\u2019s".encode().decode("latin1")) == "hes"  # as Python 2 left it


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([HEADER, GOOD.replace("sadness", "sadnes")], "line 2: Emotion is 'sadnes', not one of"),
        ([HEADER, GOOD.replace("negative", "bad")], "line 2: Sentiment is 'bad'"),
        ([HEADER, GOOD.replace(",3,0,", ",x,0,")], "line 2 has 'x' as Dialogue_ID"),
        ([HEADER, GOOD, GOOD], "lists utterance 0 of dialogue 3 twice"),
        ([HEADER.replace("Speaker", "Who"), GOOD], "has no column 'Speaker'"),
        ([HEADER], "holds no rows"),
        (["<!doctype html>"], "is a web page"),
    ],
)
def test_a_wrong_table_is_named(lines: list[str], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "train_sent_emo.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=complaint):
        read_table(path, "train")


# -- what is wrong with files ----------------------------------------------------------------------


def break_label(content: Any) -> None:
    content["label"]["Ses01F_impro01"][2] = 6


def break_whole_label(content: Any) -> None:
    content["label"]["Ses01F_impro01"][2] = 1.5


def break_width(content: Any) -> None:
    content["text"]["Ses01F_impro01"][2] = np.zeros(5, np.float32)


def break_all_widths(content: Any) -> None:
    held = content["audio"]["Ses02M_impro02"]
    content["audio"]["Ses02M_impro02"] = [row[:-1] for row in held]


def break_count(content: Any) -> None:
    content["audio"]["Ses01F_impro01"].pop()


def break_number(content: Any) -> None:
    content["visual"]["Ses01F_impro01"][2] = np.full(20, np.nan, np.float32)


def break_field(content: Any) -> None:
    del content["visual"]["Ses01F_impro01"]


def break_lists(content: Any) -> None:
    content["testVid"].append("Ses01F_impro01")


def break_list(content: Any) -> None:
    content["trainVid"].append("Ses01F_impro01")


def break_name(content: Any) -> None:
    content["trainVid"].remove("Ses01F_impro01")
    content["trainVid"].append("somebody")
    for name in ("label", "text", "audio", "visual", "sentence", "speaker"):
        content[name]["somebody"] = content[name].pop("Ses01F_impro01")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (break_label, "'Ses01F_impro01' utterance 2 has label 6; 6 classes are numbered from 0"),
        (break_whole_label, "'Ses01F_impro01' has labels that are not whole numbers"),
        (break_width, "utterance 2 has 5 text features, utterance 0 has 24"),
        (break_all_widths, "'Ses02M_impro02' has 15 audio features, those before have 16"),
        (break_count, "labels and "),
        (break_number, "utterance 2 has visual features that are NaN or infinite"),
        (break_field, "'Ses01F_impro01' has no visual features"),
        (break_lists, "'Ses01F_impro01' is in train and in test"),
        (break_list, "'Ses01F_impro01' is listed 2 times in train"),
        (break_name, "'somebody' has no session in its name"),
    ],
)
def test_a_fault_in_a_dialogue_is_named_once_and_stops_the_use(
    change: Callable[[Any], None], complaint: str, tmp_path: Path
) -> None:
    path = changed(write_iemocap(tmp_path, "fields"), change)
    found = dataset(Iemocap).verify(tmp_path)
    assert not found.usable
    named = [line for line in said(found) if complaint in line]
    assert len(named) == 1
    assert named[0].startswith(f"{path}: ")
    with pytest.raises(DataError, match="1 thing is wrong with the files of 'iemocap'") as raised:
        dataset(Iemocap).prepare(tmp_path, tmp_path / "cache", quiet)
    assert complaint in str(raised.value)
    assert not (tmp_path / "cache").exists()


def without_visual(content: Any) -> object:
    ids, speakers, labels, text, audio, _, sentences, train, test, sentiments = content
    return (ids, speakers, labels, text, audio, sentences, train, test, sentiments)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content[:5], "holds 5 items; use a file that holds a dict of fields"),
        (lambda content: {"label": {}}, "is a dict without text, audio, visual"),
        (lambda content: 3, "holds a int; use a file"),
        (without_visual, r"item 7 of 9 \(sentences\) is a set, not a dict by dialogue"),
    ],
)
def test_a_pickle_of_another_layout_is_refused(
    change: Callable[[Any], Any], complaint: str, tmp_path: Path
) -> None:
    changed(write_meld(tmp_path, "items"), change)
    with pytest.raises(DataError, match=complaint):
        dataset(Meld).prepare(tmp_path, tmp_path / "cache", quiet)
    assert not dataset(Meld).verify(tmp_path).usable


def test_a_cut_pickle_and_a_pointer_are_named(tmp_path: Path) -> None:
    path = write_meld(tmp_path, "fields").pickle
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cut or damaged" in said(dataset(Meld).verify(tmp_path))[0]
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git-LFS pointer" in said(dataset(Meld).verify(tmp_path))[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def widen(path: Path) -> None:
    np.save(path, np.zeros(99, np.float32))


def spoil(path: Path) -> None:
    np.save(path, np.full(24, np.inf, np.float32))


def empty(path: Path) -> None:
    np.save(path, np.zeros((0, 24), np.float32))


def use_objects(path: Path) -> None:
    np.save(path, np.array([None]), allow_pickle=True)


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (Path.unlink, "does not exist"),
        (cut, "is no .npy file, or is cut"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("<!doctype html>"), "is a web page"),
        (spoil, "holds NaN or infinite values"),
        (empty, "its shape is (0, 24)"),
        (use_objects, "is no .npy file"),
    ],
)
def test_a_damaged_feature_file_is_named_once(
    harm: Callable[[Path], object], complaint: str, tmp_path: Path
) -> None:
    written = write_iemocap(tmp_path, "folders")
    path = tmp_path / "features" / USUAL["text"] / f"{written.conversations[3].utterances[1]}.npy"
    harm(path)
    found = dataset(Iemocap).verify(tmp_path)
    assert not found.usable
    named = [line for line in said(found) if str(path) in line]
    assert len(named) == 1
    assert complaint in named[0]
    with pytest.raises(DataError, match="1 thing is wrong"):
        dataset(Iemocap).prepare(tmp_path, tmp_path / "cache", quiet)


def test_two_utterances_of_one_name_cannot_share_a_feature_file(tmp_path: Path) -> None:
    def rename(content: Any) -> None:
        content[0][16][0] = content[0][0][0]

    changed(write_meld(tmp_path, "folders"), rename)
    found = dataset(Meld).verify(tmp_path)
    assert not found.usable
    assert "utterance 'train_dia0_utt0' is in dialogue '0' and in '16'" in said(found)[0]


def test_a_feature_file_of_another_width_is_found(tmp_path: Path) -> None:
    written = write_iemocap(tmp_path, "folders")
    made: Conversation = written.conversations[3]
    widen(tmp_path / "features" / USUAL["text"] / f"{made.utterances[1]}.npy")
    found = dataset(Iemocap).verify(tmp_path)
    assert f"'{made.key}' utterance 1 has 99 text features" in said(found)[0]


def test_another_feature_folder_can_be_named_and_a_missing_one_is_said(tmp_path: Path) -> None:
    write_iemocap(tmp_path, "folders")
    root = tmp_path / "features"
    (root / USUAL["text"]).rename(root / "bert-UTT")
    with pytest.raises(DataError, match=r"deberta-large-4-UTT: does not exist; .*bert-UTT"):
        dataset(Iemocap).prepare(tmp_path, tmp_path / "cache", quiet)
    named = dataset(Iemocap, text_features="bert-UTT")
    named.prepare(tmp_path, tmp_path / "cache", quiet)
    again(Iemocap, tmp_path / "cache", "six", text_features="bert-UTT")
    with pytest.raises(DataError, match="is prepared with bert-UTT for text"):
        again(Iemocap, tmp_path / "cache", "six", text_features="roberta-UTT")


def test_a_feature_folder_is_refused_where_the_pickle_holds_the_features(tmp_path: Path) -> None:
    write_meld(tmp_path, "fields")
    with pytest.raises(DataError, match="text_features is not used"):
        dataset(Meld, text_features="bert-UTT").prepare(tmp_path, tmp_path / "cache", quiet)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"test_session": 1}, "option test_session is not used by `mmbench data`"),
        ({"cache": "there"}, "where --cache FOLDER says where to write"),
    ],
)
def test_preparing_refuses_options_that_it_does_not_read(
    options: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    source = write_iemocap(tmp_path, "items").pickle
    with pytest.raises(RequestError, match=complaint):
        dataset(Iemocap, **options).prepare(source, tmp_path / "cache", quiet)
    with pytest.raises(RequestError, match=complaint):
        dataset(Iemocap, **options).verify(source)
    assert not (tmp_path / "cache").exists()


def test_a_share_of_train_is_refused_where_the_tables_give_validation(tmp_path: Path) -> None:
    for tables, folder in ((True, "with"), (False, "without")):
        write_meld(tmp_path / folder, "items", tables=tables)
        dataset(Meld).prepare(tmp_path / folder, tmp_path / f"{folder} cache", quiet)
    with pytest.raises(RequestError, match=r"val_fraction is not used .* own validation; leave it"):
        again(Meld, tmp_path / "with cache", "seven", val_fraction=0.3)
    tenth = again(Meld, tmp_path / "without cache", "seven")
    third = again(Meld, tmp_path / "without cache", "seven", val_fraction=0.3)
    assert len(third.val) > 2 * len(tenth.val)


def test_the_file_of_iemocap_is_not_taken_for_melds(tmp_path: Path) -> None:
    source = write_iemocap(tmp_path, "items").pickle
    with pytest.raises(DataError, match="a dialogue of IEMOCAP; use it for iemocap"):
        dataset(Meld).prepare(source, tmp_path / "cache", quiet)


def test_a_table_that_is_cut_is_named_rather_than_the_pickle(tmp_path: Path) -> None:
    write_meld(tmp_path, "items")
    table = tmp_path / "train_sent_emo.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    last = ",".join(lines[20].split(",")[:-4])  # all that is read of a line is there
    table.write_text("\n".join([*lines[:20], last]), encoding="utf-8")
    with pytest.raises(DataError, match=r"train_sent_emo\.csv: is cut: line 21, the last, ends"):
        dataset(Meld).prepare(tmp_path, tmp_path / "cache", quiet)


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=f"{tmp_path} cannot be read; check its permissions"):
        dataset(Iemocap).prepare(tmp_path, tmp_path / "cache", quiet)


def test_a_folder_with_several_pickles_asks_which(tmp_path: Path) -> None:
    write_iemocap(tmp_path, "folders")
    write_iemocap(tmp_path, "folders", ways=4)
    with pytest.raises(DataError, match=r"2 pickles .*4way.*6way.*name the one to use: --source"):
        dataset(Iemocap).verify(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"holds no \.pkl or \.pickle file"):
        dataset(Iemocap).verify(tmp_path / "none")


def mislabel(content: Any) -> None:
    for labels in content["label"].values():
        labels[:] = [(label + 1) % 7 for label in labels]


def misplace(content: Any) -> None:
    content["trainVid"].remove(0)
    content["testVid"].append(0)


def forget(content: Any) -> None:
    content["sentence"][0] = ["Nobody says so"] * len(content["sentence"][0])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (mislabel, "emotions are not those of the tables, the first: utterance 0 of dialogue '0'"),
        (misplace, "lists dialogue '0' in test, train_sent_emo.csv has it"),
        (forget, "dialogue '0' is in none of the tables, by its sentences"),
        (lambda content: content.pop("sentence") and None, "holds no dialogue that is in the"),
    ],
)
def test_a_pickle_that_contradicts_the_tables_is_refused(
    change: Callable[[Any], None], complaint: str, tmp_path: Path
) -> None:
    changed(write_meld(tmp_path, "fields"), change)
    found = dataset(Meld).verify(tmp_path)
    assert not found.usable
    assert sum(complaint in line for line in said(found)) == 1


def test_a_table_that_is_missing_beside_the_others_is_named(tmp_path: Path) -> None:
    write_meld(tmp_path, "fields")
    (tmp_path / "dev_sent_emo.csv").unlink()
    (line,) = said(dataset(Meld).verify(tmp_path))
    assert "dev_sent_emo.csv: does not exist, though train_sent_emo.csv lies there" in line


# -- counts ----------------------------------------------------------------------------------------


def test_verify_sets_what_is_found_against_what_is_published(tmp_path: Path) -> None:
    written = write_iemocap(tmp_path, "fields", dialogues_per_session=4)
    found = dataset(Iemocap).verify(tmp_path)
    assert found.usable
    labels = [label for made in written.conversations for label in made.labels]
    assert found.counts["dialogues of train (expected 120)"] == 16
    assert found.counts["dialogues of test (expected 31)"] == 4
    assert found.counts["emotion neutral (expected 1,708)"] == labels.count(2)
    assert found.counts["text features of an utterance"] == 24
    (line,) = said(found)
    assert "dialogues of train 16 instead of 120" in line


@pytest.mark.parametrize(
    ("kind", "total"), [(Iemocap, 7433), (Meld, 13708)], ids=["iemocap", "meld"]
)
def test_published_counts_agree_with_themselves(kind: Kind, total: int, tmp_path: Path) -> None:
    (write_iemocap if kind is Iemocap else write_meld)(tmp_path, "fields")
    counts = dataset(kind).verify(tmp_path).counts
    expected = {
        what.partition(" (")[0]: int(what.partition("expected ")[2].rstrip(")").replace(",", ""))
        for what in counts
        if "expected" in what
    }
    for beginning in ("utterances of", "emotion"):
        named = [n for what, n in expected.items() if what.startswith(beginning)]
        in_test = [n for what, n in expected.items() if what.endswith(" in test")]
        assert sum(named) - (sum(in_test) if beginning == "emotion" else 0) == total
    if kind is Meld:
        assert sum(in_test) == expected["utterances of test"] == 2610


# -- the cache -------------------------------------------------------------------------------------


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_meld(tmp_path, "folders")
    contents = []
    for name in ("one", "two"):
        dataset(Meld).prepare(tmp_path, tmp_path / name, quiet)
        contents.append((tmp_path / name / "utterances.npz").read_bytes())
    assert contents[0] == contents[1]


def test_a_run_without_a_cache_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `mmbench data prepare meld --source DIR`"):
        again(Meld, tmp_path, "seven")


def test_a_damaged_cache_or_that_of_another_dataset_is_refused(tmp_path: Path) -> None:
    write_meld(tmp_path, "fields")
    dataset(Meld).prepare(tmp_path, tmp_path / "cache", quiet)
    with pytest.raises(DataError, match="holds 'meld', not 'iemocap'"):
        again(Iemocap, tmp_path / "cache", "six")
    path = tmp_path / "cache" / "utterances.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged; run `mmbench data prepare meld"):
        again(Meld, tmp_path / "cache", "seven")
    path.write_bytes(content[:1000])
    with pytest.raises(DataError, match=r"is cut.*; run `mmbench data prepare meld"):
        again(Meld, tmp_path / "cache", "seven")


def test_a_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(path: Path, **arrays: object) -> None:
        path.write_bytes(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    write_meld(tmp_path, "fields")
    monkeypatch.setattr(np, "savez", fill)
    with pytest.raises(DataError, match="no space left; free some"):
        dataset(Meld).prepare(tmp_path, tmp_path / "cache", quiet)
    assert not [*(tmp_path / "cache").iterdir()]


# -- from files to a result ------------------------------------------------------------------------


def test_from_files_to_a_trained_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "cache"))
    write_iemocap(tmp_path / "files", "folders", dialogues_per_session=4)
    source = ["--source", str(tmp_path / "files")]
    assert main(["data", "verify", "iemocap", *source]) == 0
    assert main(["data", "prepare", "iemocap", *source]) == 0
    run = ["run", "--dataset", "iemocap", "--method", "joint", "--results", str(tmp_path / "runs")]
    capfd.readouterr()
    assert main([*run, "-t", "epochs=4", "-t", "lr=0.005", "-t", "batch_size=16"]) == 0
    out = capfd.readouterr().out
    accuracy = float(out.partition("test accuracy ")[2].partition(" %")[0])
    assert accuracy > 50  # one in six by chance

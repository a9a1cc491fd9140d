"""AV-Digits: preparing, verifying and loading, on generated files and on the real ones."""

import csv
import gzip
import json
import os
import shutil
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from mmbench.data.dataset import Splits
from mmbench.data.digit_files import NAMES, ImageSet, survey
from mmbench.data.digit_pairs import draw_pairs, read_pairs
from mmbench.data.frontends import as_waveform
from mmbench.datasets.avdigits import BANDS, AVDigits
from mmbench.errors import DataError, RequestError
from mmbench.options import validated


def dataset(**options: Any) -> AVDigits:
    return AVDigits(validated(AVDigits.Config, options, "avdigits"))


def quiet(done: int, total: int, what: str) -> None:
    """Progress that nobody looks at."""


def write_mnist(folder: Path, name: str, labels: np.ndarray, packed: bool) -> None:
    """Write an image set whose every image holds its own number, so that it can be told."""
    images = np.zeros((len(labels), 28, 28), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(len(labels)) % 256, np.arange(len(labels)) // 256
    images[:, 5:9, 5:9] = (20 * labels)[:, None, None]
    contents = {
        "images-idx3-ubyte": struct.pack(">BBBBIII", 0, 0, 8, 3, len(labels), 28, 28)
        + images.tobytes(),
        "labels-idx1-ubyte": struct.pack(">BBBBI", 0, 0, 8, 1, len(labels)) + labels.tobytes(),
    }
    for ending, content in contents.items():
        path = folder / f"{name}-{ending}{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content, 1) if packed else content)


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: 3,000 short recordings in a clone, packed and unpacked MNIST."""
    source = tmp_path_factory.mktemp("generated")
    clone = source / "free-spoken-digit-dataset" / "recordings"
    clone.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        samples = rng.integers(-3000, 3000, 300 + number % 7, dtype=np.int16)
        wavfile.write(clone / f"{name}.wav", 8000, samples)
    (source / "mnist").mkdir()
    write_mnist(source / "mnist", "t10k", rng.permutation(np.arange(1000) % 10).astype("u1"), True)
    write_mnist(
        source / "mnist", "train", rng.permutation(np.arange(2500) % 10).astype("u1"), False
    )
    return source


@pytest.fixture(scope="session")
def prepared(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("prepared")
    assert "3000 pairs" in dataset().prepare(generated, cache, quiet)
    return cache


@pytest.fixture
def copy(generated: Path, tmp_path: Path) -> Path:
    """The generated folder again, to be damaged; files are to be replaced, not written into."""
    place = tmp_path / "source"
    shutil.copytree(generated, place, copy_function=os.link)
    return place


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.fixture(scope="session")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real recordings as WAV files again, with MNIST and the pairing."""
    archive = shared_data / "fsdd" / "fsdd.npz"
    if not archive.exists():
        pytest.skip(f"no recordings at {archive}")
    source = tmp_path_factory.mktemp("real")
    (source / "recordings").mkdir()
    with np.load(archive) as data:
        samples, offsets, names = data["samples"], data["offsets"], data["names"]
    for i, name in enumerate(names):
        recording = samples[offsets[i] : offsets[i + 1]]
        wavfile.write(source / "recordings" / f"{name}.wav", 8000, recording)
    (source / "mnist").mkdir()
    for path in (shared_data / "mnist").glob("*.gz"):
        shutil.copy(path, source / "mnist")
    shutil.copy(shared_data / "av-digits" / "pairs.csv", source)
    return source


def everything(splits: Splits, m: str) -> dict[str, torch.Tensor]:
    return {
        str(row_id): x
        for part in splits.named().values()
        for row_id, x in zip(
            part.ids, part.inputs[m].batch(torch.arange(len(part)), None), strict=True
        )
    }


def test_protocols_divide_by_speaker_or_by_index(prepared: Path) -> None:
    by_speaker = dataset(cache=str(prepared), seconds=0.1).load("speaker", 0)
    by_speaker.check("avdigits")
    groups = {
        name: set(part.groups)
        for name, part in by_speaker.named().items()
        if part.groups is not None
    }
    assert groups["test"] == {"theo"}
    assert groups["val"] == {"george"}
    assert groups["train"] == {"jackson", "nicolas", "yweweler", "lucas"}
    official = dataset(cache=str(prepared), seconds=0.1).load("official", 0)
    official.check("avdigits")
    for name, indices in {"test": range(5), "val": range(5, 10), "train": range(10, 50)}.items():
        found = Counter(int(row.split("_")[2]) for row in official.named()[name].ids)
        assert found == Counter(dict.fromkeys(indices, 60))
    assert any("shared" in note for note in official.notes)
    assert dataset().protocols[0] == "speaker"


def test_labels_are_the_digits_of_the_ids_and_of_the_images(prepared: Path) -> None:
    splits = dataset(cache=str(prepared), seconds=0.1).load("official", 0)
    for part in splits.named().values():
        assert part.y.tolist() == [int(row[0]) for row in part.ids]
        pixels = part.inputs["image"].batch(torch.arange(len(part)), None)
        assert pixels.shape == (len(part), 1, 28, 28)
        brightness = pixels[:, 0, 6, 6]
        assert all(len(set(brightness[part.y == digit].tolist())) == 1 for digit in range(10))


def test_inputs_are_standardised_by_the_training_rows(prepared: Path) -> None:
    splits = dataset(cache=str(prepared)).load("speaker", 0)
    for m, modality in splits.modalities.items():
        x = splits.train.inputs[m].batch(torch.arange(2000), None)
        assert x.shape == (2000, *modality.shape)
        assert float(x.mean()) == pytest.approx(0, abs=1e-4)
        assert float(x.std()) == pytest.approx(1, abs=1e-3)
    assert splits.modalities["audio"].kind == "spectrogram"
    assert splits.modalities["audio"].stored == "waveform"
    assert splits.modalities["audio"].shape[1] == BANDS


def test_recordings_are_cut_or_filled_up_to_the_length_asked_for(prepared: Path) -> None:
    short = dataset(cache=str(prepared), seconds=0.25).load("speaker", 0).modalities["audio"]
    long = dataset(cache=str(prepared), seconds=1.5).load("speaker", 0).modalities["audio"]
    assert short.shape[2] < long.shape[2]


def test_noise_is_fixed_per_row_whatever_the_split(prepared: Path) -> None:
    options = {"cache": str(prepared), "seconds": 0.1, "image_noise": 1.5, "audio_noise": 0.5}
    clean = dataset(cache=str(prepared), seconds=0.1).load("speaker", 0)
    noisy = dataset(**options).load("speaker", 0)
    again = dataset(**options).load("speaker", 0)
    other_split = dataset(**options).load("official", 0)
    other_seed = dataset(**options).load("speaker", 1)
    moved_from = dataset(cache=str(prepared), seconds=0.1).load("official", 0)
    for m, deviation in {"image": 1.5, "audio": 0.5}.items():
        before, after = everything(clean, m), everything(noisy, m)
        noise = torch.stack([after[row] - before[row] for row in before])
        assert float(noise.std()) == pytest.approx(deviation, rel=0.01)
        assert float(noise.mean()) == pytest.approx(0, abs=0.01)
        assert not torch.allclose(noise[0], noise[1])
        rows = torch.tensor([3, 1])
        source = noisy.train.inputs[m]
        assert torch.equal(source.batch(rows, None), source.batch(rows, torch.Generator()))
        same, different = everything(again, m), everything(other_seed, m)
        for row in list(before)[::500]:
            assert torch.equal(same[row], after[row])
            assert not torch.allclose(different[row], after[row])
    # Pixels are scaled by other training rows in the other split; the noise is the same.
    parts = (other_split, moved_from, noisy, clean)
    moved, base, after, before = (everything(splits, "image") for splits in parts)
    for row in ("3_theo_7", "5_jackson_20"):
        noise = after[row] - before[row]
        torch.testing.assert_close(moved[row] - base[row], noise, atol=1e-5, rtol=0)


def test_the_fingerprint_tells_settings_apart(prepared: Path) -> None:
    choices: list[dict[str, Any]] = [
        {},
        {"image_noise": 1.5},
        {"image_noise": 2.5},
        {"audio_noise": 1.5},
        {"seconds": 0.2},
    ]
    prints = [
        dataset(cache=str(prepared), **{"seconds": 0.1, **chosen})
        .load("speaker", seed)
        .fingerprints()["data"]
        for chosen in choices
        for seed in (0, 1)
    ]
    # Without noise a seed changes nothing.
    assert len(set(prints)) == 8
    assert prints[0] == prints[1]


def test_the_drawn_pairing_follows_its_rule(generated: Path) -> None:
    found = survey(generated)
    assert found.problems == ()
    pairs = draw_pairs(NAMES, found.sets)
    assert pairs == draw_pairs(list(reversed(NAMES)), found.sets)
    assert {pair.id for pair in pairs} == set(NAMES)
    assert len({(pair.mnist_set, pair.mnist_index) for pair in pairs}) == 3000
    for pair in pairs:
        assert found.sets[pair.mnist_set].labels[pair.mnist_index] == pair.label
        tested = int(pair.id.split("_")[2]) < 5 or pair.speaker == "theo"
        if tested:
            assert pair.mnist_set == "t10k"
    # 750 of 1,000 t10k images go to tested rows; the 2,250 others fit into the training set.
    assert Counter(pair.mnist_set for pair in pairs) == {"t10k": 750, "train": 2250}


def test_too_few_images_are_refused(copy: Path) -> None:
    for path in (copy / "mnist").glob("train-*"):
        path.unlink()
    with pytest.raises(DataError, match=r"too few images of digit 0.*add the MNIST training set"):
        dataset().prepare(copy, copy / "cache", quiet)


DAMAGES: dict[str, tuple[bytes, str]] = {
    "0_theo_1.wav": (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer"),
    "4_lucas_9.wav": (b"<html>404</html>", "is a web page"),
    "5_george_20.wav": (b"", "is empty"),
    "6_jackson_30.wav": (b"RIFF", "is cut"),
}


def test_verify_names_every_damaged_file_and_prepare_leaves_few_out(
    copy: Path, tmp_path: Path
) -> None:
    folder = copy / "free-spoken-digit-dataset" / "recordings"
    for name, (content, _) in DAMAGES.items():
        replace(folder / name, content)
    (folder / "9_nicolas_49.wav").unlink()
    (folder / "7_lucas_3.wav").unlink()
    wavfile.write(folder / "7_lucas_3.wav", 16_000, np.arange(50, dtype=np.int16))
    (folder / "notes.wav").write_bytes(b"?")
    verification = dataset().verify(copy)
    found = {Path(problem.path).name: problem.what for problem in verification.problems}
    expected = {name: what for name, (_, what) in DAMAGES.items()} | {
        "9_nicolas_49.wav": "does not exist",
        "7_lucas_3.wav": "has 16000 Hz, not 8000",
        "notes.wav": "is not named",
    }
    assert set(found) == set(expected)
    assert all(what in found[name] for name, what in expected.items())
    assert verification.usable
    assert verification.counts["recordings"] == 2994
    assert verification.counts["recordings of lucas"] == 498
    assert verification.counts["recordings of digit 9"] == 299
    assert verification.counts["images in train"] == 2500
    cache = tmp_path / "cache"
    said = dataset().prepare(copy, cache, quiet)
    assert "2994 pairs" in said
    assert "9_nicolas_49" in said
    splits = dataset(cache=str(cache)).load("official", 0)
    assert sum(len(part) for part in splits.named().values()) == 2994
    assert any("6 recordings" in note for note in splits.notes)


def test_too_many_missing_recordings_are_refused(copy: Path, tmp_path: Path) -> None:
    for path in sorted((copy / "free-spoken-digit-dataset" / "recordings").glob("*.wav"))[:31]:
        path.unlink()
    with pytest.raises(
        DataError, match=r"31 of 3000 .* the first is 0_george_0; see `mmbench data"
    ):
        dataset().prepare(copy, tmp_path / "cache", quiet)
    assert not (tmp_path / "cache").exists()
    assert not dataset().verify(copy).usable


def test_an_empty_folder_is_told_what_to_get(tmp_path: Path) -> None:
    verification = dataset().verify(tmp_path)
    assert not verification.usable
    assert any("free-spoken-digit-dataset" in problem.mend for problem in verification.problems)
    with pytest.raises(DataError, match="no sound MNIST set 't10k'"):
        dataset().prepare(tmp_path, tmp_path / "cache", quiet)
    with pytest.raises(DataError, match="is not a folder"):
        dataset().verify(tmp_path / "nowhere")


@pytest.mark.parametrize("ending", ["images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"])
def test_a_damaged_image_set_is_named_and_refused(copy: Path, tmp_path: Path, ending: str) -> None:
    path = copy / "mnist" / f"t10k-{ending}"
    replace(path, path.read_bytes()[:-20])
    verification = dataset().verify(copy)
    assert [Path(problem.path).name for problem in verification.problems][:1] == [path.name]
    assert not verification.usable
    with pytest.raises(DataError, match="no sound MNIST set 't10k'"):
        dataset().prepare(copy, tmp_path / "cache", quiet)


@pytest.fixture(scope="session")
def sets(generated: Path) -> dict[str, ImageSet]:
    return survey(generated).sets


def written_pairs(
    path: Path, sets: dict[str, ImageSet], changed: dict[str, str], drop: str | None = None
) -> Path:
    """Write the drawn pairing, the second row changed."""
    rows = [
        {
            "fsdd_name": pair.id,
            "label": str(pair.label),
            "speaker": pair.speaker,
            "index": pair.id.split("_")[2],
            "mnist_set": pair.mnist_set,
            "mnist_index": str(pair.mnist_index),
            "split": pair.official,
            "split_speaker": pair.by_speaker,
        }
        for pair in draw_pairs(NAMES, sets)
    ]
    rows[1] |= changed
    columns = [name for name in rows[0] if name != drop]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_written_pairing_is_read_back(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    path = written_pairs(tmp_path / "pairs.csv", sets, {})
    assert read_pairs(path, sets) == draw_pairs(NAMES, sets)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mnist_set": "train60k"}, "MNIST set 'train60k' was not found"),
        ({"mnist_index": "70000"}, "image 70000 is not in"),
        ({"mnist_index": "x"}, "invalid literal"),
        ({"label": "3"}, "different digits"),
        ({"fsdd_name": "zero"}, "'zero' is not the name of a recording"),
        ({"fsdd_name": "0_george_0"}, "used twice"),
        ({"split": "testing"}, "split is 'testing'"),
    ],
)
def test_a_wrong_pair_is_refused_by_its_line(
    sets: dict[str, ImageSet], tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    path = written_pairs(tmp_path / "pairs.csv", sets, changed)
    with pytest.raises(DataError, match=r"pairs\.csv, line 3: ") as raised:
        read_pairs(path, sets)
    assert message in str(raised.value)


def test_a_pairing_without_a_column_or_a_row_is_refused(
    copy: Path, sets: dict[str, ImageSet], tmp_path: Path
) -> None:
    header = written_pairs(copy / "pairs.csv", sets, {}).read_text().splitlines()[0]
    (copy / "pairs.csv").write_text(header + "\n")
    with pytest.raises(DataError, match="holds no pairs"):
        dataset().prepare(copy, tmp_path / "cache", quiet)
    written_pairs(copy / "pairs.csv", sets, {}, drop="mnist_set")
    with pytest.raises(DataError, match="column mnist_set is missing"):
        dataset().prepare(copy, tmp_path / "cache", quiet)
    verification = dataset().verify(copy)
    assert not verification.usable
    assert "column mnist_set is missing" in verification.problems[-1].what


def test_data_that_are_not_prepared_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mmbench data prepare avdigits --source DIR"):
        dataset(cache=str(tmp_path)).load("speaker", 0)


def test_the_cache_is_found_without_being_named(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path))
    (tmp_path / "avdigits").symlink_to(prepared)
    assert len(dataset().load("speaker", 0).train) == 2000


def test_a_damaged_cache_is_refused(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(prepared, folder)
    chosen = dataset(cache=str(folder))
    whole = (folder / "samples.npy").read_bytes()
    (folder / "samples.npy").write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"damaged.*prepare avdigits"):
        chosen.load("speaker", 0)
    (folder / "samples.npy").write_bytes(whole)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"pairs": manifest["pairs"][1:]}))
    with pytest.raises(DataError, match="do not belong together"):
        chosen.load("speaker", 0)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(DataError, match="another version"):
        chosen.load("speaker", 0)


def test_unknown_protocols_and_options_are_refused(prepared: Path) -> None:
    with pytest.raises(RequestError, match="unknown protocol of avdigits 'speakers'"):
        dataset(cache=str(prepared)).load("speakers", 0)
    with pytest.raises(RequestError, match="image_noise"):
        dataset(image_noise=-1)


def test_the_real_files_give_the_given_pairing(
    real: Path, shared_data: Path, tmp_path: Path
) -> None:
    assert not dataset().verify(real).problems
    dataset().prepare(real, tmp_path, quiet)
    chosen = dataset(cache=str(tmp_path))
    with (shared_data / "av-digits" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    with np.load(shared_data / "fsdd" / "fsdd.npz") as data:
        names, samples, offsets = data["names"].tolist(), data["samples"], data["offsets"]
    for protocol, column in {"speaker": "split_speaker", "official": "split"}.items():
        splits = chosen.load(protocol, 0)
        for name, part in splits.named().items():
            assert set(part.ids) == {row["fsdd_name"] for row in rows if row[column] == name}
    stored: Any = splits.train.inputs["audio"]
    for place in (0, 999):
        i = names.index(splits.train.ids[place])
        recording = samples[offsets[i] : offsets[i + 1]]
        kept = min(len(recording), stored.tensor.shape[1])
        np.testing.assert_array_equal(stored.tensor[place, :kept].numpy(), recording[:kept])
        assert not stored.tensor[place, kept:].any()
    assert float(as_waveform(stored.tensor).abs().max()) <= 1


def test_the_real_files_can_be_paired_without_a_list(real: Path) -> None:
    found = survey(real)
    pairs = draw_pairs(NAMES, found.sets)
    assert len({(pair.mnist_set, pair.mnist_index) for pair in pairs}) == 3000

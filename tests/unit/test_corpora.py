"""Generated corpora: the layouts and names of the real ones, real files, a signal that is known."""

import colorsys
import csv
import re
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.io import wavfile

from mmbench.data.class_names import AVE, KINETICS_SOUNDS
from mmbench.errors import RequestError
from mmbench.testing.clips import HIGHEST_HZ, LOWEST_HZ, Look, write_video
from mmbench.testing.corpora import (
    CORPORA,
    EMOTIONS,
    VGGSOUND,
    Signal,
    ave,
    cremad,
    kinetics_sounds,
    vggsound,
)

SHORT = Look(seconds=0.4, height=32, width=48, fps=10, rate=16_000)


def first_frame(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def heard_class(samples: np.ndarray, rate: int, classes: int) -> int:
    """Return the class whose pitch is nearest to the loudest frequency, on a scale of ratios."""
    spectrum = np.abs(np.fft.rfft(samples.astype(float) * np.hanning(len(samples))))
    loudest = np.fft.rfftfreq(len(samples), 1 / rate)[spectrum.argmax()]
    place = np.log(loudest / LOWEST_HZ) / np.log(HIGHEST_HZ / LOWEST_HZ)
    return round(float(place) * (classes - 1))


def seen_class(frame: np.ndarray, classes: int) -> int:
    """Return the class whose hue is nearest to that of the mean colour."""
    hue = colorsys.rgb_to_hsv(*(frame.reshape(-1, 3).mean(0) / 255))[0]
    return round(hue * classes) % classes


def test_a_cremad_corpus_has_the_names_files_and_tables_of_a_clone(tmp_path: Path) -> None:
    clips = cremad(tmp_path, 24, look=SHORT)
    form = r"1(0[0-8]\d|09[01])_(IEO_(NEU_XX|[A-Z]{3}_(LO|MD|HI))|(?!IEO)[A-Z]{3}_[A-Z]{3}_XX)"
    assert all(re.fullmatch(form, clip.id) for clip in clips)
    assert Counter(clip.label for clip in clips) == dict.fromkeys(EMOTIONS, 4)
    assert all(clip.id.split("_")[2] == clip.label for clip in clips)
    assert len({clip.id[:4] for clip in clips}) == 24
    names = [clip.id for clip in clips]
    assert sorted(p.stem for p in (tmp_path / "VideoFlash").iterdir()) == names
    assert sorted(p.stem for p in (tmp_path / "AudioWAV").iterdir()) == names
    with (tmp_path / "processedResults" / "summaryTable.csv").open(encoding="utf-8") as file:
        assert [row["FileName"] for row in csv.DictReader(file)] == names


def test_all_names_of_cremad_are_to_be_had_and_no_more(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="7,442"):
        cremad(tmp_path, 7_443)


def test_cremad_files_are_flv_with_sound_and_pcm_wav(tmp_path: Path) -> None:
    clip = cremad(tmp_path, 1, look=SHORT)[0]
    with av.open(str(clip.video)) as container:
        assert container.format.name == "flv"
        assert container.streams.video[0].codec_context.name == "flv"
        assert container.streams.audio[0].codec_context.name.startswith("mp3")
        assert [f.to_ndarray().shape for f in container.decode(video=0)] == [(48, 48)] * 4
    rate, samples = wavfile.read(clip.audio)
    assert (rate, samples.shape) == (16_000, (6_400,))
    assert samples.dtype == np.int16


def test_kinetics_annotations_name_every_file_and_also_other_classes(tmp_path: Path) -> None:
    clips = kinetics_sounds(tmp_path, 96, look=SHORT)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.mp4")}
    named = set()
    for split, said in {"train": "train", "val": "validate", "test": "test"}.items():
        with (tmp_path / "annotations" / f"{split}.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert {row["split"] for row in rows} == {said}
        assert {"abseiling", "zumba"} < {row["label"] for row in rows}
        for row in rows:
            start, end = int(row["time_start"]), int(row["time_end"])
            assert end == start + 10
            assert re.fullmatch(r"[\w-]{11}", row["youtube_id"])
            if row["label"].replace(" ", "_") in KINETICS_SOUNDS:
                name = f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"
                named.add(f"{split}/{row['label']}/{name}")
    assert named == files
    assert len(files) == 96
    for split in ("train", "val", "test"):
        assert {c.label for c in clips if c.split == split} == set(KINETICS_SOUNDS)


def test_ave_lists_divide_the_annotations(tmp_path: Path) -> None:
    slow = Look(seconds=4, height=16, width=16, fps=2, rate=8_000)
    clips = ave(tmp_path, 90, look=slow, in_two_splits=3)
    inner = tmp_path / "AVE_Dataset"
    header, *everything = (inner / "Annotations.txt").read_text().splitlines()
    assert header == "Category&VideoID&Quality&StartTime&EndTime"
    lists = {s: (inner / f"{s}Set.txt").read_text().splitlines() for s in ("train", "val", "test")}
    assert sorted(everything) == sorted(line for lines in lists.values() for line in lines)
    ids = {split: {line.split("&")[1] for line in lines} for split, lines in lists.items()}
    assert len(ids["train"] & ids["test"]) == 3
    assert not ids["val"] & (ids["train"] | ids["test"])
    assert set.union(*ids.values()) == {p.stem for p in (inner / "AVE").iterdir()}
    assert {line.split("&")[0] for line in lists["test"]} == set(AVE)
    for line in everything:
        start, end = map(int, line.split("&")[3:])
        assert 0 <= start < end == 4
    with av.open(str(clips[0].video)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
        assert container.streams.audio[0].codec_context.channels == 2


def test_the_vggsound_list_names_every_file_and_quotes_labels_with_commas(tmp_path: Path) -> None:
    clips = vggsound(tmp_path, 40, look=SHORT)
    text = (tmp_path / "vggsound.csv").read_text(encoding="utf-8")
    assert ',"donkey, ass braying",train\n' in text
    rows = list(csv.reader(text.splitlines()))
    assert rows == sorted(rows)
    assert {row[2] for row in rows if row[3] == "test"} == set(VGGSOUND)
    assert {row[3] for row in rows} == {"train", "test"}
    named = {f"{youtube}_{int(start):06d}.mp4" for youtube, start, _, _ in rows}
    files = list(tmp_path.rglob("*.mp4"))
    assert {path.name for path in files} == named
    assert len(files) == 40
    (folder,) = {path.parent.relative_to(tmp_path).as_posix() for path in files}
    assert folder == "scratch/shared/beegfs/hchen/train_data/VGGSound_final/video"
    labels = {f"{row[0]}_{int(row[1]):06d}": row[2] for row in rows}
    assert all(labels[clip.id] == clip.label for clip in clips)


def test_sound_and_picture_show_the_classes_that_they_are_said_to(tmp_path: Path) -> None:
    clips = cremad(tmp_path, 24, signal=Signal(sound=0.5, picture=0.5), look=SHORT)
    for clip in clips:
        rate, samples = wavfile.read(clip.audio)
        assert heard_class(samples, rate, 6) == clip.heard
        assert seen_class(first_frame(clip.video), 6) == clip.seen


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_the_strength_of_a_signal_is_chosen_for_each_modality(
    strength: float, tmp_path: Path
) -> None:
    clips = cremad(tmp_path, 36, signal=Signal(strength, 1 - strength), look=SHORT)
    own = [EMOTIONS.index(clip.label) for clip in clips]
    heard = sum(c.heard == y for c, y in zip(clips, own, strict=True))
    seen = sum(c.seen == y for c, y in zip(clips, own, strict=True))
    full, none = (heard, seen) if strength == 1 else (seen, heard)
    assert full == 36
    assert none < 18  # 6 expected by chance; 18 lie 5 standard deviations above
    assert Signal.best_accuracy(0.0, 6) == pytest.approx(1 / 6)
    assert Signal.best_accuracy(0.4, 5) == pytest.approx(0.4 + 0.6 / 5)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_a_seed_gives_the_same_bytes_and_another_seed_others(name: str, tmp_path: Path) -> None:
    count = 12 if name == "cremad" else 93
    tiny = Look(seconds=0.2, height=16, width=16, fps=5, rate=8_000)
    for place, seed in {"a": 1, "b": 1, "c": 2}.items():
        CORPORA[name](tmp_path / place, count, seed=seed, look=tiny)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a").keys() != contents(tmp_path / "c").keys()


def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    cremad(tmp_path / "one", 20, look=SHORT)
    cremad(tmp_path / "two", 20, look=SHORT, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_too_few_clips_for_the_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="ask for 93"):
        kinetics_sounds(tmp_path, 92)


def test_a_video_without_sound_has_no_sound_stream(tmp_path: Path) -> None:
    frames = np.zeros((3, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "mute.mp4", frames, 5, None, 16_000)
    with av.open(str(tmp_path / "mute.mp4")) as container:
        assert not container.streams.audio
        assert len(list(container.decode(video=0))) == 3

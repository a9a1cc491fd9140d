"""UPMC Food-101: 90,688 pictures of 101 dishes, each with the title of the web page it is from.

Read from the unpacked ``UPMC_Food101.tar.gz``: pictures from
``images/{train,test}/<class>/<class>_<n>.jpg``, titles from ``texts/train_titles.csv`` and
``texts/test_titles.csv``, rows of picture, title and class with or without a header.

``official`` trains on the rows of the first list and tests on those of the second; validation is
carved from train, class by class, as there is none (MMBT takes 5,000 rows) and no groups to keep
together. Classes are numbered by name.

Some rows are no CSV: the title of ``breakfast_burrito_730.jpg`` opens a quote that is closed only
rows later, so that pandas takes all of these for one title, and they name ``.txt`` files. Here each
is a row of its own (:mod:`mmbench.data.titles`) and is named by `mmbench data verify`, so
there may be a few rows more than pandas finds.

Titles become words, lower-cased, of a vocabulary of the training rows alone, read by a small
Transformer from scratch; pictures are read by ResNet-18 from scratch. Works on these data mostly
use pretrained encoders: ``text_encoder`` takes one for the titles. BalanceBenchmark rotates its
pictures by up to 30 degrees and gives BERT no attention mask. Training settings are those of MLA
(CVPR 2024), which works on balanced learning share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import model_validator

from mmbench.data.dataset import DatasetInfo, Modality, Problem, Rows
from mmbench.data.files import require_sound
from mmbench.data.media.cache import Cache
from mmbench.data.media.dataset import (
    ClipDataset,
    Described,
    Division,
    Inputs,
    Listed,
    Listing,
    PictureOptions,
)
from mmbench.data.media.manifest import Clip, MediaRecipe
from mmbench.data.media.sources import StillSource
from mmbench.data.pretrained_text import PretrainedTokens, find_model
from mmbench.data.text import Vocabulary
from mmbench.data.titles import Title, read_titles
from mmbench.errors import DataError
from mmbench.options import option, refuse_unused

OFFICIAL = {"train": 67_972, "test": 22_716}
"""Rows of each list as published, as pandas counts them."""
CLASSES = 101
ARCHIVE = "UPMC_Food101.tar.gz (visiir.lip6.fr, or a copy of it)"


class Food101(ClipDataset):
    """UPMC Food-101 with picture and title."""

    info = DatasetInfo(
        title="UPMC Food-101: dishes with titles",
        summary="90,688 pictures of 101 dishes with the titles of their web pages; text dominates",
        licence="none stated; pictures and titles are those of web pages, for research",
        citation="X. Wang et al., Recipe recognition with large multimodal food dataset, ICME "
        "Workshops 2015",
        modalities={
            "image": "the picture, 224 pixels square unless asked otherwise",
            "text": "the first 40 words of the title, or a pretrained model's tokens of it",
        },
        protocols={
            "official": "67,972/22,716 rows as listed; validation is carved from train by class",
        },
        files="images/{train,test}/<class>/*.jpg and texts/{train,test}_titles.csv, as in "
        "UPMC_Food101.tar.gz (visiir.lip6.fr)",
    )
    kept = MediaRecipe(fps=0, short_side=256, seconds=0)

    class Config(PictureOptions):
        allow_missing: bool = option(
            False, "go on when more than one picture in a hundred is missing or damaged"
        )
        length: int = option(40, "words or tokens of a title that are read", ge=1)
        least_count: int = option(
            2, "times that a word occurs in the training titles to get an id of its own", ge=1
        )
        vocabulary: int = option(30_000, "most words that get an id of their own", ge=1)
        text_encoder: str | None = option(
            None,
            "pretrained model to read titles with: the folder of one that transformers can load, "
            "or a name in the local cache of Hugging Face; words and a small Transformer unless "
            "given",
        )

        @model_validator(mode="after")
        def _words_are_used(self) -> Food101.Config:
            if self.text_encoder is not None:
                refuse_unused(
                    self,
                    ("least_count", "vocabulary"),
                    "beside text_encoder, which has a vocabulary of its own",
                )
            return self

    config: Config

    def listing(self, source: Path) -> Listing:
        root = find_root(source)
        content: dict[str, bytes] = {}
        for path in (root / "texts" / list_name(split) for split in OFFICIAL):
            require_sound(path)
            content[path.name] = path.read_bytes()
        lists = read_lists(content, root / "texts")
        return Listing(root, lists.clips, tuple(_problems(root, lists)), content)

    def divide(
        self, protocol: str, clips: Sequence[Listed], lists: Mapping[str, bytes]
    ) -> Division:
        train, test = (
            frozenset(clip.id for clip in clips if clip.split == split) for split in OFFICIAL
        )
        return Division(train, test)

    def _inputs(self, cache: Cache, places: Mapping[str, np.ndarray]) -> Inputs:
        lists, rows = read_lists(cache.lists()), cache.manifest.rows
        titles = {name: [lists.titles[rows[i].id] for i in part] for name, part in places.items()}
        known, spec, said = self._known(titles["train"])
        inputs: dict[str, dict[str, Described]] = {
            name: {
                "image": StillSource(cache, part, 1, "first", self.config.size),
                "text": Titles(titles[name], known, spec),
            }
            for name, part in places.items()
        }
        return Inputs(inputs, (*_notes(lists), *said))

    def _known(
        self, titles: Sequence[str]
    ) -> tuple[Vocabulary | PretrainedTokens, Modality, tuple[str, ...]]:
        """Return the tokens there are, by the titles trained on; what an encoder receives; and what
        tables have to say of it."""
        shape, name = (self.config.length,), self.config.text_encoder
        if name is None:
            words = Vocabulary.of(titles, self.config.least_count, self.config.vocabulary)
            return words, Modality("tokens", shape, vocabulary=len(words)), ()
        folder = find_model(name)
        pretrained = PretrainedTokens(folder)
        spec = Modality(
            "tokens",
            shape,
            encoder="pretrained_text",
            vocabulary=len(pretrained),
            weights=str(folder),
        )
        said = (
            f"titles are tokens of the pretrained {name.rstrip('/').rpartition('/')[2]}, whose "
            f"weights have the SHA-256 {pretrained.weights_sha256[:16]}..."
        )
        return pretrained, spec, (said,)


class Titles(Rows):
    """The titles of a split as tokens ``(B, length)`` int64."""

    def __init__(
        self, titles: Sequence[str], known: Vocabulary | PretrainedTokens, spec: Modality
    ) -> None:
        (length,) = spec.shape
        super().__init__(known.encode(titles, length), transform_name=known.fingerprint())
        self.spec = spec

    def modality(self) -> Modality:
        return self.spec


# -- lists -----------------------------------------------------------------------------------------


def find_root(source: Path) -> Path:
    """Return the folder that holds images and texts: the one given, or one in it."""
    wanted = "images/{train,test} and texts/{train,test}_titles.csv"
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give the one that holds {wanted}")
    places = [source, *sorted(place for place in source.iterdir() if place.is_dir())]
    for place in places:
        if (place / "images").is_dir() and (place / "texts").is_dir():
            return place
    if source.name in ("images", "texts"):
        raise DataError(f"{source} is a part of it; give the folder above it, {source.parent}")
    raise DataError(f"{source} holds no {wanted}; give the folder of the unpacked {ARCHIVE}")


@dataclass(frozen=True)
class Lists:
    """What both lists say."""

    clips: tuple[Clip, ...]
    titles: Mapping[str, str]
    """By the ids of clips; may be empty."""
    odd: Mapping[str, tuple[Problem, ...]]
    """By list, the rows that are not as they should be."""

    @property
    def counts(self) -> dict[str, int]:
        return {split: sum(clip.split == split for clip in self.clips) for split in OFFICIAL}

    def strange_counts(self) -> dict[str, int]:
        """Return the counts that are not those published; odd rows are among those that pandas does
        not count."""
        return {
            split: count
            for split, count in self.counts.items()
            if not OFFICIAL[split] <= count <= OFFICIAL[split] + len(self.odd[split])
        }


def read_lists(lists: Mapping[str, bytes], folder: Path = Path("texts")) -> Lists:
    """Return the rows of both lists, which lie in ``folder``. Raises :class:`DataError` as
    :func:`mmbench.data.titles.read_titles` does."""
    clips: list[Clip] = []
    titles: dict[str, str] = {}
    odd: dict[str, tuple[Problem, ...]] = {}
    for split in OFFICIAL:
        path = folder / list_name(split)
        lines: dict[str, int] = {}
        problems: list[Problem] = []
        for title in read_titles(lists[path.name], path):
            faults = title.faults
            if (before := lines.setdefault(title.name, title.line)) != title.line:
                faults = (f"is of {title.name}, as line {before} is, which counts",)
            else:
                clips.append(_clip(title, split))
                titles[clips[-1].id] = title.text
            if faults:
                what = ", and ".join(faults)
                problems.append(Problem(f"{path}, line {title.line}", what, "nothing to do"))
        odd[split] = tuple(problems)
    return Lists(tuple(clips), titles, odd)


def _clip(title: Title, split: str) -> Clip:
    picture = f"images/{split}/{title.label}/{title.name}.{title.ending}"
    return Clip(f"{split}/{title.name}", title.label, "", picture, audio=None, split=split)


def list_name(split: str) -> str:
    return f"{split}_titles.csv"


# -- what is to be said of them ----------------------------------------------------------------


def _problems(root: Path, lists: Lists) -> Iterator[Problem]:
    """Yield what is wrong with the lists, and pictures that no list names; files that lists name
    are judged elsewhere."""
    mend = f"get it from {ARCHIVE}, unless it is a list of your own"
    folder = root / "texts"
    for split, count in lists.strange_counts().items():
        what = f"lists {count:,} pictures, not {OFFICIAL[split]:,}"
        yield Problem(str(folder / list_name(split)), what, mend)
    classes = len({clip.label for clip in lists.clips})
    if classes != CLASSES:
        yield Problem(str(folder), f"lists {classes} classes, not {CLASSES}", mend)
    for problems in lists.odd.values():
        yield from problems
    for split in OFFICIAL:
        place = str(folder / list_name(split))
        for clip in lists.clips:
            if clip.split == split and not lists.titles[clip.id]:
                yield Problem(place, f"has no title of {clip.video}", "nothing to do")
    expected = {clip.video for clip in lists.clips}
    for path in sorted((root / "images").glob("*/*/*")):
        if path.is_file() and path.relative_to(root).as_posix() not in expected:
            mend = "nothing to do, unless a picture is missing"
            yield Problem(str(path), "is in no list", mend)


def _notes(lists: Lists) -> list[str]:
    """Return what a table has to say of the lists."""
    notes = []
    if lists.strange_counts():
        said = "/".join(f"{count:,}" for count in lists.counts.values())
        notes.append(f"lists of {said} rows, not the official ones")
    if odd := sum(map(len, lists.odd.values())):
        notes.append(f"{odd} rows of the lists are odd (`mmbench data verify`)")
    if empty := sum(not title for title in lists.titles.values()):
        notes.append(f"{empty} pictures have an empty title")
    return notes

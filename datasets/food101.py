"""UPMC Food-101: 90,688 pictures of 101 dishes, each with the title of the web page it is from.

Read from the unpacked ``UPMC_Food101.tar.gz``: pictures from
``images/{train,test}/<class>/<class>_<n>.jpg``, titles from ``texts/train_titles.csv`` and
``texts/test_titles.csv``, rows of picture, title and class with or without a header.

``official`` trains on the rows of the first list and tests on those of the second; validation is
carved from train, class by class, as there is none (MMBT takes 5,000 rows) and no groups to keep
together. Classes are numbered by name.

Some rows are no CSV: the title of ``breakfast_burrito_730.jpg`` opens a quote that is closed only
rows later, so that pandas takes all of these for one title, and they name ``.txt`` files. Here each
is a row of its own (:mod:`mmbench.data.pictures.titles`) and is named by `mmbench data verify`, so
there may be a few rows more than pandas finds.

Titles become words, lower-cased, of a vocabulary of the training rows alone, read by a small
Transformer from scratch; pictures are read by ResNet-18 from scratch. Works on these data mostly
use pretrained encoders: ``text_encoder`` takes one for the titles. BalanceBenchmark rotates its
pictures by up to 30 degrees and gives BERT no attention mask. Training settings are those of MLA
(CVPR 2024), which works on balanced learning share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import model_validator

from mmbench.data.dataset import (
    DatasetInfo,
    DecodedDataset,
    Modality,
    Problem,
    Progress,
    Rows,
    Source,
    Split,
    Splits,
    Verification,
)
from mmbench.data.files import cache_root
from mmbench.data.media.manifest import TOLERATED
from mmbench.data.pictures.cache import Cache, open_cache
from mmbench.data.pictures.manifest import Item, LeftOut, Manifest, Row
from mmbench.data.pictures.prepare import judged, prepare
from mmbench.data.pictures.sources import PictureSource
from mmbench.data.pictures.titles import Title, read_titles
from mmbench.data.pretrained_text import PretrainedTokens, find_model
from mmbench.data.splits import carve
from mmbench.data.text import Vocabulary
from mmbench.errors import DataError
from mmbench.options import Options, option, refuse_unused

OFFICIAL = {"train": 67_972, "test": 22_716}
"""Rows of each list as published, as pandas counts them."""
CLASSES = 101
SHORT_SIDE = 256
"""Pixels of the shorter side of a kept picture."""
ARCHIVE = "UPMC_Food101.tar.gz (visiir.lip6.fr, or a copy of it)"


class Food101(DecodedDataset):
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

    class Config(Options):
        size: int = option(224, "pixels of the square that a picture is made to", ge=32)
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
        short_side: int | None = option(
            None, "pixels of the shorter side of a kept picture; 256 unless given", ge=32
        )
        val_fraction: float = option(
            0.1, "share of the training rows that validation gets, by class", gt=0, lt=1
        )
        allow_missing: bool = option(
            False, "go on when more than one picture in a hundred is missing or damaged"
        )
        cache: str | None = option(
            None, "folder of the prepared data; one of the dataset's name in the cache unless given"
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

    def recipe(self, protocol: str) -> dict[str, object]:
        return {
            "epochs": 100,
            "batch_size": 64,
            "optimizer": "sgd",
            "lr": 1e-3,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "schedule": "step",
            "step_epochs": 70,
            "step_factor": 0.1,
        }

    # -- files -------------------------------------------------------------------------------------

    def prepare(
        self, source: Path, cache: Path, progress: Progress, workers: int | None = None
    ) -> str:
        root = find_root(source)
        listing = read_lists(root)
        manifest = prepare(
            self.name(),
            listing.items,
            root,
            self.config.short_side or SHORT_SIDE,
            cache,
            progress,
            workers,
            self.config.allow_missing,
            _notes(listing),
        )
        size = sum(row.pixel_bytes for row in manifest.rows)
        said = [f"{len(manifest.rows)} pictures with titles, {size / 1e6:.1f} MB in {cache}"]
        if manifest.left_out:
            first = manifest.left_out[0]
            said.append(f"{len(manifest.left_out)} left out, the first: {first.path} {first.what}")
        return "; ".join((*said, *manifest.notes))

    def verify(
        self, source: Path, progress: Progress | None = None, workers: int | None = None
    ) -> Verification:
        root = find_root(source)
        listing = read_lists(root)
        items = listing.items
        short_side = self.config.short_side or SHORT_SIDE
        found = judged(items, root, short_side, progress, workers)
        sound = [item for item in items if found[item.id].problem is None]
        expected, held = (Counter(item.label for item in part) for part in (items, sound))
        listed, usable = (Counter(item.split for item in part) for part in (items, sound))
        modes = Counter(found[item.id].mode for item in sound)
        counts = {
            f"pictures with titles (of {len(items)})": len(sound),
            **{f"{label} (of {expected[label]})": held[label] for label in sorted(expected)},
            f"official: train and val (of {listed['train']})": usable["train"],
            f"official: test (of {listed['test']})": usable["test"],
            **{f"{mode}, made RGB": modes[mode] for mode in sorted(modes) if mode != "RGB"},
        }
        problems = [
            *_problems(root, listing),
            *(judgement.problem for judgement in found.values() if judgement.problem is not None),
        ]
        unusable = len(items) - len(sound)
        tolerable = self.config.allow_missing or unusable <= TOLERATED * len(items)
        return Verification(counts, tuple(problems), bool(sound) and tolerable)

    # -- loading -----------------------------------------------------------------------------------

    def load(self, protocol: str, seed: int) -> Splits:
        """Return the splits; ``seed`` draws the rows of validation."""
        self.check_protocol(protocol)
        cache = self._opened()
        manifest = cache.manifest
        listed: list[Row | LeftOut] = [*manifest.rows, *manifest.left_out]
        classes = tuple(sorted({part.label for part in listed}))
        labels = np.array([classes.index(row.label) for row in manifest.rows])
        lost = self._count_left_out(listed, manifest)
        places = {name: self._rows_of(manifest, name) for name in OFFICIAL}
        held = carve(
            labels[places["train"]],
            None,
            self.config.val_fraction,
            *(seed, self.name(), protocol, "val"),
        )
        places["val"] = places["train"][held]
        places["train"] = np.delete(places["train"], held)
        titles = {name: [manifest.rows[i].text for i in part] for name, part in places.items()}
        tokens, spec, said = self._tokens(titles)
        pictures = {
            name: PictureSource(cache, part, self.config.size) for name, part in places.items()
        }
        parts = {
            name: Split(
                {"image": pictures[name], "text": tokens[name]},
                torch.from_numpy(labels[part]),
                np.array([manifest.rows[i].id for i in part]),
            )
            for name, part in places.items()
        }
        return Splits(
            parts["train"],
            parts["val"],
            parts["test"],
            {"image": pictures["train"].modality(), "text": spec},
            classes,
            notes=(*manifest.notes, *lost, *said),
        )

    def _opened(self) -> Cache:
        """Return the cache. Raises :class:`DataError` when it is not as the options ask."""
        chosen = self.config.cache
        folder = Path(chosen).expanduser() if chosen else cache_root() / self.name()
        cache = open_cache(self.name(), folder)
        asked, kept = self.config.short_side, cache.manifest.short_side
        if asked is not None and asked != kept:
            raise DataError(
                f"dataset '{self.name()}' is prepared with short_side={kept} in {folder}, not "
                f"{asked}; leave the option out, or prepare it so into another folder (--cache) "
                "and name that with -d cache=FOLDER"
            )
        return cache

    def _rows_of(self, manifest: Manifest, split: str) -> np.ndarray:
        places = [i for i, row in enumerate(manifest.rows) if row.split == split]
        if not places:
            raise DataError(
                f"dataset '{self.name()}': no prepared picture is in {split}; prepare all of the "
                "data"
            )
        return np.array(places)

    def _count_left_out(self, listed: Sequence[Row | LeftOut], manifest: Manifest) -> list[str]:
        """Return a note for each list that lacks pictures. Raises :class:`DataError` where they
        are too many."""
        notes = []
        whole, absent = (
            Counter(part.split for part in parts) for parts in (listed, manifest.left_out)
        )
        for split in OFFICIAL:
            if absent[split] > TOLERATED * whole[split] and not self.config.allow_missing:
                raise DataError(
                    f"dataset '{self.name()}': {absent[split]} of {whole[split]} pictures of "
                    f"{split} are missing or damaged; get them and prepare again, or add "
                    "-d allow_missing=true"
                )
            if absent[split]:
                notes.append(
                    f"{absent[split]} of {whole[split]} pictures of {split} missing or damaged, "
                    "left out"
                )
        return notes

    def _tokens(
        self, titles: dict[str, list[str]]
    ) -> tuple[dict[str, Source], Modality, tuple[str, ...]]:
        """Return the titles of each split as tokens, what an encoder receives, and what tables have
        to say of it."""
        length, name = self.config.length, self.config.text_encoder
        if name is None:
            known = Vocabulary.of(titles["train"], self.config.least_count, self.config.vocabulary)
            tokens = _rows(titles, known, length)
            return tokens, Modality("tokens", (length,), vocabulary=len(known)), ()
        folder = find_model(name)
        pretrained = PretrainedTokens(folder)
        spec = Modality(
            "tokens",
            (length,),
            encoder="pretrained_text",
            vocabulary=len(pretrained),
            weights=str(folder),
        )
        said = (
            f"titles are tokens of the pretrained {name.rstrip('/').rpartition('/')[2]}, whose "
            f"weights have the SHA-256 {pretrained.weights_sha256[:16]}..."
        )
        return _rows(titles, pretrained, length), spec, (said,)


def _rows(
    titles: dict[str, list[str]], known: Vocabulary | PretrainedTokens, length: int
) -> dict[str, Source]:
    fingerprint = known.fingerprint()
    return {
        name: Rows(known.encode(part, length), transform_name=fingerprint)
        for name, part in titles.items()
    }


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
class Listing:
    """What both lists say."""

    items: tuple[Item, ...]
    odd: Mapping[str, tuple[Problem, ...]]
    """By list, the rows that are not as they should be."""

    @property
    def counts(self) -> dict[str, int]:
        return {split: sum(item.split == split for item in self.items) for split in OFFICIAL}

    def strange_counts(self) -> dict[str, int]:
        """Return the counts that are not those published; odd rows are among those that pandas does
        not count."""
        return {
            split: count
            for split, count in self.counts.items()
            if not OFFICIAL[split] <= count <= OFFICIAL[split] + len(self.odd[split])
        }


def read_lists(root: Path) -> Listing:
    """Return the rows of both lists. Raises :class:`DataError` as
    :func:`mmbench.data.pictures.titles.read_titles` does."""
    items: list[Item] = []
    odd: dict[str, tuple[Problem, ...]] = {}
    for split in OFFICIAL:
        path = list_path(root, split)
        lines: dict[str, int] = {}
        problems: list[Problem] = []
        for title in read_titles(path):
            faults = title.faults
            if (before := lines.setdefault(title.name, title.line)) != title.line:
                faults = (f"is of {title.name}, as line {before} is, which counts",)
            else:
                items.append(_item(title, split))
            if faults:
                what = ", and ".join(faults)
                problems.append(Problem(f"{path}, line {title.line}", what, "nothing to do"))
        odd[split] = tuple(problems)
    return Listing(tuple(items), odd)


def _item(title: Title, split: str) -> Item:
    picture = f"images/{split}/{title.label}/{title.name}.{title.ending}"
    return Item(f"{split}/{title.name}", title.label, split, picture, title.text)


def list_path(root: Path, split: str) -> Path:
    return root / "texts" / f"{split}_titles.csv"


# -- what is to be said of them ----------------------------------------------------------------


def _problems(root: Path, listing: Listing) -> Iterator[Problem]:
    """Yield what is wrong with the lists, and pictures that no list names; files that lists name
    are judged elsewhere."""
    mend = f"get it from {ARCHIVE}, unless it is a list of your own"
    for split, count in listing.strange_counts().items():
        what = f"lists {count:,} pictures, not {OFFICIAL[split]:,}"
        yield Problem(str(list_path(root, split)), what, mend)
    classes = len({item.label for item in listing.items})
    if classes != CLASSES:
        yield Problem(str(root / "texts"), f"lists {classes} classes, not {CLASSES}", mend)
    for problems in listing.odd.values():
        yield from problems
    for item in listing.items:
        if not item.text:
            what = f"has no title of {item.path}"
            yield Problem(str(list_path(root, item.split)), what, "nothing to do")
    expected = {item.path for item in listing.items}
    for path in sorted((root / "images").glob("*/*/*")):
        if path.is_file() and path.relative_to(root).as_posix() not in expected:
            mend = "nothing to do, unless a picture is missing"
            yield Problem(str(path), "is in no list", mend)


def _notes(listing: Listing) -> list[str]:
    """Return what a table has to say of the lists."""
    notes = []
    if listing.strange_counts():
        said = "/".join(f"{count:,}" for count in listing.counts.values())
        notes.append(f"lists of {said} rows, not the official ones")
    if odd := sum(map(len, listing.odd.values())):
        notes.append(f"{odd} rows of the lists are odd (`mmbench data verify`)")
    if empty := sum(not item.text for item in listing.items):
        notes.append(f"{empty} pictures have an empty title")
    return notes

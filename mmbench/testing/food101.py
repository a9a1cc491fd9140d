"""Generated pictures and titles that lie on disk as UPMC Food-101 does when unpacked.

Every picture is a real JPEG. Its colour names a class, its title the dish of a class, each under
noise: brightness, blocks and other words. With probability ``strength`` a modality names the row's
own class, otherwise one drawn from all, so that no classifier of that modality can expect more than
``strength + (1 - strength) / classes`` accuracy. A row depends on the seed and its own id alone.

    food101(folder, 80, seed=0, signal=Signal(title=0.9, picture=0.5))
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmbench.errors import RequestError
from mmbench.seeds import numpy_stream
from mmbench.testing.clips import Look, picture

DISHES = (
    *("apple_pie", "baby_back_ribs", "baklava", "beef_carpaccio", "beef_tartare", "beet_salad"),
    *("beignets", "bibimbap", "bread_pudding", "breakfast_burrito", "bruschetta", "caesar_salad"),
    *("cannoli", "caprese_salad", "carrot_cake", "ceviche", "cheese_plate", "cheesecake"),
    *("chicken_curry", "chicken_quesadilla", "chicken_wings", "chocolate_cake", "chocolate_mousse"),
    *("churros", "clam_chowder", "club_sandwich", "crab_cakes", "creme_brulee", "croque_madame"),
    *("cup_cakes", "deviled_eggs", "donuts", "dumplings", "edamame", "eggs_benedict", "escargots"),
    *("falafel", "filet_mignon", "fish_and_chips", "foie_gras", "french_fries"),
    *("french_onion_soup", "french_toast", "fried_calamari", "fried_rice", "frozen_yogurt"),
    *("garlic_bread", "gnocchi", "greek_salad", "grilled_cheese_sandwich", "grilled_salmon"),
    *("guacamole", "gyoza", "hamburger", "hot_and_sour_soup", "hot_dog", "huevos_rancheros"),
    *("hummus", "ice_cream", "lasagna", "lobster_bisque", "lobster_roll_sandwich"),
    *("macaroni_and_cheese", "macarons", "miso_soup", "mussels", "nachos", "omelette"),
    *("onion_rings", "oysters", "pad_thai", "paella", "pancakes", "panna_cotta", "peking_duck"),
    *("pho", "pizza", "pork_chop", "poutine", "prime_rib", "pulled_pork_sandwich", "ramen"),
    *("ravioli", "red_velvet_cake", "risotto", "samosa", "sashimi", "scallops", "seaweed_salad"),
    *("shrimp_and_grits", "spaghetti_bolognese", "spaghetti_carbonara", "spring_rolls", "steak"),
    *("strawberry_shortcake", "sushi", "tacos", "takoyaki", "tiramisu", "tuna_tartare", "waffles"),
)
"""The 101 classes."""
SOME = ("apple_pie", "breakfast_burrito", "french_fries", "sushi")
HEADER = ("Image_path", "text", "label")
OTHER_WORDS = (
    *("the", "best", "easy", "recipe", "for", "how", "to", "make", "with", "my", "grandmother's"),
    *("simple", "homemade", "kitchen", "blog", "and", "food", "network", "delicious", "quick"),
)
BROKEN_CLASS, BROKEN_NUMBER = "breakfast_burrito", 730
"""The row whose quote is never closed in the archive."""
PATTERN = ("train", "test", "train", "train")
"""Rows of a class go to the lists in these shares, about those of the archive."""


@dataclass(frozen=True)
class Signal:
    """Probability that a modality names the row's class, from 0 (never on purpose) to 1."""

    title: float = 0.9
    picture: float = 0.6


CLEARER_TITLE = Signal()


@dataclass(frozen=True)
class Dish:
    """One row that was written, and what it shows."""

    name: str
    """``<class>_<number>``."""
    label: str
    split: str
    path: Path
    """Of the picture."""
    title: str
    shown: int
    """Number of the class that the picture names."""
    told: int
    """Number of the class that the title names."""


def food101(
    folder: Path,
    rows: int,
    *,
    seed: int = 0,
    signal: Signal = CLEARER_TITLE,
    classes: Sequence[str] = SOME,
    side: int = 48,
    header: bool = False,
    broken_quote: int = 0,
) -> tuple[Dish, ...]:
    """Write ``images/{train,test}/<class>/<class>_<n>.jpg`` and ``texts/{train,test}_titles.csv``.

    Classes come in turn, and of each class three rows of four go to train. Pictures are lying or
    standing, ``side`` pixels on their shorter side. With ``broken_quote`` the row of
    ``breakfast_burrito_730.jpg`` opens a quote, and so many rows after it name ``.txt`` files, the
    last of which closes the quote. Returns the rows in the order of the lists.
    """
    if broken_quote and BROKEN_CLASS not in classes:
        raise RequestError(f"a broken quote needs the class {BROKEN_CLASS}")
    dishes = [
        _dish(folder, label, number, split, classes, seed, signal)
        for label, number, split in _names(rows, classes, seed, broken_quote)
    ]
    for dish in dishes:
        _write_picture(dish, len(classes), side, seed)
    for split in ("train", "test"):
        listed = [dish for dish in dishes if dish.split == split]
        lines = [_line([f"{dish.name}.jpg", dish.title, dish.label]) for dish in listed]
        if broken_quote and split == "train":
            _break(lines, listed, broken_quote)
        path = folder / "texts" / f"{split}_titles.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join([_line(HEADER)] * header + lines), encoding="utf-8", newline="")
    return tuple(dishes)


def _names(
    rows: int, classes: Sequence[str], seed: int, broken_quote: int
) -> list[tuple[str, int, str]]:
    """Return class, number and list of each row, sorted as the lists are."""
    names = []
    for place, label in enumerate(classes):
        count = len(range(place, rows, len(classes)))
        rng = numpy_stream(seed, "food101", label)
        # Numbers below the broken one, which with those above it are left to the damage.
        numbers = sorted(int(n) for n in rng.choice(BROKEN_NUMBER, count, replace=False))
        splits = [PATTERN[i % len(PATTERN)] for i in range(count)]
        if broken_quote and label == BROKEN_CLASS:
            trained = [i for i, split in enumerate(splits) if split == "train"]
            if len(trained) <= broken_quote:
                raise RequestError(f"{rows} rows are too few for {broken_quote + 1} broken ones")
            for offset, i in enumerate(trained[-broken_quote - 1 :]):
                numbers[i] = BROKEN_NUMBER + offset
        names += [(label, n, split) for n, split in zip(numbers, splits, strict=True)]
    return sorted(names)


def _dish(
    folder: Path,
    label: str,
    number: int,
    split: str,
    classes: Sequence[str],
    seed: int,
    signal: Signal,
) -> Dish:
    name = f"{label}_{number}"
    rng = numpy_stream(seed, "food101", name)
    own = list(classes).index(label)
    told, shown = (
        own if rng.random() < strength else int(rng.integers(len(classes)))
        for strength in (signal.title, signal.picture)
    )
    others = [str(word) for word in rng.choice(OTHER_WORDS, 6)]
    words = [*others[:2], *classes[told].split("_"), *others[2:]]
    title = f"{' '.join(words[:-1]).capitalize()}, {words[-1]}"  # a comma: in quotes
    path = folder / "images" / split / label / f"{name}.jpg"
    return Dish(name, label, split, path, title, shown, told)


def _write_picture(dish: Dish, classes: int, side: int, seed: int) -> None:
    rng = numpy_stream(seed, "food101", dish.name, "picture")
    longer = round(side * 4 / 3)
    height, width = (side, longer) if rng.random() < 0.5 else (longer, side)
    look = Look(seconds=0.1, height=height, width=width)
    (pixels,) = picture(dish.shown, classes, look, rng)
    dish.path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(dish.path, quality=90)


def _line(fields: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()


def _break(lines: list[str], listed: Sequence[Dish], following: int) -> None:
    """Damage lines as those of the archive are."""
    names = [dish.name for dish in listed]
    first = names.index(f"{BROKEN_CLASS}_{BROKEN_NUMBER}")
    for i in range(first, first + following + 1):
        dish = listed[i]
        ending = "jpg" if i == first else "txt"
        plain = dish.title.replace(",", "")
        before, behind = '"' if i == first else "", '"' if i == first + following else ""
        lines[i] = f"{dish.name}.{ending},{before}{plain}{behind},{dish.label}\n"

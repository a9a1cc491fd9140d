"""Words as numbers: what is a word, which words get an id, and what a text becomes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbench.data.text import PADDING, UNKNOWN, Vocabulary, words

TITLES = ("Apple pie: the BEST apple pie", "The apple", "Sushi")
SENTENCES = st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6).map(" ".join), max_size=8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \n\t ", []),
        ("Apple-Pie, 2 ways (easy!)", ["apple", "pie", "2", "ways", "easy"]),
        ("Grandma's | Don’t", ["grandma's", "don’t"]),
        ("'quoted'", ["quoted"]),
        ("Crème BRÛLÉE 寿司", ["crème", "brûlée", "寿司"]),
    ],
)
def test_words_are_lower_cased_runs_of_letters_and_digits(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_words_are_numbered_by_count_and_then_by_letters() -> None:
    """apple 3, pie 2, the 2, best 1, sushi 1."""
    assert Vocabulary.of(TITLES).words == ("apple", "pie", "the", "best", "sushi")
    assert Vocabulary.of(TITLES, least=2).words == ("apple", "pie", "the")
    assert Vocabulary.of(TITLES, size=2).words == ("apple", "pie")
    assert Vocabulary.of([]).words == ()


def test_a_text_becomes_its_first_words_and_padding() -> None:
    known = Vocabulary(("apple", "pie"))
    assert len(known) == 4  # padding, unknown, two words
    rows = known.encode(["Pie of apple", "", "apple apple pie apple pie"], 4)
    assert rows.dtype == np.int64
    assert rows.tolist() == [[3, 1, 2, 0], [0, 0, 0, 0], [2, 2, 3, 2]]
    assert (PADDING, UNKNOWN) == (0, 1)
    assert known.encode([], 3).shape == (0, 3)


@given(SENTENCES, st.randoms(use_true_random=False))
def test_the_order_of_texts_plays_no_part(texts: list[str], random: object) -> None:
    shuffled = sorted(texts, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert Vocabulary.of(texts, 2, 3) == Vocabulary.of(shuffled, 2, 3)


@given(SENTENCES, st.integers(1, 3), st.integers(1, 7))
def test_exactly_the_frequent_words_have_ids_of_their_own(
    texts: list[str], least: int, length: int
) -> None:
    known = Vocabulary.of(texts, least)
    counts = Counter(" ".join(texts).split())
    assert set(known.words) == {word for word, count in counts.items() if count >= least}
    for text, row in zip(texts, known.encode(texts, length), strict=True):
        expected = text.split()[:length]
        read = [known.words[i - 2] if i >= 2 else None for i in row if i != 0]
        assert read == [word if counts[word] >= least else None for word in expected]
        assert int(row.max(initial=0)) < len(known)


def test_the_fingerprint_is_of_the_words_in_their_order() -> None:
    one = Vocabulary(("apple", "pie")).fingerprint()
    assert one == Vocabulary(("apple", "pie")).fingerprint()
    others = (("pie", "apple"), ("apple",), ("applepie",), ())
    assert one not in {Vocabulary(other).fingerprint() for other in others}

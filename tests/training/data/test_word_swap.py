"""Words are exchanged on tokens, and the tokens are those of the exchanged text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.text.bpe import train_tokenizer
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer
from tripod.training.data.word_swap import WordSwap

PRONOUNS = {"he": "she", "him": "her", "his": "her"}
TEXT = "He said (he, himself!) that HIS boat was “his”; the other he2 _him_ saw… he's gone.\nHim?"
SWAPPED = "She said (she, himself!) that HER boat was “her”; the other he2 _her_ saw… she's gone.\nHer?"  # by hand


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Merges that make " he", " she" and " the" tokens of their own."""
    texts = ["He saw her and she saw him; the boat was his, the river hers. " * 20, TEXT * 5, SWAPPED * 5]
    return train_tokenizer(texts, tmp_path_factory.mktemp("bpe"), vocab_size=320)


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return load_tokenizer(folder)


def swapped(swap: WordSwap, ids: list[int]) -> list[int]:
    out, read = [], 0
    for splice in swap.splices(ids):
        out += ids[read : splice.start] + list(splice.ids)
        read = splice.stop
    return out + ids[read:]


def test_whole_words_are_exchanged_at_punctuation_in_their_own_case(bpe: Tokenizer, bytewise: Tokenizer) -> None:
    for tokenizer in (bpe, bytewise):
        swap = WordSwap(PRONOUNS, tokenizer)
        assert swap.replace(TEXT) == SWAPPED
        ids = tokenizer.encode(TEXT, add_special_tokens=False)
        assert swapped(swap, ids) == tokenizer.encode(SWAPPED, add_special_tokens=False)


def test_two_words_swap_places() -> None:
    swap = WordSwap({"left": "right", "right": "left"}, None)  # type: ignore[arg-type]
    assert swap.replace("left right, Right LEFT") == "right left, Left RIGHT"


def test_of_two_words_that_begin_alike_the_longer_is_taken() -> None:
    swap = WordSwap({"ice": "fire", "ice cream": "soup"}, None)  # type: ignore[arg-type]
    assert swap.replace("ice cream, ice") == "soup, fire"


def test_with_case_kept_apart_only_the_written_form_is_found(bpe: Tokenizer) -> None:
    assert WordSwap({"he": "she"}, bpe, keeps_case=False).replace("He, he, HE") == "He, she, HE"


def test_special_tokens_stay_and_words_do_not_reach_across_them(bytewise: Tokenizer) -> None:
    swap = WordSwap({"he": "she"}, bytewise)
    assert swapped(swap, [*b"h", 256, *b"e he", 256]) == [*b"h", 256, *b"e she", 256]
    named = WordSwap({"endoftext": "end"}, bytewise)  # as the special token spells itself
    assert swapped(named, [256, *b"endoftext", 256]) == [256, *b"end", 256]


def test_a_character_cut_by_the_edge_of_a_row_stays(bytewise: Tokenizer) -> None:
    cut = [*"…".encode()[1:], *b" he ", *"…".encode()[:2]]
    assert swapped(WordSwap({"he": "she"}, bytewise), cut) == [*"…".encode()[1:], *b" she ", *"…".encode()[:2]]


def test_a_splice_says_which_words_and_which_tokens(bytewise: Tokenizer) -> None:
    first, second = WordSwap(PRONOUNS, bytewise).splices(list(b"he is him"))
    assert (first.start, first.stop, first.words) == (0, 2, (("he", "she"),))
    assert (second.start, second.stop, bytes(second.ids)) == (6, 9, b"her")


@given(st.lists(st.sampled_from(["he", "He", "him", " ", ", ", "the", "…", "\n", "x", "his", "'s", "“", "  "]), max_size=30))
def test_tokens_of_any_text_are_those_of_the_exchanged_text(bpe: Tokenizer, pieces: list[str]) -> None:
    swap = WordSwap(PRONOUNS, bpe)
    text = "".join(pieces)
    ids = swapped(swap, bpe.encode(text, add_special_tokens=False))
    assert bpe.decode(ids) == swap.replace(text)
    assert ids == bpe.encode(swap.replace(text), add_special_tokens=False)

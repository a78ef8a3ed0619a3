"""llama2.c's tokenizer: the golden text, hand-worked merges, and the algorithm of run.c written plainly."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tripod.text.llama2c_tokenizer import Llama2cTokenizer
from tripod.text.tokenizer import Tokenizer

RealTokenizer = Callable[[str], Tokenizer]

MARKS = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(f"<0x{byte:02X}>".encode() for byte in range(256))]


def _made(pieces: dict[str, float]) -> Llama2cTokenizer:
    """Ids 259, 260, ... in order, each with its score."""
    return Llama2cTokenizer([*MARKS, *(piece.encode() for piece in pieces)], [0.0] * len(MARKS) + list(pieces.values()))


def test_the_golden_story_round_trips(shared_data: Path, real_tokenizer: RealTokenizer) -> None:
    story = (shared_data / "stories260K/greedy-golden.txt").read_text(encoding="utf-8")
    tokenizer = real_tokenizer("stories260K")
    ids = tokenizer.encode(story)
    assert ids[0] == 1
    assert tokenizer.decode(ids) == story
    assert len(ids) < 260  # the model wrote it in 256 tokens
    assert ids[1:4] == [403, 407, 261]


@given(st.text())
def test_any_text_round_trips(real_tokenizer: RealTokenizer, text: str) -> None:
    tokenizer = real_tokenizer("stories260K")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_best_score_is_merged_first_not_the_first_pair() -> None:
    tokenizer = _made({" ": 0, "a": 0, "b": 0, "c": 0, "ab": -2, "bc": -1})
    assert tokenizer.encode("abc") == [1, 259, 260, 264]  # BOS, " ", "a", "bc"


def test_of_equal_scores_the_leftmost_is_merged_first() -> None:
    tokenizer = _made({" ": 0, "a": 0, "aa": -1})
    assert tokenizer.encode("aaa") == [1, 259, 261, 260]  # BOS, " ", "aa", "a"


def test_characters_without_a_piece_become_their_bytes() -> None:
    tokenizer = _made({" ": 0, "a": 0})
    assert tokenizer.encode("aé") == [1, 259, 260, 3 + 0xC3, 3 + 0xA9]


def test_an_empty_text_is_bos_alone(real_tokenizer: RealTokenizer) -> None:
    assert real_tokenizer("stories260K").encode("") == [1]
    assert real_tokenizer("stories260K").encode("", add_special_tokens=False) == []


def test_both_marks_end_a_generation_and_are_not_shown(real_tokenizer: RealTokenizer) -> None:
    tokenizer = real_tokenizer("stories260K")
    assert tokenizer.eos_ids == {1, 2}
    ids = tokenizer.encode("Once upon a time")
    assert tokenizer.decode([*ids, 2]) == "Once upon a time"


@given(st.text(alphabet="abc ", max_size=40))
@settings(max_examples=300)
def test_merging_equals_the_plain_loop_of_run_c(text: str) -> None:
    pieces = {
        " ": 0.0,
        "a": 0.0,
        "b": 0.0,
        "ab": -1.0,
        "ba": -2.0,
        "aa": -1.5,
        "aba": -1.0,
        "abab": -4.0,
        " a": -3.0,
        "bb": -2.0,
        "abb": -0.5,
    }
    tokenizer = _made(pieces)
    ids = {piece: 259 + i for i, piece in enumerate(pieces)}
    parts = list(f" {text}") if text else []
    while True:  # run.c: look at all neighbours, merge the best, start over
        candidates = [(pieces[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in pieces]
        if not candidates:
            break
        i = -max(candidates)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    expected = [ids.get(part, 3 + ord(part[0])) for part in parts]
    assert tokenizer.encode(text, add_special_tokens=False) == expected

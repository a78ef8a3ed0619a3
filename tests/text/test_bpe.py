"""Training a byte-level BPE tokenizer."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tripod.errors import ConfigError
from tripod.text.bpe import train_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer

TEXTS = ["low lower lowest", "new newer newest", "wide wider widest"] * 4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("bpe"), vocab_size=270)


@pytest.fixture(scope="module")
def book(shared_data: Path) -> str:
    return next(iter(sorted((shared_data / "text-tinyshakespeare").glob("*.txt")))).read_text(encoding="utf-8")[:200_000]


def test_the_first_merge_is_the_most_frequent_pair(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["xyxyxy", "xyab"], tmp_path, vocab_size=258)  # x-y four times, y-x twice
    assert tokenizer.vocab_size == 258
    assert tokenizer.token_bytes(257) == b"xy"


def test_the_special_tokens_come_first_and_the_first_ends_a_document(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, tmp_path, vocab_size=262, special_tokens=("<|end|>", "<|pad|>"))
    assert tokenizer.encode("<|end|><|pad|>") == [0, 1]
    assert tokenizer.eos_ids == {0}
    assert tokenizer.special_ids == {0, 1}


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back(small: Tokenizer, text: str) -> None:
    assert small.decode(small.encode(text), skip_special_tokens=False) == text  # a text may spell a special token


def test_more_vocabulary_means_fewer_tokens(book: str, tmp_path: Path) -> None:
    sizes = (257, 400, 800)
    lengths = [len(train_tokenizer([book], tmp_path / str(size), vocab_size=size).encode(book)) for size in sizes]
    assert lengths[0] == len(book.encode())  # 256 bytes and the end of text: no merge at all
    assert lengths[0] > 1.3 * lengths[1] > 1.3 * lengths[2]


def test_another_process_with_another_hash_seed_learns_the_same_file(book: str, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tripod.text.bpe import train_tokenizer\n"
        "train_tokenizer(Path(sys.argv[1]).read_text('utf-8').splitlines(), Path(sys.argv[2]), vocab_size=600)"
    )
    (tmp_path / "book.txt").write_text(book, encoding="utf-8")
    digests = set()
    for threads in ("1", "3"):
        folder = tmp_path / threads
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "book.txt"), str(folder)],
            check=True,
            env={"PYTHONPATH": ":".join(sys.path), "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PATH": ""},
        )
        digests.add(hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_transformers_opens_what_was_written(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = train_tokenizer(TEXTS, tmp_path, vocab_size=280)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the lowest, newest — widest"
    assert theirs.encode(text) == ours.encode(text) == load_tokenizer(tmp_path).encode(text)
    assert theirs.eos_token_id == 0


@pytest.mark.parametrize("call", [{"vocab_size": 256}, {"vocab_size": 300, "special_tokens": ()}])
def test_what_cannot_be_a_vocabulary_is_refused(tmp_path: Path, call: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"below 257|at least one"):
        train_tokenizer(TEXTS, tmp_path, **call)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_training_on_nothing_is_refused(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="no text was given"):
        train_tokenizer(texts, tmp_path, vocab_size=300)
    assert list(tmp_path.iterdir()) == []

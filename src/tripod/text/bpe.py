"""Training a byte-level BPE tokenizer, written in the Hugging Face layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tripod.errors import ConfigError, MissingExtraError
from tripod.text.byte_level import END_OF_TEXT
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer


def train_tokenizer(
    texts: Iterable[str], folder: Path, *, vocab_size: int, special_tokens: Sequence[str] = (END_OF_TEXT,), min_frequency: int = 2
) -> Tokenizer:
    """Learn byte-pair merges (Sennrich et al. 2016, arXiv:1508.07909) over bytes (Radford et al. 2019) and write the tokenizer.

    The result depends on the texts alone: neither on their grouping in time nor on the number of threads. Every text can be
    encoded and comes back exactly; there is no unknown token and no normaliser.

    Args:
        texts: read once, in order; they are not kept, only their word counts are.
        folder: gets tokenizer.json and tokenizer_config.json; made if absent.
        vocab_size: tokens in all: the special ones, 256 bytes, and merges. Fewer are learnt when the texts hold no more pairs
            that occur `min_frequency` times; `vocab_size` of the result says how many there are.
        special_tokens: get the first ids, in this order. The first one ends a document.
        min_frequency: a pair must occur this often to be merged.

    Raises:
        ConfigError: `vocab_size` leaves no room for bytes and special tokens, there is no special token, one occurs twice, or there
            is no text.
        MissingExtraError: the package `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer as HfTokenizer
        from tokenizers import decoders, models, pre_tokenizers, trainers
    except ModuleNotFoundError as error:
        raise MissingExtraError("tokenizers", "engine", "training a tokenizer") from error
    if not special_tokens or len(set(special_tokens)) < len(special_tokens):
        raise ConfigError(
            f"special_tokens={list(special_tokens)}; give different tokens, at least one: the first ends a document, as {END_OF_TEXT!r}"
        )
    smallest = len(special_tokens) + 256
    if vocab_size < smallest:
        raise ConfigError(f"vocab_size={vocab_size} is below {smallest} ({len(special_tokens)} special tokens + 256 bytes); raise it")
    tokenizer = HfTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    num_chars = 0

    def counted() -> Iterator[str]:
        nonlocal num_chars
        for text in texts:
            num_chars += len(text)
            yield text

    tokenizer.train_from_iterator(counted(), trainer)
    if not num_chars:
        raise ConfigError("no text was given, so no merge can be learnt; check the inputs")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": special_tokens[0],
        "pad_token": special_tokens[0],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return load_tokenizer(folder)

"""Hugging Face `tokenizer.json`, read by the `tokenizers` library."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken
from tokenizers.decoders import Decoder

from tripod.errors import TokenizerError
from tripod.text.byte_level import BYTE_OF_CHAR
from tripod.text.chat_template import ChatTemplate
from tripod.text.detokenizer import detokenize
from tripod.text.tokenizer_config import TokenizerConfig

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANCHOR = "a"  # a token that every supported decoder leaves as it is

# Their text of a token depends on the tokens that follow, so it cannot be streamed. No architecture that Tripod runs uses them.
_NOT_INCREMENTAL = frozenset({"CTC", "BPEDecoder"})

Opening = tuple[bytes, bool]


class HfTokenizer:
    """A tokenizer of the `tokenizers` library, with the special tokens of the files beside it.

    `decode` agrees with the library's wherever the bytes are valid UTF-8, and for byte-level tokenizers everywhere. For a
    run of byte tokens that is invalid somewhere, the library shows one replacement mark a byte, valid characters included;
    here the valid ones stay.
    """

    def __init__(self, inner: tokenizers.Tokenizer, config: TokenizerConfig = TokenizerConfig()) -> None:  # noqa: B008 - frozen
        _add_missing(inner, config)
        inner.no_truncation()  # whoever runs the model decides what is too long, and says so
        inner.no_padding()
        self.inner = inner
        self.chat_template: ChatTemplate | None = config.chat_template
        self.bos_id = config.bos_id(self._id_of(config.special_tokens.get("bos_token")))
        self.eos_ids = config.eos_ids(self._id_of(config.special_tokens.get("eos_token")))
        self.special_ids = frozenset(i for i, token in inner.get_added_tokens_decoder().items() if token.special)
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._running, self._opening = _byte_rules(inner.decoder)
        self._running_cache: dict[int, bytes] = {}

    @staticmethod
    def load(file: Path, *, chat_template: Path | None = None) -> HfTokenizer:
        """Read a tokenizer.json and the configuration files in its folder.

        Raises:
            TokenizerError: the file is absent, is not JSON, or the library refuses it.
        """
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{file} cannot be read: {error}; a tokenizer.json in UTF-8 is expected") from error
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(
                f"{file} ({len(text)} characters) is not a tokenizer.json that the tokenizers library {tokenizers.__version__} can read: "
                f"{error}; fetch the file again, or install a newer tokenizers"
            ) from error
        return HfTokenizer(inner, TokenizerConfig.read(file.parent, chat_template=chat_template))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self.inner.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return detokenize(self, ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        cached = self._running_cache.get(token_id)
        if cached is None:
            token = self._token(token_id)
            cached = self._running_cache[token_id] = b"" if token is None else self._running(token)
        return cached

    def opening_bytes(self, token_id: int) -> Opening:
        token = self._token(token_id)
        return (b"", False) if token is None else (self._opening(token), True)

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _token(self, token_id: int) -> str | None:
        """None for the rows by which an embedding is padded beyond the vocabulary."""
        return self.inner.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self.inner.token_to_id(token)


def _add_missing(inner: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    """Tokens that only tokenizer_config.json marks as added; transformers adds them when it loads, so their ids are promised."""
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    for token_id, fields in sorted(config.added_tokens.items()):
        if fields["content"] in known:
            continue
        flags = {name: bool(fields[name]) for name in ("single_word", "lstrip", "rstrip", "normalized", "special") if name in fields}
        inner.add_tokens([AddedToken(fields["content"], **flags)])
        given = inner.token_to_id(fields["content"])
        if given != token_id:
            raise TokenizerError(
                f"tokenizer_config.json gives {fields['content']!r} the id {token_id}, tokenizer.json has room for it at {given}; "
                "the two files do not belong together: fetch both again"
            )


def _byte_rules(decoder: Decoder | None) -> tuple[Callable[[str], bytes], Callable[[str], bytes]]:
    """How a token becomes bytes: inside a running text, and at its opening."""
    if decoder is None:  # the library then puts a space between tokens
        return (lambda token: b" " + token.encode()), str.encode
    steps = list(_steps(json.loads(decoder.__getstate__())))
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return _byte_level_bytes, _byte_level_bytes
    if refused := kinds & _NOT_INCREMENTAL | (kinds & {"ByteLevel"}) | {s["type"] for s in steps if s["type"] == "Strip" and s["stop"]}:
        raise TokenizerError(
            f"this tokenizer.json decodes by {' + '.join(step['type'] for step in steps)}; {', '.join(sorted(refused))} cannot be streamed "
            "token by token; use a model whose decoder is ByteLevel, Metaspace, WordPiece or a Sequence with ByteFallback"
        )
    has_byte_fallback = "ByteFallback" in kinds

    def byte_token(token: str) -> bytes | None:
        match = _BYTE_TOKEN.fullmatch(token) if has_byte_fallback else None
        return None if match is None else bytes([int(match[1], 16)])

    def opening(token: str) -> bytes:
        text = decoder.decode([token])
        byte = byte_token(token)
        return text.encode() if byte is None or not text else byte  # a byte token of a space may be stripped like any other space

    def running(token: str) -> bytes:
        byte = byte_token(token)
        return decoder.decode([_ANCHOR, token])[len(_ANCHOR) :].encode() if byte is None else byte

    return running, opening


def _steps(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _byte_level_bytes(token: str) -> bytes:
    """An added token may hold characters outside the byte alphabet; then it stands for its own text."""
    try:
        return bytes([BYTE_OF_CHAR[char] for char in token])
    except KeyError:
        return token.encode()

"""How tokens spell a text, in the shape in which llguidance asks for a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from tripod.text.tokenizer import Tokenizer

_ANCHOR = "\n"  # a text before, so that SentencePiece does not put a space before ours


class Spelling:
    """The bytes of every token; and for a text that a grammar forces, the tokens that the model would expect."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """
        Args:
            tokenizer: one that names an end-of-sequence token.
            vocab_size: the model's; ids beyond the tokenizer's spell nothing, and are never allowed.
        """
        self._tokenizer = tokenizer
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = min(tokenizer.eos_ids)
        self.tokens = [tokenizer.token_bytes(token_id) if token_id < tokenizer.vocab_size else b"" for token_id in range(vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids | tokenizer.eos_ids)
        for token_id in self.special_token_ids:  # a name, for grammars that ask for such a token; they are no text
            self.tokens[token_id] = self.tokens[token_id] or f"<special {token_id}>".encode()

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens whose bytes are exactly the text: by the tokenizer's own rules where these allow it, else the longest that fit."""
        wanted = text.encode() if isinstance(text, str) else text
        readable = wanted.decode("utf-8", "replace")
        for opening in ("", _ANCHOR):
            before = self._tokenizer.encode(opening, add_special_tokens=False) if opening else []
            ids = self._tokenizer.encode(opening + readable, add_special_tokens=False)
            if ids[: len(before)] == before and self._bytes(ids[len(before) :]) == wanted:
                return ids[len(before) :]
        return self._longest(wanted)

    def _bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.tokens[token_id] for token_id in ids)

    def _longest(self, rest: bytes) -> list[int]:
        ids = []
        while rest:
            length = next((n for n in range(min(len(rest), self._longest_token), 0, -1) if rest[:n] in self._ids), 0)
            if not length:  # no token begins so: the grammar's bytes that follow cannot be spelled
                break
            ids.append(self._ids[rest[:length]])
            rest = rest[length:]
        return ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {piece: token_id for token_id, piece in enumerate(self.tokens) if piece and token_id not in special}

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._ids))

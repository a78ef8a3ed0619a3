"""Tokens to text: a whole list at once, or one at a time without ever ending inside a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from tripod.text.tokenizer import Tokenizer


def detokenize(tokenizer: Tokenizer, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
    """The text of `ids`: what `Tokenizer.decode` means, for every tokenizer (see `Tokenizer`)."""
    remaining = iter(ids)
    if skip_special_tokens:
        special_ids = tokenizer.special_ids
        remaining = (i for i in remaining if i not in special_ids)
    pieces: list[bytes] = []
    for token_id in remaining:
        token_bytes, is_over = tokenizer.opening_bytes(token_id)
        pieces.append(token_bytes)
        if is_over:
            break
    pieces.extend(map(tokenizer.token_bytes, remaining))
    return b"".join(pieces).decode("utf-8", "replace")


class Detokenizer:
    """Laws, for any ids: all pushes and the flush, joined, equal `tokenizer.decode(ids)`; what was shown never changes.

    The bytes of an incomplete character wait for the next token. A replacement mark is shown once no continuation can
    make the bytes valid, or at the flush.
    """

    def __init__(self, tokenizer: Tokenizer, *, is_opening: bool = True, shown_ids: frozenset[int] = frozenset()) -> None:
        """`is_opening=False`: the tokens go on inside a text, and the law holds for their bytes instead of `decode`.

        `shown_ids` are special tokens that are shown all the same.
        """
        self._tokenizer = tokenizer
        self._special_ids = tokenizer.special_ids - shown_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_opening = is_opening

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty for a special token and inside a character."""
        if token_id in self._special_ids:
            return ""
        if self._is_opening:
            token_bytes, is_over = self._tokenizer.opening_bytes(token_id)
            self._is_opening = not is_over
        else:
            token_bytes = self._tokenizer.token_bytes(token_id)
        return self._utf8.decode(token_bytes)

    def flush(self) -> str:
        """What is left at the end: a replacement mark if the last character never became complete. Then a new text may follow."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._is_opening = True
        return rest

"""What the rest of Tripod knows of a tokenizer; `tripod.text.load_tokenizer` opens one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tripod.errors import TokenizerError
from tripod.text.chat_template import ChatTemplate


class Tokenizer(Protocol):
    """Text to token ids and back.

    The truth of decoding is `token_bytes`: a text is the bytes of its tokens, joined, read as UTF-8 with one U+FFFD for
    each maximal invalid stretch (the practice that Unicode recommends). Only the opening of a text may differ, because
    SentencePiece puts a space before a text and takes it off again; `opening_bytes` knows that.
    """

    @property
    def vocab_size(self) -> int: ...  # the largest token id + 1; an embedding may have more rows than this

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...  # any of them ends a generation

    @property
    def special_ids(self) -> frozenset[int]: ...  # tokens that mark structure; decoding skips them unless told otherwise

    @property
    def chat_template(self) -> ChatTemplate | None: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...  # what the token adds to a running text; nothing for an id without a token

    def opening_bytes(self, token_id: int) -> tuple[bytes, bool]: ...  # what it gives at the opening of a text; whether that is then over

    def token_text(self, token_id: int) -> str: ...  # `token_bytes` to look at: not every token is whole characters


def check_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer that can produce ids for which the model has no embedding.

    Args:
        tokenizer: the tokenizer beside a model.
        vocab_size: rows of the model's embedding. More rows than tokens are common (padding) and fine.

    Raises:
        TokenizerError: the tokenizer has more ids than the embedding has rows.
    """
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} token ids, the model's embedding only {vocab_size} rows; "
            "they do not belong together: use the tokenizer that the model was trained with"
        )

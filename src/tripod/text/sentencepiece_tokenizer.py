"""SentencePiece `tokenizer.model`, read by the `sentencepiece` package."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from tripod.errors import TokenizerError
from tripod.text.chat_template import ChatTemplate
from tripod.text.detokenizer import detokenize
from tripod.text.tokenizer_config import TokenizerConfig

_SPACE = "\u2581"  # SentencePiece writes a space as ▁ (Kudo & Richardson 2018, arXiv:1808.06226)


class SentencePieceTokenizer:
    """A SentencePiece model. BOS is added where the model has one, unless `add_bos_token` of tokenizer_config.json says otherwise.

    Control pieces such as `</s>` or `[INST]` that stand in a text become their ids, so that a rendered chat template works;
    each stretch between them is encoded by itself and gets the model's leading space. `decode` agrees with the library's
    wherever the bytes are valid UTF-8; elsewhere the library shows one replacement mark a byte, here one an invalid stretch.
    """

    def __init__(self, inner: sentencepiece.SentencePieceProcessor, config: TokenizerConfig = TokenizerConfig()) -> None:  # noqa: B008 - frozen
        self.inner = inner
        self.vocab_size: int = inner.get_piece_size()
        self.chat_template: ChatTemplate | None = config.chat_template
        self.bos_id = config.bos_id(inner.bos_id() if inner.bos_id() >= 0 else None)
        self.eos_ids = config.eos_ids(inner.eos_id() if inner.eos_id() >= 0 else None)
        self.special_ids = frozenset(i for i in range(self.vocab_size) if inner.is_control(i))
        self._prefix = [self.bos_id] if self.bos_id is not None and config.add_bos_token is not False else []
        self._suffix = [inner.eos_id()] if inner.eos_id() >= 0 and config.add_eos_token else []
        self._control_ids = {inner.id_to_piece(i): i for i in self.special_ids}
        longest_first = sorted(self._control_ids, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        self._cache: dict[int, bytes] = {}

    @staticmethod
    def load(file: Path, *, chat_template: Path | None = None) -> SentencePieceTokenizer:
        """Read a SentencePiece model and the configuration files in its folder.

        Raises:
            TokenizerError: the file is absent, or not a SentencePiece model.
        """
        try:
            inner = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
        except OSError as error:
            raise TokenizerError(f"{file} cannot be read: {error}") from error
        except RuntimeError as error:
            raise TokenizerError(f"{file} ({file.stat().st_size} bytes) is not a SentencePiece model: {error}; fetch it again") from error
        return SentencePieceTokenizer(inner, TokenizerConfig.read(file.parent, chat_template=chat_template))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = []
        for stretch in self._control.split(text) if self._control else [text]:
            if stretch in self._control_ids:
                ids.append(self._control_ids[stretch])
            elif stretch:
                ids.extend(self.inner.encode(stretch))
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return detokenize(self, ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        cached = self._cache.get(token_id)
        if cached is None:
            cached = self._cache[token_id] = self._running_bytes(token_id)
        return cached

    def opening_bytes(self, token_id: int) -> tuple[bytes, bool]:
        """The library itself says what it makes of a piece that opens a text: models differ in what they take off."""
        if not 0 <= token_id < self.vocab_size:
            return b"", False
        if token_id in self.special_ids:
            return self.token_bytes(token_id), False
        if self.inner.is_byte(token_id):
            return self.token_bytes(token_id), True
        opening: str = self.inner.decode([token_id])
        return opening.encode(), bool(opening) or self.inner.decode([token_id, token_id]) != ""

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _running_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            return b""  # a row by which an embedding is padded beyond the vocabulary
        piece: str = self.inner.id_to_piece(token_id)
        if self.inner.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])  # "<0xAB>"
        if self.inner.is_unknown(token_id):
            surface: str = self.inner.decode([token_id])  # the model names it; usually " ⁇ "
            return surface.encode()
        return piece.replace(_SPACE, " ").encode()

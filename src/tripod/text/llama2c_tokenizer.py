"""The tokenizer files of llama2.c (`tok512.bin`, `tokenizer.bin`): SentencePiece BPE with byte fallback, written flat."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Sequence
from pathlib import Path

from tripod.errors import TokenizerError
from tripod.text.chat_template import ChatTemplate
from tripod.text.detokenizer import detokenize
from tripod.text.tokenizer_config import TokenizerConfig

_UNK, _BOS, _EOS = 0, 1, 2
_FIRST_BYTE = 3  # ids 3..258 are the raw bytes 0x00..0xFF
_FIRST_PIECE = _FIRST_BYTE + 256


class Llama2cTokenizer:
    """Pieces with scores; the pair whose merge has the best score is merged first, the leftmost of equals.

    Encoding puts a space before the text, decoding takes it off. Sequences were trained with BOS between them, so BOS ends
    a generation as EOS does. Format and algorithm: github.com/karpathy/llama2.c (run.c, tokenizer.py).
    """

    bos_id: int | None = _BOS
    eos_ids = frozenset({_BOS, _EOS})
    special_ids = frozenset({_UNK, _BOS, _EOS})

    def __init__(self, pieces: Sequence[bytes], scores: Sequence[float], chat_template: ChatTemplate | None = None) -> None:
        self.vocab_size = len(pieces)
        self.chat_template = chat_template
        self._scores = scores
        self._bytes = [*pieces[:_FIRST_BYTE], *(bytes([byte]) for byte in range(256)), *pieces[_FIRST_PIECE:]]
        self._ids = {piece: _FIRST_PIECE + i for i, piece in enumerate(pieces[_FIRST_PIECE:])}

    @staticmethod
    def load(file: Path, *, chat_template: Path | None = None) -> Llama2cTokenizer:
        """Read int32 longest piece, then for each piece float32 score, int32 length, bytes; little-endian.

        Raises:
            TokenizerError: the file is absent, truncated, or has too few pieces to hold the 256 bytes.
        """
        try:
            content = file.read_bytes()
        except OSError as error:
            raise TokenizerError(f"{file} cannot be read: {error}") from error
        pieces: list[bytes] = []
        scores: list[float] = []
        offset = 4
        while offset < len(content):
            header = content[offset : offset + 8]
            score, length = struct.unpack("<fi", header) if len(header) == 8 else (0.0, -1)
            offset += 8 + length
            if length < 0 or offset > len(content):
                raise TokenizerError(f"{file} ({len(content)} bytes) breaks off inside piece {len(pieces)}; fetch it again")
            pieces.append(content[offset - length : offset])
            scores.append(score)
        if len(pieces) < _FIRST_PIECE:
            raise TokenizerError(f"{file} holds {len(pieces)} pieces, expected at least {_FIRST_PIECE}: three marks and 256 bytes")
        return Llama2cTokenizer(pieces, scores, TokenizerConfig.read(file.parent, chat_template=chat_template).chat_template)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        symbols: list[int] = []
        for char in f" {text}" if text else "":
            piece = char.encode()
            known = self._ids.get(piece)
            symbols.extend([known] if known is not None else (_FIRST_BYTE + byte for byte in piece))
        ids = self._merge(symbols)
        return [_BOS, *ids] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return detokenize(self, ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if 0 <= token_id < self.vocab_size else b""

    def opening_bytes(self, token_id: int) -> tuple[bytes, bool]:
        if not 0 <= token_id < self.vocab_size or token_id in self.special_ids:
            return self.token_bytes(token_id), False
        return self._bytes[token_id].removeprefix(b" "), True

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _merge(self, symbols: list[int]) -> list[int]:
        """Byte-pair merging with a heap of candidate pairs over a linked list: O(n log n), so a long prompt cannot stall the caller."""
        following = [*range(1, len(symbols)), -1]
        preceding = [*range(-1, len(symbols) - 1)]
        alive = [True] * len(symbols)
        candidates: list[tuple[float, int, int, int, int]] = []  # -score, left position, left id, right id, merged id

        def propose(left: int) -> None:
            right = following[left]
            if right == -1:
                return
            merged = self._ids.get(self._bytes[symbols[left]] + self._bytes[symbols[right]])
            if merged is not None:
                heapq.heappush(candidates, (-self._scores[merged], left, symbols[left], symbols[right], merged))

        for position in range(len(symbols)):
            propose(position)
        while candidates:
            _, left, left_id, right_id, merged = heapq.heappop(candidates)
            right = following[left]
            if not alive[left] or right == -1 or symbols[left] != left_id or symbols[right] != right_id:
                continue  # one of the two has been merged since
            symbols[left] = merged
            alive[right] = False
            following[left] = following[right]
            if following[left] != -1:
                preceding[following[left]] = left
            propose(left)
            if preceding[left] != -1:
                propose(preceding[left])
        return [symbol for symbol, is_alive in zip(symbols, alive, strict=True) if is_alive]

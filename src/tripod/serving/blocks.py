"""An answer as a row of blocks - reasoning, text, calls - which the newer APIs announce, fill and close one after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tripod.trace import Delta


@dataclass(slots=True)
class Block:
    """One of them, as far as it has come."""

    kind: Literal["text", "reasoning", "call"]
    index: int
    call_id: str = ""
    name: str = ""
    text: str = ""  # of a call, its arguments


Change: TypeAlias = tuple[Literal["opened", "grown", "closed"], Block, str]  # the last: what was added


@dataclass(slots=True)
class Blocks:
    """The blocks of one answer. Whoever follows the changes and whoever reads the blocks at the end has seen the same."""

    blocks: list[Block] = field(default_factory=list)
    _is_open: bool = False

    def push(self, delta: Delta) -> Iterator[Change]:
        if delta.reasoning:
            yield from self._add("reasoning", delta.reasoning)
        if delta.text:
            yield from self._add("text", delta.text)
        for piece in delta.tool_calls:
            if piece.name:
                yield from self._open(Block("call", len(self.blocks), piece.id, piece.name))
            if piece.arguments:
                yield from self._grow(piece.arguments)

    def close(self) -> Iterator[Change]:
        """Closes the last block, where one is open."""
        if self._is_open:
            self._is_open = False
            yield "closed", self.blocks[-1], ""

    def _add(self, kind: Literal["text", "reasoning"], text: str) -> Iterator[Change]:
        if not self._is_open or self.blocks[-1].kind != kind:
            yield from self._open(Block(kind, len(self.blocks)))
        yield from self._grow(text)

    def _open(self, block: Block) -> Iterator[Change]:
        yield from self.close()
        self.blocks.append(block)
        self._is_open = True
        yield "opened", block, ""

    def _grow(self, text: str) -> Iterator[Change]:
        self.blocks[-1].text += text
        yield "grown", self.blocks[-1], text

"""What a tool may know of the run that calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tripod.messages import Message, Usage

Deps = TypeVar("Deps")


def _ignore(usage: Usage) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Context(Generic[Deps]):
    """Handed to a tool's parameter of this type: `async def search(query: str, context: Context[Database]) -> str`."""

    deps: Deps  # what the application gave the run
    messages: Sequence[Message] = ()  # the conversation up to the call
    spend: Callable[[Usage], None] = _ignore  # counts what the tool itself asked of models as the run's

"""One text followed through its grammar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tripod.errors import EngineError

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Matcher:
    """Where the output of one request stands in its grammar. One thread at a time.

    The law: whatever is accepted is the beginning of a text that the grammar allows, as far as bytes go; and
    `is_over` or an end-of-sequence token accepted means that the text is complete.
    """

    __slots__ = ("_eos_ids", "_inner")

    def __init__(self, inner: LLMatcher, eos_ids: frozenset[int]) -> None:
        self._inner = inner
        self._eos_ids = eos_ids

    @property
    def inner(self) -> LLMatcher:
        """For the masks, which are computed for many at once."""
        return self._inner

    @property
    def is_complete(self) -> bool:
        """The text may end here; there may be more to say."""
        return bool(self._inner.is_accepting())

    @property
    def is_over(self) -> bool:
        """The text is complete, and nothing can follow."""
        return bool(self._inner.is_stopped() and not self._inner.is_error())

    def accept(self, token_id: int) -> None:
        """Follow the text by one token.

        Raises:
            EngineError: the grammar does not allow it here, or its limits are exhausted.
        """
        if token_id in self._eos_ids and self.is_complete:
            return  # the text ends; the state stays, for whoever asks whether it is complete
        if not self._inner.consume_token(token_id):
            raise self.error or EngineError("the grammar takes no more tokens")

    @property
    def error(self) -> EngineError | None:
        """Why it can be followed no further: a token was not allowed, or its limits are exhausted."""
        if not self._inner.is_error():
            return None
        reason = str(self._inner.get_error()).partition("\n")[0]
        return EngineError(f"the grammar could not be followed any further: {reason or self._inner.stop_reason()}")

    def fork(self) -> Matcher:
        """The same place in the same grammar, to go another way from here."""
        return Matcher(self._inner.deep_copy(), self._eos_ids)

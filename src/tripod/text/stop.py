"""Strings that end a text, found across token borders."""

from __future__ import annotations


class StopStrings:
    """Cuts a text before the first place where a stop string stands, whatever the pieces in which the text arrives.

    Law: what was shown is the whole text before the earliest occurrence of any stop string; where two begin at the same
    place, the shorter one is named, for it is complete first. Only what may be the beginning of a stop string is held back.

    Args:
        stop: the strings, none of them empty.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = sorted(stop, key=len)
        self._held = ""  # not yet shown; begins where a stop string may begin
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """More of the text arrived.

        Returns:
            The text that is now safe to show, and the stop string that was found, or None. After a match nothing is shown.
        """
        if self._matched is not None:
            return "", self._matched
        self._held += text
        match = self._first_match()
        begin = self._possible_begin()
        if match is not None and match[0] <= begin:
            return self._cut(*match)
        shown, self._held = self._held[:begin], self._held[begin:]
        return shown, None

    def flush(self) -> tuple[str, str | None]:
        """The text is over: what was held back is shown, unless a stop string stands in it."""
        if self._matched is not None:
            return "", self._matched
        match = self._first_match()
        if match is not None:
            return self._cut(*match)
        shown, self._held = self._held, ""
        return shown, None

    def _cut(self, position: int, stop: str) -> tuple[str, str]:
        shown, self._held, self._matched = self._held[:position], "", stop
        return shown, stop

    def _first_match(self) -> tuple[int, str] | None:
        found = ((position, stop) for stop in self._stop if (position := self._held.find(stop)) != -1)
        return min(found, key=lambda match: match[0], default=None)  # the first of equals is the shortest

    def _possible_begin(self) -> int:
        """Where the earliest stop string begins that more text may complete; the end of the held text if none does."""
        held = self._held
        longest = max((len(stop) for stop in self._stop), default=1)
        for begin in range(max(0, len(held) - longest + 1), len(held)):
            if any(stop.startswith(held[begin:]) for stop in self._stop):
                return begin
        return len(held)

"""Headings to sections: every stretch of a text gets the path of the headings above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tripod.documents import Section

SEPARATOR = " > "  # between the headings of a path: Install > Linux > From source


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading that starts at a character of the text; level 1 stands above level 2."""

    start: int
    level: int
    title: str


def sections_of(headings: Sequence[Heading], start: int, end: int) -> tuple[Section, ...]:
    """Sections that tile [start, end): one before the first heading, then one a heading, titled with the heading's path.

    Args:
        headings: in order of their place, all within [start, end).
        start: where the first section begins.
        end: where the last section ends.

    Returns:
        The sections in order; the heading's own line is part of its section.
    """
    borders = [heading.start for heading in headings]
    sections: list[Section] = []
    if not borders or borders[0] > start:
        sections.append(Section(start, borders[0] if borders else end))
    path: list[Heading] = []
    for heading, section_end in zip(headings, [*borders, end][1:], strict=True):
        while path and path[-1].level >= heading.level:
            path.pop()
        path.append(heading)
        title = SEPARATOR.join(step.title for step in path if step.title)
        sections.append(Section(heading.start, section_end, title))
    return tuple(sections)

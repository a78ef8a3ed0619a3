"""Reading the citations of a generated answer, and refusing those that do not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tripod.documents import Passage
from tripod.errors import CitationError
from tripod.rag.answer import Citation, support
from tripod.rag.prompts import numbered
from tripod.rag.quotation import find_quotation
from tripod.rag.sentences import sentence_spans

MIN_QUOTED_WORDS = 3  # fewer words between marks are a name or a term, such as the "with" statement

_CODE = re.compile(
    r"^(?P<fence>```+|~~~+)[^\n]*\n.*?(?:^(?P=fence)[ \t]*$|\Z)|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)", re.MULTILINE | re.DOTALL
)
_NUMBERS = r"\d+(?:\s*[-\u2013]\s*\d+)?"
_MARKER = re.compile(rf"(?<!\\)\[\s*(?:passages?\s+)?({_NUMBERS}(?:\s*[,;]\s*{_NUMBERS})*)\s*\](?!\(|:\s*\S+://)", re.IGNORECASE)
_QUOTED = re.compile(
    r"\u201c((?:[^\u201c\u201d]|\u201c[^\u201c\u201d]*\u201d)+)\u201d"  # with quotation marks inside
    r'|\u201c([^\u201c\u201d"]+)"|\u201e([^\u201e\u201c\u201d]+)[\u201c\u201d]|\xab([^\xab\xbb]+)\xbb'  # of mixed and other make
    r'|(?<![\w"])"(?=\S)([^"]*(?:"\w[\w.()]*"[^"]*)*)(?<=\S)"(?!\w)'
)
_NAME_BEFORE = re.compile(r"(?:[\w.\]]|\w\([^()]*\))+$")


@dataclass(frozen=True, slots=True)
class _Marker:
    start: int
    end: int
    numbers: tuple[int, ...]


def cite(text: str, passages: Sequence[Passage] | Mapping[int, Passage], *, question: str = "") -> tuple[Citation, ...]:
    """The citations of `text`, in its order: for each marker the statement before it, and for each quotation its place in the source.

    A marker is `[2]`, `[1, 3]` or `[1-3]` outside code. An index that belongs to a name (`argv[0]`) is none, nor is a list of numbers that
    stands in the question or in a passage, nor what a true quotation repeats.

    Args:
        text: the generated answer.
        passages: what the model was given, in the order of their numbers, which start at 1, or by number.
        question: words of the question may be repeated between quotation marks.

    Raises:
        CitationError: a marker names a passage that was not given, or a quotation of at least three words stands in none of the
            passages that its marker names (without a marker: in none at all).
    """
    given = numbered(passages)
    code = [match.span() for match in _CODE.finditer(text)]
    markers = list(_markers(text, code, [question, *(passage.text for passage in given.values())]))
    for start, end in _quotations(text, code, ()):
        inside = [marker for marker in markers if start <= marker.start and marker.end <= end]
        if inside and any(find_quotation(text[start:end], passage.text) for passage in given.values()):
            markers = [marker for marker in markers if marker not in inside]  # words of the passage
    for marker in markers:
        for number in marker.numbers:
            if number not in given:
                raise CitationError(f"the answer cites [{number}], but {_given(given)}. The offending answer: {text!r}")

    citations: list[Citation] = []
    for start, end, marker in _statements(text, markers):
        citations.extend(support(start, end, n, given[n], (0, len(given[n].text)), is_quotation=False) for n in marker.numbers)
    for start, end in _quotations(text, code, markers):
        citations.extend(_check_quotation(text, start, end, markers, given, question))
    return tuple(sorted(citations, key=lambda citation: (citation.start, citation.end, citation.number)))


def _markers(text: str, code: Sequence[tuple[int, int]], given: Sequence[str]) -> Iterator[_Marker]:
    previous_end = -1
    for match in _MARKER.finditer(text):
        if _lies_in(match.start(), code):
            continue
        numbers = _numbers(match[1])
        if match.start() != previous_end and _is_text(text, match, numbers, given):
            continue
        previous_end = match.end()
        yield _Marker(match.start(), match.end(), numbers)


def _is_text(text: str, match: re.Match[str], numbers: Sequence[int], given: Sequence[str]) -> bool:
    """Whether the bracket is an index or a list that the answer speaks about."""
    name = _NAME_BEFORE.search(text, max(0, match.start() - 80), match.start())
    if name is None:
        return len(numbers) > 1 and any(match[0] in source for source in given)
    looks_like_code = re.search(r"[_\]]|[A-Za-z]\w*\.[A-Za-z]|\w\([^()]*\)$", name[0]) is not None or 0 in numbers
    return looks_like_code or any(name[0] + match[0] in source for source in given)


def _numbers(inside: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for item in re.split(r"[,;]", inside):
        first, *last = (int(digits) for digits in re.findall(r"\d+", item))
        # A range that is absurdly long must not be written out; its ends are enough to refuse it.
        numbers.extend(range(first, last[0] + 1) if last and first <= last[0] <= first + 100 else (first, *last))
    return tuple(dict.fromkeys(numbers))


def _statements(text: str, markers: Sequence[_Marker]) -> Iterator[tuple[int, int, _Marker]]:
    """With each marker, the stretch that it supports: its sentence, from the end of the marker before it."""
    sentences = sentence_spans(text)
    floor = 0  # the end of the last marker group whose statement was taken
    statement = (0, 0)
    for position, marker in enumerate(markers):
        follows = position > 0 and not text[markers[position - 1].end : marker.start].strip(" ,;")
        if not follows:
            begin = max((start for start, _ in sentences if start < marker.start), default=0)
            if not _words(text[max(begin, floor) : marker.start]):  # the marker stands after the stop: [1] is about the sentence before
                begin = max((start for start, _ in sentences if start < begin), default=0)
            statement = _trim(text, max(begin, floor), marker.start)
        floor = marker.end
        if statement[0] < statement[1]:
            yield *statement, marker


def _quotations(text: str, code: Sequence[tuple[int, int]], markers: Sequence[_Marker]) -> Iterator[tuple[int, int]]:
    """What stands between quotation marks, without the markers at its end."""
    for match in _QUOTED.finditer(text):
        assert match.lastindex is not None
        start, end = _trim(text, *match.span(match.lastindex))
        for marker in reversed(markers):
            if start < marker.start and marker.end <= end and not _words(text[marker.end : end]):
                start, end = _trim(text, start, marker.start)
        if not _lies_in(start, code) and len(_words(text[start:end])) >= MIN_QUOTED_WORDS:
            yield start, end


def _check_quotation(
    text: str, start: int, end: int, markers: Sequence[_Marker], given: Mapping[int, Passage], question: str
) -> Iterator[Citation]:
    quotation = text[start:end]
    cited = _numbers_after(text, end, markers)
    found = False
    for number in cited or given:
        passage = given[number]
        span = find_quotation(quotation, passage.text)
        if span is not None:
            found = True
            yield support(start, end, number, passage, span, is_quotation=True)
            if not cited:
                break
    if found or find_quotation(quotation, question) is not None:
        return
    where = f"passage {', '.join(map(str, cited))}, which it cites" if cited else "any of the passages"
    raise CitationError(
        f"the answer quotes {quotation!r}, which does not stand in {where}; {_given(given)}. The offending answer: {text!r}"
    )


def _numbers_after(text: str, offset: int, markers: Sequence[_Marker]) -> tuple[int, ...]:
    """The numbers of the markers that follow a quotation in its sentence, joined where they stand together."""
    end = min((stop for _, stop in sentence_spans(text) if stop >= offset), default=len(text))
    numbers: list[int] = []
    last_end: int | None = None
    for marker in markers:
        between = text[offset : marker.start] if last_end is None else text[last_end : marker.start]
        if marker.start < offset or (numbers and between.strip(" ,;")):
            continue
        if last_end is None and marker.start > end and _words(between):
            break
        numbers.extend(marker.numbers)
        last_end = marker.end
    return tuple(dict.fromkeys(numbers))


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start] in " \t\n,;":
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _lies_in(offset: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(start <= offset < end for start, end in spans)


def _given(given: Mapping[int, Passage]) -> str:
    if not given:
        return "no passage was given"
    consecutive = list(given) == list(range(1, len(given) + 1))
    numbers = f"[1] to [{len(given)}]" if consecutive and len(given) > 1 else ", ".join(f"[{number}]" for number in given)
    return f"the passages given are {numbers}: {', '.join(passage.id for passage in given.values())}"

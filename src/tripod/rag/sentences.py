"""Sentences of documentation, with exact offsets: prose is kept, markup and code are not taken for it.

Works on plain text, Markdown, reStructuredText and docstrings without knowing which of them it reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tripod.text.sentences import OPENING, STOP, split_prose
from tripod.text.sentences import sentence_spans as sentence_spans


@dataclass(frozen=True, slots=True)
class Sentence:
    """`text[start:end]` is one sentence. `block` counts the paragraphs and list items of the text."""

    start: int
    end: int
    block: int
    is_whole: bool  # begins like a sentence and ends with its stop; a summary line of a docstring may lack the stop


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    text: str  # without the line break

    @property
    def indent(self) -> int:
        return len(self.text) - len(self.text.lstrip())

    @property
    def is_blank(self) -> bool:
        return not self.text.strip()


_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_UNDERLINE = re.compile(r"\s*([=\-~^\"'*+#.:_`])\1{2,}\s*$")
_BULLET = re.compile(r"\s*(?:[-*+\u2022]|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,4})[.)]|#\.)\s+(?=\S)")
_DROPPED_LINE = re.compile(
    r"""\s*(?:
        \#{1,6}\s                                    # Markdown heading
      | >>>(?:\s|$) | \.\.\.(?:\s|$) | In\s\[\d+\]:  # interactive session
      | \.\.(?:\s|$)                                 # reStructuredText directive, comment or target
      | :[\w\s\\*`.-]{1,60}:(?:\s|$)                 # field of a field list
      | !!!\s | \?\?\?\+?\s | /{3,} | :{3,}          # admonitions of Markdown dialects
      | </?[A-Za-z!][^>]*>\s*$                       # a line that is one HTML tag
      | \|.*\|?\s*$ | \+[-=+]{3,}                    # tables
      | !?\[[^\]]*\]\([^)]*\)\s*$                    # an image or a link alone
      | \[[^\]]+\]:\s | \.\.\s_ | _{2}\s             # link definitions
      | \{[*%!].*[*%!]\}\s*$                         # template tags
    )""",
    re.VERBOSE,
)
_SEE_ALSO = re.compile(r"\s*see also:?\s*$", re.IGNORECASE)  # its body lists titles of other documents
_PROSE_DIRECTIVE = re.compile(
    r"\s*\.\.\s+(?:note|warning|tip|hint|important|attention|caution|danger|admonition|seealso|versionadded|versionchanged|deprecated)::",
)
_DIRECTIVE = re.compile(r"\s*\.\.(?:\s|$)")
_CODE_LINE = re.compile(
    r"""^\s*(?:
        (?:def|class|import|from|return|raise|assert|del|global|async|await|yield|elif|except)\b(?!.*[a-z]{2}\s+[a-z]+\s+[a-z]+\s+[a-z]+.*\.\s*$)
      | (?:if|for|while|with|try|else|finally)\b.*:\s*(?:\#.*)?$
      | @\w | \#(?!\s*[A-Z]) | \$\s | [\w.\[\]"', ]+\s*(?:[-+*/|&%@]|//|\*\*|:)?=\s*\S
      | [\w.]+\(.*\)\s*(?:->.*)?:?\s*(?:\#.*)?$
      | \S+\s*::=  | \|\s | [\]})({\[]+,?\s*$ | <\S | "?[\w.-]+"?:\s*["\[{\d]
    )""",
    re.VERBOSE,
)
_SIGNATURE = re.compile(
    r"^\s*(?:class\s+|def\s+|async\s+def\s+|classmethod\s+|static(?:method)?\s+|exception\s+|function\s+)?[\w.]+\s*"
    r"\((?:[^()]|\([^()]*\))*\)(?:\s*->\s*.+)?:?\s*$"
)


def sentences(text: str) -> list[Sentence]:
    """The sentences of the prose in `text`, in order.

    Headings, code blocks, interactive sessions, signatures, tables, field lists and directives are left out. Ordinary text without
    any markup yields all of its sentences.
    """
    found: list[Sentence] = []
    for block, lines in enumerate(_blocks(_lines(text))):
        start, end = lines[0].start, lines[-1].start + len(lines[-1].text)
        bullet = _BULLET.match(lines[0].text)
        start += bullet.end() if bullet else lines[0].indent
        found.extend(Sentence(a, b, block, _is_whole(text[a:b])) for a, b in split_prose(text, start, end))
    return found


def _lines(text: str) -> list[_Line]:
    lines: list[_Line] = []
    offset = 0
    for piece in text.splitlines(keepends=True):
        lines.append(_Line(offset, piece.rstrip("\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029")))
        offset += len(piece)
    return lines


def _blocks(lines: Sequence[_Line]) -> Iterator[list[_Line]]:
    """Paragraphs and list items, as runs of lines; everything that is not prose is left out."""
    prose = _prose_mask(lines)
    block: list[_Line] = []
    for index, line in enumerate(lines):
        starts_new = not prose[index] or (block and (_BULLET.match(line.text) or _leaves(block, line)))
        if starts_new:
            if block:
                yield from _checked(block)
            block = []
        if prose[index]:
            block.append(line)
    if block:
        yield from _checked(block)


def _leaves(block: Sequence[_Line], line: _Line) -> bool:
    """Whether a line is no continuation: it is indented less than the block, or more than a hanging indent."""
    last = block[-1].indent if len(block) > 1 else None
    bullet = _BULLET.match(block[0].text)
    if last is not None:
        return line.indent != last
    if bullet:
        return line.indent <= block[0].indent
    return line.indent > block[0].indent + 1 and len(block[0].text.strip()) < 60 and not block[0].text.rstrip().endswith((",", "-"))


def _checked(block: list[_Line]) -> Iterator[list[_Line]]:
    """The block, unless it is a signature, a grammar or a stretch of code."""
    text = " ".join(line.text.strip() for line in block)
    if _SIGNATURE.match(text):
        return
    coded = sum(bool(_CODE_LINE.match(line.text)) for line in block)
    if coded * 2 > len(block) or (coded and len(block) > 1 and not STOP.search(text)):
        return
    yield block


def _prose_mask(lines: Sequence[_Line]) -> list[bool]:
    prose = [not line.is_blank for line in lines]
    fence: str | None = None
    skip_deeper_than: int | None = None  # the body of a directive or literal block is indented deeper than its opener
    in_session = False
    for index, line in enumerate(lines):
        opening = _FENCE.match(line.text)
        if fence is not None or opening:
            prose[index] = False
            if fence is None and opening:
                fence = opening[1]
            elif fence is not None and opening and opening[1].startswith(fence):
                fence = None
            continue
        if line.is_blank:
            in_session = False
            continue
        if skip_deeper_than is not None:
            if line.indent > skip_deeper_than:
                prose[index] = False
                continue
            skip_deeper_than = None
        if in_session or line.text.lstrip().startswith((">>>", "In [")):
            in_session = True
            prose[index] = False
            continue
        if _SEE_ALSO.match(line.text):
            prose[index] = False
            skip_deeper_than = line.indent
            continue
        if _UNDERLINE.match(line.text) or _DROPPED_LINE.match(line.text):
            prose[index] = False
            if _UNDERLINE.match(line.text) and index and not _is_overline(lines, index):
                prose[index - 1] = False  # the title above its underline
            if _DIRECTIVE.match(line.text) and not _PROSE_DIRECTIVE.match(line.text):
                skip_deeper_than = line.indent
            continue
        if line.text.rstrip().endswith("::"):
            following = next((later for later in lines[index + 1 :] if not later.is_blank), None)
            paragraph_indent = min(line.indent, lines[index - 1].indent if index and not lines[index - 1].is_blank else line.indent)
            if following is not None and following.indent > paragraph_indent:
                skip_deeper_than = paragraph_indent
    _drop_overlined_titles(lines, prose)
    return prose


def _is_overline(lines: Sequence[_Line], index: int) -> bool:
    """Whether this rule stands above a title, not below one."""
    above = lines[index - 1]
    return above.is_blank or (len(above.text.strip()) > 3 * len(lines[index].text.strip()) and len(above.text.strip()) > 60)


def _drop_overlined_titles(lines: Sequence[_Line], prose: list[bool]) -> None:
    for index in range(len(lines) - 2):
        if (
            _UNDERLINE.match(lines[index].text)
            and _UNDERLINE.match(lines[index + 2].text)
            and lines[index].text.strip()[:1] == lines[index + 2].text.strip()[:1]
        ):
            prose[index + 1] = False


def _is_whole(sentence: str) -> bool:
    starts = OPENING.match(sentence) is not None
    stops = STOP.search(sentence) is not None and re.search(r"""[.!?\u3002\uff01\uff1f]["'\u201d\u2019)\]*`]*$""", sentence) is not None
    words = len(re.findall(r"\w+", sentence))
    return starts and (stops or (words >= 5 and re.search(r"[\w)`\"']$", sentence) is not None)) and words >= 3

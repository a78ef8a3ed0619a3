"""Python source: docstrings and comments, under the qualified name of what they explain. Offsets point into the decoded file."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import TypeAlias

from tripod.documents import Document, Section
from tripod.errors import ConversionError
from tripod.retrieval.converters.encoding import decode
from tripod.retrieval.converters.pydoc_topics import read_topics

_QUOTES = re.compile(r"[rRuUbB]{0,2}('''|\"\"\"|'|\")")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_WORD = re.compile(r"[^\W\d_]{2,}")
_DIRECTIVE = re.compile(r"#\s*(?:!|-\*-|type:|noqa|pragma|pylint:|mypy:|ruff:|fmt:|vim:|coding[:=])")
_MIN_COMMENT_WORDS = 4  # a shorter comment explains its line and nothing to a reader elsewhere

_Definition: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonSource:
    """Only docstrings and whole-line comments are indexed; the code stays in the document's text, around them."""

    has_comments: bool = True  # False reads docstrings only: what was written for the user, not for the maintainer

    @property
    def suffixes(self) -> frozenset[str]:
        return frozenset({".py"})

    def convert(self, content: bytes, source: str) -> Document:
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        except SyntaxError as error:
            raise ConversionError(f"it is not Python source: {error}") from None
        text, encoding = decode(content, encoding)
        metadata = {"format": "python", "encoding": encoding}
        module = _module_name(source)
        if topics := read_topics(text):
            return Document(source=source, text=topics.text, title=module, sections=topics.sections, lines=topics.lines, metadata=metadata)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an invalid escape in someone's source is not our warning
                tree = ast.parse(text)
            places = _Places(text)
            found = list(_definitions(tree, module))
            sections = list(_docstrings(found, places))
            if self.has_comments:
                sections.extend(_comments(found, places))
        except (RecursionError, MemoryError):  # the latter is how the parser says it
            raise ConversionError("it cannot be parsed as Python: it is nested too deeply") from None
        except (SyntaxError, ValueError, tokenize.TokenError) as error:
            raise ConversionError(f"it cannot be parsed as Python: {error}") from None
        sections.sort(key=lambda section: section.start)
        # Without any section all of the text would be indexed; an empty one says that there is nothing to read here.
        return Document(source=source, text=text, title=module, sections=tuple(sections) or (Section(0, 0),), metadata=metadata)


def _module_name(source: str) -> str:
    parts = list(PurePosixPath(source).with_suffix("").parts)
    if parts[0] == "src":
        parts = parts[1:]
    if len(parts) > 1 and parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


class _Places:
    """Lines and columns, as `ast` counts them, to offsets."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = [0, *(match.end() for match in _NEWLINE.finditer(text))]

    def of_bytes(self, line: int, column: int) -> int:
        """`line` counts from 1, `column` in bytes of UTF-8."""
        start = self.starts[line - 1]
        head = self.text[start : start + column]
        return start + (column if head.isascii() else len(self._line(line).encode()[:column].decode()))

    def lines(self) -> Iterator[str]:
        """The lines as `ast` sees them: `tokenize` by itself takes a lone carriage return for a space."""
        for start, end in pairwise([*self.starts, len(self.text)]):
            yield self.text[start:end].rstrip("\r\n") + "\n"

    def _line(self, line: int) -> str:
        return self.text[self.starts[line - 1] : self.starts[line] if line < len(self.starts) else len(self.text)]


def _definitions(node: _Definition, name: str) -> Iterator[tuple[_Definition, str]]:
    """Modules, classes and functions with their qualified names, outer before inner."""
    yield node, name
    stack: list[ast.AST] = [node]
    while stack:
        for child in ast.iter_child_nodes(stack.pop()):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _definitions(child, f"{name}.{child.name}")
            elif not isinstance(child, ast.expr):  # a definition may stand in an `if` or a `try`, never in an expression
                stack.append(child)


def _docstrings(definitions: list[tuple[_Definition, str]], places: _Places) -> Iterator[Section]:
    for node, name in definitions:
        if not (node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)):
            continue
        constant = node.body[0].value
        if not isinstance(constant.value, str) or constant.end_lineno is None or constant.end_col_offset is None:
            continue
        start = places.of_bytes(constant.lineno, constant.col_offset)
        end = places.of_bytes(constant.end_lineno, constant.end_col_offset)
        if quotes := _QUOTES.match(places.text, start, end):
            start, end = quotes.end(), end - len(quotes[1])
        yield Section(start, end, name)


def _comments(definitions: list[tuple[_Definition, str]], places: _Places) -> Iterator[Section]:
    """Blocks of comments that stand on lines of their own, one section each."""
    block: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(places.lines().__next__):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip() or _DIRECTIVE.match(token.string):
            continue
        if block and (token.start[0], token.start[1]) != (block[-1].start[0] + 1, block[-1].start[1]):
            yield from _comment_section(block, definitions, places)
            block = []
        block.append(token)
    yield from _comment_section(block, definitions, places)


def _comment_section(block: list[tokenize.TokenInfo], definitions: list[tuple[_Definition, str]], places: _Places) -> Iterator[Section]:
    if sum(len(_WORD.findall(token.string)) for token in block) < _MIN_COMMENT_WORDS:
        return
    line = block[0].start[0]
    inside = [name for node, name in definitions if isinstance(node, ast.Module) or node.lineno <= line <= (node.end_lineno or 0)]
    start = places.starts[line - 1] + block[0].start[1]
    end = places.starts[block[-1].end[0] - 1] + block[-1].end[1]
    yield Section(start, end, f"{inside[-1]} (comment)")

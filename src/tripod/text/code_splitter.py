"""Passages of source code along its syntax, as tree-sitter sees it: whole definitions under their names."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate
from typing import Any

from tripod.documents import Document, Passage, Section
from tripod.errors import ConfigError, MissingExtraError
from tripod.text.passages import passages_at
from tripod.text.splitter import Cutter, approximate_tokens, budget, check_budget

LANGUAGES = ("c", "go", "java", "javascript", "python", "rust")  # those whose grammars the extra brings
_MAX_DEPTH = 60  # of the syntax tree that is looked into: code that is generated nests without end


@dataclass(frozen=True, slots=True)
class Code:
    """Whole definitions, as many neighbours as fit; one that is too large is cut into its parts, and those into theirs.

    A comment stays with what it stands before. A passage's section is the path of the names that it lies in or begins with. A
    document in another language than that of its metadata's `code` (or `format`) is cut as `split` cuts.
    """

    max_tokens: int
    language: str = ""  # of every document; empty: what the document's metadata says
    count_tokens: Callable[[str], int] = approximate_tokens

    def __post_init__(self) -> None:
        check_budget(self.max_tokens)
        if self.language and self.language not in LANGUAGES:
            raise ConfigError(f"language={self.language!r} is not known; give one of {', '.join(LANGUAGES)}")

    @property
    def fingerprint(self) -> str:
        return f"syntax of {self.language or 'each language'}, {budget(self.max_tokens, self.count_tokens)}"

    def split(self, document: Document) -> list[Passage]:
        """
        Raises:
            MissingExtraError: tree-sitter, or the language's grammar, is not installed.
        """
        language = self.language or str(document.metadata.get("code", document.metadata.get("format", "")))
        return passages_at(document, self._spans(document.text, language))

    def _spans(self, text: str, language: str) -> Iterator[Section]:
        cutter = Cutter(text, self.max_tokens, self.count_tokens)
        if language not in LANGUAGES:
            yield from (Section(start, end) for start, end in cutter.cut(0, len(text)))
            return
        content = text.encode(errors="surrogatepass")
        root = _parser(language).parse(content).root_node
        characters = list(accumulate((len(character.encode(errors="surrogatepass")) for character in text), initial=0))

        def place(offset: int) -> int:
            return bisect_right(characters, offset) - 1

        start, end, title = 0, 0, ""
        for piece_start, piece_end, name, is_opening in self._pieces(root, place, Section(0, len(text)), text, _MAX_DEPTH):
            if end > start and (is_opening or self.count_tokens(text[start:piece_end].strip()) > self.max_tokens):
                yield from (Section(*piece, title) for piece in cutter.cut(start, end))
                start, title = piece_start, ""
            end, title = piece_end, title or name
        yield from (Section(*piece, title) for piece in cutter.cut(start, end))

    def _pieces(self, node: Any, place: Callable[[int], int], span: Section, text: str, depth: int) -> Iterator[tuple[int, int, str, bool]]:
        """What tiles the stretch of a node, whose title is its path: its children, and of those that are too large theirs.

        Start, end, path, and whether here begins a definition that is cut: its first words do not belong to what stands before.
        """
        begin, is_opening = span.start, False
        children = [child for child in node.children if place(child.end_byte) > place(child.start_byte)]
        for i, child in enumerate(children):
            stop = span.end if i + 1 == len(children) else place(children[i + 1].start_byte)
            if "comment" in child.type and i + 1 < len(children):
                continue  # it begins the piece of what follows
            name = _name(child, span.title)
            if depth and child.children and self.count_tokens(text[begin:stop].strip()) > self.max_tokens:
                is_opening = name != span.title
                for start, end, path, is_inner in self._pieces(child, place, Section(begin, stop, name), text, depth - 1):
                    yield start, end, path, is_inner or is_opening
                    is_opening = False
            else:
                yield begin, stop, name, False
            begin = stop
        if begin < span.end:
            yield begin, span.end, span.title, False


def _name(node: Any, path: str) -> str:
    """The path of names down to this node; the path itself for a node without a name."""
    if "import" in node.type:
        return path
    named = node
    for inner in ("definition", "declaration"):  # below a decorator, an export
        named = named.child_by_field_name(inner) or named
    found = named.child_by_field_name("name")
    while found is None and (inner_declarator := named.child_by_field_name("declarator")) is not None:  # C: the name stands in there
        named = inner_declarator
        found = named if named.type == "identifier" else None
    if found is None:
        return path
    name = str(found.text.decode(errors="replace"))
    is_known = path == name or path.endswith(f".{name}")  # by the decorator or the export above
    return path if is_known else f"{path}.{name}" if path else name


def _parser(language: str) -> Any:
    try:
        tree_sitter, grammar = import_module("tree_sitter"), import_module(f"tree_sitter_{language}")
    except ModuleNotFoundError:
        raise MissingExtraError(f"tree-sitter-{language}", "code", f"cutting {language} along its syntax") from None
    return tree_sitter.Parser(tree_sitter.Language(grammar.language()))

"""Source code in other languages than Python, and configuration: the file is the document."""

from __future__ import annotations

from pathlib import PurePosixPath

from tripod.documents import Document
from tripod.retrieval.converters.encoding import decode

LANGUAGES = {  # suffix -> the language's name, which `tripod.text.code_splitter` knows too
    **dict.fromkeys((".js", ".mjs", ".cjs", ".jsx"), "javascript"),
    **dict.fromkeys((".ts", ".tsx"), "typescript"),
    **dict.fromkeys((".c", ".h"), "c"),
    **dict.fromkeys((".cc", ".cpp", ".cxx", ".hpp", ".hh"), "cpp"),
    **dict.fromkeys((".sh", ".bash", ".zsh"), "bash"),
    **dict.fromkeys((".yaml", ".yml"), "yaml"),
    **dict.fromkeys((".ini", ".cfg"), "ini"),
    ".java": "java",
    ".go": "go",
    ".rs": "rust",
    ".rb": "ruby",
    ".php": "php",
    ".cs": "csharp",
    ".swift": "swift",
    ".kt": "kotlin",
    ".scala": "scala",
    ".lua": "lua",
    ".pl": "perl",
    ".r": "r",
    ".jl": "julia",
    ".sql": "sql",
    ".css": "css",
    ".toml": "toml",
    ".proto": "proto",
}


class SourceCode:
    """Offsets point into the decoded file; the metadata names the language as `code`."""

    suffixes = frozenset(LANGUAGES)

    def convert(self, content: bytes, source: str) -> Document:
        text, encoding = decode(content)
        language = LANGUAGES[PurePosixPath(source).suffix.lower()]
        return Document(source=source, text=text, metadata={"format": "code", "code": language, "encoding": encoding})

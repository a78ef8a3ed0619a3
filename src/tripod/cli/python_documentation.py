"""The documentation that every Python carries, as training data: what the demo indexes, one document a file."""

from __future__ import annotations

import inspect
import json
import sysconfig
from pathlib import Path

from tripod.cli.demo_documents import EXCLUDE

NAME = "python-documentation"  # as which a recipe names it


def write_python_documentation(path: Path) -> None:
    """Write the language reference and the docstrings of the standard library as jsonl, sorted by their files."""
    from tripod.durable_files import atomic_file
    from tripod.errors import ConversionError
    from tripod.retrieval.converters.python_source import PythonSource
    from tripod.retrieval.scan import scan

    converter = PythonSource(has_comments=False)
    folder = Path(sysconfig.get_paths()["stdlib"])
    with atomic_file(path) as lines:
        for file in scan(folder, suffixes=converter.suffixes, exclude=EXCLUDE).files:
            try:
                document = converter.convert(file.path.read_bytes(), file.source)
            except ConversionError:
                continue  # files that are not meant to be parsed; the demo names them
            texts = (inspect.cleandoc(document.text[section.start : section.end]) for section in document.sections)
            text = "\n\n".join(text for text in texts if text)
            if text:
                lines.write(json.dumps({"text": text, "file": file.source}, ensure_ascii=False).encode() + b"\n")

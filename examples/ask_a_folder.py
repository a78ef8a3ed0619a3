"""Ask a folder of documents: answers are quoted with file and line, and what the documents do not answer is not answered.

    python examples/ask_a_folder.py docs/ "How are blocks freed?"

No language model is needed. With one, pass `model="path/to/checkpoint"` or `model="http://localhost:8000/v1"` to `tripod.ask`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import tripod


async def main(folder: str, question: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        async with tripod.Index(Path(scratch) / "kb.db") as index:  # a path of your own keeps the index; syncing it again is quick
            report = await index.sync(folder)
            print(f"{report.added} documents read, {len(report.failed)} could not be")

            answer = await tripod.ask(question, index)
            print()
            print(answer.text)
            print(f"({answer.kind}, confidence {answer.confidence:.2f})")

            # A citation says which characters of the answer rest on which characters of which file.
            for citation in answer.citations:
                document = await index.document(citation.source)
                assert document.text[citation.source_start : citation.source_end] == citation.quote
                print(f"[{citation.number}] {citation.place}")

            # The trace says what was done and how long it took.
            for span in answer.trace:
                print(f"    {span.name}: {span.duration_s * 1000:.1f} ms")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} FOLDER QUESTION")
    tripod.run(main(sys.argv[1], sys.argv[2]))

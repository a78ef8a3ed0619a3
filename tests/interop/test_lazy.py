"""What the floor costs whoever has none of the three libraries, and what they are told."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
for name in ("langchain_core", "haystack", "llama_index"):
    sys.modules[name] = None  # as if it were not installed

import tripod.interop.haystack as haystack, tripod.interop.langchain as langchain, tripod.interop.llamaindex as llamaindex
from tripod.errors import MissingExtraError

searches = langchain.to_retriever, haystack.to_component, llamaindex.to_retriever
for give in (langchain.to_tool, haystack.to_tool, llamaindex.to_tool, *searches):
    try:
        give(print)
    except MissingExtraError as error:
        print(error)
"""


def test_without_the_libraries_the_floor_imports_and_names_the_extra() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    told = done.stdout.splitlines()
    assert [line.split("pip install ")[1] for line in told] == [
        f"'tripod[{extra}]'" for extra in ("langchain", "haystack", "llamaindex") * 2
    ]

"""What the tests give to other libraries: an index, and a tool whose second parameter a run fills."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tripod
from tests.conformance.conftest import pytest_configure as pytest_configure  # the others' markers, and no telemetry
from tests.conformance.conftest import pytest_pyfunc_call as pytest_pyfunc_call  # their tests that are coroutines

TEXTS = {
    "retry.md": "The retry wrapper waits as long as the server asked for.",
    "sync.md": "A sync compares the folder with what the index holds.",
    "blocks.md": "Blocks of the cache are freed when the request that owns them ends, and the wrapper waits.",
    "wait.md": "Whoever waits may also ask the server for something else.",
}


@pytest.fixture(scope="session")
def index() -> Iterator[tripod.Index]:
    index = tripod.Index(":memory:", embedder=None)
    tripod.run(index.__aenter__())
    tripod.run(index.add([tripod.Document(source=name, text=text, metadata={"year": 2020}) for name, text in TEXTS.items()]))
    yield index
    tripod.run(index.__aexit__(None, None, None))

"""LangGraph's own suite for checkpointers, on journals in SQLite and PostgreSQL, base and extended capabilities alike."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

pytest.importorskip("langgraph.checkpoint.conformance", reason="run: pip install 'tripod[conformance]'")

from langgraph.checkpoint.conformance import checkpointer_test, validate

import tripod
from tests.conformance.langgraph_saver import JournalSaver
from tripod.flows.journal import Journal


def test_a_journal_keeps_langgraphs_checkpoints(address: str) -> None:
    @checkpointer_test(name="journal")
    async def saver() -> AsyncIterator[JournalSaver]:
        async with Journal(address) as journal:
            yield JournalSaver(journal)

    report = tripod.run(validate(saver))
    assert {name: result.failures for name, result in report.results.items() if result.failures} == {}
    assert report.passed_all()
    assert sum(result.tests_passed for result in report.results.values()) >= 81  # of version 0.0.2

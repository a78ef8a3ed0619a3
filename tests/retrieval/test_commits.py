"""The promise of the campaign `commits`, for the first of its generated commits."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from benchmarks.campaigns.commits import generated, replay


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [0, 1])
def test_an_index_equals_a_fresh_one_after_each_commit_and_only_what_changed_is_read(tmp_path: Path, seed: int) -> None:
    outcomes = list(islice(replay(generated(12, seed, num_files=24), tmp_path), 12))
    assert [outcome.failures for outcome in outcomes] == [()] * 12
    assert outcomes[0].num_embedded == outcomes[0].num_embedded_afresh
    assert sum(outcome.num_embedded for outcome in outcomes[1:]) < 0.15 * sum(outcome.num_embedded_afresh for outcome in outcomes[1:])

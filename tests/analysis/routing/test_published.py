"""OLMoE's experts are specialised by domain, Mixtral's hardly: from the counts that were released."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tripod.analysis.routing.published import DOMAINS, share_table, specialization_table


def test_olmoe_is_specialised_by_domain_and_mixtral_hardly(shared_data: Path) -> None:
    table = specialization_table(shared_data)
    intervals = {str(row["model"]): (row["low"], row["high"]) for row in table.where(layer="all")}
    assert float(intervals["OLMoE-1B-7B"][0] or 0) > 0.8
    assert float(intervals["Mixtral-8x7B"][1] or 1) < 0.15
    assert float(intervals["difference"][0] or 0) > 0.7
    by_chance = table.where(lambda row: row["by chance"] is not None)
    assert all(float(row["low"] or 0) > 5 * float(row["by chance"] or 1) for row in by_chance)  # both are above a router by chance


def test_shares_are_those_of_the_files(shared_data: Path) -> None:
    table = share_table(shared_data)
    assert len(table) == (64 + 8) * 3 * len(DOMAINS)
    counts = json.loads((shared_data / "olmoe-routing" / "mistral.expert_counts.github.json").read_text())[1]
    [share] = table.where(model="Mixtral-8x7B", layer=15, expert=2, domain="github").numbers("share")
    assert share == pytest.approx(counts["2"] / 208_896)  # 102 sequences of 2,048 tokens
    # The paper: the first expert of layer 0 receives nearly all tokens of arXiv.
    assert max(table.where(model="OLMoE-1B-7B", layer=0).numbers("share")) == pytest.approx(0.977, abs=5e-4)
    for (_, _, domain), of_domain in table.by("model", "layer", "domain").items():
        assert sum(of_domain.numbers("share")) == pytest.approx(8 if len(of_domain) == 64 else 2), domain

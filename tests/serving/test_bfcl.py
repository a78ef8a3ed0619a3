"""The promise of the campaign `bfcl` in a seeded small share, and the rules by which it judges."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import pytest
from benchmarks.campaigns import bfcl
from benchmarks.campaigns.served_model import tiny_model

ACCEPTED = [{"f": {"a": [1, 2], "b": ["x", ""]}}]


@pytest.mark.parametrize(
    ("calls", "accepted", "expected"),
    [
        ([("f", {"a": 2})], ACCEPTED, True),
        ([("f", {"a": 1, "b": "x"})], ACCEPTED, True),
        ([("f", {"a": 3})], ACCEPTED, False),
        ([("f", {"b": "x"})], ACCEPTED, False),  # a may not be left out
        ([("f", {"a": 1, "c": 1})], ACCEPTED, False),
        ([("g", {"a": 1})], ACCEPTED, False),
        ([], ACCEPTED, False),
        ([("f", {"a": 1}), ("f", {"a": 1})], ACCEPTED, False),
        ([("f", {"a": 2}), ("f", {"a": 1})], [{"f": {"a": [1]}}, {"f": {"a": [2]}}], True),
        ([], None, True),
        ([("f", {})], None, False),
    ],
)
def test_an_answer_is_right_by_the_rules_of_the_leaderboard(
    calls: list[tuple[str, dict[str, object]]], accepted: object, expected: bool
) -> None:
    assert bfcl.is_accepted(calls, accepted) is expected  # type: ignore[arg-type]


@pytest.mark.campaign
def test_calls_that_end_are_valid_whatever_the_model(shared_data: Path, tmp_path: Path) -> None:
    cases = bfcl.read_cases(shared_data / "bfcl")
    assert len(cases) == 1040
    share = [case for part in bfcl.PARTS for case in [case for case in cases if case.part == part][:5]]
    options = argparse.Namespace(seed=0, max_tokens=256)
    outcomes = asyncio.run(bfcl._run(tiny_model(tmp_path / "tiny", max_positions=8192), share, options))
    assert [failure for outcome in outcomes for failure in outcome.failures] == []
    assert [outcome.refused for outcome in outcomes if outcome.refused is not None] == []
    assert any(outcome.is_finished and outcome.num_calls for outcome in outcomes)

"""The seeded small share of the campaign that kills training runs: two runs, four kills each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.campaign
def test_a_killed_run_resumes_bit_for_bit_also_when_it_was_saving(tmp_path: Path) -> None:
    """In a process of its own, which forks its victims before torch has started a thread."""
    campaign = subprocess.run(
        [sys.executable, "-m", "benchmarks.campaigns", "resume", "--points", "2", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    outcomes = [json.loads(line) for line in (tmp_path / "resume.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [outcome["failures"] for outcome in outcomes] == [[], []]
    assert sum(outcome["num_killed"] for outcome in outcomes) >= 4
    assert sum(outcome["num_while_saving"] for outcome in outcomes) >= 1

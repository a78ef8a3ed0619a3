"""`tripod simulate` as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tripod.cli.app import main


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code if isinstance(ended.value.code, int) else 0


def test_policies_and_rates_are_compared_in_a_table_that_says_it_is_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "runs.png"
    arguments = ["synthetic", "--requests", "60", "--policy", "tripod", "--policy", "fcfs", "--rate", "1", "--rate", "3"]
    assert run(["simulate", *arguments, "--plot", str(picture)]) == 0
    told = capsys.readouterr()
    title, head, *rows = told.out.splitlines()
    assert title == "simulated, not measured"
    assert head.split()[:3] == ["policy", "rate", "done"]
    assert [row.split()[:3] for row in rows] == [[p, r, "60"] for p in ("tripod", "fcfs") for r in ("1x", "3x")]
    assert [row.split()[-1] == "0.0%" for row in rows] == [False, False, True, True]  # only one of them has a cache
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_an_unknown_policy_or_trace_is_the_callers_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "synthetic", "--policy", "magic"]) == 2
    assert "there is no policy 'magic'; give one of tripod, fcfs" in capsys.readouterr().err
    assert run(["simulate", "absent.csv"]) == 2
    assert "absent.csv is not a trace" in capsys.readouterr().err


def test_what_cannot_be_simulated_or_drawn_is_refused_before_anything_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--rate", "0"], "rate=0 cannot multiply"),
        (["--rate", "1", "--rate", "-1"], "rate=-1 cannot multiply"),
        (["--length", "0"], "length=0 cannot multiply"),
        (["--plot", "runs.jpeg"], "end its name in .png"),
        (["--plot", str(tmp_path / "absent" / "runs.png")], "there is no folder"),
    ):
        assert run(["simulate", "synthetic", "--requests", "5", *arguments]) == 2
        told = capsys.readouterr()
        assert message in told.err
        assert "tripod" not in told.out

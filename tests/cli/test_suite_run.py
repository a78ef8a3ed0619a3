"""`tripod suite run`: every run of a suite, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Command

pytest.importorskip("torch")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"{number:02}.md").write_text(
            f"# Page {number}\n\n" + "A lantern hangs by the river.\n" * 20, encoding="utf-8"
        )
    path = tmp_path / "suite.yaml"
    path.write_text(
        f"""
        run: aside
        num_steps: 6
        model: {{vocab_size: 300, hidden_size: 32, num_layers: 2, num_heads: 2, max_positions: 64}}
        data:
          prefixes: ["{tmp_path}/data/text"]
          tokenizer: {tmp_path}/data/tokenizer
          source: {{inputs: ["{tmp_path}/texts"], vocab_size: 300}}
        batch: {{rows: 4, seq_length: 16}}
        optimizer: {{lr: 1e-2}}
        checkpoints: {{log_until: 4, every: 5}}
        suite:
          runs: {tmp_path}/runs/{{size}}
          sizes: {{narrow: {{}}, wide: {{model: {{hidden_size: 64}}}}}}
        """,
        encoding="utf-8",
    )
    return path


def test_a_suite_is_trained_and_what_is_complete_is_left(tripod: Command, suite: Path, tmp_path: Path) -> None:
    done = tripod("suite", "run", suite, "--jobs", "2")
    assert done.code == 0, done.err
    for name in ("narrow", "wide"):
        assert re.search(rf"{name} +complete +6/6 +\d\.\d\d\d", done.out), done.out
        assert f"{name}: training at step 0 of 6" in done.err
    manifests = [json.loads((tmp_path / "runs" / name / "step6" / "manifest.json").read_text()) for name in ("narrow", "wide")]
    assert manifests[0]["order_fingerprint"] == manifests[1]["order_fingerprint"]
    assert [manifest["recipe"]["model"]["hidden_size"] for manifest in manifests] == [32, 64]
    before = (tmp_path / "runs" / "wide" / "metrics.jsonl").read_bytes()
    again = tripod("suite", "run", suite)
    assert (again.code, again.out) == (0, done.out)
    assert (tmp_path / "runs" / "wide" / "metrics.jsonl").read_bytes() == before


def test_a_run_that_fails_stops_no_other_and_its_reason_is_told(tripod: Command, suite: Path) -> None:
    suite.write_text(suite.read_text().replace("narrow: {}", "narrow: {optimizer: {lr: 1e30}}"))
    done = tripod("suite", "run", suite, "--jobs", "2")
    assert done.code == 1
    assert re.search(r"narrow +failed", done.out)
    assert re.search(r"wide +complete +6/6", done.out)
    assert "narrow: error: the loss of step" in done.err
    refused = tripod("suite", "run", suite, "--set", "suite.sizes={wide: {model: {hidden_size: 64}}}", "--set", "lr=0.5")
    assert refused.code == 2
    assert "optimizer.lr: 0.01 before, 0.5 now" in refused.err
    assert "training" not in refused.err  # before any work


def test_ctrl_c_saves_every_run_and_the_same_command_goes_on(suite: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tripod", "suite", "run", str(suite), "--jobs", "2", "--set", "num_steps=100000"]
    command += ["--set", "checkpoints.every=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        metrics = [tmp_path / "runs" / name / "metrics.jsonl" for name in ("narrow", "wide")]
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and not all(path.is_file() and path.read_bytes().count(b"\n") > 10 for path in metrics):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    for name in ("narrow", "wide"):
        stopped = re.search(rf"{name} +stopped +(\d+)/100000", out)
        assert stopped, out
        assert (tmp_path / "runs" / name / f"step{stopped[1]}" / "manifest.json").is_file()
    assert "the same command goes on" in err


def test_a_run_that_another_tells_to_stop_is_not_passed_over_in_silence(suite: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tripod", "suite", "run", str(suite), "--set", "num_steps=100000", "--set", "checkpoints.every=0"]
    command += ["--set", "suite.sizes={narrow: {}}"]
    metrics = tmp_path / "runs" / "narrow" / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and not (metrics.is_file() and metrics.read_bytes()):
            time.sleep(0.05)
        (trainer,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(trainer), signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert re.search(r"narrow +stopped +\d+/100000", out), err
    assert (process.returncode, "stopped and saved; the same command goes on" in err) == (0, True)


def test_the_runs_end_with_the_process_that_began_them(suite: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tripod", "suite", "run", str(suite), "--set", "num_steps=100000", "--set", "checkpoints.every=0"]
    log = tmp_path / "runs" / "narrow" / "train.log"
    metrics = tmp_path / "runs" / "narrow" / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and not (metrics.is_file() and metrics.read_bytes()):
            time.sleep(0.05)
        process.kill()
    while time.monotonic() < deadline_s and "stopped and saved" not in log.read_text():
        time.sleep(0.05)
    assert "stopped and saved" in log.read_text()


def test_a_branch_and_its_control_are_trained_shown_and_compared(tripod: Command, suite: Path, tmp_path: Path) -> None:
    recipe = ("--set", f"run={tmp_path}/parent", "--set", "validation={every: 6}", "--set", "data.split='90,10,0'", "--set", "num_steps=6")
    assert tripod("train", suite, *recipe).code == 0
    (tmp_path / "moved.yaml").write_text("interventions: [{kind: swap, words: {river: harbour, lantern: lamp}}]", encoding="utf-8")
    trained = tripod("train", "--branch", f"{tmp_path}/parent@step4", tmp_path / "moved.yaml")
    assert trained.code == 0, trained.err
    assert re.search(r"swap: 8 rows, 100\.00% changed, [\d.]+% of their tokens; .*river -> harbour: \d+", trained.out)
    assert "parent-moved: complete at step 6 of 6" in trained.out
    assert "parent-step4-control: complete at step 6 of 6" in trained.out
    shown = tripod("data", "batch", tmp_path / "parent-moved", "4")
    assert re.search(r"\(\d+ words swapped\)\n.*(harbour|lamp)", shown.out), shown.out
    assert "harbour" not in tripod("data", "batch", tmp_path / "parent-moved", "3").out
    (tmp_path / "probe.txt").write_text("A lamp hangs by the harbour.\nThe harbour.\n", encoding="utf-8")
    options = ("--texts", f"harbour={tmp_path}/probe.txt", "--plot", tmp_path / "plot.svg")
    compared = tripod("suite", "compare", tmp_path / "parent-moved", *options)
    assert compared.code == 0, compared.err
    assert re.search(r"harbour +4 +\d\.\d+ +\d\.\d+ +\+0\.0000", compared.out)
    assert re.search(r"harbour +6 +\d\.\d+ +\d\.\d+ +-\d\.\d{4}", compared.out)
    assert "intervals over texts, one pair of runs" in compared.err
    assert (tmp_path / "plot.svg").is_file()

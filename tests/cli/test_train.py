"""`tripod train`, `tripod data` and `tripod tokenizer`, from texts to a checkpoint that speaks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Command, python_m_tripod

pytest.importorskip("torch")

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.md").write_text(
            f"# Page {number}\n\n" + f"The {number}th lantern hangs by the river.\n" * 20, encoding="utf-8"
        )
    return folder


@pytest.fixture
def recipe(texts: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
        run: {tmp_path}/run
        num_steps: 10
        model: {{vocab_size: 300, hidden_size: 32, num_layers: 2, num_heads: 2, max_positions: 64}}
        data:
          prefixes: ["{tmp_path}/data/text"]
          tokenizer: {tmp_path}/data/tokenizer
          split: 90,10,0
          source: {{inputs: ["{texts}"], vocab_size: 300}}
        batch: {{rows: 4, seq_length: 16}}
        optimizer: {{lr: 1e-2}}
        checkpoints: {{log_until: 4, every: 5}}
        validation: {{every: 5}}
        """,
        encoding="utf-8",
    )
    return path


def test_a_recipe_with_texts_becomes_a_model_that_generates(tripod: Command, recipe: Path, tmp_path: Path) -> None:
    trained = tripod("train", recipe, "--sample", "The ")
    assert trained.code == 0, trained.err
    assert re.search(r"run: complete at step 10 of 10, loss [\d.]+; 6 checkpoints", trained.out)
    assert "validation loss" in trained.err
    assert "step 4: The " in trained.err
    assert tripod("generate", f"{tmp_path}/run@step10", "The ", "--max-tokens", "3").code == 0
    again = tripod("train", recipe, "--resume")
    assert (again.code, "complete at step 10 of 10" in again.out) == (0, True)
    assert tripod("train", recipe).code == 2  # the run is there


def test_metrics_go_to_tensorboard_and_into_one_table(tripod: Command, recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    parquet = pytest.importorskip("pyarrow.parquet")
    trained = tripod("train", recipe, "--log-to", "tensorboard")
    assert trained.code == 0, trained.err
    assert len(list(tmp_path.glob("run/tensorboard/events.*"))) == 1
    table = tripod("suite", "metrics", tmp_path / "run", "--out", tmp_path / "metrics.parquet")
    assert (table.code, table.out) == (0, f"{tmp_path / 'metrics.parquet'}: 11 rows of 1 run\n")
    assert parquet.read_table(tmp_path / "metrics.parquet")["step"].to_pylist() == list(range(11))
    assert tripod("train", recipe, "--log-to", "csv").code == 2


def test_a_batch_is_shown_with_the_files_it_came_from(tripod: Command, recipe: Path, tmp_path: Path) -> None:
    assert tripod("train", recipe, "--set", "num_steps=2").code == 0
    shown = tripod("data", "batch", tmp_path / "run", "1", "--rows", "2")
    assert shown.code == 0, shown.err
    assert shown.out.startswith("step 1\n=== row 4\n--- document ")
    assert "=== row 5" in shown.out
    assert "=== row 6" not in shown.out
    assert re.search(r"document (\d+), tokens \d+ to \d+, (\d\d)\.md", shown.out)
    assert "lantern" in shown.out
    assert "2 of 4 rows" in shown.err
    assert tripod("data", "batch", tmp_path / "run", "2").code == 2  # beyond the last step


def test_a_dry_run_lists_what_would_be_kept_and_makes_nothing(tripod: Command, tmp_path: Path) -> None:
    recipe = tmp_path / "pythia.yaml"
    recipe.write_text("{preset: pythia-160m, run: r, data: {prefixes: [pile], tokenizer: t}}", encoding="utf-8")
    plan = tripod("train", recipe, "--dry-run")
    assert plan.code == 0, plan.err
    assert "162,322,944 parameters (85,056,000 without embeddings), fp16" in plan.out
    assert "154 checkpoints" in plan.out
    assert "steps 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000," in plan.out
    assert "step 1 4.2e-07, step 2 4.2e-07, step 1430 0.0006, step 1431 0.0006" in plan.out  # 6e-4 / 1430
    assert list(tmp_path.iterdir()) == [recipe]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch brings GNU's OpenMP on Linux")
@pytest.mark.parametrize(("asked", "taken"), [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77")], ids=["by default", "as asked"])
def test_torchs_threads_sleep_soon_while_they_wait(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], taken: str
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    trained = python_m_tripod("train", recipe, "--set", "num_steps=1", OMP_DISPLAY_ENV="verbose", **asked)
    assert trained.code == 0, trained.err
    assert f"GOMP_SPINCOUNT = '{taken}'" in trained.err


def test_all_that_is_wrong_with_a_recipe_is_told(tripod: Command, recipe: Path) -> None:
    wrong = tripod("train", recipe, "--set", "num_steps=0", "--set", "optimizer.beta3=1")
    assert wrong.code == 2
    assert "2 things to change in " in wrong.err
    assert "num_steps: 0; must be at least 1" in wrong.err
    assert "optimizer.beta3: is not a field; did you mean beta" in wrong.err


def test_other_texts_under_the_name_of_a_data_set_are_refused(tripod: Command, recipe: Path) -> None:
    assert tripod("train", recipe, "--set", "num_steps=1").code == 0
    other = tripod("train", recipe, "--resume", "--set", "data.source.vocab_size=280")
    assert other.code == 2
    assert "was made from" in other.err


def test_sigterm_saves_and_ends_with_status_0_and_the_run_goes_on(tripod: Command, recipe: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"
    command = [sys.executable, "-m", "tripod", "train", str(recipe), "--set", "num_steps=100000", "--set", "checkpoints.every=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as process:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and (not metrics.is_file() or metrics.read_bytes().count(b"\n") < 20):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    stopped = re.search(r"stopped and saved at step (\d+) of 100000", out)
    assert stopped
    manifest = json.loads((tmp_path / "run" / f"step{stopped[1]}" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["position"]["step"] == int(stopped[1]) >= 19


def test_what_is_asked_of_a_run_is_done_when_several_processes_share_it(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tripod", "train", str(recipe), "--processes", "2", "--sample", "The ", "--set", "num_steps=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines() if ": The " in line] == ["step 0", "step 1"]  # by the first alone
    assert done.stdout.count("complete at step 1 of 1") == 1


def test_the_recipes_of_the_repository_are_sound(tripod: Command) -> None:
    for recipe in RECIPES.glob("*.yaml"):
        for preset in ("tiny-s", "tiny-m", "tiny-l"):
            assert tripod("train", recipe, "--dry-run", "--set", f"preset={preset}").code == 0


def test_data_is_built_inspected_merged_and_verified(tripod: Command, texts: Path, tmp_path: Path) -> None:
    trained = tripod("tokenizer", "train", texts, "--vocab-size", "280", "--out", tmp_path / "tokenizer")
    assert (trained.code, trained.out) == (0, f"{tmp_path / 'tokenizer'}: 280 tokens\n")
    assert trained.err == ""
    short = tripod("tokenizer", "train", texts, "--vocab-size", "50000", "--out", tmp_path / "short")
    assert "the texts give no more; 50000 were asked for" in short.err
    built = tripod("data", "build", texts, "--tokenizer", tmp_path / "tokenizer", "--append-eod", "--out", tmp_path / "set")
    assert built.code == 0
    assert "30 documents" in built.out
    assert tripod("data", "merge", tmp_path / "set", tmp_path / "set", "--out", tmp_path / "twice").out.startswith(
        f"{tmp_path / 'twice'}: 60 documents"
    )
    inspected = tripod("data", "inspect", tmp_path / "twice")
    assert inspected.code == 0
    assert re.search(r"documents +60\n", inspected.out)
    digest = hashlib.sha256((tmp_path / "set.bin").read_bytes()).hexdigest()
    (tmp_path / "hashes.txt").write_text(f"set.bin {digest}\ntwice.bin {digest}\nabsent.bin {digest}\n", encoding="utf-8")
    verified = tripod("data", "verify", tmp_path / "hashes.txt")
    assert (verified.code, verified.out) == (1, "1 match, 1 differ, 1 missing\n")
    assert verified.err == "differs: twice.bin\nmissing: absent.bin\n"


def test_a_file_is_cut_and_joined_again(tripod: Command, tmp_path: Path) -> None:
    (tmp_path / "rows.bin").write_bytes(bytes(range(250)))
    cut = tripod("data", "shard", tmp_path / "rows.bin", "--bytes", "100")
    assert [Path(line).name for line in cut.out.splitlines()] == [f"rows-0000{number}-of-00002.bin" for number in range(3)]
    assert tripod("data", "unshard", tmp_path / "rows-00001-of-00002.bin", "--out", tmp_path / "joined.bin").code == 0
    assert (tmp_path / "joined.bin").read_bytes() == bytes(range(250))


def test_rows_on_a_server_need_their_tokens_and_a_tokenizer() -> None:
    assert "need --tokens URL and --tokenizer FOLDER" in python_m_tripod("data", "batch", "http://127.0.0.1:9/document.idx", "0").err

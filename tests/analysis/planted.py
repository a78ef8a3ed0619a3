"""A run whose rows repeat a known number of times, and a control whose rows never do."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from tripod.text.byte_level import write_byte_tokenizer
from tripod.training.data.build import build_dataset
from tripod.training.loop import train
from tripod.training.recipe_file import recipe_from
from tripod.training.run import Run

SEQ_LENGTH = 64
REPEATS = {1: 32, 4: 16, 16: 8, 64: 4}  # times: documents, each of which fills a row
NUM_STEPS, ROWS = 236, 2  # nearly all of the 480 documents, in one epoch


@dataclass(frozen=True, slots=True)
class PlantedRun:
    run: Run
    texts: dict[str, int]  # how often each stands in the corpus


def planted_run(folder: Path, repeats: dict[int, int]) -> PlantedRun:
    """Trains two layers on documents of random letters: a row is such a document and the first token of another one."""
    drawn = random.Random(7)
    texts = {
        "".join(drawn.choices("abcdefghijklmnopqrstuvwxyz ", k=SEQ_LENGTH - 1)): times
        for times, number in repeats.items()
        for _ in range(number)
    }
    folder.mkdir(parents=True)
    lines = [json.dumps({"text": text}) + "\n" for text, times in texts.items() for _ in range(times)]
    (folder / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    write_byte_tokenizer(folder / "tokenizer")
    build_dataset([folder / "corpus.jsonl"], folder / "tokenizer", folder / "data", append_eod=True)
    recipe = recipe_from(
        {
            "run": str(folder / "run"),
            "num_steps": NUM_STEPS,
            "model": {"vocab_size": 259, "hidden_size": 96, "num_layers": 2, "num_heads": 4, "max_positions": 128},
            "data": {"prefixes": [str(folder / "data")], "tokenizer": str(folder / "tokenizer")},
            "batch": {"rows": ROWS, "seq_length": SEQ_LENGTH},
            "optimizer": {"lr": 5e-3},
            "schedule": {"kind": "wsd", "warmup": 0.1},
            "checkpoints": {"log_until": 0, "every": NUM_STEPS // 2},
        }
    )
    return PlantedRun(train(recipe).run, texts)


@pytest.fixture(scope="session")
def repeated_run(tmp_path_factory: pytest.TempPathFactory) -> PlantedRun:
    return planted_run(tmp_path_factory.mktemp("repeated") / "world", REPEATS)


@pytest.fixture(scope="session")
def control_run(tmp_path_factory: pytest.TempPathFactory) -> PlantedRun:
    """As many rows, none of them twice."""
    return planted_run(tmp_path_factory.mktemp("control") / "world", {1: sum(times * number for times, number in REPEATS.items())})

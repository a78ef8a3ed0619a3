"""A tiny GPT-NeoX of random weights with one token a byte, that transformers opens too, and an engine on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.engine.tiny_models import tiny_model
from tripod.engine.engine import Engine
from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.save import save_checkpoint
from tripod.ops.rope import RopeConfig
from tripod.text.byte_level import VOCAB_SIZE, write_byte_tokenizer

CONTEXT = 1024
CONFIG = GPTNeoXConfig(
    vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, max_positions=CONTEXT,
    rope=RopeConfig(rotary_dim=4),
)  # fmt: skip


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "tiny"
    torch.set_num_threads(1)
    save_checkpoint(tiny_model(CONFIG), folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Iterator[Engine]:
    engine = Engine.load(str(checkpoint))
    yield engine
    asyncio.run(engine.aclose())

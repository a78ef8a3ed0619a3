"""A tiny seeded model with a byte tokenizer, the plain way to run it, and the trained model of the shared data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tripod.models.initialize import random_language_model
from tripod.models.language_model import LanguageModel
from tripod.models.llama import LlamaConfig
from tripod.ops.attention import causal_attention
from tripod.ops.rope import RopeConfig
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices are computed fastest by one thread, above all beside other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_model(seed: int = 0, *, windows: tuple[int | None, ...] = ()) -> LanguageModel:
    """Grouped heads, QK-norm; its weights are scaled up so that its choices depend on the context."""
    config = LlamaConfig(
        model_type="qwen3",
        vocab_size=259,
        hidden_size=48,
        intermediate_size=96,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=8,
        max_positions=256,
        rope=RopeConfig(rotary_dim=8),
        qk_norm=True,
        windows=windows,
    )
    model = random_language_model(config, seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(3.0)
    return model


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    return make_model()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("byte-tokenizer")
    write_byte_tokenizer(folder)
    return load_tokenizer(folder)


@torch.inference_mode()
def plain_logits(model: LanguageModel, token_ids: Sequence[int]) -> Tensor:
    """One whole sequence, no cache: [T] -> [T, V]."""
    ids = torch.tensor([token_ids])
    return model.logits(model.hidden(ids, torch.arange(len(token_ids))[None], causal_attention))[0]


def plain_greedy(model: LanguageModel, prompt_ids: Sequence[int], num_tokens: int) -> list[int]:
    """The most likely token again and again, each from the whole sequence anew."""
    token_ids = list(prompt_ids)
    for _ in range(num_tokens):
        token_ids.append(int(plain_logits(model, token_ids)[-1].argmax()))
    return token_ids[len(prompt_ids) :]


PROMPTS = [
    f"{word} {number}: " * (1 + number % 5)
    for number, word in enumerate(["alpha", "beta", "gamma", "delta", "eps", "zeta", "eta", "theta"] * 2)
]


@pytest.fixture(scope="session")
def greedy_answers(model: LanguageModel, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """By prompt, 24 tokens from the plain way."""
    return {prompt: plain_greedy(model, tokenizer.encode(prompt), 24) for prompt in PROMPTS}


@pytest.fixture
def stories(shared_data: Path) -> Path:
    folder = shared_data / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no trained model at {folder}")
    return folder

"""A tiny seeded model with one token a byte: its text means nothing, its tokens are exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tripod.engine.engine import Engine, EngineConfig
from tripod.models.initialize import random_language_model
from tripod.models.llama import LlamaConfig
from tripod.models.load import load_language_model
from tripod.models.save import save_checkpoint
from tripod.ops.rope import RopeConfig
from tripod.text.byte_level import VOCAB_SIZE, write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer

NAME = "tiny"
MAX_CONTEXT = 512

CONFIG = LlamaConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=MAX_CONTEXT,
    rope=RopeConfig(rotary_dim=8),
)


def write_tiny(folder: Path, *, chat_template: bool = True, max_positions: int = MAX_CONTEXT) -> Path:
    """A checkpoint folder; without its chat template if so asked."""
    model = random_language_model(replace(CONFIG, max_positions=max_positions), seed=3)
    for parameter in model.parameters():
        parameter.mul_(3.0)  # farther from uniform, so that sampled texts repeat themselves less by chance
    save_checkpoint(model, folder)
    write_byte_tokenizer(folder)
    if not chat_template:
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}')
    return folder


def open_tiny(folder: Path, config: EngineConfig) -> Engine:
    return Engine(load_language_model(folder), load_tokenizer(folder), config, name=NAME)

"""Small real series of checkpoints: a GPT-NeoX of two layers, trained by a plain AdamW loop on generated text."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tripod.models.gpt_neox import NAMES, GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.save import save_checkpoint
from tripod.ops.attention import causal_attention
from tripod.ops.rope import RopeConfig

STEPS = (0, 1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
WIDTH, LAYERS, ROW, ROWS = 32, 2, 16, 8
CopySeries = Callable[[], Path]


def write_manifest(folder: Path, step: int) -> None:
    """As a training run writes it: the SHA-256 of every tensor."""
    tensors = {
        path.name: {
            name: hashlib.sha256(tensor.flatten().view(torch.uint8).numpy()).hexdigest() for name, tensor in load_file(path).items()
        }
        for path in folder.glob("*.safetensors")
    }
    recipe = {
        "num_steps": STEPS[-1],
        "model": {"initialization": "small-wang"},
        "checkpoints": {"log_until": 8, "every": 8, "offset": 0, "also": []},
    }
    manifest = {"format": 1, "position": {"step": step, "num_updates": step}, "recipe": recipe, "tensors": tensors}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _train(run: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=128,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_layers=LAYERS,
        num_heads=4,
        max_positions=ROW,
        rope=RopeConfig(theta=10000.0, rotary_dim=2),
    )
    model = random_language_model(config, seed=7).train().requires_grad_(True)
    for name, parameter in model.named_parameters():  # small init within, Wang's on the side of the output
        if name.endswith(("attention.output.weight", "mlp.down.weight")):
            torch.nn.init.normal_(parameter, std=2 / (LAYERS * WIDTH**0.5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    words = ["the ", "cat ", "saw ", "a ", "small ", "red ", "boat.\n"]
    text = torch.tensor(list("".join(random.Random(1).choices(words, k=4000)).encode()))
    generator = torch.Generator().manual_seed(3)
    positions = torch.arange(ROW).expand(ROWS, -1)
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            folder = run / f"step{step}"
            save_checkpoint(model, folder)
            if dtype != torch.float32:
                half = {NAMES.to_checkpoint(name): parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
                save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
            state = {"step": torch.tensor(step)}
            for name, parameter in model.named_parameters():
                for moment in ("exp_avg", "exp_avg_sq"):
                    held = optimizer.state.get(parameter, {}).get(moment, torch.zeros_like(parameter))
                    state[f"{moment}.{NAMES.to_checkpoint(name)}"] = held.clone()
            save_file(state, folder / "optimizer.safetensors")
            (folder / "tokenizer.json").write_text('{"model": "the same at every step"}' * 50)
            write_manifest(folder, step)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min((step + 1) / 8, 1.0)
        starts = torch.randint(len(text) - ROW - 1, (ROWS,), generator=generator)
        rows = text[starts[:, None] + torch.arange(ROW + 1)]
        logits = model.logits(model.hidden(rows[:, :-1], positions, causal_attention))
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="session")
def trained_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run/stepN` for N in STEPS, weights in float32. Not to be changed: copy it."""
    run = tmp_path_factory.mktemp("series") / "run"
    _train(run, torch.float32)
    return run


@pytest.fixture(scope="session")
def half_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with weights in bfloat16."""
    run = tmp_path_factory.mktemp("half") / "run"
    _train(run, torch.bfloat16)
    return run


@pytest.fixture
def copied_series(trained_series: Path, tmp_path: Path) -> Path:
    """A series to spoil."""
    shutil.copytree(trained_series, tmp_path / "run")
    return tmp_path / "run"

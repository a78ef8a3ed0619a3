"""A real series of checkpoints, made in two or three minutes: a GPT-NeoX of a million parameters on the text of a folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tripod.models.gpt_neox import NAMES, GPTNeoX, GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.save import save_checkpoint
from tripod.ops.attention import causal_attention
from tripod.ops.rope import RopeConfig

SEQ_LENGTH = 64
BATCH_SIZE = 8
PEAK_LR = 1e-3


def log_then_linear(interval: int, num_linear: int) -> tuple[int, ...]:
    """Pythia's rule at another scale: 0, 1, 2, 4, ..., 512, then every `interval` steps."""
    return (0, *(2**power for power in range(10)), *(512 + interval * (number + 1) for number in range(num_linear)))


def read_text(folder: Path) -> np.ndarray:
    """The bytes of every text in a folder, in the order of their names."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md", ".rst"))
    return np.frombuffer(b"\n".join(path.read_bytes() for path in paths), np.uint8)


def train_series(run: Path, text: np.ndarray, steps: Sequence[int], *, dtype: torch.dtype = torch.float32) -> list[float]:
    """Train on single bytes as GPT-NeoX does (AdamW, warm-up, cosine to a tenth) and save `run/stepN` for each of `steps`.

    With bfloat16, the weights are saved in it and the optimizer keeps float32 masters, as mixed precision does.

    Returns:
        The loss of every step.
    """
    config = GPTNeoXConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=512,
        num_layers=5,
        num_heads=4,
        max_positions=SEQ_LENGTH,
        rope=RopeConfig(theta=10000.0, rotary_dim=8),
    )
    model = random_language_model(config, seed=1234)
    assert isinstance(model, GPTNeoX)
    model.train().requires_grad_(True)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=PEAK_LR, betas=(0.9, 0.95), eps=1e-8
    )
    generator = torch.Generator().manual_seed(1234)
    tokens = torch.from_numpy(text.astype(np.int64))
    positions = torch.arange(SEQ_LENGTH).expand(BATCH_SIZE, -1)
    losses: list[float] = []
    last, warm_up = max(steps), max(1, max(steps) // 100)
    for step in range(last + 1):
        if step in steps:
            save(model, optimizer, run / f"step{step}", step, dtype)
        if step == last:
            break
        done = max(0.0, (step + 1 - warm_up) / (last - warm_up))
        scale = min((step + 1) / warm_up, 0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * scale
        starts = torch.randint(len(tokens) - SEQ_LENGTH - 1, (BATCH_SIZE,), generator=generator)
        rows = tokens[starts[:, None] + torch.arange(SEQ_LENGTH + 1)]
        logits = model.logits(model.hidden(rows[:, :-1], positions, causal_attention))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def save(model: GPTNeoX, optimizer: torch.optim.AdamW, folder: Path, step: int, dtype: torch.dtype) -> None:
    state: dict[str, Tensor] = {"step": torch.tensor(step)}
    for name, parameter in model.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            state[f"{moment}.{NAMES.to_checkpoint(name)}"] = (
                optimizer.state.get(parameter, {}).get(moment, torch.zeros_like(parameter)).clone()
            )
        if dtype != torch.float32:
            state[f"master.{NAMES.to_checkpoint(name)}"] = parameter.detach().clone()
    save_checkpoint(model, folder)
    if dtype != torch.float32:
        half = {NAMES.to_checkpoint(name): parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
        save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(state, folder / "optimizer.safetensors")

"""Recipes by name: the ten sizes of Pythia as they were trained, and small ones for a laptop.

Pythia (Biderman et al. 2023, arXiv:2304.01373): 143 000 steps of 1024 rows of 2048 tokens, the checkpoints of 154 steps. Activation
is GELU by tanh, with which the models were trained; the released configuration says GELU by erf, which differs by about 1e-3 in
log-probabilities (set model.hidden_act=gelu for that).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# name: layers, hidden size, heads, rows of the embedding, peak learning rate, rows of a micro-batch on one GPU
_PYTHIA: Mapping[str, tuple[int, int, int, int, float, int]] = {
    "pythia-14m": (6, 128, 4, 50304, 1e-3, 32),
    "pythia-31m": (6, 256, 8, 50304, 1e-3, 32),
    "pythia-70m": (6, 512, 8, 50304, 1e-3, 32),
    "pythia-160m": (12, 768, 12, 50304, 6e-4, 32),
    "pythia-410m": (24, 1024, 16, 50304, 3e-4, 32),
    "pythia-1b": (16, 2048, 8, 50304, 2.5e-4, 16),  # its configuration file's rate; the README of the suite says 3e-4
    "pythia-1.4b": (24, 2048, 16, 50304, 2e-4, 16),
    "pythia-2.8b": (32, 2560, 32, 50304, 1.6e-4, 16),
    "pythia-6.9b": (32, 4096, 32, 50432, 1.2e-4, 8),
    "pythia-12b": (36, 5120, 40, 50688, 1.2e-4, 8),
}
_TINY: Mapping[str, tuple[int, int, int, float]] = {  # layers, hidden size, heads, peak learning rate
    "tiny-s": (2, 64, 2, 6e-3),
    "tiny-m": (4, 128, 4, 4e-3),
    "tiny-l": (6, 192, 6, 3e-3),
}


def _pythia(name: str) -> Mapping[str, Any]:
    num_layers, hidden_size, num_heads, vocab_size, lr, micro_rows = _PYTHIA[name]
    return {
        "num_steps": 143_000,
        "model": {
            "architecture": "gpt_neox",
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "max_positions": 2048,
            # The two largest had no entry for it in their configuration, and so got GPT-NeoX's default.
            "initialization": "normal-scaled" if name in ("pythia-6.9b", "pythia-12b") else "small-wang",
        },
        "batch": {"rows": 1024, "seq_length": 2048, "micro_rows": micro_rows},
        "optimizer": {"lr": lr},
        "schedule": {"kind": "cosine", "warmup": 0.01, "min_lr": 0.1},
        "checkpoints": {"log_until": 512, "every": 1000},
        "precision": "bf16" if name == "pythia-1b" else "fp16",
    }


def _tiny(name: str) -> Mapping[str, Any]:
    num_layers, hidden_size, num_heads, lr = _TINY[name]
    return {
        "model": {
            "architecture": "gpt_neox",
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "max_positions": 512,
        },
        "optimizer": {"lr": lr},
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {name: _pythia(name) for name in _PYTHIA} | {name: _tiny(name) for name in _TINY}

"""What is done to the blocks of a model from outside: computing them twice to save memory, and compiling them."""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tripod.models.architectures import Decoder
from tripod.ops.kernels.cpu.build import find_compiler

_log = logging.getLogger(__name__)


def recompute_blocks(model: Decoder) -> None:
    """Keep only what enters each block, and compute the rest again when its gradients are due (Chen et al. 2016, arXiv:1604.06174).

    Losses and gradients stay the same, bit for bit; a step takes about a third longer.
    """
    for block in model.blocks:
        _replace_forward(block, partial(checkpoint, block.forward, use_reentrant=False))


def compile_blocks(model: Decoder, device: torch.device, *, backend: str = "inductor") -> bool:
    """Compile each block by torch.compile; says so, and leaves them, where the processor's code cannot be compiled.

    Returns:
        Whether they will be compiled, at their first step.
    """
    if device.type == "cpu" and find_compiler() is None:
        _log.warning("no C++ compiler ($CXX, g++, clang++ or c++) was found: the blocks are not compiled, and the run is slower")
        return False
    for block in model.blocks:
        _replace_forward(block, torch.compile(block.forward, backend=backend))
    return True


def _replace_forward(block: nn.Module, forward: object) -> None:
    """On the instance: hooks, names and parameters stay."""
    block.forward = forward  # type: ignore[assignment]

"""Blocks that are computed twice, or compiled, compute the same."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.training.conftest import MakeRecipe
from tripod.models.gpt_neox import GPTNeoX
from tripod.models.initialize import initial_language_model
from tripod.models.llama import Llama
from tripod.ops.attention import causal_attention
from tripod.training import blocks
from tripod.training.blocks import compile_blocks, recompute_blocks
from tripod.training.dropout import RowDropout
from tripod.training.gradients import accumulate_gradients

CPU = torch.device("cpu")


def gradients(make_recipe: MakeRecipe, change: Callable[[GPTNeoX | Llama], object], rate: float = 0.0) -> tuple[float, Tensor]:
    model = initial_language_model(make_recipe().model.config(), 1, "small-wang")
    dropout = RowDropout(model, rate, seed=9)
    change(model)
    tokens = torch.randint(259, (4, 17), generator=torch.Generator().manual_seed(3))
    loss = accumulate_gradients(model, tokens, range(4), micro_rows=2, precision="fp32", dropout=dropout)
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def test_computing_blocks_twice_changes_no_bit_even_with_dropout(make_recipe: MakeRecipe) -> None:
    plain_loss, plain = gradients(make_recipe, lambda model: None, rate=0.2)
    loss, again = gradients(make_recipe, recompute_blocks, rate=0.2)
    assert loss == plain_loss
    assert torch.equal(again, plain)


def test_blocks_that_are_computed_twice_keep_less(make_recipe: MakeRecipe) -> None:
    """The bytes that autograd holds between forward and backward, counted by its own hook."""
    kept = []
    for change in (lambda model: None, recompute_blocks):
        model = initial_language_model(make_recipe().model.config(), 1, "small-wang")
        change(model)
        held = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal held
            held += tensor.nbytes
            return tensor

        tokens = torch.zeros(2, 16, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.hidden(tokens, torch.arange(16).expand(2, 16), causal_attention)
        kept.append(held)
    assert kept[1] < kept[0] / 3


def test_without_a_compiler_blocks_stay_as_they_are_and_it_is_said(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blocks, "find_compiler", lambda: None)
    model = initial_language_model(make_recipe().model.config(), 1, "small-wang")
    with caplog.at_level(logging.WARNING):
        assert not compile_blocks(model, CPU)
    assert "no C++ compiler" in caplog.text
    assert "forward" not in vars(model.blocks[0])


@pytest.mark.skipif(blocks.find_compiler() is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's tracer asks for it
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_blocks_differ_by_rounding(make_recipe: MakeRecipe) -> None:
    plain_loss, plain = gradients(make_recipe, lambda model: None)
    # traced and differentiated ahead of time, but run by torch: generating the code takes half a minute
    loss, compiled = gradients(make_recipe, lambda model: compile_blocks(model, CPU, backend="aot_eager"))
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)

"""Documents in a row, apart: beside the same documents alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError
from tripod.models.initialize import initial_language_model
from tripod.training.data.rows import PreshuffledRows, write_rows
from tripod.training.gradients import target_losses
from tripod.training.loop import train
from tripod.training.packing import Packing, pack
from tripod.training.recipe import BatchRecipe
from tripod.training.run import Run

CPU = torch.device("cpu")


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_a_document_in_a_row_is_the_document_alone(make_recipe: MakeRecipe, architecture: str) -> None:
    """Seven and ten tokens in one row, positions from the beginning of each; losses of the tokens within each document."""
    model = initial_language_model(make_recipe((f"model.architecture={architecture}",)).model.config(), 3, "small-wang")
    tokens = torch.randint(259, (1, 17), generator=torch.Generator().manual_seed(1))
    starts = torch.tensor([[0] * 7 + [7] * 9])
    apart = Packing(torch.arange(16) - starts, starts)
    with torch.no_grad():
        losses = target_losses(model, tokens, "fp32", apart)[0]
        first, second = (target_losses(model, part, "fp32")[0] for part in (tokens[:, :7], tokens[:, 7:]))
        together = target_losses(model, tokens, "fp32")[0]
    torch.testing.assert_close(losses[:6], first, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses[7:], second, rtol=1e-5, atol=1e-5)
    assert (together[8:] - losses[8:]).abs().min() > 1e-6  # otherwise the second document sees the first


def test_the_starts_are_the_borders_that_the_batch_viewer_shows(make_recipe: MakeRecipe) -> None:
    order = Run.begin(make_recipe()).order()
    batch = BatchRecipe(rows=4, seq_length=16, attention="document", positions="document")
    packing = pack(order.rows, range(12), batch, CPU)
    assert packing.starts is not None
    end = 256  # of the byte tokenizer, which ends each document
    for row in range(12):
        tokens = order.rows.row(row)
        begins = [0, *(np.flatnonzero(tokens[:-1] == end) + 1).tolist()]
        expected = [max(begin for begin in begins if begin <= column) for column in range(16)]
        assert packing.starts[row].tolist() == expected
        assert packing.positions[row].tolist() == [column - start for column, start in enumerate(expected)]


def test_a_run_learns_with_its_documents_apart_and_goes_on_bit_for_bit(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(("num_steps=6", "batch.attention=document", "batch.positions=document", "validation.every=3"))
    other = replace(recipe, run=recipe.run + "-other")
    train(recipe)
    done: list[int] = []
    train(other, on_step=lambda report: done.append(report.step), should_stop=lambda: len(done) == 2)
    train(other, resume=True)
    files = [Path(run) / "step6" / "model.safetensors" for run in (recipe.run, other.run)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_rows_that_do_not_say_their_documents_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    order = Run.begin(make_recipe()).order()
    write_rows(order.rows, 4, tmp_path / "rows", np.dtype("<u2"))
    rows = PreshuffledRows.open(tmp_path / "rows")
    with pytest.raises(ConfigError, match="row 2 does not say where its documents begin"):
        pack(rows, [2], BatchRecipe(rows=4, seq_length=16, attention="document"), CPU)
    assert pack(rows, [2], BatchRecipe(rows=4, seq_length=16), CPU).starts is None

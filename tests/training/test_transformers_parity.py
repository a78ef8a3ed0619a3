"""What is trained here is what transformers trains and opens: logits, loss, gradients and one update."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training.conftest import MakeRecipe
from tripod.models.gpt_neox import NAMES
from tripod.models.load import load_language_model
from tripod.models.save import save_checkpoint
from tripod.ops.attention import causal_attention
from tripod.training.data.order import DataOrder
from tripod.training.dropout import RowDropout
from tripod.training.gradients import accumulate_gradients
from tripod.training.loop import train
from tripod.training.run import Run

transformers = pytest.importorskip("transformers")


def tokens_of(order: DataOrder, step: int) -> Tensor:
    return torch.from_numpy(order.batch_at(step).astype("int64"))


@pytest.fixture
def run(make_recipe: MakeRecipe) -> Run:
    """Twelve steps, the last checkpoint at step 12."""
    return train(make_recipe()).run


def test_transformers_opens_a_trained_checkpoint_with_the_same_logits(run: Run) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run.checkpoint(12), dtype=torch.float32)
    ours = load_language_model(run.checkpoint(12))
    inputs = tokens_of(run.order(), 0)[:, :-1]
    positions = torch.arange(inputs.shape[1]).expand(inputs.shape)
    with torch.no_grad():
        expected = theirs(inputs).logits
        logits = ours.logits(ours.hidden(inputs, positions, causal_attention))
    assert (logits - expected).abs().max() < 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.checkpoint(12))
    assert tokenizer.decode(tokenizer.encode("7 and 3 make 10.")) == "7 and 3 make 10."


def test_one_step_is_that_of_transformers_and_torch(run: Run) -> None:
    """From the initial weights: loss and gradients of the same rows, then clip, then AdamW at the first learning rate."""
    recipe = run.recipe
    theirs = transformers.GPTNeoXForCausalLM.from_pretrained(run.checkpoint(0), dtype=torch.float32)
    tokens = tokens_of(run.order(), 0)
    logits = theirs(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()

    ours = load_language_model(run.checkpoint(0)).train().requires_grad_(True)
    our_loss = accumulate_gradients(ours, tokens, range(4), micro_rows=2, precision="fp32", dropout=RowDropout(ours, 0.0, 0))
    assert our_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    # Some versions of transformers name the output matrix otherwise in memory than in the file.
    expected = {**dict(theirs.named_parameters()), "embed_out.weight": theirs.get_output_embeddings().weight}
    for name, parameter in ours.named_parameters():
        gradient = expected[NAMES.to_checkpoint(name)].grad
        assert parameter.grad is not None
        assert gradient is not None
        # float32 sums of a few hundred products in another order, relative to the largest entry
        assert (parameter.grad - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-8, name

    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    decayed = [parameter for name, parameter in theirs.named_parameters() if not name.endswith("bias") and "norm" not in name]
    kept = [parameter for name, parameter in theirs.named_parameters() if name.endswith("bias") or "norm" in name]
    lr = recipe.learning_rates().learning_rate(0)
    torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.95), eps=1e-8
    ).step()
    for name, tensor in load_file(run.checkpoint(1) / "model.safetensors").items():
        # Adam's first change is lr * sign(gradient): where a gradient is rounding noise, the sign is too
        moved = (tensor - expected[name].detach()).abs()
        clear = expected[name].grad.abs() > 1e-6
        assert (moved * clear).max() < 1e-2 * lr, name
        assert moved.max() <= 2.01 * lr, name


def test_import_then_export_is_byte_identical_per_tensor(run: Run, tmp_path: Path) -> None:
    save_checkpoint(load_language_model(run.checkpoint(12)), tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run.checkpoint(12) / "model.safetensors").read_bytes()

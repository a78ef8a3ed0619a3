"""The terms beside cross-entropy, written out once more in plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.training.conftest import MakeRecipe
from tripod.models.initialize import initial_language_model
from tripod.models.moe import Router
from tripod.ops.attention import causal_attention
from tripod.training.dropout import RowDropout
from tripod.training.gradients import accumulate_gradients
from tripod.training.loss_terms import LossTerms
from tripod.training.recipe import LossRecipe

MIXTRAL = ("model.architecture=mixtral", "model.num_experts=4", "model.intermediate_size=32")
RECIPE = LossRecipe(output_z=0.125, balance=0.5, router_z=0.25)
TOKENS = torch.randint(259, (4, 17), generator=torch.Generator().manual_seed(7))


def sparse_model(make_recipe: MakeRecipe, *changes: str) -> torch.nn.Module:
    return initial_language_model(make_recipe((*MIXTRAL, *changes)).model.config(), 1, "small-wang")


def accumulate(model: torch.nn.Module, terms: LossTerms, micro_rows: int) -> Tensor:
    return accumulate_gradients(
        model,  # type: ignore[arg-type]
        TOKENS,
        range(4),
        micro_rows=micro_rows,
        precision="fp32",
        dropout=RowDropout(model, 0.0, 0),
        terms=terms,
    )


def written_out(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """The whole loss of some rows, from the inputs of the routers on."""
    inputs: list[tuple[Tensor, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, given, _: inputs.append((given[0], module.weight)))
        for module in model.modules()
        if isinstance(module, Router)
    ]
    positions = torch.arange(16).expand(len(tokens), -1)
    logits = model.logits(model.hidden(tokens[:, :-1], positions, causal_attention))  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) + 0.125 * logits.exp().sum(-1).log().square().mean()
    for x, weight in inputs:
        router_logits = x @ weight.T
        gates = router_logits.exp() / router_logits.exp().sum(-1, keepdim=True)
        chosen = torch.zeros_like(gates).scatter(1, gates.topk(2).indices, 1.0)
        loss = loss + 0.5 / len(inputs) * 4 * (chosen.mean(0) * gates.mean(0)).sum()
        loss = loss + 0.25 / len(inputs) * router_logits.exp().sum(-1).log().square().mean()
    return loss


@pytest.mark.parametrize("micro_rows", [4, 2])
def test_gradients_are_those_of_the_formulas(make_recipe: MakeRecipe, micro_rows: int) -> None:
    """Over what is computed at once: of two micro-batches the mean."""
    model, plain = sparse_model(make_recipe), sparse_model(make_recipe)
    torch.stack([written_out(plain, part) for part in torch.split(TOKENS, micro_rows)]).mean().backward()  # type: ignore[no-untyped-call]
    accumulate(model, LossTerms(RECIPE, num_tokens=64), micro_rows)
    for (name, mine), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert expected.grad is not None
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)  # float32 sums of 64 tokens


def test_a_router_that_knows_nothing_measures_k_and_the_logarithm_of_e(make_recipe: MakeRecipe) -> None:
    model = sparse_model(make_recipe)
    for name, parameter in model.named_parameters():
        if name.endswith(("router.weight", "head.weight")):
            torch.nn.init.zeros_(parameter)
    terms = LossTerms(RECIPE, num_tokens=64)
    accumulate(model, terms, 2)
    measured = terms.measured()
    assert measured["balance_loss"] == pytest.approx(2.0)
    assert measured["router_z_loss"] == pytest.approx(math.log(4) ** 2)
    assert measured["max_load"] == pytest.approx(2.0)  # ties: all tokens to the same two of four
    assert measured["dropped"] == 0.0
    assert measured["output_z_loss"] == pytest.approx(math.log(259) ** 2)


def test_what_has_no_room_is_counted(make_recipe: MakeRecipe) -> None:
    """16 tokens a group and factor 1.25, by tokens: 5 places at each of 4 experts for 32 assignments, of which at least 12 are dropped."""
    model = sparse_model(make_recipe, "model.capacity_factor=1.25", "model.capacity_tokens=16")
    terms = LossTerms(RECIPE, num_tokens=64)
    accumulate(model, terms, 4)
    assert 12 / 32 <= terms.measured()["dropped"] < 0.75


def test_a_selection_bias_moves_towards_experts_with_less_than_the_mean(make_recipe: MakeRecipe) -> None:
    model = sparse_model(make_recipe, "model.architecture=sparse_llama", "model.has_selection_bias=true")
    terms = LossTerms(LossRecipe(bias_rate=0.01), num_tokens=64)
    routers = [module for module in model.modules() if isinstance(module, Router)]
    loads: list[Tensor] = []
    for router in routers:
        router.register_forward_hook(lambda _, __, routing: loads.append(routing.expert_ids.flatten().bincount(minlength=4)))
    accumulate(model, terms, 4)
    terms.move_biases(model)
    for router, load in zip(routers, loads, strict=True):
        expected = [0.01 if count < 32 else -0.01 if count > 32 else 0.0 for count in load.tolist()]  # 128 assignments of 4 experts
        assert router.selection_bias is not None
        assert router.selection_bias.tolist() == pytest.approx(expected)


def test_a_dense_model_has_no_terms_of_routers(make_recipe: MakeRecipe) -> None:
    model = initial_language_model(make_recipe().model.config(), 1, "small-wang")
    terms = LossTerms(LossRecipe(), num_tokens=64)
    accumulate(model, terms, 4)
    assert terms.measured() == {}

"""Each sampling option against a few lines of float64 numpy, and what is drawn against the distribution it should follow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tripod.engine.execution.sampler import sample, score, truncate, uniform
from tripod.engine.policy.request import Request
from tripod.sampling import SamplingParams


def make_request(
    seed: int = 0, prompt: tuple[int, ...] = (0,), output: tuple[int, ...] = (), stop: frozenset[int] = frozenset(), **params: Any
) -> Request:
    request = Request(id="r", prompt_ids=prompt, sampling=SamplingParams(**params), max_tokens=99, seed=seed, stop_ids=stop)
    request.output_ids = list(output)
    return request


def probabilities(logits: NDArray[np.float64], request: Request) -> NDArray[np.float64]:
    """The distribution that a request's next token has, written down as its parameters are documented."""
    p = request.sampling
    x = logits.astype(np.float64).copy()
    for token_id, bias in p.logit_bias.items():
        x[token_id] += bias
    for token_id in {*request.prompt_ids, *request.output_ids}:
        x[token_id] = x[token_id] / p.repetition_penalty if x[token_id] > 0 else x[token_id] * p.repetition_penalty
    for token_id in set(request.output_ids):
        x[token_id] -= p.presence_penalty + p.frequency_penalty * request.output_ids.count(token_id)
    if p.is_greedy:
        return (np.arange(len(x)) == x.argmax()).astype(np.float64)
    order = np.argsort(-x, kind="stable")
    probs = np.exp((x - x.max()) / p.temperature)[order]
    if p.top_k:
        probs[p.top_k :] = 0.0
    probs /= probs.sum()
    probs[(np.cumsum(probs) - probs >= p.top_p) & (p.top_p < 1.0)] = 0.0
    probs[probs < p.min_p * probs[0]] = 0.0
    result = np.zeros_like(x)
    result[order] = probs / probs.sum()
    return result


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 10_000},
    {"top_k": 2**70},  # no tensor holds it
    {"top_p": 0.6},
    {"top_p": 0.05},
    {"min_p": 0.2},
    {"top_k": 12, "top_p": 0.7, "min_p": 0.1, "temperature": 1.3},
    {"logit_bias": {3: 4.0, 5: -100.0}},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.6},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.7},
    {"presence_penalty": -1.0, "frequency_penalty": 1.1, "repetition_penalty": 1.2, "logit_bias": {7: 2.0}, "top_p": 0.8},
]


def _logits(num_rows: int = 1, vocab_size: int = 40) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(5)) * 2.0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_draws_follow_the_documented_distribution(options: dict[str, Any]) -> None:
    num_draws = 4000
    logits = _logits()
    requests = [make_request(seed=1000 + i, prompt=(1, 2, 9), output=(3, 3, 8, 3), **options) for i in range(num_draws)]
    expected = probabilities(logits[0].numpy(), requests[0]) * num_draws
    counts = np.bincount(sample(logits.expand(num_draws, -1), requests), minlength=40)
    assert not counts[expected == 0].any(), "a token that is ruled out was drawn"
    rare = expected < 5  # lumped together: chi-square needs about five expected counts a cell
    cells = [(counts[i], expected[i]) for i in np.flatnonzero(~rare)] + [(counts[rare].sum(), expected[rare].sum())]
    chi_square = sum((count - mean) ** 2 / mean for count, mean in cells if mean > 0)
    freedom = max(1, sum(mean > 0 for _, mean in cells) - 1)
    assert chi_square < freedom + 5.0 * math.sqrt(2.0 * freedom), f"5 standard deviations; seeds are fixed: {chi_square}"


@pytest.mark.parametrize(
    "options", [o for o in OPTIONS if not set(o) & {"logit_bias", "presence_penalty", "repetition_penalty", "frequency_penalty"}], ids=str
)
def test_truncation_equals_the_reference_for_every_row_of_a_batch(options: dict[str, Any]) -> None:
    logits = _logits(6)
    neighbours = [make_request(), make_request(top_k=3), make_request(top_p=0.3), make_request(min_p=0.9), make_request(temperature=0.1)]
    requests = [make_request(**options), *neighbours]
    ours = truncate(logits, requests).softmax(dim=-1).numpy()
    for row, request in enumerate(requests):
        np.testing.assert_allclose(ours[row], probabilities(logits[row].numpy(), request), atol=2e-6)  # float32 softmax


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [0, 300])
def test_a_nucleus_larger_than_the_first_candidates_is_found_whole(top_p: float, top_k: int) -> None:
    logits = _logits(vocab_size=2000) * 0.2  # so flat that hundreds of tokens are needed
    request = make_request(top_p=top_p, top_k=top_k)
    kept = truncate(logits, [request])[0].isfinite().numpy()
    expected = probabilities(logits[0].numpy(), request) > 0
    assert abs(int(kept.sum()) - int(expected.sum())) <= 1  # the sum at the border differs in its last bits
    assert expected.sum() > 256 or top_k == 300


def test_a_neighbour_s_top_k_takes_nothing_from_a_request_without_one() -> None:
    kept = truncate(_logits(2, vocab_size=2000), [make_request(), make_request(top_k=3)]).isfinite().sum(dim=-1)
    assert kept.tolist() == [2000, 3]


def test_the_smallest_draw_is_the_first_token_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tripod.engine.execution.sampler.uniform", lambda seed, index: 0.0)
    assert sample(torch.tensor([[0.0, 1.0, 3.0, 3.0]]), [make_request(top_k=2)]) == [2]


def test_the_penalties_can_move_the_greedy_choice_and_leave_the_logits_untouched() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    requests = [
        make_request(temperature=0.0, output=(0,), presence_penalty=1.5),
        make_request(temperature=0.0, logit_bias={2: 5.0}),
        make_request(temperature=0.0),
    ]
    assert sample(logits, requests) == [1, 2, 0]
    assert logits[0].tolist() == [3.0, 2.0, 1.0]


def test_stop_tokens_cannot_be_drawn_before_min_tokens() -> None:
    logits = torch.tensor([[9.0, 1.0, 0.0]])
    assert sample(logits, [make_request(temperature=0.0, min_tokens=1, stop=frozenset({0}))]) == [1]
    assert sample(logits, [make_request(temperature=0.0, min_tokens=1, stop=frozenset({0}), output=(1,))]) == [0]


@pytest.mark.parametrize("temperature", [1e-30, 1e-46, 5e-324])
def test_a_tiny_temperature_is_greedy_and_not_a_number_error(temperature: float) -> None:
    assert sample(torch.tensor([[80.0, 90.0, -200.0]]), [make_request(temperature=temperature)]) == [1]


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1e300, "min_tokens": 1}, {"repetition_penalty": 1e-300}, {"repetition_penalty": 1e300}],
    ids=str,
)
def test_numbers_beyond_float32_still_give_a_token_of_the_vocabulary(options: dict[str, Any]) -> None:
    """Not a number in the logits would be drawn as an id behind the last one, which fails the next step of every running request."""
    logits = torch.tensor([[0.0, 3.0, -2.0, 5.0]])
    drawn = {sample(logits, [make_request(seed, prompt=(0, 1, 2), stop=frozenset({3}), **options)])[0] for seed in range(20)}
    assert drawn <= {0, 1, 2, 3}


@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 100_000))
def test_a_uniform_number_lies_in_the_half_open_unit_interval(seed: int, index: int) -> None:
    assert 0.0 <= uniform(seed, index) < 1.0


def test_uniform_numbers_are_spread_evenly_along_a_request_and_across_seeds() -> None:
    for numbers in ([uniform(7, i) for i in range(20_000)], [uniform(seed, 0) for seed in range(20_000)]):
        counts, _ = np.histogram(numbers, bins=20, range=(0.0, 1.0))
        assert ((counts - 1000) ** 2 / 1000).sum() < 19 + 5 * math.sqrt(38)  # chi-square with 19 degrees of freedom
    along = np.array([uniform(7, i) for i in range(20_000)])
    assert abs(np.corrcoef(along[:-1], along[1:])[0, 1]) < 5 / math.sqrt(20_000)


def test_scores_are_log_softmax_with_the_best_alternatives_in_order() -> None:
    logits = _logits(2, 10)
    expected = logits.double().log_softmax(-1)
    for row, (own, top) in enumerate(score(logits, [4, 7], 3)):
        assert own == pytest.approx(float(expected[row, [4, 7][row]]), abs=1e-6)
        best = expected[row].argsort(descending=True)[:3].tolist()
        assert [token_id for token_id, _ in top] == best
        assert [value for _, value in top] == pytest.approx(expected[row, best].tolist(), abs=1e-6)
    assert score(logits, [4, 7], 0)[0][1] == []

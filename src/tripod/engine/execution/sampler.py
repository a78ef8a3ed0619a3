"""The next token of each request, chosen from its logits as `SamplingParams` says.

Each request draws from its own counter: the uniform number behind its n-th token is a pure function of (seed, n). So
neither the neighbours in a batch, nor a preemption, nor a replay can change a draw.
"""

# R requests, V vocabulary

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tripod.engine.policy.request import Request
from tripod.models.language_model import LanguageModel

_MASK_64 = (1 << 64) - 1
_SMALLEST, _LARGEST = 1e-30, 1e30  # divisors of logits: beyond, float32 has only zeros and infinities, and out of these comes NaN
_NUM_CANDIDATES = 256  # a nucleus is looked for among so many tokens before the whole vocabulary is sorted


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on (seed, index) alone: SplitMix64 as a counter (Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    return (_mix(_mix(seed) + (index + 1) * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


def _mix(x: int) -> int:
    x &= _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)


@dataclass(frozen=True, slots=True)
class RuledOut:
    """Tokens that the grammars of some rows do not allow."""

    rows: Sequence[int]  # of the logits
    penalty: Tensor  # [len(rows), V], float32: -inf for what must not be chosen, else 0. Adding it is ten times faster than masking


Argmax: TypeAlias = Callable[[Tensor], Tensor]  # [R, V] -> [R]: the first of the largest; NaN counts as the largest


def torch_argmax(logits: Tensor) -> Tensor:
    """An `Argmax` on any device."""
    return logits.max(dim=-1).indices


def torch_greedy(model: LanguageModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely token of each row and its logit, on any device: [R, D] -> [R], [R]."""
    largest = model.logits(hidden).max(dim=-1)
    return largest.indices, largest.values


def sound_tokens(token_ids: Tensor, logits: Tensor) -> list[int | None]:
    """R token ids with None where the logit is not finite: [R], [R], by an argmax that takes NaN for the largest."""
    if logits.device.type == "cpu":  # there each of torch's operations takes longer than all of these numbers
        return [token_id if math.isfinite(logit) else None for token_id, logit in zip(token_ids.tolist(), logits.tolist(), strict=True)]
    found = torch.where(logits.isfinite(), token_ids, -1).tolist()  # in one look: each waits for the device
    return [int(token_id) if token_id >= 0 else None for token_id in found]


def sample(
    logits: Tensor, requests: Sequence[Request], *, ruled_out: RuledOut | None = None, argmax: Argmax = torch_argmax
) -> list[int | None]:
    """Choose one token for each request.

    Args:
        logits: [R, V]; left as they are.
        requests: R requests, whose prompt and output so far are complete.
        ruled_out: what must not be chosen; None where no request has a grammar.
        argmax: that of the route.

    Returns:
        R token ids; None for a row whose logits are not finite.
    """
    if ruled_out is not None:
        logits = _without(logits, ruled_out)
    best = argmax(logits)
    token_ids = sound_tokens(best, logits.gather(-1, best[:, None]).flatten())
    others = [row for row, request in enumerate(requests) if not is_plain(request)]
    if others:
        shaped = logits.float() if len(others) == len(requests) else logits[others].float()
        if shaped.data_ptr() == logits.data_ptr():
            shaped = shaped.clone()
        for row, token_id in zip(others, _sample_shaped(shaped, [requests[row] for row in others]), strict=True):
            token_ids[row] = None if token_ids[row] is None else token_id
    return token_ids


def _without(logits: Tensor, ruled_out: RuledOut) -> Tensor:
    if len(ruled_out.rows) == len(logits):
        return logits + ruled_out.penalty
    logits = logits.clone()
    for row, penalty in zip(ruled_out.rows, ruled_out.penalty, strict=True):
        logits[row] += penalty
    return logits


def is_plain(request: Request) -> bool:
    """Greedy over the logits as they are."""
    params = request.sampling
    return (
        params.temperature == 0.0
        and not params.logit_bias
        and params.repetition_penalty == 1.0
        and params.presence_penalty == 0.0
        and params.frequency_penalty == 0.0
        and len(request.output_ids) >= params.min_tokens
    )


def _sample_shaped(logits: Tensor, requests: Sequence[Request]) -> list[int]:
    """In the documented order: bias, penalties, temperature, top-k, top-p, min-p, draw. `logits` is ours to change."""
    for row, request in enumerate(requests):
        _adjust(logits[row], request)
    token_ids = logits.argmax(dim=-1).tolist()
    drawn = [row for row, request in enumerate(requests) if not request.sampling.is_greedy]
    if drawn:
        chosen = [requests[row] for row in drawn]
        for row, token_id in zip(drawn, _draw(truncate(logits[drawn], chosen), chosen), strict=True):
            token_ids[row] = token_id
    return list(map(int, token_ids))


def _adjust(logits: Tensor, request: Request) -> None:
    """Bias and penalties of one request, in place: [V]. What the tokens so far do not touch costs nothing."""
    params = request.sampling
    if params.logit_bias:
        logits[list(params.logit_bias)] += torch.tensor(list(params.logit_bias.values()), device=logits.device)
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*request.prompt_ids, *request.output_ids}), device=logits.device)
        score = logits[seen]
        penalty = _bounded(params.repetition_penalty)
        logits[seen] = torch.where(score > 0, score / penalty, score * penalty)
    if (params.presence_penalty or params.frequency_penalty) and request.output_ids:
        counts = Counter(request.output_ids)
        penalties = [params.presence_penalty + params.frequency_penalty * count for count in counts.values()]
        logits[list(counts)] -= torch.tensor(penalties, device=logits.device)
    if len(request.output_ids) < params.min_tokens and request.stop_ids and params.grammar is None:  # else what is ruled out holds it
        logits[list(request.stop_ids)] = -math.inf


def truncate(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """Divide by the temperature, then rule out what top-k, top-p and min-p do not keep. Tokens of equal logit stay or go together.

    Args:
        logits: [R, V], float32; temperatures are above 0.

    Returns:
        [R, V], -inf where ruled out; the most likely token is always kept.
    """
    temperature = torch.tensor([[_bounded(request.sampling.temperature)] for request in requests], device=logits.device)
    largest = logits.amax(dim=-1, keepdim=True)
    scaled = (logits - largest) / temperature  # at most 0, so that even a tiny temperature overflows to -inf only
    threshold = torch.tensor([[_log(request.sampling.min_p)] for request in requests], device=logits.device)
    if any(request.sampling.top_k or request.sampling.top_p < 1.0 for request in requests):
        threshold = torch.maximum(threshold, _rank_threshold(scaled, requests))
    return scaled.masked_fill(scaled < threshold, -math.inf)


def _bounded(divisor: float) -> float:
    return min(max(divisor, _SMALLEST), _LARGEST)


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0.0 else -math.inf


def _rank_threshold(scaled: Tensor, requests: Sequence[Request]) -> Tensor:
    """The smallest logit that top-k and then top-p keep: [R, V] -> [R, 1]."""
    vocab_size = scaled.shape[-1]
    top_k = torch.tensor([[min(r.sampling.top_k or vocab_size, vocab_size)] for r in requests], device=scaled.device)
    top_p = torch.tensor([[r.sampling.top_p] for r in requests], dtype=torch.float64, device=scaled.device)
    num_candidates = min(vocab_size, max(_NUM_CANDIDATES, *(r.sampling.top_k for r in requests)))
    while True:
        best = scaled.topk(num_candidates, dim=-1).values  # [R, C], falling
        weight = best.double().exp()
        rank = torch.arange(num_candidates, device=scaled.device)
        kept_by_k = rank < top_k
        complete = top_k <= num_candidates  # else the weight of all tokens counts, and the nucleus may need more candidates
        total = torch.where(complete, (weight * kept_by_k).sum(-1, keepdim=True), scaled.double().exp().sum(-1, keepdim=True))
        before = weight.cumsum(dim=-1) - weight  # of more likely tokens
        kept = kept_by_k & ((before < top_p * total) | (top_p >= 1.0))
        is_open = kept[:, -1:] & ~complete & (top_p < 1.0)  # the nucleus may reach beyond the candidates
        if num_candidates == vocab_size or not bool(is_open.any()):
            lowest = torch.where(kept, best, math.inf).amin(dim=-1, keepdim=True)
            return torch.where(complete | (top_p < 1.0), lowest, -math.inf)
        num_candidates = vocab_size


def _draw(scaled: Tensor, requests: Sequence[Request]) -> list[int]:
    """Inverse transform sampling in the order of the vocabulary: [R, V] unnormalised log-probabilities -> R token ids."""
    cumulative = scaled.double().exp().cumsum(dim=-1)
    numbers = [[uniform(request.seed, len(request.output_ids))] for request in requests]
    target = torch.tensor(numbers, dtype=torch.float64, device=scaled.device) * cumulative[:, -1:]
    return list(map(int, torch.searchsorted(cumulative, target, right=True).flatten().tolist()))


def score(logits: Tensor, token_ids: Sequence[int], num_top: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """Log-probabilities under the unmodified distribution.

    Args:
        logits: [R, V].
        token_ids: R tokens.
        num_top: how many of the most likely tokens to name as well.

    Returns:
        For each row, the token's natural-log probability, and the best (token id, log-probability), best first.
    """
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(-1, torch.tensor(token_ids, device=logits.device)[:, None]).flatten().tolist()
    if num_top == 0:
        return [(value, []) for value in own]
    values, ids = logprobs.topk(min(num_top, logits.shape[-1]), dim=-1)
    tops = zip(ids.tolist(), values.tolist(), strict=True)
    return [(value, list(zip(*top, strict=True))) for value, top in zip(own, tops, strict=True)]

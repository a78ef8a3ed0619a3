"""A question to a model that is answered by yes or no, as a probability: read from the logits, not from the word that was drawn."""

from __future__ import annotations

import math

from tripod.messages import Reply
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import Grammar, SamplingParams

NUM_ALTERNATIVES = 20  # of the first token; most servers tell no more


async def probability_of_yes(prompt: Prompt, model: ChatModel) -> float | None:
    """How likely the model says yes rather than no; None where it tells no probabilities, or thinks of neither word.

    Args:
        prompt: asks for one word, yes or no.
        model: one that takes grammars (`constrains`) is held to the two words; the probabilities are those without the grammar.
    """
    grammar = Grammar.choice(["yes", "no"]) if getattr(model, "constrains", False) else None
    sampling = SamplingParams(temperature=0.0, max_tokens=4, logprobs=NUM_ALTERNATIVES, grammar=grammar)
    return yes_of(await model.complete(prompt, sampling))


def yes_of(reply: Reply) -> float | None:
    """P(yes) / (P(yes) + P(no)) of the reply's first token, over every spelling among its alternatives: "Yes", " yes", "y"."""
    if not reply.logprobs:
        return None
    first = reply.logprobs[0]
    probabilities = {token.token_id: (token.token, math.exp(token.logprob)) for token in (*first.top, first)}
    mass = {word: sum(p for token, p in probabilities.values() if _begins(token, word)) for word in ("yes", "no")}
    total = sum(mass.values())
    return mass["yes"] / total if total > 0.0 else None


def _begins(token: str, word: str) -> bool:
    spelled = token.strip(" \t\n▁Ġ\"'.").casefold()
    return bool(spelled) and word.startswith(spelled)

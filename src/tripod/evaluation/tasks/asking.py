"""Asks of tasks, answered by the engine in batches that share the beginnings of their prompts.

Tokens are cut where lm-eval cuts them, so that log-likelihoods compare: a context's trailing spaces go to the continuation, the two are
tokenised as one text, and a text without a context stands behind the beginning-of-sequence token, or the end-of-sequence one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tripod.errors import ConfigError
from tripod.evaluation.tasks.question import Ask, Continuation, Generated, Generation, Likelihood, Reply, WholeText
from tripod.sampling import SamplingParams
from tripod.training.data.progress import Progress, no_progress

if TYPE_CHECKING:
    from tripod.engine.engine import Engine
    from tripod.text.tokenizer import Tokenizer

_PROGRESS_ASKS = 50
AT_ONCE = 256  # asks that the engine holds at a time: enough to fill its steps and to find prompts that begin alike


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens whose likelihood is wanted, behind others."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]

    def cut(self, max_context: int) -> Scored:
        """The beginning is left out of what is too long; a continuation that fills the context by itself loses its own."""
        too_many = len(self.prompt_ids) + len(self.ids) - max_context
        if too_many <= 0:
            return self
        kept = (*self.prompt_ids, *self.ids)[too_many:]
        num_prompt = max(1, len(self.prompt_ids) - too_many)
        return Scored(kept[:num_prompt], kept[num_prompt:])


def first_id(tokenizer: Tokenizer) -> int:
    """What a text without a context stands behind.

    Raises:
        ConfigError: the tokenizer has no such token.
    """
    if tokenizer.bos_id is not None:
        return tokenizer.bos_id
    if not tokenizer.eos_ids:
        raise ConfigError("the tokenizer knows neither the beginning nor the end of a text, so nothing can stand before one")
    return min(tokenizer.eos_ids)


def encode_pair(tokenizer: Tokenizer, context: str, text: str) -> Scored:
    """The tokens of a context and of its continuation.

    Raises:
        ConfigError: there is nothing to score.
    """
    if not context:
        ids = tokenizer.encode(text, add_special_tokens=False)
        first = first_id(tokenizer)
        if ids[:1] == [first]:
            ids = ids[1:]
        prompt_ids = [first]
    else:
        num_spaces = len(context) - len(context.rstrip())
        if num_spaces:
            context, text = context[:-num_spaces], context[-num_spaces:] + text
        whole = tokenizer.encode(context + text)
        prompt_ids = tokenizer.encode(context)
        ids = whole[len(prompt_ids) :]
    if not ids or not prompt_ids:
        raise ConfigError(f"the continuation {text!r} of {context[-40:]!r} has no tokens of its own, so it cannot be scored")
    return Scored(tuple(prompt_ids), tuple(ids))


def rolling_windows(ids: Sequence[int], first: int, max_context: int) -> list[Scored]:
    """A text of any length as windows in which each of its tokens is scored once.

    All but the last have no overlap; the last one has as much context as fits.
    """
    windows = [Scored((first,), tuple(ids[: max_context - 1]))]
    done = len(windows[0].ids)
    while done < len(ids):
        end = min(done + max_context - 1, len(ids))
        begin = max(0, end - max_context)
        windows.append(Scored(tuple(ids[begin:done]), tuple(ids[done:end])))
        done = end
    return windows


async def answer(
    engine: Engine, asks: Sequence[Ask], *, at_once: int = AT_ONCE, progress: Progress = no_progress, stage: str = "asks"
) -> list[Reply]:
    """Ask the engine; replies in the order of the asks.

    Asks are put in the order of their prompts' tokens, so that what begins alike is computed once.

    Raises:
        ConfigError, RequestError, EngineError: an ask cannot be answered.
    """
    prepared = [_prepared(engine, ask) for ask in asks]
    order = sorted(range(len(asks)), key=lambda at: prepared[at][0].prompt_ids + prepared[at][0].ids)
    replies: dict[int, Reply] = {}

    async def one(at: int) -> None:
        replies[at] = await _answer_one(engine, asks[at], prepared[at])

    await for_each(order, one, at_once=at_once, progress=progress, stage=stage)
    return [replies[at] for at in range(len(asks))]


async def for_each(numbers: Sequence[int], one: Callable[[int], Awaitable[None]], *, at_once: int, progress: Progress, stage: str) -> None:
    """Do one thing for each number, `at_once` of them at a time, begun in their order. The first error ends all, and is raised as it is."""
    waiting, num_done = iter(numbers), 0

    async def work() -> None:
        nonlocal num_done
        for number in waiting:
            await one(number)
            num_done += 1
            if num_done % _PROGRESS_ASKS == 0 or num_done == len(numbers):
                progress(stage, num_done, len(numbers))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(numbers))):
                group.create_task(work())
    except ExceptionGroup as several:
        raise several.exceptions[0] from several


def _prepared(engine: Engine, ask: Ask) -> list[Scored]:
    tokenizer, longest = engine.tokenizer, engine.max_context
    match ask:
        case Continuation(context, text):
            return [encode_pair(tokenizer, context, text).cut(longest)]
        case WholeText(text):
            ids = tokenizer.encode(text, add_special_tokens=False)
            if not ids:
                raise ConfigError("a text to score is empty; leave it out")
            return rolling_windows(ids, first_id(tokenizer), longest)
        case Generation(prompt, _, max_tokens):
            room = longest - max_tokens
            if room < 1:
                raise ConfigError(f"an answer of {max_tokens} tokens leaves no room for a prompt in a context of {longest}")
            return [Scored(tuple(tokenizer.encode(prompt)[-room:]), ())]


async def _answer_one(engine: Engine, ask: Ask, prepared: Sequence[Scored]) -> Reply:
    if isinstance(ask, Generation):
        sampling = SamplingParams(temperature=0.0, max_tokens=ask.max_tokens, stop=ask.until)
        return Generated((await engine.generate(prepared[0].prompt_ids, sampling)).text)
    scores = [await engine.score(part.prompt_ids, part.ids) for part in prepared]
    return Likelihood(
        logprob=sum(score.total for score in scores),
        num_tokens=sum(len(score.logprobs) for score in scores),
        is_greedy=all(score.is_greedy for score in scores),
    )


def flat(groups: Iterable[Sequence[Ask]]) -> list[Ask]:
    return [ask for group in groups for ask in group]

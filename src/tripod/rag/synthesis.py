"""Ways to make one answer of more passages than a prompt should hold. Each is an async generator like `writing.write`, and `ask` takes any.

- `stuff`: one prompt over all of them.
- `refine`: as many as fit at a time, each prompt improving the answer so far (one prompt if all fit, which others call "compact").
- `tree`: an answer from each group, side by side, then one answer out of these (map and reduce).
- `accumulate`: an answer from each passage, one after the other in the text.

Deltas are of the prompt that writes the final text; what was written in between is in the trace.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Protocol

import anyio

from tripod.documents import Passage
from tripod.errors import ConfigError
from tripod.messages import Usage
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.rag.answer import Citation
from tripod.rag.prompts import merge
from tripod.rag.prompts import refine as refine_prompt
from tripod.rag.writing import DEFAULT_WRITING, Writing, Written, write, written
from tripod.text.splitter import approximate_tokens
from tripod.trace import Delta

PASSAGE_TOKENS = 2000  # of one prompt, as `approximate_tokens` counts
_FAN_IN = 6  # answers that one prompt merges
_AT_ONCE = 8  # requests; an engine batches them


class Synthesis(Protocol):
    """Makes an answer of numbered passages; the last event is a `Written`."""

    def __call__(
        self, question: str, given: Mapping[int, Passage], model: ChatModel, writing: Writing
    ) -> AsyncGenerator[Delta | Written, None]: ...


def grouped(given: Mapping[int, Passage], passage_tokens: int) -> list[dict[int, Passage]]:
    """The passages in order, in groups of at most so many tokens; a passage that alone has more is a group of its own.

    Raises:
        ConfigError: `passage_tokens` is below 1.
    """
    if passage_tokens < 1:
        raise ConfigError(f"passage_tokens={passage_tokens} leaves no room for a passage; give at least 1")
    groups: list[dict[int, Passage]] = []
    room = 0
    for number, passage in given.items():
        needed = approximate_tokens(passage.text)
        if not groups or needed > room:
            groups.append({})
            room = passage_tokens
        groups[-1][number] = passage
        room -= needed
    return groups


async def stuff(
    question: str, given: Mapping[int, Passage], model: ChatModel, writing: Writing = DEFAULT_WRITING
) -> AsyncGenerator[Delta | Written, None]:
    """One prompt over all passages."""
    async with aclosing(write(question, given, model, writing)) as events:
        async for event in events:
            yield event


async def refine(
    question: str,
    given: Mapping[int, Passage],
    model: ChatModel,
    writing: Writing = DEFAULT_WRITING,
    *,
    passage_tokens: int = PASSAGE_TOKENS,
) -> AsyncGenerator[Delta | Written, None]:
    """A prompt for each group of passages, which shows the answer so far and what that cites; where a group adds nothing, it stays."""
    groups = grouped(given, passage_tokens)
    done: list[Written] = []
    draft: Written | None = None
    for position, group in enumerate(groups, start=1):
        shown = group if draft is None else {citation.number: citation.passage for citation in draft.citations} | group
        prompt = None if draft is None else partial(_refining, question, draft.text, shown)
        async with aclosing(write(question, shown, model, writing, prompt=prompt)) as events:
            async for event in events:
                if isinstance(event, Written):
                    done.append(event)
                elif position == len(groups):
                    yield event
        draft = done[-1] if done[-1].text else draft
    yield _summed(done, draft or done[-1])


async def tree(
    question: str,
    given: Mapping[int, Passage],
    model: ChatModel,
    writing: Writing = DEFAULT_WRITING,
    *,
    passage_tokens: int = PASSAGE_TOKENS,
) -> AsyncGenerator[Delta | Written, None]:
    """An answer from each group, then answers out of answers until one is left. The merging prompts cite what their answers cited."""
    done = await _side_by_side(question, grouped(given, passage_tokens), model, writing)
    drafts = [one for one in done if one.text]
    while len(drafts) > 1:
        batches = [drafts[start : start + _FAN_IN] for start in range(0, len(drafts), _FAN_IN)]
        merged: list[Written] = []
        for batch in batches:
            if len(batch) == 1:
                merged.append(batch[0])
                continue
            cited = {citation.number: citation.passage for one in batch for citation in one.citations}
            if not cited:  # nothing that could be cited again: the first stands for all
                merged.append(batch[0])
                continue
            prompt = partial(_merging, question, [one.text for one in batch], sorted(cited))
            async with aclosing(write(question, dict(sorted(cited.items())), model, writing, prompt=prompt)) as events:
                async for event in events:
                    if isinstance(event, Written):
                        done.append(event)
                        merged.append(event if event.text else batch[0])
                    elif len(batches) == 1:
                        yield event
        drafts = merged
    yield _summed(done, drafts[0] if drafts else done[-1])


async def accumulate(
    question: str, given: Mapping[int, Passage], model: ChatModel, writing: Writing = DEFAULT_WRITING
) -> AsyncGenerator[Delta | Written, None]:
    """An answer from each passage alone, in their order; passages that do not answer are left out."""
    done = await _side_by_side(question, [{number: passage} for number, passage in given.items()], model, writing)
    text = ""
    citations: list[Citation] = []
    for one in done:
        if one.text:
            text += "\n\n" if text else ""
            citations += [replace(citation, start=citation.start + len(text), end=citation.end + len(text)) for citation in one.citations]
            text += one.text
    yield Delta(text=text)
    yield _summed(done, replace(done[-1], text=text, citations=tuple(citations)))


async def _side_by_side(question: str, groups: Sequence[Mapping[int, Passage]], model: ChatModel, writing: Writing) -> list[Written]:
    """Answers of all groups, in the order of the groups whatever their order in time."""
    answers: dict[int, Written] = {}
    limiter = anyio.CapacityLimiter(_AT_ONCE)

    async def answer(position: int, group: Mapping[int, Passage]) -> None:
        async with limiter:
            answers[position] = await written(write(question, group, model, writing))

    try:
        async with anyio.create_task_group() as tasks:
            for position, group in enumerate(groups):
                tasks.start_soon(answer, position, group)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the first that failed; the others were cancelled for it
    return [answers[position] for position in range(len(groups))]


def _summed(done: Sequence[Written], final: Written) -> Written:
    """The final answer with what all of them used."""
    notes = tuple(dict.fromkeys(note for one in done for note in one.notes))
    return replace(
        final, usage=sum((one.usage for one in done), Usage()), notes=notes, trace=tuple(span for one in done for span in one.trace)
    )


def _refining(question: str, draft: str, shown: Mapping[int, Passage], **form: str) -> Prompt:
    return refine_prompt(question, draft, shown, **form)


def _merging(question: str, drafts: Sequence[str], numbers: Sequence[int], **form: str) -> Prompt:
    return merge(question, drafts, numbers, **form)

"""What an agent remembers: as much of the conversation as fits, a summary of the rest, and facts that outlive it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tripod.agents.hooks import Hook
from tripod.agents.tool import FunctionTool, tool
from tripod.documents import Document
from tripod.errors import ConfigError
from tripod.messages import Message, user
from tripod.prompts import Part, Prompt
from tripod.protocols import ChatModel
from tripod.sampling import GREEDY

if TYPE_CHECKING:
    from tripod.agents.run import Run
    from tripod.filters import Where
    from tripod.retrieval.index import Index

Count = Callable[[str], int]


def rough_tokens(text: str) -> int:
    """A guess for models whose tokenizer is not here: a token for each three bytes, which English, German and code stay below."""
    return len(text.encode()) // 3 + 1


def num_tokens(message: Message, count: Count) -> int:
    return count(message.text) + count(message.reasoning) + sum(count(call.name + call.arguments) for call in message.tool_calls)


def fitting(messages: Sequence[Message], tokens: int, count: Count = rough_tokens) -> int:
    """Where the longest end of a conversation begins that has at most so many tokens. It begins with a turn of the person asking.

    So no tool result stands without its call. The last such turn and what follows it are always kept.
    """
    begin = len(messages)
    for place in reversed(range(len(messages))):
        tokens -= num_tokens(messages[place], count)
        if messages[place].role == "user":
            if tokens < 0 and begin < len(messages):
                break
            begin = place
    return begin if begin < len(messages) else 0


@dataclass(frozen=True, slots=True)
class Window(Hook):
    """Shows the model only the end of a long conversation. The run keeps all of it."""

    tokens: int
    count: Count = rough_tokens

    async def before_model(self, run: Run[Any], messages: Sequence[Message]) -> Sequence[Message]:
        return messages[fitting(messages, self.tokens, self.count) :]


@dataclass(frozen=True, slots=True)
class Summarize(Hook):
    """Replaces the older part of a conversation by a summary when it has more than `tokens`. The run goes on with the summary.

    Args:
        keep: tokens of the end that stay as they are.
        prompt: asks for the summary; what is not in it is forgotten.
    """

    model: ChatModel
    tokens: int
    keep: int
    count: Count = rough_tokens
    prompt: Callable[[Sequence[Message]], Prompt] = field(default=lambda messages: summary_prompt(messages))

    def __post_init__(self) -> None:
        if not 0 < self.keep < self.tokens:
            raise ConfigError(f"keep={self.keep} must be above 0 and below tokens={self.tokens}, or nothing could be summarized")

    async def before_model(self, run: Run[Any], messages: Sequence[Message]) -> Sequence[Message]:
        if sum(num_tokens(message, self.count) for message in messages) <= self.tokens:
            return messages
        begin = fitting(messages, self.keep, self.count)
        if begin == 0:
            return messages
        reply = await self.model.complete(self.prompt(messages[:begin]), GREEDY)
        run.spend(reply.usage)
        run.messages = [user(f"Summary of the conversation so far:\n{reply.text}"), *messages[begin:]]
        return run.messages


def summary_prompt(messages: Sequence[Message]) -> Prompt:
    """What is asked of the model that summarizes."""
    return Prompt(
        (
            Part("Summarize the conversation in at most ten lines. Keep names, numbers, decisions and open questions.", "system", "system"),
            Part("\n".join(f"{message.role}: {message.text}" for message in messages if message.text)),
        )
    )


@dataclass(frozen=True, slots=True)
class Memory(Hook):
    """Facts that outlive a conversation, in an index. `memory.tools` lets a model write and search it; as a hook it recalls by itself.

    Args:
        owner: whose facts they are; those of others are not found.
        k: how many facts are recalled with each question; 0 for none but those that the model asks for.
    """

    index: Index
    owner: str = ""
    k: int = 3

    async def remember(self, fact: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        await self.index.add([Document(source=f"memory:{uuid.uuid4().hex}", text=fact, metadata={"owner": self.owner, "at": now})])

    async def recall(self, question: str, k: int = 5) -> list[str]:
        """The facts that have most to do with a question, best first."""
        if not question.strip() or await self.index.store.stats() is None:  # nothing was ever kept
            return []
        owner: Where = {"owner": self.owner}
        return [passage.text for passage in await self.index.search(question, k=k, where=owner)]

    @property
    def tools(self) -> tuple[FunctionTool[..., Any], ...]:
        async def remember(fact: str) -> str:
            """Keep a fact for later conversations.

            Args:
                fact: one sentence that can be understood alone.
            """
            await self.remember(fact)
            return "Kept."

        async def recall(question: str) -> list[str]:
            """Look up what was kept in earlier conversations.

            Args:
                question: what you want to know.
            """
            return await self.recall(question)

        return tool(remember), tool(recall)

    async def before_model(self, run: Run[Any], messages: Sequence[Message]) -> Sequence[Message]:
        place = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
        if place is None or self.k < 1:
            return messages
        facts = await self.recall(messages[place].text, self.k)
        if not facts:
            return messages
        known = user("Known from earlier conversations:\n" + "\n".join(f"- {fact}" for fact in facts))
        return [*messages[:place], known, *messages[place:]]

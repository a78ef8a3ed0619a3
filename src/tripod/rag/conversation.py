"""Questions that follow on each other: the history is a value that the caller holds, with a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tripod.errors import ConfigError
from tripod.messages import Message, assistant, user
from tripod.protocols import ChatModel
from tripod.rag.answer import Answer
from tripod.rag.ask import ask
from tripod.rag.prompts import condense
from tripod.sampling import GREEDY
from tripod.text.splitter import approximate_tokens

if TYPE_CHECKING:
    from tripod.retrieval.index import Index

MAX_QUESTION_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What was asked and answered. Nothing of it is forgotten; `recent` is what still fits the budget.

    Raises:
        ConfigError: `max_history_tokens` is negative, or questions and answers do not take turns.
    """

    messages: tuple[Message, ...] = ()
    max_history_tokens: int = 1500  # as `approximate_tokens` counts

    def __post_init__(self) -> None:
        if self.max_history_tokens < 0:
            raise ConfigError(f"max_history_tokens={self.max_history_tokens} is negative; 0 shows the model no history")
        if [message.role for message in self.messages] != ["user", "assistant"] * (len(self.messages) // 2):
            raise ConfigError("a conversation is questions (user) and answers (assistant) in turn, beginning with a question")

    def then(self, question: str, answer: str) -> Conversation:
        """The conversation with one more exchange."""
        return replace(self, messages=(*self.messages, user(question), assistant(answer)))

    @property
    def recent(self) -> tuple[Message, ...]:
        """The last exchanges that fit the budget, whole ones only."""
        room = self.max_history_tokens
        first = len(self.messages)
        while first:
            room -= sum(approximate_tokens(message.text) for message in self.messages[first - 2 : first])
            if room < 0:
                break
            first -= 2
        return self.messages[first:]


async def standalone(question: str, conversation: Conversation, model: ChatModel) -> str:
    """The question, so asked that it needs no conversation: "And on Sundays?" becomes "When does the museum open on Sundays?".

    Without a history the question itself; so too where the model writes nothing.
    """
    history = conversation.recent
    if not history:
        return question
    reply = await model.complete(condense(history, question), replace(GREEDY, max_tokens=MAX_QUESTION_TOKENS, stop=("\n",)))
    return reply.text.strip() or question


async def converse(
    question: str, conversation: Conversation, index: Index, *, model: ChatModel, **options: Any
) -> tuple[Answer, Conversation]:
    """Answer a question that may lean on what was said before.

    Args:
        question: as it was asked.
        conversation: what came before it.
        index: an open index.
        model: rewrites the question and writes the answer.
        options: of `ask`.

    Returns:
        The answer, whose `question` is the rewritten one, and the conversation that goes on.
    """
    asked = await standalone(question, conversation, model)
    answer = await ask(asked, index, model=model, **options)
    return answer, conversation.then(question, answer.text)

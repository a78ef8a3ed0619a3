"""A model that says what it was told to say: for tests and for demonstrations of what stands around a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from tripod.errors import ConfigError
from tripod.messages import Message, Reply, ToolCall, Usage
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams
from tripod.trace import Delta, Event, Finished, ToolCallDelta, fold


class ScriptedModel:
    """A ChatModel with its replies written beforehand. It counts a word, with the space before it, as a token.

    Args:
        replies: said in order, one a request: a text, tool calls, or a whole message; an exception among them is raised instead.
            The calls of one reply may stand alone or in a tuple.
    """

    def __init__(self, replies: Iterable[str | ToolCall | tuple[ToolCall, ...] | Message | Exception]) -> None:
        self._replies = list(replies)
        self.prompts: list[Prompt] = []  # what it was asked, in order
        self.num_running = 0  # streams that are open now

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        return await fold(self.stream(prompt, sampling))

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        """The next reply, word by word, cut where `sampling` says.

        Raises:
            ConfigError: the script is over.
        """
        if len(self.prompts) >= len(self._replies):
            raise ConfigError(f"the script has {len(self._replies)} replies and was asked for one more; give it as many as it is asked for")
        reply = self._replies[len(self.prompts)]
        self.prompts.append(prompt)
        if isinstance(reply, Exception):
            raise reply
        message = _message(reply)
        text, stop = _cut(message.text, sampling.stop)
        words = _words(text)
        spoken = words[: sampling.max_tokens]
        num_other = sum(len(_words(other)) for other in (message.reasoning, *(call.name + call.arguments for call in message.tool_calls)))
        self.num_running += 1
        calls = message.tool_calls if len(spoken) == len(words) else ()
        try:
            if message.reasoning:
                yield Delta(reasoning=message.reasoning, signature=message.signature)
            for word in spoken:
                yield Delta(text=word)
            for index, call in enumerate(calls):
                yield Delta(tool_calls=(ToolCallDelta(index=index, id=call.id, name=call.name),))
                yield Delta(tool_calls=(ToolCallDelta(index=index, arguments=call.arguments),))
            yield Finished(
                finish_reason="length" if len(spoken) < len(words) else "stop",
                usage=Usage(prompt_tokens=len(str(prompt).split()), completion_tokens=num_other + len(spoken)),
                stop=stop if len(spoken) == len(words) else None,
                model="scripted",
            )
        finally:
            self.num_running -= 1


def _message(reply: str | ToolCall | tuple[ToolCall, ...] | Message) -> Message:
    match reply:
        case Message():
            return reply
        case str():
            return Message("assistant", reply)
        case ToolCall():
            return Message("assistant", "", (reply,))
        case _:
            return Message("assistant", "", reply)


def _cut(text: str, stops: Iterable[str]) -> tuple[str, str | None]:
    """The text before the first stop string, and that string."""
    place, stop = min(((text.find(stop), stop) for stop in stops if stop in text), default=(len(text), None))
    return text[:place], stop


def _words(text: str) -> list[str]:
    pieces: list[str] = []
    for character in text:
        if pieces and not (character.isspace() and not pieces[-1].isspace()):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces

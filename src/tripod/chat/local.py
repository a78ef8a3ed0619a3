"""The in-process engine as a ChatModel."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tripod.chat.asked import ask_engine
from tripod.chat.closing import closing
from tripod.chat.render import check_chat_template
from tripod.messages import Reply
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams
from tripod.trace import Event, fold

if TYPE_CHECKING:
    from tripod.engine.engine import Engine


class LocalChatModel:
    """Writes the conversation by the model's chat template and lets the engine continue it. The engine stays the caller's.

    Args:
        chat_template: None for the template beside the model; "plain" for models that have none.

    Raises:
        ConfigError: `chat_template` is unknown.
    """

    def __init__(self, engine: Engine, *, chat_template: str | None = None) -> None:
        check_chat_template(chat_template)
        self.engine = engine
        self._chat_template = chat_template

    @property
    def constrains(self) -> bool:
        """Whether an answer can be held to a grammar: the tokenizer can end a text, and the package that enforces it is here."""
        return bool(self.engine.tokenizer.eos_ids) and find_spec("llguidance") is not None

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        return await fold(self.stream(prompt, sampling))

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        """The engine's events, with reasoning and tool calls out of their text.

        Raises:
            ConfigError: the model has no chat template, and none was chosen.
            RequestError: the template or the engine refuses the request.
        """
        asked = ask_engine(prompt, sampling, self.engine.tokenizer, chat_template=self._chat_template)
        async with closing(asked.read(self.engine.stream(asked.ids, asked.sampling))) as events:
            async for event in events:
                yield event

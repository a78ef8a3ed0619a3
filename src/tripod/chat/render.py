"""A conversation as token ids, by the template that came with the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tripod.errors import ConfigError
from tripod.messages import Message

if TYPE_CHECKING:
    from tripod.text.tokenizer import Tokenizer

PLAIN = "plain"


def check_chat_template(name: str | None) -> None:
    """
    Raises:
        ConfigError: it names no template that we have.
    """
    if name not in (None, PLAIN):
        raise ConfigError(f"chat_template={name!r} is unknown; give 'plain', or None for the template beside the model")


def template_file(chat_template: str | None) -> Path | None:
    """The Jinja file that is meant; None for the template beside the model and for "plain".

    Raises:
        ConfigError: it is neither "plain" nor a file.
    """
    if chat_template in (None, PLAIN):
        return None
    if not Path(chat_template).is_file():
        raise ConfigError(f"chat_template={chat_template!r} is neither 'plain' nor a file; give one of them, or None for the model's own")
    return Path(chat_template)


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer, chat_template: str | None = None) -> list[int]:
    """The prompt that asks for the next turn.

    Args:
        chat_template: None for the model's own; "plain" for `role: text` lines, which any model reads as text.

    Raises:
        ConfigError: the model has no template, and none was chosen.
        RequestError: the model's template refuses this conversation.
    """
    if chat_template == PLAIN:
        return tokenizer.encode(_plain(messages))
    if tokenizer.chat_template is None:
        raise ConfigError(
            "this model has no chat template, so it was probably not trained on conversations; "
            "give chat_template='plain' (--chat-template plain) to write them as plain 'role: text' lines, or a Jinja file"
        )
    # The template writes the beginning-of-sequence token itself where the model wants one.
    return tokenizer.encode(tokenizer.chat_template.render(messages), add_special_tokens=False)


def _plain(messages: Sequence[Message]) -> str:
    return "".join(f"{message.role}: {message.text}\n" for message in messages) + "assistant:"

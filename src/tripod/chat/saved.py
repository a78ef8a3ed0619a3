"""Conversations and replies as JSON, bytes in base64, and back as they were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tripod.durable_files import atomic_file
from tripod.errors import ConfigError
from tripod.messages import Message, Reply

REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


def save_messages(messages: Sequence[Message], path: str | Path) -> None:
    """Write a conversation, a message a line. The file is replaced when the new one is whole."""
    with atomic_file(Path(path)) as stream:
        stream.writelines(_MESSAGE.dump_json(message, exclude_defaults=True) + b"\n" for message in messages)


def load_messages(path: str | Path) -> tuple[Message, ...]:
    """The conversation that was saved there; empty where there is no file.

    Raises:
        ConfigError: a line holds no message.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    try:
        return tuple(_MESSAGE.validate_json(line) for line in lines)
    except ValidationError as error:
        raise ConfigError(f"{path} is no saved conversation: {error.errors(include_url=False)[0]['msg']}") from error

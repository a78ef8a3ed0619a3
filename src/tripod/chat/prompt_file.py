"""A prompt in a file: parts under their roles, each a Jinja template.

    [system]
    You answer in {{ language }}.

    [user]
    {% for note in notes %}- {{ note }}
    {% endfor %}
    {{ question }}

That is how a prompt prints, too. The roles are read before the templates are filled, so no value can open a part of its own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from tripod.errors import ConfigError, MissingExtraError
from tripod.messages import Role
from tripod.prompts import Kind, Part, Prompt

_HEAD = re.compile(r"^\[(system|user|assistant)\][ \t]*\n", re.MULTILINE)


def prompt_from_file(path: str | Path, **values: Any) -> Prompt:
    """The prompt that a file makes of these values.

    Args:
        path: UTF-8.
        values: what the templates name; each that they name must be given.

    Raises:
        ConfigError: the file cannot be read, has no part, is no valid template, or names a value that is not given.
        MissingExtraError: jinja2 is not installed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompt {path} cannot be read: {error}; give a text file in UTF-8") from error
    before, *pieces = _HEAD.split(text)
    if before.strip() or not pieces:
        raise ConfigError(f"the prompt {path} does not begin with a role; begin it with a line [system], [user] or [assistant]")
    parts = []
    for role, source in zip(pieces[::2], pieces[1::2], strict=True):
        kind: Kind = "system" if role == "system" else "text"
        parts.append(Part(_filled(source.strip(), values, path), cast(Role, role), kind))
    return Prompt(tuple(parts))


def _filled(source: str, values: dict[str, Any], path: str | Path) -> str:
    try:
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise MissingExtraError("jinja2", "engine", f"filling the prompt {path}") from error
    try:
        return ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True).from_string(source).render(values)
    except TemplateError as error:
        raise ConfigError(f"the prompt {path} cannot be filled: {error}; given are: {', '.join(values) or 'no values'}") from error

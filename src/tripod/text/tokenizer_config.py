"""What the JSON files beside a tokenizer say: special tokens, ends of generation, chat templates, added tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tripod.errors import TokenizerError
from tripod.text.chat_template import ChatTemplate

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """The merged reading of tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json and chat_template.jinja.

    Every file is optional. Ids come from the generation config; from config.json only where nothing else names them,
    because a config.json written by a default constructor carries ids of another vocabulary.
    """

    special_tokens: Mapping[str, str] = field(default_factory=dict)  # "bos_token" -> "<s>", ...
    added_tokens: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # id -> {"content": ..., "special": ..., ...}
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    generation_bos_id: int | None = None
    generation_eos_ids: frozenset[int] = frozenset()
    model_bos_id: int | None = None
    model_eos_ids: frozenset[int] = frozenset()
    chat_template: ChatTemplate | None = None

    @staticmethod
    def read(folder: Path, *, chat_template: Path | None = None) -> TokenizerConfig:
        """Read what is there.

        Args:
            folder: the tokenizer's folder.
            chat_template: a Jinja file that replaces the folder's own templates.

        Raises:
            TokenizerError: a file is there and is not a JSON object, or not shaped as Hugging Face writes it.
            ConfigError: `chat_template` cannot be read or is not a valid template.
        """
        try:
            return TokenizerConfig._read(folder, chat_template)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise TokenizerError(
                f"{folder / 'tokenizer_config.json'} or a file beside it is not shaped as Hugging Face writes it "
                f"({type(error).__name__}: {error}); fetch the files again"
            ) from error

    @staticmethod
    def _read(folder: Path, chat_template: Path | None) -> TokenizerConfig:
        tokenizer = _read_object(folder / "tokenizer_config.json")
        names = {**_read_object(folder / "special_tokens_map.json"), **{k: v for k, v in tokenizer.items() if v is not None}}
        generation = _read_object(folder / "generation_config.json")
        model = _read_object(folder / "config.json")
        special_tokens = {name: content for name in _SPECIAL_NAMES if (content := _content(names.get(name))) is not None}
        added_tokens = tokenizer.get("added_tokens_decoder", {})
        if chat_template is not None:
            template: ChatTemplate | None = ChatTemplate.read(chat_template, special_tokens=special_tokens)
        else:
            template = _chat_template(folder, tokenizer.get("chat_template"), special_tokens)
        return TokenizerConfig(
            special_tokens=special_tokens,
            added_tokens={int(token_id): {**token, "content": _text(token["content"])} for token_id, token in added_tokens.items()},
            add_bos_token=tokenizer.get("add_bos_token"),
            add_eos_token=tokenizer.get("add_eos_token"),
            generation_bos_id=min(_ids(generation.get("bos_token_id")), default=None),
            generation_eos_ids=_ids(generation.get("eos_token_id")),
            model_bos_id=min(_ids(model.get("bos_token_id")), default=None),
            model_eos_ids=_ids(model.get("eos_token_id")),
            chat_template=template,
        )

    def bos_id(self, named: int | None) -> int | None:
        """The id that begins a text; `named` is the id of the token that `special_tokens` names, if there is one."""
        return next((i for i in (named, self.generation_bos_id, self.model_bos_id) if i is not None), None)

    def eos_ids(self, named: int | None) -> frozenset[int]:
        """Every id that ends a generation. A chat model often has two: the end of a turn and the end of a text."""
        ids = self.generation_eos_ids | ({named} if named is not None else frozenset())
        return ids or self.model_eos_ids


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{file} cannot be read as JSON: {error}; fetch the file again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} holds a JSON {type(value).__name__}, expected an object; fetch the file again")
    return value


def _content(token: object) -> str | None:
    """A special token is written as a string, or as an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} where a text belongs")
    return value


def _ids(value: object) -> frozenset[int]:
    """An id, a list of ids, or nothing; some configurations write "none" as -1."""
    values = value if isinstance(value, list) else [value]
    return frozenset(i for i in values if isinstance(i, int) and i >= 0)


def _chat_template(folder: Path, in_config: object, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """Files win over the field of tokenizer_config.json, which is one template or a list of named ones."""
    templates: dict[str, str] = {}
    if isinstance(in_config, str):
        templates["default"] = in_config
    elif isinstance(in_config, list):
        templates |= {entry["name"]: entry["template"] for entry in in_config}
    elif isinstance(in_config, dict):
        templates |= in_config
    templates = {name: _text(source) for name, source in templates.items()}
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not templates:
        return None
    source = templates.get("default") or next(iter(templates.values()))
    return ChatTemplate(source, special_tokens=special_tokens, tool_use=templates.get("tool_use"))

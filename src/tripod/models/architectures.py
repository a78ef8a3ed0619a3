"""Every architecture that a checkpoint can have, by the `model_type` of its config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tripod.errors import CheckpointError
from tripod.models import bert, gpt_neox, llama
from tripod.models.bert import Bert, BertConfig
from tripod.models.gpt_neox import GPTNeoX, GPTNeoXConfig
from tripod.models.llama import Llama, LlamaConfig
from tripod.models.names import NameTable

Config: TypeAlias = LlamaConfig | GPTNeoXConfig | BertConfig
Model: TypeAlias = Llama | GPTNeoX | Bert

LANGUAGE_MODELS = ("gpt_neox", *llama.MODEL_TYPES)
ENCODERS = ("bert",)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is needed to read a checkpoint."""

    read_config: Callable[[Mapping[str, Any]], Config]
    build: Callable[[Any], Model]
    names: NameTable


_BERT = Architecture(BertConfig.from_hf, Bert, bert.NAMES)
_GPT_NEOX = Architecture(GPTNeoXConfig.from_hf, GPTNeoX, gpt_neox.NAMES)
_LLAMA = Architecture(LlamaConfig.from_hf, Llama, llama.NAMES)


def architecture_of(model_type: object, supported: tuple[str, ...]) -> Architecture:
    """Look up an architecture.

    Raises:
        CheckpointError: it is not among the supported ones.
    """
    if model_type not in supported:
        raise CheckpointError(f"model_type {model_type!r} in config.json is not supported here; supported: {', '.join(supported)}")
    if model_type == "bert":
        return _BERT
    return _GPT_NEOX if model_type == "gpt_neox" else _LLAMA

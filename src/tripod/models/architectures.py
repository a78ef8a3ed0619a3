"""Every architecture that a checkpoint can have, by the `model_type` of its config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tripod.errors import CheckpointError
from tripod.models import bert, gpt_neox, llama, openmoe, sparse_llama
from tripod.models.bert import Bert, BertConfig
from tripod.models.gpt_neox import GPTNeoX, GPTNeoXConfig
from tripod.models.llama import Llama, LlamaConfig
from tripod.models.names import NameTable
from tripod.models.openmoe import OpenMoE, OpenMoEConfig
from tripod.models.sparse_llama import SparseLlama, SparseLlamaConfig

DecoderConfig: TypeAlias = LlamaConfig | GPTNeoXConfig | SparseLlamaConfig | OpenMoEConfig
Decoder: TypeAlias = Llama | GPTNeoX | SparseLlama | OpenMoE
Model: TypeAlias = Decoder | Bert

LANGUAGE_MODELS = ("gpt_neox", *llama.MODEL_TYPES, *sparse_llama.MODEL_TYPES, "openmoe")
ENCODERS = ("bert",)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is needed to read a checkpoint."""

    read_config: Callable[[Mapping[str, Any]], DecoderConfig | BertConfig]
    build: Callable[[Any], Model]
    names: NameTable


_BERT = Architecture(BertConfig.from_hf, Bert, bert.NAMES)
_GPT_NEOX = Architecture(GPTNeoXConfig.from_hf, GPTNeoX, gpt_neox.NAMES)
_LLAMA = Architecture(LlamaConfig.from_hf, Llama, llama.NAMES)
_SPARSE_LLAMA = Architecture(SparseLlamaConfig.from_hf, SparseLlama, sparse_llama.NAMES)
_MIXTRAL = Architecture(SparseLlamaConfig.from_hf, SparseLlama, sparse_llama.MIXTRAL_NAMES)

_ARCHITECTURES = {
    "bert": _BERT,
    "gpt_neox": _GPT_NEOX,
    **dict.fromkeys(llama.MODEL_TYPES, _LLAMA),
    **dict.fromkeys(sparse_llama.MODEL_TYPES, _SPARSE_LLAMA),
    "mixtral": _MIXTRAL,
    "openmoe": Architecture(OpenMoEConfig.from_hf, OpenMoE, openmoe.NAMES),
}


def architecture_of(config: Mapping[str, Any], supported: tuple[str, ...]) -> Architecture:
    """Look up the architecture of a config.json.

    Raises:
        CheckpointError: it is not among the supported ones.
    """
    # Published OpenMoEs call themselves a llama, or nothing.
    model_type = "openmoe" if openmoe.ARCHITECTURE in (config.get("architectures") or ()) else config.get("model_type")
    if model_type not in supported:
        raise CheckpointError(f"model_type {model_type!r} in config.json is not supported here; supported: {', '.join(supported)}")
    return _ARCHITECTURES[str(model_type)]


def build(config: DecoderConfig) -> Decoder:
    """A model of these sizes, on torch's current default device, its parameters as torch leaves them."""
    match config:
        case LlamaConfig():
            return Llama(config)
        case GPTNeoXConfig():
            return GPTNeoX(config)
        case SparseLlamaConfig():
            return SparseLlama(config)
        case _:
            return OpenMoE(config)


def names_of(model: Decoder) -> NameTable:
    """Between our names of its tensors and those in a checkpoint."""
    model_type = "gpt_neox" if isinstance(model, GPTNeoX) else model.config.model_type
    return _ARCHITECTURES[model_type].names

"""Models of known shapes with random weights, made once and kept in the user's cache folder.

    python -m benchmarks.serving.shapes pythia-160m

Speed depends on shapes and not on what the weights say, and no model hub is needed. The layout is Hugging Face's, so every engine
reads the same file.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NEOX = {
    "vocab_size": 50304, "max_position_embeddings": 2048, "rotary_pct": 0.25, "use_parallel_residual": True, "hidden_act": "gelu",
    "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A configuration of transformers, and the sizes that the limits are computed from."""

    model_type: str
    config: dict[str, Any]
    num_layers: int
    hidden_size: int
    kv_size: int  # key/value heads times the size of a head
    block_weights: int  # elements of the matrices of all layers; of a sparse model, those that one token meets
    head_weights: int  # elements of the output matrix


def _neox(hidden_size: int, num_layers: int, num_heads: int) -> Shape:
    sizes = {"hidden_size": hidden_size, "intermediate_size": 4 * hidden_size, "num_hidden_layers": num_layers}
    return Shape(
        model_type="gpt_neox",
        config={**_NEOX, **sizes, "num_attention_heads": num_heads},
        num_layers=num_layers,
        hidden_size=hidden_size,
        kv_size=hidden_size,
        block_weights=num_layers * 12 * hidden_size**2,
        head_weights=50304 * hidden_size,
    )


SHAPES = {
    "pythia-160m": _neox(768, 12, 12),
    "pythia-410m": _neox(1024, 24, 16),
    "qwen2.5-0.5b": Shape(
        model_type="qwen2",
        config={
            "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "max_position_embeddings": 4096, "rope_theta": 1e6, "tie_word_embeddings": True,
            "bos_token_id": 0, "eos_token_id": 0,
        },
        num_layers=24,
        hidden_size=896,
        kv_size=128,
        block_weights=24 * (896 * (896 + 2 * 128) + 896 * 896 + 3 * 896 * 4864),
        head_weights=151936 * 896,
    ),
    "mixtral-0.5b": Shape(  # 549 million parameters, of which a token meets the experts' eighth
        model_type="mixtral",
        config={
            "vocab_size": 50304, "hidden_size": 768, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 12,
            "num_key_value_heads": 4, "num_local_experts": 16, "num_experts_per_tok": 2, "max_position_embeddings": 4096,
            "rope_theta": 1e6, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
        },
        num_layers=12,
        hidden_size=768,
        kv_size=256,
        block_weights=12 * (2 * 768 * (768 + 256) + 16 * 768 + 2 * 3 * 768 * 1024),
        head_weights=50304 * 768,
    ),
}  # fmt: skip


def models_folder() -> Path:
    """Where models are kept: $TRIPOD_BENCH_MODELS, or the user's cache."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("TRIPOD_BENCH_MODELS", user_cache_path("tripod") / "benchmark-models"))


def model_folder(name: str) -> Path:
    """The folder of a shape's checkpoint, which is written if it is not there: float32, seed 0, a byte-level tokenizer."""
    folder = models_folder() / name
    if not (folder / "tokenizer.json").is_file():
        _make(SHAPES[name], folder)
    return folder


def _make(shape: Shape, folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.model_type, **shape.config)).save_pretrained(folder)
    vocabulary = {"<|endoftext|>": 0, **{byte: 1 + i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>").save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES, nargs="+")
    for wanted in parser.parse_args().shape:
        print(model_folder(wanted))

"""llama.cpp's own server: `pip install xllamacpp gguf safetensors` in an environment of its own.

It reads models of its own format; the first call writes one beside the checkpoint, for GPT-NeoX, Qwen2 and Mixtral. float32, bfloat16,
int8 (`Q8_0`) and int4 (`Q4_0`: both have a scale for each 32 weights); routers, norms and biases stay float32. As many slots as the largest
workload has requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias
from urllib.request import Request, urlopen

from benchmarks.serving.engines.worker import Generate

Weights: TypeAlias = Mapping[str, Any]

NUM_SLOTS = 64
CONTEXT_TOKENS = 32_768  # of all slots together


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("xllamacpp", "gguf")}


def load(folder: str, weight_format: str, num_threads: int) -> Generate:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf_file(Path(folder), weight_format))
    params.n_parallel, params.n_ctx = NUM_SLOTS, CONTEXT_TOKENS
    params.kv_unified = True  # slots share the context, as requests share pages
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads
    params.warmup = False
    server = xllamacpp.Server(params)
    calls = ThreadPoolExecutor(NUM_SLOTS)

    def one(prompt: Sequence[int], num_output: int) -> list[int]:
        asked = {"prompt": list(prompt), "n_predict": num_output, "temperature": 0.0, "ignore_eos": True, "return_tokens": True}
        request = Request(f"{server.listening_address}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"})
        with urlopen(request) as reply:
            return json.load(reply)["tokens"]  # type: ignore[no-any-return]

    return lambda prompts, num_outputs: list(calls.map(one, prompts, num_outputs))


def gguf_file(folder: Path, weight_format: str) -> Path:
    """The checkpoint of a folder in llama.cpp's format, written if it is not there."""
    import gguf
    from safetensors.numpy import load_file

    kind = {
        "float32": gguf.GGMLQuantizationType.F32,
        "bfloat16": gguf.GGMLQuantizationType.BF16,
        "int8": gguf.GGMLQuantizationType.Q8_0,
        "int4": gguf.GGMLQuantizationType.Q4_0,
    }[weight_format]
    path = folder / f"llamacpp-{weight_format}.gguf"
    if path.is_file():
        return path
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] not in _LAYOUTS:
        raise ValueError(f"a {config['model_type']} is not written for llama.cpp here; compare one of {', '.join(_LAYOUTS)}")
    name, tensors = _LAYOUTS[config["model_type"]]
    unfinished = path.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, name)
    _write_sizes(writer, config)
    writer.add_tokenizer_model("gpt2")  # nothing is tokenized, but it wants texts for its ids, and merges
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{token}>" for token in range(config["vocab_size"])])
    writer.add_token_merges(["a b"])
    for name, tensor in tensors(load_file(folder / "model.safetensors"), config):
        own = kind if tensor.ndim > 1 and "ffn_gate_inp" not in name else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfinished.rename(path)


def _write_sizes(writer: Any, config: dict[str, Any]) -> None:
    rope, head_dim = config["rope_parameters"], config["hidden_size"] // config["num_attention_heads"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if config["model_type"] == "gpt_neox":
        writer.add_parallel_residual(config["use_parallel_residual"])
        writer.add_layer_norm_eps(config["layer_norm_eps"])
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config["model_type"] == "mixtral":
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])


def _neox(read: Weights, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """float32 arrays by llama.cpp's names; so do the others."""

    def apart(joined: Any) -> Any:
        """All queries, all keys, all values; in the checkpoint they stand head by head."""
        return joined.reshape(config["num_attention_heads"], 3, -1, *joined.shape[1:]).swapaxes(0, 1).reshape(joined.shape)

    yield "token_embd.weight", read["gpt_neox.embed_in.weight"]
    yield "output.weight", read["embed_out.weight"]
    for kind in ("weight", "bias"):
        yield f"output_norm.{kind}", read[f"gpt_neox.final_layer_norm.{kind}"]
        for layer in range(config["num_hidden_layers"]):
            at, to = f"gpt_neox.layers.{layer}", f"blk.{layer}"
            yield f"{to}.attn_norm.{kind}", read[f"{at}.input_layernorm.{kind}"]
            yield f"{to}.attn_qkv.{kind}", apart(read[f"{at}.attention.query_key_value.{kind}"])
            yield f"{to}.attn_output.{kind}", read[f"{at}.attention.dense.{kind}"]
            yield f"{to}.ffn_norm.{kind}", read[f"{at}.post_attention_layernorm.{kind}"]
            yield f"{to}.ffn_up.{kind}", read[f"{at}.mlp.dense_h_to_4h.{kind}"]
            yield f"{to}.ffn_down.{kind}", read[f"{at}.mlp.dense_4h_to_h.{kind}"]


def _qwen2(read: Weights, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from _around(read)
    for layer in range(config["num_hidden_layers"]):
        at, to = f"model.layers.{layer}", f"blk.{layer}"
        for part in "qkv":
            for kind in ("weight", "bias"):
                yield f"{to}.attn_{part}.{kind}", read[f"{at}.self_attn.{part}_proj.{kind}"]
        yield from _around_layer(read, at, to)
        for part in ("gate", "up", "down"):
            yield f"{to}.ffn_{part}.weight", read[f"{at}.mlp.{part}_proj.weight"]


def _mixtral(read: Weights, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    import numpy as np

    def turned(matrix: Any, num_heads: int) -> Any:
        """llama.cpp rotates neighbours in this family, transformers the halves of a head."""
        return matrix.reshape(num_heads, 2, -1, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)

    yield from _around(read)
    for layer in range(config["num_hidden_layers"]):
        at, to = f"model.layers.{layer}", f"blk.{layer}"
        yield f"{to}.attn_q.weight", turned(read[f"{at}.self_attn.q_proj.weight"], config["num_attention_heads"])
        yield f"{to}.attn_k.weight", turned(read[f"{at}.self_attn.k_proj.weight"], config["num_key_value_heads"])
        yield f"{to}.attn_v.weight", read[f"{at}.self_attn.v_proj.weight"]
        yield from _around_layer(read, at, to)
        yield f"{to}.ffn_gate_inp.weight", read[f"{at}.block_sparse_moe.gate.weight"]
        for theirs, kind in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            experts = (read[f"{at}.block_sparse_moe.experts.{expert}.{kind}.weight"] for expert in range(config["num_local_experts"]))
            yield f"{to}.ffn_{theirs}_exps.weight", np.stack(list(experts))


def _around(read: Weights) -> Iterator[tuple[str, Any]]:
    yield "token_embd.weight", read["model.embed_tokens.weight"]
    yield "output_norm.weight", read["model.norm.weight"]
    if "lm_head.weight" in read:
        yield "output.weight", read["lm_head.weight"]


def _around_layer(read: Weights, at: str, to: str) -> Iterator[tuple[str, Any]]:
    yield f"{to}.attn_norm.weight", read[f"{at}.input_layernorm.weight"]
    yield f"{to}.attn_output.weight", read[f"{at}.self_attn.o_proj.weight"]
    yield f"{to}.ffn_norm.weight", read[f"{at}.post_attention_layernorm.weight"]


_LAYOUTS = {"gpt_neox": ("gptneox", _neox), "qwen2": ("qwen2", _qwen2), "mixtral": ("llama", _mixtral)}  # with llama.cpp's names of them

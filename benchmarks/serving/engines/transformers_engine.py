"""transformers' `generate`: padded batches of 16, sorted by length. float32 or bfloat16."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.serving.engines.worker import Generate

BATCH_SIZE = 16


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("transformers", "torch")}


def load(folder: str, weight_format: str, num_threads: int) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(num_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, weight_format)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 1

    def generate(prompts: Sequence[Sequence[int]], num_outputs: Sequence[int]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        by_length = sorted(range(len(prompts)), key=lambda i: (num_outputs[i], len(prompts[i])))
        for start in range(0, len(by_length), BATCH_SIZE):
            rows = by_length[start : start + BATCH_SIZE]
            width, longest = max(len(prompts[i]) for i in rows), max(num_outputs[i] for i in rows)
            ids = torch.tensor([[1] * (width - len(prompts[i])) + list(prompts[i]) for i in rows])
            mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
            with torch.inference_mode():
                out = model.generate(ids, attention_mask=mask, max_new_tokens=longest, do_sample=False)
            for row, i in enumerate(rows):
                answers[i] = out[row, width : width + num_outputs[i]].tolist()
        return answers

    return generate

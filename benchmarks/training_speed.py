"""Tripod's training step beside a plain PyTorch loop over transformers' GPTNeoXForCausalLM: same model, same batch, same precision.

    python -m benchmarks.training_speed [--sizes 14m 70m] [--seq-lengths 512 2048] [--precisions bf16 fp32] [--rounds 5]

Both begin with the same weights (transformers opens the checkpoint that Tripod wrote) and train on the same rows with AdamW, the same
groups of parameters, clipping and learning rate; the plain loop is what its documentation shows: autocast, `loss.backward()`,
`clip_grad_norm_`, `torch.optim.AdamW` with its defaults. Both keep the memory that they free, which
`tripod train` does by itself, and from which a plain loop gains more (`--memory given-back`: neither does, as is torch's default). The
losses of the first steps are compared; where they differ by more than the precision's tolerance, no ratio is printed. Steps are timed in
turns. Beside each stands the share of the peak that the machine's matrix
product reaches in that precision (6 operations a multiplied parameter and token, attention added: `tripod.training.flops`), measured in
the same minute, and the share of Tripod's step that matrix products take, by torch's profiler in a step of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from transformers import GPTNeoXForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.setting import keep, setting
from tripod.models.initialize import initial_language_model
from tripod.models.save import save_checkpoint
from tripod.training.dropout import RowDropout
from tripod.training.fast_layers import with_fast_layers
from tripod.training.flops import flops_per_token
from tripod.training.gemm_peak import measure_gemm_peak
from tripod.training.gradients import Precision, accumulate_gradients, compute_dtype, mixed_precision
from tripod.training.kept_memory import keep_freed_memory
from tripod.training.model_recipe import ModelRecipe
from tripod.training.optimizer import AdamW
from tripod.training.recipe import OptimizerRecipe
from tripod.training.recipe_file import recipe_from

TOKENS = 2048  # of a step
LR = 1e-3
NUM_COMPARED = 3  # steps whose losses are compared
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # nats; bfloat16 keeps 8 bits, and logits of two programs are rounded at other places
MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise")


def model_recipe(size: str) -> ModelRecipe:
    """Of the preset pythia-SIZE."""
    data = {"prefixes": ["none"], "tokenizer": "none"}
    return recipe_from({"preset": f"pythia-{size}", "run": "none", "data": data}).model


def tripod_step(recipe: ModelRecipe, precision: Precision) -> tuple[Callable[[Tensor], float], nn.Module]:
    """Our loop's step, as `Trainer.step` calls it."""
    config = recipe.config()
    model = initial_language_model(config, 1234, recipe.initialization)
    with_fast_layers(model)
    optimizer = AdamW(model, OptimizerRecipe(lr=LR))
    dropout = RowDropout(model, 0.0, 0)

    def step(tokens: Tensor) -> float:
        rows = range(len(tokens))
        loss = accumulate_gradients(model, tokens, rows, micro_rows=len(rows), precision=precision, dropout=dropout).item()
        optimizer.clip_gradients()
        optimizer.update(LR)
        return loss

    return step, model


def plain_step(folder: Path, precision: Precision) -> Callable[[Tensor], float]:
    """The loop that one writes with transformers and torch."""
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)

    def step(tokens: Tensor) -> float:
        with mixed_precision(precision, tokens.device):
            logits = model(tokens[:, :-1]).logits
            loss = cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def share_of_matrix_products(step: Callable[[Tensor], float], tokens: Tensor) -> float:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step(tokens)
    events = recorded.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return sum(event.self_cpu_time_total for event in events if event.key in MATRIX_PRODUCTS) / total


def compare(size: str, seq_length: int, precision: Precision, num_rounds: int) -> dict[str, object]:
    recipe = model_recipe(size)
    generator = torch.Generator().manual_seed(0)
    shape = (TOKENS // seq_length, seq_length + 1)
    batches = [torch.randint(recipe.vocab_size, shape, generator=generator) for _ in range(NUM_COMPARED)]
    with tempfile.TemporaryDirectory() as folder:
        ours, model = tripod_step(recipe, precision)
        save_checkpoint(model, Path(folder))  # type: ignore[arg-type]
        plain = plain_step(Path(folder), precision)
    losses = [(ours(tokens), plain(tokens)) for tokens in batches]  # the first of each warms up
    difference = max(abs(a - b) for a, b in losses)
    seconds: dict[str, list[float]] = {"tripod": [], "plain": []}
    peaks = []
    for _ in range(num_rounds):
        peaks.append(measure_gemm_peak(torch.device("cpu"), compute_dtype(precision)))
        for name, step in (("tripod", ours), ("plain", plain)):
            began = time.perf_counter()
            step(batches[0])
            seconds[name].append(time.perf_counter() - began)
    flops = flops_per_token(recipe.config(), seq_length) * TOKENS
    peak = max(peaks)
    return {
        "size": size,
        "seq_length": seq_length,
        "precision": precision,
        "losses": losses,
        "is_equal": difference <= TOLERANCE[precision],
        "seconds": seconds,
        "ratios": [theirs / own for own, theirs in zip(seconds["tripod"], seconds["plain"], strict=True)],
        "gemm_peak": peak,
        "share_of_peak": {name: flops / statistics.median(values) / peak for name, values in seconds.items()},
        "share_of_matrix_products": share_of_matrix_products(ours, batches[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["14m", "70m"])
    parser.add_argument("--seq-lengths", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--precisions", nargs="+", choices=list(TOLERANCE), default=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=["kept", "given-back"], default="kept")
    arguments = parser.parse_args()
    if arguments.memory == "kept":
        keep_freed_memory()
    ran = setting("benchmarks.training_speed", ("torch", "transformers"))
    ran |= {"threads": torch.get_num_threads(), "tokens_per_step": TOKENS, "memory": arguments.memory}
    print(f"{ran['processor']}, {ran['threads']} threads, {ran['versions']}, commit {ran['commit']}, {TOKENS} tokens a step")
    print("size  length  precision   Tripod s   plain s   faster by (round by round)     of GEMM peak   matrix products in ours")
    transformers_logging.disable_progress_bar()
    results: list[dict[str, object]] = []
    path = keep("training-speed", {"setting": ran, "results": results})
    for size in arguments.sizes:
        for seq_length in arguments.seq_lengths:
            for precision in arguments.precisions:
                found = compare(size, seq_length, precision, arguments.rounds)
                results.append(found)
                print(line(found), flush=True)
                path.write_text(json.dumps({"setting": ran, "results": results}, indent=1) + "\n")  # whatever ends it
    print(f"raw: {path.name}")
    if not all(found["is_equal"] for found in results):
        sys.exit(1)


def line(found: dict) -> str:  # type: ignore[type-arg]
    seconds, ratios, shares = found["seconds"], found["ratios"], found["share_of_peak"]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if found["is_equal"] else "losses differ: no ratio"
    own, theirs = (statistics.median(seconds[name]) for name in ("tripod", "plain"))
    return (
        f"{found['size']:4s} {found['seq_length']:7d}  {found['precision']:9s} {own:10.3f} {theirs:9.3f}   {ratio:28s} "
        f"{shares['tripod']:5.0%} to {shares['plain']:4.0%}   {found['share_of_matrix_products']:8.0%}"
    )


if __name__ == "__main__":
    main()

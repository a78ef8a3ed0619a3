"""How well Tripod's training step uses a GPU: Pythia 160m and 410m in bf16, rows of 2048. The target is an MFU of 45 %.

    python -m benchmarks.training_gpu [--sizes 160m 410m] [--micro-rows 16] [--steps 20] [--compile]

MFU is the arithmetic of forward and backward (`tripod.training.flops`) over the peak that one large matrix product of bf16 reaches on the
same device, measured beside it. The first steps warm up; the median of the rest counts. Raw results go to benchmarks/results/.
On an H100 80GB sixteen rows of 160m ran out of memory; not yet measured with fewer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from benchmarks.setting import keep, setting
from benchmarks.training_speed import LR, model_recipe
from tripod.models.initialize import initial_language_model
from tripod.training.blocks import compile_blocks
from tripod.training.dropout import RowDropout
from tripod.training.flops import flops_per_token
from tripod.training.gemm_peak import measure_gemm_peak
from tripod.training.gradients import accumulate_gradients
from tripod.training.optimizer import AdamW
from tripod.training.recipe import OptimizerRecipe

SEQ_LENGTH = 2048
NUM_WARMUP = 5
TARGET = 0.45


def measure(size: str, micro_rows: int, num_steps: int, *, is_compiled: bool, device: torch.device) -> dict[str, object]:
    recipe = model_recipe(size)
    config = recipe.config()
    model = initial_language_model(config, 1234, recipe.initialization).to(device)
    if is_compiled:
        compile_blocks(model, device)
    optimizer = AdamW(model, OptimizerRecipe(lr=LR))
    dropout = RowDropout(model, 0.0, 0)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(recipe.vocab_size, (micro_rows, SEQ_LENGTH + 1), generator=generator).to(device)
    seconds, losses = [], []
    for _ in range(NUM_WARMUP + num_steps):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        loss = accumulate_gradients(model, tokens, range(micro_rows), micro_rows=micro_rows, precision="bf16", dropout=dropout)
        optimizer.clip_gradients()
        optimizer.update(LR)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
    peak = measure_gemm_peak(device, torch.bfloat16)
    median_s = statistics.median(seconds[NUM_WARMUP:])
    return {
        "size": size,
        "micro_rows": micro_rows,
        "seconds": seconds,
        "losses": losses,  # of one batch again and again: they must fall
        "gemm_peak": peak,
        "tokens_per_s": micro_rows * SEQ_LENGTH / median_s,
        "mfu": flops_per_token(config, SEQ_LENGTH) * micro_rows * SEQ_LENGTH / median_s / peak,
        "memory_bytes": torch.cuda.max_memory_allocated(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["160m", "410m"])
    parser.add_argument("--micro-rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("not measured: there is no GPU here")
    device = torch.device("cuda")
    ran = setting("benchmarks.training_gpu", ("torch",)) | {"device": torch.cuda.get_device_name(device)}
    results = []
    for size in arguments.sizes:
        found = measure(size, arguments.micro_rows, arguments.steps, is_compiled=arguments.compile, device=device)
        results.append(found)
        print(f"{size}: {found['tokens_per_s']:,.0f} tokens/s, MFU {found['mfu']:.1%} of {found['gemm_peak']:.3g} (target {TARGET:.0%})")
        torch.cuda.empty_cache()
    print(f"raw: {keep('training-gpu', {'setting': ran, 'results': results}).name}")


if __name__ == "__main__":
    main()

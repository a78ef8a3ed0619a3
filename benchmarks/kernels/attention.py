"""Attention over paged keys and values beside torch's two ways, and beside what the memory gave at that moment.

    python -m benchmarks.kernels.attention [--dtype bf16] [--decodes 1x192,32x192] [--prefills 512,1024] [--heads 12/12,14/2] [--rounds 7]

Decodes are requests x tokens of context; a prefill is one prompt. Heads are of 64 numbers, query/key-value. torch gets contiguous keys
and values of equal length, as if the gathering of blocks cost nothing, which favours it: `SDPA` is its fused attention, `matmul` is
matmul, softmax, matmul. Before every sample all threads read memory at their best; a sample cycles through enough layers to fall out of
the caches. Contestants take turns. Outputs are compared with float64 first; a contestant that is off prints no time. The operations of a
prefill are those of the tokens that are seen, half the square. Raw results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.setting import keep, setting
from tripod.ops.kernels.cpu import library, probe, threads
from tripod.ops.kernels.cpu.paged_attention import KVPool, paged_attention

HEAD_DIM = 64
SCALE = HEAD_DIM**-0.5
COLD_BYTES = 160_000_000  # keys and values of one sample
MOST_LAYERS = 64
LARGEST_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of values of size 1; torch rounds scores too
NEITHER = 0.01  # seconds: for the other contestant's threads to fall asleep
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}

Attend = Callable[[int], Tensor]  # layer -> [N, H, K]


@dataclass(frozen=True)
class Case:
    """Requests of equal length, of which the last `num_new` tokens are computed."""

    requests: int
    context: int
    num_new: int
    heads: int
    kv_heads: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        kind = f"prefill of {self.context}" if self.num_new > 1 else f"decode {self.requests} x {self.context}"
        return f"{kind}, {self.heads} heads on {self.kv_heads}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def num_bytes(self) -> int:
        """Keys and values of one layer."""
        return 2 * self.requests * self.context * self.kv_heads * HEAD_DIM * self.dtype.itemsize

    @property
    def operations(self) -> int:
        """Of one layer: a multiplication and an addition, for scores and for values, on what is seen."""
        seen = sum(range(self.context - self.num_new + 1, self.context + 1))
        return 4 * self.requests * seen * self.heads * HEAD_DIM

    @property
    def num_layers(self) -> int:
        return 2 if self.num_new > 1 else max(1, min(MOST_LAYERS, -(-COLD_BYTES // self.num_bytes)))


def contestants(case: Case) -> tuple[dict[str, Attend], Tensor]:
    """Each way to attend on the same numbers, and what layer 0 should give, in float64."""
    generator = torch.Generator().manual_seed(0)
    length, layers = case.context, case.num_layers
    key, value = torch.randn(2, case.requests, length, case.kv_heads, HEAD_DIM, generator=generator).to(case.dtype)
    query = torch.randn(case.requests, case.num_new, case.heads, HEAD_DIM, generator=generator).to(case.dtype)

    blocks = -(-length // 16)
    pool = KVPool.allocate(
        num_layers=layers, num_blocks=case.requests * blocks, num_kv_heads=case.kv_heads, head_dim=HEAD_DIM, dtype=case.dtype
    )
    tables = torch.randperm(case.requests * blocks, generator=generator).view(case.requests, blocks)
    token = torch.arange(length)
    slots = (tables[:, token // 16] * 16 + token % 16).flatten()
    for layer in range(layers):
        pool.write(layer, key.flatten(0, 1), value.flatten(0, 1), slots)
    requests = torch.arange(case.requests).repeat_interleave(case.num_new)
    positions = torch.arange(length - case.num_new, length).repeat(case.requests)
    rows = query.flatten(0, 1)

    keys, values = ([one.transpose(1, 2).contiguous() for _ in range(layers)] for one in (key, value))  # [R, G, T, K]
    if case.num_new > 1:
        asked = query.transpose(1, 2).contiguous()  # [R, H, T, K]
    else:  # the queries of a group are rows of one head, so that keys are not repeated
        asked = query.view(case.requests, case.kv_heads, -1, HEAD_DIM)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if case.num_new > 1 else None
    group = case.heads // case.kv_heads

    def flat(seen: Tensor) -> Tensor:
        return seen.transpose(1, 2).reshape(rows.shape) if case.num_new > 1 else seen.reshape(rows.shape)

    def ours(layer: int) -> Tensor:
        return paged_attention(rows, pool, layer, requests=requests, positions=positions, block_tables=tables, scale=SCALE)

    def fused(layer: int) -> Tensor:
        is_prompt = case.num_new > 1
        return flat(
            scaled_dot_product_attention(
                asked, keys[layer], values[layer], is_causal=is_prompt, scale=SCALE, enable_gqa=is_prompt and group > 1
            )
        )

    def by_matmul(key: Tensor, value: Tensor, query: Tensor) -> Tensor:
        if case.num_new > 1 and group > 1:
            key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = query @ key.transpose(-1, -2) * SCALE
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        return flat(scores.softmax(-1) @ value)

    exact = by_matmul(keys[0].double(), values[0].double(), asked.double())
    return {"tripod": ours, "SDPA": fused, "matmul": lambda layer: by_matmul(keys[layer], values[layer], asked)}, exact


def measure(case: Case, rounds: int, memory: Tensor) -> dict[str, list[dict[str, float]]]:
    """Samples of every contestant that is right: seconds of a layer, and what the probe beside it said."""
    ways, exact = contestants(case)
    samples: dict[str, list[dict[str, float]]] = {}
    for name, attend in ways.items():
        error = (attend(0).double() - exact).abs().max().item()
        if error <= LARGEST_ERROR[case.dtype]:
            samples[name] = []
        else:
            print(f"  {name}: not measured, its output is off by {error:.2g}")
    for _ in range(rounds):
        for name, own in samples.items():
            time.sleep(NEITHER)
            with threads.held_awake():
                read = probe.bytes_per_second(memory)
            time.sleep(NEITHER)
            ways[name](0)  # wakes the threads
            start = time.perf_counter()
            if name == "tripod":
                with threads.held_awake():
                    for layer in range(case.num_layers):
                        ways[name](layer)
            else:
                for layer in range(case.num_layers):
                    ways[name](layer)
            seconds = (time.perf_counter() - start) / case.num_layers
            own.append({"seconds": seconds, "read": read, "share_of_read": case.num_bytes / seconds / read})
    return samples


def describe(case: Case, samples: dict[str, list[dict[str, float]]]) -> None:
    for name, own in samples.items():
        times = sorted(sample["seconds"] for sample in own)
        middle, read = statistics.median(times), statistics.median(sample["read"] for sample in own)
        share = statistics.median(sample["share_of_read"] for sample in own)
        print(
            f"  {name:8s}{middle * 1e6:9.0f} us ({times[0] * 1e6:.0f} to {times[-1] * 1e6:.0f}) {case.num_bytes / middle / 1e9:6.1f} GB/s, "
            f"{share:.2f} of the probe's {read / 1e9:.0f} GB/s; {case.operations / middle / 1e9:6.0f} GFLOP/s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--decodes", default="1x192,8x192,32x192,64x192,1x1024,8x1024,32x1024", help="requests x context, or nothing")
    parser.add_argument("--prefills", default="512,1024", help="tokens, or nothing")
    parser.add_argument("--heads", default="12/12,14/2", help="query/key-value")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if not library.is_available():
        sys.exit(f"not measured: no CPU kernels here: {library.why_not()}")
    num_threads = threads.default_num_threads()
    threads.set_num_threads(num_threads)
    torch.set_num_threads(num_threads)
    memory = torch.ones(1 << 27, dtype=torch.uint8)

    results = []
    for pair in arguments.heads.split(","):
        heads, kv_heads = map(int, pair.split("/"))
        sizes = [(int(one), int(context), 1) for one, context in (text.split("x") for text in arguments.decodes.split(",") if text)]
        sizes += [(1, int(length), int(length)) for length in arguments.prefills.split(",") if length]
        for requests, context, num_new in sizes:
            case = Case(requests, context, num_new, heads, kv_heads, DTYPES[arguments.dtype])
            print(case.name, flush=True)
            samples = measure(case, arguments.rounds, memory)
            describe(case, samples)
            results.append({"case": case.name, "samples": samples})
    raw = {
        "setting": setting("benchmarks.kernels.attention", ["torch"]),
        "threads": num_threads,
        "level": library.load(),
        "results": results,
    }
    print(f"raw: {keep('kernels-attention', raw).name}")


if __name__ == "__main__":
    main()

"""Linear layers over packed weights beside torch's, and beside what the machine could do at that moment.

    python -m benchmarks.kernels.linear [--shapes 2304x768,768x3072] [--batches 1,8,32,512] [--formats f32,bf16,int8,int4-32] [--rounds 7]

Each sample is preceded by two probes: how fast all threads read memory, and how fast they multiply in registers. The limit of a layer is
the slower of reading its packed weights once and of making its products; the share is that limit over the time, sample by sample. Weights
are cycled through enough copies to fall out of the caches for small batches. Contestants take turns. Conversion and quantisation of the
activations are inside our time; oneDNN's int8 gets its activations quantised beforehand, which favours it. The outputs are compared with
float64 first; a contestant that is off prints no time. Raw results go to benchmarks/results/.
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

from benchmarks.setting import keep, setting
from tripod.ops import linear_formats as reference
from tripod.ops.kernels.cpu import library, probe, threads
from tripod.ops.kernels.cpu.linear import linear
from tripod.ops.kernels.cpu.packing import PackedWeight, pack_formatted

COLD_BYTES = 160_000_000  # weights of one sample, for small batches
FEW_ROWS = 64  # up to so many, weights come from memory
LARGEST_ERROR = {"f32": 1e-4, "bf16": 1e-2, "int8": 3e-2, "int4": 3e-1}  # of the largest output, against unrounded float64
NEITHER = 0.01  # seconds: for the other contestant's threads to fall asleep

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contest:
    """One layer shape, format and batch size."""

    num_outputs: int
    num_inputs: int
    format: reference.LinearFormat
    group: int | None
    rows: int

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.num_outputs * self.num_inputs

    @property
    def name(self) -> str:
        return f"{self.num_outputs}x{self.num_inputs} {self.format}{f'-{self.group}' if self.group else ''} B={self.rows}"


def ours(contest: Contest, weight: Tensor, copies: int) -> list[Apply]:
    packed = pack_formatted(reference.format_weight(weight, contest.format, contest.group))
    out = torch.empty(contest.rows, contest.num_outputs)
    clones = [PackedWeight(packed.data.clone(), packed.shape, packed.format, packed.group) for _ in range(copies)]
    return [lambda x, clone=clone: linear(x, clone, out=out) for clone in clones]


def onednn(contest: Contest, weight: Tensor, copies: int) -> list[Apply] | None:
    """Prepacked, as its fastest users call it; int8 from quantised activations. There is none in int4."""
    match contest.format:
        case "f32" | "bf16":
            dtype = torch.float32 if contest.format == "f32" else torch.bfloat16
            packed = [torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), contest.rows) for _ in range(copies)]
            return [lambda x, one=one: torch.ops.mkldnn._linear_pointwise(x.to(dtype), one, None, "none", [], "") for one in packed]
        case "int8":
            values, scales = reference.quantize(weight)
            packed = [torch.ops.onednn.qlinear_prepack(values, [contest.rows, contest.num_inputs]) for _ in range(copies)]
            zero_points = torch.zeros(contest.num_outputs, dtype=torch.int64)
            quantized: dict[int, tuple[Tensor, float]] = {}

            def apply(x: Tensor, one: Tensor) -> Tensor:
                if x.data_ptr() not in quantized:  # once, outside of the measured rounds
                    scale = float(x.abs().max()) / 127
                    quantized[x.data_ptr()] = ((x / scale).round() + 128).to(torch.uint8), scale
                unsigned, scale = quantized[x.data_ptr()]
                return torch.ops.onednn.qlinear_pointwise(
                    unsigned, scale, 128, one, scales, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
                )

            return [lambda x, one=one: apply(x, one) for one in packed]
        case _:
            return None


def plain_torch(contest: Contest, weight: Tensor, copies: int) -> list[Apply] | None:
    if contest.format not in ("f32", "bf16"):
        return None
    dtype = torch.float32 if contest.format == "f32" else torch.bfloat16
    return [lambda x, one=one: torch.nn.functional.linear(x.to(dtype), one) for one in [weight.to(dtype).clone() for _ in range(copies)]]


CONTESTANTS = {"tripod": ours, "oneDNN prepacked": onednn, "F.linear": plain_torch}


def measure(contest: Contest, rounds: int, memory: Tensor) -> dict[str, list[dict[str, float]]]:
    """Samples of every contestant that is right: seconds of a call, and what the probes beside it said."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(contest.num_outputs, contest.num_inputs, generator=generator) / contest.num_inputs**0.5
    x = torch.randn(contest.rows, contest.num_inputs, generator=generator)
    exact = x.double() @ weight.double().T
    ours_bytes = pack_formatted(reference.format_weight(weight, contest.format, contest.group)).num_bytes
    copies = max(2, -(-COLD_BYTES // ours_bytes)) if contest.rows <= FEW_ROWS else 2
    samples: dict[str, list[dict[str, float]]] = {}
    entered: dict[str, list[Apply]] = {}
    for name, enter in CONTESTANTS.items():
        applies = enter(contest, weight, copies)
        if applies is None:
            continue
        error = ((applies[0](x).double() - exact).abs().max() / exact.abs().max()).item()
        if not error <= LARGEST_ERROR[contest.format]:
            print(f"  {name}: not measured, its output is off by {error:.2g} of the largest")
            continue
        entered[name], samples[name] = applies, []
    for _ in range(rounds):
        for name, applies in entered.items():
            time.sleep(NEITHER)
            with threads.held_awake():
                read, multiply = probe.bytes_per_second(memory), probe.operations_per_second(contest.format)
            time.sleep(NEITHER)
            applies[0](x)  # wakes the threads
            start = time.perf_counter()
            if name == "tripod":
                with threads.held_awake():
                    for apply in applies:
                        apply(x)
            else:
                for apply in applies:
                    apply(x)
            seconds = (time.perf_counter() - start) / len(applies)
            limit = max(ours_bytes / read, contest.operations / multiply)
            samples[name].append(
                {"seconds": seconds, "read": read, "multiply": multiply, "share": limit / seconds, "bytes_per_second": ours_bytes / seconds}
            )
    return samples


def describe(contest: Contest, samples: dict[str, list[dict[str, float]]]) -> None:
    for name, own in samples.items():
        middle = {key: statistics.median(sample[key] for sample in own) for key in own[0]}
        shares = [sample["share"] for sample in own]
        print(
            f"  {name:18s}{middle['seconds'] * 1e6:9.0f} us {contest.operations / middle['seconds'] / 1e9:7.0f} GOP/s "
            f"{middle['bytes_per_second'] / 1e9:6.1f} GB/s   "
            f"share of the limit {middle['share']:.2f} ({min(shares):.2f} to {max(shares):.2f})   "
            f"[probes: {middle['read'] / 1e9:.0f} GB/s, {middle['multiply'] / 1e9:.0f} GOP/s]"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="2304x768,768x3072", help="outputs x inputs (default %(default)s)")
    parser.add_argument("--batches", default="1,8,32,512")
    parser.add_argument("--formats", default="f32,bf16,int8,int4-32,int4-128")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if not library.is_available():
        sys.exit(f"not measured: no CPU kernels here: {library.why_not()}")
    num_threads = threads.default_num_threads()
    threads.set_num_threads(num_threads)
    torch.set_num_threads(num_threads)
    memory = torch.ones(1 << 27, dtype=torch.uint8)

    results = []
    for shape in arguments.shapes.split(","):
        num_outputs, num_inputs = (int(size) for size in shape.split("x"))
        for text in arguments.formats.split(","):
            name, _, group = text.partition("-")
            for rows in map(int, arguments.batches.split(",")):
                known = reference.check_format(name, int(group) if group else None)
                contest = Contest(num_outputs, num_inputs, known, int(group) if group else None, rows)
                print(contest.name, flush=True)
                samples = measure(contest, arguments.rounds, memory)
                describe(contest, samples)
                results.append({"contest": contest.name, "samples": samples})
    raw = {"setting": setting("benchmarks.kernels.linear", ["torch"]), "threads": num_threads, "level": library.load(), "results": results}
    print(f"raw: {keep('kernels-linear', raw).name}")


if __name__ == "__main__":
    main()

"""A sparse layer beside transformers' Mixtral block and a dense layer of as many active parameters: forward, and forward with backward.

    python -m benchmarks.moe [--experts 16,64] [--top-k 2,8] [--tokens 1,32,512,4096] [--hidden 768] [--active 1536] [--rounds 7]
    python -m benchmarks.moe --device cuda --hidden 2048 --active 8192          # bfloat16, Triton's kernels

All layers of a contest have the same weights, the very same tensors; they take turns, over several inputs, so that experts come out of
memory. Transformers' block runs in each of its implementations (`grouped_mm`, which is its default, `eager`, and `batched_mm` for few
tokens), and the fastest counts. "packed" is the layer as the engine serves it; the other one of ours, and the dense one, are as the trainer
has them. Outputs, and gradients of input and weights, are compared first; a contestant that is off prints no time. The limit is the fastest
of torch's and oneDNN's product of large matrices on this machine at that moment. Raw results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.setting import keep, setting
from tripod.models.llama import RMSNorm
from tripod.models.moe import Experts, Router, SparseMLP
from tripod.ops.moe_routing import RouterConfig
from tripod.training.gemm_peak import measure_gemm_peak
from tripod.training.kept_memory import keep_freed_memory

NUM_INPUTS = 6  # that take turns
BATCHED_TOKENS = 32  # up to so many, transformers' batched_mm is tried: it copies an expert for each token
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 4e-2}  # of the largest number, against the reference
CLEAR = {torch.float32: 1e-5, torch.bfloat16: 0.05}  # between logits of the last expert that is chosen and of the first that is not
WORK_S = 0.2  # a sample repeats its call for so long

Step = Callable[[int], object]  # (which input) -> what it made of it


@dataclass(frozen=True)
class Contest:
    num_experts: int
    top_k: int
    hidden: int
    expert_size: int
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.num_experts} experts, top-{self.top_k}, {self.tokens} tokens"

    @property
    def forward_operations(self) -> int:
        return 2 * self.tokens * self.top_k * 3 * self.hidden * self.expert_size


class DenseMLP(nn.Module):
    """SwiGLU with as many parameters as a token meets."""

    def __init__(self, hidden: int, size: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, 2 * size, bias=False)
        self.down = nn.Linear(size, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(nn.functional.silu(gate) * up)  # type: ignore[no-any-return]


def sparse_layer(contest: Contest, device: torch.device, dtype: torch.dtype) -> SparseMLP:
    config = RouterConfig(num_experts=contest.num_experts, top_k=contest.top_k, is_normalized=True, precision="model")
    layer = SparseMLP(Router(config, contest.hidden, 0), Experts(contest.num_experts, contest.hidden, contest.expert_size))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return layer.to(device, dtype)


def mixtral_block(layer: SparseMLP, contest: Contest, implementation: str) -> nn.Module:
    """Transformers' block over the same tensors."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=contest.hidden,
        intermediate_size=contest.expert_size,
        num_local_experts=contest.num_experts,
        num_experts_per_tok=contest.top_k,
    )
    config._experts_implementation = implementation
    with torch.device("meta"):
        block = MixtralSparseMoeBlock(config)
    block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj = layer.router.weight, layer.experts.up, layer.experts.down
    return block


def forward_step(layer: nn.Module, inputs: Sequence[Tensor]) -> Step:
    def step(turn: int) -> Tensor:
        with torch.no_grad():
            return layer(inputs[turn][None])[0]  # type: ignore[no-any-return]

    return step


def backward_step(layer: nn.Module, inputs: Sequence[Tensor], of_out: Tensor) -> Step:
    def step(turn: int) -> list[Tensor]:
        x = inputs[turn].clone().requires_grad_()
        layer.zero_grad(set_to_none=True)
        out = layer(x[None])[0]
        out.backward(of_out)
        return [out.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]  # type: ignore[list-item]

    return step


def packed_step(layer: SparseMLP, inputs: Sequence[Tensor]) -> Step | None:
    """The engine's layer, in place as there. It brings its own norm and residual, which are in its time."""
    from tripod.models.native_sparse import NativeSparseMLP
    from tripod.models.packed_file import FreshPacker
    from tripod.ops.kernels.cpu import library, threads

    if not library.is_available():
        return None
    norm = RMSNorm(inputs[0].shape[-1], 0.0)
    with torch.no_grad():
        native = NativeSparseMLP(norm, layer, "f32", FreshPacker())

    outs = [torch.empty_like(x) for x in inputs]

    def step(turn: int) -> Tensor:
        out = outs[turn]
        # By numpy: torch's threads spin for milliseconds after a copy, on the cores that the kernel's threads need (docs/experiments.md).
        np.copyto(out.numpy(), inputs[turn].numpy())
        with torch.no_grad(), threads.held_awake():
            native(out)
        return out

    return step


def is_right(name: str, found: object, expected: object, dtype: torch.dtype) -> bool:
    found, expected = ([one] if isinstance(one, Tensor) else one for one in (found, expected))
    errors = [
        float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1e-30)) for a, b in zip(found, expected, strict=True)
    ]
    if max(errors) <= LARGEST_ERROR[dtype]:
        return True
    print(f"  {name}: not measured, its output is off by {max(errors):.2g} of the largest")
    return False


def times(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of a call, by contestant, a sample a round."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    counts: dict[str, int] = {}
    for name, step in steps.items():
        began = clock(device)
        for turn in range(NUM_INPUTS):
            step(turn)
        counts[name] = max(1, round(WORK_S / (clock(device) - began)))
    for _ in range(rounds):
        for name, step in steps.items():
            began = clock(device)
            for _ in range(counts[name]):
                for turn in range(NUM_INPUTS):
                    step(turn)
            samples[name].append((clock(device) - began) / counts[name] / NUM_INPUTS)
    return samples


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def inputs_of(contest: Contest, count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[count, hidden], of root mean square 1, so that the norm of the packed layer changes nothing."""
    x = torch.randn(count, contest.hidden, device=device)
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True))).to(dtype)


def clear_input(layer: SparseMLP, contest: Contest, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[tokens, hidden]: tokens whose experts are the same whether or not logits are rounded on the way, so that outputs can be compared."""
    found: list[Tensor] = []
    while sum(map(len, found)) < contest.tokens:
        x = inputs_of(contest, contest.tokens + 64, device, dtype)
        best = (x.float() @ layer.router.weight.float().T).sort(descending=True).values[:, contest.top_k - 1 : contest.top_k + 1]
        found.append(x[best[:, 0] - best[:, -1] > CLEAR[dtype]] if contest.top_k < contest.num_experts else x)
    return torch.cat(found)[: contest.tokens]


def run(contest: Contest, device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, object]:
    from tripod.training.fast_layers import with_fast_layers

    torch.manual_seed(0)
    layer = sparse_layer(contest, device, dtype)
    dense = DenseMLP(contest.hidden, contest.top_k * contest.expert_size).to(device, dtype)
    if device.type == "cpu":
        with_fast_layers(layer)
        with_fast_layers(dense)
    inputs = [inputs_of(contest, contest.tokens, device, dtype) for _ in range(NUM_INPUTS)]
    compared = [clear_input(layer, contest, device, dtype)]
    of_out = torch.randn(contest.tokens, contest.hidden, device=device).to(dtype)
    blocks = {
        f"transformers {name}": mixtral_block(layer, contest, name)
        for name in ("grouped_mm", "eager", *(("batched_mm",) if contest.tokens <= BATCHED_TOKENS else ()))
    }
    ways: dict[str, Callable[[nn.Module, Sequence[Tensor]], Step]] = {
        "forward": forward_step,
        "forward and backward": lambda of_layer, xs: backward_step(of_layer, xs, of_out),
    }
    results = {}
    limit = measure_gemm_peak(device, dtype)
    for kind, way in ways.items():
        expected = way(layer, compared)(0)
        steps = {"tripod": way(layer, inputs)}
        for name, block in blocks.items():
            if is_right(f"{name}, {kind}", way(block, compared)(0), expected, dtype):
                steps[name] = way(block, inputs)
        packed = packed_step(layer, [*compared, *inputs]) if kind == "forward" and device.type == "cpu" else None
        if packed is not None and is_right("tripod packed", packed(0) - compared[0], expected, dtype):  # type: ignore[operator]
            steps["tripod packed"] = lambda turn, step=packed: step(turn + 1)  # type: ignore[misc]
        steps["dense"] = way(dense, inputs)
        results[kind] = times(steps, rounds, device)
    return {"contest": contest.__dict__, "gemm_limit": limit, "seconds": results}


def describe(contest: Contest, result: dict[str, object]) -> None:
    print(contest.name)
    for kind, samples in result["seconds"].items():  # type: ignore[attr-defined]
        middle = {name: statistics.median(own) for name, own in samples.items()}
        peers = {name: seconds for name, seconds in middle.items() if name.startswith("transformers")}
        best = min(peers, key=peers.__getitem__) if peers else None
        operations = contest.forward_operations * (1 if kind == "forward" else 3)
        for name in ("tripod", "tripod packed"):
            if name not in middle:
                continue
            own = middle[name]
            beside = "no peer was right" if best is None else f"{peers[best] / own:5.2f} x {best.removeprefix('transformers ')}"
            spread = f"{min(samples[name]) / own:.2f} to {max(samples[name]) / own:.2f}"
            print(
                f"  {kind:21s}{name:14s}{own * 1e3:10.3f} ms   {beside:22s}{own / middle['dense']:6.2f} of dense's time"
                f"{operations / own / result['gemm_limit']:6.2f} of the GEMM limit   spread {spread}"  # type: ignore[operator]
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", default="16,64")
    parser.add_argument("--top-k", default="2,8")
    parser.add_argument("--tokens", default="1,32,512,4096")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument(
        "--active", type=int, default=1536, help="feed-forward size of the experts of a token together (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    keep_freed_memory()  # as `tripod train` does
    device = torch.device(arguments.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if device.type == "cpu":
        from tripod.ops.kernels.cpu import library, threads

        if library.is_available():
            threads.set_num_threads(torch.get_num_threads())
    results = []
    for num_experts, top_k, tokens in (
        (int(experts), int(top_k), int(tokens))
        for experts in arguments.experts.split(",")
        for top_k in arguments.top_k.split(",")
        for tokens in arguments.tokens.split(",")
    ):
        contest = Contest(num_experts, top_k, arguments.hidden, arguments.active // top_k, tokens)
        results.append(run(contest, device, dtype, arguments.rounds))
        describe(contest, results[-1])
    where = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "threads": torch.get_num_threads()}
    raw = {"setting": setting("benchmarks.moe", ["torch", "transformers"]), **where, "dtype": str(dtype), "results": results}
    print(f"raw: {keep('moe' if device.type == 'cpu' else 'moe-gpu', raw).name}")


if __name__ == "__main__":
    main()

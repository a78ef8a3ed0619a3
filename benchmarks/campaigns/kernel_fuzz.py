"""Draws shapes for the CPU kernels, odd ones above all, and holds each result against its definition in float64.

    python -m benchmarks.campaigns kernel-fuzz [--cases 400] [--seed 0]

A case is a kind of work (a product, its argmax, gate and up, attention over a pool, operations on rows, a whole model), sizes, types and a
number of threads, all of one seed, run on every level of processor that runs here. `make campaign NAME=sanitizers` runs the same under
AddressSanitizer and UndefinedBehaviorSanitizer, where a read beyond a tensor's end is seen even when it changes nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.llama import LlamaConfig
from tripod.ops import cross_entropy as reference_cross_entropy
from tripod.ops import linear_formats as reference
from tripod.ops.attention import causal_attention
from tripod.ops.kernels.cpu import cross_entropy, rows
from tripod.ops.kernels.cpu.build import LEVELS, levels_here
from tripod.ops.kernels.cpu.library import level_forced
from tripod.ops.kernels.cpu.linear import gate_up, linear, linear_argmax, pack_gate_up, pack_linear
from tripod.ops.kernels.cpu.paged_attention import KVPool, paged_attention
from tripod.ops.kernels.cpu.threads import set_num_threads
from tripod.ops.rope import Rope, RopeConfig

FORMATS = (("f32", None), ("bf16", None), ("int8", None), ("int4", 32), ("int4", 64), ("int4", 128))
FLOATS = (torch.float32, torch.bfloat16)


def size(draw: random.Random, most: int) -> int:
    """From 1 to `most`; as often as not next to a multiple of 16, where loops end."""
    if draw.random() < 0.5:
        return draw.randint(1, most)
    return min(most, max(1, 16 * draw.randint(0, most // 16) + draw.choice((-1, 0, 1))))


def numbers(draw: random.Random, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(draw.randrange(2**31)))


def close(seen: Tensor, expected: Tensor, error: float) -> None:
    """Within `error` of the largest number."""
    assert seen.shape == expected.shape, (seen.shape, expected.shape)
    torch.testing.assert_close(seen.double(), expected.double(), rtol=0, atol=error * max(1.0, float(expected.abs().max())))


def product(draw: random.Random) -> None:
    num_rows, num_outputs, num_inputs = size(draw, 70), size(draw, 300), size(draw, 600)
    format, group = draw.choice(FORMATS)
    weight, x = numbers(draw, num_outputs, num_inputs) / num_inputs**0.5, numbers(draw, num_rows, num_inputs).to(draw.choice(FLOATS))
    bias = numbers(draw, num_outputs) if draw.random() < 0.5 else None
    activation = draw.choice((None, "gelu_erf", "gelu_tanh", "silu"))
    packed, rounded = pack_linear(weight, format, group), reference.format_weight(weight, format, group)
    out = torch.full((num_rows, num_outputs), torch.nan)
    close(linear(x, packed, bias, activation, out=out), reference.linear(x, rounded, bias, activation, dtype=torch.float64), 2e-5)
    places, largest = linear_argmax(x, packed)
    plain = linear(x, packed, out=torch.empty(num_rows, num_outputs))
    assert torch.equal(places, plain.argmax(-1))
    assert torch.equal(largest, plain.amax(-1))


def gated(draw: random.Random) -> None:
    num_rows, num_outputs, num_inputs = size(draw, 40), size(draw, 200), size(draw, 300)
    format, group = draw.choice(FORMATS)
    gate, up = numbers(draw, 2, num_outputs, num_inputs) / num_inputs**0.5
    x = numbers(draw, num_rows, num_inputs)
    rounded = [reference.format_weight(weight, format, group) for weight in (gate, up)]
    close(gate_up(x, pack_gate_up(gate, up, format, group)), reference.gate_up(x, *rounded, dtype=torch.float64), 2e-5)


def attention(draw: random.Random) -> None:
    num_kv_heads, group, head_dim = draw.randint(1, 4), draw.randint(1, 9), size(draw, draw.choice((32, 130, 512)))
    num_heads, dtype = num_kv_heads * group, draw.choice((*FLOATS, torch.int8))
    lengths = [size(draw, 200) for _ in range(draw.randint(1, 4))]
    window = draw.choice((None, None, draw.randint(1, 150)))
    sizes = [-(-length // 16) for length in lengths]
    num_blocks = sum(sizes) + 2
    pool = KVPool.allocate(num_layers=1, num_blocks=num_blocks, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype)
    pool.blocks.view(torch.uint8).fill_(0xFF)  # NaN: what nobody wrote must never count
    order = draw.sample(range(num_blocks), num_blocks)
    tables = torch.full((len(lengths), max(sizes)), -1)
    queries, seen_rows, expected = [], [], []
    for request, (length, num) in enumerate(zip(lengths, sizes, strict=True)):
        tables[request, :num], order = torch.tensor(order[:num]), order[num:]
        key, value = numbers(draw, 2, length, num_kv_heads, head_dim)
        token = torch.arange(length)
        slots = tables[request][token // 16] * 16 + token % 16
        pool.write(0, key, value, slots)
        begin = draw.randrange(length)
        query = numbers(draw, length - begin, num_heads, head_dim).bfloat16().float()
        kept = [(part.double().flatten(0, 1)[slots]).repeat_interleave(group, 1) for part in pool.read(0)]  # [T, H, K]
        scores = torch.einsum("qhk,thk->hqt", query.double(), kept[0]) * head_dim**-0.5
        apart = torch.arange(begin, length)[:, None] - token
        scores = scores.masked_fill((apart < 0) | (apart >= (window or length)), -torch.inf)
        expected.append(torch.einsum("hqt,thk->qhk", scores.softmax(-1), kept[1]))
        queries.append(query)
        seen_rows += [(request, position) for position in range(begin, length)]
    requests, positions = torch.tensor(seen_rows).T.contiguous()
    seen = paged_attention(
        torch.cat(queries), pool, 0, requests=requests, positions=positions, block_tables=tables, scale=head_dim**-0.5, window=window
    )
    close(seen, torch.cat(expected), 1e-5 if dtype == torch.float32 else 1e-2)


def on_rows(draw: random.Random) -> None:
    num_rows, length, dtype = size(draw, 9), size(draw, 300), draw.choice(FLOATS)
    x, weight = numbers(draw, num_rows, length).to(dtype), numbers(draw, length)
    error = 2e-5 if dtype == torch.float32 else 2**-7
    wide = x.double()
    close(rows.rms_norm(x, weight, 1e-5), torch.nn.functional.rms_norm(wide, (length,), weight.double(), 1e-5), error)
    if length > 1:  # of a single number the mean leaves nothing
        close(rows.layer_norm(x, weight, None, 1e-3), torch.nn.functional.layer_norm(wide, (length,), weight.double(), None, 1e-3), error)
    assert torch.equal(rows.argmax(x), x.argmax(-1))
    ids = torch.tensor([draw.randrange(num_rows) for _ in range(5)])
    assert torch.equal(rows.embedding(ids, x, dtype), x[ids])
    head_dim = size(draw, 140) + 1
    rotary = 2 * draw.randint(1, head_dim // 2)
    cos, sin = Rope(RopeConfig(rotary_dim=rotary), num_rows)(torch.arange(num_rows))
    heads = numbers(draw, num_rows, 3, head_dim)
    first, second, rest = heads.double().split([rotary // 2, rotary // 2, head_dim - rotary], -1)
    close(rows.rotate(heads, cos, sin), torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1), 1e-6)
    targets = torch.tensor([draw.randrange(length) for _ in range(num_rows)])
    logits, gradient = x.clone(), x.clone()
    close(cross_entropy.cross_entropy_(logits, targets, 0.5), reference_cross_entropy.cross_entropy_(gradient, targets, 0.5), 1e-4)
    close(logits, gradient, error)


@torch.inference_mode()
def model(draw: random.Random) -> None:
    """Fused layers of odd sizes, through the engine's own pool and route, in chunks."""
    from tests.engine.execution.test_routes import Steps

    heads, head_dim = draw.randint(1, 5), 2 * size(draw, 20)
    common = {"vocab_size": size(draw, 300), "intermediate_size": size(draw, 200), "num_layers": 2, "max_positions": 160}
    rope = RopeConfig(rotary_dim=2 * draw.randint(1, head_dim // 2))
    config: GPTNeoXConfig | LlamaConfig
    if draw.random() < 0.5:
        is_parallel = draw.random() < 0.5
        config = GPTNeoXConfig(**common, hidden_size=heads * head_dim, num_heads=heads, rope=rope, is_parallel=is_parallel)
    else:
        kv_heads, hidden_size = draw.choice([one for one in range(1, heads + 1) if heads % one == 0]), size(draw, 150)
        config = LlamaConfig(
            model_type="qwen3", **common, hidden_size=hidden_size, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim,
            rope=RopeConfig(rotary_dim=head_dim), qk_norm=True, windows=draw.choice(((), (None, draw.randint(1, 40)))),
        )  # fmt: skip
    decoder = random_language_model(config, draw.randrange(1000))
    ids = [draw.randrange(config.vocab_size) for _ in range(size(draw, 60))]
    plain = decoder.logits(decoder.hidden(torch.tensor([ids]), torch.arange(len(ids))[None], causal_attention))[0]
    cut = draw.randint(0, len(ids))
    for weight_format, kv, error in (("f32", None, 1e-4), ("bf16", None, 0.1), ("int8", "int8", 0.2)):
        steps = Steps(decoder, "native", weight_format, kv_cache_dtype=kv)  # type: ignore[arg-type]
        seen = steps.whole(ids, [part for part in (cut, len(ids) - cut) if part])
        close(seen, plain, error)


KINDS: Mapping[str, Callable[[random.Random], None]] = {
    "product": product, "gated": gated, "attention": attention, "on_rows": on_rows, "model": model,
}  # fmt: skip


def run_case(level: str, seed: int) -> str:
    """Draw one case and run it on a level; returns its kind.

    Raises:
        AssertionError: a result is not what the definition says.
    """
    draw = random.Random(seed)
    kind = draw.choice([*KINDS])
    with level_forced(level):
        set_num_threads(draw.choice((1, 2, 3)))
        try:
            KINDS[kind](draw)
        except AssertionError as error:
            error.add_note(f"{kind} of seed {seed} on the level {level}")
            raise
        finally:
            set_num_threads(1)
    return kind


def main(arguments: list[str]) -> int:
    """0 if every case is what its definition says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns kernel-fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    options = parser.parse_args(arguments)
    levels = [level for level in LEVELS if level in levels_here()]
    for level in levels:
        counts = dict.fromkeys(KINDS, 0)
        for seed in range(options.seed, options.seed + options.cases):
            counts[run_case(level, seed)] += 1
        print(f"{level}: {options.cases} cases as defined: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()), flush=True)
    return 0 if levels else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Ways to store the upper half of a float against the checkpoint before: how small, and what undoing one costs. Beside the delta store.

    python -m benchmarks.delta_transforms --run RUN [--file model.safetensors] [--back 1] [--last 8] [--level 16]

Of the numbers of each tensor the lower two bytes are kept as they are, as noise; the share of the entropy that they have is printed. The
upper two are stored

    xor         as the store does it: each byte plane as it is or XORed, whichever is smaller
    subtract    as the difference of integers in the order of the floats, its sign in the lowest bit
    xor, graded; subtract, graded    the same, the numbers sorted by the exponent that the earlier checkpoint has there and packed a
                grade (an eighth of the numbers or more) at a time: how far a weight moves in steps of its last bit is set by its exponent

"ideal" is the entropy of the byte planes (of each grade). The time is CPU to bring one step back from the one before, beside reading the
same checkpoint packed whole by zstd. Shares are of that file. Raw results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray
from safetensors.torch import load

from benchmarks.delta_store import PLAIN_LEVEL
from benchmarks.setting import RESULTS, commit, processor
from tripod.training.byte_planes import PlanePacker, entropy_bytes, split
from tripod.training.delta_store import checkpoints_of
from tripod.training.safetensors_file import SafetensorsFile

U16 = NDArray[np.uint16]
_SMALL = 4096  # bytes, below which the store takes no reference either
_GRADES = 8
_SIGN = np.uint16(0x8000)


def upper_half(raw: NDArray[np.uint8]) -> U16:
    """The upper two bytes of float32 numbers."""
    return np.ascontiguousarray(np.ascontiguousarray(raw).view(np.uint16)[1::2])


def ordered(bits: U16) -> U16:
    """Integers in the order of the floats whose bits these are."""
    flips = (bits.view(np.int16) >> 15).view(np.uint16)  # all bits of a negative number, the sign of a positive one
    flips |= _SIGN
    flips ^= bits
    return flips


def subtract(now: U16, before: U16) -> U16:
    apart = (ordered(now) - ordered(before)).view(np.int16)
    return ((apart << 1) ^ (apart >> 15)).view(np.uint16)


def add(apart: U16, before: U16) -> U16:
    """The inverse of `subtract`."""
    moved = apart & np.uint16(1)
    np.negative(moved, out=moved)
    moved ^= apart >> 1
    moved += ordered(before)
    flips = (moved.view(np.int16) >> 15).view(np.uint16)
    np.invert(flips, out=flips)
    flips |= _SIGN
    moved ^= flips
    return moved


def by_exponent(before: U16) -> NDArray[np.int64]:
    """Indices that sort by exponent, the largest first."""
    return np.argsort((~before >> 7).astype(np.uint8), kind="stable")


def grades(before: U16) -> list[slice]:
    """Of numbers sorted by exponent: runs of whole exponents, each an eighth of all or more."""
    counts = np.bincount((~before >> 7).astype(np.uint8), minlength=256)
    borders = [0]
    for end in np.cumsum(counts).tolist():
        if end - borders[-1] >= max(1024, len(before) // _GRADES):
            borders.append(end)
    borders[-1:] = [len(before)] if len(borders) > 1 else [0, len(before)]
    return [slice(start, stop) for start, stop in pairwise(borders)]


def measure(runs: Sequence[tuple[Path, Path]], level: int) -> dict[str, dict[str, float]]:
    """Bytes by way, of pairs (file, the file before); and of the whole files packed by zstd."""
    packer = PlanePacker(level)

    def packed(planes: Sequence[NDArray[np.uint8]]) -> list[tuple[float, float]]:
        sizes = []
        for plane in map(np.ascontiguousarray, planes):
            frame = packer.pack(plane)
            sizes.append((float(len(plane) if frame is None else len(frame)), entropy_bytes(plane)))
        return sizes

    found: dict[str, dict[str, float]] = {}

    def note(way: str, sizes: Sequence[tuple[float, float]]) -> None:
        entry = found.setdefault(way, {"bytes": 0.0, "ideal": 0.0})
        entry["bytes"] += sum(size for size, _ in sizes)
        entry["ideal"] += sum(ideal for _, ideal in sizes)

    for path, earlier in runs:
        whole = float(len(zstandard.ZstdCompressor(PLAIN_LEVEL).compress(path.read_bytes())))
        note("whole", [(whole, whole)])
        file, file_before = SafetensorsFile.open(path), SafetensorsFile.open(earlier)
        for name in file.tensors:
            raw = file.raw(name)
            if len(raw) < _SMALL:
                continue
            now, before = upper_half(raw), upper_half(file_before.raw(name))
            low = [(float(2 * len(now)), float(2 * len(now)))]
            lower = [plane ^ earlier for plane, earlier in zip(split(raw, 4)[:2], split(file_before.raw(name), 4)[:2], strict=True)]
            note("lower bytes", [(low[0][0], sum(map(entropy_bytes, lower)))])
            apart = subtract(now, before)
            assert np.array_equal(add(apart, before), now)
            as_is, xored, subtracted = (split(way.view(np.uint8), 2) for way in (now, now ^ before, apart))
            stored = [min(pair) for pair in zip(packed(as_is), packed(xored), strict=True)]
            note("xor", low + stored)
            note("subtract", low + packed(subtracted))
            order, parts = by_exponent(before), grades(before)
            for way, planes in (("xor, graded", xored), ("subtract, graded", subtracted)):
                note(way, low + packed([plane[order][part] for plane in planes for part in parts]))
    return found


def undo_times(path: Path, earlier: Path, rounds: int = 5) -> dict[str, float]:
    """CPU milliseconds for a step's upper halves from those before, the best of some rounds, without unpacking; and to read it whole."""
    file, file_before = SafetensorsFile.open(path), SafetensorsFile.open(earlier)
    pairs = [(upper_half(file.raw(name)), upper_half(file_before.raw(name))) for name in file.tensors]
    xored = [(now ^ before, before) for now, before in pairs]
    apart = [(subtract(now, before), before) for now, before in pairs]
    whole = zstandard.ZstdCompressor(PLAIN_LEVEL).compress(path.read_bytes())

    def graded(undo: Callable[[U16, U16], U16], given: Sequence[tuple[U16, U16]]) -> None:
        for way, before in given:
            out = np.empty_like(way)
            out[by_exponent(before)] = way
            undo(out, before)

    def timed(work: Callable[[], object]) -> float:
        times = []
        for _ in range(rounds):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times) * 1e3

    return {
        "whole": timed(lambda: load(zstandard.ZstdDecompressor().decompress(whole))),
        "xor": timed(lambda: [way ^ before for way, before in xored]),
        "subtract": timed(lambda: [add(way, before) for way, before in apart]),
        "xor, graded": timed(lambda: graded(np.bitwise_xor, xored)),
        "subtract, graded": timed(lambda: graded(add, apart)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="of float32 checkpoints, such as `tripod train` makes")
    parser.add_argument("--file", default="model.safetensors")
    parser.add_argument("--back", type=int, default=1, help="which checkpoint before is the reference")
    parser.add_argument("--last", type=int, default=8, help="how many checkpoints are measured, the last ones")
    parser.add_argument("--level", type=int, default=16)
    given = parser.parse_args()
    paths = [folder / given.file for folder in checkpoints_of(given.run).values()]
    pairs = [(paths[place], paths[place - given.back]) for place in range(len(paths) - given.last, len(paths))]
    sizes, times = measure(pairs, given.level), undo_times(*pairs[-1])
    lower = sizes["lower bytes"]
    for way, entry in ((way, sizes[way]) for way in times):
        share = f"{entry['bytes'] / sizes['whole']['bytes']:.3f} (ideal {entry['ideal'] / sizes['whole']['bytes']:.3f})"
        print(f"{way:17} {share}; {times[way]:.1f} ms")
    noise = f"entropy {lower['ideal'] / lower['bytes']:.4f} of their length when XORed"
    print(f"lower bytes       {lower['bytes'] / sizes['whole']['bytes']:.3f}, {noise}")
    setting = {
        "commit": commit(),
        "processor": processor(),
        "steps": [path.parent.name for path, _ in pairs],
        **vars(given),
        "run": given.run.name,
    }
    result = {"setting": setting, "bytes": sizes, "cpu_milliseconds": times}
    name = f"delta-transforms-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    (RESULTS / name).write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    print(f"raw: {name}")


if __name__ == "__main__":
    main()

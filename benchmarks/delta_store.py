"""How small a delta store keeps a series of checkpoints, and how fast any step is read back.

    python -m benchmarks.delta_store --data FOLDER [--run RUN] [--level 16] [--group 16] [--rounds 5]

Trains a byte-level GPT-NeoX of a million parameters on the text of FOLDER and keeps 40 checkpoints: 0, 1, 2, 4, ..., 512, then every
32 steps to 1440 (--run reads a run that is there already). Beside the store stand the same safetensors packed whole by zstd, at its
default level and at the store's, and the entropy floor: what an ideal coder of single bytes would need for the planes that the store
chose. Read back means from files to tensors, in memory; every tensor of the store is compared with the run's. Times are of the CPU, the
best of some rounds, both contestants in turns. Raw results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zstandard
from safetensors.torch import load, load_file

from benchmarks.checkpoint_series import log_then_linear, read_text, train_series
from benchmarks.setting import keep, setting
from tripod.training.byte_planes import entropy_bytes, split
from tripod.training.delta_store import DeltaStore, checkpoints_of
from tripod.training.safetensors_file import ITEM_BYTES, SafetensorsFile

FILES = ("model.safetensors", "optimizer.safetensors")
SETS = {"weights": FILES[:1], "weights and optimizer": FILES}
PLAIN_LEVEL = 3  # zstd's default


def entropy_floor(store: DeltaStore, folders: dict[int, Path], file: str) -> float:
    """Bytes for the planes of a file over all steps, each XORed with the reference that the store chose."""
    total = 0.0
    for step, folder in folders.items():
        tensors = store.index(step).files[file].tensors
        assert tensors is not None
        source = SafetensorsFile.open(folder / file)
        for name, stored in tensors.items():
            planes = split(source.raw(name), ITEM_BYTES[stored.dtype])
            if len(stored.frames) != len(planes):  # a small tensor, in one frame
                total += entropy_bytes(source.raw(name))
                continue
            for place, (plane, frame) in enumerate(zip(planes, stored.frames, strict=True)):
                if frame.reference is not None:
                    earlier = SafetensorsFile.open(folders[frame.reference] / file).raw(name)
                    plane = plane ^ split(earlier, ITEM_BYTES[stored.dtype])[place]
                total += entropy_bytes(plane)
    return total


def read_times(store: DeltaStore, plain: Path, rounds: int) -> dict[str, dict[int, tuple[float, float]]]:
    """CPU seconds to read each step: packed whole, and from the store."""
    times: dict[str, dict[int, tuple[float, float]]] = {}
    unpack = zstandard.ZstdDecompressor()
    for title, files in SETS.items():
        times[title] = {}
        for step in store.steps:
            seconds: list[tuple[float, float]] = []
            for _ in range(rounds):
                start = time.process_time()
                for file in files:
                    load(unpack.decompress((plain / f"step{step}-{file}.zst").read_bytes()))
                middle = time.process_time()
                for file in files:
                    store.tensors(step, file)
                seconds.append((middle - start, time.process_time() - middle))
            times[title][step] = (min(one for one, _ in seconds), min(one for _, one in seconds))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of .txt, .md or .rst files")
    parser.add_argument("--run", type=Path, help="a run to read; made here when absent")
    parser.add_argument("--level", type=int, default=16)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = arguments.run or Path(scratch) / "run"
        if not run.is_dir():
            if arguments.data is None:
                parser.error("give --data, the text to train on, or --run, a run that is there")
            losses = train_series(run, read_text(arguments.data), log_then_linear(interval=32, num_linear=29))
            print(f"trained {len(losses)} steps: loss {losses[0]:.3f} to {np.mean(losses[-50:]):.3f} (mean of the last 50)")
        measure(run, Path(scratch), arguments)


def measure(run: Path, scratch: Path, arguments: argparse.Namespace) -> None:
    folders = checkpoints_of(run)
    plain, store = scratch / "plain", DeltaStore.open(scratch / "store", level=arguments.level, group=arguments.group)
    start = time.process_time()
    store.pack(run)
    packing = time.process_time() - start
    plain.mkdir()
    sizes = {file: {"raw": 0, "plain": 0, "plain_at_level": 0, "store": 0, "floor": 0.0} for file in FILES}
    for step, folder in folders.items():
        for file in FILES:
            content = (folder / file).read_bytes()
            packed = zstandard.ZstdCompressor(PLAIN_LEVEL).compress(content)
            (plain / f"step{step}-{file}.zst").write_bytes(packed)
            sizes[file]["raw"] += len(content)
            sizes[file]["plain"] += len(packed)
            sizes[file]["plain_at_level"] += len(zstandard.ZstdCompressor(arguments.level).compress(content))
            restored = store.tensors(step, file)
            if any(
                not torch.equal(tensor.view(torch.uint8), restored[name].view(torch.uint8))
                for name, tensor in load_file(folder / file).items()
                if tensor.ndim
            ):
                sys.exit(f"step {step}: {file} is not read back bit for bit")
    for file in FILES:
        sizes[file]["store"] = store.size(file).stored
        sizes[file]["floor"] = entropy_floor(store, folders, file)
    on_disk = sum(path.stat().st_size for path in store.path.iterdir())
    times = read_times(store, plain, arguments.rounds)

    ran = setting("benchmarks.delta_store", ("numpy", "torch", "zstandard"))
    ran |= {"steps": store.steps, "level": arguments.level, "group": arguments.group}
    print(f"{ran['processor']}, {ran['versions']}, commit {ran['commit']}; level {arguments.level}, group {arguments.group}")
    for title, files in SETS.items():
        total = {name: sum(sizes[file][name] for file in files) for name in sizes[files[0]]}
        share = {name: f"{num_bytes / total['plain']:.3f}" for name, num_bytes in total.items()}
        print(
            f"{title}: {total['raw'] / 1e6:.1f} MB; of plain zstd ({total['plain'] / 1e6:.1f} MB): store {share['store']}, "
            f"entropy floor {share['floor']}, whole files at level {arguments.level} {share['plain_at_level']}"
        )
        ratios = [ours / theirs for theirs, ours in times[title].values()]
        milliseconds = np.array(list(times[title].values())) * 1e3
        print(
            f"    read a step: plain {milliseconds[:, 0].mean():.1f} ms, store {milliseconds[:, 1].mean():.1f} ms; "
            f"ratio mean {np.mean(ratios):.2f}, worst {max(ratios):.2f} (step {store.steps[int(np.argmax(ratios))]})"
        )
    print(f"all of the store on disk, with indexes and other files: {on_disk / 1e6:.1f} MB; packing took {packing:.1f} s of CPU")
    results = {"setting": ran, "bytes": sizes, "on_disk": on_disk, "packing_cpu_seconds": packing, "cpu_seconds_plain_and_store": times}
    print(f"raw: {keep('delta-store', results).name}")


if __name__ == "__main__":
    main()

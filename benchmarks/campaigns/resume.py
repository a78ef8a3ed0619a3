"""Kills training runs by SIGKILL at seeded points, resumes them, and compares every checkpoint with that of an unbroken run.

    python -m benchmarks.campaigns resume [--points 20] [--seed 0] [--out benchmarks/results]

Each point kills one run several times: at odd kills after a delay chosen by the seed, wherever the process is then; at even ones right
before a system call that makes a checkpoint durable (fsync or rename), chosen by the seed among those of a whole run. The promise: after
every kill all checkpoints that are there are whole, and in the end weights, optimizer state and metrics of the run equal those of the
unbroken run bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch._dynamo  # by the first update of an optimizer, in every child again, if not here

from tripod.text.byte_level import write_byte_tokenizer
from tripod.training import checkpoint
from tripod.training.checkpoint import checkpoint_folder, read_manifest, steps_of_run, tensor_hashes
from tripod.training.data.build import build_dataset
from tripod.training.loop import train
from tripod.training.metrics import read_metrics
from tripod.training.recipe import Recipe
from tripod.training.recipe_file import recipe_from

NUM_STEPS = 24
_NUM_KILLS = 4  # of one run


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One point of the campaign."""

    seed: int
    kills: tuple[str, ...]  # where
    steps_after: tuple[int, ...]  # the newest checkpoint after each kill; -1: none yet
    num_killed: int  # a delay may be longer than what was left to do
    num_while_saving: int  # kills that left a checkpoint half written
    failures: tuple[str, ...]  # empty if the promise held


@dataclass(frozen=True, slots=True, kw_only=True)
class Unbroken:
    """The run that all others are compared with."""

    recipe: Recipe
    seconds: float
    num_calls: int  # that make something durable


def prepare(work: Path) -> Unbroken:
    """Make the data and train once without a kill."""
    (work / "text").mkdir()
    generator = random.Random(0)
    for number in range(40):
        words = ("".join(generator.choices("abcdefgh", k=generator.randint(1, 6))) for _ in range(60))
        (work / "text" / f"{number}.txt").write_text(" ".join(words), encoding="utf-8")
    write_byte_tokenizer(work / "tokenizer")
    build_dataset([work / "text"], work / "tokenizer", work / "data", append_eod=True)
    recipe = recipe_from(
        {
            "run": str(work / "unbroken"),
            "num_steps": NUM_STEPS,
            "model": {"vocab_size": 259, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 32},
            "data": {"prefixes": [str(work / "data")], "tokenizer": str(work / "tokenizer"), "valid_prefixes": [str(work / "data")]},
            "batch": {"rows": 4, "seq_length": 32, "micro_rows": 3},
            "optimizer": {"lr": 1e-2},
            "checkpoints": {"log_until": 2, "every": 2},
            "validation": {"every": 5},
            "dropout": 0.1,
        }
    )
    calls = work / "calls"

    def count() -> None:
        counted = _kill_before(0)
        train(recipe)
        calls.write_text(str(counted()), encoding="utf-8")

    started = time.monotonic()
    status = _wait(_fork(count))
    assert status == 0, f"the unbroken run ended with status {status}"
    return Unbroken(recipe=recipe, seconds=time.monotonic() - started, num_calls=int(calls.read_text(encoding="utf-8")))


def run_point(seed: int, unbroken: Unbroken) -> Outcome:
    """Kill and resume one run until it is done."""
    generator = random.Random(seed)
    run = Path(unbroken.recipe.run).with_name(f"run{seed}")
    recipe = replace(unbroken.recipe, run=str(run))
    kills: list[str] = []
    steps_after: list[int] = []
    failures: list[str] = []
    num_killed = num_while_saving = 0
    for number in range(_NUM_KILLS):
        if (number + seed) % 2:
            delay_s = generator.random() * unbroken.seconds
            kills.append(f"after {delay_s:.3f} s of about {unbroken.seconds:.3f}")
            child = _fork(lambda: train(recipe, resume=True) and None)
            time.sleep(delay_s)
            os.kill(child, signal.SIGKILL)
        else:
            call = generator.randint(1, unbroken.num_calls // 2)
            kills.append(f"before durable call {call} of about {unbroken.num_calls}")
            child = _fork(lambda: _train_until(recipe, call))  # noqa: B023 - runs before the next round
        num_killed += _wait(child) == -signal.SIGKILL
        steps = steps_of_run(run)
        steps_after.append(max(steps, default=-1))
        num_while_saving += any(run.glob(".partial-*")) if run.is_dir() else 0
        failures += [f"after kill {number}: {problem}" for step in steps for problem in _unsound(checkpoint_folder(run, step))]
    status = _wait(_fork(lambda: train(recipe, resume=True) and None))
    if status:
        failures.append(f"the last resumption ended with status {status}")
    failures += _differences(run, Path(unbroken.recipe.run))
    return Outcome(
        seed=seed,
        kills=tuple(kills),
        steps_after=tuple(steps_after),
        num_killed=num_killed,
        num_while_saving=num_while_saving,
        failures=tuple(failures),
    )


def _train_until(recipe: Recipe, call: int) -> None:
    _kill_before(call)
    train(recipe, resume=True)


def _kill_before(call: int) -> Callable[[], int]:
    """End this process by SIGKILL right before its n-th fsync or rename of a folder; 0 only counts. Returns the counter."""
    num_calls = 0

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        def counting(*arguments: object, **options: object) -> object:
            nonlocal num_calls
            num_calls += 1
            if num_calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counting

    os.fsync = watched(os.fsync)  # type: ignore[assignment]
    checkpoint.Path.rename = watched(Path.rename)  # type: ignore[assignment, method-assign]
    return lambda: num_calls


def _fork(body: Callable[[], None]) -> int:
    """Run `body` in a child: importing torch once is most of what a process of its own would do. This process has no threads yet."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        body()
        status = 0
    finally:
        os._exit(status)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _unsound(folder: Path) -> list[str]:
    from safetensors.torch import load_file

    manifest = read_manifest(folder)
    return [
        f"{folder.name}/{file} is not what its manifest says"
        for file, hashes in manifest.tensors.items()
        if tensor_hashes(load_file(folder / file)) != hashes
    ]


def _differences(run: Path, unbroken: Path) -> list[str]:
    if steps_of_run(run) != steps_of_run(unbroken):
        return [f"checkpoints {steps_of_run(run)}, unbroken {steps_of_run(unbroken)}"]
    failures = [
        f"step {step}: {file} differs from the unbroken run"
        for step in steps_of_run(run)
        for file in ("model.safetensors", "optimizer.safetensors")
        if (checkpoint_folder(run, step) / file).read_bytes() != (checkpoint_folder(unbroken, step) / file).read_bytes()
    ]
    ours, theirs = (
        [{key: value for key, value in record.items() if key != "seconds"} for record in read_metrics(folder / "metrics.jsonl")]
        for folder in (run, unbroken)
    )
    if ours != theirs:
        failures.append("the metrics differ from those of the unbroken run")
    if left := [path.name for path in run.glob(".*")]:
        failures.append(f"left behind: {', '.join(left)}")
    return failures


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if the promise held at every point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns resume", description=__doc__)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="the first of `points` seeds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    num_killed = num_while_saving = num_failed = 0
    with tempfile.TemporaryDirectory(prefix="tripod-resume-") as name, (options.out / "resume.jsonl").open("w", encoding="utf-8") as log:
        unbroken = prepare(Path(name))
        for seed in range(options.seed, options.seed + options.points):
            outcome = run_point(seed, unbroken)
            log.write(json.dumps(asdict(outcome)) + "\n")
            num_killed += outcome.num_killed
            num_while_saving += outcome.num_while_saving
            num_failed += bool(outcome.failures)
            print(f"{seed:4} newest checkpoint after each kill: {outcome.steps_after} {'; '.join(outcome.failures)}", flush=True)
    print(f"{options.points} points, {num_killed} kills, {num_while_saving} of them while saving, {num_failed} points failed")
    return 1 if num_failed or not num_killed or not num_while_saving else 0

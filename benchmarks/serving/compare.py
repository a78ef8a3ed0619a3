"""Our engine beside its peers: the same weights, the same token ids, taking turns, tokens judged before any ratio is printed.

    python -m benchmarks.serving.compare --shape pythia-160m --engines tripod:bfloat16 transformers:bfloat16 vllm:bfloat16 \\
        --python vllm=ENV/bin/python openvino=ENV/bin/python [--workloads w1 w2 w3 w4] [--rounds 3]

W1 is one stream (tokens decoded a second, and milliseconds to the first), W2 64 requests of mixed lengths (tokens generated a second),
W3 a prompt of 1,024 tokens (prompt tokens a second), W4 32 requests that share 512 tokens. Peers are installed by whoever runs
this, in environments of their own; one that does not start is "not measured". Beside every round stands what the memory and the
matrix products of the machine gave at that moment. Raw results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.serving.contestant import Answer, Contestant, ContestantError
from benchmarks.serving.judge import Judge, Verdict
from benchmarks.serving.limits import Limits, measure
from benchmarks.serving.shapes import SHAPES, Shape, model_folder
from benchmarks.serving.workloads import WORKLOADS, Requests, w1
from benchmarks.setting import keep, setting

JUDGED = {"w1": 1, "w2": 8, "w3": 1, "w4": 4}  # requests of the first round; the judge is slow
_APART = 500  # of the seeds of prompts that must not be the same
FirstRound: TypeAlias = dict[tuple[str, str], tuple[Requests, Answer]]  # by engine and workload
UNITS = {"w1": "decoded tok/s", "w2": "generated tok/s", "w3": "prompt tok/s", "w4": "generated tok/s"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="pythia-160m")
    parser.add_argument("--engines", nargs="+", default=["tripod:float32", "transformers:float32"], metavar="ENGINE:FORMAT")
    parser.add_argument("--python", nargs="*", default=[], metavar="ENGINE=PATH", help="the interpreter of a peer")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=1000)
    arguments = parser.parse_args()
    pythons = dict(entry.split("=", 1) for entry in arguments.python)
    folder = model_folder(arguments.shape)
    console = Console(width=160)
    with tempfile.TemporaryDirectory(prefix="tripod-compare-") as logs:
        contestants, absent = _start(arguments.engines, folder, pythons, arguments.threads, Path(logs), console)
        try:
            rounds, first = _measure(contestants, arguments.workloads, arguments.rounds, arguments.seed, console)
        finally:
            for contestant in contestants:
                contestant.close()
    raw: dict[str, Any] = {
        "setting": setting("benchmarks.serving.compare", ("torch", "transformers")),
        "shape": arguments.shape,
        "threads": arguments.threads,
        "versions": {contestant.name: contestant.versions for contestant in contestants},
        "not_measured": absent,
        "rounds": rounds,
    }
    path = keep(f"serving-{arguments.shape}", raw)  # before the judge, which takes its time: rounds are not measured twice
    verdicts = _judge(first, folder, console)
    path.write_text(
        json.dumps(raw | {"verdicts": {name: {w: asdict(v) for w, v in by.items()} for name, by in verdicts.items()}}, indent=1)
    )
    console.print(_table(rounds, verdicts, SHAPES[arguments.shape], arguments.shape))
    for name, reason in absent.items():
        console.print(f"{name}: not measured: {reason}")
    console.print(f"raw: {path.name}")
    wrong = [name for name, by in verdicts.items() if name.startswith("tripod") and not _is_right(name, by)]
    return 1 if wrong else 0


def _start(
    names: Sequence[str], folder: Path, pythons: dict[str, str], num_threads: int, logs: Path, console: Console
) -> tuple[list[Contestant], dict[str, str]]:
    contestants, absent = [], {}
    for name in names:
        python = pythons.get(name.partition(":")[0], sys.executable)
        log = logs / f"{name.replace(':', '-')}.log"
        try:
            contestants.append(Contestant(name, folder, python=python, num_threads=num_threads, log=log))
        except (ContestantError, OSError) as error:
            tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-3:]) if log.is_file() else ""
            absent[name] = f"{error} {tail}".strip()
            console.print(f"{name}: not measured: {absent[name]}")
    return contestants, absent


def _measure(
    contestants: list[Contestant], workloads: Sequence[str], num_rounds: int, seed: int, console: Console
) -> tuple[list[dict[str, Any]], FirstRound]:
    """Every engine answers every workload once a round; who begins changes from round to round. Fresh token ids in every round, so that
    nothing kept from the round before is of use."""
    rounds: list[dict[str, Any]] = []
    first: FirstRound = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("rounds", total=num_rounds * len(workloads) * len(contestants))
        for contestant in contestants:
            contestant.run(w1(seed - 1))  # warm up
        for number in range(num_rounds):
            for workload in workloads:
                limits = measure()
                figures: dict[str, dict[str, float]] = {}
                for place in range(len(contestants)):
                    contestant = contestants[(place + number) % len(contestants)]
                    progress.update(task, description=f"round {number + 1}: {workload} {contestant.name}")
                    requests = WORKLOADS[workload](seed + 10 * number + int(workload[1]))
                    figures[contestant.name], answer = _figures(contestant, workload, requests, seed + 1000 + number)
                    if number == 0:
                        first[contestant.name, workload] = requests, answer
                    progress.advance(task)
                rounds.append({"round": number, "workload": workload, "limits": asdict(limits), "figures": figures})
    return rounds, first


def _judge(first: FirstRound, folder: Path, console: Console) -> dict[str, dict[str, Verdict]]:
    """By engine and workload."""
    console.print("judging tokens with transformers in float32 ...")
    judge = Judge(folder)
    verdicts: dict[str, dict[str, Verdict]] = {}
    for (name, workload), (requests, answer) in first.items():
        n = JUDGED[workload]
        verdicts.setdefault(name, {})[workload] = judge.judge(requests.prompts[:n], answer.tokens[:n])
    return verdicts


def _figures(contestant: Contestant, workload: str, requests: Requests, seed: int) -> tuple[dict[str, float], Answer]:
    if workload == "w1":
        contestant.run(Requests(w1(seed + _APART).prompts, [8]))  # it was idle while others had their turns: llama.cpp takes 2 s to wake up
        prompt = w1(seed).prompts
        first_s = contestant.run(Requests(prompt, [1])).seconds
        answer = contestant.run(requests)
        num_decoded = requests.num_outputs[0] - 1
        return {"rate": num_decoded / (answer.seconds - first_s), "ttft_ms": 1e3 * first_s, "seconds": answer.seconds}, answer
    answer = contestant.run(requests)
    amounts = {"num_prompt_tokens": requests.num_prompt_tokens, "num_output_tokens": requests.num_output_tokens}
    amount = amounts["num_prompt_tokens" if workload == "w3" else "num_output_tokens"]
    return {"rate": amount / answer.seconds, "seconds": answer.seconds, **amounts}, answer


def _is_right(name: str, verdicts: dict[str, Verdict]) -> bool:
    return all(verdict.is_right(name.partition(":")[2]) for verdict in verdicts.values())


def _table(rounds: list[dict[str, Any]], verdicts: dict[str, dict[str, Verdict]], shape: Shape, title: str) -> Table:
    """One row an engine and workload. A ratio is ours over a peer's, round by round; none for an engine whose tokens are wrong."""
    table = Table(title=f"{title}: median (least to most)")
    for column in ("workload", "engine", "rate", "first token", "of the limit", "tokens right", "ratios of it to others, by rounds"):
        table.add_column(column)
    for workload in dict.fromkeys(entry["workload"] for entry in rounds):
        entries = [entry for entry in rounds if entry["workload"] == workload]
        for name in verdicts:
            rates = [entry["figures"][name]["rate"] for entry in entries]
            ttft = [entry["figures"][name].get("ttft_ms") for entry in entries]
            verdict = verdicts[name][workload]
            right = verdict.is_right(name.partition(":")[2])
            ratios = [
                f"{other} {_spread([rate / entry['figures'][other]['rate'] for rate, entry in zip(rates, entries, strict=True)], '.2f')}"
                for other in verdicts
                if other != name and name.startswith("tripod") and right
            ]
            table.add_row(
                f"{workload} {UNITS[workload]}",
                name,
                _spread(rates, ".0f"),
                _spread([value for value in ttft if value is not None], ".0f") + " ms" if ttft[0] is not None else "",
                _share(workload, name, rates, entries, shape),
                f"{'yes' if right else 'NO'}: {verdict.share_equal:.1%} equal, gap {verdict.widest_gap:.3f}",
                "; ".join(ratios),
            )
    return table


def _share(workload: str, name: str, rates: Sequence[float], entries: Sequence[dict[str, Any]], shape: Shape) -> str:
    weight_format = name.partition(":")[2]
    shares = []
    for rate, entry in zip(rates, entries, strict=True):
        limits = Limits(**entry["limits"])
        if workload == "w1":
            shares.append(rate / limits.decode_tokens_per_s(shape, weight_format, 192))
        elif workload == "w2":
            figures = entry["figures"][name]
            limit = limits.batch_tokens_per_s(shape, weight_format, figures["num_prompt_tokens"], figures["num_output_tokens"])
            shares.append(rate / limit)
        elif workload == "w3":
            shares.append(rate / limits.prefill_tokens_per_s(shape, weight_format, 1024))
    return _spread(shares, ".0%") if shares else ""


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    sys.exit(main())

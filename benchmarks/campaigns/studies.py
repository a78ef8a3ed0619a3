"""Planted truths, and whether the studies find them: rows that repeat, and numbers that are frequent; each beside a control without.

    python -m benchmarks.campaigns studies [--work FOLDER] [--sizes tiny-s tiny-m tiny-l] [--tables FOLDER] [--out benchmarks/results]

Repetition: documents of random letters, each filling a row of 64 bytes, of which 256 stand once in the corpus, 64 four times, 32 sixteen
times and 16 sixty-four times; the control has as many rows and none of them twice. Three sizes are trained for one epoch, and the
studies `memorization`, `predictable-memorization` and `model-statistics` look at them. The promises: at the end each size knows by heart
more of the rows that were read 32 times or more (those that stand 64 times, of which the last step leaves some out) than of those read
once, by intervals that do not touch; no control knows one row in a hundred by heart; the n-gram index finds each planted text in exactly
those steps in which a walk through all batches finds it.

Frequency: lines of sums whose first operand is drawn by Zipf's law; in the control all are equally frequent. Three models of each are
trained, on other draws and other frequent operands: a gap is between two handfuls of operands, and varies much. The promise: the
performance gap of `term-frequency` at the end is on average above that of the controls by more than 10 points.

Tables and pictures are left in --tables; those checked in under docs/studies/ were made so. --work keeps the runs, and a second call
goes on with them.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tripod
from benchmarks.setting import setting
from tripod.analysis.checkpoints import find_checkpoints
from tripod.analysis.memorization import Memorization
from tripod.analysis.model_statistics import ModelStatistics
from tripod.analysis.predictable_memorization import PredictableMemorization
from tripod.analysis.study import Study, run_study
from tripod.analysis.term_frequency import TermFrequency
from tripod.evaluation.table import Table
from tripod.text.bpe import train_tokenizer
from tripod.text.byte_level import write_byte_tokenizer
from tripod.training.data.build import build_dataset
from tripod.training.loop import train
from tripod.training.ngrams.index import NGramIndex
from tripod.training.recipe_file import recipe_from
from tripod.training.run import Run

SEQ_LENGTH, ROWS = 64, 2
REPEATS = {1: 256, 4: 64, 16: 32, 64: 16}  # times: documents
REPEATED = 32  # rows that were read so often are those that stand 64 times
OPERANDS, SECOND, LINES, SUM_STEPS = 40, 20, 24_000, 360
DRAWS = 3
_GAP = 10.0  # points


def repeated_texts(repeats: Mapping[int, int]) -> Iterator[str]:
    """As they stand in the corpus, one after the other."""
    drawn = random.Random(7)
    for times, number in repeats.items():
        for _ in range(number):
            yield from ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz ", k=SEQ_LENGTH - 1))] * times


def sums(is_skewed: bool, draw: int) -> Iterator[str]:
    """Documents of one line each."""
    drawn = random.Random(11 + draw)
    weights = [1 / (1 + rank) for rank in range(OPERANDS)] if is_skewed else [1.0] * OPERANDS
    operands = random.Random(5 + draw).sample(range(OPERANDS), OPERANDS)  # so that frequent operands are not the small ones
    for first, second in zip(drawn.choices(operands, weights, k=LINES), drawn.choices(range(1, SECOND + 1), k=LINES), strict=True):
        yield f"Q:What is {first} plus {second}? A: {first + second}\n"


def build(folder: Path, texts: Iterator[str], vocab_size: int | None) -> None:
    if (folder / "data.idx").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    documents = list(texts)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    if vocab_size is None:
        write_byte_tokenizer(folder / "tokenizer")
    else:
        train_tokenizer(documents, folder / "tokenizer", vocab_size=vocab_size)
    build_dataset([folder / "corpus.jsonl"], folder / "tokenizer", folder / "data", append_eod=True)


def trained(folder: Path, size: str, num_steps: int, *, rows: int, seq_length: int, every: int, lr: float | None = None) -> Run:
    """A run of a preset's size; one that is there goes on."""
    recipe = recipe_from(
        {
            "preset": size,
            "run": str(folder / size),
            "num_steps": num_steps,
            "model": {"vocab_size": 512, "max_positions": 256},
            "data": {"prefixes": [str(folder / "data")], "tokenizer": str(folder / "tokenizer")},
            "batch": {"rows": rows, "seq_length": seq_length},
            "schedule": {"kind": "wsd", "warmup": 0.1},
            "checkpoints": {"log_until": num_steps if not every else 0, "every": every},
            **({"optimizer": {"lr": lr}} if lr is not None else {}),
        }
    )
    return train(recipe, resume=True).run


def exact_counts(run: Run) -> tuple[int, int]:
    """Texts of which index and walk agree, in steps and so in counts, and how many there are."""
    order, index = run.order(), NGramIndex.of(run)
    steps: dict[tuple[int, ...], list[int]] = {}
    for step in range(run.recipe.num_steps):
        for row in order.batch_at(step):
            steps.setdefault(tuple(row[: SEQ_LENGTH - 1].tolist()), []).append(step)
    return sum(index.find(ids).steps.tolist() == found for ids, found in steps.items()), len(steps)


def study(name: Study, runs: list[Run], tables: Path, work: Path, *, steps: list[int] | None = None) -> Table:
    checkpoints = find_checkpoints([str(run.folder) for run in runs], steps=steps)
    return tripod.run(run_study(name, checkpoints, tables / name.name, kept=work / "measured")).table


def _shares(table: Table, model: str, step: int) -> dict[int, tuple[float, float, float]]:
    rows = table.where(statistic="memorized of rows read x times", model=model, step=step)
    return {int(row["x"] or 0): (float(row["value"] or 0), float(row["low"] or 0), float(row["high"] or 0)) for row in rows}


def repetition(work: Path, tables: Path, sizes: list[str]) -> dict[str, Any]:
    num_documents = sum(times * number for times, number in REPEATS.items())
    num_steps = int(num_documents / 1.005 / ROWS) - 2
    runs: dict[str, list[Run]] = {}
    for kind, repeats in (("repeated", REPEATS), ("control", {1: num_documents})):
        build(work / kind, repeated_texts(repeats), None)
        runs[kind] = []
        for size in sizes:
            began_s = time.monotonic()
            runs[kind].append(trained(work / kind, size, num_steps, rows=ROWS, seq_length=SEQ_LENGTH, every=0, lr=_lr(size)))
            print(f"{kind} {size}: {num_steps} steps, {time.monotonic() - began_s:.0f} s", flush=True)
    memorization = Memorization(bin=32)
    found = study(memorization, runs["repeated"], tables, work)
    control = study(memorization, runs["control"], tables / "control", work, steps=[num_steps])
    late = [step for step in runs["repeated"][0].steps if step >= num_steps // 4]
    study(PredictableMemorization(bin=32), runs["repeated"], tables, work, steps=late)
    study(ModelStatistics(), runs["repeated"][-1:], tables, work)
    agreeing, texts = exact_counts(runs["repeated"][0])
    by_size = {size: _shares(found, size, num_steps) for size in sizes}
    return {
        "num_steps": num_steps,
        "shares": by_size,
        "control": {size: _shares(control, size, num_steps) for size in sizes},
        "texts_counted_exactly": [agreeing, texts],
        "holds": agreeing == texts
        and all(min(low for times, (_, low, _) in shares.items() if times >= REPEATED) > shares[1][2] for shares in by_size.values())
        and all(float(row["value"] or 0) <= 0.01 for row in control.where(statistic="memorized")),
    }


def frequency(work: Path, tables: Path, size: str) -> dict[str, Any]:
    gaps: dict[str, list[dict[int, float]]] = {"skewed": [], "even": []}
    asked = TermFrequency(operations=("addition",), shots=(0,), num_first=OPERANDS, num_second=SECOND)
    for draw in range(DRAWS):
        for kind, found in gaps.items():
            folder = work / f"{kind}-{draw}"
            build(folder, sums(kind == "skewed", draw), 512)
            run = trained(folder, size, SUM_STEPS, rows=16, seq_length=128, every=SUM_STEPS // 6)
            is_shown = kind == "skewed" and not draw
            table = study(asked, [run], tables if is_shown else tables / "control" / folder.name, work)
            found.append({int(row["step"] or 0): float(row["value"] or 0) for row in table.where(statistic="performance gap", shots=0)})
            means = {int(row["step"] or 0): row["value"] for row in table.where(statistic="mean accuracy", shots=0)}
            print(f"{folder.name}: gap by step {found[-1]}, mean accuracy {means}", flush=True)
    last = {kind: statistics.mean(gap[SUM_STEPS] for gap in found) for kind, found in gaps.items()}
    return {"gaps": gaps, "last": last, "holds": last["skewed"] > last["even"] + _GAP}


def _lr(size: str) -> float:
    return {"tiny-s": 3e-3, "tiny-m": 3e-3, "tiny-l": 2e-3}[size]


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if all that was promised holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns studies", description=__doc__)
    parser.add_argument("--work", type=Path, help="a temporary folder if absent")
    parser.add_argument("--sizes", nargs="+", default=["tiny-s", "tiny-m", "tiny-l"])
    parser.add_argument("--tables", type=Path, help="WORK/tables if absent")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tripod-studies-") as name:
        work = options.work or Path(name)
        tables = options.tables or work / "tables"
        results: dict[str, Any] = {"setting": setting("benchmarks.campaigns", ("torch", "scipy", "pydivsufsort"))}
        results["repetition"] = repetition(work / "repetition", tables, options.sizes)
        results["frequency"] = frequency(work / "frequency", tables, options.sizes[min(1, len(options.sizes) - 1)])
        shutil.rmtree(tables / "measured", ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "studies.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for size, shares in results["repetition"]["shares"].items():
        told = ", ".join(f"{times} times {share:.0%}" for times, (share, _, _) in shares.items())
        print(f"{size}: memorised of rows read at least {told}; control {results['repetition']['control'][size][1][0]:.1%}")
    agreeing, texts = results["repetition"]["texts_counted_exactly"]
    print(f"texts whose steps and counts the index finds exactly: {agreeing} of {texts}")
    return 0 if results["repetition"]["holds"] and results["frequency"]["holds"] else 1

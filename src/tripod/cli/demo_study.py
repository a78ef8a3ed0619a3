"""Act 2 of the demo: train a model on the documentation that every Python carries, and read back what a step of it read."""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from tripod.messages import Reply
    from tripod.training.data.batch_view import SpanView
    from tripod.training.loop import StepReport
    from tripod.training.ngrams.provenance import Provenance
    from tripod.training.ngrams.trace import TracedSpan
    from tripod.training.recipe import Recipe
    from tripod.training.run import Run

SECONDS = 60.0  # of training
PROMPT = "The function returns"
_NEEDED = {"torch": "engine", "safetensors": "engine", "tokenizers": "engine", "yaml": "training", "pydivsufsort": "training"}
_TRIAL_STEPS = 12  # by which this machine's speed is known
_AGAIN = (4, 8)  # trained a second time between these checkpoints
_MIN_STEPS = 16
_NUM_TEXTS = 8  # of which the longest phrase is shown


def train_a_model(console: Console) -> tuple[list[str], Path | None]:
    """Plays the act; returns the claims that did not hold, and the last checkpoint."""
    console.rule("Act 2: train a model", style="bold")
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        extras = ",".join(sorted({_NEEDED[package] for package in missing}))
        console.print(f"skipped: not installed: {', '.join(missing)}; run: pip install 'tripod[{extras}]'", markup=False, style="yellow")
        return [], None
    return _play(console)


def _play(console: Console) -> tuple[list[str], Path | None]:
    from platformdirs import user_cache_path

    from tripod.cli.train import prepare_recipe
    from tripod.models.initialize import num_parameters
    from tripod.training.loop import train

    folder = user_cache_path("tripod", appauthor=False) / "demo" / f"study-{platform.python_version()}"
    began_s = time.monotonic()
    prepare_recipe(_recipe(folder, "trial", _TRIAL_STEPS), 1)
    num_steps = _steps_in(SECONDS - (time.monotonic() - began_s), folder)
    recipe = _recipe(folder, "run", num_steps)
    console.print(
        f"{num_parameters(recipe.model.config()):,} parameters, {num_steps} steps of {recipe.batch.rows} rows of {recipe.batch.seq_length} "
        f"tokens, about {SECONDS:.0f} s: the language reference and the docstrings of your standard library, with a tokenizer of its own.",
        style="dim",
    )
    console.print(f"  {folder}", markup=False, soft_wrap=True)
    _remove(recipe.run)
    reports: list[StepReport] = []
    with _bar(num_steps) as advance:
        deadline_s = time.monotonic() + 1.5 * SECONDS  # a machine that became busy stops earlier, and says so

        def on_step(report: StepReport) -> None:
            reports.append(report)
            advance(report)

        run = train(recipe, on_step=on_step, should_stop=lambda: time.monotonic() > deadline_s and len(reports) >= _MIN_STEPS).run
    seconds = sum(report.seconds for report in reports)
    first, last = reports[0].loss, _mean([report.loss for report in reports[-max(1, len(reports) // 20) :]])
    console.print(
        f"  loss {first:.2f} -> {last:.2f} in {len(reports)} steps, {reports[-1].num_tokens / seconds:,.0f} tokens/s", markup=False
    )
    console.print()
    _print_voices(console, run)
    step = len(reports) // 2
    views = _print_batch(console, run, step)
    held = sum(_stands_there(view, folder) for view in views)
    num_places, num_held = _print_provenance(console, run, folder)
    is_same = _trained_again(run, folder)
    claims = (
        ("the loss fell", int(last < 0.9 * first), 1),
        (f"texts of step {step} found in the files where they are said to be", held, len(views)),
        ("places where its longest phrase was learnt, found in their batches and files", num_held, num_places),
        (f"steps {_AGAIN[0]} to {_AGAIN[1]} trained a second time: the same bits", int(is_same), 1),
    )
    console.print()
    for claim, count, of in claims:
        console.print(f"{claim}: {count}/{of}", style="bold green" if count == of else "bold red")
    console.print(
        f"Your own texts:  tripod train RECIPE.YAML, see recipes/; its batches:  tripod data batch {run.folder} {step}", style="dim"
    )
    failures = [f"{claim}: {count} of {of}" for claim, count, of in claims if count != of]
    return failures, run.checkpoint(run.steps[-1])


def _recipe(folder: Path, name: str, num_steps: int) -> Recipe:
    from tripod.cli.python_documentation import NAME
    from tripod.training.recipe_file import recipe_from

    return recipe_from(
        {
            "preset": "tiny-s",
            "run": str(folder / name),
            "num_steps": num_steps,
            "model": {"vocab_size": 4096},
            "data": {
                "prefixes": [str(folder / "text")],
                "tokenizer": str(folder / "tokenizer"),
                "source": {"inputs": [NAME], "vocab_size": 4096},
            },
            "batch": {"rows": 16, "seq_length": 128},
            "schedule": {"kind": "wsd", "warmup": 0.05},
            "checkpoints": {"log_until": 64, "every": 0},
        }
    )


def _steps_in(seconds: float, folder: Path) -> int:
    """How many steps this machine trains in the time, by a short trial."""
    from tripod.training.loop import train

    recipe = _recipe(folder, "trial", _TRIAL_STEPS)
    _remove(recipe.run)
    took: list[float] = []
    train(recipe, on_step=lambda report: took.append(report.seconds))
    _remove(recipe.run)
    a_step = sorted(took)[len(took) // 2]
    return max(_MIN_STEPS, int((seconds - 2 * sum(took)) / a_step))


@contextmanager
def _bar(num_steps: int) -> Iterator[Callable[[StepReport], None]]:
    """A progress bar on stderr, where that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tripod.cli.terminal import stderr

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    console = stderr()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=num_steps)
        yield lambda report: bar.update(task, completed=report.step, description=f"loss {report.loss:.2f}")


def _print_voices(console: Console, run: Run) -> None:
    """What its checkpoints make of one beginning: a model that learns to speak."""
    import tripod
    from tripod.engine.engine import Engine
    from tripod.sampling import SamplingParams

    async def voice(step: int) -> str:
        async with Engine.load(str(run.checkpoint(step))) as engine:
            finished = await engine.generate(PROMPT, SamplingParams(max_tokens=24, temperature=0.0))
            return finished.message.text

    steps = run.steps
    for step in dict.fromkeys((steps[0], steps[len(steps) * 2 // 3], steps[-1])):
        text = " ".join(tripod.run(voice(step)).split())
        console.print(f"  step {step:>5}: {PROMPT} {text}"[:108], markup=False, highlight=False)


def _print_batch(console: Console, run: Run, step: int) -> list[SpanView]:
    """A row of a step, as text; returns all texts of the step."""
    from tripod.text.load_tokenizer import load_tokenizer
    from tripod.training.data.batch_view import BatchView, view_batch
    from tripod.training.data.document_table import DocumentTable

    data = run.recipe.data
    tables = [DocumentTable.open(Path(data.prefixes[0]))]
    view = view_batch(run.order(), step, load_tokenizer(Path(data.tokenizer)), tables=tables)
    console.print()
    console.print(f"What step {step} read, one of its {len(view.rows)} rows:", style="bold")
    shown = BatchView(step, view.rows[:1]).render(max_chars=240)
    for line in shown.splitlines():
        console.print(f"  {line}", markup=False, style="cyan" if line.startswith(("---", "===")) else None)
    return [span for row in view.rows for span in row.spans]


def _print_provenance(console: Console, run: Run, folder: Path) -> tuple[int, int]:
    """The longest phrase that it says which it had read, and when; returns the shown places, and how many hold what is said of them."""
    from tripod.cli.provenance import PLACES, span_lines
    from tripod.training.ngrams.provenance import Provenance

    address = f"{run.folder}@step{run.steps[-1]}"
    provenance = Provenance.open(address)
    reply, span = _longest_phrase(address, provenance)
    console.print()
    console.print("The longest phrase that it writes and had read, from the sentence to the batch:", style="bold")
    if span is None:
        return 1, 0
    steps = reply.step_ids[span.start : span.stop]
    first, *others = span_lines(span, provenance)
    for line in (
        f"{first[:100]}",
        f"  engine    steps {steps[0]} to {steps[-1]}, {span.num_tokens} tokens",
        f"  model     {address}",
        *(f"  training{line}" if number == 0 else f"          {line}" for number, line in enumerate(others)),
    ):
        console.print(f"  {line}", markup=False, style=None if line is first else "cyan", soft_wrap=True)
    shown = [span.seen[number] for number in range(min(PLACES, len(span.seen)))]
    order = run.order()
    held = 0
    for one in shown:
        row = order.batch_at(one.step)[one.place.row - order.rows_of_step(one.step).start]
        is_read = tuple(row[one.place.column : one.place.column + span.num_tokens].tolist()) == span.ids
        record = provenance.record(one)
        held += is_read and record is not None and record.line is not None and _line_holds(folder, record.line, span.text)
    return len(shown), held


def _longest_phrase(address: str, provenance: Provenance) -> tuple[Reply, TracedSpan | None]:
    """Of a few texts that the checkpoint writes."""
    import tripod
    from tripod.engine.engine import Engine
    from tripod.sampling import SamplingParams

    async def write() -> list[Reply]:
        async with Engine.load(address) as engine:
            sampling = [SamplingParams(max_tokens=64, temperature=0.8, seed=seed) for seed in range(_NUM_TEXTS)]
            return list(await asyncio.gather(*(engine.generate(PROMPT, one) for one in sampling)))

    traced = [(reply, provenance.trace(reply.token_ids).longest) for reply in tripod.run(write()) if reply.token_ids]
    return max(traced, key=lambda one: 0 if one[1] is None else one[1].num_tokens)


def _line_holds(folder: Path, line: int, text: str) -> bool:
    """Whether a document of the texts, or where it begins or ends, holds these words."""
    from tripod.cli.python_documentation import NAME

    with (folder / f"{NAME}.jsonl").open(encoding="utf-8") as lines:
        document = next(json.loads(content) for number, content in enumerate(lines, 1) if number == line)
    return text.strip("\ufffd") in document["text"]


def _stands_there(view: SpanView, folder: Path) -> bool:
    """Looks into the text itself, past the data set. A character cut by the edge of a row is left out."""
    from tripod.cli.python_documentation import NAME

    assert view.record is not None
    assert view.record.line is not None
    with (folder / f"{NAME}.jsonl").open(encoding="utf-8") as lines:
        document = next(json.loads(line) for number, line in enumerate(lines, 1) if number == view.record.line)
    return view.text.strip("\ufffd") in document["text"] and document["file"] == view.record.labels["file"]


def _trained_again(run: Run, folder: Path) -> bool:
    """Goes on from an early checkpoint in another folder, and compares every tensor of a later one, optimizer states included."""
    from dataclasses import replace

    from tripod.training.loop import train

    start, stop = _AGAIN
    again = replace(run.recipe, run=str(folder / "again"))
    _remove(again.run)
    shutil.copytree(run.checkpoint(start), Path(again.run) / f"step{start}")
    done: list[int] = []
    other = train(
        again, resume=True, on_step=lambda report: done.append(report.step), should_stop=lambda: bool(done) and done[-1] >= stop
    ).run
    is_same = other.manifest(stop).tensors == run.manifest(stop).tensors
    _remove(again.run)
    return bool(done) and done[0] == start + 1 and is_same


def _remove(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)

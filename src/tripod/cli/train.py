"""`tripod train`: run a recipe."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from tripod.training.data.progress import Progress
    from tripod.training.loop import StepReport
    from tripod.training.metric_sinks import OpenSink
    from tripod.training.recipe import Recipe

SPIN_COUNT = "1000"  # pauses, tens of microseconds; libgomp's own default is 300,000


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML or Python file, see recipes/. With --branch: an intervention.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one field; may be given several times: --set lr=3e-4")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint; begin if there is none.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe, and say what it would train and keep.")] = False,
    branch: Annotated[
        str | None,
        typer.Option("--branch", metavar="RUN@stepN", help="Go on from there twice: with the file's interventions, and without."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of the processor. The bits depend on it; 1 is quickest for the smallest models.")
    ] = None,
    sample: Annotated[str | None, typer.Option("--sample", metavar="PROMPT", help="Let each checkpoint go on from this text.")] = None,
    log_to: Annotated[
        list[str] | None,
        typer.Option("--log-to", metavar="tensorboard|wandb", help="Metrics there too, beside metrics.jsonl; may be given twice."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that tokenise, where the recipe names texts.")] = 1,
    processes: Annotated[
        int,
        typer.Option("--processes", min=1, help="That share the run, by the recipe's `parallel`; torchrun starts them on many machines."),
    ] = 1,
    stop_with_parent: Annotated[bool, typer.Option("--stop-with-parent", hidden=True)] = False,  # of `tripod suite run`
) -> None:
    """Train a model by a recipe. Checkpoints lie in the recipe's run folder and serve at once: tripod generate RUN@stepN "..."

    SIGTERM saves a checkpoint and ends with status 0; --resume goes on from there, bit for bit.
    """
    # Before torch is loaded: its threads would spin for milliseconds wherever they wait for each other, and with them the share of this run
    # and of whatever else wants the cores.
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    from tripod.cli.terminal import stdout
    from tripod.training.metric_sinks import sink_named
    from tripod.training.recipe_file import read_recipe

    sinks = [sink_named(name) for name in log_to or ()]
    if branch is not None:
        recipes = _begin_branch(branch, recipe, changes or (), dry_run=dry_run)
    else:
        recipes = (read_recipe(recipe, changes or ()),)
    if dry_run:
        for read in recipes:
            _print_plan(read, stdout())
        return
    if processes > 1:
        options = [] if threads is None else ["--threads", str(threads)]
        options += [part for name in log_to or () for part in ("--log-to", name)]
        options += [] if sample is None else ["--sample", sample]
        _train_by_processes(recipes, recipe if branch is None else None, changes or (), resume, device, options, processes, workers)
        return
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    with _stop_by_sigterm(with_parent=stop_with_parent) as should_stop:
        for read in recipes:
            if not should_stop():
                prepare_recipe(read, workers)
                _train(read, resume=resume or branch is not None, device=device, sample=sample, sinks=sinks, should_stop=should_stop)


def _train(
    recipe: Recipe, *, resume: bool, device: str, sample: str | None, sinks: Sequence[OpenSink], should_stop: Callable[[], bool]
) -> None:
    import torch

    from tripod.cli.processes import is_first_process, num_processes
    from tripod.cli.terminal import note, stdout
    from tripod.training.gemm_peak import measure_gemm_peak
    from tripod.training.gradients import compute_dtype
    from tripod.training.kept_memory import keep_freed_memory
    from tripod.training.loop import train as run_recipe

    keep_freed_memory()  # of the steps: what the preparation freed has been given back
    peak_flops = measure_gemm_peak(torch.device(device), compute_dtype(recipe.precision)) * num_processes()

    def on_checkpoint(folder: Path, step: int) -> None:
        if sample is not None:
            note(f"step {step}: {sample}{_continuation(folder, sample)!r}")

    with _steps_shown(recipe, peak_flops) as on_step:
        result = run_recipe(
            recipe,
            resume=resume,
            device=device,
            on_step=on_step,
            on_checkpoint=on_checkpoint,
            should_stop=should_stop,
            sinks=sinks,
        )
    if not is_first_process():
        return
    steps = result.run.steps
    state = "complete" if result.is_complete else "stopped and saved"
    loss = "" if result.last is None else f", loss {result.last.loss:.3f}"
    stdout().print(f"{recipe.run}: {state} at step {result.step} of {recipe.num_steps}{loss}; {len(steps)} checkpoints", markup=False)
    note(f'try: tripod generate {recipe.run}@step{steps[-1]} "..."')


def _train_by_processes(
    recipes: tuple[Recipe, ...],
    path: Path | None,
    changes: list[str] | tuple[str, ...],
    resume: bool,
    device: str,
    options: list[str],
    processes: int,
    workers: int,
) -> None:
    """The same command in each process; a branch, which has been begun here, by the recipes that lie in its runs."""
    from tripod.cli.processes import run_as_processes

    for read in recipes:
        prepare_recipe(read, workers)
        arguments = ["train", str(path or Path(read.run) / "recipe.yaml"), "--device", device]
        arguments += [part for change in changes for part in ("--set", change)] if path is not None else []
        arguments += ["--resume"] if resume or path is None else []
        arguments += options
        if status := run_as_processes(arguments, processes):
            raise typer.Exit(status if status > 0 else 1)


def _begin_branch(parent: str, path: Path, changes: list[str] | tuple[str, ...], *, dry_run: bool) -> tuple[Recipe, ...]:
    """The recipes of a branch and of its control, begun but for a dry run; says what the interventions change."""
    from tripod.cli.terminal import note, stdout
    from tripod.training.branch import begin_branch, read_branch, report_changes

    read = read_branch(parent, path, changes)
    if not dry_run:
        run = begin_branch(read.branch, read.parent, read.step)
        begin_branch(read.control, read.parent, read.step)
        for report in report_changes(run, num_inherited=len(read.control.interventions)):
            stdout().print(str(report), markup=False)
        note(f"then compare: tripod suite compare {read.branch.run}")
    return read.branch, read.control


def prepare_recipe(recipe: Recipe, workers: int) -> None:
    """Make tokenizer and data set of a recipe that names its texts, where they are not there."""
    from tripod.cli.processes import is_first_process
    from tripod.training.prepare import is_prepared

    if not is_first_process():  # of those that torchrun started: the first makes them
        while recipe.data.source is not None and not is_prepared(recipe.data):
            time.sleep(0.5)
        return
    with _work_shown() as progress:
        _prepare(recipe, workers, progress)


def _prepare(recipe: Recipe, workers: int, progress: Progress) -> None:
    from tripod.cli.python_documentation import NAME, write_python_documentation
    from tripod.training.prepare import is_prepared, prepare_data

    data = recipe.data
    if data.source is None or is_prepared(data):
        return
    inputs = []
    for name in data.source.inputs:
        path = Path(name)
        if name == NAME:
            path = Path(data.prefixes[0]).with_name(f"{NAME}.jsonl")
            if not path.is_file():
                progress("read Python's documentation", 0, None)
                write_python_documentation(path)
        inputs.append(path)
    prepare_data(data, inputs, workers=workers, progress=progress)


def _continuation(folder: Path, prompt: str) -> str:
    import tripod
    from tripod.engine.engine import Engine
    from tripod.sampling import SamplingParams

    async def generate() -> str:
        async with Engine.load(str(folder)) as engine:
            return (await engine.generate(prompt, SamplingParams(max_tokens=24))).message.text

    return tripod.run(generate())


def _print_plan(recipe: Recipe, console: Console) -> None:
    from tripod.models.initialize import num_parameters
    from tripod.training.flops import flops_per_token, num_active_parameters

    config = recipe.model.config()
    total = num_parameters(config)
    batch, rates = recipe.batch, recipe.learning_rates()
    num_tokens = recipe.num_steps * batch.rows * batch.seq_length
    steps = recipe.checkpoints.steps(recipe.num_steps)
    shown = sorted(
        {1, 2, rates.num_warmup, rates.num_warmup + 1, recipe.num_steps // 2, recipe.num_steps} & set(range(1, recipe.num_steps + 1))
    )
    active = num_active_parameters(config)
    sizes = f"{total:,} parameters" + ("" if active == total else f", of which a token meets {active:,}")
    embeddings = config.vocab_size * config.hidden_size * (1 if config.is_tied else 2)
    lines = {
        "run": recipe.run,
        "model": f"{recipe.model.architecture}, {sizes} ({total - embeddings:,} without embeddings), {recipe.precision}",
        "data": f"{', '.join(recipe.data.prefixes)}, order seed {recipe.seeds.order}",
        "batch": f"{batch.rows} rows of {batch.seq_length} tokens, in {batch.num_accumulated} micro-batches",
        "steps": f"{recipe.num_steps:,}, {num_tokens:,} tokens, {num_tokens * flops_per_token(config, batch.seq_length):.3g} operations",
        "rate": f"{recipe.schedule.kind}: " + ", ".join(f"step {step} {rates.learning_rate(step - 1):.3g}" for step in shown),
        "keeps": f"{len(steps)} checkpoints, {len(steps) * total * 12 / 1e9:.2f} GB: steps {', '.join(map(str, steps))}",
    }
    for name, text in lines.items():
        console.print(f"{name:<6} {text}", markup=False, soft_wrap=True)


@contextmanager
def _stop_by_sigterm(*, with_parent: bool) -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM is noted, not obeyed; and whether the process that started this one is still there."""
    received = False
    parent = os.getppid()

    def receive(*_: object) -> None:
        nonlocal received
        received = True

    before = signal.signal(signal.SIGTERM, receive)
    try:
        yield lambda: received or (with_parent and os.getppid() != parent)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _work_shown() -> Iterator[Progress]:
    """A line that says what is being made and how far it is, while it is being made."""
    from rich.status import Status

    from tripod.cli.terminal import stderr

    with Status("", console=stderr()) as status:

        def show(stage: str, done: int, total: int | None) -> None:
            status.update(f"{stage} {done:,}" + (f" of {total:,}" if total is not None else ""))

        yield show


@contextmanager
def _steps_shown(recipe: Recipe, peak_flops: float) -> Iterator[Callable[[StepReport], None]]:
    """A bar on a terminal; lines into a pipe; both on stderr. MFU is the share of the measured peak of one matrix product."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tripod.cli.terminal import note, stderr

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = stderr()
    interval = max(1, recipe.num_steps // 20)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=recipe.num_steps)

        def show(report: StepReport) -> None:
            numbers = f"loss {report.loss:.3f}, {report.tokens_per_s:,.0f} tokens/s, MFU {report.flops / report.seconds / peak_flops:.0%}"
            bar.update(task, completed=report.step, description=numbers)
            if report.is_spike:
                batch = f"tripod data batch {recipe.run} {report.step - 1}"
                note(f"step {report.step}: the loss {report.loss:.3f} is far above those before it; see what it read: {batch}")
            if report.is_skipped:
                note(f"step {report.step}: skipped, the gradients overflowed float16 at loss scale {report.loss_scale:g}")
            if report.valid_loss is not None:
                note(f"step {report.step}: {numbers}, validation loss {report.valid_loss:.3f}")
            elif not console.is_terminal and report.step % interval == 0:
                note(f"step {report.step}: {numbers}")

        yield show

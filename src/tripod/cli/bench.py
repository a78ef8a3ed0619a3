"""`tripod bench`: load on a server, throughput of an engine, and the time that a start takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tripod.cli.weights import ExpertCacheSize, KVCacheType, Weights, kv_dtype, weight_format

if TYPE_CHECKING:
    from tripod.serving.load import Run, Target
    from tripod.serving.workload import Ask

bench = typer.Typer(help="Measure a server under load, an engine's throughput, a start.", no_args_is_help=True)

Seed = Annotated[int, typer.Option("--seed", help="Two runs with one seed ask for the same.")]
VocabSize = Annotated[int, typer.Option("--vocab-size", min=2, help="Prompts are token ids below this.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Keep the report, and what came of each request.")]


@bench.command()
def serve(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of any OpenAI-compatible server, such as http://127.0.0.1:8000/v1.")],
    model: Annotated[str | None, typer.Option("--model", help="Default: the first that the server lists.")] = None,
    api_key: Annotated[str, typer.Option("--api-key", envvar="TRIPOD_API_KEY")] = "",
    num: Annotated[int, typer.Option("--num", min=1, help="Requests.")] = 100,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1)] = 128,
    output_tokens: Annotated[int, typer.Option("--output-tokens", min=1)] = 32,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Clients of a closed loop.")] = 16,
    rate: Annotated[float | None, typer.Option("--rate", help="Open loop: requests a second, at random times.")] = None,
    sweep: Annotated[
        str | None, typer.Option("--sweep", metavar="R,R,...", help="Several rates, one after the other, with the same prompts.")
    ] = None,
    trace: Annotated[Path | None, typer.Option("--trace", metavar="FILE", help="Open loop: lengths and arrivals of a trace.")] = None,
    prompt_scale: Annotated[float, typer.Option(help="Multiplies the prompts of the trace.")] = 1.0,
    output_scale: Annotated[float, typer.Option(help="Multiplies its outputs.")] = 1.0,
    time_scale: Annotated[float, typer.Option(help="Multiplies its times.")] = 1.0,
    max_prompt_tokens: Annotated[int, typer.Option(help="Longer prompts of the trace are cut.")] = 2**31,
    max_output_tokens: Annotated[int, typer.Option(help="Longer outputs of the trace are cut.")] = 2**31,
    seed: Seed = 0,
    vocab_size: VocabSize = 500,
    ttft: Annotated[float | None, typer.Option("--ttft", metavar="SECONDS", help="Objective: to the first token.")] = None,
    itl: Annotated[float | None, typer.Option("--itl", metavar="SECONDS", help="Objective: between tokens, in the mean.")] = None,
    latency: Annotated[float | None, typer.Option("--latency", metavar="SECONDS", help="Objective: to the last token.")] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Ask for answers of full length; not all servers know how.")] = True,
    same_as: Annotated[Path | None, typer.Option(metavar="FILE", help="A --json of another run: end with 1 if outputs differ.")] = None,
    json_file: Json = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw latencies over time, or over the sweep (PNG, SVG).")
    ] = None,
) -> None:
    """Load a server and report latencies, throughput, goodput at an objective, and where the time went.

    Closed loop by default; with --rate, --sweep or --trace an open one, whose requests do not wait for each other. The exit status is 1
    when a request failed; one that was refused with 429 or 503 did not.
    """
    import asyncio
    import json
    from dataclasses import replace

    import httpx

    from tripod.cli.picture import check_picture
    from tripod.cli.terminal import note
    from tripod.errors import ConfigError
    from tripod.serving.load import Target
    from tripod.serving.load_report import Objective, report
    from tripod.serving.workload import Scale, from_trace, poisson, read_trace, synthetic

    url = url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is not the address of a server; give for example http://127.0.0.1:8000/v1")
    rates = _rates(rate, sweep)
    other = _digests(same_as) if same_as is not None else None
    if plot is not None:
        check_picture(plot)
    if model is None:
        try:
            headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
            model = httpx.get(f"{url}/models", headers=headers, trust_env=False, timeout=30.0).raise_for_status().json()["data"][0]["id"]
        except (httpx.HTTPError, ValueError, LookupError) as error:
            told = f"status {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else str(error)
            raise ConfigError(
                f"cannot ask {url}/models for the model: {told}; is the server up? Does the address end in /v1? Or give --model"
            ) from error
    assert model is not None
    target = Target(url=url, model=model, api_key=api_key, ignore_eos=ignore_eos)
    if trace is not None:
        scale = Scale(
            prompt=prompt_scale,
            output=output_scale,
            time=time_scale,
            max_prompt_tokens=max_prompt_tokens,
            max_output_tokens=max_output_tokens,
        )
        asks = from_trace(read_trace(trace)[:num], scale=scale, seed=seed, vocab_size=vocab_size)
    else:
        asks = synthetic(num, num_prompt_tokens=prompt_tokens, num_output_tokens=output_tokens, seed=seed, vocab_size=vocab_size)
    objective = Objective(ttft_s=ttft, itl_s=itl, latency_s=latency)
    reports: list[dict[str, Any]] = []
    runs: list[Run] = []
    for one in rates:
        if one is not None:
            note(f"{one:g} requests/s")
        timed = poisson([replace(ask, arrival_s=0.0) for ask in asks], rate=one, seed=seed) if one is not None else asks
        run = asyncio.run(_load(target, timed, concurrency if one is None and trace is None else None))
        runs.append(run)
        reports.append({"rate": one, **report(run, objective)})
        _print(reports[-1])
    if json_file is not None:
        requests = [{**_outcome(outcome), "run": i} for i, run in enumerate(runs) for outcome in run.outcomes]
        json_file.write_text(json.dumps({"url": url, "model": model, "seed": seed, "runs": reports, "requests": requests}, indent=1))
    if plot is not None:
        from tripod.serving.load_plot import draw

        draw(runs, [one.get("rate") for one in reports], reports, plot)
    if other is not None and other != [one["output_digest"] for one in reports]:
        note(f"the outputs differ from those of {same_as}")
        raise typer.Exit(1)
    if any(one["failed"] for one in reports):
        raise typer.Exit(1)


def _rates(rate: float | None, sweep: str | None) -> list[float | None]:
    """One for each run; None: a closed loop, or the arrivals of the trace."""
    from tripod.errors import ConfigError

    if rate is not None and sweep is not None:
        raise ConfigError(f"--rate {rate:g} and --sweep {sweep} were both given; give one of the two")
    try:
        rates = [float(word) for word in sweep.split(",")] if sweep is not None else []
    except ValueError as error:
        raise ConfigError(f"--sweep {sweep!r} is not a list of rates; give for example --sweep 1,2,4,8") from error
    rates += [rate] if rate is not None else []
    for one in rates:
        if not 0.0 < one < math.inf:
            raise ConfigError(f"{one:g} requests a second is not a rate; give a number above 0")
    return [*rates] or [None]


def _digests(path: Path) -> list[str]:
    """Of the outputs of another run, as --json kept them."""
    import json

    from tripod.errors import ConfigError

    try:
        return [one["output_digest"] for one in json.loads(path.read_text(encoding="utf-8"))["runs"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"--same-as {path} cannot be read: {error}; give what --json of another run wrote") from error


async def _load(target: Target, asks: list[Ask], concurrency: int | None) -> Run:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from tripod.cli.terminal import stderr
    from tripod.serving.load import closed_loop, open_loop

    console = stderr()
    columns = (
        TextColumn("asking"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("asking", total=len(asks))

        def show(num_done: int) -> None:
            bar.update(task, completed=num_done)

        if concurrency is None:
            return await open_loop(target, asks, progress=show)
        return await closed_loop(target, asks, concurrency=concurrency, progress=show)


def _outcome(outcome: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(outcome), "ttft_s": outcome.ttft_s, "itl_s": outcome.itl_s}


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    from tripod.cli.terminal import stdout

    out = stdout()
    counts = ", ".join(f"{report[name]} {name}" for name in ("ok", "rejected", "aborted", "failed") if report[name] or name == "ok")
    out.print(f"{report['requests']} requests in {report['duration_s']:.2f} s: {counts}", markup=False)
    out.print(
        f"{report['output_tokens_per_s']:.1f} tokens/s, {report['requests_per_s']:.2f} requests/s, "
        f"goodput {report['goodput_requests_per_s']:.2f} requests/s",
        markup=False,
    )
    table = Table("milliseconds", "mean", "p50", "p90", "p99", "max", box=None, pad_edge=False)
    for name, title in (
        ("ttft_s", "to first token"),
        ("itl_s", "between tokens"),
        ("latency_s", "to last token"),
        ("reject_s", "to a refusal"),
    ):
        if report[name] is not None:
            table.add_row(title, *(f"{1000 * report[name][key]:.2f}" for key in ("mean", "p50", "p90", "p99", "max")))
    out.print(table)
    if report["cached_share"]:
        out.print(f"{report['cached_share']:.0%} of the prompts' tokens came from the server's prefix cache", markup=False)
    if report["overhead"] is not None:
        total = sum(report["overhead"].values())
        shares = ", ".join(f"{name.removesuffix('_s')} {1000 * value:.2f}" for name, value in report["overhead"].items())
        out.print(f"one request, {1000 * total:.2f} ms in the mean: {shares}", markup=False)
    for error in report["errors"]:
        out.print(f"failed: {error}", markup=False)


@bench.command()
def offline(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    num: Annotated[int, typer.Option("--num", min=1, help="Requests, all at once.")] = 64,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1)] = 128,
    output_tokens: Annotated[int, typer.Option("--output-tokens", min=1)] = 32,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Times; the first is a warm-up and is not counted if there are more.")] = 3,
    seed: Seed = 0,
    kv_tokens: Annotated[int | None, typer.Option("--kv-tokens", min=1)] = None,
    weights: Weights = None,
    kv_cache_dtype: KVCacheType = None,
    expert_cache: ExpertCacheSize = None,
    json_file: Json = None,
) -> None:
    """Throughput of the engine alone, without HTTP: so many requests at once, until all have ended."""
    import asyncio
    import json
    import statistics
    import time

    from tripod.cli.terminal import stdout
    from tripod.engine.engine import Engine, EngineConfig
    from tripod.sampling import SamplingParams
    from tripod.serving.workload import synthetic

    config = EngineConfig(
        kv_tokens=kv_tokens,
        weight_format=weight_format(weights),
        kv_cache_dtype=kv_dtype(kv_cache_dtype),
        expert_cache=expert_cache,
    )

    async def measure() -> list[float]:
        seconds = []
        async with Engine.load(model, config=config) as engine:
            for i in range(repeat):
                asks = synthetic(
                    num,
                    num_prompt_tokens=prompt_tokens,
                    num_output_tokens=output_tokens,
                    seed=seed + i,  # another seed each time: a prefix cache must not answer
                    vocab_size=engine.tokenizer.vocab_size,
                )
                sampling = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
                began_s = time.monotonic()
                await asyncio.gather(*(engine.generate(ask.prompt_ids, sampling) for ask in asks))
                seconds.append(time.monotonic() - began_s)
        return seconds[1:] or seconds

    seconds = asyncio.run(measure())
    rates = sorted(num * output_tokens / one for one in seconds)
    asked = {"model": model, "weights": weights, "num": num, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    result = {**asked, "output_tokens_per_s": rates}
    stdout().print(
        f"{statistics.median(rates):.1f} output tokens/s (median of {len(rates)}: {rates[0]:.1f} to {rates[-1]:.1f})", markup=False
    )
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1))


@bench.command()
def startup(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    repeat: Annotated[int, typer.Option("--repeat", min=1)] = 3,
    json_file: Json = None,
) -> None:
    """Time from the start of a process to its first token: a fresh `tripod generate MODEL` of one token, several times."""
    import json
    import statistics
    import subprocess
    import sys
    import time

    from tripod.cli.terminal import stdout
    from tripod.errors import ConfigError

    def start(*arguments: str) -> float:
        began_s = time.monotonic()
        outcome = subprocess.run([sys.executable, "-m", "tripod", *arguments], capture_output=True, text=True, check=False)
        if outcome.returncode:
            raise ConfigError(f"tripod {' '.join(arguments)} failed: {outcome.stderr.strip()}")
        return time.monotonic() - began_s

    nothing = sorted(start("--version") for _ in range(repeat))
    first_token = sorted(start("generate", model, "a", "--max-tokens", "1") for _ in range(repeat))
    stdout().print(
        f"{statistics.median(first_token):.2f} s to the first token (median of {repeat}: {first_token[0]:.2f} to {first_token[-1]:.2f}), "
        f"of which {statistics.median(nothing):.2f} s start Python and the command line",
        markup=False,
    )
    if json_file is not None:
        json_file.write_text(json.dumps({"model": model, "first_token_s": first_token, "bare_s": nothing}, indent=1))

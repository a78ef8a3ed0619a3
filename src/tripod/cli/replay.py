"""`tripod replay`: do a logged run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def replay(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A replay log, as `tripod serve --log` writes it.")],
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Where the model is now, if not where it was.")] = None,
) -> None:
    """Do a logged run of the engine again, and name the first step that differs. The exit status is 1 if one does."""
    import torch

    from tripod.engine.replay import LoggedRun
    from tripod.engine.replay import replay as replay_run
    from tripod.models.load import load_language_model
    from tripod.models.locate import locate
    from tripod.text.load_tokenizer import load_tokenizer

    run = LoggedRun.read(log)
    path = locate(model or run.model)
    loaded = load_language_model(path, dtype=getattr(torch, run.dtype), keeps_linear_mapped=run.config.weight_format is not None)
    report = replay_run(run, loaded, tokenizer=load_tokenizer(path if path.is_dir() else path.parent))
    if report.step is None:
        typer.echo(f"{report.num_steps} steps and {report.num_tokens} tokens are the same")
        return
    typer.echo(f"step {report.step} differs: {report.difference}")
    typer.echo(f"the {report.num_steps} steps before it, with {report.num_tokens} tokens, are the same")
    raise typer.Exit(1)

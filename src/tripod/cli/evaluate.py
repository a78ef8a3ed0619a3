"""`tripod eval`: retrieval and answers judged on questions with known answers."""

from __future__ import annotations

import typer

evaluate = typer.Typer(help="Judge retrieval and answers on questions with known answers.", no_args_is_help=True)

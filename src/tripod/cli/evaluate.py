"""`tripod eval`: models scored on tasks, retrieval and answers judged on questions with known answers, and results of others."""

from __future__ import annotations

import typer

evaluate = typer.Typer(help="Score models on tasks, retrieval and answers; read the results of others.", no_args_is_help=True)

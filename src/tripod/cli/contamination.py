"""`tripod contamination`: which evaluation items a checkpoint had read in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tripod.training.ngrams.contamination import Contamination
    from tripod.training.ngrams.provenance import Provenance

SHARES = (0.25, 0.5, 0.8, 1.0)


def contamination(
    items: Annotated[Path, typer.Argument(metavar="ITEMS.jsonl", help="Evaluation items, one a line.")],
    run: Annotated[str, typer.Option("--run", metavar="RUN[@stepN]", help="A training run, as one of its checkpoints has seen it.")],
    fields: Annotated[
        str, typer.Option("--fields", metavar="A,B", help="Of an item, joined by a space: such as question,answer.")
    ] = "text",
    min_tokens: Annotated[int, typer.Option("--min-tokens", min=1, help="That must have been read together to count.")] = 13,
    top: Annotated[int, typer.Option("--top", min=0, help="Show so many items, those of which most was read first; 0: all.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print all items as JSON.")] = False,
) -> None:
    """Look for evaluation items in what a checkpoint was trained on: how much of each was read, and in which step first."""
    from tripod.cli.provenance import open_provenance
    from tripod.cli.terminal import note, print_json, stdout
    from tripod.training.ngrams.contamination import check_contamination

    texts = _texts(items, fields.split(","))
    opened = open_provenance(run)
    found = check_contamination(opened, texts, min_tokens=min_tokens)
    if as_json:
        print_json(_json(found))
        return
    console = stdout()
    console.print(f"{found.model}: of {len(found.items)} items, {len(found.touched)} hold {min_tokens} tokens that it has read together")
    for share in SHARES:
        console.print(f"  {found.num_at_least(share):>6} of which it has read at least {share:.0%}", markup=False)
    for item in found.touched[: top or None]:
        console.print()
        console.print(_item(item.item, texts[item.item], found, opened), markup=False)
    if top and len(found.touched) > top:
        note(f"{len(found.touched) - top} more; --top 0 shows all")


def _texts(path: Path, fields: list[str]) -> list[str]:
    from tripod.errors import ConfigError

    if not path.is_file():
        raise ConfigError(f"{path} is not there; give a jsonl file of evaluation items")
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            texts.append(" ".join(str(item[field]) for field in fields))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{path}, line {number}: expected an object with {', '.join(fields)} ({error!r}); name others by --fields"
            ) from error
    return texts


def _item(number: int, text: str, found: Contamination, opened: Provenance) -> str:
    overlap = found.items[number]
    assert overlap.longest is not None
    seen = overlap.longest.seen
    return (
        f"item {number + 1}: {' '.join(text.split())[:90]!r}\n"
        f"   {overlap.num_covered} of {overlap.num_tokens} tokens; {overlap.longest.num_tokens} together, "
        f"read {len(seen)} times, first in\n"
        f"   {opened.title(seen[0])}"
    )


def _json(found: Contamination) -> dict[str, Any]:
    return {
        "model": found.model,
        "min_tokens": found.min_tokens,
        "items": [
            {
                "item": one.item + 1,
                "num_tokens": one.num_tokens,
                "num_covered": one.num_covered,
                "first_step": one.first_step,
                "longest": None if one.longest is None else one.longest.text,
            }
            for one in found.items
        ],
    }

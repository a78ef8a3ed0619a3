"""How often a checkpoint has read numbers near each other, counted over its training rows in their order."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from tripod.durable_files import atomic_file
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer
from tripod.training.data.progress import Progress, no_progress

if TYPE_CHECKING:
    from tripod.training.run import Run

FOLDER = "term-counts"
# A number of one to five digits between spaces, and the nearest one behind it with one to three words between.
_PAIR = re.compile(r"(?<!\S)(\d{1,5})(?=(?:\s+\S+){1,3}?\s+(\d{1,5})(?!\S))")
_PROGRESS_ROWS = 256


def count_pairs(text: str) -> Counter[str]:
    """Numbers that stand near another, each as often as it does so, and pairs of them as "smaller-larger" (Pythia, section 3.3)."""
    counts: Counter[str] = Counter()
    for match in _PAIR.finditer(text):
        first, second = sorted((int(match[1]), int(match[2])))
        counts.update((str(first), str(second), f"{first}-{second}"))
    return counts


def term_counts(run: Run, step: int, *, progress: Progress = no_progress) -> Mapping[str, int]:
    """What `count_pairs` finds in all rows below a checkpoint. Kept in the run's folder; a later step goes on from an earlier one's.

    Args:
        run: whose rows are read.
        step: of the checkpoint.
        progress: told the stage "count terms", in rows.
    """
    order = run.order()
    folder = run.folder / FOLDER
    read = order.content_fingerprint[:16]
    kept = {done: path for done, path in _kept(folder, read) if done <= step}
    begin = max(kept, default=0)
    counts: Counter[str] = Counter(json.loads(kept[begin].read_text(encoding="utf-8")) if kept else {})
    if begin == step:
        return counts
    tokenizer = load_tokenizer(Path(run.recipe.data.tokenizer))
    rows = range(begin * order.batch_size, step * order.batch_size)
    for done, row in enumerate(rows, 1):
        # Each row without its last token, which is the next one's first.
        for text in _documents(order.rows.row(row)[:-1].tolist(), tokenizer):
            counts.update(count_pairs(text))
        if done % _PROGRESS_ROWS == 0 or done == len(rows):
            progress("count terms", done, len(rows))
    with atomic_file(folder / f"{read}-step{step}.json") as stream:
        stream.write(json.dumps(counts, sort_keys=True).encode())
    return counts


def _documents(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The texts between the tokens that mark structure: the end of one document is not a neighbour of the next one's beginning."""
    for is_special, piece in groupby(ids, tokenizer.special_ids.__contains__):
        if not is_special:
            yield tokenizer.decode(list(piece))


def _kept(folder: Path, read: str) -> list[tuple[int, Path]]:
    found = ((re.fullmatch(rf"{read}-step(\d+)\.json", path.name), path) for path in folder.glob("*.json"))
    return [(int(match[1]), path) for match, path in found if match]

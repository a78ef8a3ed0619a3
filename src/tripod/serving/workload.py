"""What a load generator asks for, and when: seeded workloads, and real traces whose lengths and arrivals are replayed.

Traces hold no text. Prompts are drawn from a seed, with the lengths that the trace tells, and equal where it says that they
share a prefix. Two runs with one seed ask for the same, so their outputs can be compared.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from tripod.errors import ConfigError

_FIRST_ID = 16  # below stand special tokens, in most vocabularies
_MOONCAKE_BLOCK = 512  # tokens for each of its hash ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to send."""

    arrival_s: float  # after the start of the run; ignored in a closed loop
    prompt_ids: tuple[int, ...]
    max_tokens: int
    tenant: str = ""
    abort_after_s: float | None = None  # the client hangs up so long after it asked
    abort_after_chunks: int | None = None  # or when it has so many chunks with text


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One request of a trace, as it was recorded."""

    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    hash_ids: tuple[int, ...] = ()  # of the blocks of its prompt; equal ids are equal blocks


def synthetic(num_requests: int, *, num_prompt_tokens: int, num_output_tokens: int, seed: int, vocab_size: int) -> list[Ask]:
    """Requests of one length, of other text each; all at once. Shape their arrivals with `poisson`."""
    return [
        Ask(arrival_s=0.0, prompt_ids=_ids(random.Random(f"{seed} {i}"), num_prompt_tokens, vocab_size), max_tokens=num_output_tokens)
        for i in range(num_requests)
    ]


def poisson(asks: Sequence[Ask], *, rate: float, seed: int) -> list[Ask]:
    """The same requests at random times, `rate` a second in the mean."""
    generator = random.Random(f"{seed} arrivals")
    arrival_s = 0.0
    arrived = []
    for ask in asks:
        arrival_s += generator.expovariate(rate)
        arrived.append(replace(ask, arrival_s=arrival_s))
    return arrived


def read_trace(path: Path) -> list[TraceRow]:
    """A trace in the format of Azure (CSV) or of Mooncake (JSON lines); arrivals begin at 0.

    Raises:
        ConfigError: it is absent, or in neither format.
    """
    try:
        rows = list(_mooncake(path) if path.suffix == ".jsonl" else _azure(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a trace: {error}; give a CSV with TIMESTAMP,ContextTokens,GeneratedTokens, or JSON lines (.jsonl) with "
            "timestamp, input_length, output_length, hash_ids"
        ) from error
    if not rows:
        raise ConfigError(f"{path} has no requests")
    first_s = min(row.arrival_s for row in rows)
    return sorted((replace(row, arrival_s=row.arrival_s - first_s) for row in rows), key=lambda row: row.arrival_s)


def _azure(path: Path) -> Iterator[TraceRow]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield TraceRow(
                arrival_s=datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp(),
                num_prompt_tokens=int(row["ContextTokens"]),
                num_output_tokens=int(row["GeneratedTokens"]),
            )


def _mooncake(path: Path) -> Iterator[TraceRow]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield TraceRow(
                arrival_s=row["timestamp"] / 1000.0,
                num_prompt_tokens=row["input_length"],
                num_output_tokens=row["output_length"],
                hash_ids=tuple(row["hash_ids"]),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How a trace of a large model on large machines is made to fit a small one. Whoever reports a run reports this, too."""

    prompt: float = 1.0  # tokens are multiplied by it
    output: float = 1.0
    time: float = 1.0  # seconds between arrivals are multiplied by it
    max_prompt_tokens: int = 2**31  # longer ones are cut to it
    max_output_tokens: int = 2**31


def from_trace(rows: Sequence[TraceRow], *, scale: Scale, seed: int, vocab_size: int) -> list[Ask]:
    """The requests of a trace. Blocks with one hash id have the same tokens."""
    block_size = max(1, round(_MOONCAKE_BLOCK * scale.prompt))
    return [
        Ask(
            arrival_s=row.arrival_s * scale.time,
            prompt_ids=_prompt(
                row, max(1, min(scale.max_prompt_tokens, round(row.num_prompt_tokens * scale.prompt))), i, block_size, seed, vocab_size
            ),
            max_tokens=max(1, min(scale.max_output_tokens, round(row.num_output_tokens * scale.output))),
        )
        for i, row in enumerate(rows)
    ]


def _prompt(row: TraceRow, num_tokens: int, index: int, block_size: int, seed: int, vocab_size: int) -> tuple[int, ...]:
    ids: tuple[int, ...] = ()
    for hash_id in row.hash_ids:
        if len(ids) >= num_tokens:
            break
        ids += _ids(random.Random(f"{seed} block {hash_id}"), block_size, vocab_size)
    if len(ids) < num_tokens:
        ids += _ids(random.Random(f"{seed} row {index}"), num_tokens - len(ids), vocab_size)
    return ids[:num_tokens]


def _ids(generator: random.Random, num_tokens: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(generator.choices(range(min(_FIRST_ID, vocab_size - 1), vocab_size), k=num_tokens))

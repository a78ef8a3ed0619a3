"""Who asks what and when: recorded traces of real services, and made ones.

Two public formats are read: Azure's (TIMESTAMP, ContextTokens, GeneratedTokens; Patel et al., ISCA 2024) and Mooncake's
(timestamp, input_length, output_length, hash_ids; Qin et al., FAST 2025). Neither holds texts. Of Mooncake's prompts it is
known which beginnings they share; Azure's are taken to share nothing.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from tripod.errors import ConfigError, DatasetError

_MOONCAKE_BLOCK = 512  # tokens behind one hash id


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request of a workload."""

    time_s: float  # from the beginning
    num_prompt: int  # tokens
    num_output: int  # tokens
    pieces: tuple[int, ...]  # names of the prompt's pieces, in order; equal names, equal tokens
    piece_len: int  # tokens of each piece; the last may be cut
    tenant: str = ""
    priority: int = 0
    timeout_s: float | None = None

    def prompt_ids(self, vocab_size: int | None = None) -> tuple[int, ...]:
        """Token ids of the prompt: below `vocab_size`, or any numbers at all, which is fast and enough for a simulation."""
        token_ids: list[int] = []
        for piece in self.pieces:
            if vocab_size is None:
                token_ids += range(piece * self.piece_len, (piece + 1) * self.piece_len)
            else:
                token_ids += random.Random(piece).choices(range(vocab_size), k=self.piece_len)
        return tuple(token_ids[: self.num_prompt])


def read_trace(path: Path) -> list[Arrival]:
    """A trace, by its suffix: Azure's .csv or Mooncake's .jsonl.

    Raises:
        DatasetError: it is not there, or in another format.
    """
    if path.suffix not in (".csv", ".jsonl") or not path.is_file():
        raise DatasetError(f"{path} is not a trace; give a .csv of Azure's LLM inference traces or a .jsonl of Mooncake's")
    try:
        with path.open(encoding="utf-8") as file:
            arrivals = _azure(csv.DictReader(file)) if path.suffix == ".csv" else [_mooncake(line) for line in file]
    except (KeyError, ValueError, TypeError) as error:
        raise DatasetError(f"{path} is not a trace that we know: {type(error).__name__}: {error}") from error
    return sorted(arrivals, key=lambda arrival: arrival.time_s)


def _azure(rows: csv.DictReader[str]) -> list[Arrival]:
    arrivals: list[Arrival] = []
    begin: datetime | None = None
    for number, row in enumerate(rows):
        time = datetime.fromisoformat(row["TIMESTAMP"][:26])  # microseconds; the trace has one digit more
        begin = begin or time
        num_prompt = max(1, int(row["ContextTokens"]))
        arrivals.append(
            Arrival(
                time_s=(time - begin).total_seconds(),
                num_prompt=num_prompt,
                num_output=max(1, int(row["GeneratedTokens"])),
                pieces=(number,),
                piece_len=num_prompt,
            )
        )
    longest = max((arrival.num_prompt for arrival in arrivals), default=1)
    return [replace(arrival, piece_len=longest) for arrival in arrivals]


def _mooncake(line: str) -> Arrival:
    entry = json.loads(line)
    return Arrival(
        time_s=entry["timestamp"] / 1000.0,
        num_prompt=entry["input_length"],
        num_output=max(1, entry["output_length"]),
        pieces=tuple(entry["hash_ids"]),
        piece_len=_MOONCAKE_BLOCK,
    )


def synthetic(
    num_requests: int,
    rate: float,
    *,
    prompt: tuple[int, int],
    output: tuple[int, int],
    seed: int = 0,
    num_shared: int = 0,
    tenants: Sequence[tuple[str, float]] = (("", 1.0),),
    timeout_s: float | None = None,
) -> list[Arrival]:
    """Requests that come by chance (Poisson), with lengths drawn evenly from ranges.

    Args:
        rate: requests a second, of all tenants together.
        prompt: the fewest and the most tokens of a prompt, without the shared ones.
        output: the fewest and the most tokens of an answer.
        num_shared: tokens with which all prompts begin.
        tenants: names, and how much of the traffic each sends.
    """
    chance = random.Random(seed)
    names, weights = [name for name, _ in tenants], [weight for _, weight in tenants]
    piece_len = max(num_shared, prompt[1])
    arrivals: list[Arrival] = []
    time_s = 0.0
    for number in range(num_requests):
        time_s += chance.expovariate(rate)
        num_own = chance.randint(*prompt)
        arrivals.append(
            Arrival(
                time_s=time_s,
                num_prompt=(piece_len if num_shared else 0) + num_own,
                num_output=chance.randint(*output),
                pieces=(0, number + 1) if num_shared else (number + 1,),
                piece_len=piece_len,
                tenant=chance.choices(names, weights)[0],
                timeout_s=timeout_s,
            )
        )
    return arrivals


def scale(arrivals: Sequence[Arrival], *, rate: float = 1.0, length: float = 1.0, limit: int | None = None) -> list[Arrival]:
    """A workload made denser in time, shorter in tokens, and cut after so many requests.

    Raises:
        ConfigError: `rate` or `length` is not a number above 0.
    """
    for name, factor in (("rate", rate), ("length", length)):
        if not 0.0 < factor < math.inf:
            raise ConfigError(f"{name}={factor:g} cannot multiply a workload; give a number above 0")
    return [
        replace(
            arrival,
            time_s=arrival.time_s / rate,
            num_prompt=min(max(1, round(arrival.num_prompt * length)), len(arrival.pieces) * max(1, round(arrival.piece_len * length))),
            num_output=max(1, round(arrival.num_output * length)),
            piece_len=max(1, round(arrival.piece_len * length)),
        )
        for arrival in arrivals[:limit]
    ]

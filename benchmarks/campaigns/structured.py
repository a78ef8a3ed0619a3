"""Structured output on real schemas: how many are enforced, how exact the masks are, and 1,000 outputs of a real small model.

    python -m benchmarks.campaigns structured [--data FOLDER] [--outputs 1000] [--seed 0] [--out benchmarks/results]

FOLDER holds json-schema-bench (755 schemas with instances that are marked valid or invalid) and stories260K (the model). The promise:

- at least 85 % of the valid schemas are enforced; every other is refused over HTTP with 400, by keyword;
- every output at temperature 1 that ends by itself is valid, by `jsonschema`; every one that max_tokens cuts says "length" and is a
  beginning by the grammar.

The instances tell how exact the masks are. One that is valid and is rejected only because of the order of its properties (a grammar
fixes it) counts apart.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from benchmarks.setting import setting
from benchmarks.shared_data import DATA
from tripod.engine.engine import Engine, EngineConfig
from tripod.engine.grammar.compiler import GrammarCompiler
from tripod.engine.grammar.matcher import Matcher
from tripod.engine.grammar.spelling import Spelling
from tripod.errors import EngineError, RequestError
from tripod.messages import Reply
from tripod.models.llama2c import load_llama2c
from tripod.sampling import Grammar, SamplingParams
from tripod.serving.app import build_app
from tripod.text.load_tokenizer import load_tokenizer

NAME = "stories260K"
MAX_TOKENS = 320
MIN_ENFORCED = 0.85
_MOST_ORDERS = 7  # properties of an object whose orders are all tried


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One schema."""

    file: str
    category: str
    refused: str | None = None  # None: it is enforced
    status: int | None = None  # of the refusal over HTTP
    compile_s: float = 0.0
    num_valid: int = 0  # instances that are marked so
    num_rejected: int = 0  # of these, by the mask
    num_rejected_by_order: int = 0  # of these, because of the order of the properties alone
    num_invalid: int = 0
    num_accepted: int = 0  # of these, by the mask
    stopped: int = 0  # outputs that ended by themselves
    cut: int = 0  # outputs that max_tokens cut
    failures: list[str] = field(default_factory=list)  # empty if the promise held


class Campaign:
    """An engine, its server and what is asked of them."""

    def __init__(self, engine: Engine, rows: Sequence[dict[str, Any]]) -> None:
        self._engine = engine
        self._spelling = Spelling(engine.tokenizer, engine.tokenizer.vocab_size)
        self._compiler = GrammarCompiler(engine.tokenizer, engine.tokenizer.vocab_size)
        self._rows = [row for row in rows if _is_schema(row["schema"])]
        self.num_invalid_schemas = len(rows) - len(self._rows)
        self.outcomes = [Outcome(file=row["file"], category=row["category"]) for row in self._rows]

    async def run(self, num_outputs: int, seed: int) -> None:
        """All of it."""
        transport = httpx.ASGITransport(app=build_app(self._engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://campaign/v1", timeout=600.0) as client:
            for row, outcome in zip(self._rows, self.outcomes, strict=True):
                await self._enforce(row, outcome, client)
        enforced = [i for i, outcome in enumerate(self.outcomes) if outcome.refused is None]
        waiting = iter([(i, seed + number) for number, i in enumerate(itertools.islice(itertools.cycle(enforced), num_outputs))])
        await asyncio.gather(*(self._generate(waiting) for _ in range(self._engine.config.max_num_requests)))
        self._compiler.close()

    async def _enforce(self, row: dict[str, Any], outcome: Outcome, client: httpx.AsyncClient) -> None:
        started = time.perf_counter()
        try:
            matcher = await self._compiler.matcher(Grammar.json_schema(row["schema"]))
        except RequestError as error:
            outcome.refused = getattr(error, "keyword", "") or str(error)[:120]
            await self._check_refusal(row, outcome, client)
            return
        outcome.compile_s = time.perf_counter() - started
        for instance in row["tests"]:
            accepted = self._accepts(matcher, instance["data"])
            if instance["valid"]:
                outcome.num_valid += 1
                outcome.num_rejected += not accepted
                outcome.num_rejected_by_order += not accepted and any(self._accepts(matcher, other) for other in _orders(instance["data"]))
            else:
                outcome.num_invalid += 1
                outcome.num_accepted += accepted

    async def _check_refusal(self, row: dict[str, Any], outcome: Outcome, client: httpx.AsyncClient) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": row["schema"], "strict": True}}
        response = await client.post("/completions", json={"model": NAME, "prompt": "x", "response_format": wanted})
        outcome.status = response.status_code
        error = response.json().get("error", {})
        if response.status_code != 400 or error.get("param") != "response_format" or (outcome.refused or "") not in error["message"]:
            outcome.failures.append(f"refused over HTTP by {response.status_code}: {response.text[:300]}")

    def _accepts(self, matcher: Matcher, instance: Any) -> bool:
        follower = matcher.fork()
        try:
            for token_id in self._spelling(json.dumps(instance, ensure_ascii=False)):
                follower.accept(token_id)
        except EngineError:
            return False
        return follower.is_complete

    async def _generate(self, waiting: Iterator[tuple[int, int]]) -> None:
        for i, seed in waiting:
            outcome, schema = self.outcomes[i], self._rows[i]["schema"]
            grammar = Grammar.json_schema(schema)
            sampling = SamplingParams(grammar=grammar, temperature=1.0, seed=seed, max_tokens=MAX_TOKENS)
            try:
                reply = await self._engine.generate("Once upon a time", sampling)
            except EngineError as error:
                outcome.failures.append(f"seed {seed}: {error}"[:300])
                continue
            failure = await self._failure(reply, schema, grammar)
            outcome.stopped += reply.finish_reason == "stop"
            outcome.cut += reply.finish_reason == "length"
            if failure is not None:
                outcome.failures.append(f"seed {seed}: {failure}; the text: {reply.text[:300]!r}")

    async def _failure(self, reply: Reply, schema: Any, grammar: Grammar) -> str | None:
        if reply.finish_reason == "length":
            matcher = await self._compiler.matcher(grammar)
            try:
                for token_id in reply.token_ids:
                    matcher.accept(token_id)
            except EngineError as error:
                return f"cut, and no beginning: {error}"
            return None if len(reply.token_ids) == MAX_TOKENS else "cut before max_tokens"
        if reply.finish_reason != "stop":
            return f"ended by {reply.finish_reason}"
        try:
            instance = json.loads(reply.text)
        except ValueError as error:
            return f"no JSON: {error}"
        errors = [error.message[:200] for error in validator_for(schema)(schema).iter_errors(instance)]
        return f"not valid: {errors[0]}" if errors else None


def _is_schema(schema: Any) -> bool:
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError:
        return False
    return True


def _orders(instance: Any) -> Iterator[Any]:
    """The same value with its own properties in every other order; those of what it holds stay."""
    if isinstance(instance, dict) and len(instance) <= _MOST_ORDERS:
        for items in itertools.permutations(instance.items()):
            yield dict(items)


def table(outcomes: Sequence[Outcome]) -> str:
    """By category, as Markdown."""
    lines = [
        "| category | schemas | enforced | valid | rejected (by order alone) | invalid | accepted | outputs | ended, valid | cut |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    categories = list(dict.fromkeys(outcome.category for outcome in outcomes))
    for name in [*categories, "all"]:
        of_it = [outcome for outcome in outcomes if name in (outcome.category, "all")]
        enforced = [outcome for outcome in of_it if outcome.refused is None]

        cells: dict[str, int] = {
            name: sum(getattr(outcome, name) for outcome in enforced)
            for name in ("num_valid", "num_rejected", "num_rejected_by_order", "num_invalid", "num_accepted", "stopped", "cut")
        }
        num_failed = sum(len(outcome.failures) for outcome in enforced)
        lines.append(
            f"| {name} | {len(of_it)} | {len(enforced)} ({len(enforced) / len(of_it):.1%}) | {cells['num_valid']} "
            f"| {cells['num_rejected']} ({cells['num_rejected_by_order']}) | {cells['num_invalid']} | {cells['num_accepted']} "
            f"| {cells['stopped'] + cells['cut']} | {cells['stopped'] - num_failed} | {cells['cut']} |"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if the promise held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns structured", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the collections (default: %(default)s)")
    parser.add_argument("--outputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first output")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args(arguments)
    bench, stories = options.data / "json-schema-bench" / "maskbench-sample.jsonl", options.data / NAME
    if not bench.is_file() or not stories.is_dir():
        print(f"not measured: {options.data} holds no json-schema-bench or no {NAME}")
        return 2
    rows = [json.loads(line) for line in bench.read_text(encoding="utf-8").splitlines()]

    async def run() -> Campaign:
        model, tokenizer = load_llama2c(stories / f"{NAME}.bin"), load_tokenizer(stories)
        async with Engine(model, tokenizer, EngineConfig(max_num_requests=32), name=NAME) as engine:
            campaign = Campaign(engine, rows)
            await campaign.run(options.outputs, options.seed)
            return campaign

    campaign = asyncio.run(run())
    outcomes = campaign.outcomes
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "structured.jsonl").open("w", encoding="utf-8") as log:
        log.write(json.dumps(setting("benchmarks.campaigns", ["llguidance", "jsonschema", "torch"])) + "\n")
        for outcome in outcomes:
            log.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")
    print(table(outcomes))
    reasons = Counter(outcome.refused for outcome in outcomes if outcome.refused is not None)
    print("refused:", ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()))
    failed = [f"{outcome.file}: {failure}" for outcome in outcomes for failure in outcome.failures]
    share = sum(outcome.refused is None for outcome in outcomes) / len(outcomes)
    stopped = sum(outcome.stopped for outcome in outcomes)
    print(
        f"{share:.1%} of {len(outcomes)} schemas enforced ({campaign.num_invalid_schemas} more are no valid schemas), "
        f"{stopped} outputs ended by themselves, {sum(outcome.cut for outcome in outcomes)} were cut, {len(failed)} failures"
    )
    print(*failed[:20], sep="\n")
    return 1 if failed or share < MIN_ENFORCED or not stopped else 0

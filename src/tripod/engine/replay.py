"""Does a logged run again: the same requests, step by step, and says where it first differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tripod.engine.assemble import EngineParts, assemble
from tripod.engine.engine_config import EngineConfig
from tripod.engine.grammar.compiler import GrammarCompiler
from tripod.engine.policy.request import Request
from tripod.engine.replay_log import request_of, weights_hash
from tripod.errors import ConfigError
from tripod.models.language_model import LanguageModel
from tripod.text.tokenizer import Tokenizer

_FIELDS: Mapping[object, set[str]] = {  # what each event must hold; what a later version adds may be there too
    "add": {"now", "request", "prompt_ids", "sampling", "max_tokens", "seed", "stop_ids", "score_from", "priority", "tenant"},
    "finish": {"request", "reason"},
    "step": {"step", "planned", "committed", "schedule", "tokens", "failed"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """How a replay went."""

    num_steps: int  # that were done and agreed
    num_tokens: int  # that were generated and agreed
    step: int | None  # the first step that differs; None: all agree
    difference: str  # what differs; empty where nothing does


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """A replay log, read."""

    model: str
    weights: str
    dtype: str
    config: EngineConfig
    events: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> LoggedRun:
        """
        Raises:
            ConfigError: the file is absent or no replay log. A line that was cut off at the end is left out.
        """
        events = list(_lines(path))
        if not events or events[0].get("event") != "start":
            raise ConfigError(f"{path} is not a replay log: its first line does not say how the engine was started")
        start = events[0]
        known = {field.name for field in fields(EngineConfig)}
        try:
            config = EngineConfig(**{name: value for name, value in start["config"].items() if name in known})
            return cls(start["model"], start["weights"], start["dtype"], config, tuple(events[1:]))
        except (AttributeError, KeyError) as error:
            raise ConfigError(
                f"{path} is not a replay log: its first line does not hold model, weights, dtype and config ({error})"
            ) from error


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the replay log {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return  # the process ended in the midst of it
            raise ConfigError(f"{path}, line {number}, is not JSON: {error}") from error
        if not isinstance(event, dict):
            raise ConfigError(f"{path}, line {number}, is not an event: {line[:80]}")
        if number > 1 and (lacking := _FIELDS.get(event.get("event"), set()) - event.keys()):
            raise ConfigError(f"{path}, line {number}, is an event {event['event']!r} without {', '.join(sorted(lacking))}")
        yield event


def replay(run: LoggedRun, model: LanguageModel, *, tokenizer: Tokenizer | None = None, config: EngineConfig | None = None) -> ReplayReport:
    """Do a logged run again.

    Args:
        run: the log.
        model: as it was given to the engine.
        tokenizer: the one beside it; needed where a request had a grammar.
        config: other than that of the log, to see whether the answers depend on it; the schedules must still fit.

    Raises:
        ConfigError: the model has other weights than the logged one, or the tokenizer is missing.
    """
    if run.weights and weights_hash(model) != run.weights:
        raise ConfigError(f"these are not the weights of the log, whose SHA-256 is {run.weights[:16]}...")
    parts = assemble(model, config or run.config)
    parts.runner.start_thread()
    grammars = GrammarCompiler(tokenizer, model.config.vocab_size) if tokenizer is not None else None
    requests: dict[str, Request] = {}
    num_steps = num_tokens = 0
    for event in run.events:
        match event["event"]:
            case "add":
                request = requests[event["request"]] = request_of(event)
                if request.sampling.grammar is not None:
                    if grammars is None:
                        raise ConfigError(f"request {request.id} had a grammar, which is followed with the tokenizer; give it as well")
                    request.matcher = grammars.matcher_now(request.sampling.grammar)
                parts.policy.add(request, event["now"])
            case "finish":
                parts.policy.finish(requests[event["request"]], event["reason"])
            case "step":
                difference = _step(parts, event)
                if difference:
                    return ReplayReport(num_steps=num_steps, num_tokens=num_tokens, step=event["step"], difference=difference)
                num_steps += 1
                num_tokens += sum(map(len, event["tokens"].values()))
            case other:
                raise ConfigError(f"the replay log holds an event {other!r}, which this version does not know")
    return ReplayReport(num_steps=num_steps, num_tokens=num_tokens, step=None, difference="")


def _step(parts: EngineParts, event: Mapping[str, Any]) -> str:
    """Do one step. What differs from the log, or nothing."""
    schedule = parts.policy.plan(event["planned"])
    planned = [[request.id, num_tokens] for request, num_tokens in schedule.items()]
    if planned != event["schedule"]:
        return f"the schedule: logged {event['schedule']}, now {planned}"
    if copies := parts.policy.take_copies():
        parts.runner.copy_blocks(copies)
    result = parts.runner.run(schedule)
    result.follow_grammars()
    for request in schedule:
        is_failed, was_failed = request in result.failed, request.id in event["failed"]
        if is_failed != was_failed:
            return f"request {request.id} {'fails' if is_failed else 'does not fail'} now"
        logged, tokens = event["tokens"].get(request.id, []), result.token_ids.get(request, [])
        if tokens != logged:
            at = len(request.output_ids)
            return f"request {request.id}, output token {at}: logged {logged}, now {tokens}"
    computed = {request: n for request, n in schedule.items() if request not in result.failed}
    parts.policy.commit(computed, result.token_ids, event["committed"])
    return ""

"""The log of a run from which it can be done again: one JSON object a line, in the order in which things happened.

{"event": "start", "model": ..., "weights": sha256, "config": {...}, "versions": {...}}
{"event": "add", "request": id, "prompt_ids": [...], "sampling": {...}, "max_tokens": n, "seed": s, "stop_ids": [...], ...}
{"event": "step", "step": n, "schedule": [[id, num_tokens], ...], "tokens": {id: [...]}, "failed": [id, ...]}
{"event": "finish", "request": id, "reason": ...}            what the policy did not find itself: aborts, stop strings, failures
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tripod.engine.engine_config import EngineConfig
from tripod.engine.execution.runner import StepResult
from tripod.engine.policy.policy import Schedule
from tripod.engine.policy.request import Request
from tripod.errors import ConfigError
from tripod.messages import FinishReason
from tripod.models.language_model import LanguageModel
from tripod.sampling import Grammar, SamplingParams

logger = logging.getLogger(__name__)


class ReplayLog:
    """Written by the step loop, one line an event; flushed with each step, so that a killed process leaves all steps but the last.

    Where it can be written no further, say because the disk is full, it ends there: requests are worth more than their record.
    """

    def __init__(self, path: Path, name: str, model: LanguageModel, config: EngineConfig) -> None:
        """
        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"the replay log {path} cannot be written: {error.strerror}") from error
        self._is_given_up = False
        self._write(
            event="start",
            model=name,
            weights=weights_hash(model),
            dtype=str(model.dtype).removeprefix("torch."),
            config={key: value for key, value in asdict(config).items() if key != "log"},
            versions={package: version(package) for package in ("tripod", "torch")},
            num_threads=torch.get_num_threads(),
        )

    def add(self, request: Request, now: float) -> None:
        self._write(
            event="add",
            now=now,
            request=request.id,
            prompt_ids=request.prompt_ids,
            sampling=asdict(request.sampling),
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop_ids=sorted(request.stop_ids),
            score_from=request.score_from,
            priority=request.priority,
            tenant=request.tenant,
        )

    def finish(self, request: Request, reason: FinishReason) -> None:
        self._write(event="finish", request=request.id, reason=reason)

    def step(self, step_id: int, clock: tuple[float, float], schedule: Schedule, result: StepResult) -> None:
        """`clock` is when the step was planned and when it was committed."""
        self._write(
            event="step",
            step=step_id,
            planned=clock[0],
            committed=clock[1],
            schedule=[[request.id, num_tokens] for request, num_tokens in schedule.items()],
            tokens={request.id: token_ids for request, token_ids in result.token_ids.items()},
            failed=[request.id for request in result.failed],
        )
        self._try(self._file.flush)

    def close(self) -> None:
        self._try(self._file.flush)
        with suppress(OSError):  # what is left to be written, where it was given up
            self._file.close()

    def _write(self, **content: Any) -> None:
        line = json.dumps(content, separators=(",", ":")) + "\n"
        self._try(lambda: self._file.write(line))

    def _try(self, write: Callable[[], object]) -> None:
        if self._is_given_up:
            return
        try:
            write()
        except OSError as error:
            self._is_given_up = True
            logger.error("the replay log %s cannot be written any further and ends here: %s", self._file.name, error.strerror)


def request_of(event: Mapping[str, Any]) -> Request:
    """The request that an "add" event describes."""
    return Request(
        id=event["request"],
        prompt_ids=tuple(event["prompt_ids"]),
        sampling=_sampling_of(event["sampling"]),
        max_tokens=event["max_tokens"],
        seed=event["seed"],
        stop_ids=frozenset(event["stop_ids"]),
        score_from=event["score_from"],
        priority=event["priority"],
        tenant=event["tenant"],
    )


def _sampling_of(values: Mapping[str, Any]) -> SamplingParams:
    known = {field.name for field in fields(SamplingParams)}
    read: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name in known}
    if read.get("grammar") is not None:
        read["grammar"] = Grammar(**read["grammar"])
    read["logit_bias"] = {int(token_id): bias for token_id, bias in values["logit_bias"].items()}  # JSON has only strings for keys
    return SamplingParams(**read)


def weights_hash(model: LanguageModel) -> str:
    """SHA-256 over the names, types, shapes and bytes of all tensors; empty for a model that has none to show."""
    if not isinstance(model, nn.Module):
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""The load generator: asks any OpenAI-compatible server for completions, in a closed or an open loop, and keeps what came of each.

Times are the client's own. In an open loop a request's clock starts when it was due, not when the client got round to it,
so a generator that falls behind does not flatter the server (coordinated omission).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tripod.serving.load_client import LoadClient, WireError
from tripod.serving.workload import Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to ask."""

    url: str  # that ends in /v1
    model: str
    api_key: str = ""
    ignore_eos: bool = True  # answers have the asked length; Tripod, vLLM and SGLang know the field
    timeout_s: float = 600.0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one request. Seconds; times of day are after the start of the run."""

    index: int
    tenant: str
    due_s: float
    sent_s: float  # when the request was handed to the socket
    status: int = 0  # of HTTP; 0: no answer came
    error: str | None = None  # also one in the middle of a stream
    is_aborted: bool = False  # by us, as asked
    first_s: float | None = None  # of the first text
    last_s: float | None = None  # of the last text
    end_s: float = 0.0  # of the last byte
    gaps_s: list[float] = field(default_factory=list)  # between chunks with text
    text: str = ""
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    retry_after_s: float | None = None
    made: dict[str, Any] | None = None  # the object `tripod` of our own server

    @property
    def is_ok(self) -> bool:
        return self.status == 200 and self.error is None and not self.is_aborted

    @property
    def num_chunks(self) -> int:
        """With text, so far."""
        return len(self.gaps_s) + (self.first_s is not None)

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def latency_s(self) -> float:
        """From when it was due to its last byte."""
        return self.end_s - self.due_s

    @property
    def itl_s(self) -> float | None:
        """Mean time between two tokens."""
        if self.first_s is None or self.last_s is None or self.num_output_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.num_output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the generator."""

    outcomes: list[Outcome]  # in the order of the asks
    duration_s: float
    steps: list[dict[str, Any]]  # of our own server, the last ones

    @property
    def digest(self) -> str:
        """Names the outputs: equal for two runs that asked for the same and got the same. Over what was answered whole."""
        digest = hashlib.sha256()
        for outcome in self.outcomes:
            if outcome.is_ok:
                digest.update(f"{outcome.index} {outcome.text}\n".encode())
        return digest.hexdigest()[:16]


async def closed_loop(target: Target, asks: Sequence[Ask], *, concurrency: int, progress: Callable[[int], None] = lambda _: None) -> Run:
    """`concurrency` clients, each asking again as soon as it has its answer."""
    waiting = iter(enumerate(asks))
    outcomes: list[Outcome] = []
    began_s = time.monotonic()

    async with _client(target) as http:

        async def client() -> None:
            for index, ask in waiting:
                due_s = time.monotonic() - began_s
                outcomes.append(await _ask(http, target, index, ask, due_s, began_s))
                progress(len(outcomes))

        await asyncio.gather(*(client() for _ in range(concurrency)))
        return await _run(http, target, outcomes, began_s)


async def open_loop(target: Target, asks: Sequence[Ask], *, progress: Callable[[int], None] = lambda _: None) -> Run:
    """Each request at its own time, whatever has become of the others."""
    outcomes: list[Outcome] = []
    began_s = time.monotonic()

    async with _client(target) as http, asyncio.TaskGroup() as tasks:

        async def one(index: int, ask: Ask) -> None:
            outcomes.append(await _ask(http, target, index, ask, ask.arrival_s, began_s))
            progress(len(outcomes))

        for index, ask in sorted(enumerate(asks), key=lambda pair: pair[1].arrival_s):
            await asyncio.sleep(ask.arrival_s - (time.monotonic() - began_s))
            tasks.create_task(one(index, ask))
    async with _client(target) as http:
        return await _run(http, target, outcomes, began_s)


def _client(target: Target) -> LoadClient:
    headers = {"authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    return LoadClient(target.url, headers=headers, timeout_s=target.timeout_s)


async def _run(http: LoadClient, target: Target, outcomes: list[Outcome], began_s: float) -> Run:
    duration_s = max((outcome.end_s for outcome in outcomes), default=time.monotonic() - began_s)
    answer: list[bytes] = []
    try:
        path = urlsplit(target.url).path.removesuffix("/v1") + "/debug/steps"
        await http.ask("GET", path, on_data=lambda data, _: answer.append(data))
        steps = json.loads(b"".join(answer))["steps"]
    except (WireError, ValueError, KeyError, TypeError):
        steps = []  # not one of ours
    return Run(outcomes=sorted(outcomes, key=lambda outcome: outcome.index), duration_s=duration_s, steps=steps)


async def _ask(http: LoadClient, target: Target, index: int, ask: Ask, due_s: float, began_s: float) -> Outcome:
    outcome = Outcome(index=index, tenant=ask.tenant, due_s=due_s, sent_s=time.monotonic() - began_s)
    try:
        async with asyncio.timeout(ask.abort_after_s):
            await _stream(http, target, ask, outcome, began_s)
    except (TimeoutError, _HangUp):
        outcome.is_aborted = True
    except WireError as error:
        outcome.error = f"{type(error).__name__}: {error}"
    outcome.end_s = time.monotonic() - began_s
    return outcome


class _HangUp(Exception):
    """The client has what it wanted and leaves."""


async def _stream(http: LoadClient, target: Target, ask: Ask, outcome: Outcome, began_s: float) -> None:
    body: dict[str, Any] = {
        "model": target.model,
        "prompt": list(ask.prompt_ids),
        "max_tokens": ask.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if target.ignore_eos:
        body["ignore_eos"] = True
    reader = _Reader(ask, outcome, began_s)
    path = f"{urlsplit(target.url).path}/completions"
    headers = {"x-tenant": ask.tenant} if ask.tenant else {}
    await http.ask("POST", path, body=body, headers=headers, on_sent=reader.sent, on_head=reader.head, on_data=reader.data)
    reader.end()


class _Reader:
    """Makes an outcome of an answer, as it comes."""

    def __init__(self, ask: Ask, outcome: Outcome, began_s: float) -> None:
        self._ask = ask
        self._outcome = outcome
        self._began_s = began_s
        self._rest = b""
        self._is_done = False

    def sent(self, now: float) -> None:
        self._outcome.sent_s = now - self._began_s

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._outcome.status = status
        if status != 200 and "retry-after" in headers:
            self._outcome.retry_after_s = float(headers["retry-after"])

    def data(self, data: bytes, now: float) -> None:
        outcome = self._outcome
        if outcome.status != 200:
            self._rest += data
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            if line.rstrip() == b"data: [DONE]":
                self._is_done = True
                continue
            _note(outcome, json.loads(line[5:]), now - self._began_s)
            if self._ask.abort_after_chunks is not None and outcome.num_chunks >= self._ask.abort_after_chunks:
                raise _HangUp

    def end(self) -> None:
        if self._outcome.status != 200:
            self._outcome.error = self._rest.decode(errors="replace")[:300]
        elif not self._is_done and self._outcome.error is None:
            self._outcome.error = "the stream ended without [DONE]"


def _note(outcome: Outcome, chunk: dict[str, Any], now: float) -> None:
    if "error" in chunk:
        outcome.error = str(chunk["error"].get("message"))
        return
    outcome.made = chunk.get("tripod") or outcome.made
    if chunk.get("usage"):
        outcome.num_prompt_tokens = chunk["usage"]["prompt_tokens"]
        outcome.num_output_tokens = chunk["usage"]["completion_tokens"]
    text = "".join(choice.get("text") or "" for choice in chunk.get("choices", ()))
    if text:
        outcome.text += text
        if outcome.last_s is not None:
            outcome.gaps_s.append(now - outcome.last_s)
        else:
            outcome.first_s = now
        outcome.last_s = now

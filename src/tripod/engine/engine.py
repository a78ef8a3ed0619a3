"""The engine, as it is asked: requests are checked and handed to the step loop, and their events come back."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

import torch

from tripod.engine.assemble import assemble
from tripod.engine.engine_config import EngineConfig as EngineConfig
from tripod.engine.execution.route import format_of, mode_of
from tripod.engine.grammar.compiler import GrammarCompiler
from tripod.engine.output import RequestOutput
from tripod.engine.policy.request import Request
from tripod.engine.replay_log import ReplayLog
from tripod.engine.step_loop import StepLoop, Stream
from tripod.engine.step_record import StepRecord
from tripod.engine.timeline import Timeline
from tripod.errors import ContextLengthError, EngineError, NotFoundError, RequestError, TripodError
from tripod.messages import Reply
from tripod.models.language_model import LanguageModel
from tripod.sampling import Grammar, SamplingParams
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer, check_fits
from tripod.trace import Event, Finished, fold

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NORMALIZED_CHARACTERS = 4  # at most so many become one: three letters of a Korean syllable do


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counts at one moment. When nothing runs, free_blocks + cached_blocks == total_blocks."""

    running: int
    waiting: int
    free_blocks: int
    cached_blocks: int  # kept for reuse, and free to take
    total_blocks: int
    block_size: int
    kv_bytes: int
    steps: int
    preemptions: int
    prompt_tokens: int  # of finished requests
    completion_tokens: int  # of finished requests
    finished: int  # requests, however they ended
    failed: int  # of these, by an error
    leaked_blocks: int  # reclaimed when idle; above 0 is a defect
    expert_hits: int = 0  # experts that a layer asked for in a step and that were in memory; 0 without `EngineConfig.expert_cache`
    expert_misses: int = 0  # and that were not


@dataclass(frozen=True, slots=True)
class Score:
    """How a model rates a continuation."""

    logprobs: tuple[float, ...]  # natural log, one a token of the continuation
    is_greedy: bool  # each token was the most likely one

    @property
    def total(self) -> float:
        """The log-probability of the whole continuation."""
        return sum(self.logprobs)


class Engine:
    """Answers many requests at once from one model.

    ```python
    async with Engine.load("runs/tiny@step512") as engine:
        reply = await engine.generate("Once upon", SamplingParams(max_tokens=32))
    ```

    Its methods may be called from any event loop and thread. A request that cannot be computed fails alone, and the engine goes on.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        config: EngineConfig = EngineConfig(),
        *,
        name: str,
        checkpoint: Path | None = None,
        address: str | None = None,
    ) -> None:
        """
        Args:
            model: as loaded.
            tokenizer: with at most as many tokens.
            config: of the engine.
            name: in answers.
            checkpoint: the folder whose weights the model has, unchanged: what is packed of them is then kept on disk for the next start.
            address: where a replay of the log finds the model; None: its name.

        Raises:
            TokenizerError: the tokenizer has more tokens than the model.
            ConfigError: sizes that leave no room for any request.
        """
        check_fits(tokenizer, model.config.vocab_size)
        parts = assemble(model, config, checkpoint)
        self.name = name
        self.tokenizer = tokenizer
        self.config = config
        self.mode = mode_of(parts.route)
        self._spec = spec = parts.spec
        self._experts = parts.route.expert_cache
        self._limits = parts.limits
        self._vocab_size = model.config.vocab_size
        self._open: dict[str, Request] = {}  # by id, from the call of stream to the end
        self._compiling: set[Request] = set()  # open, and not with the step loop yet
        self._opening = threading.Lock()
        self._grammars = GrammarCompiler(tokenizer, model.config.vocab_size)
        route, dtype = parts.route, str(spec.dtype).removeprefix("torch.")
        self.summary = (  # for whoever started it
            f"{route.name}, weights in {route.weight_format}; KV pool of {spec.num_blocks * spec.block_size} tokens, "
            f"{spec.num_bytes / 2**20:.1f} MiB of {dtype} on {model.device}; {self._limits.max_request_tokens} tokens a request, "
            f"{config.max_batch_tokens} tokens and {config.max_num_requests} requests a step"
        )
        logger.info("engine %s: %s", name, self.summary)
        self._loop = StepLoop(
            parts.policy, parts.runner, name=name, log=None if config.log is None else ReplayLog(config.log, address or name, model, config)
        )

    @classmethod
    def load(
        cls,
        address: str,
        *,
        config: EngineConfig = EngineConfig(),
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        name: str | None = None,
        chat_template: Path | None = None,
        timeline: Timeline | None = None,
    ) -> Engine:
        """Open a model by its address and start an engine on it. Blocks while weights are read.

        Args:
            address: a folder, `run@stepN`, `org/name@revision`, or a llama2.c file; see `tripod.models.locate`.
            config: of the engine. Without a weight format, linear layers are packed in that of `dtype`.
            dtype: of what is not packed.
            name: which replies and a server call it by; None: the address.
            chat_template: a Jinja file to use instead of the template beside the model.
            timeline: is told when each part of the start is done.

        Raises:
            CheckpointError: no usable checkpoint is there.
            TokenizerError: no tokenizer is there, or it does not fit.
        """
        from tripod.models.load import load_language_model
        from tripod.models.locate import locate

        timeline = timeline or Timeline()
        timeline.mark("imports")
        path = locate(address)
        if device == "cpu" and config.weight_format is None:
            config = replace(config, weight_format=format_of(dtype))
        # Packing copies the matrices of linear layers, so they are read from the mapped file and never held twice.
        model = load_language_model(path, dtype=dtype, device=device, keeps_linear_mapped=config.weight_format is not None)
        timeline.mark("weights found")
        tokenizer = load_tokenizer(path if path.is_dir() else path.parent, chat_template=chat_template)
        timeline.mark("tokenizer")
        engine = cls(model, tokenizer, config, name=name or address, checkpoint=path, address=address)
        timeline.mark("weights packed and KV pool taken")
        logger.info("engine %s started: %s", address, timeline)
        return engine

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together that one request may have."""
        return self._limits.max_request_tokens

    def stats(self) -> EngineStats:
        """Counts at this moment."""
        loop, policy, blocks = self._loop, self._loop.policy, self._loop.policy.blocks
        return EngineStats(
            running=len(policy.running),
            waiting=len(policy.waiting),
            free_blocks=blocks.num_free,
            cached_blocks=blocks.num_cached,
            total_blocks=blocks.num_blocks,
            block_size=blocks.block_size,
            kv_bytes=self._spec.num_bytes,
            steps=loop.num_steps,
            preemptions=policy.num_preemptions,
            prompt_tokens=loop.prompt_tokens,
            completion_tokens=loop.completion_tokens,
            finished=loop.num_finished,
            failed=loop.num_failed,
            leaked_blocks=loop.num_leaked,
            expert_hits=0 if self._experts is None else self._experts.hits,
            expert_misses=0 if self._experts is None else self._experts.misses,
        )

    def recent_steps(self) -> tuple[StepRecord, ...]:
        """The latest steps, oldest first."""
        return tuple(self._loop.steps.copy())  # a copy is made under one lock of the interpreter, while the loop appends

    def stalled_s(self) -> float:
        """Seconds since a step was last done, while something runs or waits; 0 otherwise."""
        return self._loop.stalled_s()

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered: it is neither closed nor has its thread ended."""
        return self._loop.is_alive

    async def between_steps(self, work: Callable[[], T]) -> T:
        """Do other work for which the processor is needed whole, on the step loop's thread between two steps.

        Work that would compete with a step for the processor delays every token that the step brings; here it delays them by
        its own duration and no more. So hand over little at a time.

        Raises:
            EngineError: the engine is closed.
            Exception: what the work raises.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: Exception | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(cast("T", result))

        def run() -> None:
            result: T | None = None
            failure: Exception | None = None
            try:
                if not done.cancelled():
                    result = work()
            except Exception as error:
                failure = error
            with suppress(RuntimeError):  # the asking loop is closed, so nobody waits
                loop.call_soon_threadsafe(settle, result, failure)

        if not self._loop.call(run):
            raise EngineError(f"engine {self.name!r} is closed; open another")
        return await done

    # --- asking

    def stream(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        tenant: str = "",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The events of one request: Deltas, then one Finished. Closing the iterator early aborts the request.

        The request is checked here and queued when the iteration begins.

        Args:
            prompt: text, which is tokenised with the tokenizer's special tokens, or token ids, taken as they are.
            request_id: for `abort`; must not be that of an open request.
            priority: lower runs first, among the requests of one tenant; a level is made up for by `EngineConfig.aging_s` of waiting.
            tenant: who asks. Tenants share the engine equally, however much each of them sends.
            timeout_s: seconds from this call in which the answer must be complete; None: no limit.

        Raises:
            ContextLengthError: prompt and answer together do not fit.
            RequestError: a parameter or the prompt cannot be used.
            OverloadedError: the queue has no place for it.
            DeadlineError: `timeout_s` passed.
            EngineError: the engine is closed, or failed while it ran this request.
        """
        return self._events(self._request_of(prompt, sampling, request_id, priority, tenant, timeout_s))

    async def generate(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        tenant: str = "",
        timeout_s: float | None = None,
    ) -> Reply:
        """The whole answer: the fold over `stream`, with the same arguments and errors."""
        return await fold(self._events(self._request_of(prompt, sampling, request_id, priority, tenant, timeout_s), is_whole=True))

    async def score(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> Score:
        """Log-probability of each token of a continuation, given a prompt and the tokens before it.

        Raises:
            RequestError: either is empty (a prompt of the beginning-of-sequence token scores a whole text).
            ContextLengthError: together they do not fit.
        """
        if not prompt_ids or not continuation_ids:
            raise RequestError(
                f"scoring needs at least one token of prompt and of continuation; given {len(prompt_ids)} and {len(continuation_ids)}",
                param="prompt_ids" if not prompt_ids else "continuation_ids",
            )
        sampling = SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=1)
        request = self._request([*prompt_ids, *continuation_ids], sampling, None)
        request.score_from = request.num_scored_tokens = len(prompt_ids)
        async for event in self._events(request, is_whole=True):
            if isinstance(event, Finished):
                entries = [entry for entry in event.prompt_logprobs if entry is not None]
                return Score(
                    logprobs=tuple(entry.logprob for entry in entries),
                    is_greedy=all(entry.logprob >= entry.top[0].logprob for entry in entries),
                )
        raise EngineError("a request for scores ended without any")

    def check_length(self, num_characters: int) -> None:
        """Refuse a text that is too long whatever its tokens are, before the work of finding them.

        A text that passes may still be too long.

        Raises:
            ContextLengthError: it has more characters than `max_context` of the longest tokens, times what normalisation may take away.
        """
        num_tokens = num_characters // (self._longest_token * _NORMALIZED_CHARACTERS)
        if num_tokens > self.max_context:
            raise ContextLengthError(
                f"the prompt has {num_characters} characters, more than {num_tokens} tokens; at most {self.max_context} fit. Shorten it",
                param="prompt",
            )

    @cached_property
    def _longest_token(self) -> int:
        """Bytes, so at least its characters."""
        tokenizer = self.tokenizer
        return max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids)

    def abort(self, request_id: str) -> None:
        """End a request between two steps; its stream ends with finish reason "abort".

        Raises:
            NotFoundError: no open request has this id.
        """
        with self._opening:  # who finds the request open finds it added, too
            request = self._open.get(request_id)
            if request is not None:
                self._compiling.discard(request)  # then it is ended as soon as it is added
        if request is None:
            raise NotFoundError(f"no open request has the id {request_id!r}; it may have ended already", param="request_id")
        self._loop.abort(request)

    def _encode(self, text: str) -> Sequence[int]:
        self.check_length(len(text))
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"character {error.start} of the prompt is half of a surrogate pair, which is no character; repair the text", param="prompt"
            ) from error
        return self.tokenizer.encode(text)

    def _request_of(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingParams,
        request_id: str | None,
        priority: int,
        tenant: str,
        timeout_s: float | None,
    ) -> Request:
        """A checked request as somebody asks for it, with his place in the queue. Raises what `stream` says."""
        if not isinstance(priority, int):
            raise RequestError(f"priority={priority!r} is not a whole number", param="priority")
        if not isinstance(tenant, str):
            raise RequestError(f"tenant={tenant!r} is not a string", param="tenant")
        request = self._request(self._encode(prompt) if isinstance(prompt, str) else prompt, sampling, request_id)
        request.priority, request.tenant = priority, tenant
        if timeout_s is not None:
            if not timeout_s > 0.0:
                raise RequestError(f"timeout_s={timeout_s} leaves no time; give seconds above 0, or None for no limit", param="timeout")
            request.deadline_s = time.monotonic() + timeout_s
        return request

    def _request(self, prompt_ids: Sequence[int], sampling: SamplingParams, request_id: str | None) -> Request:
        """A checked request. Raises what `stream` says."""
        try:
            prompt_ids = tuple(map(index, prompt_ids))  # NumPy's numbers, too, become plain ones, which a log can be written of
        except TypeError as error:
            raise RequestError(f"the prompt holds what is no token id: {error}", param="prompt") from error
        if not prompt_ids:
            raise RequestError("the prompt has no tokens, so there is nothing to continue; give at least one", param="prompt")
        for field, ids in (("prompt", prompt_ids), ("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
            outside = next((i for i in ids if not 0 <= i < self._vocab_size), None)
            if outside is not None:
                raise RequestError(f"{field} holds the token id {outside}; this model's ids are 0 to {self._vocab_size - 1}", param=field)
        eos_ids = frozenset() if sampling.ignore_eos else self.tokenizer.eos_ids
        stop_ids = eos_ids.union(sampling.stop_token_ids)
        if sampling.min_tokens and len(stop_ids) >= self._vocab_size:
            raise RequestError(f"every token ends the text, so min_tokens={sampling.min_tokens} leaves none to choose", param="min_tokens")
        return Request(
            id=request_id if request_id is not None else f"request-{secrets.token_hex(8)}",
            prompt_ids=prompt_ids,
            sampling=sampling,
            max_tokens=self._limits.resolve_max_tokens(len(prompt_ids), sampling.max_tokens),
            seed=sampling.seed if sampling.seed is not None else secrets.randbits(63),
            stop_ids=stop_ids,
            score_from=None if sampling.prompt_logprobs is None else 1,
        )

    async def _events(self, request: Request, *, is_whole: bool = False) -> AsyncGenerator[Event, None]:
        """Its events: as they come, or all of them at the end."""
        output = RequestOutput(request, self.tokenizer, model=self.name, mode=self.mode, arrived_s=time.monotonic())
        stream = Stream(output, is_whole=is_whole)
        with self._opening:
            if self._open.setdefault(request.id, request) is not request:
                raise RequestError(f"a request with the id {request.id!r} is open already; choose another or give none", param="request_id")
            if request.sampling.grammar is None:
                is_taken = self._loop.add(stream)  # before the lock is free: an abort must not come first
            else:
                self._compiling.add(request)
        try:
            if request.sampling.grammar is not None:
                is_taken = await self._add_with_grammar(stream, request.sampling.grammar)
            if not is_taken:
                raise EngineError(f"engine {self.name!r} is closed; open another")
            while True:
                event = await stream.queue.get()
                if isinstance(event, TripodError):
                    raise event
                if isinstance(event, Finished):
                    break
                yield event
        finally:
            del self._open[request.id]
            self._loop.abort(request)  # changes nothing if it has ended
        yield event

    async def _add_with_grammar(self, stream: Stream, grammar: Grammar) -> bool:
        """Queue a request when its grammar is compiled. False: the engine is closed."""
        request = stream.output.request
        try:
            request.matcher = await self._grammars.matcher(grammar)
            with self._opening:
                is_taken = self._loop.add(stream)
                if request not in self._compiling:  # it was aborted meanwhile
                    self._loop.abort(request)
        finally:
            self._compiling.discard(request)
        return is_taken

    async def check_grammar(self, grammar: Grammar) -> None:
        """Compile a grammar and keep it, so that a request with it starts at once.

        Raises:
            RequestError: it has a mistake, or something in it cannot be enforced; the message names it.
        """
        await self._grammars.matcher(grammar)

    # --- life and end

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop after the current step. Every open stream ends with an EngineError. Closing twice changes nothing."""
        self._grammars.close()
        await asyncio.to_thread(self._loop.close)
